"""Procedural street scenes with labels, depth and instances, in five conditions.

:func:`render` makes a scene from a seed. :func:`streets_layout.describe` makes its description
alone, and :func:`render_description` renders a description from any camera. Labels, depth and
instances do not depend on the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_classes import CONDITIONS, SIGN, SKY, VEGETATION
from certbench.datasets.streets_ground import ground
from certbench.datasets.streets_layout import SceneDescription, describe
from certbench.datasets.streets_light import (
    Atmosphere,
    atmosphere,
    daylight,
    ground_shadow,
    lamplight,
    sky_colour,
)
from certbench.datasets.streets_noise import mottled
from certbench.datasets.streets_random import generator
from certbench.datasets.streets_raster import GROUND, Visible, look_at
from certbench.datasets.streets_surfaces import surfaces
from certbench.datasets.streets_vectors import dot, single, threefold, tinted
from certbench.datasets.streets_weather import falling, glow, haze, lens, mirrored
from certbench.errors import CertbenchError

SMALLEST = 16
"""Smallest height and width in pixels."""


@dataclass(frozen=True)
class Scene:
    """A rendered street scene.

    Attributes:
        rgb: uint8 [H, W, 3].
        labels: Class indices of :data:`streets_classes.CLASSES`, uint8 [H, W].
        depth: z-depth in metres, float32 [H, W], infinite in the sky.
        instance: Object number from 1, or 0 for ground and sky, int32 [H, W].
        tags: The condition and properties of the layout.
    """

    rgb: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    instance: np.ndarray
    tags: tuple[str, ...]


def render(seed: int, height: int, width: int, condition: str = "clear") -> Scene:
    """Render the scene of a seed.

    Args:
        seed: Integer >= 0. Equal arguments give equal bytes, whatever was rendered before.
        height: Image height in pixels, at least 16; twice as wide as high is intended.
        width: Image width in pixels, at least 16.
        condition: ``clear``, ``fog``, ``night``, ``rain`` or ``snow``.

    Raises:
        CertbenchError: Bad seed, size or condition.
    """
    if height < SMALLEST or width < SMALLEST:
        raise CertbenchError(
            f"image size {height} x {width} is too small",
            where="streets",
            remedy=f"at least {SMALLEST} x {SMALLEST}",
        )
    description = describe(seed)
    return render_description(description, description.camera(height, width), condition)


def render_description(
    description: SceneDescription,
    camera: Camera,
    condition: str = "clear",
    supersample: int = 1,
) -> Scene:
    """Render a scene description from a camera.

    Args:
        description: The scene.
        camera: Where from, and how large.
        condition: Weather and light.
        supersample: Odd number of samples per pixel and axis for the colours; labels, depth and
            instances always belong to the ray through the pixel's centre.

    Raises:
        CertbenchError: Unknown condition or even ``supersample``.
    """
    if supersample < 1 or supersample % 2 == 0:
        raise CertbenchError(
            f"supersample is {supersample}", where="streets", remedy="expected an odd number >= 1"
        )
    air = atmosphere(description, condition)
    fine = camera.moved(height=camera.height * supersample, width=camera.width * supersample)
    seen = look_at(description.primitives, fine)
    radiance, light, labels = _shade(description, seen, air)
    radiance = haze(radiance, seen.depth, air) + light * threefold(
        np.exp(-np.float32(air.extinction) * np.where(np.isinf(seen.depth), 0, seen.depth))
    )
    middle = slice(supersample // 2, None, supersample)
    depth = seen.depth[middle, middle]
    if supersample > 1:
        radiance, light = (
            image.reshape(camera.height, supersample, camera.width, supersample, 3).mean((1, 3))
            for image in (radiance, light)
        )
    rgb = _develop(description, radiance, light, depth, air, supersample == 1)
    primitive = seen.primitive[middle, middle]
    instance = np.where(
        primitive >= 0, description.primitives.instance[np.maximum(primitive, 0)], 0
    )
    return Scene(
        rgb,
        np.ascontiguousarray(labels[middle, middle]),
        np.ascontiguousarray(depth),
        instance.astype(np.int32),
        (condition, *description.tags),
    )


def world_points(seen: Visible) -> tuple[np.ndarray, np.ndarray]:
    """Ray directions in world axes and visible points, float32 [H * W, 3] each.

    The direction has z-depth 1; points in the sky are placed on the near side of infinity.
    """
    camera = seen.camera
    rotation = camera.rotation.astype(np.float32)
    columns = camera.columns().astype(np.float32)
    rows = camera.rows().astype(np.float32)[:, None]
    depth = np.minimum(seen.depth, np.float32(1e5))
    direction = np.empty((*depth.shape, 3), np.float32)
    points = np.empty((*depth.shape, 3), np.float32)
    # Channel by channel: broadcasting three numbers along the last axis is several times slower.
    for i, place in enumerate(single(camera.position)):
        ray = columns * rotation[0, i] + rows * rotation[1, i] + rotation[2, i]
        direction[..., i] = ray
        points[..., i] = ray * depth + place
    return direction.reshape(-1, 3), points.reshape(-1, 3)


def _shade(
    description: SceneDescription, seen: Visible, air: Atmosphere
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear radiance without haze and own light, own light, and labels."""
    scene, camera = description.primitives, seen.camera
    height, width = camera.height, camera.width
    direction, points = world_points(seen)
    flat = seen.primitive.ravel()
    depth = seen.depth.ravel()
    radiance = np.empty((height * width, 3), np.float32)
    light = np.zeros((height * width, 3), np.float32)
    labels = np.full(height * width, SKY, np.uint8)

    sky = np.flatnonzero(flat < GROUND)
    radiance[sky] = sky_colour(air, description.seed, direction.take(sky, 0))

    made = surfaces(scene, seen, points)
    labels[made.pixel] = scene.label[made.primitive]
    albedo = made.albedo
    if air.snow:
        x, y, z = made.point.T
        drift = mottled(x * 1.3, z * 1.3 + y, smooth=False)
        lying = np.clip((made.normal[:, 1] - 0.62 + 0.5 * drift * air.snow) * 4, 0, 1)
        lying *= 0.5 + 0.5 * air.snow
        albedo = albedo + (single([0.84, 0.86, 0.90]) - albedo) * lying[:, None]
    irradiance = daylight(air, made.normal, 0.0)
    if air.dark:
        irradiance = irradiance + lamplight(description, camera, made.point, made.normal)
        shiny = scene.label[made.primitive] == SIGN
        irradiance[shiny] *= 1.6
    shine = made.gloss[:, None] * (0.7 * single(air.horizon) + 0.3 * single(air.zenith))
    radiance[made.pixel] = albedo * irradiance + shine
    light[made.pixel] = made.signal + (made.lamp if air.dark else _dim(made.lamp, air))

    below = np.flatnonzero(flat == GROUND)
    spots = points.take(below, 0)
    floor = ground(description, camera, spots, depth[below])
    labels[below] = floor.label
    shadow = ground_shadow(scene, camera, air).ravel()
    if camera.height > 48:
        shadow = lens(shadow.reshape(height, width)[..., None]).ravel()
    albedo = floor.albedo
    if air.wet:
        albedo = albedo * np.float32(1 - 0.42 * air.wet)
    if air.snow:
        patchy = np.clip((floor.puddle - 0.9 + 0.9 * air.snow) * 3 + 0.3, 0, 1)
        cover = np.clip(1.25 - 1.1 * floor.track, 0, 1) * (0.35 + 0.65 * patchy)
        cover = np.minimum(cover * (0.6 + 0.6 * air.snow), 0.97)
        albedo = albedo + (single([0.80, 0.82, 0.86]) - albedo) * cover[:, None]
    up = np.broadcast_to(single([0, 1, 0]), (len(below), 3))
    irradiance = daylight(air, up, shadow[below])
    if air.dark:
        irradiance = irradiance + lamplight(description, camera, spots, up) * (
            1 - 0.5 * shadow[below, None]
        )
    radiance[below] = albedo * irradiance

    if air.wet:
        on_ground = (flat == GROUND).reshape(height, width)
        image = mirrored((radiance + light).reshape(height, width, 3), on_ground)
        ray = direction.take(below, 0)
        graze = 1 - np.abs(ray[:, 1]) / np.sqrt(dot(ray, ray))
        fresnel = 0.03 + 0.75 * graze**5
        wet = air.wet * np.clip(floor.puddle * 2.2 - 0.5, 0.25, 1) * fresnel
        wet *= floor.label != VEGETATION
        radiance[below] += (image - radiance[below]) * wet[:, None]
    return (
        radiance.reshape(height, width, 3),
        light.reshape(height, width, 3),
        labels.reshape(height, width),
    )


