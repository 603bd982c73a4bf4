"""What a configuration defines: data, models, defences, attacks, variants, with checked parameters.

Definitions are resolved on first use, so that only what experiments reference is checked. Imports
no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from certbench import params as parameters
from certbench import plugins
from certbench.errors import CertbenchError, did_you_mean

CLEAN = "clean"
BARE = "none"
LOSSLESS = "png"

# Keys of a variant that are not its steps' parameters.
_VARIANT_KEYS = ("steps", "materialise", "encoding")


@dataclass(frozen=True)
class PluginUse:
    """A plug-in with checked parameters."""

    id: str
    kind: str
    name: str
    module: Any
    params: Any
    definition: str = ""

    def block(self) -> dict[str, Any]:
        """What a job needs to know of it."""
        return {
            "name": self.name,
            "version": self.module.version,
            "params": parameters.as_dict(self.params),
        }


@dataclass(frozen=True)
class Defense:
    """A certified defence: a certifier with the parameters of both phases."""

    id: str
    name: str
    module: Any
    collect: Any
    decide: Any

    def block(self) -> dict[str, Any]:
        """Identity and parameters, both phases."""
        return {
            "id": self.id,
            "name": self.name,
            "version": self.module.version,
            "collect": parameters.as_dict(self.collect),
            "decide": parameters.as_dict(self.decide),
        }

    def attack_block(self) -> dict[str, Any]:
        """Identity, and the parameters that attacks on it depend on."""
        chosen = getattr(self.module, "attack_params", None)
        params = (
            chosen(self.collect, self.decide)
            if chosen is not None
            else {**parameters.as_dict(self.collect), **parameters.as_dict(self.decide)}
        )
        return {
            "id": self.id,
            "name": self.name,
            "version": self.module.version,
            "params": params,
        }

    def shard_params(self, start: int, stop: int | None) -> dict[str, Any]:
        """The collect parameters one shard depends on (the total number of samples is not)."""
        chosen = getattr(self.module, "shard_params", None)
        if chosen is None:
            return parameters.as_dict(self.collect)
        return chosen(self.collect, start, stop)


@dataclass(frozen=True)
class Variant:
    """A dataset variant: an ordered list of steps.

    Attributes:
        variant_id: Readable and unique.
        definition: Its name in the configuration.
        steps: The steps.
        encoding: How its images are coded: ``png``, which changes nothing, or ``jpeg85``.
        materialise: Whether its images are stored once; no part of its identity.
    """

    variant_id: str
    definition: str
    steps: tuple[PluginUse, ...]
    encoding: str = LOSSLESS
    materialise: bool = False

    def block(self) -> dict[str, Any]:
        """Identity and steps, and the encoding where it changes pixels."""
        block = {"variant_id": self.variant_id, "steps": [step.block() for step in self.steps]}
        return block if self.encoding == LOSSLESS else {**block, "encoding": self.encoding}


@dataclass(frozen=True)
class Selection:
    """A dataset as an experiment sees it: a split through a view, up to a number of items."""

    dataset: PluginUse
    split: str
    view: str
    size: int

    @property
    def id(self) -> str:
        """Path component: readable and unique."""
        return f"{self.dataset.id}-{self.split}-{self.view.replace('.', '_')}".lower()

    def block(self) -> dict[str, Any]:
        """Where the items come from; the number of items is not part of a job's identity."""
        use = self.dataset
        return {
            "id": use.id,
            "plugin": use.name,
            "version": use.module.version,
            "params": parameters.as_dict(use.params),
            "split": self.split,
            "view": self.view,
        }


