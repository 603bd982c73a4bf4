"""Textures of the objects in the street scenes: colour, own light and gloss at visible points.

Patterns are functions of position on the surface and of the object's key. Where a pattern is finer
than a pixel it fades to its mean, so that the picture does not flicker between sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_geometry import Primitives, linear
from certbench.datasets.streets_noise import grain, mottled
from certbench.datasets.streets_raster import Visible
from certbench.datasets.streets_vectors import dot, mix, single, wrap


@dataclass
class Surface:
    """Visible object points: n pixels.

    Attributes:
        pixel: Flat pixel index, int64 [n].
        primitive: Primitive index, int32 [n].
        point: World position in metres, float32 [n, 3].
        normal: Unit normal on the visible side, float32 [n, 3].
        albedo: Linear reflectance, float32 [n, 3].
        lamp: Light given off by lamps, signals and windows after dark, float32 [n, 3].
        signal: Light given off at all hours, float32 [n, 3].
        gloss: Share of the sky that is mirrored, float32 [n].
    """

    pixel: np.ndarray
    primitive: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    lamp: np.ndarray
    signal: np.ndarray
    gloss: np.ndarray


@dataclass
class _Patch:
    """Points of one material: texture coordinates, sizes in metres, and the primitive's looks."""

    s: np.ndarray
    t: np.ndarray
    local: np.ndarray
    length: np.ndarray
    height: np.ndarray
    foot: np.ndarray
    foot_along: np.ndarray
    colour: np.ndarray
    params: np.ndarray
    key: np.ndarray
    point: np.ndarray


def surfaces(scene: Primitives, seen: Visible, points: np.ndarray) -> Surface:
    """Colour every visible object point.

    Args:
        scene: World primitives.
        seen: What the camera sees.
        points: World positions of all pixels, float32 [H * W, 3].
    """
    flat = seen.primitive.ravel()
    pixel = np.flatnonzero(flat >= 0)
    primitive = flat[pixel]
    local = seen.local.reshape(-1, 3).take(pixel, 0)
    point = points.take(pixel, 0)
    toward = np.asarray(seen.camera.position, np.float32) - point
    normal = _normals(scene, primitive, local)
    slant = dot(normal, toward)
    normal *= np.where(slant < 0, np.float32(-1), np.float32(1))[:, None]
    distance = np.sqrt(dot(toward, toward))
    cosine = np.maximum(np.abs(slant) / np.maximum(distance, 1e-6), 0.04)
    foot = seen.depth.ravel()[pixel] / np.float32(seen.camera.focal)
    lengths = np.sqrt(dot(scene.u, scene.u)).astype(np.float32)
    heights = np.sqrt(dot(scene.v, scene.v)).astype(np.float32)

    made = Surface(
        pixel,
        primitive,
        point,
        normal,
        albedo=scene.colour.take(primitive, 0),
        lamp=np.zeros((len(pixel), 3), np.float32),
        signal=np.zeros((len(pixel), 3), np.float32),
        gloss=np.zeros(len(pixel), np.float32),
    )
    material = scene.material[primitive]
    material[material == g.SKYLINE] = g.FACADE
    order = np.argsort(material, kind="stable")
    bounds = np.searchsorted(material[order], np.arange(len(_PAINTERS) + 1))
    for number, painter in enumerate(_PAINTERS):
        at = order[bounds[number] : bounds[number + 1]]
        if not len(at):
            continue
        p = primitive[at]
        quad = np.minimum(p, scene.quads - 1)
        patch = _Patch(
            s=local[at, 0],
            t=local[at, 1],
            local=local.take(at, 0),
            length=lengths[quad],
            height=heights[quad],
            foot=foot[at],
            foot_along=foot[at] / cosine[at],
            colour=made.albedo.take(at, 0),
            params=scene.params.take(p, 0),
            key=scene.key[p],
            point=point.take(at, 0),
        )
        albedo, lamp, signal, gloss = painter(patch)
        made.albedo[at] = albedo
        if lamp is not None:
            made.lamp[at] = lamp
        if signal is not None:
            made.signal[at] = signal
        made.gloss[at] = gloss
    return made


