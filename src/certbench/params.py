"""Parameters of plug-ins: frozen dataclasses whose fields know their range, unit and meaning.

A plug-in declares its parameters once::

    @dataclass(frozen=True)
    class Params:
        severity: int = param(help="strength", minimum=1, maximum=5)
        sigma: float = param(0.25, help="noise level", unit="pixel values in [0, 1]", above=0)

and :func:`build` makes an instance from the values of a configuration, or says which key is wrong,
what it may be, and how it is probably spelled. This module imports no torch and no numpy, because
planning uses it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from certbench.errors import CertbenchError, did_you_mean

_UNSET: Any = dataclasses.MISSING


def param(
    default: Any = _UNSET,
    *,
    help: str,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple | None = None,
) -> Any:
    """Declare one parameter of a plug-in.

    Args:
        default: Default value; without one the parameter is required. Lists become tuples.
        help: One phrase for the configuration reference.
        unit: Unit of the value, where it has one.
        minimum: Smallest allowed value (of each entry, for sequences).
        maximum: Largest allowed value.
        above: Strict lower bound.
        below: Strict upper bound.
        choices: The allowed values.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "choices": choices,
    }
    if isinstance(default, list):
        default = tuple(default)
    if isinstance(default, dict):
        frozen = dict(default)
        return dataclasses.field(default_factory=lambda: dict(frozen), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type, values: Mapping[str, Any] | None, where: str) -> Any:
    """Make the parameters ``cls`` from configuration ``values``.

    Args:
        cls: A dataclass whose fields were declared with :func:`param`.
        values: Keys and values from the configuration (None means none given).
        where: Prefix for messages, for example ``config: defenses.rs``.

    Raises:
        CertbenchError: Unknown key, missing key, wrong type, or value out of range.
    """
    values = dict(values or {})
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise CertbenchError(
                f"unknown key '{key}'", where=where, remedy=did_you_mean(key, fields)
            )
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for name, field in fields.items():
        spot = f"{where}.{name}"
        if name not in values:
            if field.default is _UNSET and field.default_factory is _UNSET:
                raise CertbenchError(
                    "is required", where=spot, remedy=f"set it: {describe(field, hints[name])}"
                )
            continue
        made[name] = _convert(values[name], hints[name], field, spot)
    try:
        return cls(**made)
    except CertbenchError as error:
        # Checks across fields (``__post_init__``) know the field, not where it was written.
        inner = error.where if (error.where or "").startswith(where) else None
        spot = inner or (f"{where}.{error.where}" if error.where else where)
        raise CertbenchError(error.problem, where=spot, remedy=error.remedy) from None


def as_dict(params: Any) -> dict[str, Any]:
    """The parameters as plain JSON values (tuples become lists)."""
    return json.loads(canonical(dataclasses.asdict(params)))


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def describe(field: dataclasses.Field, hint: Any) -> str:
    """One line on what a parameter may be, for messages and the configuration reference."""
    meta = field.metadata
    parts = [_type_name(hint)]
    if meta.get("choices"):
        parts.append("one of " + ", ".join(map(str, meta["choices"])))
    if meta.get("minimum") is not None:
        parts.append(f">= {meta['minimum']}")
    if meta.get("above") is not None:
        parts.append(f"> {meta['above']}")
    if meta.get("maximum") is not None:
        parts.append(f"<= {meta['maximum']}")
    if meta.get("below") is not None:
        parts.append(f"< {meta['below']}")
    if meta.get("unit"):
        parts.append(f"in {meta['unit']}")
    text = ", ".join(parts)
    return f"{text} ({meta['help']})" if meta.get("help") else text


def sweepable(cls: type, name: str) -> bool:
    """Whether a list given for this parameter means a sweep (the parameter itself is scalar)."""
    hint = typing.get_type_hints(cls).get(name)
    return hint is not None and not _accepts_sequence(hint)


def _accepts_sequence(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (tuple, list) or hint in (tuple, list, Any):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts_sequence(arg) for arg in typing.get_args(hint))
    return False


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(arg) for arg in typing.get_args(hint)]
        return " or ".join(names)
    if origin in (tuple, list):
        inner = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        return "list of " + (_type_name(inner[0]) if inner else "values")
    if hint is type(None):
        return "null"
    return {bool: "true/false", int: "integer", float: "number", str: "text", dict: "mapping"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _convert(value: Any, hint: Any, field: dataclasses.Field, where: str) -> Any:
    """Check type and range of ``value``; coerce harmlessly (int to float, list to tuple)."""
    wanted = describe(field, hint)

    def refuse(problem: str) -> CertbenchError:
        return CertbenchError(problem, where=where, remedy=f"expected {wanted}")

    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        last: CertbenchError | None = None
        for option in options:
            if option is type(None):
                continue
            try:
                return _convert(value, option, field, where)
            except CertbenchError as error:
                last = error
        raise last or refuse(f"is {value!r}")
    if hint is Any:
        return value
    if origin in (tuple, list):
        if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
            raise refuse(f"is {value!r}, not a list")
        args = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
        inner = args[0] if args else Any
        return tuple(
            _convert(entry, inner, field, f"{where}[{i}]") for i, entry in enumerate(value)
        )
    if hint is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise refuse(f"is {value!r}, not a mapping")
        return dict(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise refuse(f"is {value!r}")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise refuse(f"is {value!r}")
        value = int(value)
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refuse(f"is {value!r}")
        value = float(value)
        if not math.isfinite(value):
            raise refuse(f"is {value!r}")
    elif hint is str and not isinstance(value, str):
        raise refuse(f"is {value!r}")
    meta = field.metadata
    choices = meta.get("choices")
    if choices and value not in choices:
        raise CertbenchError(
            f"unknown value {value!r}", where=where, remedy=did_you_mean(value, choices)
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, above = meta.get("minimum"), meta.get("above")
        high, below = meta.get("maximum"), meta.get("below")
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
            or (below is not None and value >= below)
        ):
            raise refuse(f"is {value}")
    return value
