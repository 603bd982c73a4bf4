"""Visibility: which surface each pixel of a pinhole camera sees, and how far it is.

Rays leave through pixel centres. On a ray ``t (x, y, 1)`` in camera axes, inverse depth, and
inverse depth times a quad's texture coordinates, are linear in the image, so a quad's extent on an
image row is an interval between roots of linear functions, and a quadric's between roots of a
quadratic. Only those fragments are made, for all primitives at once; the largest inverse depth wins
a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_geometry import Primitives
from certbench.datasets.streets_noise import grain, mottled
from certbench.datasets.streets_vectors import dot

NEAR = 0.1
"""Distance of the near plane in metres."""

GROUND, SKY = -1, -2
"""Values of :attr:`Visible.primitive` where no primitive is seen."""


@dataclass(frozen=True)
class Visible:
    """What a camera sees.

    Attributes:
        camera: The camera.
        primitive: Index of the nearest primitive, or GROUND or SKY: int32 [H, W].
        depth: z-depth in metres, infinite in the sky: float32 [H, W].
        local: Texture coordinates (u, v, 0) of quads, or the hit in unit-sphere axes of quadrics:
            float32 [H, W, 3].
    """

    camera: Camera
    primitive: np.ndarray
    depth: np.ndarray
    local: np.ndarray


def look_at(primitives: Primitives, camera: Camera, ground: bool = True) -> Visible:
    """Find the nearest surface behind every pixel.

    Args:
        primitives: World primitives.
        camera: The camera.
        ground: Whether the plane y = 0 is there.
    """
    height, width = camera.height, camera.width
    rotation = camera.rotation
    inverse = np.zeros(height * width)
    primitive = np.full(height * width, SKY, np.int32)
    if ground:
        tilt = -(rotation[:, 1] / camera.position[1])
        plane = tilt[0] * camera.columns()[None, :] + (tilt[1] * camera.rows() + tilt[2])[:, None]
        below = np.flatnonzero(plane > 1e-6)
        inverse[below] = plane.ravel()[below]
        primitive[below] = GROUND

    quads = _quad_fragments(primitives, camera)
    quadrics = _quadric_fragments(primitives, camera)
    pixel = np.concatenate([quads.pixel, quadrics.pixel])
    near = np.concatenate([quads.inverse, quadrics.inverse])
    np.maximum.at(inverse, pixel, near)
    won = np.flatnonzero(near == inverse[pixel])
    # Where two fragments tie, the later one is kept: numpy assigns repeated indices in order.
    owner = np.full(height * width, -1, np.int64)
    owner[pixel[won]] = won
    hit = np.flatnonzero(owner >= 0)
    source = owner[hit]
    flat = source < len(quads.pixel)

    local = np.zeros((height * width, 3), np.float32)
    at, chosen = hit[flat], source[flat]
    primitive[at] = quads.owner[quads.line[chosen]]
    local[at, :2] = quads.local(chosen)
    at, chosen = hit[~flat], source[~flat] - len(quads.pixel)
    primitive[at] = quadrics.primitive[chosen]
    local[at] = quadrics.local(chosen)

    with np.errstate(divide="ignore"):
        depth = np.where(primitive == SKY, np.inf, 1.0 / inverse)
    return Visible(
        camera,
        primitive.reshape(height, width),
        depth.astype(np.float32).reshape(height, width),
        local.reshape(height, width, 3),
    )


@dataclass(frozen=True)
class _QuadFragments:
    pixel: np.ndarray
    inverse: np.ndarray
    column: np.ndarray
    line: np.ndarray
    owner: np.ndarray
    base: np.ndarray
    slope: np.ndarray

    def local(self, chosen: np.ndarray) -> np.ndarray:
        line = self.line[chosen]
        scaled = self.base[line, :2] + self.slope[line, :2] * self.column[chosen, None]
        return scaled / self.inverse[chosen, None]


@dataclass(frozen=True)
class _QuadricFragments:
    pixel: np.ndarray
    inverse: np.ndarray
    column: np.ndarray
    line: np.ndarray
    primitive: np.ndarray
    base: np.ndarray
    slope: np.ndarray
    start: np.ndarray

    def local(self, chosen: np.ndarray) -> np.ndarray:
        line = self.line[chosen]
        direction = self.base[line] + self.slope[line] * self.column[chosen, None]
        return self.start[line] + direction / self.inverse[chosen, None]


@dataclass(frozen=True)
class Spans:
    """Intervals of pixels: row, first column, number of columns, and the owner of each."""

    owner: np.ndarray
    row: np.ndarray
    first: np.ndarray
    count: np.ndarray


def quad_spans(maps: np.ndarray, insets: np.ndarray, disc: np.ndarray, rows, camera) -> Spans:
    """Pixels inside quads, as intervals of image rows.

    Args:
        maps: float64 [n, 3, 3]; row i of ``maps[q] @ (x, y, 1)`` is texture u and texture v, each
            times inverse depth, and inverse depth.
        insets: float64 [n, 2] as in :meth:`streets_geometry.Part.quad`.
        disc: Whether a quad is cut to its inscribed ellipse, bool [n].
        rows: First row and row after the last of every quad, two int arrays [n].
        camera: The camera, for the pixel grid.
    """
    owner, row = _row_list(rows)
    y = camera.rows()[row]
    lines = maps.take(owner, 0)
    slope = lines[:, :, 0]
    base = lines[:, :, 1] * y[:, None] + lines[:, :, 2]
    left, right = insets[owner, 0], insets[owner, 1]
    a = np.stack(
        [
            slope[:, 0] - left * slope[:, 1],
            slope[:, 2] - slope[:, 0] - right * slope[:, 1],
            slope[:, 1],
            slope[:, 2] - slope[:, 1],
            -slope[:, 2],
        ]
    )
    b = np.stack(
        [
            base[:, 0] - left * base[:, 1],
            base[:, 2] - base[:, 0] - right * base[:, 1],
            base[:, 1],
            base[:, 2] - base[:, 1],
            1 / NEAR - base[:, 2],
        ]
    )
    low, high = _between(a, b)
    if disc.any():
        which = np.flatnonzero(disc[owner])
        s, c = slope[which], base[which]
        s0, s1 = s[:, 0] - 0.5 * s[:, 2], s[:, 1] - 0.5 * s[:, 2]
        c0, c1 = c[:, 0] - 0.5 * c[:, 2], c[:, 1] - 0.5 * c[:, 2]
        bend = 0.25 * s[:, 2] ** 2 - s0**2 - s1**2
        lean = 0.5 * s[:, 2] * c[:, 2] - 2 * (s0 * c0 + s1 * c1)
        rest = 0.25 * c[:, 2] ** 2 - c0**2 - c1**2
        inner_low, inner_high = _concave_roots(bend, lean, rest)
        low[which] = np.maximum(low[which], inner_low)
        high[which] = np.minimum(high[which], inner_high)
    return _to_columns(owner, row, low, high, camera)


def row_range(corners: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that convex hulls of points may touch, and whether they may be seen at all.

    Args:
        corners: float64 [n, k, 3] in camera axes.
        camera: The camera.
    """
    depth = corners[..., 2]
    behind = depth < NEAR
    safe = np.maximum(depth, NEAR)
    low = np.ceil(_clip(corners[..., 1] / safe).min(1) * camera.focal + camera.height / 2 - 0.5)
    high = np.floor(_clip(corners[..., 1] / safe).max(1) * camera.focal + camera.height / 2 - 0.5)
    crossing = behind.any(1)
    low = np.where(crossing, 0, np.maximum(low, 0)).astype(np.int64)
    high = np.where(crossing, camera.height, np.minimum(high + 1, camera.height)).astype(np.int64)
    side_low = _clip(corners[..., 0] / safe).min(1) * camera.focal + camera.width / 2
    side_high = _clip(corners[..., 0] / safe).max(1) * camera.focal + camera.width / 2
    seen = ~behind.all(1) & (crossing | ((side_high > 0) & (side_low < camera.width)))
    high = np.where(seen, np.maximum(high, low), low)
    return low, high, seen