def _dim(lamp: np.ndarray, air: Atmosphere) -> np.ndarray:
    """Lamps by day: headlights are lit in bad weather, windows hardly show."""
    if air.condition == "clear":
        return np.zeros_like(lamp)
    # Headlights and tail lights are the lamps whose red exceeds 1.5.
    return lamp * (np.float32(0.22) * (lamp[:, :1] > 1.5))


def _develop(
    description: SceneDescription,
    radiance: np.ndarray,
    light: np.ndarray,
    depth: np.ndarray,
    air: Atmosphere,
    soften: bool,
) -> np.ndarray:
    """From linear light to an 8-bit picture: glow, exposure, tone curve, drops, noise."""
    rng = generator(description.seed, 0x3000 + CONDITIONS.index(air.condition))
    if air.condition != "clear":
        radiance = radiance + glow(light)
    if soften:
        radiance = lens(radiance)
    display = tinted(radiance, np.float32(air.exposure) * single(air.tint))
    # In place: sqrt(1.08 (1 - exp(-1.15 max(x, 0)))).
    np.maximum(display, 0, out=display)
    np.negative(display, out=display)
    display *= 1.15
    np.exp(display, out=display)
    np.subtract(1, display, out=display)
    display *= 1.08
    np.sqrt(display, out=display)
    levels = falling(display, depth, air, rng) * 255
    noise = rng.standard_normal(display.shape, dtype=np.float32)
    noise *= np.float32(air.grain)
    levels += noise
    np.rint(levels, out=levels)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)
