"""Class votes as mergeable statistics: rows, shards, and the checks before they are added up.

Counts are additive. Adding them is legal only for shards of one identity (same weights, noise,
sigma, numerics) whose sample ranges neither overlap nor leave a gap; radii are never merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import noise as noises
from certbench.certify import smoothing
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

    from certbench.certify.protocol import CollectWork, Shard, SurfaceWork

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
    work: CollectWork, noise: smoothing.Noise, sigma: float, n0: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Votes of one shard, sparse: one row per item, stream and class that got any.

    Args:
        work: The shard.
        noise: Seed, backend and kind of the noise.
        sigma: Noise level.
        n0: Selection samples; drawn by the shard whose range starts at 0.

    Returns:
        Columns (``slot`` is the item's position in the shard), and the identity.
    """
    start, stop = work.samples
    if stop is None:
        raise CertbenchError("votes need a range of samples", where="collect")
    smoothing.require_eval(work.network)
    network, layout = smoothing.for_inference(work.network)
    streams = [(noises.SELECTION, 0, n0)] if start == 0 and n0 else []
    streams.append((noises.ESTIMATION, start, stop))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("slot", *STATS_COLUMNS)}
    for stream, first, last in streams:
        table = smoothing.count_votes(
            network,
            work.images,
            work.item_index.astype(np.int64),
            stream,
            first,
            last,
            sigma=sigma,
            num_classes=work.num_classes,
            noise=noise,
            batch_size=work.batch_size,
            numerics=work.numerics,
            device=work.device,
            progress=work.progress,
            label=f"stream{stream}",
            tick=work.tick,
        )
        slots, classes = np.nonzero(table)
        parts["slot"].append(slots)
        parts["stream"].append(np.full(len(slots), stream, np.int8))
        parts["sample_start"].append(np.full(len(slots), first))
        parts["sample_stop"].append(np.full(len(slots), last))
        parts["class"].append(classes.astype(np.int32))
        parts["count"].append(table[slots, classes])
    identity = {
        "model_sha256": work.model_sha256,
        "variant": work.variant,
        "sigma": sigma,
        "kind": noise.kind,
        "scheme": noises.SCHEME,
        "backend": noises.resolve_backend(work.device, noise.backend),
        "seed64": str(work.seed64),
        "numerics": work.numerics,
        "dtype": "float32",
        "layout": layout,
        "device": str(getattr(work.device, "type", work.device)),
        "num_classes": work.num_classes,
        "shape": list(work.images.shape[1:]),
    }
    return {name: np.concatenate(found) for name, found in parts.items()}, identity


