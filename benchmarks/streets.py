"""Speed of the street renderer and of the 3D corruptions, and what wrong depth changes.

    python benchmarks/streets.py                       # scenes per second on one core
    python benchmarks/streets.py sizes                 # the same from 64 x 128 to 512 x 1024
    python benchmarks/streets.py corruptions           # milliseconds per image and type
    python benchmarks/streets.py depth                 # sensitivity to the depth map
    python benchmarks/streets.py sheet OUT.png         # contact sheet of seeds and conditions

What counts is processor time, which other programs on the machine disturb least (they still share
its caches and memory), of each scene in the fastest of several rounds. Wall time of the same
renders, disturbances included, stands beside it, and the load of the machine. With ``--check`` the
exit status tells whether 50 scenes per second of processor time were reached.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from certbench.corruptions import three_d, three_d_scene
from certbench.corruptions.three_d_depth import from_metres
from certbench.datasets.streets_classes import CLASSES, CONDITIONS
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_scene import render, render_description

TARGET = 50.0
"""Scenes per second at 96 x 192 on one core, averaged over the conditions."""


def fastest(work, rounds: int) -> float:
    """Processor seconds of the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def speed(height: int, width: int, seeds: int, rounds: int) -> float:
    """Print scenes per second for each condition; returns that of an equal mix."""
    busy: dict[tuple[str, int], float] = {}
    spent: dict[str, list[float]] = {condition: [0.0, 0.0] for condition in CONDITIONS}
    for condition in CONDITIONS:
        render(0, height, width, condition)
    # Conditions in turn, so that a disturbance does not fall on one of them.
    for _ in range(rounds):
        for condition in CONDITIONS:
            for seed in range(seeds):
                wall, processor = time.perf_counter(), time.process_time()
                render(seed, height, width, condition)
                processor = time.process_time() - processor
                key = (condition, seed)
                busy[key] = min(busy.get(key, math.inf), processor)
                spent[condition][0] += time.perf_counter() - wall
                spent[condition][1] += processor
    print("          processor time: fastest   all renders   wall time: all renders")

    def line(name: str, fastest: float, processor: float, wall: float) -> None:
        print(f"  {name:6s} {1 / fastest:15.1f} scenes/s {1 / processor:9.1f} {1 / wall:21.1f}")

    count = seeds * rounds
    best = {c: sum(busy[c, seed] for seed in range(seeds)) / seeds for c in CONDITIONS}
    for condition in CONDITIONS:
        wall, processor = spent[condition]
        line(condition, best[condition], processor / count, wall / count)
    mixed = sum(best.values()) / len(CONDITIONS)
    wall, processor = (sum(one[i] for one in spent.values()) / count / len(spent) for i in (0, 1))
    line("mixed", mixed, processor, wall)
    print(f"  at {height} x {width}; load of the machine {os.getloadavg()[0]:.1f}")
    return 1 / mixed


def shares(seeds: int) -> None:
    counts = np.zeros(len(CLASSES))
    for seed in range(seeds):
        counts += np.bincount(render(seed, 96, 192).labels.ravel(), minlength=len(CLASSES))
    for name, share in zip(CLASSES, counts / counts.sum(), strict=True):
        print(f"  {name:14s} {share:7.2%}")


def corruptions(rounds: int) -> None:
    """Milliseconds per image of all types at severity 5, on a street at 224 x 224."""
    description = describe(7)
    camera = description.camera(224, 224)
    render_description(description, camera)
    for name in three_d_scene.CORRUPTIONS:

        def work(name=name):
            three_d_scene.corrupt_scene(description, camera, name, 5, 1)

        print(f"  {name:24s} {1e3 * fastest(work, rounds):8.0f} ms")


def depth_sensitivity(seeds: int) -> None:
    """Mean change, in grey levels, that noisy or constant depth makes to a corruption's result.

    The last column is the change that the corruption itself makes to the image.
    """
    types = [name for name in three_d.CORRUPTIONS if name in three_d.NEEDS_DEPTH]
    types = [name for name in types if name not in three_d.FAMILIES["video"]]
    print(f"  {'severity 3':18s} {'10 % noise':>10s} {'constant':>10s} {'corruption':>10s}")
    for name in types:
        rows = []
        for seed in range(seeds):
            scene = render(seed, 96, 192)
            true = from_metres(scene.depth)
            rng = np.random.Generator(np.random.PCG64(seed))
            noisy = true * np.exp(0.1 * rng.standard_normal(true.shape)).astype(np.float32)
            constant = np.full_like(true, np.median(true))
            outs = [
                three_d.corrupt_3d(scene.rgb, depth, name, 3, seed, radius_width=512).astype(int)
                for depth in (true, noisy, constant)
            ]
            rows.append(
                [np.abs(out - outs[0]).mean() for out in outs[1:]]
                + [np.abs(outs[0] - scene.rgb).mean()]
            )
        noise, plane, whole = np.mean(rows, axis=0)
        print(f"  {name:18s} {noise:10.2f} {plane:10.2f} {whole:10.2f}")


def sheet(path: str, seeds: int) -> None:
    """A contact sheet: one seed a row, one condition a column."""
    from PIL import Image

    rows = [
        np.concatenate([render(seed, 128, 256, condition).rgb for condition in CONDITIONS], axis=1)
        for seed in range(seeds)
    ]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
    print(f"  {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        nargs="?",
        default="speed",
        choices=("speed", "sizes", "shares", "corruptions", "depth", "sheet"),
    )
    parser.add_argument("path", nargs="?", default="streets.png")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.what == "sizes":
        for height in (64, 128, 256, 512):
            speed(height, 2 * height, max(2, args.seeds * 64 // height), 2)
    elif args.what == "shares":
        shares(10 * args.seeds)
    elif args.what == "corruptions":
        corruptions(2)
    elif args.what == "depth":
        depth_sensitivity(args.seeds)
    elif args.what == "sheet":
        sheet(args.path, args.seeds)
    else:
        reached = speed(96, 192, args.seeds, args.rounds)
        if args.check and reached < TARGET:
            print(f"  below {TARGET:.0f} scenes per second", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
