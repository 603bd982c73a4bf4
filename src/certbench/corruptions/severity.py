"""Names and severity tables of the 2D common corruptions.

Parameters were tuned per image size, so there are four tables: ``imagenet`` (224 pixels),
``imagenet299`` (Inception input), ``tiny64`` (Tiny-ImageNet-C) and ``cifar32`` (CIFAR-10/100-C).
A table is always chosen by its name and never guessed from the size of an image.

Source: Hendrycks and Dietterich, ICLR 2019, and the scripts published with it
(github.com/hendrycks/robustness); the 224 entry of ``elastic_transform`` is that of the package
imagecorruptions (Michaelis et al. 2019, arXiv 1907.07484). Planning reads this module: it imports
nothing heavy.
"""

from __future__ import annotations

from typing import Any

from certbench.errors import CertbenchError, did_you_mean

BENCHMARK_15 = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The types that the mean corruption error averages over, in the order of the paper."""

EXTRA_4 = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The types set aside for validation (tuning a defence), never part of the mean."""

NAMES = (*BENCHMARK_15, *EXTRA_4, "elastic_transform_imagenet_c")
"""All types. ``elastic_transform_imagenet_c`` is the recipe of the published ImageNet-C files
(affine and elastic); ``elastic_transform`` under the table ``imagenet`` is that of the package
imagecorruptions (elastic only). One mean corruption error uses one of the two. Under the other
tables, for which the package has no recipe, both names mean the published one."""

DETERMINISTIC = frozenset(
    {
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    }
)
"""Types whose result does not depend on the seed."""

GROUPS = {
    "noise": BENCHMARK_15[0:3],
    "blur": BENCHMARK_15[3:7],
    "weather": BENCHMARK_15[7:11],
    "digital": BENCHMARK_15[11:15],
    "extra": EXTRA_4,
}

SEVERITY_TABLES = ("imagenet", "imagenet299", "tiny64", "cifar32")
SEVERITIES = (1, 2, 3, 4, 5)

_SNOW_224 = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_ZOOM_224 = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
_ZOOM_SMALL = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
_BRIGHTNESS_224 = (0.1, 0.2, 0.3, 0.4, 0.5)
_CONTRAST_224 = (0.4, 0.3, 0.2, 0.1, 0.05)
_SATURATE_224 = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))


def _elastic(size: int, multiples: tuple[tuple[float, float, float], ...]) -> tuple:
    """Entries (alpha, sigma, affine) in pixels, from multiples of the image size."""
    return tuple(tuple(size * multiple for multiple in entry) for entry in multiples)


