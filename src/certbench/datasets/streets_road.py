"""The ground plan of a street: lanes, kerbs, pavements, a junction, a crossing.

The road's centre line is straight up to a point and a parabola behind it; a place on the street is
given by ``along`` (metres ahead) and ``across`` (metres to the right of the centre line).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PAVINGS = ((150, 146, 140), (162, 152, 138), (138, 134, 134), (160, 136, 122), (148, 148, 152))


@dataclass(frozen=True)
class Road:
    """The ground plan; lengths in metres.

    Attributes:
        bend_start: Where the curve begins.
        curvature: Of the curve, 1/m, positive to the right.
        lane: Width of a driving lane.
        lanes: Driving lanes per direction.
        parking: Width of the parking lanes, left and right (0 for none).
        pavement: Width of the pavements, left and right.
        lawn: Whether there is a lawn behind the pavement, left and right.
        junction: Centre of a crossing street, or None.
        junction_width: Its width.
        zebra: Start of a zebra crossing, or None; it is 3.4 m long.
        centre_style: 0 none, 1 dashed, 2 solid, 3 double solid centre line.
        cycle_lane: Whether the right lane has a red cycle strip.
        paving: Display colour of the pavement.
        asphalt: Display grey level of the road.
        slab: Side of the paving slabs.
    """

    bend_start: float
    curvature: float
    lane: float
    lanes: int
    parking: tuple[float, float]
    pavement: tuple[float, float]
    lawn: tuple[bool, bool]
    junction: float | None
    junction_width: float
    zebra: float | None
    centre_style: int
    cycle_lane: bool
    paving: tuple[int, int, int]
    asphalt: float
    slab: float

    def centre(self, along):
        """X of the centre line and its slope dx/dz at ``along``."""
        past = np.maximum(np.asarray(along) - self.bend_start, 0)
        return 0.5 * self.curvature * past**2, self.curvature * past

    def edge(self, side: int) -> float:
        """Distance from the centre line to the kerb on the left (-1) or right (1)."""
        return self.lane * self.lanes + self.parking[0 if side < 0 else 1]

    def place(self, along, across):
        """World x and z of places on the street, and the street's heading there (radians)."""
        x, slope = self.centre(along)
        turn = np.arctan(slope)
        return x + across * np.cos(turn), along - across * np.sin(turn), turn

    def place_one(self, along: float, across: float) -> tuple[float, float, float]:
        """:meth:`place` for one place, in plain floats (layouts ask for hundreds)."""
        past = max(along - self.bend_start, 0.0)
        turn = math.atan(self.curvature * past)
        x = 0.5 * self.curvature * past * past
        return x + across * math.cos(turn), along - across * math.sin(turn), turn

    def across(self, x, z):
        """Distance of world points to the right of the centre line."""
        past = np.maximum(z - self.bend_start, 0)
        slope = self.curvature * past
        return (x - 0.5 * slope * past) / np.sqrt(1 + slope * slope)


def draw_road(rng: np.random.Generator, quarter: str) -> Road:
    """Draw the ground plan of a street in an ``urban``, ``suburban`` or ``park`` quarter."""
    wide = rng.random() < (0.4 if quarter == "urban" else 0.25)
    lawns = {"urban": 0.05, "suburban": 0.7, "park": 0.95}[quarter]
    junction = float(rng.uniform(16, 48)) if rng.random() < 0.45 else None
    junction_width = float(rng.uniform(6.5, 11))
    if junction is not None:
        zebra = junction - junction_width / 2 - 4.4 if rng.random() < 0.7 else None
    else:
        zebra = float(rng.uniform(9, 30)) if rng.random() < 0.3 else None
    curved = rng.random() < 0.55
    start = 8.0 if junction is None else junction + junction_width
    parking = [2.15 if rng.random() < (0.6 if quarter != "park" else 0.3) else 0.0 for _ in "lr"]
    cycle_lane = bool(wide and parking[1] == 0 and rng.random() < 0.5)
    return Road(
        bend_start=float(start + rng.uniform(0, 15)),
        curvature=float(rng.choice((-1, 1)) * rng.uniform(0.003, 0.013)) if curved else 0.0,
        lane=float(rng.uniform(2.9, 3.5)),
        lanes=2 if wide else 1,
        parking=(parking[0], parking[1]),
        pavement=(float(rng.uniform(1.8, 4.2)), float(rng.uniform(1.8, 4.2))),
        lawn=(bool(rng.random() < lawns), bool(rng.random() < lawns)),
        junction=junction,
        junction_width=junction_width,
        zebra=zebra,
        centre_style=int(rng.choice(4, p=(0.12, 0.55, 0.2, 0.13))),
        cycle_lane=cycle_lane,
        paving=PAVINGS[int(rng.integers(len(PAVINGS)))],
        asphalt=float(rng.uniform(72, 108)),
        slab=float(rng.uniform(0.45, 1.0)),
    )
