"""Bookkeeping while a street scene is laid out: placed objects, taken ground, colours."""

from __future__ import annotations

import math

import numpy as np

from certbench.datasets import streets_objects as objects
from certbench.datasets.streets_geometry import Placed, linear
from certbench.datasets.streets_road import Road

CAR_PAINTS = (
    (228, 228, 226),
    (228, 228, 226),
    (170, 174, 178),
    (112, 116, 121),
    (112, 116, 121),
    (34, 36, 40),
    (34, 36, 40),
    (38, 66, 118),
    (38, 66, 118),
    (150, 26, 30),
    (28, 84, 62),
    (214, 176, 42),
    (196, 92, 36),
    (120, 148, 172),
)
WALLS = (
    (158, 92, 74),
    (176, 110, 86),
    (206, 178, 130),
    (224, 214, 192),
    (212, 204, 196),
    (162, 160, 156),
    (196, 170, 158),
    (150, 166, 182),
    (190, 196, 180),
    (118, 106, 96),
    (226, 196, 140),
)
ROOFS = ((146, 74, 56), (120, 62, 50), (84, 82, 84), (104, 88, 78))
LEAVES = (
    (88, 118, 52),
    (74, 106, 50),
    (102, 124, 58),
    (66, 94, 52),
    (126, 128, 60),
    (150, 116, 50),
)
SKINS = ((232, 194, 168), (206, 160, 128), (160, 112, 82), (110, 76, 56))
CLOTHES = (
    (40, 44, 58),
    (28, 28, 30),
    (92, 96, 104),
    (58, 78, 120),
    (140, 44, 46),
    (196, 188, 172),
    (70, 92, 64),
    (206, 150, 48),
    (112, 70, 96),
    (214, 214, 216),
    (52, 112, 122),
    (180, 84, 60),
)


CELL = 4.0
"""Length in metres of the stretches of street that taken ground is sorted into."""


class Planner:
    """Collects placed objects and remembers which ground is taken."""

    def __init__(self, road: Road, rng: np.random.Generator):
        self.road, self.rng = road, rng
        self.index = {name: i for i, name in enumerate(objects.library().names)}
        self.rows: list[tuple] = []
        self.taken: dict[int, list[tuple[float, float, float]]] = {}

    def add(self, name, x, z, yaw, scale=(1.0, 1.0, 1.0), colours=(), params=(0, 0, 0, 0)) -> None:
        """Place a part at world x and z, turned by ``yaw`` radians to the right."""
        c, s = math.cos(yaw), math.sin(yaw)
        sx, sy, sz = scale
        frame = ((c * sx, 0.0, s * sz), (0.0, sy, 0.0), (-s * sx, 0.0, c * sz))
        filled = (*colours, *((255, 255, 255),) * (3 - len(colours)))
        self.rows.append((self.index[name], (x, 0.0, z), frame, filled, params))

    def on_street(self, name, along, across, turn=0.0, **kwargs) -> tuple[float, float]:
        """Place a part on the street, turned relative to its heading; returns world x and z."""
        x, z, heading = self.road.place_one(along, across)
        self.add(name, x, z, heading + turn, **kwargs)
        return x, z

    def free(self, along, across, radius) -> bool:
        """Whether a disc on the street is free of others; takes it if so."""
        cell = int(along // CELL)
        for near in (cell - 1, cell, cell + 1):
            for a, b, r in self.taken.get(near, ()):
                if (a - along) ** 2 + (b - across) ** 2 < (r + radius) ** 2:
                    return False
        self.take(along, across, radius)
        return True

    def take(self, along, across, radius) -> None:
        """Mark a disc on the street as taken; radii are at most half a cell."""
        self.taken.setdefault(int(along // CELL), []).append((along, across, radius))

    def in_junction(self, along, margin=0.0) -> bool:
        """Whether a place lies in the crossing street, widened by a margin."""
        at = self.road.junction
        return at is not None and abs(along - at) < self.road.junction_width / 2 + margin

    def choose(self, colours):
        """One of the colours, or of any other choices."""
        return colours[int(self.rng.integers(len(colours)))]

    def shade(self, colour, spread=0.12):
        """A colour with its brightness varied."""
        return tuple(min(255.0, c * (1 + spread * (2 * self.rng.random() - 1))) for c in colour)

    def placed(self) -> Placed:
        """All that was placed, as arrays."""
        part, position, frame, colours, params = zip(*self.rows, strict=True)
        return Placed(
            part=np.array(part),
            position=np.array(position, dtype=np.float64),
            frame=np.array(frame, dtype=np.float64),
            colours=linear(np.array(colours)),
            params=np.array(params, dtype=np.float32),
            key=self.rng.integers(0, 1 << 32, len(part), dtype=np.uint32),
        )
