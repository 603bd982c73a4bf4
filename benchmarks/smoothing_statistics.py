"""Cost of the statistics, throughput of the noise, and samples saved by sequential stopping.

    python benchmarks/smoothing_statistics.py                        # everything
    python benchmarks/smoothing_statistics.py replay --log PATH=0.5  # replay a published log

The replay needs a distribution of pA (the top class's probability) over images. It takes, in this
order: published logs named by ``--log FILE=SIGMA``; votes of the trained CIFAR-10 network below
``CERTBENCH_DATA``; else a simulated distribution, and says which.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from certbench.certify import noise
from certbench.certify.attainable import ladder_inverse
from certbench.certify.intervals import cp_lower, two_bounds
from certbench.certify.radii import radius_one
from certbench.certify.sequential import StoppingRule, doubling_looks
from certbench.certify.significance import predict_pvalue
from certbench.metrics.certification import certified_accuracy, radius_grid

ALPHA = 0.001
N = 100_000


def timed(function, *arguments, least_s: float = 1.0) -> float:
    """Median seconds of repeated calls."""
    function(*arguments)
    times = []
    start = time.perf_counter()
    while time.perf_counter() - start < least_s or len(times) < 3:
        before = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def statistics() -> None:
    """P8: statistics of 10000 images at 13 radii in less than 2 s."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 10, 10_000)
    predict = np.where(generator.random(10_000) < 0.8, label, 10)
    votes = generator.binomial(N, generator.beta(6, 1, 10_000))
    grid = radius_grid(0.25, 13)

    def images() -> None:
        import pandas as pd

        radius = radius_one(cp_lower(votes, N, ALPHA), 0.5)
        certified_accuracy(
            pd.DataFrame({"label": label, "predict": predict, "radius": radius}), grid
        )

    print("statistics, 10000 images")
    print(f"  one-bound radii and certified accuracy at 13 radii  {timed(images):8.3f} s")
    runner = (N - votes) // 2
    print(f"  two bounds             {timed(two_bounds, votes, runner, N, ALPHA):8.3f} s")
    print(f"  PREDICT p-values       {timed(predict_pvalue, votes, runner):8.3f} s")


