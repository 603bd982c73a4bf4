"""Randomized smoothing that stops sampling an image once its question is answered.

Most images need a small part of a fixed budget: sampling stops at the first *look* after which the
radii asked for are decided, or the radius is known to within a tolerance. The bounds are those of
:mod:`certbench.certify.sequential`, valid however often one looks: fixed looks that share alpha, or
a mixture confidence sequence.

Unlike in ``randomized_smoothing``, alpha, looks, radii and tolerance are *collect* parameters: they
decide which images get more samples, so other values ask for other forward passes. Jobs are sharded
over items only, because the looks of an image follow each other; all looks are taken inside one
resumable job. Every look's counts are stored, and ``decide`` is a pure function of them.

The images of a shard go through the looks together, so that the samples of all undecided images
fill the batches; an image that is decided takes no part in later looks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import arguments, smoothed_predictor, smoothing, votes
from certbench.certify import noise as noises
from certbench.certify.sampling import PRECISIONS
from certbench.certify.smoothed_predictor import PredictorParams
from certbench.errors import CertbenchError
from certbench.params import param
from certbench.threat import Threat

if TYPE_CHECKING:
    from certbench.certify.protocol import CollectWork, Shard, Surface, SurfaceWork
    from certbench.certify.sequential import Bounds, StoppingRule

version = 4

stats_columns = votes.STATS_COLUMNS

columns = {
    "sigma": "float64",
    "n0": "int64",
    "n_used": "int64",
    "n_max": "int64",
    "n_looks": "int64",
    "n_top": "int64",
    "n_runner": "int64",
    "runner": "int32",
    "n_invalid": "int64",
    "alpha": "float64",
    "bound": "label",
    "selection": "label",
    "p_lower": "float64",
    "conclusive": "bool",
    "radius_capped": "bool",
    "radius_l1_equivalent": "float64",
    "radius_linf_equivalent": "float64",
    "noise_scheme": "label",
    "dtype": "label",
}


@dataclass(frozen=True)
class CollectParams:
    """The question, the schedule and the bound: all of them steer the sampling."""

    sigma: float = param(help="noise level", unit="pixel values in [0, 1]", above=0)
    n: int = param(100_000, help="largest number of samples", unit="samples per image", minimum=1)
    n0: int = param(100, help="selection samples", unit="samples per image", minimum=0)
    alpha: float = param(0.001, help="failure probability of a certificate", above=0, below=1)
    radii: tuple[float, ...] = param(
        (),
        help="radii to decide; 0 asks whether to abstain",
        unit="l2, pixels in [0, 1]",
        minimum=0,
    )
    tolerance: float | None = param(
        None, help="know the radius to within this much", unit="l2, pixels in [0, 1]", above=0
    )
    method: str = param(
        "looks", help="fixed looks that share alpha, or one confidence sequence",
        choices=("looks", "mixture"),
    )  # fmt: skip
    looks: tuple[int, ...] = param(
        (),
        help="sample sizes of the looks; without any, first_look and growth make them",
        minimum=1,
    )
    first_look: int = param(100, help="samples at the first look", minimum=1)
    growth: float = param(2.0, help="samples of a look over those of the one before", above=1)
    selection: str = param(
        "two_stage", help="how the class is chosen", choices=("two_stage", "single_stage")
    )
    futility: float = param(
        0.001, help="probability of giving up a decidable image early", above=0, below=1
    )
    noise: str = param(
        "gaussian",
        help="lattice: exact noise on the grid of 8-bit pixels",
        choices=("gaussian", "lattice"),
    )
    compile: bool = param(
        False, help="compile the model (torch.compile): starts slowly, measure before you use it"
    )
    precision: str = param(
        "float32",
        help="arithmetic of the network; bfloat16 certifies the network so rounded",
        choices=PRECISIONS,
    )


@dataclass(frozen=True, kw_only=True)
class DecideParams(PredictorParams):
    """The predictor that judges attacks; the certificate's parameters steer the sampling."""


@dataclass(frozen=True)
class LookVotes:
    """Merged votes of all items.

    Attributes:
        item_index: uint32 [M].
        selected: int64 [M, K + 1] of the selection stream (zeros without one).
        cumulative: int64 [L, M, K + 1] after each look; an image that was decided before a look
            keeps its votes.
        identity: What all shards agreed on.
    """

    item_index: np.ndarray
    selected: np.ndarray
    cumulative: np.ndarray
    identity: dict[str, Any]


def schedule(params: CollectParams) -> tuple[int, ...]:
    """Sample sizes of the looks, ascending, the last being the whole budget."""
    if params.looks:
        return params.looks
    sizes = [min(params.first_look, params.n)]
    while sizes[-1] < params.n:
        sizes.append(min(params.n, max(sizes[-1] + 1, math.ceil(sizes[-1] * params.growth))))
    return tuple(sizes)


