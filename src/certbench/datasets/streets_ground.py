"""The ground of the street scenes: which class it is, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_classes import PAVEMENT, ROAD, VEGETATION
from certbench.datasets.streets_geometry import linear
from certbench.datasets.streets_layout import SceneDescription
from certbench.datasets.streets_noise import grain, mottled
from certbench.datasets.streets_surfaces import cover
from certbench.datasets.streets_vectors import mix, single, wrap

ZEBRA = 3.4
"""Length of a zebra crossing along the road in metres."""


@dataclass
class Ground:
    """Visible ground: n pixels.

    Attributes:
        label: Class, uint8 [n].
        albedo: Linear reflectance, float32 [n, 3].
        paint: Share of road paint, float32 [n].
        track: Share of the ground that wheels keep free of snow, float32 [n].
        puddle: Where water gathers and snow lies deep, in [0, 1], float32 [n].
    """

    label: np.ndarray
    albedo: np.ndarray
    paint: np.ndarray
    track: np.ndarray
    puddle: np.ndarray


def classify(description: SceneDescription, x, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class of ground points.

    Args:
        description: The scene.
        x: World x in metres, float array [n].
        z: World z in metres.

    Returns:
        Label uint8 [n]; distance to the right of the road's centre line, metres; and the distance
        behind the nearest kerb (negative on the road), metres.
    """
    road = description.road
    across = road.across(x, z)
    left = across < 0
    edge = np.where(left, np.float32(road.edge(-1)), np.float32(road.edge(1)))
    beyond = np.abs(across) - edge
    width = np.where(left, np.float32(road.pavement[0]), np.float32(road.pavement[1]))
    lawn = np.where(left, road.lawn[0], road.lawn[1]) & (beyond > width)
    if road.junction is not None:
        # The crossing street has kerbs and pavements of its own.
        other = np.abs(z - np.float32(road.junction)) - np.float32(road.junction_width / 2)
        beyond = np.minimum(beyond, other)
        lawn &= other > 2.0
    label = np.where(beyond <= 0, ROAD, np.where(lawn, VEGETATION, PAVEMENT)).astype(np.uint8)
    return label, across, beyond


def ground(description: SceneDescription, camera: Camera, points, depth) -> Ground:
    """Colour and class of visible ground points.

    Args:
        description: The scene.
        camera: The camera (for the size of a pixel on the ground).
        points: World positions, float32 [n, 3], metres.
        depth: Their z-depth, float32 [n], metres.
    """
    x, z = points[:, 0], points[:, 2]
    label, across, beyond = classify(description, x, z)
    foot = np.maximum(depth / np.float32(camera.focal), 1e-4)
    # A pixel covers this much ground along the line of sight.
    foot_along = foot * np.maximum(1, depth / single(camera.position[1]))
    foot_along = np.minimum(foot_along, 1e4)

    offset = single((description.seed % 97) * 1.37)
    spot = _Spot(x, z, across, beyond, foot, foot_along, mottled(x / 3 + offset, z / 3 + offset))
    spot.fine = (mottled(x * 2.3, z * 2.3 + offset) - 0.5) * np.minimum(1, 0.08 / foot_along)
    albedo = np.empty((len(x), 3), np.float32)
    paint, track = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for kind, texture in ((PAVEMENT, _paving), (VEGETATION, _lawn)):
        at = np.flatnonzero(label == kind)
        albedo[at] = texture(description, spot.at(at))
    at = np.flatnonzero(label == ROAD)
    albedo[at], paint[at], track[at] = _asphalt(description, spot.at(at))
    return Ground(label, albedo, paint, track, spot.coarse)


@dataclass
class _Spot:
    """Ground points: place, distance behind the kerb, size of a pixel there, noise."""

    x: np.ndarray
    z: np.ndarray
    across: np.ndarray
    beyond: np.ndarray
    foot: np.ndarray
    foot_along: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def at(self, index: np.ndarray) -> _Spot:
        return _Spot(*(getattr(self, name.name)[index] for name in fields(self)))


