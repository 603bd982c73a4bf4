"""PatchCleanser: certified recovery from one patch by double masking, for any classifier.

Xiang, Mahloujifar, Mittal, "PatchCleanser: Certifiably Robust Defense against Adversarial Patches
for Any Image Classifier" (USENIX Security 2022, arXiv 2108.09135). Masks are laid over the image
so that one of them covers the patch wherever it is. If the model gives the same class under every
pair of masks of the clean image, the two-round rule gives that class whatever the patch shows.

``collect`` predicts under all pairs of masks, once; ``decide`` reads the answer, the certificate
and everything else from that table. Certification looks at clean images only: no attack is run.
The certificate is deterministic and speaks of patches in the network's input, after resizing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import masking, masks
from certbench.params import param
from certbench.threat import Threat

if TYPE_CHECKING:
    import torch

    from certbench.certify.masked_prediction import MaskedViews
    from certbench.certify.protocol import CollectWork, Shard, Surface, SurfaceWork

version = 1

#: ``labels`` and ``margins`` hold the pairs of masks in the order of ``numpy.triu_indices``: int16
#: and float32, little endian. A margin is the largest logit less the second.
stats_columns = {
    "n_masks": "int32",
    "labels": "binary",
    "margins": "binary",
    "pred_undefended": "int32",
}

columns = {
    "engine": "label",
    "patch_h": "int32",
    "patch_w": "int32",
    "patch_space": "label",
    "mask_budget": "int32",
    "starts_h": "label",
    "starts_w": "label",
    "mask_h": "int32",
    "mask_w": "int32",
    "n_masks": "int32",
    "pred_undefended": "int32",
    "inference_case": "label",
    "certified": "bool",
    "consistent_wrong": "bool",
    "certified_rows": "int32",
    "lcf": "float64",
    "min_margin": "float64",
    "near_tie": "bool",
    "n_forward_infer": "int64",
    "n_forward_cert": "int64",
}

#: A certificate whose closest call was closer than this (float32) is marked ``near_tie``: another
#: kernel might decide it otherwise.
NEAR_TIE = 1e-4

CASES = ("", "I", "II", "III")


@dataclass(frozen=True)
class CollectParams:
    """The masks, which are part of the defended classifier."""

    patch_size: int = param(
        help="height of the patch to be covered", unit="pixels of the network's input", minimum=1
    )
    patch_width: int | None = param(
        None, help="its width (null: the height)", unit="pixels of the network's input", minimum=1
    )
    masks: int = param(6, help="masks along each axis, at most", minimum=1)
    mask_stride: int | None = param(
        None, help="distance of masks, instead of their number", unit="pixels", minimum=1
    )
    fill: float | None = param(
        None,
        help="what stands under a mask (null: the model's mean colour)",
        unit="pixel values in [0, 1]",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class DecideParams:
    """How the table is read, and how attacks see the defence."""

    engine: str = param(
        "double", help="rule that answers: double or challenger masking", choices=masking.ENGINES
    )
    certificate: str = param(
        "pairs",
        help="pairs: all pairs of masks agree; positions: every patch position lies in a mask "
        "whose pairs all agree, which certifies no less",
        choices=("pairs", "positions"),
    )
    attack_masks: int = param(
        8, help="masks drawn for each step of an attack on the mean over masks", minimum=1
    )
    attack_pairs: int = param(
        4, help="pairs of masks drawn beside them, for the second round", minimum=0
    )


def patch_of(collect: CollectParams) -> tuple[int, int]:
    """Height and width of the patch."""
    return collect.patch_size, collect.patch_width or collect.patch_size


def threat(collect: CollectParams, decide: DecideParams) -> Threat:
    """One square patch anywhere; the row's radius is its side, 0 where nothing is certified."""
    return Threat("patch", "square", None, space="pixels", guarantee="deterministic")


def samples(collect: CollectParams) -> None:
    """Jobs are sharded over items only: an image's pairs of masks stay together."""


def forward_passes(params: Mapping[str, Any], side: int) -> int:
    """Forward passes of one certificate of a square image: every pair of masks, and none."""
    count = len(mask_set(params, (3, side, side)))
    return count * (count + 1) // 2 + 1


