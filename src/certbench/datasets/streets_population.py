"""What stands and moves on a street: furniture, traffic, people, houses, gardens, the backdrop."""

from __future__ import annotations

import math

import numpy as np

from certbench.datasets import streets_objects as objects
from certbench.datasets.streets_planner import (
    CAR_PAINTS,
    CLOTHES,
    LEAVES,
    ROOFS,
    SKINS,
    WALLS,
    Planner,
)

FAR = 120.0
"""Distance in metres at which the street ends in a backdrop."""


def furnish(plan: Planner, quarter: str) -> list[tuple[float, float, float]]:
    """Lamps, signs, lights, bollards and street trees on the pavements; returns the lamp heads."""
    road, rng = plan.road, plan.rng
    lamps: list[tuple[float, float, float]] = []
    spacing = float(rng.uniform(17, 26))
    both = rng.random() < 0.5
    wooden = quarter == "suburban" and rng.random() < 0.35
    for side in (-1, 1):
        if side < 0 and not both:
            continue
        along = float(rng.uniform(3, 14))
        across = side * (road.edge(side) + 0.45)
        while along < 95:
            if not plan.in_junction(along, 1.0) and plan.free(along, across, 0.3):
                turn = 0.0 if side > 0 else math.pi
                x, z = plan.on_street("lamppost", along, across, turn)
                _, _, heading = road.place_one(along, across)
                reach = -1.6 * side
                lamps.append((x + reach * math.cos(heading), 6.75, z - reach * math.sin(heading)))
                if wooden:
                    plan.on_street("mast", along + 4, across + side * 0.6)
            along += spacing * float(rng.uniform(0.9, 1.1))

    trees = {"urban": 0.45, "suburban": 0.5, "park": 0.75}[quarter]
    green = plan.choose(LEAVES)
    kind = int(rng.integers(objects.TREES))
    for side in (-1, 1):
        if rng.random() > trees:
            continue
        gap = float(rng.uniform(7, 13))
        along = float(rng.uniform(5, 12))
        across = side * (road.edge(side) + 0.8)
        while along < 90:
            if not plan.in_junction(along, 2.5) and plan.free(along, across, 0.5):
                size = float(rng.uniform(0.8, 1.15))
                plan.on_street(
                    f"tree{(kind + int(rng.integers(2))) % objects.TREES}",
                    along,
                    across,
                    float(rng.uniform(0, 6.28)),
                    scale=(size, size * float(rng.uniform(0.95, 1.2)), size),
                    colours=(plan.shade(green),),
                )
            along += gap * float(rng.uniform(0.8, 1.25))

    for _ in range(int(rng.integers(2, 7))):
        side = 1 if rng.random() < 0.68 else -1
        along, across = float(rng.uniform(7, 55)), side * (road.edge(side) + 0.35)
        if plan.in_junction(along, 0.5) or not plan.free(along, across, 0.5):
            continue
        name = plan.choose(objects.SIGNS[1:-1])
        _post_sign(plan, name, along, across, facing=side > 0)
    if road.zebra is not None and rng.random() < 0.6:
        for side in (-1, 1):
            along, across = road.zebra + 0.2, side * (road.edge(side) + 0.35)
            if plan.free(along, across, 0.4):
                _post_sign(plan, "crossing", along, across, facing=True)
    if road.junction is not None:
        near = road.junction - road.junction_width / 2 - 0.8
        far = road.junction + road.junction_width / 2 + 0.8
        lights = rng.random() < 0.6
        for side, along in ((1, near), (-1, far), (1, far), (-1, near)):
            across = side * (road.edge(side) + 0.5)
            if not plan.free(along, across, 0.4):
                continue
            if lights:
                lit = float(rng.integers(3))
                plan.on_street(
                    "signal", along, across, 0.0 if along == near else 0.1, params=(lit, 0, 0, 0)
                )
            elif along == near:
                _post_sign(plan, "stop" if rng.random() < 0.5 else "yield", along, across, side > 0)
    if rng.random() < 0.25:
        side = 1 if rng.random() < 0.7 else -1
        along, across = float(rng.uniform(14, 40)), side * (road.edge(side) + 1.1)
        if not plan.in_junction(along, 1.5) and plan.free(along, across, 0.9):
            _post_sign(plan, "town", along, across, facing=True)
    if rng.random() < 0.3:
        side = 1 if rng.random() < 0.5 else -1
        start = float(rng.uniform(4, 25))
        for i in range(int(rng.integers(3, 8))):
            along, across = start + 1.7 * i, side * (road.edge(side) + 0.3)
            if not plan.in_junction(along, 0.5) and plan.free(along, across, 0.15):
                plan.on_street("bollard", along, across)
    return lamps


