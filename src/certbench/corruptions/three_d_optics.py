"""3D corruptions of light and lens in closed form: fog, flash, depth of field.

Formulas and constants: Kar et al., CVPR 2022, and the released ImageNet-3DCC. Fog takes its
airlight from the image alone, never from the batch.
"""

from __future__ import annotations

import numpy as np

FOG = (4.0, 8.0, 12.0, 16.0, 20.0)
"""Extinction per unit of relative depth."""

FLASH = (2.4, 1.4, 0.9, 0.6, 0.4)

HALF_DISTANCE = 0.5
"""Relative depth at which a flash has fallen to a half."""

LAYERS = 8
"""Number of depth layers between which blurred copies are blended."""


def fog_3d(image: np.ndarray, depth: np.ndarray, severity: int) -> np.ndarray:
    """Fade to the image's mean with distance: ``t x + (1 - t) A``, ``t = exp(-a d)``.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        depth: Relative depth, float32 [H, W].
        severity: 1 to 5.
    """
    through = np.exp(-np.float32(FOG[severity - 1]) * depth)[..., None]
    airlight = image.mean(dtype=np.float64)
    return through * image + (1 - through) * np.float32(airlight)


def flash(image: np.ndarray, reshading: np.ndarray, severity: int) -> np.ndarray:
    """Brighten what a light at the camera would light: ``min(1, x (1 + r / k))``.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        reshading: Share of the light that each pixel returns, float [H, W] in [0, 1].
        severity: 1 to 5.
    """
    returned = image * np.asarray(reshading, np.float32)[..., None]
    return np.minimum(image + returned / np.float32(FLASH[severity - 1]), 1)


def reshading_from_depth(
    depth: np.ndarray, focal: float, half_distance: float = HALF_DISTANCE
) -> np.ndarray:
    """Lambertian shading of the depth map's surface under a light at the camera.

    Args:
        depth: Relative depth, float32 [H, W].
        focal: Focal length in pixels.
        half_distance: Relative depth at which the light has fallen to a half.

    Returns:
        ``max(0, cos) D^2 / (D^2 + z^2)``, float32 [H, W].
    """
    height, width = depth.shape
    z = depth.astype(np.float64)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    ray = np.stack([*np.meshgrid(x, y), np.ones_like(z)], axis=-1)
    point = ray * z[..., None]
    down = np.gradient(point, axis=0) if height > 1 else np.zeros_like(point)
    right = np.gradient(point, axis=1) if width > 1 else np.zeros_like(point)
    normal = np.cross(down, right)
    length = np.linalg.norm(normal, axis=-1) * np.linalg.norm(ray, axis=-1)
    cosine = -(normal * ray).sum(-1) / np.maximum(length, 1e-30)
    # The normal that faces the camera has a negative product with the ray; its sign depends on the
    # handedness of the image axes only, so the cross product is ordered to give it.
    return (np.maximum(cosine, 0) * half_distance**2 / (half_distance**2 + z * z)).astype(
        np.float32
    )


def focus_radii(
    depth: np.ndarray, near: bool, severity: int, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Depth layers and blur radii of a lens that is focused near or far.

    Args:
        depth: Relative depth, float32 [H, W].
        near: Focus on the nearest depth; otherwise on the 7/8 quantile.
        severity: 1 to 5.
        scale: Factor on the radii.

    Returns:
        The nine layer borders and the nine radii in pixels, float32 [9] each.
    """
    depth = depth.astype(np.float32)
    borders = np.quantile(depth, np.linspace(0, 1, LAYERS + 1, dtype=np.float32))
    borders = borders.astype(np.float32)
    borders[0] -= np.float32(1e-4)
    borders[-1] += np.float32(1e-4)
    focus = borders[0] if near else borders[-2]
    aperture = severity + (2.0 if near else 0.5)
    return borders, scale * aperture * np.abs(borders - focus) / borders


def depth_of_field(
    image: np.ndarray,
    depth: np.ndarray,
    near: bool,
    severity: int,
    scale: float = 1.0,
    max_radius: float | None = None,
) -> np.ndarray:
    """Blur by the circle of confusion, blended between blurred copies at nine depths.

    A blurred foreground does not spread over a sharp background, and the background bleeds over
    foreground edges; that belongs to the benchmark.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        depth: Relative depth, float32 [H, W], positive.
        near: Focus near (blur the distance) or far.
        severity: 1 to 5.
        scale: Factor on the radii, for images of another width than the benchmark's.
        max_radius: Largest radius in pixels, or None.
    """
    borders, radii = focus_radii(depth, near, severity, scale)
    if max_radius is not None:
        radii = np.minimum(radii, max_radius)
    layer = np.clip(np.searchsorted(borders, depth, side="left"), 1, LAYERS)
    low, high = borders[layer - 1], borders[layer]
    span = np.where(high > low, high - low, np.float32(1))
    share = np.clip((depth - low) / span, 0, 1)
    first, second = 1 - share**2, 1 - (1 - share) ** 2
    total = first + second
    first, second = first / total, second / total
    blend = np.zeros(image.shape, np.float32)
    for i in range(LAYERS + 1):
        weight = np.where(layer == i + 1, first, 0) + np.where(layer == i, second, 0)
        if weight.any():
            blend += weight[..., None] * _blurred(image, float(radii[i]))
    return blend


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """Separable Gaussian of standard deviation ``radius`` cut at 1.5 of it, edges repeated."""
    if radius < 0.1:
        return image
    taps = int(3 * radius)
    taps += 1 - taps % 2
    if taps == 1:
        return image
    from scipy.ndimage import correlate1d

    at = np.arange(taps) - taps // 2
    kernel = np.exp(-(at**2) / (2 * radius**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        image = correlate1d(image, kernel, axis=axis, mode="nearest")
    return image