def _asphalt(description, p: _Spot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour of the road, share of paint, and share that wheels keep clear."""
    road = description.road
    speckle = grain(np.floor(p.x * 28), np.floor(p.z * 28), 5) - 0.5
    speckle = speckle * np.minimum(1, 0.02 / p.foot_along)
    worn = np.sin(p.across * np.float32(2 * np.pi / road.lane)) ** 2
    grey = 1 + 0.28 * (p.coarse - 0.5) + 0.35 * p.fine + 0.9 * speckle - 0.10 * worn
    patch = grain(np.floor(p.across / 2.3), np.floor(p.z / 6.5), description.seed & 0xFFFF) < 0.10
    grey = grey * np.float32((road.asphalt / 255) ** 2) * (1 - np.float32(0.20) * patch)
    warm = single([1.0, 0.985, 0.96])
    asphalt = grey[:, None] * warm
    if road.cycle_lane:
        strip = cover(p.across - (road.lane * road.lanes - 0.85), 0.75, p.foot)
        strip = strip * _outside_junction(description, p.z)
        asphalt = mix(asphalt, asphalt * single([2.3, 0.85, 0.7]), strip)
    paint, stop = _markings(description, p.across, p.z, p.foot, p.foot_along)
    wear = 0.80 + 0.35 * (p.coarse - 0.5) + 0.5 * p.fine
    asphalt = mix(asphalt, single([0.66, 0.66, 0.63]) * warm, np.clip(paint * wear, 0, 1))
    gutter = cover(p.beyond + 0.16, 0.14, p.foot)
    asphalt = asphalt * (1 - 0.28 * gutter)[:, None]
    track = np.clip(0.25 + 0.9 * worn - 0.35 * (stop > 0), 0, 1)
    return asphalt, paint, track * (np.abs(p.across) < road.lane * road.lanes)


def _paving(description, p: _Spot) -> np.ndarray:
    """Colour of the pavement: slabs in a running bond, and the kerb stone."""
    slab = np.float32(description.road.slab)
    row = np.floor(p.across / slab)
    inner = slab / 2 - 0.02
    joint = np.maximum(
        1 - cover(wrap(p.across, slab) - slab / 2, inner, p.foot),
        1 - cover(wrap(p.z + 0.5 * row * slab, slab) - slab / 2, inner, p.foot_along),
    ) * np.minimum(1, 0.10 / p.foot_along)
    tone = (grain(row, np.floor(p.z / slab), 9) - 0.5) * np.minimum(1, 0.4 / p.foot_along)
    shade = 1 + 0.25 * (p.coarse - 0.5) + 0.3 * p.fine + 0.16 * tone
    stone = linear(description.road.paving) * (shade * (1 - 0.38 * joint))[:, None]
    return mix(stone, single([0.42, 0.41, 0.39]), 0.8 * cover(p.beyond - 0.08, 0.09, p.foot))


def _lawn(description, p: _Spot) -> np.ndarray:
    """Colour of grass."""
    blade = grain(np.floor(p.x * 11), np.floor(p.z * 7), 3) - 0.5
    blade = blade * np.minimum(1, 0.1 / p.foot_along)
    return (
        single([0.105, 0.17, 0.05]) * (0.55 + 0.6 * p.coarse + 0.7 * p.fine + 0.7 * blade)[:, None]
    )


def _outside_junction(description, z):
    road = description.road
    if road.junction is None:
        return 1.0
    return np.abs(z - np.float32(road.junction)) > np.float32(road.junction_width / 2 + 0.3)


def _markings(description, across, z, foot, foot_along):
    """Shares of each pixel that road paint covers: all paint, and stop lines with crossings."""
    road = description.road
    outside = _outside_junction(description, z) * 1.0
    if road.zebra is not None:
        outside = outside * ((z < road.zebra - 1.2) | (z > road.zebra + ZEBRA + 0.4))
    driven = np.float32(road.lane * road.lanes)
    paint = np.zeros_like(across)
    dash = cover(wrap(z, 6.0) - 3.0, 1.5, np.minimum(foot_along, 6))
    if road.centre_style == 1:
        paint = cover(across, 0.07, foot) * dash
    elif road.centre_style == 2:
        paint = cover(across, 0.07, foot)
    elif road.centre_style == 3:
        paint = cover(np.abs(across) - 0.14, 0.06, foot)
    if road.lanes > 1:
        paint = paint + cover(np.abs(across) - np.float32(road.lane), 0.06, foot) * dash
    for side, width in ((-1, road.parking[0]), (1, road.parking[1])):
        if width > 0:
            own = across * side
            rim = cover(own - driven, 0.05, foot)
            bays = cover(wrap(z, 5.8) - 2.9, 0.06, foot_along) * (own > driven)
            paint = paint + np.where(own > 0, np.maximum(rim, bays), 0.0)
    paint = np.minimum(paint, 1) * outside
    stop = np.zeros_like(across)
    if road.zebra is not None:
        inside = cover(z - (road.zebra + ZEBRA / 2), ZEBRA / 2, foot_along)
        stop = inside * cover(wrap(across, 1.0) - 0.5, 0.25, np.minimum(foot, 1))
        stop = stop * (np.abs(across) < driven + 2)
        line = road.zebra - 1.0
    elif road.junction is not None:
        line = road.junction - road.junction_width / 2 - 1.2
    else:
        return paint, stop
    stop = stop + cover(z - line, 0.17, foot_along) * ((across > 0) & (across < driven))
    return np.clip(paint + stop, 0, 1), stop
