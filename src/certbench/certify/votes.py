"""Class votes as mergeable statistics: rows, shards, and the checks before they are added up.

Counts are additive. Adding them is legal only for shards of one identity (same weights, noise,
sigma, numerics) whose sample ranges neither overlap nor leave a gap; radii are never merged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import noise as noises
from certbench.certify import sampling, smoothing
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

    from certbench.certify.protocol import CollectWork, Shard, SurfaceWork
    from certbench.certify.sampling import Perturb

STATS_COLUMNS = {
    "stream": "int8",
    "sample_start": "int64",
    "sample_stop": "int64",
    "class": "int32",
    "count": "int64",
}


@dataclass(frozen=True)
class Votes:
    """Merged votes of all items.

    Attributes:
        item_index: uint32 [M].
        selected: int64 [M, K + 1] of the selection stream (zeros without one).
        estimated: int64 [M, K + 1] of the estimation stream.
        identity: What all shards agreed on.
    """

    item_index: np.ndarray
    selected: np.ndarray
    estimated: np.ndarray
    identity: Mapping[str, Any]


def collect(
    work: CollectWork,
    noise: sampling.Noise,
    sigma: float,
    n0: int,
    *,
    compiled: bool = False,
    precision: str = "float32",
    perturb: Perturb | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of one shard, sparse: one row per item, stream and class that got any.

    Args:
        work: The shard.
        noise: Seed, backend and kind of the noise.
        sigma: Noise level.
        n0: Selection samples; drawn by the shard whose range starts at 0.
        compiled: Whether the model is compiled.
        precision: See :func:`certbench.certify.sampling.for_inference`.
        perturb: Makes the network's inputs instead of ``noise``.

    Returns:
        Columns (``slot`` is the item's position in the shard), and the identity.
    """
    start, stop = work.samples
    if stop is None:
        raise CertbenchError("votes need a range of samples", where="collect")
    network, layout = open_network(work, compiled, precision)
    streams = [(noises.SELECTION, 0, n0)] if start == 0 and n0 else []
    streams.append((noises.ESTIMATION, start, stop))
    parts: list[dict[str, np.ndarray]] = []
    for stream, first, last in streams:
        table = count(
            work, network, noise, sigma, stream, first, last, f"stream{stream}", perturb=perturb
        )
        parts.append(sparse(table, stream, first, last))
    return stacked(parts), identity(work, noise, sigma, layout, precision)


def open_network(
    work: CollectWork, compiled: bool = False, precision: str = "float32"
) -> tuple[Any, str]:
    """The function whose votes are counted, and the name of what was done to the model.

    Raises:
        CertbenchError: The model is in train mode.
    """
    sampling.require_eval(work.network)
    return sampling.for_inference(work.network, compiled, precision)


def count(
    work: CollectWork,
    network: Any,
    noise: sampling.Noise,
    sigma: float,
    stream: int,
    start: int,
    stop: int,
    label: str,
    chosen: np.ndarray | None = None,
    perturb: Perturb | None = None,
    tick: Any = None,
) -> np.ndarray:
    """Votes int64 [M, K + 1] of the shard's items, or of the chosen ones (positions)."""
    return sampling.count_votes(
        network,
        work.images if chosen is None else work.images[chosen],
        (work.item_index if chosen is None else work.item_index[chosen]).astype(np.int64),
        stream,
        start,
        stop,
        sigma=sigma,
        num_classes=work.num_classes,
        noise=noise,
        batch_size=work.batch_size,
        numerics=work.numerics,
        device=work.device,
        progress=work.progress,
        label=label,
        tick=work.tick if tick is None else tick,
        perturb=perturb,
    )


