"""Deterministic smoothing by splitting noise: l1 certificates without sampling.

Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness" (ICML 2021), for
8-bit images. Split points cut the range of each pixel into intervals of length ``2 lambda``; the
network sees the middle of the interval that a pixel falls in, clipped to [0, 1]. With
``Lambda = 2 lambda 255`` split positions on half levels, one fixed random offset per pixel, and one
global shift for each of the Lambda positions, every pixel meets every position exactly once, so a
pixel that moves by D levels changes what the network sees in at most D of the Lambda passes. An l1
change of D levels moves at most D votes: the class holds while its lead exceeds 2 D.

All Lambda shifts are evaluated, so nothing is estimated: alpha is 0 and the guarantee is
deterministic. It speaks of 8-bit images (threat space ``uint8``): between two levels lies a split
point, so a real-valued perturbation of the same l1 size may cross twice as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import noise as noises
from certbench.certify import sampling, votes
from certbench.errors import CertbenchError
from certbench.params import param
from certbench.threat import Threat

if TYPE_CHECKING:
    import torch

    from certbench.certify.protocol import CollectWork, Shard, Surface, SurfaceWork
    from certbench.certify.sampling import Perturb

version = 1

LEVELS = 255
SCHEME = "splitting-v1"

# Stream of the offsets in the counter-based generator.
_OFFSETS = 19

stats_columns = votes.STATS_COLUMNS

columns = {
    "half_width": "float64",
    "shifts": "int64",
    "n_top": "int64",
    "n_runner": "int64",
    "runner": "int32",
    "n_invalid": "int64",
    "alpha": "float64",
    "radius_levels": "int64",
    "offset_seed": "int64",
    "dtype": "label",
}


@dataclass(frozen=True)
class CollectParams:
    """The width of the intervals and the offsets: parts of the smoothed classifier."""

    half_width: float = param(
        help="lambda: intervals have length 2 lambda, a whole number of levels 1/255",
        unit="pixel values in [0, 1]",
        above=0,
    )
    offset_seed: int = param(
        0,
        help="seed of the fixed offset of every pixel; that of the training",
        minimum=0,
        maximum=2**63 - 1,
    )


@dataclass(frozen=True)
class DecideParams:
    """How attacks see the classifier; the certificate has no parameters."""

    attack_draws: int = param(
        16, help="shifts of the objective that attacks climb", unit="passes", minimum=1
    )


def shifts(half_width: float) -> int:
    """Number of split positions, 2 lambda 255.

    Raises:
        CertbenchError: It is no whole number, or less than 2.
    """
    exact = 2 * half_width * LEVELS
    if abs(exact - round(exact)) > 1e-6 or round(exact) < 2:
        raise CertbenchError(
            f"2 x 255 x {half_width} = {exact:g} is no whole number of levels above 1",
            where="half_width",
            remedy=f"for example {max(2, round(exact))} / 510 = {max(2, round(exact)) / 510:.17g}",
        )
    return round(exact)


def forward_passes(params: Mapping[str, Any], side: int) -> int:
    """Forward passes of one certificate: one for each split position."""
    return shifts(float(params["half_width"]))


def validate(collect: CollectParams, decide: DecideParams, where: str) -> None:
    """Refuse a width that is no whole number of levels.

    Raises:
        CertbenchError: Says the nearest width.
    """
    try:
        shifts(collect.half_width)
    except CertbenchError as error:
        raise CertbenchError(
            error.problem, where=f"{where}.half_width", remedy=error.remedy
        ) from None


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """An l1 ball among 8-bit images; its size is each row's radius."""
    return Threat("lp", "l1", None, space="uint8", guarantee="deterministic")


def samples(collect: CollectParams) -> int:
    """The shifts play the part of samples: jobs are sharded over them."""
    return shifts(collect.half_width)


