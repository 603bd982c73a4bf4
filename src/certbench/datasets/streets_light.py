"""Light in the street scenes: sun and sky for each condition, shadows on the ground, lamps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_classes import BICYCLE, CAR, CONDITIONS, PERSON, VEGETATION
from certbench.datasets.streets_geometry import Primitives
from certbench.datasets.streets_layout import SceneDescription
from certbench.datasets.streets_noise import mottled
from certbench.datasets.streets_random import generator
from certbench.datasets.streets_raster import quad_maps, quad_spans, row_range
from certbench.datasets.streets_vectors import dot, outer, single
from certbench.errors import CertbenchError, did_you_mean

SHADOW_REACH = 70.0
"""Objects farther than this many metres cast no shadow."""


@dataclass(frozen=True)
class Atmosphere:
    """Light and weather of one scene in one condition; colours are linear RGB.

    Attributes:
        condition: Its name.
        sun: Unit vector towards the sun (towards the zenith under an overcast sky).
        sunlight: Irradiance of a surface that faces the sun.
        skylight: Irradiance from above.
        bounce: Irradiance from below.
        zenith: Sky colour overhead.
        horizon: Sky colour at the horizon.
        clouds: Share of the sky under clouds.
        shadow: Darkness of the ground's shadows, in [0, 1].
        extinction: Of the air, 1/m.
        airlight: Colour that the air takes at a great distance.
        wet: Wetness of the ground, in [0, 1].
        snow: Snow cover, in [0, 1].
        dark: Whether lamps are lit.
        exposure: Factor before the tone curve.
        grain: Standard deviation of sensor noise, in grey levels.
        tint: White balance.
    """

    condition: str
    sun: tuple[float, float, float]
    sunlight: tuple[float, float, float]
    skylight: tuple[float, float, float]
    bounce: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    clouds: float
    shadow: float
    extinction: float
    airlight: tuple[float, float, float]
    wet: float
    snow: float
    dark: bool
    exposure: float
    grain: float
    tint: tuple[float, float, float]


def atmosphere(description: SceneDescription, condition: str) -> Atmosphere:
    """Draw the light and weather of a scene.

    Args:
        description: The scene.
        condition: One of :data:`streets_classes.CONDITIONS`.

    Raises:
        CertbenchError: Unknown condition.
    """
    if condition not in CONDITIONS:
        raise CertbenchError(
            f"unknown condition '{condition}'",
            where="streets",
            remedy=did_you_mean(condition, CONDITIONS),
        )
    rng = generator(description.seed, 0x2000 + CONDITIONS.index(condition))
    elevation = math.radians(float(rng.uniform(20, 58)))
    azimuth = float(rng.uniform(0, 2 * math.pi))
    sun = (
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth),
    )
    gain = float(rng.uniform(0.85, 1.15))
    warm = float(rng.normal(0, 0.03))
    tint = (1 + warm, 1.0, 1 - warm)
    strength = float(rng.uniform(0, 1))
    overcast = (0.06, 0.996, 0.06)

    if condition == "clear":
        low = 1 - math.sin(elevation)
        return Atmosphere(
            condition,
            sun=sun,
            sunlight=(1.30, 1.22 - 0.22 * low, 1.08 - 0.45 * low),
            skylight=(0.34, 0.41, 0.52),
            bounce=(0.20, 0.19, 0.17),
            zenith=(0.16, 0.33, 0.68),
            horizon=(0.62, 0.74, 0.88),
            clouds=0.75 * strength,
            shadow=0.95,
            extinction=0.0012,
            airlight=(0.60, 0.70, 0.82),
            wet=0.0,
            snow=0.0,
            dark=False,
            exposure=1.25 * gain,
            grain=1.2,
            tint=tint,
        )
    if condition == "fog":
        air = 0.50 + 0.22 * float(rng.uniform(0, 1))
        return Atmosphere(
            condition,
            sun=overcast,
            sunlight=(0.16, 0.16, 0.16),
            skylight=(0.58, 0.60, 0.63),
            bounce=(0.24, 0.24, 0.24),
            zenith=(air, air, air * 1.02),
            horizon=(air, air, air * 1.01),
            clouds=0.0,
            shadow=0.5,
            extinction=0.022 + 0.045 * strength,
            airlight=(air, air, air * 1.01),
            wet=0.25,
            snow=0.0,
            dark=False,
            exposure=1.15 * gain,
            grain=1.5,
            tint=tint,
        )
    if condition == "rain":
        return Atmosphere(
            condition,
            sun=overcast,
            sunlight=(0.10, 0.10, 0.11),
            skylight=(0.40, 0.43, 0.48),
            bounce=(0.15, 0.15, 0.16),
            zenith=(0.26, 0.29, 0.33),
            horizon=(0.48, 0.51, 0.54),
            clouds=1.0,
            shadow=0.55,
            extinction=0.007 + 0.008 * strength,
            airlight=(0.42, 0.45, 0.48),
            wet=1.0,
            snow=0.0,
            dark=False,
            exposure=1.15 * gain,
            grain=2.0,
            tint=tint,
        )
    if condition == "snow":
        return Atmosphere(
            condition,
            sun=overcast,
            sunlight=(0.14, 0.14, 0.15),
            skylight=(0.56, 0.59, 0.64),
            bounce=(0.40, 0.41, 0.43),
            zenith=(0.55, 0.57, 0.61),
            horizon=(0.66, 0.68, 0.71),
            clouds=0.6,
            shadow=0.45,
            extinction=0.007 + 0.010 * strength,
            airlight=(0.62, 0.64, 0.67),
            wet=0.1,
            snow=0.55 + 0.45 * float(rng.uniform(0, 1)),
            dark=False,
            exposure=1.1 * gain,
            grain=1.8,
            tint=tint,
        )
    return Atmosphere(
        condition,
        sun=overcast,
        sunlight=(0.0, 0.0, 0.0),
        skylight=(0.020, 0.026, 0.045),
        bounce=(0.020, 0.018, 0.016),
        zenith=(0.006, 0.009, 0.020),
        horizon=(0.030, 0.027, 0.032),
        clouds=strength,
        shadow=0.45,
        extinction=0.0018,
        airlight=(0.020, 0.020, 0.026),
        wet=0.3 * float(rng.uniform(0, 1) < 0.4),
        snow=0.0,
        dark=True,
        exposure=1.15 * gain,
        grain=4.5,
        tint=(1.02 + warm, 1.0, 0.96 - warm),
    )


def sky_colour(air: Atmosphere, seed: int, direction: np.ndarray) -> np.ndarray:
    """Radiance of the sky.

    Args:
        air: Light and weather.
        seed: Of the scene, for the clouds.
        direction: Ray directions in world axes, float32 [n, 3], any length.
    """
    length = np.sqrt(dot(direction, direction))
    up = np.maximum(direction[:, 1] / length, 0.0)
    rise = 1 - (1 - np.minimum(up * 1.4, 1)) ** 3
    zenith, horizon = single(air.zenith), single(air.horizon)
    colour = horizon + (zenith - horizon) * rise[:, None]
    if air.clouds > 0:
        offset = single((seed % 113) * 2.1)
        lift = 1 / (up + 0.12)
        x = direction[:, 0] / length * lift
        z = direction[:, 2] / length * lift
        noise = mottled(x * 1.1 + offset, z * 1.1 + offset)
        cover = np.clip((noise - (1 - air.clouds)) * 3.0, 0, 1)
        if air.dark:
            white = horizon * 1.5
        elif air.condition == "clear":
            white = single([0.92, 0.93, 0.95]) * 1.05
        else:
            white = (0.6 * horizon + 0.4 * zenith) * 1.05
        body = 1 - 0.25 * np.clip(noise - 0.55, 0, 1)
        colour = colour + (white * body[:, None] - colour) * (0.9 * cover)[:, None]
    if air.condition == "clear":
        toward = (direction @ single(air.sun)) / length
        glow = np.clip(toward, 0, 1) ** 24
        colour = colour + glow[:, None] * single([0.8, 0.68, 0.45])
    if air.dark:
        glow = (1 - np.minimum(up * 3, 1)) ** 2
        colour = colour + glow[:, None] * single([0.05, 0.036, 0.022])
    return colour


def ground_shadow(scene: Primitives, camera: Camera, air: Atmosphere) -> np.ndarray:
    """Shadows on the ground plane as the camera sees it, ignoring what stands in front.

    Every primitive is projected along the sun's direction onto the ground, where quads stay
    parallelograms and quadrics become ellipses or rectangles.

    Args:
        scene: World primitives.
        camera: The camera.
        air: Gives the sun's direction; under an overcast sky only what is close to the ground
            casts a (contact) shadow.

    Returns:
        Share of the sunlight that is blocked, float32 [H, W].
    """
    lx, ly, lz = air.sun
    overcast = air.condition != "clear"
    project = np.array([[1.0, -lx / ly, 0.0], [0.0, 0.0, 0.0], [0.0, -lz / ly, 1.0]])
    eye = np.asarray(camera.position)

    label = scene.label
    near = np.abs(scene.origin - eye).max(1) < SHADOW_REACH
    lit = ((scene.outward @ np.array(air.sun)) > 0) | (np.abs(scene.outward).sum(1) == 0)
    casts = near & lit
    near_round = np.abs(scene.centre - eye).max(1) < SHADOW_REACH
    if overcast:
        low = np.isin(label, (CAR, PERSON, BICYCLE))
        casts &= low[: scene.quads]
        near_round &= low[scene.quads :]
    leafy = scene.ragged & near_round & (label[scene.quads :] == VEGETATION)
    solid = near_round & ~leafy

    height, width = camera.height, camera.width
    hard = np.zeros((height, width + 1), np.int32)
    soft = np.zeros((height, width + 1), np.int32)

    quads = (
        scene.origin[casts] @ project.T,
        scene.u[casts] @ project.T,
        scene.v[casts] @ project.T,
        scene.insets[casts],
        np.isin(scene.outline[casts], (g.DISC, g.OCTAGON)),
    )
    solid_quads = _flattened(scene.centre[solid], scene.axes[solid], scene.cylinder[solid], project)
    joined = [np.concatenate(pair) for pair in zip(quads, solid_quads, strict=True)]
    _cast(hard, camera, *joined)
    if leafy.any():
        leaves = _flattened(scene.centre[leafy], scene.axes[leafy], scene.cylinder[leafy], project)
        _cast(soft, camera, *leaves)
    dense = np.cumsum(hard[:, :width], axis=1) > 0
    loose = np.cumsum(soft[:, :width], axis=1) > 0
    return np.maximum(dense * 1.0, loose * 0.72).astype(np.float32)


def _flattened(centre, axes, cylinder, project):
    """Shadows of quadrics as quads: inscribed ellipses for ellipsoids, rectangles for cylinders."""
    middle = centre @ project.T
    spread = np.matmul(project, axes)[:, [0, 2], :]
    gram = np.matmul(spread, spread.transpose(0, 2, 1))
    a = np.sqrt(np.maximum(gram[:, 0, 0], 1e-12))
    b = gram[:, 0, 1] / a
    c = np.sqrt(np.maximum(gram[:, 1, 1] - b * b, 1e-12))
    zero = np.zeros(len(a))
    first = np.stack([a, zero, b], axis=1)
    second = np.stack([zero, zero, c], axis=1)
    stem = spread[:, :, 1]
    size = np.maximum(np.sqrt((stem**2).sum(1)), 1e-9)
    across = np.stack([-stem[:, 1], stem[:, 0]], axis=1) / size[:, None]
    half = np.sqrt(((across[:, :, None] * spread[:, :, ::2]).sum(1) ** 2).sum(1))
    long = np.stack([stem[:, 0], zero, stem[:, 1]], axis=1)
    wide = np.stack([across[:, 0] * half, zero, across[:, 1] * half], axis=1)
    first = np.where(cylinder[:, None], long, first)
    second = np.where(cylinder[:, None], wide, second)
    return middle - first - second, 2 * first, 2 * second, np.zeros((len(a), 2)), ~cylinder


def _cast(counts, camera, origin, u, v, insets, disc) -> None:
    """Add the image of flat quads to difference rows: +1 where a run begins, -1 behind its end."""
    rotation, eye = camera.rotation, np.asarray(camera.position)
    origin, u, v = (origin - eye) @ rotation.T, u @ rotation.T, v @ rotation.T
    corners = np.stack([origin, origin + u, origin + v, origin + u + v], axis=1)
    low, high, seen = row_range(corners, camera)
    kept = np.flatnonzero(seen & (high > low))
    maps = quad_maps(origin[kept], u[kept], v[kept])
    spans = quad_spans(maps, insets[kept], disc[kept], (low[kept], high[kept]), camera)
    flat = counts.ravel()
    stride = counts.shape[1]
    np.add.at(flat, spans.row * stride + spans.first, 1)
    np.add.at(flat, spans.row * stride + spans.first + spans.count, -1)


def daylight(air: Atmosphere, normal: np.ndarray, shadow) -> np.ndarray:
    """Irradiance by sun and sky.

    Args:
        air: Light and weather.
        normal: Unit normals, float32 [n, 3].
        shadow: Blocked share of the sunlight, float32 [n] or a number.
    """
    facing = np.maximum(normal @ single(air.sun), 0) * (1 - air.shadow * shadow)
    up = 0.5 + 0.5 * normal[:, 1]
    down = 1 - up
    if air.condition != "clear":
        open_ = 1 - 0.6 * air.shadow * np.reshape(shadow, -1)
    else:
        open_ = 1 - 0.18 * np.reshape(shadow, -1)
    channels = zip(single(air.bounce), single(air.skylight), single(air.sunlight), strict=True)
    return np.stack(
        [(low * down + high * up) * open_ + facing * sun for low, high, sun in channels], axis=-1
    )


def lamplight(description: SceneDescription, camera: Camera, point, normal) -> np.ndarray:
    """Irradiance by street lamps and by the headlights of the camera's own car.

    Args:
        description: The scene.
        camera: The camera.
        point: World positions, float32 [n, 3], metres.
        normal: Unit normals, float32 [n, 3].
    """
    eye = np.asarray(camera.position)
    near = np.argsort(((description.lamps - eye) ** 2).sum(1), kind="stable")[:5]
    lamps = description.lamps[near].astype(np.float32)
    if len(lamps):
        # |p - l|^2 and (l - p) . n for all lamps and points by two matrix products.
        square = dot(point, point) - 2 * (lamps @ point.T) + dot(lamps, lamps)[:, None]
        square = np.maximum(square, 0.01)
        facing = lamps @ normal.T - dot(point, normal)
        facing = np.maximum(facing / np.sqrt(square), 0) + 0.12
        under = np.clip((lamps[:, 1:2] - point[:, 1]) * 0.4, 0, 1)
        warm = (11.0 * facing * under / (square + 6.0)).sum(0)
    else:
        warm = np.zeros(len(point), np.float32)
    total = outer(warm, single([1.0, 0.76, 0.44]))
    eye = single(camera.position) - single([0, 0.75, 0])
    ray = point - eye
    square = dot(ray, ray)
    distance = np.sqrt(square)
    forward = camera.rotation[2].astype(np.float32)
    side = camera.rotation[0].astype(np.float32)
    ahead = np.maximum(ray @ forward, 1e-3)
    swing = (ray @ side) / ahead
    rise = ray[:, 1] / ahead
    beam = np.exp(-((swing / 0.38) ** 2) - (np.maximum(rise + 0.015, -0.05) / 0.055) ** 2)
    facing = np.maximum(-dot(ray, normal) / distance, 0.0)
    total += outer(48 * beam * (0.04 + facing) / (square + 40), single([1.0, 0.95, 0.84]))
    return total
