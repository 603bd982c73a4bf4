"""What a dataset is, where it comes from, and what one may do with it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from certbench.errors import CertbenchError


@dataclass(frozen=True)
class Card:
    """The facts about a dataset that figures, the report and the licence page need.

    Attributes:
        title: Name of the dataset as people know it.
        source: Where it comes from: an address, a paper, or both.
        licence: The terms of the images.
        redistributable: Whether a report may embed the images.
        synthetic: Whether the images are rendered, not recorded.
        class_names: Name of each label, label 0 first.
        sizes: Number of items of each prepared split.
        note: What a reader of a number must know about the data.
        mask_class_names: Name of each class of the label maps, class 0 first; empty without maps.
        mask_colours: Display colour (8-bit RGB) of each of them; empty where none is customary.
    """

    title: str
    source: str
    licence: str
    redistributable: bool
    synthetic: bool
    class_names: tuple[str, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    note: str = ""
    mask_class_names: tuple[str, ...] = ()
    mask_colours: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "mask_class_names", tuple(self.mask_class_names))
        object.__setattr__(self, "mask_colours", tuple(map(tuple, self.mask_colours)))
        object.__setattr__(self, "sizes", {k: int(v) for k, v in self.sizes.items()})

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values."""
        lists = {
            "class_names": list(self.class_names),
            "mask_class_names": list(self.mask_class_names),
            "mask_colours": [list(colour) for colour in self.mask_colours],
        }
        return {**dataclasses.asdict(self), **lists}

    def to_json(self) -> str:
        """The card as JSON text; :meth:`from_json` gives it back."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def classes(self, task: str) -> tuple[str, ...]:
        """Names of the classes that models of a task tell apart."""
        return self.mask_class_names if task == "segmentation" else self.class_names

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """The card from JSON values.

        Raises:
            CertbenchError: Keys are missing or unknown.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise CertbenchError(
                f"is not a dataset card ({error})", remedy="prepare the dataset again"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Card:
        """The card from the text of :meth:`to_json`.

        Raises:
            CertbenchError: The text is not a card.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CertbenchError(f"is not a dataset card ({error})") from error
        return cls.from_dict(values if isinstance(values, dict) else {})
