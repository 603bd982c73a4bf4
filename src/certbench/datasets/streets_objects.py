"""The catalogue of objects in the street scenes: buildings, vehicles, people, plants, furniture.

Part axes: x right, y up, z forward (the direction a car drives, a person walks or a sign does *not*
face), metres, origin on the ground. Buildings are unit blocks that the layout scales.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_classes import (
    BICYCLE,
    BUILDING,
    CAR,
    PERSON,
    POLE,
    SIGN,
    VEGETATION,
)
from certbench.datasets.streets_geometry import Part, look

WHITE = (255, 255, 255)
SIGNS = ("stop", "yield", "warning", "limit", "no_entry", "parking", "arrow", "crossing", "town")
"""Faces of traffic signs; the position is the pattern number of :data:`PLATE`."""

TREES = 8
CONIFERS = 3
PEOPLE = 6
CARS = ("sedan", "hatchback", "suv", "van", "estate")


@cache
def library() -> g.Library:
    """All parts that a scene may use."""
    parts: dict[str, Part] = {
        "block": _block(),
        "house": _house(),
        "skyline": _skyline(),
        "treeline": _treeline(),
        "hedge": _hedge(),
        "lamppost": _lamppost(),
        "signal": _signal(),
        "signpost": Part().rod((0, 0, 0), (0, 2.9, 0), 0.045, look(g.PLAIN, POLE, (140, 143, 146))),
        "bollard": _bollard(),
        "mast": Part().rod((0, 0, 0), (0, 7.5, 0), 0.13, look(g.BARK, POLE, (110, 95, 80))),
        "bicycle": _bicycle(),
        "rider": _rider(),
    }
    for number, name in enumerate(SIGNS):
        parts[f"sign_{name}"] = _sign(number)
    rng = np.random.Generator(np.random.PCG64(20240229))
    for i in range(TREES):
        parts[f"tree{i}"] = _broadleaf(rng)
    for i in range(CONIFERS):
        parts[f"conifer{i}"] = _conifer(rng)
    for i in range(3):
        parts[f"bush{i}"] = _bush(rng)
    for i in range(PEOPLE):
        parts[f"person{i}"] = _person(i)
    parts["sedan"] = _car(4.5, 1.80, 1.44, hood=1.25, boot=0.75)
    parts["hatchback"] = _car(3.9, 1.72, 1.47, hood=1.0, boot=0.05)
    parts["suv"] = _car(4.5, 1.88, 1.72, hood=1.15, boot=0.05, clearance=0.32)
    parts["estate"] = _car(4.6, 1.80, 1.48, hood=1.2, boot=0.10)
    parts["van"] = _car(5.2, 2.00, 2.15, hood=0.55, boot=0.03, clearance=0.28, panel=True)
    return g.make_library(parts)


def _block() -> Part:
    """Flat-roofed building: x in [0, 1] away from the road, y in [0, 1], z in [-0.5, 0.5]."""
    wall = look(g.FACADE, BUILDING, WHITE, slot=1)
    roof = look(g.PLAIN, BUILDING, (120, 118, 115))
    return Part().box((0, 0, -0.5), (1, 1, 0.5), wall, top=roof)


def _house() -> Part:
    """Gabled house, ridge along the road; walls up to 0.62 of the height."""
    eaves, ridge = 0.62, 1.0
    wall = look(g.FACADE, BUILDING, WHITE, slot=1)
    plain = look(g.PLAIN, BUILDING, WHITE, slot=1)
    tiles = look(g.TILES, BUILDING, WHITE, slot=2)
    part = Part()
    part.quad((0, 0, 0.5), (0, 0, -1), (0, eaves, 0), wall, (-1, 0, 0))
    part.quad((1, 0, -0.5), (0, 0, 1), (0, eaves, 0), wall, (1, 0, 0))
    part.quad((0, 0, -0.5), (1, 0, 0), (0, eaves, 0), wall, (0, 0, -1))
    part.quad((1, 0, 0.5), (-1, 0, 0), (0, eaves, 0), wall, (0, 0, 1))
    rise, over = ridge - eaves, 0.06
    tri = (0.5, 0.5)
    part.quad((0, eaves, -0.5), (1, 0, 0), (0, rise, 0), plain, (0, 0, -1), tri)
    part.quad((1, eaves, 0.5), (-1, 0, 0), (0, rise, 0), plain, (0, 0, 1), tri)
    drop = over * rise / 0.5
    for x0, dx in ((-over, 0.5 + over), (1 + over, -0.5 - over)):
        start = (x0, eaves - drop, -0.52)
        part.quad(start, (0, 0, 1.04), (dx, rise + drop, 0), tiles, (-dx, 1, 0))
    part.box((0.3, 0.85, 0.1), (0.4, 1.1, 0.18), look(g.PLAIN, BUILDING, (130, 80, 65)))
    return part


def _skyline() -> Part:
    """Distant row of houses: width 1 along x, height 1, ragged top."""
    wall = look(g.SKYLINE, BUILDING, WHITE, slot=1)
    return Part().quad((-0.5, 0, 0), (1, 0, 0), (0, 1, 0), wall, outline=g.RAGGED)


def _treeline() -> Part:
    """Distant row of trees: width 1 along x, height 1, ragged top."""
    leaves = look(g.FOLIAGE, VEGETATION, WHITE, slot=1)
    return Part().quad((-0.5, 0, 0), (1, 0, 0), (0, 1, 0), leaves, outline=g.RAGGED)


def _hedge() -> Part:
    """Clipped hedge: unit box, x in [0, 1], z in [-0.5, 0.5]."""
    return Part().box((0, 0, -0.5), (1, 1, 0.5), look(g.FOLIAGE, VEGETATION, WHITE, slot=1))


def _lamppost() -> Part:
    steel = look(g.PLAIN, POLE, (105, 110, 112))
    part = Part().rod((0, 0, 0), (0, 6.6, 0), 0.085, steel)
    part.rod((0, 0, 0), (0, 1.0, 0), 0.13, steel)
    part.rod((0, 6.55, 0), (-1.5, 6.85, 0), 0.055, steel)
    lamp = look(g.LAMP, POLE, (235, 230, 215))
    return part.ellipsoid((-1.6, 6.82, 0), (0.42, 0.11, 0.16), lamp)


def _signal() -> Part:
    """Traffic light: pole and a head that faces -z; params[0] picks the lit lamp."""
    part = Part().rod((0, 0, 0), (0, 3.6, 0), 0.075, look(g.PLAIN, POLE, (90, 94, 98)))
    shell = look(g.PLAIN, SIGN, (28, 30, 30))
    face = look(g.SIGNAL, SIGN, (28, 30, 30))
    part.box((-0.17, 2.55, -0.22), (0.17, 3.55, 0.06), shell, rear=face, bottom=True)
    rim = look(g.PLAIN, SIGN, (14, 15, 15))
    return part.quad((-0.28, 2.45, -0.10), (0.56, 0, 0), (0, 1.2, 0), rim)


def _bollard() -> Part:
    steel = look(g.PLAIN, POLE, (120, 118, 110))
    return (
        Part()
        .rod((0, 0, 0), (0, 0.95, 0), 0.07, steel)
        .ellipsoid((0, 0.95, 0), (0.075,) * 3, steel)
    )


def _sign(number: int) -> Part:
    """A plate 2.1 to 2.9 m above the ground that faces -z, with a grey back."""
    name = SIGNS[number]
    face = look(g.PLATE, SIGN, WHITE, params=(number, 0, 0, 0))
    back = look(g.PLAIN, SIGN, (125, 128, 130))
    part = Part()
    half, base = {"town": (0.85, 2.2), "arrow": (0.42, 2.1)}.get(name, (0.40, 2.1))
    height = {"town": 0.6}.get(name, 2 * half)
    outline = {"stop": g.OCTAGON, "limit": g.DISC, "no_entry": g.DISC}.get(name, g.POLYGON)
    insets = (0.5, 0.5) if name in ("warning", "yield") else (0.0, 0.0)
    if name == "yield":
        start, up = (-half, base + height, -0.06), (0, -height, 0)
    else:
        start, up = (-half, base, -0.06), (0, height, 0)
    part.quad(start, (2 * half, 0, 0), up, face, (0, 0, -1), insets, outline)
    return part.quad(start, (2 * half, 0, 0), up, back, (0, 0, 1), insets, outline)


def _broadleaf(rng) -> Part:
    trunk = float(rng.uniform(1.9, 2.8))
    spread = float(rng.uniform(1.4, 2.1))
    tall = float(rng.uniform(1.3, 2.0))
    part = Part().rod((0, 0, 0), (0, trunk + 1.2, 0), 0.15, look(g.BARK, VEGETATION, (92, 74, 58)))
    leaves = look(g.FOLIAGE, VEGETATION, WHITE, slot=1)
    middle = trunk + tall
    part.ellipsoid((0, middle, 0), (spread * 0.8, tall, spread * 0.8), leaves, ragged=True)
    clumps = int(rng.integers(4, 6))
    for i in range(clumps):
        turn = 2 * np.pi * (i + rng.uniform(-0.3, 0.3)) / clumps
        out, size = spread * rng.uniform(0.6, 0.95), spread * rng.uniform(0.42, 0.62)
        centre = (out * np.cos(turn), middle + tall * rng.uniform(-0.55, 0.65), out * np.sin(turn))
        part.ellipsoid(centre, (size, size * 0.85, size), leaves, ragged=True)
    return part


def _conifer(rng) -> Part:
    bark = look(g.BARK, VEGETATION, (80, 62, 50))
    part = Part().rod((0, 0, 0), (0, 1.6, 0), 0.14, bark)
    leaves = look(g.FOLIAGE, VEGETATION, (190, 215, 200), slot=1)
    height, base = float(rng.uniform(5.5, 8.0)), float(rng.uniform(0.6, 1.1))
    for i in range(5):
        share = i / 5
        part.ellipsoid(
            (0, base + height * (share + 0.12), 0),
            (1.9 * (1 - 0.92 * share), height * 0.17, 1.9 * (1 - 0.92 * share)),
            leaves,
            ragged=True,
        )
    return part


def _bush(rng) -> Part:
    leaves = look(g.FOLIAGE, VEGETATION, WHITE, slot=1)
    part = Part()
    for _ in range(3):
        size = float(rng.uniform(0.45, 0.75))
        at = (rng.uniform(-0.5, 0.5), size * 0.7, rng.uniform(-0.5, 0.5))
        part.ellipsoid(at, (size, size * 0.85, size), leaves, ragged=True)
    return part


def _person(pose: int) -> Part:
    """A person 1.75 m tall facing +z; poses 0 and 1 stand, 2 to 5 walk, odd ones wear a coat."""
    stride = (0.05, 0.0, 0.32, 0.26, 0.40, 0.18)[pose]
    coat = pose % 2 == 1
    top = look(g.CLOTH, PERSON, WHITE, slot=1)
    trousers = look(g.CLOTH, PERSON, WHITE, slot=2)
    skin = look(g.PLAIN, PERSON, WHITE, slot=3)
    dark = look(g.PLAIN, PERSON, (45, 36, 32))
    part = Part()
    for side, swing in ((-1, stride), (1, -stride)):
        hip, foot = (side * 0.09, 0.92, 0), (side * 0.10, 0.07, swing)
        part.rod(hip, foot, 0.095, trousers, rounded=True)
        part.ellipsoid((side * 0.10, 0.055, swing + 0.06), (0.055, 0.055, 0.14), dark)
        hand = (side * 0.29, 0.86, -0.8 * swing + 0.04)
        part.rod((side * 0.21, 1.42, 0), hand, 0.062, top, rounded=True)
        part.ellipsoid(hand, (0.05, 0.07, 0.05), skin)
    if coat:
        part.ellipsoid((0, 1.08, 0), (0.23, 0.45, 0.17), top)
    else:
        part.ellipsoid((0, 1.17, 0), (0.215, 0.36, 0.15), top)
    part.ellipsoid((0, 1.58, 0.01), (0.10, 0.135, 0.115), skin)
    part.ellipsoid((0, 1.635, -0.025), (0.108, 0.11, 0.115), dark)
    if pose in (2, 4):
        bag = look(g.PLAIN, PERSON, (60, 70, 85))
        part.ellipsoid((0, 1.22, -0.19), (0.15, 0.22, 0.11), bag)
    return part


def _bicycle() -> Part:
    """A bicycle along z, wheels 0.68 m."""
    tyre = look(g.SPOKES, BICYCLE, (60, 60, 62))
    frame = look(g.PLAIN, BICYCLE, WHITE, slot=1)
    dark = look(g.PLAIN, BICYCLE, (32, 32, 34))
    part = Part()
    for z in (-0.53, 0.53):
        part.ellipsoid((0, 0.345, z), (0.035, 0.345, 0.345), tyre)
    crank, seat, head = (0, 0.30, -0.08), (0, 0.88, -0.22), (0, 0.86, 0.36)
    for start, end in (
        (crank, seat),
        (crank, (0, 0.70, 0.40)),
        ((0, 0.78, -0.19), (0, 0.80, 0.38)),
        (crank, (0, 0.345, -0.53)),
        ((0, 0.75, -0.18), (0, 0.345, -0.53)),
        (head, (0, 0.345, 0.53)),
    ):
        part.rod(start, end, 0.027, frame)
    part.rod((-0.27, 1.02, 0.30), (0.27, 1.02, 0.30), 0.025, dark)
    part.rod(head, (0, 1.03, 0.31), 0.022, dark)
    return part.ellipsoid((0, 0.93, -0.24), (0.07, 0.045, 0.14), dark)


def _rider() -> Part:
    """A person who sits on :func:`_bicycle`."""
    top = look(g.CLOTH, PERSON, WHITE, slot=1)
    trousers = look(g.CLOTH, PERSON, WHITE, slot=2)
    skin = look(g.PLAIN, PERSON, WHITE, slot=3)
    dark = look(g.PLAIN, PERSON, (40, 34, 32))
    part = Part()
    for side, knee, foot in ((-1, (0.80, 0.16), (0.34, 0.02)), (1, (0.58, 0.10), (0.16, -0.10))):
        part.rod((side * 0.09, 0.98, -0.20), (side * 0.11, *knee), 0.095, trousers, rounded=True)
        part.rod((side * 0.11, *knee), (side * 0.11, *foot), 0.075, trousers, rounded=True)
        part.ellipsoid((side * 0.11, foot[0] - 0.05, foot[1] + 0.06), (0.05, 0.05, 0.13), dark)
        part.rod((side * 0.20, 1.44, 0.04), (side * 0.24, 1.05, 0.28), 0.06, top, rounded=True)
    part.rod((0, 0.98, -0.22), (0, 1.50, 0.04), 0.19, top, rounded=True)
    part.ellipsoid((0, 1.70, 0.12), (0.10, 0.135, 0.115), skin)
    return part.ellipsoid((0, 1.76, 0.10), (0.115, 0.10, 0.135), dark)


def _car(length, width, height, hood, boot, clearance=0.22, panel=False) -> Part:
    """A car that drives towards +z: body, cabin with slanted glass, wheels.

    Args:
        length: Overall length.
        width: Overall width.
        height: Roof height.
        hood: Length of the hood in front of the windscreen.
        boot: Length of the boot behind the rear window.
        clearance: Height of the sill above the road.
        panel: Whether the rear cabin is closed, as in a van.
    """
    paint = look(g.PLAIN, CAR, WHITE, slot=1)
    side = look(g.CAR_SIDE, CAR, WHITE, slot=1, params=(length, 0, 0, 0))
    front = look(g.CAR_FRONT, CAR, WHITE, slot=1)
    rear = look(g.CAR_REAR, CAR, WHITE, slot=1)
    x, z = width / 2, length / 2
    belt = clearance + 0.62 * (1.25 if panel else 1.0)
    part = Part()
    part.box((-x, clearance, -z), (x, belt, z), side, top=paint, front=front, rear=rear)

    z1, z0 = z - hood, -z + boot
    lean = 0.09 if panel else 0.16
    tx, slope = x - lean, (0.55 if panel else 0.72)
    back = 0.08 if panel else (0.45 if boot > 0.3 else 0.22)
    tz1, tz0 = z1 - slope, z0 + back
    rise = height - belt
    bx = x - 0.02
    narrow = (bx - tx) / (2 * bx)
    trapezoid = (narrow, narrow)
    screen = look(g.GLASS, CAR, WHITE, slot=1, params=(0, 0, 0, narrow))
    part.quad((bx, belt, z1), (-2 * bx, 0, 0), (0, rise, tz1 - z1), screen, (0, 1, 1), trapezoid)
    rear_glass = paint if panel else screen
    part.quad(
        (-bx, belt, z0), (2 * bx, 0, 0), (0, rise, tz0 - z0), rear_glass, (0, 1, -1), trapezoid
    )
    long = z1 - z0
    cut_rear, cut_front = (tz0 - z0) / long, (z1 - tz1) / long
    window = look(g.GLASS, CAR, WHITE, slot=1, params=(0.72 if panel else 0.0, 1, 0, 0))
    part.quad(
        (bx, belt, z0), (0, 0, long), (tx - bx, rise, 0), window, (1, 0, 0), (cut_rear, cut_front)
    )
    part.quad(
        (-bx, belt, z0), (0, 0, long), (bx - tx, rise, 0), window, (-1, 0, 0), (cut_rear, cut_front)
    )
    part.quad((-tx, height, tz0), (2 * tx, 0, 0), (0, 0, tz1 - tz0), paint, (0, 1, 0))

    radius = 0.33 + 0.04 * (clearance > 0.3)
    wheel = look(g.WHEEL, CAR, (26, 26, 28))
    for wx in (-x + 0.10, x - 0.10):
        for wz in (-z + 0.85, z - 0.85):
            part.ellipsoid((wx, radius, wz), (0.14, radius, radius), wheel)
    under = look(g.PLAIN, CAR, (12, 12, 13))
    part.quad(
        (-x + 0.1, clearance * 0.7, -z + 0.3), (2 * x - 0.2, 0, 0), (0, 0, 2 * z - 0.6), under
    )
    return part
