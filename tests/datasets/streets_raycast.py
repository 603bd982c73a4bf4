"""Plain ray casting, one primitive at a time: the oracle of the street scenes' tests."""

import numpy as np

from certbench.datasets import streets_geometry as g
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_geometry import Part, Placed, look
from certbench.datasets.streets_raster import NEAR

GREY = look(g.PLAIN, 2)


def world(part: Part) -> g.Primitives:
    """One part, placed at the origin."""
    placed = Placed(
        part=np.array([0]),
        position=np.zeros((1, 3)),
        frame=np.eye(3)[None],
        colours=np.ones((1, 3, 3), np.float32),
        params=np.zeros((1, 4), np.float32),
        key=np.array([7], np.uint32),
    )
    return g.assemble(g.make_library({"only": part}), placed)


def rays(camera: Camera):
    x = (np.arange(camera.width) + 0.5 - camera.width / 2) / camera.focal
    y = (np.arange(camera.height) + 0.5 - camera.height / 2) / camera.focal
    local = np.stack([*np.meshgrid(x, y), np.ones((camera.height, camera.width))], -1)
    return (local @ camera.rotation).reshape(-1, 3)


def cast(scene: g.Primitives, camera: Camera) -> np.ndarray:
    """z-depth of every primitive behind every pixel (inf where missed): float64 [n + m, H * W]."""
    eye = np.asarray(camera.position)
    behind = (scene.outward * (scene.origin - eye)).sum(1) > 0
    direction = rays(camera)
    return intersect(scene, np.broadcast_to(eye, direction.shape), direction, behind, NEAR)


def intersect(scene, start, direction, skipped, nearest) -> np.ndarray:
    """Ray parameter at which each ray meets each primitive first: float64 [n + m, rays].

    Args:
        scene: The primitives.
        start: Where the rays begin, [rays, 3].
        direction: Where they go, [rays, 3].
        skipped: Which quads are left out, bool [n].
        nearest: Smallest parameter that counts.
    """
    found = np.full((scene.quads + len(scene.centre), len(direction)), np.inf)
    for i in np.flatnonzero(~skipped):
        normal = np.cross(scene.u[i], scene.v[i])
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (scene.origin[i] - start) @ normal / (direction @ normal)
            hit = start + t[:, None] * direction - scene.origin[i]
        edges = np.stack([scene.u[i], scene.v[i]])
        a, b = np.linalg.solve(edges @ edges.T, edges @ hit.T)
        left, right = scene.insets[i]
        inside = (a >= left * b) & (a <= 1 - right * b) & (b >= 0) & (b <= 1)
        if scene.outline[i] == g.DISC:
            inside &= (a - 0.5) ** 2 + (b - 0.5) ** 2 <= 0.25
        if scene.outline[i] == g.OCTAGON:
            inside &= np.abs(a - 0.5) + np.abs(b - 0.5) <= 0.7071
        found[i] = np.where(inside & (t >= nearest), t, np.inf)
    for i in range(len(scene.centre)):
        inverse = np.linalg.inv(scene.axes[i])
        local, along = (start - scene.centre[i]) @ inverse.T, direction @ inverse.T
        offset, step = local.copy(), along.copy()
        if scene.cylinder[i]:
            offset[:, 1], step[:, 1] = 0, 0
        a, b, c = (step**2).sum(1), (step * offset).sum(1), (offset**2).sum(1) - 1
        inside = b * b - a * c
        t = (-b - np.sqrt(np.maximum(inside, 0))) / a
        ok = (inside >= 0) & (t >= nearest) & (c > 0)
        if scene.cylinder[i]:
            ok &= np.abs(local[:, 1] + t * along[:, 1]) <= 1
        found[scene.quads + i] = np.where(ok, t, np.inf)
    return found
