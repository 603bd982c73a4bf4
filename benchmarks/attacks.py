"""AutoAttack against the published implementation, and the overhead of an APGD step.

    python benchmarks/attacks.py             # both
    python benchmarks/attacks.py agreement   # needs pyautoattack==0.2.0
    python benchmarks/attacks.py throughput --device cuda

Agreement: the same digits network and images, standard suite; accuracy within 1 point and at least
97 % equal per-image flags (random starts differ). Throughput: APGD steps per second against bare
forward and backward passes of the same module on the same resident batch.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from certbench.attacks import apgd, autoattack
from certbench.attacks.losses import LOSSES
from certbench.attacks.target import Target


class Work:
    """The least that an attack plug-in needs."""

    judge = progress = None
    seed64 = 0

    def __init__(self, params, model, x, y, batch_size):
        self.params, self.logits, self.images, self.labels = params, model, x, y
        self.item_index = np.arange(len(x))
        self.device, self.batch_size, self.num_classes = x.device, batch_size, 10

    def tick(self, done: int, total: int) -> None:
        """Show nothing."""


def digits(count: int):
    """A small network trained against attacks on scikit-learn's digits, and held-out images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    torch.manual_seed(0)
    x = torch.tensor(bunch.images / 16.0).float()[:, None]
    x = nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False)
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    held = 1797 - count
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        for batch in torch.randperm(held).split(100):
            delta = (torch.rand_like(x[batch]) * 2 - 1) * 0.15
            for _ in range(3):
                delta.requires_grad_(True)
                loss = nn.functional.cross_entropy(model((x[batch] + delta).clamp(0, 1)), y[batch])
                (slope,) = torch.autograd.grad(loss, delta)
                delta = (delta + 0.1 * slope.sign()).clamp(-0.15, 0.15).detach()
            optimiser.zero_grad()
            nn.functional.cross_entropy(model((x[batch] + delta).clamp(0, 1)), y[batch]).backward()
            optimiser.step()
    return model.eval().requires_grad_(False), x[held:].clone(), y[held:].clone()


def agreement(count: int, batch_size: int) -> None:
    """Standard AutoAttack: accuracies, equal flags and CPU seconds of both implementations."""
    from pyautoattack.autoattack import AutoAttack

    model, x, y = digits(count)
    print(f"digits, {count} images, batch {batch_size}, clean "
          f"{100 * float((model(x).argmax(1) == y).double().mean()):.2f} %")  # fmt: skip
    for norm, epsilon in (("linf", 0.1), ("l2", 0.7)):
        params = autoattack.Params(epsilon=epsilon, norm=norm)
        before = time.process_time()
        columns = autoattack.attack(Work(params, model, x, y, batch_size))
        ours_s = time.process_time() - before
        reference = AutoAttack(
            model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=0, device="cpu"
        )
        before = time.process_time()
        x_adv, _ = reference.run_standard_evaluation(x, y, batch_size=batch_size)
        theirs_s = time.process_time() - before
        ours = columns["status"] == "survived"
        theirs = (model(x_adv).argmax(1) == y).numpy()
        equal = 100 * np.mean(ours == theirs)
        names, hits = np.unique(columns["first_breaking_attack"], return_counts=True)
        breakers = dict(zip(names.tolist(), hits.tolist(), strict=True))
        print(f"{norm} {epsilon}, robust: {100 * ours.mean():.2f} %, first breakers {breakers}")
        print(f"  published: {100 * theirs.mean():.2f} %, equal flags {equal:.2f} %")
        print(f"  CPU {ours_s:.1f} s against {theirs_s:.1f} s (x{ours_s / theirs_s:.2f})")


def median_s(functions: dict, least_s: float, device: str) -> dict[str, float]:
    """Median seconds of each function, called in turn so that a busy machine hits all alike.

    CPU time on the CPU, which a shared machine disturbs less; wall time on a GPU, drained first.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time

    def once(function) -> float:
        before = clock()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - before

    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        once(function)
    while min(sum(t) for t in times.values()) < least_s or min(map(len, times.values())) < 5:
        for name, function in functions.items():
            times[name].append(once(function))
    return {name: float(np.median(t)) for name, t in times.items()}


def throughput(device: str, batch_size: int, size: int, steps: int) -> None:
    """Images per second of APGD steps and of bare forward and backward passes."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).to(device).eval().requires_grad_(False)
    x = torch.rand(batch_size, 3, size, size, device=device)
    y = model(x).argmax(1)
    loss = LOSSES["ce"]

    def bare() -> None:
        for _ in range(steps + 1):
            point = x.detach().requires_grad_(True)
            value = loss(model(point), y, None)
            torch.autograd.grad(value.sum(), point)

    functions = {"bare forward and backward": bare}
    for norm, epsilon in (("linf", 8 / 255), ("l2", 0.5)):
        params = apgd.Params(epsilon=epsilon, norm=norm, steps=steps, allow_short=True)

        def attack(params=params) -> None:
            target = Target(model)
            target.bind(x)
            apgd.Climb(target, x, y, torch.arange(len(x), device=device), params, loss).run(x)

        functions[f"APGD {norm}"] = attack
    seconds = median_s(functions, 5.0, device)
    base = seconds["bare forward and backward"]
    print(f"ResNet-18, {size} x {size}, batch {batch_size}, {device}, torch {torch.__version__}")
    for name, spent in seconds.items():
        rate = batch_size * (steps + 1) / spent
        print(f"  {name}: {rate:.1f} images/s ({100 * base / spent:.1f} % of bare)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("agreement", "throughput"))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="image side for throughput")
    parser.add_argument("--steps", type=int, default=10, help="APGD steps for throughput")
    arguments = parser.parse_args()
    if arguments.what in (None, "throughput"):
        throughput(arguments.device, arguments.batch_size, arguments.size, arguments.steps)
    if arguments.what in (None, "agreement"):
        agreement(arguments.images, arguments.batch_size)


if __name__ == "__main__":
    main()