def throughput() -> None:
    """Noise per second of each backend that works here."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = ["eager", noise.resolve_backend(device)]
    threads = torch.get_num_threads()
    print(f"noise on {device}, {threads} threads, float32 Gaussian, 3 x 32 x 32")
    for backend in dict.fromkeys(backends):
        for batch in (64, 400):
            images = torch.arange(batch, device=device) % 7
            samples = torch.arange(batch, device=device)
            out = torch.empty(batch, 3, 32, 32, device=device)

            def make(images=images, samples=samples, out=out, backend=backend) -> None:
                noise.noise_batch(
                    1, noise.ESTIMATION, images, samples, (3, 32, 32), 0.5, backend=backend, out=out
                )
                if device == "cuda":
                    torch.cuda.synchronize()

            rate = batch / timed(make)
            print(f"  {backend:9s} batch {batch:4d}  {rate:12,.0f} samples/s")


def from_log(path: str, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """PA of every image and whether its prediction is right, from a published log."""
    from certbench.results.published_logs import ladder_check, read_log

    log = read_log(path, sigma, "published", "published")
    radius = log["radius"].to_numpy()
    fit = ladder_check(radius, sigma, [(N, 0.001), (N, 0.01)])[0]
    counts = ladder_inverse(radius, sigma, N, fit.alpha)
    correct = log["correct"].to_numpy(zero_copy_only=False)
    # What abstained images had is unknown; 0.45 is typical of a close second place.
    return np.where(counts >= 0, counts / N, 0.45), correct


def from_checkpoint(
    folder: Path, sigma: float, images: int, votes: int
) -> tuple[np.ndarray, np.ndarray]:
    """PA of test images under the trained network, and whether its prediction is right."""
    import io

    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    from certbench.certify.smoothing import Noise, count_votes
    from certbench.models import cifar_resnet
    from certbench.models.checkpoints import load_into, read_state

    net = cifar_resnet.build(cifar_resnet.Params(20), 10)
    weights = folder / "models" / f"cifar10_resnet20_sigma{sigma}.safetensors"
    load_into(net, read_state(weights), str(weights))
    mean, std = (
        torch.tensor(c).view(1, 3, 1, 1)
        for c in (cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD)
    )
    net = net.eval().to(memory_format=torch.channels_last)

    def model(batch: torch.Tensor) -> torch.Tensor:
        return net(((batch - mean) / std).contiguous(memory_format=torch.channels_last))

    table = pq.read_table(folder / "data" / "cifar10-jpeg" / "test.parquet")
    chosen = np.arange(images) * (len(table) // images)
    rows = table.take(chosen).to_pylist()
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    )
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    options = {
        "sigma": sigma,
        "num_classes": 10,
        "noise": Noise(seed=noise.seed64(0, "cifar10")),
        "batch_size": 400,
        "numerics": "fast",
        "device": "cpu",
    }
    selected = count_votes(model, batch, chosen, noise.SELECTION, 0, 100, **options)
    counted = count_votes(model, batch, chosen, noise.ESTIMATION, 0, votes, **options)
    top = selected[:, :-1].argmax(1)
    share = (counted[np.arange(images), top] + 0.5) / (votes + 1)
    return share, top == np.array([row["label"] for row in rows])


def replay(name: str, sigma: float, p: np.ndarray, correct: np.ndarray) -> None:
    """P5 and P6: samples and certificates of the stopping rules against the fixed N."""
    generator = np.random.default_rng(1)
    doubling = doubling_looks(N)
    hundred = tuple(range(100, N + 1, 100))
    fine = np.cumsum(generator.binomial(100, p[:, None], (p.size, len(hundred))), axis=1)
    at = {"looks": fine[:, np.array(doubling) // 100 - 1], "mixture": fine}
    schedule = {"looks": doubling, "mixture": hundred}
    fixed = radius_one(cp_lower(fine[:, -1], N, ALPHA), sigma)
    grid_max = 4 * sigma
    print(f"{name}: {p.size} images, fixed N = {N}, alpha = {ALPHA}")

    def run(method: str, **question) -> tuple[np.ndarray, np.ndarray, int]:
        rule = StoppingRule(sigma, ALPHA, schedule[method], method=method, **question)
        made = rule.certificates(rule.replay(at[method], np.zeros(p.size, int)))
        return made["radius"], made["n_used"], int(np.sum(~made["conclusive"]))

    for z in (1.0, 2.0, 3.0):
        r = z * sigma
        for method in at:
            radius, used, open_ = run(method, radii=(r,))
            certified = f"{np.sum(radius >= r):4d} (fixed N {np.sum(fixed >= r)})"
            print(
                f"  r = {r:<5g} {method:8s} mean n {used.mean():8.0f}"
                f"  median {np.median(used):6.0f}  certified {certified}  open {open_}"
            )
    for step in (0.5, 0.25):
        grid = np.arange(1, int(grid_max / step) + 1) * step
        for method in at:
            radius, used, _ = run(method, radii=tuple(grid))
            error = max(abs(np.mean(correct & (radius >= r)) - np.mean(correct & (fixed >= r)))
                        for r in grid)  # fmt: skip
            print(
                f"  grid {step:<4g} {method:8s} mean n {used.mean():8.0f}"
                f"  largest error of certified accuracy {100 * error:.1f} points"
            )
    for tolerance in (0.1 * sigma,):
        radius, used, _ = run("looks", tolerance=tolerance)
        print(
            f"  radius within {tolerance:g}: mean n {used.mean():8.0f}"
            f"  mean loss of radius {np.mean(fixed - radius):.4f}"
        )


def replays(logs: list[str], images: int, votes: int) -> None:
    """Replay every pA distribution there is."""
    for log in logs:
        path, _, sigma = log.rpartition("=")
        replay(f"log {path}", float(sigma), *from_log(path, float(sigma)))
    folder = os.environ.get("CERTBENCH_DATA")
    if folder:
        for sigma in (0.25, 0.5):
            found = from_checkpoint(Path(folder), sigma, images, votes)
            replay(
                f"CIFAR-10 ResNet-20, sigma {sigma}, pA from {votes} votes per image", sigma, *found
            )
    elif not logs:
        generator = np.random.default_rng(2)
        p = np.where(generator.random(500) < 0.2, 0.45, 1 - 10 ** generator.uniform(-6, -0.3, 500))
        replay("simulated pA (no images at CERTBENCH_DATA)", 0.5, p, generator.random(500) < 0.8)


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["statistics", "noise", "replay"])
    parser.add_argument("--log", action="append", default=[], metavar="FILE=SIGMA")
    parser.add_argument("--images", type=int, default=100, help="images that vote")
    parser.add_argument("--votes", type=int, default=1000, help="votes per image")
    chosen = parser.parse_args()
    for part in chosen.parts:
        if part == "statistics":
            statistics()
        elif part == "noise":
            throughput()
        elif part == "replay":
            replays(chosen.log, chosen.images, chosen.votes)
        else:
            parser.error(f"unknown part '{part}': choose statistics, noise, replay")


if __name__ == "__main__":
    main()