def offsets(seed: int, elements: int, total: int) -> np.ndarray:
    """The fixed offset of every value: int64 [elements] in [0, total).

    Args:
        seed: Any integer of 64 bits, part of the classifier.
        elements: Values of one image, C x H x W.
        total: Number of split positions.
    """
    blocks = -(-elements // 4)
    counter = np.zeros((blocks, 4), np.uint64)
    counter[:, 0], counter[:, 3] = np.arange(blocks), _OFFSETS
    words = noises.philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return (words.reshape(-1)[:elements] % np.uint32(total)).astype(np.int64)


def split_middle(levels: torch.Tensor, split: torch.Tensor, total: int) -> torch.Tensor:
    """What the network sees: the middle of each value's interval, clipped to [0, 1].

    Args:
        levels: float64, values in units of 1/255.
        split: int64, in [0, total): the split points are ``split + 1/2 + k total`` levels.
        total: Length of an interval in levels.

    Returns:
        float32 in [0, 1], of the shape that the two broadcast to.
    """
    import torch

    at = split.double() + 0.5
    lower = torch.floor((levels - at) / total) * total + at
    upper = lower + total
    return ((lower.clamp_min(0) + upper.clamp_max(LEVELS)) / (2 * LEVELS)).float()


def shifting(images: torch.Tensor, half_width: float, offset_seed: int, device: Any) -> Perturb:
    """Inputs of the passes, the sample being the shift; see ``sampling.Perturb``."""
    import torch

    total = shifts(half_width)
    levels = (images.flatten(1).double() * LEVELS).to(device)
    shape, elements = tuple(images.shape[1:]), levels.shape[1]
    fixed = torch.from_numpy(offsets(offset_seed, elements, total)).to(device)

    def perturb(slot, image_ids, samples, out):
        split = (fixed + samples[:, None]) % total
        out.copy_(split_middle(levels[slot], split, total).view(-1, *shape))

    return perturb


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes over one range of shifts, and the shard's identity.

    Raises:
        CertbenchError: Images that are not 8-bit.
    """
    from certbench.certify import lattice

    # Whole levels, free of the rounding of pixel / 255.
    images = lattice.levels_of(work.images).double() / LEVELS
    half_width, seed = float(work.params["half_width"]), int(work.params["offset_seed"])
    perturb = shifting(images, half_width, seed, work.device)
    noise = sampling.Noise(work.seed64, "eager")
    rows, identity = votes.collect(work, noise, half_width, 0, perturb=perturb)
    identity |= {"kind": "splitting", "scheme": SCHEME, "backend": "integer", "seed64": str(seed)}
    return rows, identity


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> votes.Votes:
    """Votes of all shifts, after the legality checks of :func:`votes.merge`."""
    expected = {
        "sigma": collect.half_width,
        "kind": "splitting",
        "seed64": str(collect.offset_seed),
    }
    return votes.merge(shards, item_index, shifts(collect.half_width), 0, expected)


def certified_levels(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Largest l1 change, in levels, that cannot change the class with most votes.

    ``floor((n_top - n_c - [c < top]) / 2)``, the least over all classes c: among equal counts the
    lowest class wins, so a class before the top one needs no lead to take over.

    Args:
        counts: int64 [M, K + 1] votes; the last column counts invalid ones, which no class gets:
            it is a rival like any class, and comes last.

    Returns:
        ``top``, ``runner`` (the rival that limits the radius), ``n_top``, ``n_runner``, ``levels``
        (negative where an invalid answer leads), each int64 [M].

    Source: Levine and Feizi, ICML 2021, theorem 2 with the tie rule of section 4.
    """
    rows = np.arange(len(counts))
    top = counts[:, :-1].argmax(1)
    n_top = counts[rows, top]
    lead = n_top[:, None] - counts - (np.arange(counts.shape[1]) < top[:, None])
    lead[rows, top] = np.iinfo(np.int64).max
    runner = lead.argmin(1)
    return {
        "top": top,
        "runner": runner,
        "n_top": n_top,
        "n_runner": counts[rows, runner],
        "levels": lead[rows, runner] // 2,
    }


def decide(
    stats: votes.Votes, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """Certificates of all items; only an image with mostly invalid answers abstains."""
    made = certified_levels(stats.estimated)
    size, total = len(labels), shifts(collect.half_width)
    answers = made["levels"] >= 0
    levels = np.maximum(made["levels"], 0)
    return {
        "predict": np.where(answers, made["top"], -1),
        "radius": levels / LEVELS,
        "half_width": np.full(size, collect.half_width),
        "shifts": np.full(size, total),
        "n_top": made["n_top"],
        "n_runner": made["n_runner"],
        "runner": made["runner"],
        "n_invalid": stats.estimated[:, -1],
        "alpha": np.zeros(size),
        "radius_levels": levels,
        "offset_seed": np.full(size, collect.offset_seed),
        "dtype": [str(stats.identity["dtype"])] * size,
        "n_forward": np.full(size, total),
    }


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on."""
    return {
        "half_width": collect.half_width,
        "offset_seed": collect.offset_seed,
        "attack_draws": decide.attack_draws,
    }


def attack_surface(work: SurfaceWork) -> Surface:
    """The objective is the mean over some shifts, the judge the deterministic rule itself.

    What the network sees is piecewise constant in the image, so the objective passes gradients
    straight through.
    """
    from certbench.certify.protocol import Surface

    logits = _objective(work)
    return Surface(
        logits=logits,
        judge=_judge(work),
        attacked="smoothed",
        judged_by=f"votes over all {shifts(float(work.params['half_width']))} shifts",
        objectives={"base": work.network, "smoothed": logits},
    )


def _objective(work: SurfaceWork) -> Any:
    import torch

    from certbench.attacks.smoothed import log_mean_softmax

    half_width, seed = float(work.params["half_width"]), int(work.params["offset_seed"])
    total, draws = shifts(half_width), int(work.params["attack_draws"])
    chosen = np.linspace(0, total, min(draws, total), endpoint=False).astype(np.int64)

    def logits(x: torch.Tensor) -> torch.Tensor:
        fixed = torch.from_numpy(offsets(seed, x[0].numel(), total)).to(x.device).view(x.shape[1:])
        seen = []
        for shift in chosen.tolist():
            middle = split_middle(x.detach().double() * LEVELS, (fixed + shift) % total, total)
            seen.append(work.network(x + (middle - x).detach()))
        return log_mean_softmax(torch.stack(seen))

    logits.passes = len(chosen)  # type: ignore[attr-defined]
    return logits


def _judge(work: SurfaceWork) -> Any:
    import torch

    half_width, seed = float(work.params["half_width"]), int(work.params["offset_seed"])
    total = shifts(half_width)
    network, _ = sampling.for_inference(work.network)

    def judge(x: torch.Tensor) -> torch.Tensor:
        points = x.detach().clamp(0, 1)
        counts = sampling.count_votes(
            network,
            points,
            np.zeros(len(points), np.int64),
            noises.ESTIMATION,
            0,
            total,
            sigma=half_width,
            num_classes=work.num_classes,
            noise=sampling.Noise(0, "eager"),
            batch_size=work.batch_size,
            numerics=work.numerics,
            device=work.device,
            perturb=shifting(points, half_width, seed, work.device),
        )
        made = certified_levels(counts)
        labels = np.where(made["levels"] >= 0, made["top"], -1)
        return torch.from_numpy(labels.astype(np.int64)).to(x.device)

    judge.passes = total  # type: ignore[attr-defined]
    return judge
