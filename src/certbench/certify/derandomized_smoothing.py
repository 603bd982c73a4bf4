"""De-randomised smoothing: votes over bands or blocks of the image, certified against a patch.

Levine and Feizi, "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks" (NeurIPS
2020, arXiv 2002.10733). The model sees one band of columns (or rows, or one block) at a time, at
every position, wrapping around; everything else is blanked. Each view votes for the classes that
reach a threshold, or for its best class. A patch touches a fixed number D of views; it can take a
vote from the leading class and give one to a rival in each of them, so the class holds while its
lead is at least 2 D (theorem 1, with the tie rule: the lower class wins equal counts).

Every view is evaluated, so nothing is estimated and the guarantee is deterministic. D grows with
the patch, so one count of votes certifies each image up to its own patch size: the radius. Unlike
the published code, blanked pixels have one colour instead of channels of their own that say
"blanked", so any model can be used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.errors import CertbenchError
from certbench.params import param
from certbench.threat import Threat

if TYPE_CHECKING:
    import torch

    from certbench.certify.masked_prediction import MaskedPredictor, MaskedViews
    from certbench.certify.protocol import CollectWork, Shard, Surface, SurfaceWork

version = 1

#: ``votes`` holds one count per class: int32, little endian.
stats_columns = {"votes": "binary", "pred_undefended": "int32"}

columns = {
    "ablation": "label",
    "band": "int32",
    "views": "int32",
    "threshold": "float64",
    "patch_space": "label",
    "pred_undefended": "int32",
    "n_top": "int64",
    "n_runner": "int64",
    "runner": "int32",
    "touched": "int64",
}

ABLATIONS = ("column", "row", "block")


@dataclass(frozen=True)
class CollectParams:
    """The views and their votes, which are the defended classifier."""

    band: int = param(
        help="width of the band, side of the block", unit="pixels of the network's input", minimum=1
    )
    ablation: str = param("column", help="what a view keeps", choices=ABLATIONS)
    stride: int = param(1, help="distance of neighbouring views", unit="pixels", minimum=1)
    threshold: float | None = param(
        0.2,
        help="least probability of a vote (null: every view votes for its best class)",
        above=0,
        below=1,
    )
    fill: float | None = param(
        None,
        help="what stands outside a view (null: the model's mean colour)",
        unit="pixel values in [0, 1]",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True)
class DecideParams:
    """How attacks see the classifier; the certificate has no parameters."""

    attack_views: int = param(
        8, help="views drawn for each step of an attack on the mean over views", minimum=1
    )


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """One square patch anywhere; its side is each row's radius."""
    return Threat("patch", "square", None, space="pixels", guarantee="deterministic")


def samples(collect: CollectParams) -> None:
    """Jobs are sharded over items only: an image's votes stay together."""


def kept(length: int, band: int, stride: int) -> np.ndarray:
    """Pixels that each view keeps along one axis, wrapping around: bool [views, length].

    Raises:
        CertbenchError: The band is longer than the axis.
    """
    if band > length:
        raise CertbenchError(
            f"a band of {band} pixels does not fit into {length}",
            where="band",
            remedy=f"use at most {length}",
        )
    starts = np.arange(0, length, stride)
    return (np.arange(length)[None] - starts[:, None]) % length < band


