"""Threat models as values: what a certificate promises, and what an attack was allowed.

:func:`contains` is the only place that converts norms and units. Everything else compares threats
through it, so a certificate in one norm is never held against an attack in another by accident.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from certbench.errors import CertbenchError, did_you_mean

KINDS = ("lp", "patch", "passages", "compute", "none")
NORMS = ("l1", "l2", "linf")
UNITS = ("item", "pixel", "label")
GUARANTEES = ("probabilistic", "deterministic", "detection", "none")
_ORDER = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


@dataclass(frozen=True)
class Threat:
    """One threat model.

    Attributes:
        kind: ``lp`` balls, localised ``patch``, poisoned ``passages``, ``compute``, or ``none``.
        norm: For ``lp``: l1, l2 or linf. For ``patch``: the shape (``square``, ...). Else "".
        size: Radius or budget in units of ``space``; None means that every row has its own
            (certificates: the ``radius`` column).
        space: Where ``size`` is measured: ``pixel01`` (network input, values in [0, 1], flattened
            C x H x W), ``fraction`` (share of the image side), ``passages``, ...
        unit: What the statement is about: the whole ``item``, one ``pixel``, one ``label``.
        guarantee: ``probabilistic`` (holds with probability 1 - alpha), ``deterministic``,
            ``detection`` (an attack may cause an alarm but no silent error), ``none`` (attacks).
        alpha: Failure probability per item of a probabilistic guarantee.
    """

    kind: str
    norm: str = ""
    size: float | None = None
    space: str = "pixel01"
    unit: str = "item"
    guarantee: str = "none"
    alpha: float | None = None

    def __post_init__(self):
        for value, known, field in (
            (self.kind, KINDS, "kind"),
            (self.unit, UNITS, "unit"),
            (self.guarantee, GUARANTEES, "guarantee"),
        ):
            if value not in known:
                raise CertbenchError(
                    f"unknown {field} '{value}'", where="threat", remedy=did_you_mean(value, known)
                )
        if self.kind == "lp" and self.norm not in NORMS:
            raise CertbenchError(
                f"unknown norm '{self.norm}'", where="threat", remedy=did_you_mean(self.norm, NORMS)
            )
        if self.size is not None and not self.size >= 0:
            raise CertbenchError(f"size is {self.size}", where="threat", remedy="give a size >= 0")
        if (self.guarantee == "probabilistic") != (self.alpha is not None):
            raise CertbenchError(
                "alpha belongs to a probabilistic guarantee, and every such guarantee states it",
                where="threat",
            )

    @property
    def id(self) -> str:
        """A readable name: equal threats have equal names (``lp-l2-0.5``, ``lp-linf-8of255``)."""
        parts = [self.kind]
        if self.norm:
            parts.append(self.norm)
        if self.size is not None:
            parts.append(_number(self.size))
        if self.space != "pixel01":
            parts.append(self.space)
        if self.unit != "item":
            parts.append(self.unit)
        return "-".join(parts)

    def sized(self, size: float) -> Threat:
        """The same threat with a size (a certificate's radius for one item)."""
        return replace(self, size=size)

    def row(self) -> dict[str, object]:
        """The columns ``threat_*`` of certificate and attack rows."""
        return {
            "threat_id": self.id,
            "threat_kind": self.kind,
            "threat_norm": self.norm,
            "threat_size": self.size,
            "threat_space": self.space,
            "threat_unit": self.unit,
            "threat_guarantee": self.guarantee,
            "threat_alpha": self.alpha,
        }


def as_threat(value: Threat | Mapping[str, Any]) -> Threat:
    """A plug-in's threat model: a :class:`Threat`, or its fields."""
    return value if isinstance(value, Threat) else Threat(**value)


def _number(value: float) -> str:
    levels = value * 255
    if 0 < value < 1 and abs(levels - round(levels)) < 1e-9 and len(f"{value:g}") > 5:
        return f"{round(levels)}of255"
    return f"{value:g}"


def convert_size(size: float, norm: str, to: str, dimension: int) -> float:
    """Radius of the smallest ``to``-ball around the ``norm``-ball of radius ``size``.

    ``|v|_p <= d^max(0, 1/p - 1/q) |v|_q``, tight for every pair of norms.

    Args:
        size: Radius of the inner ball.
        norm: Its norm.
        to: Norm of the outer ball.
        dimension: Number of values d of one item.
    """
    exponent = max(0.0, 1.0 / _ORDER[to] - 1.0 / _ORDER[norm])
    return size * dimension**exponent


def comparable(certificate: Threat, attack: Threat) -> bool:
    """Whether the two speak of the same things, so that one can be held against the other.

    A patch says nothing of a ball, levels nothing of real values, one shape of patch nothing of
    another: an attack of one kind lies outside the threat model of a certificate of the other.
    """
    same = (certificate.kind, certificate.space, certificate.unit) == (
        attack.kind,
        attack.space,
        attack.unit,
    )
    return same and (certificate.kind == "lp" or certificate.norm == attack.norm)


def inner_size(size: float, norm: str, to: str, dimension: int) -> float:
    """Radius of the largest ``to``-ball inside the ``norm``-ball of radius ``size``.

    Args:
        size: Radius of the outer ball.
        norm: Its norm.
        to: Norm of the inner ball.
        dimension: Number of values d of one item.
    """
    return size / convert_size(1.0, to, norm, dimension)


def contains(certificate: Threat, attack: Threat, dimension: int | None = None) -> bool:
    """Whether everything the attack may do lies inside the region the certificate covers.

    Args:
        certificate: Threat of the certificate with its size (the item's radius).
        attack: Threat of the attack with its size (budget, or the size of one perturbation).
        dimension: Values per item; needed where the norms differ.

    Raises:
        CertbenchError: A size is missing, or the norms differ and no dimension is given.

    Returns:
        False where the two speak of different kinds, spaces or units: such threats are never
        compared. An Lp certificate covers perturbations strictly smaller than its radius.
    """
    if certificate.size is None or attack.size is None:
        raise CertbenchError(
            "a threat without a size cannot be compared",
            where="threat",
            remedy="use Threat.sized(radius)",
        )
    if not comparable(certificate, attack):
        return False
    if certificate.kind == "lp":
        needed = attack.size
        if certificate.norm != attack.norm:
            if dimension is None:
                raise CertbenchError(
                    f"comparing {attack.norm} with {certificate.norm} needs the dimension",
                    where="threat",
                )
            needed = convert_size(attack.size, attack.norm, certificate.norm, dimension)
        return needed < certificate.size
    if certificate.kind in ("patch", "passages"):
        return attack.size <= certificate.size
    return False