def _post_sign(plan: Planner, name: str, along, across, facing: bool) -> None:
    turn = float(plan.rng.normal(0, 0.08)) + (0.0 if facing else math.pi)
    size = float(plan.rng.uniform(0.95, 1.25))
    params = (0.0, float(plan.rng.integers(0, 12)), 0.0, 0.0)
    scale = (size, 1.0, 1.0) if name == "town" else (size, size, 1.0)
    plan.on_street("signpost", along, across, turn)
    plan.on_street(f"sign_{name}", along, across, turn, scale=scale, params=params)


def traffic(plan: Planner, quarter: str) -> None:
    """Parked and moving cars, cyclists, parked bicycles."""
    road, rng = plan.road, plan.rng

    def car(along, across, turn, moving):
        if not plan.free(along, across, 1.3):
            return
        # Two more discs cover the length, so that people and signs keep clear of both ends.
        plan.take(along - 1.5, across, 1.2)
        plan.take(along + 1.5, across, 1.2)
        name = objects.CARS[int(rng.choice(5, p=(0.28, 0.27, 0.2, 0.1, 0.15)))]
        size = float(rng.uniform(0.95, 1.05))
        plan.on_street(
            name,
            along,
            across,
            turn + float(rng.normal(0, 0.015)),
            scale=(size,) * 3,
            colours=(plan.shade(plan.choose(CAR_PAINTS), 0.06),),
            params=(0.0, 0.0, float(moving), 0.0),
        )

    fill = float(rng.uniform(0.25, 0.95))
    for side in (-1, 1):
        if road.parking[0 if side < 0 else 1] == 0:
            continue
        along = float(rng.uniform(4.5, 9))
        while along < 75:
            blocked = road.zebra is not None and -3.5 < along - road.zebra < 6.5
            if rng.random() < fill and not plan.in_junction(along, 4.0) and not blocked:
                across = side * (road.edge(side) - 1.08 + float(rng.normal(0, 0.06)))
                flipped = side < 0 or rng.random() < 0.1
                car(along, across, math.pi if flipped else 0.0, moving=False)
            along += float(rng.uniform(5.4, 6.4))
    for lane in range(road.lanes):
        middle = road.lane * (lane + 0.5)
        along = float(rng.uniform(9, 45))
        while along < 85:
            if rng.random() < 0.6:
                car(along, middle + float(rng.normal(0, 0.15)), 0.0, moving=True)
            along += float(rng.uniform(8, 35))
        along = float(rng.uniform(5, 30))
        while along < 90:
            if rng.random() < 0.65:
                car(along, -middle + float(rng.normal(0, 0.15)), math.pi, moving=True)
            along += float(rng.uniform(8, 30))
    if road.junction is not None and rng.random() < 0.5:
        across = float(rng.choice((-1, 1)) * rng.uniform(6, 12))
        turn = math.pi / 2 if rng.random() < 0.5 else -math.pi / 2
        along = road.junction + (1.6 if turn < 0 else -1.6)
        car(along, across, turn, moving=True)

    def bicycle(along, across, turn, ridden):
        if not plan.free(along, across, 0.55):
            return
        paint = plan.shade(plan.choose(CLOTHES))
        plan.on_street("bicycle", along, across, turn, colours=(paint,))
        if ridden:
            colours = tuple(plan.choose(pool) for pool in (CLOTHES, CLOTHES, SKINS))
            plan.on_street("rider", along, across, turn, colours=colours)

    for _ in range(int(rng.poisson(1.7))):
        side = 1 if rng.random() < 0.6 else -1
        across = side * (road.lane * road.lanes - 0.6)
        along = float(rng.uniform(6, 32))
        bicycle(along, across, 0.0 if side > 0 else math.pi, ridden=True)
    for _ in range(int(rng.poisson(2.2))):
        side = 1 if rng.random() < 0.6 else -1
        back = road.pavement[0 if side < 0 else 1]
        across = side * (road.edge(side) + (0.9 if rng.random() < 0.5 else back - 0.4))
        along = float(rng.uniform(5, 26))
        turn = float(rng.choice((0.0, math.pi / 2)) + rng.normal(0, 0.2))
        for i in range(int(rng.integers(1, 5))):
            if not plan.in_junction(along + 1.2 * i, 1.0):
                bicycle(along + 1.2 * i, across, turn, ridden=False)