def forward_passes(params: Mapping[str, Any], side: int) -> int:
    """Forward passes of one certificate of a square image: every view, and the whole image."""
    along = -(-side // int(params["stride"]))
    return (along**2 if params["ablation"] == "block" else along) + 1


def blanked(params: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray:
    """Pixels that each view takes away: bool [views, H, W].

    Args:
        params: ``ablation``, ``band``, ``stride``.
        shape: [C, H, W].
    """
    down, across = (_axis(params, axis, int(shape[1 + axis])) for axis in (0, 1))
    seen = down[:, None, :, None] & across[None, :, None, :]
    return ~seen.reshape(-1, int(shape[1]), int(shape[2]))


def _axis(params: Mapping[str, Any], axis: int, length: int) -> np.ndarray:
    """What the views keep along an axis (0: rows of pixels); everything where it is not cut."""
    if params["ablation"] == ("column", "row")[axis]:
        return np.ones((1, length), bool)
    return kept(length, int(params["band"]), int(params["stride"]))


def touched(params: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray:
    """Most views that a square patch of side 1, 2, ... can touch: int64 [min(H, W)].

    Counted over all positions; for stride 1 it is ``patch + band - 1`` along each axis that is
    cut, at most all views (Levine and Feizi, section 3).
    """
    sides = np.arange(1, min(int(shape[1]), int(shape[2])) + 1)
    made = np.ones(len(sides), np.int64)
    for axis in (0, 1):
        views = _axis(params, axis, int(shape[1 + axis]))
        sums = np.pad(views.cumsum(1), ((0, 0), (1, 0)))
        for i, side in enumerate(sides):
            # A view is touched where any of its pixels lies under the patch.
            made[i] *= ((sums[:, side:] - sums[:, :-side]) > 0).sum(0).max()
    return made


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of every image over all views.

    Raises:
        CertbenchError: The band does not fit, or the model's logits are unusable.
    """
    from certbench.certify import masked_prediction

    shape, count = list(work.images.shape[1:]), len(work.images)
    predictor = masked_prediction.predictor_of(work, blanked(work.params, shape), shape[0])
    counts = np.zeros((count, work.num_classes), np.int32)
    plain = np.zeros(count, np.int32)

    def ask(part: torch.Tensor) -> dict[str, np.ndarray]:
        bare = np.full((len(part), 1), -1)
        return {
            "votes": count_votes(predictor, part, work.params["threshold"]),
            "plain": predictor.predict(part, np.arange(len(part)), bare)[0],
        }

    arrays: dict[str, np.ndarray] = {"votes": counts, "plain": plain}
    masked_prediction.fill_in(work, predictor, len(predictor.masks), arrays, ask)
    identity = masked_prediction.identity_of(
        work,
        predictor,
        kind="derandomized-smoothing",
        params={name: work.params[name] for name in ("ablation", "band", "stride", "threshold")},
    )
    return {
        "slot": np.arange(count),
        "votes": [row.astype("<i4").tobytes() for row in counts],
        "pred_undefended": plain,
    }, identity


def count_votes(
    predictor: MaskedPredictor, images: torch.Tensor, threshold: float | None
) -> np.ndarray:
    """Votes of all views: int64 [n, K].

    Args:
        predictor: The network and its views.
        images: float32 [n, C, H, W] in [0, 1], on the device.
        threshold: Least probability of a vote, or None for each view's best class.
    """
    import torch

    count, views, classes = len(images), len(predictor.masks), predictor.num_classes
    slot = np.repeat(np.arange(count), views)
    each = np.tile(np.arange(views), count)[:, None]
    made = torch.zeros((count, classes), dtype=torch.int64, device=predictor.device)
    order = torch.arange(classes, device=predictor.device)
    for part, logits in predictor.passes(images, slot, each):
        if threshold is None:
            top = logits.amax(1, keepdim=True)
            best = torch.where(logits == top, order, classes).amin(1, keepdim=True)
            votes = order == best
        else:
            votes = torch.softmax(logits, 1) >= threshold
        at = torch.from_numpy(slot[part]).to(predictor.device)
        made.index_add_(0, at, votes.to(torch.int64))
    return made.cpu().numpy()


@dataclass(frozen=True)
class Votes:
    """Merged votes of all items.

    Attributes:
        counts: int64 [M, K].
        undefended: int32 [M], predictions of the whole image.
        shape: [C, H, W].
    """

    counts: np.ndarray
    undefended: np.ndarray
    shape: tuple[int, ...]


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> Votes:
    """Put the shards of all items together.

    Raises:
        CertbenchError: Shards differ in anything but their items, or hold an item twice or not at
            all.
    """
    from certbench.certify.masked_prediction import gather

    rows = gather(shards, ("votes", "pred_undefended"), item_index)
    return Votes(
        np.array([np.frombuffer(row["votes"], "<i4") for row in rows], np.int64),
        np.array([row["pred_undefended"] for row in rows], np.int32),
        tuple(shards[0].identity["shape"]),
    )


def leads(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The class with most votes, the rival that comes closest, and the lead over it.

    A rival before the class in order needs one vote less, because it wins equal counts.

    Args:
        counts: int64 [M, K].

    Returns:
        ``top``, ``runner`` and ``lead``, each int64 [M].
    """
    rows = np.arange(len(counts))
    top = counts.argmax(1)
    lead = counts[rows, top][:, None] - counts - (np.arange(counts.shape[1]) < top[:, None])
    lead[rows, top] = np.iinfo(np.int64).max
    runner = lead.argmin(1)
    return top, runner, lead[rows, runner]


def decide(
    stats: Votes, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """Answer and largest certified patch of every item; nothing abstains.

    ``radius`` is the side of the largest square patch whose touched views cannot overturn the lead,
    0 where not even one pixel is certified; ``touched`` is their number for that patch.
    """
    params = {"ablation": collect.ablation, "band": collect.band, "stride": collect.stride}
    most = touched(params, stats.shape)
    top, runner, lead = leads(stats.counts)
    # ``most`` never falls with the patch, so the sides that hold are the first so many.
    sides = (2 * most[None] <= lead[:, None]).sum(1)
    rows, size = np.arange(len(labels)), len(labels)
    views = len(blanked(params, stats.shape))
    return {
        "predict": top,
        "radius": sides.astype(np.float64),
        "ablation": [collect.ablation] * size,
        "band": np.full(size, collect.band),
        "views": np.full(size, views),
        "threshold": [collect.threshold] * size,
        "patch_space": ["network_input"] * size,
        "pred_undefended": stats.undefended,
        "n_top": stats.counts[rows, top],
        "n_runner": stats.counts[rows, runner],
        "runner": runner,
        "touched": np.where(sides > 0, most[np.maximum(sides, 1) - 1], 0),
        "n_forward": np.full(size, views + 1),
    }


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on."""
    return {
        "ablation": collect.ablation,
        "band": collect.band,
        "stride": collect.stride,
        "threshold": collect.threshold,
        "fill": collect.fill,
        "attack_views": decide.attack_views,
    }


def views_of(work: SurfaceWork) -> MaskedViews:
    """The defended network as attacks see it."""
    from certbench.certify.masked_prediction import MaskedViews

    return MaskedViews(work, lambda shape: blanked(work.params, shape))


def attack_surface(work: SurfaceWork) -> Surface:
    """Surrogates of the votes (:mod:`certbench.attacks.masked`), judged by the votes."""
    from certbench.attacks import masked
    from certbench.certify.protocol import Surface

    defence, threshold = views_of(work), work.params["threshold"]
    singles = int(work.params["attack_views"])
    expectation = masked.Expectation(defence, singles, seed64=work.seed64)
    soft = masked.SoftVotes(defence, lambda passes: masked.soft_votes(passes, threshold))
    votes = masked.VoteScores(defence, lambda passes: masked.threshold_votes(passes, threshold))
    rule = "their best class" if threshold is None else f"classes above {threshold:g}"
    return Surface(
        logits=expectation,
        judge=Judge(defence, threshold),
        scores=votes,
        attacked="expectation",
        judged_by=f"votes of every {work.params['ablation']} of {work.params['band']} pixels "
        f"for {rule}",
        objectives={
            "base": work.network,
            "expectation": expectation,
            "soft-votes": soft,
            "coherent": masked.Coherent(defence, singles, seed64=work.seed64),
            "votes": votes,
        },
    )


class Judge:
    """The class with most votes: int64 [n].

    Args:
        defence: The network seen through its views.
        threshold: Least probability of a vote, or None.
    """

    #: Passes have one shape whatever the number of images: nothing needs to be padded before.
    own_batches = True

    def __init__(self, defence: MaskedViews, threshold: float | None):
        self.defence, self.threshold = defence, threshold
        self.passes = 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Labels of the points ``x``, float32 [n, C, H, W]."""
        import torch

        predictor = self.defence.predictor(x.shape[1:])
        self.passes = len(predictor.masks)
        counts = count_votes(predictor, x.detach().clamp(0, 1), self.threshold)
        return torch.from_numpy(leads(counts)[0]).to(x.device)