def _normals(scene: Primitives, primitive, local) -> np.ndarray:
    outward = np.cross(scene.u, scene.v)
    outward /= np.sqrt(dot(outward, outward))[:, None]
    normal = np.empty((len(primitive), 3), np.float32)
    is_flat = primitive < scene.quads
    flat, round_ = np.flatnonzero(is_flat), np.flatnonzero(~is_flat)
    normal[flat] = outward.astype(np.float32).take(primitive[flat], 0)
    which = primitive[round_] - scene.quads
    # Few of the round primitives are visible; only theirs are inverted.
    visible = np.zeros(len(scene.axes), bool)
    visible[which] = True
    turn = np.linalg.inv(scene.axes[visible]).transpose(0, 2, 1).astype(np.float32, order="C")
    turn[scene.cylinder[visible], :, 1] = 0
    rows = turn.take((np.cumsum(visible) - 1)[which], 0)
    bent = np.einsum("nij,nj->ni", rows, local.take(round_, 0))
    normal[round_] = bent / np.sqrt(dot(bent, bent))[:, None]
    return normal


def cover(distance, half, foot):
    """Share of a pixel of width ``foot`` inside a band |x| < half, its centre at ``distance``."""
    inner = np.clip((half - np.abs(distance)) / foot + 0.5, 0, 1)
    return inner * np.minimum(1.0, 2 * half / foot)


def _tint(display) -> np.ndarray:
    return linear(np.array(display))


def _plain(p: _Patch):
    return p.colour * (0.94 + 0.12 * grain_at(p))[:, None], None, None, 0.0


def grain_at(p: _Patch):
    """Fine noise at the points of a patch."""
    return mottled(p.point[:, 0] * 3 + p.point[:, 1], p.point[:, 2] * 3 - p.point[:, 1], False)


def _facade(p: _Patch):
    storey, bay = np.maximum(p.params[:, 0], 2.5), np.maximum(p.params[:, 1], 1.5)
    share, style = p.params[:, 2], p.params[:, 3].astype(np.int64)
    shop, finish = style % 2 == 1, style // 2
    x, y = p.s * p.length, p.t * p.height
    fine_x, fine_y = np.maximum(p.foot_along, 1e-3), np.maximum(p.foot, 1e-3)

    phase = (p.key & 0xFF).astype(np.float32)
    dirt = mottled(x / 3 + phase, y / 3, False) - 0.5
    wall = p.colour * (1 + 0.22 * dirt)[:, None]
    course = cover(wrap(y, 0.28) - 0.14, 0.10, fine_y * 1.5)
    wall = wall * np.where(finish == 1, 0.72 + 0.36 * course, np.float32(1))[:, None]

    ground = np.where(shop, np.float32(3.7), np.float32(0.7))
    floors = np.floor((p.height - ground - 0.5) / storey)
    level = np.floor((y - ground) / storey)
    up = y - ground - (level + 0.5) * storey
    cells = np.maximum(np.floor(p.length / bay), 1)
    margin = (p.length - cells * bay) / 2
    cell = np.floor((x - margin) / bay)
    across = x - margin - (cell + 0.5) * bay
    valid = (level >= 0) & (level < floors) & (cell >= 0) & (cell < cells)
    half, tall = share * bay / 2, 0.30 * storey
    pane = valid * cover(across, half, fine_x) * cover(up, tall, fine_y)
    frame = valid * cover(across, half + 0.11, fine_x) * cover(up, tall + 0.13, fine_y)
    cross = np.maximum(cover(across, 0.035, fine_x), cover(up - 0.2 * tall, 0.03, fine_y))

    dice = grain(cell, level, p.key)
    wall = mix(wall, np.minimum(wall * 1.35 + 0.08, 0.8), frame - pane)
    ledge = cover(up + 0.5 * storey, 0.09, fine_y) * (finish == 2) * (level >= 0)
    wall = mix(wall, wall * 1.3 + 0.03, ledge)
    glass = _tint((58, 68, 80)) * (0.35 + 1.5 * dice**2)[:, None]
    glass = mix(glass, np.broadcast_to(_tint((200, 195, 185)), glass.shape), 0.8 * cross)
    albedo = mix(wall, glass, pane)
    lit = (grain(level, cell, p.key + 77) < 0.28) * pane
    lamp = (lit * (0.5 + dice))[:, None] * single([0.95, 0.66, 0.32])
    gloss = 0.35 * pane * (0.3 + dice)

    front = shop & (y < 3.6)
    panel = np.floor(x / 3.2)
    within = x - (panel + 0.5) * 3.2
    display = front * cover(within, 1.42, fine_x) * cover(y - 1.55, 1.2, fine_y)
    band = front * cover(y - 3.2, 0.32, fine_y)
    at = np.flatnonzero(front)
    if len(at):
        albedo[at] = _shop_front(
            p.key[at],
            x[at],
            y[at],
            within[at],
            albedo[at],
            fine_x[at],
            fine_y[at],
            display[at],
            band[at],
        )
        lamp[at] += (0.55 * display + 0.25 * band)[at, None] * single([1.0, 0.86, 0.62])
        gloss[at] += 0.25 * display[at]

    door = ~shop & (np.abs(cell - np.floor(cells / 2)) < 0.5)
    door = door * cover(across, 0.55, fine_x) * cover(y - 1.05, 1.1, fine_y)
    wood = _tint((92, 62, 44)) * (0.5 + dice)[:, None]
    albedo = mix(albedo, wood, door * (1 - pane))
    base = ~shop * cover(y, 0.35, fine_y)
    albedo = mix(albedo, albedo * 0.6, base)
    cornice = cover(p.height - y, 0.22, fine_y)
    albedo = mix(albedo, albedo * 0.55 + 0.1, cornice)
    occlusion = 0.72 + 0.28 * np.clip(y / 2.5, 0, 1)
    return albedo * occlusion[:, None], lamp, None, gloss