def mask_set(params: Mapping[str, Any], shape: Sequence[int]) -> masks.MaskSet:
    """The masks for images of a shape [C, H, W].

    Raises:
        CertbenchError: The patch does not fit into the image.
    """
    height = int(params["patch_size"])
    patch = (height, int(params["patch_width"] or height))
    stride = params["mask_stride"]
    return masks.mask_set(
        (int(shape[1]), int(shape[2])),
        patch,
        None if stride is not None else int(params["masks"]),
        None if stride is None else int(stride),
    )


def collect(work: CollectWork) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predictions of every image under all pairs of masks, and under none.

    Raises:
        CertbenchError: The patch does not fit, or the model's logits are unusable.
    """
    from certbench.certify import masked_prediction

    shape, count = list(work.images.shape[1:]), len(work.images)
    found = mask_set(work.params, shape)
    predictor = masked_prediction.predictor_of(work, found.blanked, shape[0])
    layers = np.concatenate([found.pairs, [[-1, -1]]])
    queries = len(layers)
    labels = np.zeros((count, queries), np.int16)
    margins = np.zeros((count, queries), np.float32)

    def ask(part: torch.Tensor) -> dict[str, np.ndarray]:
        slot = np.repeat(np.arange(len(part)), queries)
        made = predictor.predict(part, slot, np.tile(layers, (len(part), 1)))
        told = [rows.reshape(len(part), queries) for rows in made]
        return {"labels": told[0], "margins": told[1]}

    arrays: dict[str, np.ndarray] = {"labels": labels, "margins": margins}
    masked_prediction.fill_in(work, predictor, queries, arrays, ask)
    identity = masked_prediction.identity_of(
        work, predictor, kind="double-masking", masks=found.facts()
    )
    return {
        "slot": np.arange(count),
        "n_masks": np.full(count, len(found), np.int32),
        "labels": [row.astype("<i2").tobytes() for row in labels[:, :-1]],
        "margins": [row.astype("<f4").tobytes() for row in margins[:, :-1]],
        "pred_undefended": labels[:, -1].astype(np.int32),
    }, identity


@dataclass(frozen=True)
class Tables:
    """Merged predictions of all items.

    Attributes:
        masks: The mask set.
        labels: int16 [M, N, N], symmetric; the diagonal holds single masks.
        margins: float32 [M, N (N + 1) / 2].
        undefended: int32 [M], predictions without a mask.
    """

    masks: masks.MaskSet
    labels: np.ndarray
    margins: np.ndarray
    undefended: np.ndarray


def merge(shards: Sequence[Shard], collect: CollectParams, item_index: np.ndarray) -> Tables:
    """Put the shards of all items together.

    Raises:
        CertbenchError: Shards differ in anything but their items, hold an item twice or not at all,
            or their masks do not cover the patch.
    """
    from certbench.certify.masked_prediction import gather

    ordered = gather(shards, ("labels", "margins", "pred_undefended"), item_index)
    found = masks.from_facts(shards[0].identity["masks"])
    found.require(*patch_of(collect))
    labels = np.array([np.frombuffer(row["labels"], "<i2") for row in ordered], np.int16)
    return Tables(
        found,
        masking.unpack(labels, len(found)),
        np.array([np.frombuffer(row["margins"], "<f4") for row in ordered], np.float32),
        np.array([row["pred_undefended"] for row in ordered], np.int32),
    )


def decide(
    stats: Tables, collect: CollectParams, decide: DecideParams, labels: np.ndarray
) -> dict[str, Any]:
    """The rule's answer and its certificate for every item.

    ``radius`` is the side of the largest square that the configured patch holds, where the answer
    is certified: by the pairs that all give it (``certificate: pairs``), or by every position.
    ``certified_rows`` and ``lcf``, the share of certified patch positions, are about the label: a
    certified row gives the label for every content of a patch under its mask.
    """
    height, width = patch_of(collect)
    size, count = len(labels), len(stats.masks)
    first = np.diagonal(stats.labels, axis1=1, axis2=2).astype(np.int64)
    made = masking.infer(decide.engine, first, masking.table_oracle(stats.labels))
    holding = stats.masks.holding(height, width)
    positions = holding[0].size
    stable = masking.certified_rows(stats.labels, made.labels)
    held = (
        stable.all(1)
        if decide.certificate == "pairs"
        else masking.certified_positions(stable, holding) == positions
    )
    right = masking.certified_rows(stats.labels, labels)
    correct = made.labels == labels
    least = stats.margins.min(1)
    pairs = count * (count + 1) // 2
    return {
        "predict": made.labels,
        "radius": np.where(held, float(min(height, width)), 0.0),
        "engine": [decide.engine] * size,
        "patch_h": np.full(size, height),
        "patch_w": np.full(size, width),
        "patch_space": ["network_input"] * size,
        "mask_budget": [collect.masks if collect.mask_stride is None else None] * size,
        "starts_h": [_listed(stats.masks.rows.starts)] * size,
        "starts_w": [_listed(stats.masks.columns.starts)] * size,
        "mask_h": np.full(size, stats.masks.rows.size),
        "mask_w": np.full(size, stats.masks.columns.size),
        "n_masks": np.full(size, count),
        "pred_undefended": stats.undefended,
        "inference_case": [CASES[case] for case in made.case],
        "certified": held & correct,
        "consistent_wrong": stable.all(1) & ~correct,
        "certified_rows": right.sum(1),
        "lcf": masking.certified_positions(right, holding) / positions,
        "min_margin": least.astype(np.float64),
        "near_tie": held & (least < NEAR_TIE),
        "n_forward_infer": made.evaluations,
        "n_forward_cert": np.full(size, pairs),
        "n_forward": np.full(size, pairs + 1),
    }


def _listed(starts: tuple[int, ...]) -> str:
    return " ".join(map(str, starts))


def attack_params(collect: CollectParams, decide: DecideParams) -> dict[str, Any]:
    """What an attack on the defence depends on."""
    return {
        "patch_size": collect.patch_size,
        "patch_width": collect.patch_width,
        "masks": collect.masks,
        "mask_stride": collect.mask_stride,
        "fill": collect.fill,
        "engine": decide.engine,
        "attack_masks": decide.attack_masks,
        "attack_pairs": decide.attack_pairs,
    }


def attack_surface(work: SurfaceWork) -> Surface:
    """The surrogates of double masking (:mod:`certbench.attacks.masked`), judged by the rule."""
    from certbench.attacks import masked
    from certbench.certify.protocol import Surface

    defence = views_of(work)
    singles, pairs = int(work.params["attack_masks"]), int(work.params["attack_pairs"])
    expectation = masked.Expectation(defence, singles, pairs, seed64=work.seed64)
    votes = masked.VoteScores(defence)
    return Surface(
        logits=expectation,
        judge=Judge(defence),
        scores=votes,
        judged_by=f"{work.params['engine']} masking, {work.params['masks']} masks a side for "
        f"{work.params['patch_size']} pixels",
        attacked="expectation",
        objectives={
            "base": work.network,
            "expectation": expectation,
            "unanimity": masked.Unanimity(defence, seed64=work.seed64),
            "coherent": masked.Coherent(defence, singles, seed64=work.seed64),
            "votes": votes,
        },
    )


def views_of(work: SurfaceWork) -> MaskedViews:
    """The defended network as attacks see it."""
    from certbench.certify.masked_prediction import MaskedViews

    return MaskedViews(work, lambda shape: mask_set(work.params, shape).blanked)


class Judge:
    """The defended prediction: int64 [n]. ``spent`` tells the evaluations of the last call.

    Args:
        defence: The network under masks.
    """

    #: Passes have one shape whatever the number of images: nothing needs to be padded before.
    own_batches = True

    def __init__(self, defence: MaskedViews):
        self.defence = defence
        self.engine = str(defence.work.params["engine"])
        self.spent: np.ndarray = np.zeros(0, np.int64)

    def __call__(self, x: Any) -> Any:
        """Labels of the points ``x``, float32 [n, C, H, W]."""
        import torch

        from certbench.certify.masked_prediction import LazyPairs

        oracle = LazyPairs(self.defence.predictor(x.shape[1:]), x.detach().clamp(0, 1))
        made = masking.infer(self.engine, oracle.first_round(), oracle)
        self.spent = made.evaluations
        return torch.from_numpy(made.labels).to(x.device)
