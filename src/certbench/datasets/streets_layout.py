"""The description of a street scene, drawn from its seed. Right-hand traffic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets import streets_objects as objects
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_classes import BICYCLE, CAR, PERSON
from certbench.datasets.streets_geometry import Placed, Primitives
from certbench.datasets.streets_planner import Planner
from certbench.datasets.streets_population import backdrop, frontage, furnish, people, traffic
from certbench.datasets.streets_random import generator
from certbench.datasets.streets_road import Road, draw_road


@dataclass(frozen=True)
class SceneDescription:
    """A street scene without a camera, weather or light.

    Attributes:
        seed: What it was drawn from; textures and weather depend on it too.
        road: The ground plan.
        placed: All objects; object i has instance id i + 1.
        lamps: World positions of the street lamps' heads, float64 [k, 3].
        viewpoint: Position, yaw, pitch, roll and field of view of the scene's own camera.
        tags: What the layout holds, in alphabetical order.
    """

    seed: int
    road: Road
    placed: Placed
    lamps: np.ndarray
    viewpoint: dict
    tags: tuple[str, ...]

    @cached_property
    def primitives(self) -> Primitives:
        """World primitives of all objects."""
        return g.assemble(objects.library(), self.placed)

    @cached_property
    def things(self) -> np.ndarray:
        """Which placed objects are persons, cars or bicycles: bool [n]."""
        return thing_labels()[self.placed.part] >= 0

    def camera(self, height: int, width: int) -> Camera:
        """The scene's own camera at an image size."""
        return Camera(height, width, **self.viewpoint)

    def replaced(self, placed: Placed) -> SceneDescription:
        """The same street with other objects on it."""
        return dataclasses.replace(self, placed=placed)


def thing_labels() -> np.ndarray:
    """For each part of the library the label if it is a person, car or bicycle, else -1."""
    named = {"bicycle": BICYCLE, "rider": PERSON, **dict.fromkeys(objects.CARS, CAR)}
    return np.array(
        [
            PERSON if name.startswith("person") else named.get(name, -1)
            for name in objects.library().names
        ]
    )


def describe(seed: int) -> SceneDescription:
    """Draw a street scene.

    Args:
        seed: Integer >= 0; equal seeds give equal scenes, whatever was drawn before.

    Raises:
        CertbenchError: The seed is not an integer >= 0.
    """
    rng = generator(seed, 0x1A)
    quarter = ("urban", "suburban", "park")[int(rng.choice(3, p=(0.5, 0.33, 0.17)))]
    road = draw_road(rng, quarter)
    plan = Planner(road, rng)
    lamps = furnish(plan, quarter)
    traffic(plan, quarter)
    people(plan, quarter)
    for side in (-1, 1):
        frontage(plan, side, quarter)
    backdrop(plan)

    lane_centre = road.lane * (road.lanes - 0.5)
    viewpoint = {
        "position": (
            float(lane_centre + rng.normal(0, 0.15)),
            float(rng.uniform(1.35, 1.75)),
            0.0,
        ),
        "yaw": float(rng.normal(0, 1.6)),
        "pitch": float(rng.normal(-1.0, 1.0)),
        "roll": float(rng.normal(0, 0.5)),
        "field_of_view": float(rng.uniform(58, 72)),
    }
    placed = plan.placed()
    return SceneDescription(
        seed=int(seed),
        road=road,
        placed=placed,
        lamps=np.array(lamps, dtype=np.float64).reshape(-1, 3),
        viewpoint=viewpoint,
        tags=_tags(road, quarter, placed),
    )


def _tags(road: Road, quarter: str, placed: Placed) -> tuple[str, ...]:
    found = {quarter}
    found.add("straight" if road.curvature == 0 else "curved")
    found.add("wide" if road.lanes > 1 else "narrow")
    if road.junction is not None:
        found.add("junction")
    if road.zebra is not None:
        found.add("zebra")
    if any(road.parking):
        found.add("parking")
    labels = thing_labels()[placed.part]
    if (labels == CAR).sum() >= 10:
        found.add("busy")
    if not (labels == PERSON).any():
        found.add("deserted")
    return tuple(sorted(found))