def merge(shards: Sequence[Shard], item_index: np.ndarray, n: int, n0: int) -> Votes:
    """Add up the counts of shards, after checking that they belong together.

    Args:
        shards: Shards in any order.
        item_index: uint32 [M], the planned items.
        n: Planned estimation samples per item.
        n0: Planned selection samples per item.

    Raises:
        CertbenchError: Shards of unlike identity; a range twice, missing or overlapping; counts
            that do not sum to their range; items that were not planned, or are missing. The
            message names the file.
    """
    if not shards:
        raise CertbenchError("no shards to merge", where="merge")
    first = shards[0]
    for shard in shards[1:]:
        for key in sorted({*first.identity, *shard.identity}):
            ours, theirs = first.identity.get(key), shard.identity.get(key)
            if ours != theirs:
                raise CertbenchError(
                    f"{key} is {theirs!r}, but {ours!r} in {first.path}",
                    where=str(shard.path),
                    remedy="unlike shards are never merged: delete the shard that is out of date",
                )
    width = int(first.identity["num_classes"]) + 1
    place = {int(item): row for row, item in enumerate(item_index)}
    planned = {noises.SELECTION: n0, noises.ESTIMATION: n}
    totals = {stream: np.zeros((len(place), width), np.int64) for stream in planned}
    covered: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    for shard in shards:
        rows = {name: shard.rows.column(name).to_numpy() for name in STATS_COLUMNS}
        items = shard.rows.column("item_index").to_numpy()
        unknown = [int(item) for item in np.unique(items) if int(item) not in place]
        if unknown:
            raise CertbenchError(f"item {unknown[0]} was not planned", where=str(shard.path))
        if len(rows["count"]) and (rows["count"] < 0).any():
            raise CertbenchError("holds negative counts", where=str(shard.path))
        sums: dict[tuple[int, int, int, int], int] = {}
        spots = np.array([place[int(item)] for item in items], np.int64)
        keys = zip(
            spots.tolist(),
            rows["stream"].tolist(),
            rows["sample_start"].tolist(),
            rows["sample_stop"].tolist(),
            rows["count"].tolist(),
            strict=True,
        )
        for spot, stream, start, stop, count in keys:
            cell = (spot, stream, start, stop)
            sums[cell] = sums.get(cell, 0) + count
        for (spot, stream, start, stop), total in sums.items():
            if total != stop - start:
                raise CertbenchError(
                    f"counts of item {int(item_index[spot])} sum to {total}, "
                    f"not to the {stop - start} samples of the shard",
                    where=str(shard.path),
                    remedy="delete it and run again",
                )
            covered.setdefault((spot, stream), []).append((start, stop, str(shard.path)))
        for stream, table in totals.items():
            chosen = rows["stream"] == stream
            np.add.at(table, (spots[chosen], rows["class"][chosen]), rows["count"][chosen])
    for stream, wanted in planned.items():
        for spot in range(len(place)):
            _check_cover(covered.get((spot, stream), []), wanted, int(item_index[spot]), stream)
    return Votes(
        np.asarray(item_index),
        totals[noises.SELECTION],
        totals[noises.ESTIMATION],
        dict(first.identity),
    )


def _check_cover(ranges: list[tuple[int, int, str]], wanted: int, item: int, stream: int) -> None:
    """Ranges must tile [0, wanted) exactly."""
    reached, before = 0, ""
    for start, stop, path in sorted(ranges):
        if start < reached:
            word = (
                "twice"
                if (start, stop) in {(a, b) for a, b, p in ranges if p != path}
                else ("overlapping")
            )
            raise CertbenchError(
                f"samples [{start}, {stop}) of item {item} (stream {stream}) are there {word}, "
                f"also in {before}",
                where=path,
                remedy="counting votes twice fakes the sample size: remove one of the shards",
            )
        if start > reached:
            break
        reached, before = stop, path
    if reached != wanted:
        raise CertbenchError(
            f"samples [{reached}, {wanted}) of item {item} (stream {stream}) are missing"
            if reached < wanted
            else f"samples of item {item} (stream {stream}) reach to {reached}, planned {wanted}",
            where="merge",
            remedy="run the workflow again, so that every planned shard exists",
        )


class Judge:
    """PREDICT as the judge of an attack: int64 [n] labels, -1 abstains.

    Args:
        work: The surface's context.
        sigma: Noise level.
        noise: Seed, backend and kind.
        n: Samples per prediction.
        alpha: Level of PREDICT.
        stream: Noise stream; :data:`certbench.certify.noise.AUDIT` for a second opinion.
    """

    needs_items = True

    def __init__(
        self,
        work: SurfaceWork,
        sigma: float,
        noise: smoothing.Noise,
        n: int,
        alpha: float,
        stream: int = noises.PREDICTION,
    ):
        self.work, self.sigma, self.noise, self.n, self.alpha = work, sigma, noise, n, alpha
        self.stream = stream
        self.passes = n
        self.network, _ = smoothing.for_inference(work.network)

    def __call__(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """Labels of the points ``x`` of the items."""
        import torch

        counts = smoothing.count_votes(
            self.network,
            x.detach().clamp(0, 1),
            np.asarray(items, np.int64),
            self.stream,
            0,
            self.n,
            sigma=self.sigma,
            num_classes=self.work.num_classes,
            noise=self.noise,
            batch_size=self.work.batch_size,
            numerics=self.work.numerics,
            device=self.work.device,
        )
        labels, _ = smoothing.predict_counts(counts, self.alpha)
        return torch.from_numpy(labels.astype(np.int64)).to(x.device)