class Definitions:
    """The definitions of a checked configuration.

    Args:
        config: The configuration with defaults.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.extra = tuple(config["plugins"])
        self._uses: dict[tuple[str, str], PluginUse] = {}
        self._defenses: dict[str, Defense] = {}
        self._attack_uses: dict[str, list[PluginUse]] = {}
        self._variants: dict[str, list[Variant]] = {CLEAN: [Variant(CLEAN, CLEAN, ())]}
        plugins.outside(self.extra)

    def plugin(self, spot: str, kind: str, entry: Mapping[str, Any], skip: tuple = ()):
        """The plug-in an entry names by its ``type``, with the rest as checked parameters."""
        module = plugins.load(kind, entry["type"], self.extra, where=f"config: {spot}.type")
        values = {k: v for k, v in entry.items() if k not in ("type", *skip)}
        made = parameters.build(module.Params, values, f"config: {spot}")
        return PluginUse(spot.rsplit(".", 1)[-1], kind, entry["type"], module, made)

    def definition(self, section: str, name: str, where: str) -> Mapping[str, Any]:
        """An entry of a section.

        Raises:
            CertbenchError: There is none; names the nearest.
        """
        known = self.config[section]
        if name not in known:
            raise CertbenchError(
                f"'{name}' is not defined under {section}",
                where=where,
                remedy=did_you_mean(name, [*known, *([CLEAN] if section == "variants" else [])]),
            )
        return known[name]

    def use(self, section: str, kind: str, name: str, where: str, skip: tuple = ()) -> PluginUse:
        """A definition that is one plug-in, made once."""
        if (section, name) not in self._uses:
            entry = self.definition(section, name, where)
            self._uses[section, name] = self.plugin(f"{section}.{name}", kind, entry, skip)
        return self._uses[section, name]

    def defense(self, name: str, where: str) -> Defense:
        """A certified defence: its parameters dealt out to the two phases, and validated."""
        if name not in self._defenses:
            entry = self.definition("defenses", name, where)
            spot = f"config: defenses.{name}"
            module = plugins.load("certifier", entry["type"], self.extra, where=f"{spot}.type")
            phases = (module.CollectParams, module.DecideParams)
            owned = [{f.name for f in dataclasses.fields(phase)} for phase in phases]
            values = {k: v for k, v in entry.items() if k != "type"}
            for key in values:
                if key not in owned[0] | owned[1]:
                    raise CertbenchError(
                        f"unknown key '{key}'",
                        where=spot,
                        remedy=did_you_mean(key, set.union(*owned)),
                    )
            collect, decide = (
                parameters.build(phase, {k: v for k, v in values.items() if k in own}, spot)
                for phase, own in zip(phases, owned, strict=True)
            )
            validate = getattr(module, "validate", None)
            if validate is not None:
                validate(collect, decide, spot)
            self._defenses[name] = Defense(name, entry["type"], module, collect, decide)
        return self._defenses[name]

    def variant(self, name: str, where: str) -> list[Variant]:
        """A variant, or one for each combination of a sweep."""
        if name not in self._variants:
            entry = self.definition("variants", name, where)
            spot = f"config: variants.{name}"
            settings = entry if isinstance(entry, Mapping) else {}
            if isinstance(entry, Mapping):
                steps = _steps(entry, spot)
            else:
                steps = list(entry)
            choices = [self.sweep(step, f"variants.{name}", "variant") for step in steps]
            encoding = settings.get("encoding", LOSSLESS)
            self._variants[name] = [
                Variant(
                    _variant_id(combo, encoding),
                    name,
                    combo,
                    encoding,
                    settings.get("materialise", False),
                )
                for combo in itertools.product(*choices)
            ]
        return self._variants[name]

    def attacks(self, name: str, where: str) -> list[PluginUse]:
        """An attack, or one for each combination of the lists given for scalar parameters."""
        if name not in self._attack_uses:
            entry = self.definition("attacks", name, where)
            evaluation = ("checks", "surrogate", "items")
            method = {key: value for key, value in entry.items() if key not in evaluation}
            made = self.sweep(method, f"attacks.{name}", "attack")
            lists = [key for key in entry if len(made) > 1 and isinstance(entry[key], list)]
            self._attack_uses[name] = [
                dataclasses.replace(
                    use, id="-".join([name, *self._swept_values(use, lists)]), definition=name
                )
                for use in made
            ]
        return self._attack_uses[name]

    @staticmethod
    def _swept_values(use: PluginUse, lists: list[str]) -> list[str]:
        return [f"{key}-{_in_id(getattr(use.params, key))}" for key in lists]

    def sweep(self, entry: Mapping[str, Any], spot: str, kind: str) -> list[PluginUse]:
        """A definition with lists for scalar parameters is one plug-in per combination."""
        module = plugins.load(kind, entry["type"], self.extra, where=f"config: {spot}.type")
        swept = {
            key: value
            for key, value in entry.items()
            if isinstance(value, list) and parameters.sweepable(module.Params, key)
        }
        return [
            self.plugin(spot, kind, {**entry, **dict(zip(swept, combination, strict=True))})
            for combination in itertools.product(*swept.values())
        ]

    def split_of(self, dataset: str, split: str, view: str, where: str) -> Selection:
        """A split through a view, without saying how many items."""
        from certbench.datasets import views

        use = self.use("datasets", "dataset", dataset, where, skip=("sizes",))
        sizes = self.sizes(use)
        if split not in sizes:
            raise CertbenchError(
                f"dataset '{use.id}' has no split '{split}'",
                where=f"{where}.split",
                remedy=did_you_mean(split, sizes),
            )
        views.parse(view)
        return Selection(use, split, view, 0)

    def selection(self, entry: Mapping[str, Any], where: str) -> Selection:
        """What an experiment's dataset entry selects, with its number of items.

        Raises:
            CertbenchError: Unknown dataset, split or view; more items than there are; or nobody
                states how many there are.
        """
        split = entry["split"]
        chosen = self.split_of(entry["name"], split, entry["view"], where)
        use = chosen.dataset
        sizes = self.sizes(use)
        size = entry["limit"] or sizes[split]
        if size is None:
            raise CertbenchError(
                f"how many items split '{split}' has is not known before the data are read",
                where=f"{where}.limit",
                remedy=f"set a limit here, or datasets.{use.id}.sizes.{split}",
            )
        known = sizes[split]
        if known is not None and size > known:
            raise CertbenchError(
                f"asks for {size} items; split '{split}' has {known}",
                where=f"{where}.limit",
                remedy=f"set at most {known}, or null for all",
            )
        return dataclasses.replace(chosen, size=size)

    def sizes(self, use: PluginUse) -> dict[str, int | None]:
        """Items per split: what the plug-in knows, overridden by what the definition states."""
        stated = self.config["datasets"][use.id].get("sizes", {})
        return {**use.module.splits(use.params), **stated}


def _in_id(value: Any) -> str:
    """A value as part of an id: lower case, no dots."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "-_" else "p" for c in text.lower())


