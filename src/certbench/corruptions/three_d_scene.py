"""3D corruptions of whole street scenes: camera, objects and light are changed, then re-rendered.

View changes, occlusion and scale follow the families of Kar et al. (CVPR 2022), who released no
parameters for them; those here are this project's, which the suffix ``_streets`` says. Relighting
(``shadow``, ``multi_illumination``) has the published formulas on this renderer's lamps. The
corruptions of images run on the render with its true depth.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from certbench.corruptions import three_d
from certbench.corruptions.three_d_depth import STREETS_FULL_SCALE_M, from_metres
from certbench.datasets import streets_objects as objects
from certbench.datasets.streets_camera import Camera
from certbench.datasets.streets_geometry import Placed, linear, turned
from certbench.datasets.streets_layout import SceneDescription
from certbench.datasets.streets_planner import CAR_PAINTS
from certbench.datasets.streets_relight import HALF_DISTANCE, camera_shading, light_renders
from certbench.datasets.streets_scene import Scene, render_description

FIELD_OF_VIEW = (1.15, 1.30, 1.45, 1.60, 1.75)
"""Factors on the horizontal angle of view, which stays below 125 degrees."""

WIDEST = 125.0

ROLL = (2.0, 4.0, 6.0, 8.0, 10.0)
"""Degrees, to either side."""

PITCH = (2.0, 4.0, 6.0, 8.0, 10.0)
"""Degrees, up or down."""

JITTER_M = (0.08, 0.16, 0.28, 0.42, 0.60)
JITTER_DEGREES = (0.8, 1.6, 2.6, 3.8, 5.0)
"""Largest shift of the camera along each axis, and largest turn about each."""

OCCLUSION = (0.06, 0.12, 0.18, 0.26, 0.36)
"""Share of the picture that the back of the vehicle ahead covers."""

SCALE = (0.85, 0.70, 0.55, 0.42, 0.30)
"""Factors on the size of all cars, people and bicycles."""

MULTI_BASE = (1.0, 0.5, 0.35, 0.25, 0.2)
"""Weight of each of 1, 2, ... 5 lamps."""

LAMPS = 10

VIEW = (
    "field_of_view_streets",
    "camera_roll_streets",
    "camera_pitch_streets",
    "view_jitter_streets",
)
SEMANTIC = ("occlusion_streets", "scale_streets")
RELIT = ("shadow", "multi_illumination")

FAMILIES = {
    **three_d.FAMILIES,
    "lighting": (*three_d.FAMILIES["lighting"], *RELIT),
    "view": VIEW,
    "semantics": SEMANTIC,
}
CORRUPTIONS = tuple(name for family in FAMILIES.values() for name in family)


def corrupt_scene(
    description: SceneDescription,
    camera: Camera,
    corruption: str,
    severity: int,
    seed: int,
    condition: str = "clear",
) -> Scene:
    """Render a street scene under a corruption.

    Labels, depth and instances follow the picture for view and semantic changes; for motion they
    stay those of the start view.

    Args:
        description: The scene.
        camera: The clean view.
        corruption: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: Integer >= 0 of this image; severities share the draw.
        condition: Weather and light.

    Raises:
        CertbenchError: Unknown corruption, severity, seed or condition; a video type without PyAV.
    """
    three_d.check(corruption, severity, seed, CORRUPTIONS)
    if corruption in VIEW:
        moved = moved_camera(camera, corruption, severity, seed)
        return render_description(description, moved, condition)
    if corruption == "occlusion_streets":
        return render_description(occluded(description, camera, severity, seed), camera, condition)
    if corruption == "scale_streets":
        return render_description(rescaled(description, SCALE[severity - 1]), camera, condition)

    scene = render_description(description, camera, condition)
    if corruption in RELIT:
        lights = light_renders(description, camera, seed, LAMPS)
        rgb = relit(scene.rgb, lights, corruption, severity, seed)
    else:
        rgb = three_d.corrupt_3d(
            scene.rgb,
            from_metres(scene.depth),
            corruption,
            severity,
            seed,
            reshading=camera_shading(description, camera) if corruption == "flash" else None,
            focal=camera.focal,
            half_distance=HALF_DISTANCE / STREETS_FULL_SCALE_M,
            radius_width=512,
        )
    return dataclasses.replace(scene, rgb=rgb)


def moved_camera(camera: Camera, corruption: str, severity: int, seed: int) -> Camera:
    """The camera of a view corruption.

    Args:
        camera: The clean view.
        corruption: One of :data:`VIEW`.
        severity: 1 to 5.
        seed: Of the image.
    """
    rng = three_d.generator(seed, corruption)
    i = severity - 1
    if corruption == "field_of_view_streets":
        return camera.moved(field_of_view=min(WIDEST, camera.field_of_view * FIELD_OF_VIEW[i]))
    if corruption == "camera_roll_streets":
        return camera.moved(roll=camera.roll + float(rng.choice((-1, 1))) * ROLL[i])
    if corruption == "camera_pitch_streets":
        return camera.moved(pitch=camera.pitch + float(rng.choice((-1, 1))) * PITCH[i])
    shift = rng.uniform(-1, 1, 3) * JITTER_M[i] @ camera.rotation
    yaw, pitch, roll = rng.uniform(-1, 1, 3) * JITTER_DEGREES[i]
    x, y, z = np.asarray(camera.position) + shift
    return camera.moved(
        position=(float(x), float(max(y, 0.3)), float(z)),
        yaw=camera.yaw + float(yaw),
        pitch=camera.pitch + float(pitch),
        roll=camera.roll + float(roll),
    )


def occluded(
    description: SceneDescription, camera: Camera, severity: int, seed: int
) -> SceneDescription:
    """The scene with a vehicle close ahead; what stood in its place or before it is taken away.

    Args:
        description: The scene.
        camera: The view that is blocked.
        severity: 1 to 5.
        seed: Of the image: picks the vehicle and its place.
    """
    rng = three_d.generator(seed, "occlusion_streets")
    name, width, height, length = (("van", 2.0, 2.15, 5.2), ("suv", 1.88, 1.72, 4.5))[
        int(rng.integers(2))
    ]
    side, paint = float(rng.uniform(-0.28, 0.28)), int(rng.integers(len(CAR_PAINTS)))
    share = OCCLUSION[severity - 1]
    distance = camera.focal * math.sqrt(width * height / (share * camera.height * camera.width))
    yaw = math.radians(camera.yaw)
    ahead, right = (
        np.array([math.sin(yaw), math.cos(yaw)]),
        np.array([math.cos(yaw), -math.sin(yaw)]),
    )
    eye = np.array([camera.position[0], camera.position[2]])
    lateral = side * distance * camera.width / camera.focal
    place = eye + (distance + length / 2) * ahead + lateral * right

    placed = description.placed
    offset = placed.position[:, [0, 2]] - eye
    depth, across = offset @ ahead, offset @ right
    reach = np.where(description.things, 2.2, 0.9)
    on_line = np.abs(across - lateral * np.clip(depth / distance, 0, 1)) < reach + width / 2
    ground = description.things | np.isin(placed.part, _street_furniture())
    gone = ground & on_line & (depth > -1) & (depth < distance + length + 2.2)
    kept = np.flatnonzero(~gone)
    return description.replaced(
        Placed(
            part=np.append(placed.part[kept], objects.library().index(name)),
            position=np.vstack([placed.position[kept], [place[0], 0.0, place[1]]]),
            frame=np.concatenate([placed.frame[kept], turned(yaw)[None]]),
            colours=np.concatenate(
                [placed.colours[kept], linear(np.tile(CAR_PAINTS[paint], (1, 3, 1)))]
            ),
            params=np.vstack([placed.params[kept], np.array([[0, 0, 1, 0]], np.float32)]),
            key=np.append(placed.key[kept], np.uint32(seed % 65536)),
        )
    )


def rescaled(description: SceneDescription, factor: float) -> SceneDescription:
    """The scene with all cars, people and bicycles scaled about where they touch the ground.

    Args:
        description: The scene.
        factor: Positive factor on their size.
    """
    placed = description.placed
    factors = np.where(description.things, factor, 1.0)[:, None, None]
    return description.replaced(dataclasses.replace(placed, frame=placed.frame * factors))


def relit(
    image: np.ndarray, lights: np.ndarray, corruption: str, severity: int, seed: int
) -> np.ndarray:
    """Multiply an image by the light of lamps.

    ``shadow`` draws five lamps and takes the brightest for severity 1, the darkest for 5:
    ``clip(x l (1 + 0.1 U))``. ``multi_illumination`` adds 6 - severity lamps drawn with
    replacement: ``clip(x sum w l)``, ``w = base + 0.1 U``.

    Args:
        image: uint8 [H, W, 3].
        lights: float32 [n, H, W] in [0, 1].
        corruption: ``shadow`` or ``multi_illumination``.
        severity: 1 to 5.
        seed: Of the image.
    """
    rng = three_d.generator(seed, corruption)
    x = image.astype(np.float32) / np.float32(255)
    if corruption == "shadow":
        drawn = rng.choice(len(lights), 5, replace=False)
        extra = rng.random(5)
        bright = sorted(drawn, key=lambda i: (-float(lights[i].mean()), i))
        light = lights[bright[severity - 1]] * np.float32(1 + 0.1 * extra[severity - 1])
    else:
        count = 6 - severity
        drawn, extra = rng.integers(0, len(lights), 5), rng.random(5)
        weights = (MULTI_BASE[count - 1] + 0.1 * extra[:count]).astype(np.float32)
        light = np.tensordot(weights, lights[drawn[:count]], axes=1)
    return (np.clip(x * light[..., None], 0, 1) * np.float32(255)).astype(np.uint8)


def _street_furniture() -> np.ndarray:
    """Parts that stand on the pavement and may be in an occluder's way."""
    names = objects.library().names
    loose = (
        "signpost",
        "sign_",
        "signal",
        "bollard",
        "lamppost",
        "mast",
        "tree",
        "bush",
        "conifer",
    )
    return np.array(
        [i for i, name in enumerate(names) if name.startswith(loose) and name != "treeline"]
    )
