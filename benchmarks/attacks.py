"""AutoAttack against the published code, where its time goes, and the overhead of an APGD step.

    python benchmarks/attacks.py             # everything
    python benchmarks/attacks.py agreement   # needs pyautoattack==0.2.0
    python benchmarks/attacks.py profile
    python benchmarks/attacks.py throughput --device cuda

Agreement: the same digits network, images and batch, standard suite, three stated seeds; the mean
over the seeds of equal verdicts (target: at least 97 %) and of the difference in robust accuracy
(at most 1 point), beside the published code against itself under two seeds; and the time of ours
over that of the published code (at most 0.75), the two taking turns. Numerics are fast: no padding.
Exact numerics (``--numerics exact``) pad every batch to one shape, which costs as many more passes.
Profile: passes of each attack, replayed bare on resident batches, against the attack's own time.
Throughput: APGD steps per second against bare forward and backward passes of the same module on
the same resident batch (target: at least 90 %).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter

import numpy as np
import torch
from torch import nn

from certbench.attacks import apgd, autoattack
from certbench.attacks.losses import LOSSES
from certbench.attacks.target import Target


class Work:
    """The least that an attack plug-in needs."""

    judge = progress = None

    def __init__(self, params, model, x, y, batch_size, seed=0, exact=False):
        self.params, self.logits, self.images, self.labels = params, model, x, y
        self.seed64, self.exact = seed, exact
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


BALLS = (("linf", 0.1), ("l2", 0.7))


def clocks() -> np.ndarray:
    """Wall and CPU seconds so far."""
    return np.array([time.perf_counter(), time.process_time()])


def verdict(met: bool) -> str:
    """For the end of a line."""
    return "(met)" if met else "(MISSED)"


def agreement(count: int, batch_size: int, seeds: list[int], exact: bool) -> None:
    """Standard AutoAttack: equal verdicts, robust accuracies and seconds of both codes."""
    from pyautoattack.autoattack import AutoAttack

    model, x, y = digits(count)
    clean = 100 * float((model(x).argmax(1) == y).double().mean())
    numerics = "exact" if exact else "fast"
    print(f"digits, {count} images, batch {batch_size}, numerics {numerics}, clean {clean:.2f} %")
    for norm, epsilon in BALLS:
        params = autoattack.Params(epsilon=epsilon, norm=norm)
        ours, theirs, spent = [], [], np.zeros((2, 2))
        for seed in seeds:
            start = clocks()
            columns = autoattack.attack(Work(params, model, x, y, batch_size, seed, exact))
            half = clocks()
            reference = AutoAttack(
                model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=seed, device="cpu"
            )
            x_adv, _ = reference.run_standard_evaluation(x, y, batch_size=batch_size)
            spent += [half - start, clocks() - half]
            ours.append(columns["status"] == "survived")
            theirs.append((model(x_adv).argmax(1) == y).numpy())
            breakers = Counter(columns["first_breaking_attack"].tolist())
            breakers.pop("", None)
            print(
                f"  {norm} {epsilon}, seed {seed}: robust {100 * ours[-1].mean():.2f} %, published "
                f"{100 * theirs[-1].mean():.2f} %, broken first by {dict(breakers)}"
            )
        pairs = list(zip(ours, theirs, strict=True))
        equal, apart = _compared(pairs)
        print(
            f"  ours against published, mean of {len(pairs)} seeds: {equal:.2f} % equal verdicts"
            f" {verdict(equal >= 97)}, {apart:.2f} points apart {verdict(apart <= 1)}"
        )
        if len(seeds) > 1:
            equal, apart = _compared(list(itertools.combinations(theirs, 2)))
            print(f"  published against itself, all pairs of seeds: {equal:.2f} % equal verdicts, "
                  f"{apart:.2f} points apart")  # fmt: skip
        (wall, cpu), (their_wall, their_cpu) = spent
        print(f"  seconds of all seeds: wall {wall:.1f} against {their_wall:.1f} (x"
              f"{wall / their_wall:.2f}), CPU {cpu:.1f} against {their_cpu:.1f} (x"
              f"{cpu / their_cpu:.2f}) {verdict(wall / their_wall <= 0.75)}")  # fmt: skip


def _compared(pairs) -> tuple[float, float]:
    """Mean share of equal verdicts in per cent, and mean difference of accuracies in points."""
    equal = np.mean([np.mean(a == b) for a, b in pairs])
    apart = np.mean([abs(a.mean() - b.mean()) for a, b in pairs])
    return 100 * float(equal), 100 * float(apart)


class Recorder(nn.Module):
    """A model that notes the size of every batch, and whether a gradient is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, Counter()

    def forward(self, x):
        """Logits of ``x``."""
        self.seen[len(x), x.requires_grad] += 1
        return self.model(x)


def profile(count: int, batch_size: int) -> None:
    """Seconds of each attack of the suite, and of its passes replayed on resident batches."""
    from certbench.attacks import shard

    model, x, y = digits(count)
    print(f"digits, {count} images, batch {batch_size}, CPU seconds")
    for norm, epsilon in BALLS:
        recorder = Recorder(model).eval()
        params = autoattack.Params(epsilon=epsilon, norm=norm)
        found: dict[str, list[float]] = {}

        def timed(step, recorder=recorder, found=found):
            def run(*arguments):
                recorder.seen.clear()
                before = time.process_time()
                outcome = step.run(*arguments)
                spent = time.process_time() - before
                entry = found.setdefault(step.name, [0.0, 0.0])
                entry[0] += spent
                entry[1] += sum(n * bare_s(model, x[:size], grad)
                                for (size, grad), n in recorder.seen.items())  # fmt: skip
                return outcome

            return shard.Step(step.name, step.params, run, step.gradients)

        work = Work(params, recorder, x, y, batch_size)
        shard.attack_shard(work, [timed(s) for s in autoattack.suite(params, 10)], autoattack.EXTRA)
        for name, (spent, passes) in found.items():
            print(f"  {norm} {name:8s} {spent:6.2f} s, its passes alone {passes:6.2f} s "
                  f"({100 * passes / spent:.0f} %)")  # fmt: skip


def bare_s(model, x, grad: bool, repeats: int = 30) -> float:
    """Median CPU seconds of one forward pass, with its backward pass where ``grad``."""
    times = []
    for _ in range(repeats):
        before = time.process_time()
        if grad:
            point = x.detach().requires_grad_(True)
            torch.autograd.grad(model(point).sum(), point)
        else:
            with torch.no_grad():
                model(x)
        times.append(time.process_time() - before)
    return float(np.median(times))


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
    parser.add_argument("what", nargs="?", choices=("agreement", "profile", "throughput"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--numerics", choices=("fast", "exact"), default="fast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--size", type=int, default=32, help="image side for throughput")
    parser.add_argument("--steps", type=int, default=10, help="APGD steps for throughput")
    arguments = parser.parse_args()
    count, batch = arguments.images, arguments.batch_size
    if arguments.what in (None, "throughput"):
        throughput(arguments.device, min(batch, 128), arguments.size, arguments.steps)
    if arguments.what in (None, "profile"):
        profile(count, batch)
    if arguments.what in (None, "agreement"):
        agreement(count, batch, arguments.seeds, arguments.numerics == "exact")


if __name__ == "__main__":
    main()
