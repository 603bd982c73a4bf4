"""Smoothing with uniform noise: l1 radii (Lee et al., NeurIPS 2019; Yang et al., ICML 2020).

Noise uniform on [-lambda, lambda]^d changes the probability of any class by at most
``|delta|_1 / (2 lambda)`` under a shift delta, so the smoothed class holds within

    R = 2 lambda (pA_low - 1/2)           one bound
    R = lambda (pA_low - pB_up)           two bounds

in l1. The same votes give the linf radius ``2 lambda (1 - (3/2 - pA_low)^(1/d))`` (one bound),
which in many dimensions is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import smoothed_predictor, smoothing, votes
from certbench.certify.sampling import PRECISIONS
from certbench.certify.smoothed_predictor import PredictorParams
from certbench.errors import CertbenchError
from certbench.params import param
from certbench.threat import Threat

if TYPE_CHECKING:
    from certbench.certify.protocol import CollectWork, Shard, Surface, SurfaceWork

version = 3

stats_columns = votes.STATS_COLUMNS

columns = {
    "half_width": "float64",
    "n0": "int64",
    "n": "int64",
    "n_top": "int64",
    "n_runner": "int64",
    "runner": "int32",
    "n_invalid": "int64",
    "alpha": "float64",
    "bound": "label",
    "selection": "label",
    "p_lower": "float64",
    "p_upper": "float64",
    "radius_capped": "bool",
    "radius_linf": "float64",
    "noise_scheme": "label",
    "dtype": "label",
}


@dataclass(frozen=True)
class CollectParams:
    """What the votes depend on."""

    half_width: float = param(
        help="lambda: noise is uniform on [-lambda, lambda], std lambda / sqrt(3)",
        unit="pixel values in [0, 1]",
        above=0,
    )
    n: int = param(100_000, help="estimation samples", unit="samples per image", minimum=1)
    n0: int = param(100, help="selection samples", unit="samples per image", minimum=0)
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


def validate(collect: CollectParams, decide: DecideParams, where: str) -> None:
    """Refuse budgets that can never certify.

    Raises:
        CertbenchError: Says the smallest sufficient number.
    """
    try:
        smoothing.check_budget(collect.n0, collect.n, decide.alpha, decide.bound, decide.selection)
    except CertbenchError as error:
        raise CertbenchError(
            error.problem, where=f"{where}.{error.where}", remedy=error.remedy
        ) from None
    smoothed_predictor.check_predictor(decide, where)
    if decide.attack_gradient == "score":
        raise CertbenchError(
            "the estimate from probabilities is that of Gaussian noise",
            where=f"{where}.attack_gradient",
            remedy="use attack_gradient: autograd, or the square attack",
        )


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """An l1 ball in pixel values; its size is each row's radius."""
    return Threat("lp", "l1", None, guarantee="probabilistic", alpha=decide.alpha)


def samples(collect: CollectParams) -> int:
    """Number of estimation samples, over which jobs are sharded."""
    return collect.n


def shard_params(collect: CollectParams, start: int, stop: int | None) -> dict[str, Any]:
    """What one shard depends on: not the total; the selection samples ride with the first."""
    return {
        "half_width": collect.half_width,
        "n0": collect.n0 if start == 0 else 0,
        "compile": collect.compile,
        "precision": collect.precision,
    }


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on: not the certificate's alpha, bound or budget."""
    return smoothed_predictor.attack_params(
        collect.half_width, "uniform", decide, collect.precision
    )


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of one shard: rows of :data:`stats_columns`, and the shard's identity."""
    noise = smoothing.Noise(work.seed64, work.noise_backend, "uniform")
    return votes.collect(
        work,
        noise,
        float(work.params["half_width"]),
        int(work.params["n0"]),
        compiled=bool(work.params["compile"]),
        precision=str(work.params["precision"]),
    )


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> votes.Votes:
    """Counts of both streams, after the legality checks of :func:`votes.merge`."""
    expected = {"sigma": collect.half_width, "kind": "uniform"}
    return votes.merge(shards, item_index, collect.n, collect.n0, expected)


def decide(
    stats: votes.Votes, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """Certificates of all items, from their counts."""
    from certbench.certify.radii import radius_linf_uniform, round_down

    made = smoothing.certify_counts(
        stats.selected if decide.selection == "two_stage" else None,
        stats.estimated,
        collect.half_width,
        decide.alpha,
        bound=decide.bound,
        selection=decide.selection,
        labels=labels,
        kind="uniform",
    )
    size = len(labels)
    linf = radius_linf_uniform(
        made["p_lower"], collect.half_width, math.prod(stats.identity["shape"])
    )
    return {
        "predict": made["predict"],
        "radius": made["radius"],
        "half_width": np.full(size, collect.half_width),
        "n0": stats.selected.sum(1),
        "n": stats.estimated.sum(1),
        "n_top": made["n_top"],
        "n_runner": made["n_runner"],
        "runner": made["runner"],
        "n_invalid": made["n_invalid"],
        "alpha": np.full(size, decide.alpha),
        "bound": [decide.bound] * size,
        "selection": [decide.selection] * size,
        "p_lower": made["p_lower"],
        "p_upper": [None if np.isnan(p) else float(p) for p in made["p_upper"]],
        "radius_capped": made["capped"],
        "radius_linf": np.asarray(round_down(linf), np.float64),
        "noise_scheme": [f"{stats.identity['scheme']}/{stats.identity['backend']}"] * size,
        "dtype": [str(stats.identity["dtype"])] * size,
        "n_forward": np.full(size, collect.n + collect.n0),
    }


def attack_surface(work: SurfaceWork) -> Surface:
    """What an attack on the smoothed classifier climbs, and the certified rule that judges it."""
    return smoothed_predictor.surface(work)