# The published script multiplies by 244, not 224, and the published files were made with it.
_ELASTIC_LARGE = (
    (2, 0.7, 0.1),
    (2, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
)
_ELASTIC_64 = _elastic(
    64,
    ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
)
_ELASTIC_32 = _elastic(
    32,
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
)

# Meaning of the entries, where they have several: glass_blur (sigma, delta, iterations);
# defocus_blur (radius, alias sigma); motion_blur (radius, sigma); zoom_blur (stop, step) of the
# factors arange(1, stop, step); snow (mean, std, zoom, threshold, blur radius, blur sigma, mix);
# frost (image weight, photograph weight, scale of the photograph); fog (strength, decay); spatter
# (mean, std, sigma, threshold, gain, mud); saturate (factor, added); elastic_transform_imagenet_c
# (alpha, sigma, affine) in pixels; elastic_transform of the package: amplitude.
TABLES: dict[str, dict[str, tuple]] = {
    "imagenet": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
        "gaussian_blur": (1, 2, 3, 4, 6),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": _ZOOM_224,
        "snow": _SNOW_224,
        "frost": (
            (1, 0.4, 1.1),
            (0.8, 0.6, 1.1),
            (0.7, 0.7, 1.1),
            (0.65, 0.7, 1.1),
            (0.6, 0.75, 1.1),
        ),
        "fog": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        "brightness": _BRIGHTNESS_224,
        "contrast": _CONTRAST_224,
        "elastic_transform": (12.5, 16.25, 21.25, 25.0, 30.0),
        "elastic_transform_imagenet_c": _elastic(244, _ELASTIC_LARGE),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (25, 18, 15, 10, 7),
        "spatter": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "saturate": _SATURATE_224,
    },
    "imagenet299": {
        "gaussian_noise": (0.09, 0.13, 0.19, 0.27, 0.40),
        "shot_noise": (50, 20, 10, 5, 3),
        "impulse_noise": (0.04, 0.07, 0.10, 0.18, 0.28),
        "speckle_noise": (0.16, 0.21, 0.36, 0.46, 0.61),
        "gaussian_blur": (1.5, 2.5, 3.5, 4.5, 6.5),
        "glass_blur": ((0.8, 1, 3), (1, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)),
        "defocus_blur": ((4, 0.1), (5, 0.5), (7, 0.5), (10, 0.5), (12, 0.5)),
        "motion_blur": ((12, 4), (17, 6), (17, 9), (17, 13), (22, 16)),
        "zoom_blur": _ZOOM_224,
        "snow": _SNOW_224,
        "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        "fog": ((1.5, 2), (2.0, 2), (2.5, 1.8), (2.5, 1.6), (3.0, 1.5)),
        "brightness": _BRIGHTNESS_224,
        "contrast": _CONTRAST_224,
        "elastic_transform": _elastic(360, _ELASTIC_LARGE),
        "elastic_transform_imagenet_c": _elastic(360, _ELASTIC_LARGE),
        "pixelate": (0.5, 0.4, 0.3, 0.25, 0.2),
        "jpeg_compression": (23, 16, 13, 8, 5),
        "spatter": (
            (0.65, 0.3, 4, 0.69, 0.9, 0),
            (0.65, 0.3, 3.5, 0.68, 0.9, 0),
            (0.65, 0.3, 3, 0.68, 0.8, 0),
            (0.65, 0.3, 1.2, 0.65, 1.8, 1),
            (0.67, 0.4, 1.2, 0.65, 1.8, 1),
        ),
        "saturate": _SATURATE_224,
    },
    "tiny64": {
        "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
        "shot_noise": (250, 100, 50, 30, 15),
        "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
        "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
        "gaussian_blur": (0.5, 0.75, 1, 1.25, 1.5),
        "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "zoom_blur": _ZOOM_SMALL,
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "frost": (
            (1, 0.3, 0.3),
            (0.9, 0.4, 0.3),
            (0.8, 0.45, 0.3),
            (0.75, 0.5, 0.3),
            (0.7, 0.55, 0.3),
        ),
        "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "brightness": _BRIGHTNESS_224,
        "contrast": _CONTRAST_224,
        "elastic_transform": _ELASTIC_64,
        "elastic_transform_imagenet_c": _ELASTIC_64,
        "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
        "jpeg_compression": (65, 58, 50, 40, 25),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    },
    "cifar32": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": _ZOOM_SMALL,
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": (
            (1, 0.2, 0.2),
            (1, 0.3, 0.2),
            (0.9, 0.4, 0.2),
            (0.85, 0.4, 0.2),
            (0.75, 0.45, 0.2),
        ),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": _ELASTIC_32,
        "elastic_transform_imagenet_c": _ELASTIC_32,
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": (80, 65, 58, 50, 40),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    },
}


def check(corruption: str, severity: int, severity_table: str, where: str = "corruption") -> None:
    """Refuse an unknown type, severity or table.

    Args:
        corruption: One of :data:`NAMES`.
        severity: 1 (mild) to 5 (severe).
        severity_table: One of :data:`SEVERITY_TABLES`.
        where: Prefix for messages, for example ``config: variants.snow3``.

    Raises:
        CertbenchError: With the nearest spelling and the choices.
    """
    if corruption not in NAMES:
        raise CertbenchError(
            f"unknown corruption {corruption!r}",
            where=where,
            remedy=did_you_mean(corruption, NAMES),
        )
    if severity_table not in SEVERITY_TABLES:
        raise CertbenchError(
            f"unknown severity table {severity_table!r}",
            where=where,
            remedy=did_you_mean(severity_table, SEVERITY_TABLES),
        )
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise CertbenchError(
            f"severity is {severity!r}", where=where, remedy="expected an integer from 1 to 5"
        )


def entry(corruption: str, severity: int, severity_table: str) -> Any:
    """The parameters of a type at a severity (a number, or a tuple described above).

    Raises:
        CertbenchError: Unknown type, severity or table.
    """
    check(corruption, severity, severity_table)
    return TABLES[severity_table][corruption][severity - 1]