def stopping_rule(params: CollectParams) -> StoppingRule:
    """The rule that these parameters mean.

    Raises:
        CertbenchError: There is nothing to decide, or the budget can never certify.
    """
    from certbench.certify.sequential import StoppingRule

    return StoppingRule(
        sigma=params.sigma,
        alpha=params.alpha,
        looks=schedule(params),
        radii=params.radii,
        tolerance=params.tolerance,
        method=params.method,
        single_stage=params.selection == "single_stage",
        futility=params.futility,
    )


def validate(collect: CollectParams, decide: DecideParams, where: str) -> None:
    """Refuse questions that are none, and budgets that can never certify.

    Raises:
        CertbenchError: Says what is wrong and the remedy.
    """
    try:
        arguments.noise_level(collect.sigma)
        smoothing.check_samples(collect.n, "n")
        stopping_rule(collect)
    except CertbenchError as error:
        # The rule's names for what the configuration calls otherwise.
        key = "selection" if error.where == "single_stage" else error.where
        if key == "looks" and not collect.looks:
            key = "n"
        raise CertbenchError(error.problem, where=f"{where}.{key}", remedy=error.remedy) from None
    if collect.looks and collect.looks[-1] != collect.n:
        raise CertbenchError(
            f"end at {collect.looks[-1]}, but n is {collect.n}",
            where=f"{where}.looks",
            remedy="let the last look be n",
        )
    if collect.selection == "two_stage" and collect.n0 < 1:
        raise CertbenchError(
            f"is {collect.n0}", where=f"{where}.n0", remedy="two_stage selection needs n0 >= 1"
        )
    smoothed_predictor.check_predictor(decide, where)


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """An l2 ball in pixel values; its size is each row's radius."""
    return Threat("lp", "l2", None, guarantee="probabilistic", alpha=collect.alpha)