def sparse(
    table: np.ndarray, stream: int, start: int, stop: int, chosen: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Rows of the votes that are not zero; ``chosen`` are the items' positions in the shard."""
    slots, classes = np.nonzero(table)
    return {
        "slot": slots if chosen is None else chosen[slots],
        "stream": np.full(len(slots), stream, np.int8),
        "sample_start": np.full(len(slots), start, np.int64),
        "sample_stop": np.full(len(slots), stop, np.int64),
        "class": classes.astype(np.int32),
        "count": table[slots, classes],
    }


def stacked(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of several parts as one."""
    return {
        name: np.concatenate([part[name] for part in parts]) for name in ("slot", *STATS_COLUMNS)
    }


def arithmetic(device: Any, numerics: str, precision: str = "float32") -> str:
    """Arithmetic of the forward passes: TF32 has 10 bits of mantissa where float32 has 23."""
    if precision != "float32":
        return precision
    cuda = str(getattr(device, "type", device)).startswith("cuda")
    return "float32 (TF32 allowed)" if cuda and numerics != "exact" else "float32"


def identity(
    work: CollectWork,
    noise: sampling.Noise,
    sigma: float,
    layout: str,
    precision: str = "float32",
) -> dict[str, Any]:
    """What shards must agree on before their counts may be added."""
    return {
        "model_sha256": work.model_sha256,
        "variant": work.variant,
        "sigma": sigma,
        "kind": noise.kind,
        "scheme": noise.scheme,
        "backend": noise.resolved_backend(work.device),
        "seed64": str(work.seed64),
        "numerics": work.numerics,
        "dtype": arithmetic(work.device, work.numerics, precision),
        "layout": layout,
        "device": str(getattr(work.device, "type", work.device)),
        "num_classes": work.num_classes,
        "shape": list(work.images.shape[1:]),
    }


@dataclass(frozen=True)
class Tally:
    """Checked rows of all shards of a variant, not yet added up.

    Attributes:
        width: K + 1.
        spot: int64 [R], position of each row's item among the planned items.
        rows: The columns of :data:`STATS_COLUMNS`, each of length R.
        covered: For (spot, stream), the ranges of samples that are there, each with its file.
        identity: What all shards agreed on.
    """

    width: int
    spot: np.ndarray
    rows: Mapping[str, np.ndarray]
    covered: Mapping[tuple[int, int], list[tuple[int, int, str]]]
    identity: Mapping[str, Any]

    def table(self, chosen: np.ndarray, count: int) -> np.ndarray:
        """Votes int64 [count, K + 1] of the chosen rows (a mask)."""
        table = np.zeros((count, self.width), np.int64)
        spots, classes = self.spot[chosen], self.rows["class"][chosen]
        np.add.at(table, (spots, classes), self.rows["count"][chosen])
        return table


def tally(
    shards: Sequence[Shard], item_index: np.ndarray, expected: Mapping[str, Any] | None = None
) -> Tally:
    """Read the rows of shards, after checking that they belong together and are whole.

    Args:
        shards: Shards in any order.
        item_index: uint32 [M], the planned items.
        expected: What the configuration says of their identity.

    Raises:
        CertbenchError: Shards of unlike identity, counts that do not sum to their range, classes
            or items that there are not. The message names the file.
    """
    if not shards:
        raise CertbenchError("no shards to merge", where="merge")
    first = shards[0]
    for shard in shards:
        _check_alike(shard, {**first.identity, **(expected or {})}, first)
    if "num_classes" not in first.identity:
        raise CertbenchError(
            "does not say how many classes there are",
            where=str(first.path),
            remedy="delete it and collect it anew",
        )
    width = int(first.identity["num_classes"]) + 1
    place = {int(item): row for row, item in enumerate(item_index)}
    covered: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    parts: list[dict[str, np.ndarray]] = []
    for shard in shards:
        missing = [n for n in ("item_index", *STATS_COLUMNS) if n not in shard.rows.column_names]
        if missing:
            raise CertbenchError(
                f"lacks the column '{missing[0]}'",
                where=str(shard.path),
                remedy="delete it and collect it anew",
            )
        rows = {name: shard.rows.column(name).to_numpy() for name in STATS_COLUMNS}
        items = shard.rows.column("item_index").to_numpy()
        unknown = [int(item) for item in np.unique(items) if int(item) not in place]
        if unknown:
            raise CertbenchError(f"item {unknown[0]} was not planned", where=str(shard.path))
        if np.any(rows["count"] < 0):
            raise CertbenchError("holds negative counts", where=str(shard.path))
        if np.any((rows["class"] < 0) | (rows["class"] >= width)):
            raise CertbenchError(f"holds classes beyond {width - 1}", where=str(shard.path))
        spot = np.array([place[int(item)] for item in items], np.int64)
        parts.append({**rows, "slot": spot})
        _check_sums(shard, spot, rows, item_index, covered)
    made = stacked(parts)
    return Tally(width, made.pop("slot"), made, covered, dict(first.identity))


def _check_alike(shard: Shard, wanted: Mapping[str, Any], first: Shard) -> None:
    for key in sorted({*wanted, *shard.identity}):
        ours, theirs = wanted.get(key), shard.identity.get(key)
        if ours != theirs:
            source = first.path if first.identity.get(key) == ours else "the configuration"
            raise CertbenchError(
                f"{key} is {theirs!r}, but {ours!r} in {source}",
                where=str(shard.path),
                remedy="unlike shards are never merged: delete the shard that is out of date",
            )


def _check_sums(
    shard: Shard,
    spot: np.ndarray,
    rows: Mapping[str, np.ndarray],
    item_index: np.ndarray,
    covered: dict[tuple[int, int], list[tuple[int, int, str]]],
) -> None:
    """Counts of every item, stream and range must sum to the range; note what is covered."""
    keys = np.stack([spot, rows["stream"], rows["sample_start"], rows["sample_stop"]], 1)
    cells, which = np.unique(keys.astype(np.int64), axis=0, return_inverse=True)
    sums = np.zeros(len(cells), np.int64)
    np.add.at(sums, which.reshape(-1), rows["count"])
    for (place, stream, start, stop), total in zip(cells.tolist(), sums.tolist(), strict=True):
        if total != stop - start:
            raise CertbenchError(
                f"counts of item {int(item_index[place])} sum to {total}, "
                f"not to the {stop - start} samples of the shard",
                where=str(shard.path),
                remedy="delete it and run again",
            )
        covered.setdefault((place, stream), []).append((start, stop, str(shard.path)))


def merge(
    shards: Sequence[Shard],
    item_index: np.ndarray,
    n: int,
    n0: int,
    expected: Mapping[str, Any] | None = None,
) -> Votes:
    """Add up the counts of shards, after checking that they belong together.

    Args:
        shards: Shards in any order.
        item_index: uint32 [M], the planned items.
        n: Planned estimation samples per item.
        n0: Planned selection samples per item.
        expected: What the configuration says of the shards' identity.

    Raises:
        CertbenchError: Shards of unlike identity; a range twice, missing or overlapping; counts
            that do not sum to their range; items that were not planned, or are missing. The
            message names the file.
    """
    found = tally(shards, item_index, expected)
    folder = str(shards[0].path.parent)
    for stream, wanted in ((noises.SELECTION, n0), (noises.ESTIMATION, n)):
        for spot in range(len(item_index)):
            item = int(item_index[spot])
            reached = check_cover(found.covered.get((spot, stream), []), item, stream)
            if reached != wanted:
                raise CertbenchError(
                    f"samples [{reached}, {wanted}) of item {item} (stream {stream}) are missing"
                    if reached < wanted
                    else f"samples of item {item} (stream {stream}) reach to {reached}, "
                    f"planned are {wanted}",
                    where=folder,
                    remedy="run the workflow again, so that every planned shard exists",
                )
    streams = found.rows["stream"]
    return Votes(
        np.asarray(item_index),
        found.table(streams == noises.SELECTION, len(item_index)),
        found.table(streams == noises.ESTIMATION, len(item_index)),
        found.identity,
    )


def check_cover(ranges: Sequence[tuple[int, int, str]], item: int, stream: int) -> int:
    """Where the gapless run of samples from 0 ends.

    Raises:
        CertbenchError: Samples are there twice; names both files.
    """
    reached, before = 0, ""
    known: set[tuple[int, int]] = set()
    for start, stop, path in sorted(ranges):
        if start < reached:
            how = "there twice" if (start, stop) in known else "overlapping"
            raise CertbenchError(
                f"samples [{start}, {stop}) of item {item} (stream {stream}) are {how}, "
                f"also in {before}",
                where=path,
                remedy="counting votes twice fakes the sample size: remove one of the shards",
            )
        if start > reached:
            break
        known.add((start, stop))
        reached, before = stop, path
    return reached


class Judge:
    """PREDICT as the judge of an attack: int64 [n] labels, -1 abstains.

    Sampling stops where the remaining votes can no longer change the answer, so an answer is
    that of all ``n`` samples. ``spent`` tells how many each image of the last call took.

    Args:
        work: The surface's context.
        sigma: Noise level.
        noise: Seed, backend and kind.
        n: Samples per prediction.
        alpha: Level of PREDICT.
        stream: Noise stream; :data:`certbench.certify.noise.AUDIT` for a second opinion.
        network: The function that votes (default: the surface's model, made fast).
    """

    needs_items = True
    #: Batches are of pairs of image and sample: the caller need not pad images.
    own_batches = True

    def __init__(
        self,
        work: SurfaceWork,
        sigma: float,
        noise: sampling.Noise,
        n: int,
        alpha: float,
        stream: int = noises.PREDICTION,
        network: Any = None,
    ):
        self.work, self.sigma, self.noise, self.n, self.alpha = work, sigma, noise, n, alpha
        self.stream = stream
        self.passes = n
        self.spent: np.ndarray = np.zeros(0, np.int64)
        self.network = sampling.for_inference(work.network)[0] if network is None else network

    def __call__(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """Labels of the points ``x`` of the items."""
        import torch

        points, items = x.detach().clamp(0, 1), np.asarray(items, np.int64)
        counts = np.zeros((len(points), self.work.num_classes + 1), np.int64)
        self.spent = np.zeros(len(points), np.int64)
        open_ = np.arange(len(points))
        looks = sorted({math.ceil(share * self.n) for share in (0.6, 0.7, 0.8, 0.9, 1.0)})
        for start, stop in itertools.pairwise([0, *looks]):
            counts[open_] += self._votes(points[open_], items[open_], start, stop)
            self.spent[open_] = stop
            open_ = open_[~smoothing.predict_decided(counts[open_], self.n - stop, self.alpha)]
            if not len(open_):
                break
        labels, _ = smoothing.predict_counts(counts, self.alpha)
        return torch.from_numpy(labels.astype(np.int64)).to(x.device)

    def _votes(self, x: torch.Tensor, items: np.ndarray, start: int, stop: int) -> np.ndarray:
        return sampling.count_votes(
            self.network,
            x,
            items,
            self.stream,
            start,
            stop,
            sigma=self.sigma,
            num_classes=self.work.num_classes,
            noise=self.noise,
            batch_size=self.work.batch_size,
            numerics=self.work.numerics,
            device=self.work.device,
        )