def quad_maps(origin, u, v) -> np.ndarray:
    """Linear maps from rays to texture coordinates and inverse depth, for quads in camera axes.

    Args:
        origin: float64 [n, 3]; ``u`` and ``v`` likewise.

    Returns:
        float64 [n, 3, 3], or zeros where the quad's plane passes through the camera.
    """
    rows = np.stack([np.cross(v, origin), np.cross(origin, u), np.cross(u, v)], axis=1)
    volume = (rows[:, 2] * origin).sum(1)
    size = np.linalg.norm(rows[:, 2], axis=1)
    flat = np.abs(volume) <= 1e-9 * np.maximum(size, 1e-12)
    return np.where(flat[:, None, None], 0.0, rows / np.where(flat, 1.0, volume)[:, None, None])


def _quad_fragments(scene: Primitives, camera: Camera) -> _QuadFragments:
    rotation, eye = camera.rotation, np.asarray(camera.position)
    facing = (scene.outward * (scene.origin - eye)).sum(1) <= 0
    origin = (scene.origin - eye) @ rotation.T
    u, v = scene.u @ rotation.T, scene.v @ rotation.T
    corners = np.stack([origin, origin + u, origin + v, origin + u + v], axis=1)
    low, high, seen = row_range(corners, camera)
    kept = np.flatnonzero(facing & seen & (high > low))
    maps = quad_maps(origin[kept], u[kept], v[kept])
    outline = scene.outline[kept]
    spans = quad_spans(maps, scene.insets[kept], outline == g.DISC, (low[kept], high[kept]), camera)
    span, column, pixel = _to_pixels(spans, camera)
    quad = spans.owner[span]
    x = camera.columns()[column]
    y = camera.rows()[spans.row]
    base = maps[spans.owner, :, 1] * y[:, None] + maps[spans.owner, :, 2]
    inverse = base[span, 2] + maps[spans.owner, 2, 0][span] * x
    cut = np.flatnonzero(outline[quad] > g.DISC)
    if len(cut):
        at = spans.owner[span[cut]]
        s, t = ((base[span[cut], i] + maps[at, i, 0] * x[cut]) / inverse[cut] for i in range(2))
        which = kept[at]
        corner = np.abs(s - 0.5) + np.abs(t - 0.5) <= 0.7071
        reach = np.linalg.norm(scene.u[which], axis=1) * s
        phase = (scene.key[which] & 0xFFFF).astype(np.float64)
        steps = 0.55 + 0.45 * grain((reach / 9).astype(np.int64), 0, scene.key[which])
        waves = 0.62 + 0.38 * mottled(reach / 24 + phase, phase / 7, smooth=False)
        city = scene.material[which] == g.SKYLINE
        profile = np.where(city, steps, waves)
        inside = np.where(outline[at] == g.OCTAGON, corner, t <= profile)
        alive = np.ones(len(span), bool)
        alive[cut[~inside]] = False
        alive = np.flatnonzero(alive)
        pixel, span, inverse, x = pixel[alive], span[alive], inverse[alive], x[alive]
    return _QuadFragments(pixel, inverse, x, span, kept[spans.owner], base, maps[spans.owner, :, 0])