def samples(collect: CollectParams) -> None:
    """None: jobs are not sharded over samples."""
    return None


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on: not the certificate's alpha, looks or budget."""
    return smoothed_predictor.attack_params(collect.sigma, collect.noise, decide, collect.precision)


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of one shard at every look, and the shard's identity.

    The votes of a look are those of its own samples, [previous look, this look); images that were
    decided before have none. ``tick`` is told how many images are decided.
    """
    from certbench.params import build

    params = build(CollectParams, work.params, "collect")
    rule = stopping_rule(params)
    noise = smoothing.Noise(work.seed64, work.noise_backend, params.noise)
    network, layout = votes.open_network(work, params.compile, params.precision)
    count = len(work.item_index)

    def alive(_: int) -> None:
        if work.tick is not None:
            work.tick(0)

    def draw(stream: int, start: int, stop: int, label: str, chosen: np.ndarray) -> np.ndarray:
        table = votes.count(
            work, network, noise, params.sigma, stream, start, stop, label, chosen, tick=alive
        )
        parts.append(votes.sparse(table, stream, start, stop, chosen))
        return table

    parts: list[dict[str, np.ndarray]] = []
    everything = np.arange(count)
    selected = np.zeros((count, work.num_classes + 1), np.int64)
    if params.selection == "two_stage":
        selected = draw(noises.SELECTION, 0, params.n0, "selection", everything)
    totals = np.zeros_like(selected)
    bounds, before = rule.start(count), 0
    for look, size in enumerate(rule.looks):
        undecided = np.flatnonzero(~bounds.decided)
        if not len(undecided):
            break
        totals[undecided] += draw(noises.ESTIMATION, before, size, f"look{look}", undecided)
        bounds = after_look(rule, bounds, look, selected, totals)
        if work.tick is not None:
            work.tick(len(undecided) - int((~bounds.decided).sum()))
        before = size
    identity = votes.identity(work, noise, params.sigma, layout, params.precision)
    return votes.stacked(parts), identity | {"rule": _rule_text(params)}


def after_look(
    rule: StoppingRule, bounds: Bounds, look: int, selected: np.ndarray, totals: np.ndarray
) -> Bounds:
    """The bounds after one more look.

    Args:
        rule: The stopping rule.
        bounds: Those before.
        look: Index of the look.
        selected: int64 [M, K + 1] selection votes.
        totals: int64 [M, K + 1] cumulative estimation votes; rows of decided images are ignored.
    """
    top = (totals if rule.single_stage else selected)[:, :-1].argmax(1)
    return rule.update(bounds, look, totals[np.arange(len(totals)), top], top)


def _rule_text(params: CollectParams) -> dict[str, Any]:
    """What of the parameters decides who gets more samples (JSON values)."""
    return {
        "alpha": params.alpha,
        "n0": params.n0,
        "looks": list(schedule(params)),
        "radii": list(params.radii),
        "tolerance": params.tolerance,
        "method": params.method,
        "selection": params.selection,
        "futility": params.futility,
    }


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> LookVotes:
    """Cumulative counts at every look, after the checks of :func:`votes.tally`.

    Raises:
        CertbenchError: Unlike shards; or an image whose looks are not those that the rule asks for
            (a look is missing, or there are more than its votes allow).
    """
    expected = {"sigma": collect.sigma, "kind": collect.noise, "rule": _rule_text(collect)}
    found = votes.tally(shards, item_index, expected)
    count, looks = len(item_index), schedule(collect)
    stream, stop = found.rows["stream"], found.rows["sample_stop"]
    cumulative = np.stack(
        [found.table((stream == noises.ESTIMATION) & (stop <= size), count) for size in looks]
    )
    selected = found.table(stream == noises.SELECTION, count)
    stats = LookVotes(np.asarray(item_index), selected, cumulative, dict(found.identity))
    bounds, short = replay(stopping_rule(collect), stats)
    wanted_n0 = collect.n0 if collect.selection == "two_stage" else 0
    for spot, item in enumerate(item_index.tolist()):
        planned = {noises.SELECTION: wanted_n0, noises.ESTIMATION: int(bounds.n_used[spot])}
        for number, wanted in planned.items():
            ranges = found.covered.get((spot, number), [])
            reached = votes.check_cover(ranges, item, number)
            more = short[spot] and number == noises.ESTIMATION
            if more or reached != wanted or any(stop > wanted for _, stop, _ in ranges):
                raise CertbenchError(
                    f"item {item} (stream {number}) has {reached} gapless samples, "
                    f"the stopping rule asks for {'more' if more else wanted}",
                    where=ranges[-1][2] if ranges else str(shards[0].path.parent),
                    remedy="delete the shard and run again",
                )
    return stats


def replay(rule: StoppingRule, stats: LookVotes) -> tuple[Bounds, np.ndarray]:
    """The bounds after all looks, from stored votes.

    Returns:
        The bounds, and bool [M]: images that the rule has not done with and that lack votes.
    """
    bounds = rule.start(len(stats.item_index))
    short = np.zeros(len(stats.item_index), bool)
    for look, (size, totals) in enumerate(zip(rule.looks, stats.cumulative, strict=True)):
        lacking = ~bounds.decided & (totals.sum(1) < size)
        short |= lacking
        bounds = dataclasses.replace(bounds, decided=bounds.decided | lacking)
        if bounds.decided.all():
            break
        bounds = after_look(rule, bounds, look, stats.selected, totals)
    return bounds, short


def decide(
    stats: LookVotes, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """Certificates of all items, from their counts at every look."""
    from certbench.certify.radii import radius_one, round_down

    rule = stopping_rule(collect)
    bounds, _ = replay(rule, stats)
    made = rule.certificates(bounds)
    size, dimension = len(labels), math.prod(stats.identity["shape"])
    slack = smoothing.distance_from_law(collect.noise, collect.sigma, dimension)
    p_lower = np.maximum(made["p_lower"] - slack, 0.0)
    radius = np.asarray(round_down(radius_one(p_lower, collect.sigma)))
    totals = stats.cumulative[-1] if len(stats.cumulative) else stats.selected
    top = np.maximum(bounds.label, 0)
    rows = np.arange(size)
    others = totals[:, :-1].copy()
    others[rows, top] = -1
    runner = others.argmax(1)
    n_top = totals[rows, top]
    abstain = ~(radius > 0)
    return {
        "predict": np.where(abstain, smoothing.ABSTAIN, top),
        "radius": radius,
        "sigma": np.full(size, collect.sigma),
        "n0": np.full(size, stats.selected.sum(1)),
        "n_used": made["n_used"],
        "n_max": np.full(size, rule.looks[-1]),
        "n_looks": (stats.cumulative.sum(2) == np.array(rule.looks)[:, None]).sum(0),
        "n_top": n_top,
        "n_runner": others[rows, runner],
        "runner": runner,
        "n_invalid": totals[:, -1],
        "alpha": np.full(size, collect.alpha),
        "bound": [collect.method] * size,
        "selection": [collect.selection] * size,
        "p_lower": p_lower,
        "conclusive": made["conclusive"],
        "radius_capped": (made["n_used"] == rule.looks[-1]) & (n_top == made["n_used"]),
        **smoothing.l2_equivalents(radius, dimension),
        "noise_scheme": [f"{stats.identity['scheme']}/{stats.identity['backend']}"] * size,
        "dtype": [str(stats.identity["dtype"])] * size,
        "n_forward": made["n_used"] + stats.selected.sum(1),
    }


def attack_surface(work: SurfaceWork) -> Surface:
    """The smoothed classifier is that of ``randomized_smoothing``; so is how it is attacked."""
    return smoothed_predictor.surface(work)