def _shop_front(key, x, y, within, albedo, fine_x, fine_y, display, band):
    """Goods behind glass, and a coloured band with letters above."""
    hue = grain(np.floor(x / 9.6), 3, key)
    paint = np.stack([hue, wrap(hue * 3.7, 1), wrap(hue * 7.3, 1)], 1) ** 2 * 0.7 + 0.03
    letters = cover(y - 3.2, 0.15, fine_y) * (grain(np.floor(x / 0.28), 5, key) < 0.6)
    letters *= np.minimum(1, 0.14 / fine_x) * (np.abs(within) < 1.0)
    paint = mix(paint, single([0.85, 0.85, 0.8]), 0.8 * letters)
    shelf = 0.4 + 1.4 * grain(np.floor(x / 0.5), np.floor(y / 0.6), key)
    goods = _tint((70, 74, 76)) * shelf[:, None]
    return mix(mix(albedo, goods, display), paint, band)


def _tiles(p: _Patch):
    x, y = p.s * p.length, p.t * p.height
    row = cover(wrap(y, 0.4) - 0.2, 0.15, np.maximum(p.foot * 2, 1e-3))
    patchy = mottled(x / 4, y / 4, False)
    return p.colour * (0.7 + 0.3 * row + 0.2 * (patchy - 0.5))[:, None], None, None, 0.0


_GLASS = linear(np.array((50, 60, 70)))


def _glass(p: _Patch):
    side = p.params[:, 1] > 0.5
    closed = side & (p.s < p.params[:, 0])
    rim = (p.t > 0.90) | (p.t < 0.05)
    post = side & ((np.abs(p.s - 0.54) < 0.022) | (np.abs(p.s - 0.24) < 0.02))
    border = ~side & (np.minimum(p.s, 1 - p.s) - p.params[:, 3] * p.t < 0.035)
    paint = closed | rim | post | border
    shine = 0.7 + 0.9 * p.t
    albedo = np.where(paint[:, None], p.colour, _GLASS * shine[:, None])
    return albedo, None, None, np.where(paint, 0.06, 0.42).astype(np.float32)


def _car_side(p: _Patch):
    x, y = p.s * p.length, 0.24 + p.t * p.height
    crease = np.where(p.t > 0.62, 1.08, 0.92) - 0.18 * (p.t < 0.30)
    albedo = p.colour * crease[:, None]
    fine = np.maximum(p.foot_along, 1e-3)
    seams = sum(cover(x - share * p.length, 0.018, fine) for share in (0.30, 0.50, 0.69))
    seams = np.minimum(seams, 1) * (p.t > 0.15)
    handle = sum(cover(x - share * p.length, 0.09, fine) for share in (0.36, 0.56))
    handle = np.minimum(handle, 1) * (np.abs(p.t - 0.78) < 0.035)
    albedo = mix(albedo, albedo * 0.25, seams)
    albedo = mix(albedo, albedo * 0.4, handle * 0.8)
    ends = np.minimum(x, p.length - x)
    arch = (ends - 0.85) ** 2 + (y - 0.33) ** 2 < 0.43**2
    sill = p.t < 0.10
    albedo[arch | sill] = 0.012
    end = ends < 0.22
    bright = end & (np.abs(p.t - 0.66) < 0.13)
    albedo[bright] = 0.45 * albedo[bright] + 0.15
    return albedo, None, None, np.where(arch | sill, 0.0, 0.09).astype(np.float32)


