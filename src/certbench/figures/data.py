"""What a figure may draw: result files as DataFrames, read when asked for.

A figure plug-in names its needs; anything else it asks for is refused, because the workflow would
not know to make it. Files that are not there yet (a partial run) are left out; a frame without
files has its columns and no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.figures.style import Looks

if TYPE_CHECKING:
    import pandas as pd

    from certbench.datasets.access import Batch, Items
    from certbench.datasets.card import Card

# Rows of two experiments about the same item of the same defended model are the same rows.
_ITEM = [
    "dataset",
    "split",
    "view",
    "variant_id",
    "model",
    "defense",
    "attack",
    "threat_id",
    "seed",
    "item_id",
    "item_index",
    "class_id",
]


class FigureData:
    """The inputs of one figure.

    Args:
        inputs: Files by need.
        work: The figure's work: ``experiments``, ``order``, and ``selections`` for images.
        load: ``(kind, name) -> plug-in module``, for the pixels of variants.

    Attributes:
        experiments: Names of the experiments drawn.
        selections: Datasets with their variants, where the figure needs ``index``.
        looks: Colour and marker of every model and defence.
    """

    def __init__(
        self,
        inputs: Mapping[str, Sequence[Path]],
        work: Mapping[str, Any],
        load: Callable[[str, str], Any],
    ):
        self._inputs = {need: [Path(path) for path in files] for need, files in inputs.items()}
        self._load = load
        self._items: dict[tuple[str, str], Items] = {}
        order = work.get("order", {})
        self.experiments = tuple(work.get("experiments", ()))
        self.selections = tuple(work.get("selections", ()))
        self.embed_images = str(work.get("embed_images", "redistributable"))
        self.looks = Looks(order.get("models", ()), order.get("defenses", ()))

    def files(self, need: str) -> list[Path]:
        """The files of a need that are there.

        Raises:
            CertbenchError: The plug-in did not name this need.
        """
        if need not in self._inputs:
            raise CertbenchError(
                f"asks for '{need}', which it does not need",
                where="figure plug-in",
                remedy=f"add it to needs; {did_you_mean(need, self._inputs)}",
            )
        return [path for path in self._inputs[need] if path.is_file()]

    @cached_property
    def tables(self) -> pd.DataFrame:
        """Numbers of all experiments, each once (see :func:`distinct`)."""
        return distinct(read_tables(self.files("tables")))

    @cached_property
    def costs(self) -> pd.DataFrame:
        """Cost rows with the column ``experiment``."""
        return read_costs(self.files("costs"))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Rows of kind ``predictions``."""
        return self._rows("predictions")

    @cached_property
    def segmentation(self) -> pd.DataFrame:
        """Rows of kind ``segmentation``."""
        return self._rows("segmentation")

    @cached_property
    def certificates(self) -> pd.DataFrame:
        """Rows of kind ``certificates``."""
        return self._rows("certificates")

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """Rows of kind ``attacks``."""
        return self._rows("attacks")

    @cached_property
    def audits(self) -> pd.DataFrame:
        """Rows of kind ``audit``."""
        return self._rows("audits", "audit")

    @cached_property
    def training(self) -> pd.DataFrame:
        """Rows of kind ``training``."""
        return self._rows("training")

    def _rows(self, need: str, kind: str | None = None) -> pd.DataFrame:
        from certbench.results import rows

        frame = plain(rows.read(self.files(need), kind or need).to_pandas())
        keys = [name for name in _ITEM if name in frame]
        if "item_id" not in keys:
            return frame
        return frame.drop_duplicates(keys, ignore_index=True)

    def plugin(self, kind: str, name: str) -> Any:
        """A plug-in module."""
        return self._load(kind, name)

    def items(self, selection: Mapping[str, Any]) -> Items:
        """The items of a selection, opened once.

        Args:
            selection: An entry of :attr:`selections`.

        Raises:
            CertbenchError: The index is missing.
        """
        from certbench.datasets.access import Items
        from certbench.params import build

        block = selection["dataset"]
        (index,) = selection["index"]
        key = (str(index), block["view"])
        if key not in self._items:
            module = self._load("dataset", block["plugin"])
            params = build(module.Params, block["params"], f"datasets.{block['id']}")
            self._items[key] = Items(index, block["split"], block["view"], module, params)
        return self._items[key]

    def images(
        self,
        selection: Mapping[str, Any],
        variant: Mapping[str, Any],
        count: int,
        seed: int,
        masks: bool = False,
        start: int = 0,
    ) -> tuple[Batch, Card]:
        """Items of a selection as a model saw them.

        Args:
            selection: An entry of :attr:`selections`.
            variant: One of its variants; ``{"steps": []}`` is the dataset itself.
            count: Number of items; fewer where the split has fewer.
            seed: Run seed of the predictions.
            masks: Whether to load the label maps too.
            start: Rank of the first item.

        Returns:
            The batch with the variant's images (uint8, or float32 in [0, 1]), and the dataset's
            card.

        Raises:
            CertbenchError: The index is missing or an image cannot be read.
        """
        import dataclasses

        from certbench.variants import applying

        items = self.items(selection)
        batch = items.load(start, min(start + count, len(items)), masks=masks)
        named = (batch.item_ids, seed, selection["dataset"]["id"], self._load)
        context = applying.context_of(batch, items, start)
        pixels = applying.apply_steps(variant["steps"], batch.images, *named, **context)
        pixels = applying.as_coded(variant, pixels)
        maps = batch.masks
        if maps is not None:
            maps = applying.apply_label_maps(variant["steps"], maps, *named, **context)
        return dataclasses.replace(batch, images=pixels, masks=maps), items.card


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Dictionary columns as text, nulls as None."""
    for name in frame.columns:
        if frame[name].dtype.name == "category":
            column = frame[name].astype(object)
            frame[name] = column.where(column.notna(), None)
    return frame


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """The tables of experiments below each other; columns and no rows without files."""
    import pandas as pd

    from certbench.metrics.tabulating import COLUMNS

    frames = [frame for path in paths if len(frame := _frame(path, "table"))]
    if not frames:
        return pd.DataFrame({name: [] for name in COLUMNS})
    return pd.concat(frames, ignore_index=True)


def read_costs(paths: Sequence[Path]) -> pd.DataFrame:
    """Cost rows of experiments below each other, with the experiment's name."""
    import pandas as pd

    from certbench.results import rows

    frames = []
    for path in paths:
        frame = _frame(path, "cost")
        frame["experiment"] = rows.provenance(path)["work"]["experiment"]
        frames.append(frame)
    if not frames:
        return pd.DataFrame({name: [] for name in ("experiment", *rows.schema("cost"))})
    return pd.concat(frames, ignore_index=True)


def _frame(path: Path, kind: str) -> pd.DataFrame:
    from certbench.results import rows

    frame = plain(rows.read(path, kind).to_pandas())
    for name in frame.columns:
        if frame[name].dtype.name in ("str", "string"):
            column = frame[name].astype(object)
            frame[name] = column.where(column.notna(), None)
    return frame


def distinct(tables: pd.DataFrame) -> pd.DataFrame:
    """Each number once: where two experiments report it, the one about more items.

    Args:
        tables: As from :func:`read_tables`.
    """
    from certbench.metrics.tabulating import GROUP, SHIFT

    keys = [*GROUP, *SHIFT, "metric", "parameter"]
    order = tables.sort_values("n", ascending=False, kind="stable")
    return order.drop_duplicates(keys).sort_index().reset_index(drop=True)