def people(plan: Planner, quarter: str) -> None:
    """Pedestrians on the pavements and the crossing."""
    road, rng = plan.road, plan.rng

    def person(along, across, turn):
        if not plan.free(along, across, 0.32):
            return
        size = float(np.clip(rng.normal(1.0, 0.07), 0.72, 1.12))
        girth = size * float(rng.uniform(0.92, 1.12))
        colours = tuple(plan.shade(plan.choose(pool), 0.1) for pool in (CLOTHES, CLOTHES, SKINS))
        plan.on_street(
            f"person{int(rng.integers(objects.PEOPLE))}",
            along,
            across,
            turn,
            scale=(girth, size, girth),
            colours=colours,
        )

    for _ in range(int(rng.poisson({"urban": 7, "suburban": 3.5, "park": 4}[quarter]))):
        side = 1 if rng.random() < 0.55 else -1
        width = road.pavement[0 if side < 0 else 1]
        along = float(4.5 + 40 * rng.random() ** 1.4)
        across = side * (road.edge(side) + float(rng.uniform(0.9, max(1.0, width - 0.4))))
        turn = float(rng.choice((0.0, math.pi)) + rng.normal(0, 0.3))
        person(along, across, turn)
        if rng.random() < 0.3:
            person(along + float(rng.normal(0, 0.2)), across + side * 0.7, turn)
    if road.zebra is not None:
        for _ in range(int(rng.integers(0, 4))):
            across = float(rng.uniform(-road.edge(-1), road.edge(1)))
            turn = float(rng.choice((-1, 1))) * math.pi / 2
            person(road.zebra + float(rng.uniform(0.6, 2.8)), across, turn)
    elif rng.random() < 0.15:
        across = float(rng.uniform(-road.edge(-1), road.edge(1)))
        person(float(rng.uniform(9, 25)), across, math.pi / 2)


