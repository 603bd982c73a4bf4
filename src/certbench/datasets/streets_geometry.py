"""Primitives of the street scenes, and how objects are built from them.

Two primitives suffice: *quads* (planar parallelograms, optionally cut to trapezoids, triangles,
discs, octagons or ragged silhouettes) and *quadrics* (ellipsoids and open cylinders). An object is
a :class:`Part`: primitives in its own axes (x right, y up, z forward, metres). A scene is a list of
placed parts; :func:`assemble` expands all of them at once into world primitives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POLYGON, DISC, OCTAGON, RAGGED = range(4)
"""Outlines of a quad. ``POLYGON`` is the parallelogram less its two insets."""

(
    PLAIN,
    FACADE,
    TILES,
    GLASS,
    CAR_FRONT,
    CAR_REAR,
    CAR_SIDE,
    WHEEL,
    PLATE,
    SIGNAL,
    FOLIAGE,
    BARK,
    LAMP,
    SPOKES,
    SKYLINE,
    CLOTH,
) = range(16)
"""Materials; :mod:`certbench.datasets.streets_surfaces` gives each its texture."""


@dataclass
class Part:
    """Primitives of one kind of object in its own axes.

    Attributes:
        quads: Tuples (origin, edge u, edge v, outward normal or zero, insets, outline).
        quadrics: Tuples (centre, axes as columns, open cylinder?, ragged silhouette?).
        quad_looks: For each quad (material, label, colour, slot, params).
        quadric_looks: The same for each quadric.
    """

    quads: list = field(default_factory=list)
    quadrics: list = field(default_factory=list)
    quad_looks: list = field(default_factory=list)
    quadric_looks: list = field(default_factory=list)

    def quad(
        self,
        origin,
        u,
        v,
        look,
        outward=(0.0, 0.0, 0.0),
        insets=(0.0, 0.0),
        outline=POLYGON,
    ) -> Part:
        """Add a parallelogram ``origin + a u + b v`` with a, b in [0, 1].

        Args:
            origin: Lower left corner.
            u: Edge along the texture's first axis.
            v: Edge along the texture's second axis (up, for walls).
            look: From :func:`look`.
            outward: A direction on the visible side; zero for both sides.
            insets: How far the left and right borders move inwards from ``b = 0`` to ``b = 1``,
                as shares of u.
            outline: One of the outlines of this module.
        """
        normal = np.cross(u, v)
        side = np.sign(np.dot(normal, outward))
        self.quads.append((origin, u, v, normal * side, insets, outline))
        self.quad_looks.append(look)
        return self

    def box(self, low, high, look, top=None, front=None, rear=None, bottom=False) -> Part:
        """Add an axis-aligned box; front is at the largest z. Faces may have looks of their own."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        w, h, d = x1 - x0, y1 - y0, z1 - z0
        self.quad((x1, y0, z0), (0, 0, d), (0, h, 0), look, (1, 0, 0))
        self.quad((x0, y0, z1), (0, 0, -d), (0, h, 0), look, (-1, 0, 0))
        self.quad((x0, y0, z0), (w, 0, 0), (0, h, 0), rear or look, (0, 0, -1))
        self.quad((x1, y0, z1), (-w, 0, 0), (0, h, 0), front or look, (0, 0, 1))
        self.quad((x0, y1, z0), (w, 0, 0), (0, 0, d), top or look, (0, 1, 0))
        if bottom:
            self.quad((x0, y0, z0), (w, 0, 0), (0, 0, d), look, (0, -1, 0))
        return self

    def ellipsoid(self, centre, radii, look, ragged=False, rotation=None) -> Part:
        """Add an ellipsoid with the given radii along its axes (rotated by ``rotation``)."""
        axes = np.diag(np.asarray(radii, dtype=np.float64))
        if rotation is not None:
            axes = np.asarray(rotation) @ axes
        self.quadrics.append((centre, axes, False, ragged))
        self.quadric_looks.append(look)
        return self

    def rod(self, start, end, radius, look, rounded=False, flat=1.0) -> Part:
        """Add a cylinder between two points, or an elongated ellipsoid where ``rounded``."""
        start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        axis = (end - start) / 2
        length = np.linalg.norm(axis)
        helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.8 * length else np.array([0, 0, 1.0])
        side = np.cross(axis, helper)
        side /= np.linalg.norm(side)
        other = np.cross(axis / length, side)
        grown = axis * (1 + 0.6 * radius / length) if rounded else axis
        axes = np.stack([side * radius * flat, grown, other * radius], axis=1)
        self.quadrics.append(((start + end) / 2, axes, not rounded, False))
        self.quadric_looks.append(look)
        return self


