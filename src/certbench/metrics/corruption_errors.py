"""Corruption errors: mCE and relative mCE against a named reference, mPC and rPC, summaries.

With E[c, s] the error on corruption c at severity s, the corruption error is
CE[c] = sum_s E[c, s] / sum_s E_ref[c, s] and mCE its mean over the types of a set, in percent
(Hendrycks and Dietterich, ICLR 2019, section 4). The mean of ratios is not the ratio of means. Sets
are the fifteen types of ImageNet-C, the twelve of ImageNet-3DCC (Kar et al., CVPR 2022), or one's
own.

Everything is keyed by the name of the corruption, never by its position: lists of reference errors
circulate in several orders. A mean is only formed of a complete set. mCE compares with published
numbers only for the same images and the reference's own table; elsewhere report the mean accuracy,
and mCE "relative to <reference>". The same aggregates hold for certified error, 1 minus certified
accuracy at a fixed radius.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certbench.corruptions.severity import BENCHMARK_15, SEVERITIES
from certbench.corruptions.three_d import IMAGENET_3DCC as BENCHMARK_12
from certbench.errors import CertbenchError, did_you_mean

ELASTIC = ("elastic_transform", "elastic_transform_imagenet_c")
"""The two recipes that can fill the elastic slot of the fifteen types; one mean uses one."""

Values = Mapping[str, Sequence[float] | Mapping[int, float]]
"""Numbers by corruption: one for each severity in ascending order, or a mapping from severity."""


@dataclass(frozen=True)
class TypeSet:
    """Types and severities that a mean is formed over, all of them or none.

    Attributes:
        name: How it is called.
        types: Names of the corruptions.
        severities: Severities, ascending.
    """

    name: str
    types: tuple[str, ...]
    severities: tuple[int, ...] = SEVERITIES

    def __str__(self) -> str:
        """Its size in words: ``15 types, severities 1 to 5``."""
        types = f"{len(self.types)} type{'s' * (len(self.types) != 1)}"
        listed = ", ".join(map(str, self.severities))
        if len(self.severities) > 2 and self.severities == SEVERITIES[: len(self.severities)]:
            listed = f"1 to {len(self.severities)}"
        return f"{types}, {'severities' if len(self.severities) > 1 else 'severity'} {listed}"


IMAGENET_C = TypeSet("imagenet_c", BENCHMARK_15)
IMAGENET_3DCC = TypeSet("imagenet_3dcc", BENCHMARK_12)


@dataclass(frozen=True)
class Reference:
    """A model that corruption errors are measured against.

    Attributes:
        name: How it is called beside the number.
        errors: Mean error over the severities of the set, by corruption.
        clean_error: Error on clean images.
        source: Where the numbers come from.
        over: The types and severities that a mean over them takes.
        severity_tables: The images it may be held against: the published files, then the same
            severities computed anew (without the files' JPEG artefacts); empty for any.
    """

    name: str
    errors: Mapping[str, float]
    clean_error: float
    source: str
    over: TypeSet = IMAGENET_C
    severity_tables: tuple[str, ...] = ()


REFERENCES: dict[str, Reference] = {
    "alexnet_imagenet_c": Reference(
        name="alexnet_imagenet_c",
        errors={
            "gaussian_noise": 0.886428,
            "shot_noise": 0.894468,
            "impulse_noise": 0.922640,
            "defocus_blur": 0.819880,
            "glass_blur": 0.826268,
            "motion_blur": 0.785948,
            "zoom_blur": 0.798360,
            "snow": 0.866816,
            "frost": 0.826572,
            "fog": 0.819324,
            "brightness": 0.564592,
            "contrast": 0.853204,
            "elastic_transform": 0.646056,
            "pixelate": 0.717840,
            "jpeg_compression": 0.606500,
        },
        clean_error=0.435,
        source="AlexNet on the 50,000 images of every ImageNet-C file, the constants that AugMix "
        "(github.com/google-research/augmix) and others divide by",
        severity_tables=("imagenet_c", "imagenet"),
    ),
    "alexnet_robustbench": Reference(
        name="alexnet_robustbench",
        errors={
            "gaussian_noise": 0.8816,
            "shot_noise": 0.8883,
            "impulse_noise": 0.9172,
            "defocus_blur": 0.8220,
            "glass_blur": 0.8308,
            "motion_blur": 0.7872,
            "zoom_blur": 0.7957,
            "snow": 0.8680,
            "frost": 0.8315,
            "fog": 0.8236,
            "brightness": 0.5585,
            "contrast": 0.8543,
            "elastic_transform": 0.6480,
            "pixelate": 0.7186,
            "jpeg_compression": 0.6068,
        },
        clean_error=0.4376,
        source="AlexNet on RobustBench's 5,000 images (github.com/RobustBench/robustbench)",
        severity_tables=("imagenet_c", "imagenet"),
    ),
    "alexnet_3dcc": Reference(
        name="alexnet_3dcc",
        errors={
            "near_focus": 0.61068,
            "far_focus": 0.65152,
            "fog_3d": 0.77356,
            "flash": 0.80124,
            "color_quant": 0.59620,
            "low_light": 0.82248,
            "xy_motion_blur": 0.82484,
            "z_motion_blur": 0.79588,
            "iso_noise": 0.93152,
            "bit_error": 0.68336,
            "h265_abr": 0.56740,
            "h265_crf": 0.52520,
        },
        clean_error=0.4376,
        source="AlexNet on the 5,000 images of ImageNet-3DCC that RobustBench uses "
        "(github.com/RobustBench/robustbench)",
        over=IMAGENET_3DCC,
        severity_tables=("imagenet_3dcc",),
    ),
}


def reference(name: str) -> Reference:
    """The published reference of that name.

    Raises:
        CertbenchError: No such reference.
    """
    if name not in REFERENCES:
        raise CertbenchError(
            f"unknown reference '{name}'",
            where="corruption errors",
            remedy=did_you_mean(name, REFERENCES),
        )
    return REFERENCES[name]


def reference_from(
    name: str,
    errors: Values,
    clean_error: float,
    elastic: str = ELASTIC[0],
    over: TypeSet = IMAGENET_C,
) -> Reference:
    """A reference of one's own: any evaluated model, by its name.

    Args:
        name: How it is called beside the number, for example ``resnet20``.
        errors: Its errors in [0, 1] for all types and severities of the set.
        clean_error: Its error on the clean images of the same dataset.
        elastic: Which recipe the elastic slot holds.
        over: The set.

    Raises:
        CertbenchError: A type or severity is missing, or a value is not in [0, 1].
    """
    table = _complete(errors, elastic, over)
    means = {slot: math.fsum(row) / len(row) for slot, row in table.items()}
    return Reference(name, means, _unit(clean_error, "clean_error"), "measured", over)


def corruption_errors(
    errors: Values, against: str | Reference, elastic: str = ELASTIC[0]
) -> dict[str, float]:
    """CE of each type of the reference's set, in percent (100: as many errors as the reference).

    Args:
        errors: Errors in [0, 1], by corruption and severity; types outside the set are left out.
        against: Name of a published reference, or one made by :func:`reference_from`.
        elastic: Which recipe fills the elastic slot.

    Raises:
        CertbenchError: A type or severity is missing, a value is not in [0, 1], or the reference
            makes no error on a type.
    """
    chosen = reference(against) if isinstance(against, str) else against
    ratios = {}
    for slot, row in _complete(errors, elastic, chosen.over).items():
        divisor = chosen.errors[slot]
        if divisor == 0:
            raise CertbenchError(
                f"reference '{chosen.name}' makes no error on '{slot}', so that CE is undefined",
                where="corruption errors",
                remedy="choose another reference",
            )
        ratios[_named(slot, elastic)] = 100.0 * math.fsum(row) / (len(row) * divisor)
    return ratios


def mean_corruption_error(
    errors: Values, against: str | Reference, elastic: str = ELASTIC[0]
) -> float:
    """MCE in percent: the mean of the corruption errors of the set.

    Arguments and errors are those of :func:`corruption_errors`.
    """
    return _mean(corruption_errors(errors, against, elastic).values())


def relative_corruption_errors(
    errors: Values, clean_error: float, against: str | Reference, elastic: str = ELASTIC[0]
) -> dict[str, float]:
    """Relative CE of each type of the set, in percent: added errors over the reference's.

    ``(sum_s E[c, s] - S E_clean) / (sum_s E_ref[c, s] - S E_ref,clean)`` with S severities: 0 for a
    model that a corruption does not affect, 100 for one that it costs as many errors as the
    reference.

    Args:
        errors: Errors in [0, 1], by corruption and severity.
        clean_error: Error on the clean images.
        against: Name of a published reference, or one made by :func:`reference_from`.
        elastic: Which recipe fills the elastic slot.

    Raises:
        CertbenchError: As :func:`corruption_errors`; also if a type costs the reference nothing.
    """
    chosen = reference(against) if isinstance(against, str) else against
    clean_error = _unit(clean_error, "clean_error")
    ratios = {}
    for slot, row in _complete(errors, elastic, chosen.over).items():
        divisor = chosen.errors[slot] - chosen.clean_error
        if abs(divisor) < 1e-9:
            raise CertbenchError(
                f"'{slot}' costs reference '{chosen.name}' nothing, so that relative CE is "
                "undefined",
                where="corruption errors",
                remedy="choose another reference, or report mCE and mean accuracy",
            )
        added = math.fsum((*row, *(-clean_error for _ in row)))
        ratios[_named(slot, elastic)] = 100.0 * added / (len(row) * divisor)
    return ratios


def relative_mean_corruption_error(
    errors: Values, clean_error: float, against: str | Reference, elastic: str = ELASTIC[0]
) -> float:
    """Relative mCE in percent: the mean of the relative corruption errors of the set.

    Arguments and errors are those of :func:`relative_corruption_errors`.
    """
    return _mean(relative_corruption_errors(errors, clean_error, against, elastic).values())


@dataclass(frozen=True)
class Summary:
    """What one reports of a model under corruptions without any reference.

    Attributes:
        mean_error: Mean over types and severities.
        by_type: Mean over severities, by type.
        by_severity: Mean over types, by severity.
        worst_type: Type of the largest mean error (the first in order, if several).
        worst_error: Its mean error.
    """

    mean_error: float
    by_type: dict[str, float]
    by_severity: dict[int, float]
    worst_type: str
    worst_error: float

    @property
    def mean_accuracy(self) -> float:
        """1 minus the mean error."""
        return 1.0 - self.mean_error


def summarise(errors: Values, elastic: str = ELASTIC[0], over: TypeSet = IMAGENET_C) -> Summary:
    """Mean error, means by type and by severity, and the worst type.

    Args:
        errors: Errors in [0, 1], by corruption and severity.
        elastic: Which recipe fills the elastic slot.
        over: The set.

    Raises:
        CertbenchError: A type or severity is missing, or a value is not in [0, 1].
    """
    table = {_named(slot, elastic): row for slot, row in _complete(errors, elastic, over).items()}
    by_type = {name: _mean(row) for name, row in table.items()}
    by_severity = {
        s: _mean([row[i] for row in table.values()]) for i, s in enumerate(over.severities)
    }
    worst = max(by_type, key=lambda name: by_type[name])
    return Summary(_mean(by_type.values()), by_type, by_severity, worst, by_type[worst])


def mean_performance_under_corruption(
    scores: Values,
    elastic: str = ELASTIC[0],
    maximum: float = 1.0,
    over: TypeSet = IMAGENET_C,
) -> float:
    """MPC: the mean of a score (AP, mIoU, accuracy) over all types and severities of a set.

    Labels stay those of the clean image, also under the types that move pixels (elastic, zoom,
    motion and glass blur): that is the convention, and it costs every model alike.

    Args:
        scores: Scores in [0, maximum], by corruption and severity.
        elastic: Which recipe fills the elastic slot.
        maximum: Largest possible score: 1, or 100 for percent.
        over: The set.

    Raises:
        CertbenchError: A type or severity is missing, or a value is out of range.

    Source: Michaelis et al. 2019, arXiv 1907.07484, equations 1 and 2.
    """
    return _mean(_mean(row) for row in _complete(scores, elastic, over, maximum).values())


def relative_performance_under_corruption(mean_performance: float, clean: float) -> float:
    """RPC: mPC over the score on clean images, a fraction.

    Args:
        mean_performance: mPC.
        clean: Score on the clean images, in the same units.

    Raises:
        CertbenchError: The clean score is not positive.
    """
    if not clean > 0:
        raise CertbenchError(
            f"the clean score is {clean}, so that rPC is undefined",
            where="corruption errors",
            remedy="rPC compares models that work on clean images",
        )
    return mean_performance / clean


def corruption_degradation(
    scores: Sequence[float], reference_scores: Sequence[float], maximum: float = 1.0
) -> float:
    """CD of one type, in percent: lost mIoU relative to what the reference loses.

    Args:
        scores: Scores in [0, maximum] at the five severities.
        reference_scores: Those of the reference.
        maximum: Largest possible score.

    Raises:
        CertbenchError: Not five severities, a value out of range, or a perfect reference.

    Source: Kamann and Rother, CVPR 2020, equation 1.
    """
    lost, lost_by_reference = (
        math.fsum(maximum - value for value in _row("scores", values, maximum))
        for values in (scores, reference_scores)
    )
    if lost_by_reference == 0:
        raise CertbenchError(
            "the reference loses nothing, so that CD is undefined",
            where="corruption errors",
            remedy="choose another reference",
        )
    return 100.0 * lost / lost_by_reference


def missing_from(values: Mapping[str, Mapping[int, Any]], over: TypeSet, elastic: str) -> str:
    """What a set lacks before a mean may be formed, in words; empty where it is complete.

    Args:
        values: Numbers by corruption and severity.
        over: The set.
        elastic: Which recipe fills the elastic slot.
    """
    names = [_named(slot, elastic) for slot in over.types]
    absent = [name for name in names if name not in values]
    short = {
        tuple(s for s in over.severities if s not in values[name])
        for name in names
        if name in values
    } - {()}
    said = []
    if absent:
        listed = ", ".join(absent) if len(absent) <= 3 else str(len(absent))
        said.append(f"{listed} of {len(over.types)} types")
    if short:
        lacking = sorted({s for one in short for s in one})
        word = "severity" if len(lacking) == 1 else "severities"
        said.append(f"{word} {', '.join(map(str, lacking))}{' of some types' * (len(short) > 1)}")
    return " and ".join(said)


def _complete(
    values: Values, elastic: str, over: TypeSet = IMAGENET_C, maximum: float = 1.0
) -> dict[str, tuple[float, ...]]:
    """The rows of a set by slot, in its order, each in the order of its severities."""
    if elastic not in ELASTIC:
        raise CertbenchError(
            f"unknown elastic recipe '{elastic}'",
            where="corruption errors",
            remedy=did_you_mean(elastic, ELASTIC),
        )
    wanted = {slot: _named(slot, elastic) for slot in over.types}
    missing = [name for name in wanted.values() if name not in values]
    if missing:
        other = next(name for name in ELASTIC if name != elastic)
        slot = ELASTIC[0] in over.types
        hint = (
            f"; for the other elastic recipe, pass elastic='{other}'"
            if slot and other in values
            else ""
        )
        raise CertbenchError(
            f"no values for {', '.join(missing)}",
            where="corruption errors",
            remedy=f"a mean over a set needs all of its {len(over.types)} types{hint}",
        )
    return {
        slot: _row(name, values[name], maximum, over.severities) for slot, name in wanted.items()
    }


def _named(slot: str, elastic: str) -> str:
    return elastic if slot == ELASTIC[0] else slot


def _row(
    name: str,
    values: Sequence[float] | Mapping[int, float],
    maximum: float,
    severities: Sequence[int] = SEVERITIES,
) -> tuple[float, ...]:
    needed = f"all {len(severities)}" if tuple(severities) != SEVERITIES else "all five"
    if isinstance(values, Mapping):
        absent = [s for s in severities if s not in values]
        if absent:
            raise CertbenchError(
                f"no value at severity {', '.join(map(str, absent))}",
                where=f"corruption errors: {name}",
                remedy=f"a sum over severities needs {needed}",
            )
        row = tuple(float(values[s]) for s in severities)
    else:
        row = tuple(float(value) for value in values)
    if len(row) != len(severities):
        raise CertbenchError(
            f"{len(row)} values",
            where=f"corruption errors: {name}",
            remedy=f"a sum over severities needs {needed}, in ascending order",
        )
    return tuple(_unit(value, name, maximum) for value in row)


def _unit(value: float, name: str, maximum: float = 1.0) -> float:
    if not 0 <= value <= maximum:  # False for NaN too
        raise CertbenchError(
            f"is {value}, not in [0, {maximum:g}]",
            where=f"corruption errors: {name}",
            remedy="errors are fractions; say maximum=100 for scores in percent",
        )
    return float(value)


def _mean(values) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
