"""Classes, colours, conditions and class hierarchy of the rendered street scenes."""

from __future__ import annotations

CLASSES = (
    "road",
    "pavement",
    "building",
    "pole",
    "traffic sign",
    "vegetation",
    "sky",
    "person",
    "car",
    "bicycle",
)
"""Names of the classes; the index is the label. Traffic-light heads count as traffic signs, lawns
and tree trunks as vegetation, riders as persons."""

ROAD, PAVEMENT, BUILDING, POLE, SIGN, VEGETATION, SKY, PERSON, CAR, BICYCLE = range(10)

VOID = 255
"""Label of pixels without a class. The renderer labels every pixel; warps may leave some void."""

PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (153, 153, 153),
    (220, 220, 0),
    (107, 142, 35),
    (70, 130, 180),
    (220, 20, 60),
    (0, 0, 142),
    (119, 11, 32),
)
"""Display colours (8-bit RGB) of the classes, those of Cityscapes."""

THINGS = (PERSON, CAR, BICYCLE)
"""Labels of movable, countable objects."""

CONDITIONS = ("clear", "fog", "night", "rain", "snow")
"""Weather and light that a scene can be rendered in; ``clear`` is the reference."""

HIERARCHY = (
    (10, "construction and vegetation", 1, 12),
    (11, "vehicle", 1, 13),
    (12, "static obstacle", 2, 14),
    (13, "dynamic obstacle", 2, 14),
    (14, "obstacle", 3, 15),
    (15, "everything", 4, None),
)
"""Inner nodes ``(id, name, level, parent)`` over the classes, shaped as the Cityscapes hierarchy of
Anani et al. (ICML 2024, Adaptive Hierarchical Certification)."""

LEAF_PARENTS = (15, 14, 10, 10, 12, 10, 15, 13, 11, 11)
"""Parent node of each class in :data:`HIERARCHY`."""