def look(material, label, colour=(128, 128, 128), slot=0, params=(0.0, 0.0, 0.0, 0.0)):
    """Material, label and colour of a primitive.

    Args:
        material: One of the materials of this module.
        label: Class index.
        colour: Display colour, 8-bit RGB; multiplied onto the instance's colour if ``slot`` > 0.
        slot: 0 for the fixed colour, 1 to 3 for one of the colours of the placed instance.
        params: Four numbers that the material's texture may use.
    """
    return (material, label, colour, slot, params)


def linear(colour) -> np.ndarray:
    """Linear light of display colours (8-bit RGB, gamma 2): float32 in [0, 1]."""
    return (np.asarray(colour, dtype=np.float32) / 255) ** 2


@dataclass(frozen=True)
class Library:
    """All parts, concatenated; ``names[i]`` is the part with index i."""

    names: tuple[str, ...]
    quad_start: np.ndarray
    quad_count: np.ndarray
    quadric_start: np.ndarray
    quadric_count: np.ndarray
    quads: dict[str, np.ndarray]
    quadrics: dict[str, np.ndarray]

    def index(self, name: str) -> int:
        """Index of the part ``name``."""
        return self.names.index(name)


def make_library(parts: dict[str, Part]) -> Library:
    """Concatenate named parts into arrays."""
    quads: dict[str, list] = {key: [] for key in (*_QUAD_KEYS, *_LOOK_KEYS)}
    quadrics: dict[str, list] = {key: [] for key in (*_QUADRIC_KEYS, *_LOOK_KEYS)}
    quad_count, quadric_count = [], []
    for part in parts.values():
        quad_count.append(len(part.quads))
        quadric_count.append(len(part.quadrics))
        for values, looked in zip(part.quads, part.quad_looks, strict=True):
            for key, value in zip(_QUAD_KEYS, values, strict=True):
                quads[key].append(value)
            for key, value in zip(_LOOK_KEYS, looked, strict=True):
                quads[key].append(value)
        for values, looked in zip(part.quadrics, part.quadric_looks, strict=True):
            for key, value in zip(_QUADRIC_KEYS, values, strict=True):
                quadrics[key].append(value)
            for key, value in zip(_LOOK_KEYS, looked, strict=True):
                quadrics[key].append(value)
    return Library(
        names=tuple(parts),
        quad_start=np.cumsum([0, *quad_count[:-1]]),
        quad_count=np.array(quad_count),
        quadric_start=np.cumsum([0, *quadric_count[:-1]]),
        quadric_count=np.array(quadric_count),
        quads=_as_arrays(quads),
        quadrics=_as_arrays(quadrics),
    )


_QUAD_KEYS = ("origin", "u", "v", "outward", "insets", "outline")
_QUADRIC_KEYS = ("centre", "axes", "cylinder", "ragged")
_LOOK_KEYS = ("material", "label", "colour", "slot", "params")


_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("origin", "u", "v", "outward", "centre", "colour"), (3,)),
    "insets": (2,),
    "axes": (3, 3),
    "params": (4,),
}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("cylinder", "ragged"), bool),
    **dict.fromkeys(("material", "label", "outline", "slot"), np.uint8),
    "params": np.float32,
}


def _as_arrays(columns: dict[str, list]) -> dict[str, np.ndarray]:
    made = {}
    for key, values in columns.items():
        shape = (len(values), *_SHAPES.get(key, ()))
        made[key] = np.asarray(values, dtype=_TYPES.get(key, np.float64)).reshape(shape)
    made["colour"] = linear(made["colour"])
    return made