def frontage(plan: Planner, side: int, quarter: str) -> None:
    """Buildings, gardens and trees behind the pavement."""
    road, rng = plan.road, plan.rng
    border = road.edge(side) + road.pavement[0 if side < 0 else 1]
    lawn = road.lawn[0 if side < 0 else 1]
    setback = float(rng.uniform(3.5, 8.5)) if lawn else float(rng.uniform(0.0, 0.6))
    if quarter == "park":
        setback += float(rng.uniform(6, 14))
    tall = float(rng.uniform(9, 22)) if quarter == "urban" else float(rng.uniform(6, 9.5))
    gap_chance = {"urban": 0.12, "suburban": 0.55, "park": 0.75}[quarter]
    gables = {"urban": 0.25, "suburban": 0.8, "park": 0.6}[quarter]
    along = -9.0
    while along < FAR - 10:
        length = float(rng.uniform(8, 19)) if quarter == "urban" else float(rng.uniform(9, 14))
        middle = along + length / 2
        if plan.in_junction(middle, length / 2 + 1.5):
            along = road.junction + road.junction_width / 2 + 2.0  # type: ignore[operator]
            if plan.in_junction(along, 1.0):
                along += 1.0
            length = float(rng.uniform(8, 16))
            middle = along + length / 2
        gable = rng.random() < gables
        height = tall * float(rng.uniform(0.75, 1.3)) * (1.15 if gable else 1.0)
        depth = float(rng.uniform(8, 13))
        storey = float(rng.uniform(2.8, 3.6))
        bay = float(rng.uniform(1.9, 3.6))
        share = float(rng.uniform(0.38, 0.72))
        shop = float(quarter == "urban" and rng.random() < 0.6)
        style = shop + 2 * float(rng.integers(3))
        plan.on_street(
            "house" if gable else "block",
            middle,
            side * (border + setback),
            0.0 if side > 0 else math.pi,
            scale=(depth, height, length),
            colours=(plan.shade(plan.choose(WALLS)), plan.shade(plan.choose(ROOFS))),
            params=(storey, bay, share, style),
        )
        along += length
        if rng.random() < gap_chance:
            along += float(rng.uniform(2, 8))
    if lawn:
        _garden(plan, side, border, setback, quarter)


def _garden(plan: Planner, side: int, border: float, setback: float, quarter: str) -> None:
    rng = plan.rng
    green = plan.shade(plan.choose(LEAVES[:4]))
    if quarter == "suburban" and rng.random() < 0.6:
        along = -4.0
        height = float(rng.uniform(0.7, 1.5))
        while along < 70:
            length = float(rng.uniform(5, 11))
            if not plan.in_junction(along + length / 2, length / 2 + 1):
                plan.on_street(
                    "hedge",
                    along + length / 2,
                    side * (border + 0.1),
                    0.0 if side > 0 else math.pi,
                    scale=(0.7, height, length),
                    colours=(green,),
                )
            along += length + float(rng.uniform(1.2, 3.5))
    count = int(rng.integers(3, 8)) if quarter == "suburban" else int(rng.integers(9, 17))
    for _ in range(count):
        along = float(rng.uniform(4, 80))
        across = side * (border + float(rng.uniform(1.4, max(2.0, setback - 0.5))))
        if plan.in_junction(along, 1.5) or not plan.free(along, across, 0.9):
            continue
        pick = rng.random()
        if pick < 0.2:
            name = f"conifer{int(rng.integers(objects.CONIFERS))}"
        elif pick < 0.45:
            name = f"bush{int(rng.integers(3))}"
        else:
            name = f"tree{int(rng.integers(objects.TREES))}"
        size = float(rng.uniform(0.75, 1.3))
        plan.on_street(
            name,
            along,
            across,
            float(rng.uniform(0, 6.28)),
            scale=(size, size * float(rng.uniform(0.9, 1.2)), size),
            colours=(plan.shade(plan.choose(LEAVES)),),
        )


def backdrop(plan: Planner) -> None:
    """A ring of distant houses and trees that hides the horizon."""
    rng = plan.rng
    radius = 150.0
    steps = 16
    for i in range(steps):
        angle = math.radians(-95 + 190 * (i + 0.5) / steps)
        city = rng.random() < 0.5
        height = float(rng.uniform(12, 26)) if city else float(rng.uniform(9, 16))
        colour = plan.choose(WALLS) if city else plan.choose(LEAVES[:4])
        plan.add(
            "skyline" if city else "treeline",
            radius * math.sin(angle),
            radius * math.cos(angle),
            angle,
            scale=(radius * math.radians(190 / steps) * 1.08, height, 1.0),
            colours=(plan.shade(colour),),
            params=(3.2, 3.4, 0.45, 0.0) if city else (0, 0, 0, 0),
        )