def _car_front(p: _Patch):
    moving = p.params[:, 2] > 0.5
    a = np.abs(p.s - 0.5)
    albedo = p.colour * np.where(p.t > 0.75, 1.06, 0.9)[:, None]
    grille = (a < 0.24) & (np.abs(p.t - 0.50) < 0.13)
    albedo[grille] = 0.02
    albedo[p.t < 0.16] = 0.018
    plate = (a < 0.14) & (np.abs(p.t - 0.25) < 0.07)
    albedo[plate] = 0.75
    light = (a > 0.27) & (a < 0.46) & (np.abs(p.t - 0.60) < 0.11)
    albedo[light] = 0.72
    lamp = (light & moving)[:, None] * single([7.0, 6.6, 5.6])
    signal = (light & moving)[:, None] * single([0.5, 0.5, 0.45])
    return albedo, lamp, signal, np.float32(0.08)


def _car_rear(p: _Patch):
    moving = p.params[:, 2] > 0.5
    a = np.abs(p.s - 0.5)
    albedo = p.colour * np.where(p.t > 0.45, 1.0, 0.88)[:, None]
    albedo[p.t < 0.18] = 0.018
    plate = (a < 0.15) & (np.abs(p.t - 0.40) < 0.08)
    albedo[plate] = 0.72
    light = (a > 0.365) & (a < 0.485) & (np.abs(p.t - 0.70) < 0.13)
    albedo[light] = (0.30, 0.008, 0.008)
    lamp = (light & moving)[:, None] * single([2.6, 0.10, 0.06])
    signal = (light & moving)[:, None] * single([0.12, 0.0, 0.0])
    return albedo, lamp, signal, np.float32(0.08)


def _wheel(p: _Patch):
    radius = np.hypot(p.local[:, 1], p.local[:, 2])
    angle = np.arctan2(p.local[:, 1], p.local[:, 2])
    spoke = np.cos(5 * angle) > -0.2
    rim = (radius < 0.66) & (np.abs(p.local[:, 0]) > 0.2)
    albedo = np.where(rim[:, None], np.where(spoke, 0.34, 0.06)[:, None], 0.011)
    return albedo * np.ones(3, np.float32), None, None, 0.0


def _spokes(p: _Patch):
    radius = np.hypot(p.local[:, 1], p.local[:, 2])
    angle = np.arctan2(p.local[:, 1], p.local[:, 2])
    wire = np.cos(9 * angle) > 0.75
    grey = np.where(radius > 0.84, 0.010, np.where(wire | (radius < 0.12), 0.28, 0.075))
    return np.repeat(grey[:, None], 3, 1).astype(np.float32), None, None, 0.0


RED, BLUE, YELLOW = (_tint(c) for c in ((196, 22, 28), (18, 78, 168), (236, 196, 30)))


def _plate(p: _Patch):
    kind, variant = p.params[:, 0].astype(np.int64), p.params[:, 1]
    a, b = 2 * p.s - 1, 2 * p.t - 1
    radius = np.hypot(a, b)
    white = single([0.86, 0.86, 0.86])
    black = single([0.02, 0.02, 0.02])
    albedo = np.broadcast_to(white, (len(a), 3)).copy()

    def paint(where, colour):
        albedo[where] = colour

    rim = np.maximum(np.maximum(np.abs(a), np.abs(b)), (np.abs(a) + np.abs(b)) * 0.7071)
    paint((kind == 0) & (rim < 0.92), RED)
    stroke = np.abs(wrap((a + 0.66) / 0.33, 1) - 0.5) < 0.32
    paint((kind == 0) & (np.abs(b) < 0.24) & (np.abs(a) < 0.66) & stroke, white)
    edge = np.minimum(p.t, (1 - p.t - np.abs(a)) * 0.45)
    paint(((kind == 1) | (kind == 2)) & (edge < 0.13), RED)
    bar = (np.abs(a) < 0.07) & (p.t > 0.32) & (p.t < 0.62) | (
        (np.abs(a) < 0.07) & (np.abs(p.t - 0.22) < 0.05)
    )
    curve = np.abs(a - 0.12 * np.sin(9 * p.t)) < 0.07
    curve = curve & (p.t > 0.2) & (p.t < 0.62)
    paint((kind == 2) & np.where(variant < 6, bar, curve), black)
    paint((kind == 3) & (radius > 0.72), RED)
    digit = (np.abs(b) < 0.36) & (np.abs(np.abs(a) - 0.27) < 0.19)
    hole = (np.abs(b) < 0.22) & (np.abs(a - 0.27) < 0.07)
    slot = (np.abs(b - np.where(variant < 6, 0.16, -0.16)) < 0.07) & (np.abs(a + 0.22) < 0.12)
    paint((kind == 3) & digit & ~hole & ~slot, black)
    paint((kind == 4), RED)
    paint((kind == 4) & (np.abs(b) < 0.2) & (np.abs(a) < 0.7), white)
    paint((kind >= 5) & (kind <= 7), BLUE)
    stem = (np.abs(a + 0.25) < 0.13) & (np.abs(b) < 0.62)
    ring = np.abs(np.hypot(a - 0.05, (b - 0.28)) - 0.27) < 0.10
    paint((kind == 5) & (stem | (ring & (a > -0.2))), white)
    shaft = (np.abs(a) < 0.14) & (b > -0.62) & (b < 0.15)
    head = (b >= 0.1) & (b < 0.66) & (np.abs(a) < 0.9 * (0.66 - b))
    paint((kind == 6) & (shaft | head), white)
    tent = (b > -0.72) & (np.abs(a) < 0.52 * (0.82 - b))
    paint((kind == 7) & tent, white)
    walker = (np.hypot(a, (b - 0.28)) < 0.11) | ((np.abs(a) < 0.12) & (np.abs(b + 0.15) < 0.32))
    paint((kind == 7) & walker, black)
    paint(kind == 8, YELLOW)
    line = np.abs(wrap(b * 1.5 + 0.5, 1) - 0.5) < 0.22
    text = line & (np.abs(a) < 0.8) & (grain(np.floor(a * 14), np.floor(b * 1.5), p.key) < 0.72)
    paint((kind == 8) & (text | (np.maximum(np.abs(a), np.abs(b)) > 0.94)), black)
    return albedo, None, albedo * 0.06, np.float32(0.02)