@dataclass(frozen=True)
class Placed:
    """Placed parts: row i is one object.

    Attributes:
        part: Index into the library, int64 [n].
        position: World position of the part's origin, float64 [n, 3], metres.
        frame: Part axes to world axes (rotation times scale), float64 [n, 3, 3].
        colours: Linear colours for the three slots, float32 [n, 3, 3].
        params: Added to the parameters of each primitive, float32 [n, 4].
        key: Random 32-bit key of the object's texture, uint32 [n].
    """

    part: np.ndarray
    position: np.ndarray
    frame: np.ndarray
    colours: np.ndarray
    params: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.part)


@dataclass(frozen=True)
class Primitives:
    """World primitives of a scene: n quads, then m quadrics; looks are [n + m]."""

    origin: np.ndarray
    u: np.ndarray
    v: np.ndarray
    outward: np.ndarray
    insets: np.ndarray
    outline: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    cylinder: np.ndarray
    ragged: np.ndarray
    material: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    params: np.ndarray
    key: np.ndarray
    instance: np.ndarray

    @property
    def quads(self) -> int:
        """Number of quads."""
        return len(self.origin)


def assemble(library: Library, placed: Placed) -> Primitives:
    """Expand placed parts into world primitives; instance ids are row numbers plus one."""
    quad, of_quad = _expand(library.quad_start, library.quad_count, placed.part)
    quadric, of_quadric = _expand(library.quadric_start, library.quadric_count, placed.part)
    flat, round_ = library.quads, library.quadrics
    turn = placed.frame[of_quad].transpose(0, 2, 1)

    def place(vectors):
        return np.matmul(vectors[:, None, :], turn)[:, 0]

    u, v, outward = place(flat["u"][quad]), place(flat["v"][quad]), flat["outward"][quad]
    # The visible side survives mirroring and shear only through the edges' cross product.
    local = np.cross(flat["u"], flat["v"])
    side = np.sign((local * flat["outward"]).sum(1))[quad]
    flips = np.sign(np.linalg.det(placed.frame))[of_quad]
    outward = np.cross(u, v) * (side * flips)[:, None]

    of_all = np.concatenate([of_quad, of_quadric])
    slot = np.concatenate([flat["slot"][quad], round_["slot"][quadric]])
    fixed = np.concatenate([flat["colour"][quad], round_["colour"][quadric]])
    own = placed.colours[of_all, np.maximum(slot, 1).astype(np.int64) - 1]
    return Primitives(
        origin=placed.position[of_quad] + place(flat["origin"][quad]),
        u=u,
        v=v,
        outward=outward,
        insets=flat["insets"][quad],
        outline=flat["outline"][quad],
        centre=placed.position[of_quadric]
        + np.matmul(placed.frame[of_quadric], round_["centre"][quadric][..., None])[..., 0],
        axes=np.matmul(placed.frame[of_quadric], round_["axes"][quadric]),
        cylinder=round_["cylinder"][quadric],
        ragged=round_["ragged"][quadric],
        material=np.concatenate([flat["material"][quad], round_["material"][quadric]]),
        label=np.concatenate([flat["label"][quad], round_["label"][quadric]]).astype(np.uint8),
        colour=np.where(slot[:, None] > 0, fixed * own, fixed).astype(np.float32),
        params=np.concatenate([flat["params"][quad], round_["params"][quadric]])
        + placed.params[of_all],
        key=placed.key[of_all],
        instance=(of_all + 1).astype(np.int32),
    )


def _expand(start, count, chosen) -> tuple[np.ndarray, np.ndarray]:
    """Rows start[c] .. start[c] + count[c] of every chosen part, and which choice each is of."""
    counts = count[chosen]
    owner = np.repeat(np.arange(len(chosen)), counts)
    first = np.repeat(start[chosen] - np.cumsum(counts) + counts, counts)
    return np.arange(len(owner)) + first, owner


def turned(yaw: float) -> np.ndarray:
    """Rotation about the vertical that turns part axes by ``yaw`` radians to the right."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