def _steps(entry: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The steps of a variant written as a mapping: those under ``steps``, or itself.

    Raises:
        CertbenchError: Neither ``type`` nor ``steps``, or an unknown key beside ``steps``.
    """
    if "type" in entry:
        own = ("materialise", "encoding")
        return [{key: value for key, value in entry.items() if key not in own}]
    for key in entry:
        if key not in _VARIANT_KEYS:
            raise CertbenchError(
                f"unknown key '{key}'", where=where, remedy=did_you_mean(key, _VARIANT_KEYS)
            )
    if "steps" not in entry:
        raise CertbenchError(
            "is required",
            where=f"{where}.type",
            remedy="name a variant step by its type, or a list of them under steps",
        )
    return entry["steps"]


def _variant_id(steps: tuple[PluginUse, ...], encoding: str) -> str:
    """A readable name with a hash of everything the steps do."""
    blocks: Any = [step.block() for step in steps]
    slug = "_".join(step.module.slug(step.params) for step in steps)
    if encoding != LOSSLESS:
        blocks, slug = {"steps": blocks, "encoding": encoding}, f"{slug}-{encoding}"
    clean = "".join(c if c.isalnum() or c in "-_" else "-" for c in slug.lower())
    digest = hashlib.sha256(parameters.canonical(blocks).encode()).hexdigest()
    return f"{clean}-{digest[:6]}"