def _quadric_fragments(scene: Primitives, camera: Camera) -> _QuadricFragments:
    rotation, eye = camera.rotation, np.asarray(camera.position)
    centre = (scene.centre - eye) @ rotation.T
    axes = np.matmul(rotation, scene.axes)
    low, high, left, right, seen = _quadric_boxes(centre, axes, scene.cylinder, camera)
    kept = np.flatnonzero(seen & (high > low) & (right > left))
    centre, axes, cylinder = centre[kept], axes[kept], scene.cylinder[kept]
    to_unit = np.linalg.inv(axes)
    start = -np.matmul(to_unit, centre[..., None])[..., 0]
    weight = np.stack([np.ones(len(kept)), 1.0 - cylinder, np.ones(len(kept))], axis=1)
    outside = (weight * start**2).sum(1) - 1

    owner, row = _row_list((low[kept], high[kept]))
    y = camera.rows()[row]
    maps = to_unit.take(owner, 0)
    slope = maps[:, :, 0]
    base = maps[:, :, 1] * y[:, None] + maps[:, :, 2]
    o, w, c = start.take(owner, 0), weight.take(owner, 0), outside[owner]
    ws, wb = w * slope, w * base
    ss, sb, bb = dot(ws, slope), dot(ws, base), dot(wb, base)
    os, ob = dot(o, ws), dot(o, wb)
    bend, lean, rest = os**2 - c * ss, 2 * (os * ob - c * sb), ob**2 - c * bb
    first, last = _concave_roots(bend, lean, rest)
    open_ended = bend >= 0
    box_left = (left[kept][owner] - camera.width / 2) / camera.focal
    box_right = (right[kept][owner] - camera.width / 2) / camera.focal
    first = np.where(open_ended, box_left, np.maximum(first, box_left))
    last = np.where(open_ended, box_right, np.minimum(last, box_right))
    spans = _to_columns(owner, row, first, last, camera, index=np.arange(len(owner)))
    span, column, pixel = _to_pixels(spans, camera)
    line = spans.owner[span]
    x = camera.columns()[column]
    root = np.maximum((bend[line] * x + lean[line]) * x + rest[line], 0)
    root = np.sqrt(root)
    middle = os[line] * x + ob[line]
    # t = (-middle - root) / square, as an inverse, without cancellation for far objects.
    outer = c[line]
    inverse = (root - middle) / np.maximum(outer, 1e-12)
    alive = (inverse > 0) & (inverse <= 1 / NEAR) & (outer > 0)
    tube = cylinder[owner[line]]
    if tube.any():
        which = np.flatnonzero(tube & alive)
        reach = base[line[which], 1] + slope[line[which], 1] * x[which]
        along = o[line[which], 1] + reach / inverse[which]
        alive[which] = np.abs(along) <= 1
    leafy = np.flatnonzero(scene.ragged[kept][owner[line]] & alive)
    if len(leafy):
        at = line[leafy]
        square = (ss[at] * x[leafy] + 2 * sb[at]) * x[leafy] + bb[at]
        rim = root[leafy] / np.sqrt(square)
        t = 1 / inverse[leafy]
        step = base.take(at, 0) + slope.take(at, 0) * x[leafy, None]
        hit = o.take(at, 0) + step * t[:, None]
        size = np.cbrt(np.abs(np.linalg.det(axes)))[owner[at]]
        phase = (scene.key[scene.quads + kept[owner[at]]] & 0xFF).astype(np.float64)
        hit *= (1.3 * size)[:, None]
        one = mottled(hit[:, 0] + phase, hit[:, 1], smooth=False)
        two = mottled(hit[:, 2] + phase, hit[:, 1] + 0.5 * hit[:, 0], smooth=False)
        alive[leafy] = rim > 0.62 * np.maximum(one, two) - 0.04
    alive = np.flatnonzero(alive)
    return _QuadricFragments(
        pixel[alive],
        inverse[alive],
        x[alive],
        line[alive],
        scene.quads + kept[owner[line[alive]]],
        base,
        slope,
        o,
    )


