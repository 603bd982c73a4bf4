"""The job ``prepare``: check a dataset before anything is computed, and write its index."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from certbench.datasets import images, index, masks
from certbench.datasets.card import Card
from certbench.errors import CertbenchError, did_you_mean
from certbench.params import build
from certbench.results import atomic

if TYPE_CHECKING:
    from certbench.job import Job

logger = logging.getLogger(__name__)


class Tick(Protocol):
    """What a plug-in calls while it prepares."""

    def __call__(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` items are prepared."""


def run(job: Job) -> None:
    """Prepare one dataset: outputs ``index`` (Parquet) and ``card`` (JSON).

    The job's work is ``dataset`` (id), ``plugin``, ``version``, ``params``, ``splits`` (names),
    ``sizes`` (items needed of each split; null for all), ``seed``, ``plugins``. The index holds the
    items that are needed, which are a prefix of the order of the whole split.

    A plug-in whose parameters have ``on_bad`` reads files that may be broken: every image that will
    be used is decoded once, with its label map where there is one, and a broken one is refused or
    left out, as ``on_bad`` says.

    Raises:
        CertbenchError: Anything wrong with the data, or an experiment needs more items than there
            are.
    """
    work = job.work
    where = f"config: datasets.{work['dataset']}"
    plugin = job.plugin("dataset", work["plugin"])
    with _naming_keys(plugin.Params, where):
        params = build(plugin.Params, work["params"], where)
    names: list[str] = list(work["splits"])
    known = plugin.splits(params)
    for name in names:
        if name not in known:
            raise CertbenchError(
                f"no split '{name}'", where=where, remedy=did_you_mean(name, known)
            )
    label = f"prepare {work['dataset']}"
    with _naming_keys(plugin.Params, where), _ticking(job, label) as tick:
        items, card = plugin.prepare(params, names, int(work["seed"]), tick)
    index.check(items, len(card.class_names), where)
    items = index.order(items, int(work["seed"]))
    _check_sizes(items, names, {}, where)
    needed: dict[str, int | None] = {name: work["sizes"].get(name) for name in names}
    if hasattr(params, "on_bad"):
        with _ticking(job, f"verify {work['dataset']}") as tick:
            reader = _reader(plugin, params, card)
            items = _verified(reader, params, items, needed, tick, job.threads, where)
    sizes = _check_sizes(items, names, needed, where)
    items = _prefixes(items, needed)
    card = Card.from_dict({**card.to_dict(), "sizes": sizes})
    provenance = job.provenance(plugin_version=plugin.version)
    index.write(job.output("index"), items, card, provenance)
    atomic.write_text(job.output("card"), card.to_json())
    logger.info("%s: %s", work["dataset"], json.dumps(sizes))


@contextlib.contextmanager
def _ticking(job: Job, label: str) -> Iterator[Tick]:
    """A tick function whose progress bar opens at the first call: only that knows the total."""
    with contextlib.ExitStack() as stack:
        bar: Any = None

        def tick(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(job.bar(total, label, "images"))
            bar.update(done - bar.done)

        yield tick


@contextlib.contextmanager
def _naming_keys(params: type, where: str) -> Iterator[None]:
    """Complete messages of a plug-in that name a key of its parameters with the key's place."""
    try:
        yield
    except CertbenchError as error:
        key = (error.where or "").split(".")[0]
        if key not in {field.name for field in dataclasses.fields(params)}:
            raise
        raise CertbenchError(
            error.problem, where=f"{where}.{error.where}", remedy=error.remedy
        ) from error


def _check_sizes(
    items: pa.Table, names: list[str], needed: dict[str, int | None], where: str
) -> dict[str, int]:
    found = items.column("split").to_pylist()
    sizes = {name: found.count(name) for name in names}
    for name, size in sizes.items():
        if size == 0:
            raise CertbenchError(
                f"split '{name}' is empty", where=where, remedy="check its folder or its size"
            )
        if size < (needed.get(name) or 0):
            raise CertbenchError(
                f"split '{name}' has {size} items, an experiment asks for {needed[name]}",
                where=where,
                remedy=f"lower the limit to {size} or less, or leave it out",
            )
    return sizes


def _prefixes(items: pa.Table, needed: dict[str, int | None]) -> pa.Table:
    """The first items of each split, as many as are needed."""
    splits = items.column("split").to_pylist()
    ranks = items.column("rank").to_pylist()
    keep = []
    for split, rank in zip(splits, ranks, strict=True):
        limit = needed.get(split)
        keep.append(split in needed and (limit is None or rank < limit))
    return items.filter(pa.array(keep, pa.bool_()))


def _reader(plugin: Any, params: Any, card: Card) -> Any:
    """What reads an item whole: its image and, where the dataset has one, its label map."""
    if not card.mask_class_names or not masks.served(plugin, params):
        return plugin.read

    def read(params: Any, rows: pa.Table) -> list:
        pictures = plugin.read(params, rows)
        masks.read(plugin, params, rows, len(card.mask_class_names), pictures)
        return pictures

    return read


def _verified(
    read: Any,
    params: Any,
    items: pa.Table,
    needed: dict[str, int | None],
    tick: Tick,
    threads: int,
    where: str,
) -> pa.Table:
    """The items without those whose images are broken (``on_bad: skip``), or a refusal."""
    tried: set[str] = set()
    reasons: dict[str, str] = {}
    while True:
        wanted = _prefixes(items, needed)
        fresh = [item_id not in tried for item_id in wanted.column("item_id").to_pylist()]
        rows = wanted.filter(pa.array(fresh, pa.bool_()))
        if len(rows) == 0:
            break
        # Neighbours in a file are read together.
        rows = rows.sort_by([("path", "ascending"), ("row", "ascending")])
        before = len(tried)

        def counted(done: int, total: int, before: int = before) -> None:
            tick(before + done, before + total)

        bad = images.broken(read, params, rows, counted, threads=threads)
        tried.update(rows.column("item_id").to_pylist())
        reasons.update(bad)
        if not bad:
            continue
        listed = "\n  ".join(list(bad.values())[: images.SHOWN])
        more = f"\n  and {len(bad) - images.SHOWN} more" if len(bad) > images.SHOWN else ""
        if params.on_bad == "refuse":
            raise CertbenchError(
                f"{len(bad)} of {len(rows)} images cannot be used:\n  {listed}{more}",
                where=where,
                remedy="mend or remove the files, or set on_bad: skip",
            )
        logger.warning("%s: left out %d images:\n  %s%s", where, len(bad), listed, more)
        items = index.without(items, bad)
    return items