def _signal(p: _Patch):
    albedo = np.full((len(p.s), 3), 0.012, np.float32)
    signal = np.zeros_like(albedo)
    colours = single([[1.9, 0.10, 0.06], [1.9, 0.95, 0.05], [0.08, 1.5, 0.55]])
    for lamp, centre in enumerate((0.82, 0.5, 0.18)):
        inside = np.hypot((p.s - 0.5) * p.length, (p.t - centre) * p.height) < 0.125
        on = inside & (p.params[:, 0].astype(np.int64) == lamp)
        albedo[inside] = colours[lamp] * 0.035
        signal[on] = colours[lamp]
    return albedo, signal * 0.8, signal, 0.0


def _foliage(p: _Patch):
    q = p.point
    x, y, z = q[:, 0], q[:, 1], q[:, 2]
    # Two planar noises whose blind directions differ leave no streaks on any side of a crown.
    coarse = 0.5 * (mottled(x * 1.1, y * 1.1) + mottled(z * 1.1 + 5, y * 1.1 + 0.4 * x))
    i, j, k = np.floor(x * 11), np.floor(y * 11), np.floor(z * 11)
    fine = 0.5 * (grain(i, j, 11) + grain(k, j, 12))
    fade = np.minimum(1, 0.09 / np.maximum(p.foot, 1e-3))
    tone = 0.20 + 1.25 * coarse + 0.8 * (fine - 0.5) * fade
    warm = single([1.0, 1.0, 1.0]) + (coarse - 0.5)[:, None] * single([0.35, 0.1, -0.2])
    return p.colour * tone[:, None] * warm, None, None, 0.0


def _bark(p: _Patch):
    stripes = mottled(p.local[:, 0] * 3 + p.point[:, 0], p.point[:, 1] * 0.5, False)
    return p.colour * (0.6 + 0.7 * stripes)[:, None], None, None, 0.0


def _lamp(p: _Patch):
    glow = (p.local[:, 1] < -0.1)[:, None] * single([7.0, 5.2, 3.0])
    return p.colour, glow, None, 0.0


def _cloth(p: _Patch):
    folds = mottled(p.point[:, 0] * 5, p.point[:, 1] * 4 + p.point[:, 2] * 3, False)
    return p.colour * (0.82 + 0.36 * folds)[:, None], None, None, 0.0


_PAINTERS = (
    _plain,
    _facade,
    _tiles,
    _glass,
    _car_front,
    _car_rear,
    _car_side,
    _wheel,
    _plate,
    _signal,
    _foliage,
    _bark,
    _lamp,
    _spokes,
    _facade,
    _cloth,
)
"""One painter per material, in the order of the materials of :mod:`streets_geometry`."""
assert len(_PAINTERS) == g.CLOTH + 1
