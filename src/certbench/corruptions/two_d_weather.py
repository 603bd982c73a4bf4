"""Snow, frost, fog and spatter, with the parameters of any table.

Every function takes an image (uint8 [H, W, 3]), the entry of its type in
:mod:`certbench.corruptions.severity` and the generator of the image, and returns uint8 [H, W, 3].
Values are truncated to 8 bit, as in the published benchmark (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from certbench.corruptions.imagecorruptions_adapter import (
    frost_photographs,
    gaussian,
    package,
)

WATER = (175 / 255.0, 238 / 255.0, 238 / 255.0)
MUD = (63 / 255.0, 42 / 255.0, 20 / 255.0)


def snow(image: np.ndarray, entry: tuple, rng: np.random.RandomState) -> np.ndarray:
    """Whiten the image and add a layer of flakes, zoomed and blurred along a random direction."""
    import cv2

    mean, std, zoom, threshold, radius, sigma, mix = entry
    x = image.astype(np.float32) / 255.0
    height, width = x.shape[:2]
    layer = rng.normal(size=(height, width), loc=mean, scale=std)
    layer = package().clipped_zoom(layer[..., np.newaxis], zoom)
    layer[layer < threshold] = 0
    layer = np.clip(layer.squeeze(), 0, 1)
    angle = rng.uniform(-135, -45)
    layer = package()._motion_blur(layer, radius=radius, sigma=sigma, angle=angle)
    layer = np.round(layer * 255).astype(np.uint8) / 255.0
    layer = layer[:height, :width, np.newaxis]

    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).reshape(height, width, 1)
    x = mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 0.5)
    return (np.clip(x + layer + np.rot90(layer, k=2), 0, 1) * 255).astype(np.uint8)


def frost(image: np.ndarray, entry: tuple, rng: np.random.RandomState) -> np.ndarray:
    """Blend with a random crop of one of five photographs of frost."""
    weight, frost_weight, scale = entry
    height, width = image.shape[:2]
    photograph = frost_photograph(rng.randint(5), scale, height, width)
    top = rng.randint(0, photograph.shape[0] - height)
    left = rng.randint(0, photograph.shape[1] - width)
    crop = photograph[top : top + height, left : left + width]
    return np.clip(weight * image + frost_weight * crop, 0, 255).astype(np.uint8)


def fog(image: np.ndarray, entry: tuple, rng: np.random.RandomState) -> np.ndarray:
    """Add a diamond-square fractal, scaled so that the largest value stays."""
    strength, decay = entry
    height, width = image.shape[:2]
    x = image / 255.0
    largest = x.max()
    side = 1 << (max(height, width) - 1).bit_length()
    fractal = package(rng).plasma_fractal(mapsize=side, wibbledecay=decay)
    x += strength * fractal[:height, :width, np.newaxis]
    return (np.clip(x * largest / (largest + strength), 0, 1) * 255).astype(np.uint8)


def spatter(image: np.ndarray, entry: tuple, rng: np.random.RandomState) -> np.ndarray:
    """Drops of water, or splashes of mud, where smoothed noise exceeds a threshold."""
    mean, std, sigma, threshold, gain, mud = entry
    layer = rng.normal(size=image.shape[:2], loc=mean, scale=std)
    layer = gaussian(layer, sigma)
    layer[layer < threshold] = 0
    x = image.astype(np.float32) / 255.0
    if mud:
        mask = gaussian(np.where(layer > threshold, 1, 0).astype(np.float32), gain)
        mask[mask < 0.8] = 0
        mask = mask[..., np.newaxis]
        x *= 1 - mask
        return (np.clip(x + np.array(MUD) * mask, 0, 1) * 255).astype(np.uint8)
    water = refraction(layer)
    largest = water.max()
    if largest == 0:
        # No drop on this image; the published code divides 0 by 0 here.
        return image.copy()
    water /= largest
    water *= gain
    color = np.array(WATER, dtype=np.float32)
    return (np.clip(x + water[..., np.newaxis] * color, 0, 1) * 255).astype(np.uint8)


def refraction(layer: np.ndarray) -> np.ndarray:
    """Brightness of the drops in ``layer``: bright towards one side of their rims."""
    import cv2

    layer = (layer * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
    _, distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    distance = cv2.filter2D(distance, cv2.CV_8U, kernel)
    return layer * cv2.blur(distance, (3, 3)).astype(np.float32)


@lru_cache(maxsize=10)
def frost_photograph(index: int, scale: float, height: int, width: int) -> np.ndarray:
    """A photograph (RGB), scaled by ``scale``, or to exceed the image by a tenth if too small.

    The package enlarges by 1.1 whatever the size (``scale`` 1.1); the scripts for 299, 64 and 32
    pixels scale by 1, 0.3 and 0.2. Decoded and scaled once per image size.
    """
    import cv2

    path = frost_photographs()[index]
    photograph = cv2.imread(str(path))
    if photograph is None:
        raise FileNotFoundError(path)
    rows, columns = photograph.shape[:2]
    needed = max(height / rows, width / columns)
    if scale > 1:
        photograph = _resized(photograph, scale * max(1, needed))
    elif int(rows * scale) <= height or int(columns * scale) <= width:
        photograph = _resized(photograph, 1.1 * needed)
    elif scale < 1:
        photograph = cv2.resize(photograph, (0, 0), fx=scale, fy=scale)
    return np.ascontiguousarray(photograph[..., ::-1])


def _resized(photograph: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    rows, columns = photograph.shape[:2]
    return cv2.resize(
        photograph,
        dsize=(int(np.ceil(columns * factor)), int(np.ceil(rows * factor))),
        interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA,
    )