def _quadric_boxes(centre, axes, cylinder, camera):
    """Pixel boxes of quadrics from the corners of their bounding parallelepipeds."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
    corners = centre[:, None, :] + np.matmul(axes, signs).transpose(0, 2, 1)
    low, high, seen = row_range(corners, camera)
    depth = corners[..., 2]
    crossing = (depth < NEAR).any(1)
    across = _clip(corners[..., 0] / np.maximum(depth, NEAR)) * camera.focal + camera.width / 2
    left = np.where(crossing, 0.0, np.clip(across.min(1), 0, camera.width))
    right = np.where(crossing, float(camera.width), np.clip(across.max(1), 0, camera.width))
    return low, high, left, right, seen


def _row_list(rows) -> tuple[np.ndarray, np.ndarray]:
    low, high = rows
    counts = np.maximum(high - low, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(low - np.cumsum(counts) + counts, counts)


def _between(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Interval of x where all a x + b >= 0 (empty intervals come back with low > high)."""
    rising, falling = a > 1e-12, a < -1e-12
    root = -b / np.where(rising | falling, a, 1.0)
    low = np.where(rising, root, -np.inf).max(0)
    high = np.where(falling, root, np.inf).min(0)
    never = (~rising & ~falling & (b < 0)).any(0)
    high[never] = -np.inf
    return low, high


def _concave_roots(bend, lean, rest) -> tuple[np.ndarray, np.ndarray]:
    """Interval where bend x^2 + lean x + rest >= 0 for bend < 0."""
    curved = bend < 0
    safe = np.where(curved, bend, -1.0)
    inside = lean**2 - 4 * safe * rest
    root = np.sqrt(np.maximum(inside, 0))
    low = np.where(inside >= 0, (-lean + root) / (2 * safe), np.inf)
    high = np.where(inside >= 0, (-lean - root) / (2 * safe), -np.inf)
    return np.where(curved, low, -np.inf), np.where(curved, high, np.inf)


def _to_columns(owner, row, low, high, camera, index=None) -> Spans:
    first = np.ceil(np.clip(low * camera.focal + camera.width / 2 - 0.5, 0, camera.width))
    last = np.floor(np.clip(high * camera.focal + camera.width / 2 - 0.5, -1, camera.width - 1))
    count = (last - first + 1).astype(np.int64)
    kept = np.flatnonzero((count > 0) & (low <= high))
    owner = owner if index is None else index
    return Spans(owner[kept], row[kept], first[kept].astype(np.int64), count[kept])


def _to_pixels(spans: Spans, camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Span, column and flat pixel index of every pixel in the spans."""
    span = np.repeat(np.arange(len(spans.row)), spans.count)
    offset = spans.first - np.cumsum(spans.count) + spans.count
    column = np.arange(len(span)) + offset[span]
    return span, column, spans.row[span] * camera.width + column


def _clip(value):
    return np.clip(value, -1e6, 1e6)
