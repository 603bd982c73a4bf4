"""Randomized smoothing as a certifier: Gaussian noise, l2 radii (Cohen et al., ICML 2019).

``collect`` counts votes, shardable over items and over samples; ``merge`` adds the counts of shards
that legally belong together; ``decide`` turns counts into certificates without a model.

``noise: lattice`` draws the noise exactly on the grid of 8-bit pixels: an audit mode for subsets,
whose certificates no floating-point effect can break (:mod:`certbench.certify.lattice`).
"""

from __future__ import annotations

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

version = 4

stats_columns = votes.STATS_COLUMNS

columns = {
    "sigma": "float64",
    "n0": "int64",
    "n": "int64",
    "n_top": "int64",
    "n_runner": "int64",
    "runner": "int32",
    "n_invalid": "int64",
    "alpha": "float64",
    "bound": "label",
    "selection": "label",
    "interval": "label",
    "p_lower": "float64",
    "p_upper": "float64",
    "radius_capped": "bool",
    "radius_l1_equivalent": "float64",
    "radius_linf_equivalent": "float64",
    "noise_scheme": "label",
    "dtype": "label",
}


@dataclass(frozen=True)
class CollectParams:
    """What the votes depend on."""

    sigma: float = param(help="noise level", unit="pixel values in [0, 1]", above=0)
    n: int = param(100_000, help="estimation samples", unit="samples per image", minimum=1)
    n0: int = param(100, help="selection samples", unit="samples per image", minimum=0)
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
    """What turns votes into certificates; changing it costs no forward pass."""

    alpha: float = param(0.001, help="failure probability of a certificate", above=0, below=1)
    bound: str = param("one", help="form of the certificate", choices=smoothing.BOUNDS)
    selection: str = param(
        "two_stage", help="how the class is chosen", choices=smoothing.SELECTIONS
    )
    interval: str = param("cp", help="confidence limit", choices=smoothing.INTERVALS)


def validate(collect: CollectParams, decide: DecideParams, where: str) -> None:
    """Refuse budgets that can never certify, and options that exclude each other.

    Raises:
        CertbenchError: Says the smallest sufficient number.
    """
    try:
        arguments.noise_level(collect.sigma)
        smoothing.check_budget(collect.n0, collect.n, decide.alpha, decide.bound, decide.selection)
    except CertbenchError as error:
        raise CertbenchError(
            error.problem, where=f"{where}.{error.where}", remedy=error.remedy
        ) from None
    if decide.interval == "cp_randomised" and decide.bound == "two":
        raise CertbenchError(
            "randomised limits are defined for the one-bound form",
            where=f"{where}.interval",
            remedy="use interval: cp with bound: two",
        )
    smoothed_predictor.check_predictor(decide, where)


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """An l2 ball in pixel values; its size is each row's radius."""
    return Threat("lp", "l2", None, guarantee="probabilistic", alpha=decide.alpha)


def samples(collect: CollectParams) -> int:
    """Number of estimation samples, over which jobs are sharded."""
    return collect.n


def shard_params(collect: CollectParams, start: int, stop: int | None) -> dict[str, Any]:
    """What one shard depends on: not the total; the selection samples ride with the first."""
    return {
        "sigma": collect.sigma,
        "n0": collect.n0 if start == 0 else 0,
        "noise": collect.noise,
        "compile": collect.compile,
        "precision": collect.precision,
    }


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on: not the certificate's alpha, bound or budget."""
    return smoothed_predictor.attack_params(collect.sigma, collect.noise, decide, collect.precision)


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of one shard: rows of :data:`stats_columns`, and the shard's identity."""
    params = work.params
    noise = smoothing.Noise(work.seed64, work.noise_backend, str(params.get("noise", "gaussian")))
    return votes.collect(
        work,
        noise,
        float(params["sigma"]),
        int(params["n0"]),
        compiled=bool(params.get("compile", False)),
        precision=str(params.get("precision", "float32")),
    )


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> votes.Votes:
    """Counts of both streams, after the legality checks of :func:`votes.merge`."""
    expected = {"sigma": collect.sigma, "kind": collect.noise}
    return votes.merge(shards, item_index, collect.n, collect.n0, expected)


def decide(
    stats: votes.Votes, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """Certificates of all items, from their counts."""
    dimension = math.prod(stats.identity["shape"])
    coins = None
    if decide.interval == "cp_randomised":
        coins = noises.uniform_coin(int(stats.identity["seed64"]), stats.item_index)
    made = smoothing.certify_counts(
        stats.selected if decide.selection == "two_stage" else None,
        stats.estimated,
        collect.sigma,
        decide.alpha,
        bound=decide.bound,
        selection=decide.selection,
        interval=decide.interval,
        coins=coins,
        labels=labels,
        kind=collect.noise,
        slack=smoothing.distance_from_law(collect.noise, collect.sigma, dimension),
    )
    size = len(labels)
    return {
        "predict": made["predict"],
        "radius": made["radius"],
        "sigma": np.full(size, collect.sigma),
        "n0": np.full(size, collect.n0),
        "n": stats.estimated.sum(1),
        "n_top": made["n_top"],
        "n_runner": made["n_runner"],
        "runner": made["runner"],
        "n_invalid": made["n_invalid"],
        "alpha": np.full(size, decide.alpha),
        "bound": [decide.bound] * size,
        "selection": [decide.selection] * size,
        "interval": [decide.interval] * size,
        "p_lower": made["p_lower"],
        "p_upper": [None if np.isnan(p) else float(p) for p in made["p_upper"]],
        "radius_capped": made["capped"],
        **smoothing.l2_equivalents(made["radius"], dimension),
        "noise_scheme": [f"{stats.identity['scheme']}/{stats.identity['backend']}"] * size,
        "dtype": [str(stats.identity["dtype"])] * size,
        "n_forward": np.full(size, collect.n + collect.n0),
    }


def attack_surface(work: SurfaceWork) -> Surface:
    """What an attack on the smoothed classifier climbs, and the certified rule that judges it."""
    return smoothed_predictor.surface(work)
