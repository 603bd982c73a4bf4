"""Cost of smoothing: the published loop against ours, and the targets P1, P3, P5 to P9.

    python benchmarks/smoothing.py                      # everything, a few minutes
    python benchmarks/smoothing.py speed --compile      # with torch.compile (slow start)
    python benchmarks/smoothing.py --clock cpu          # CPU seconds, on a machine that is busy
    python benchmarks/smoothing.py efficiency --models resnet20,resnet110,resnet50

The network is a CIFAR ResNet-20 at 32 x 32: trained weights and real images below
``CERTBENCH_DATA``, else random weights and random images, and the table says which. Contestants are
timed in turns (interleaved repeats), and the median of each is shown. Part ``efficiency`` takes
other networks too, with random weights: ResNet-110 at 32 x 32, ResNet-50 at 224 x 224.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from certbench.certify import noise as noises
from certbench.certify import randomized_smoothing, sampling, sequential_smoothing, votes
from certbench.certify.protocol import CollectWork, Shard
from certbench.models import cifar_resnet
from certbench.models.network import Network
from certbench.params import as_dict

SIGMA, CLASSES, N0 = 0.25, 10, 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# --- the published loop, as a fixture ------------------------------------------------------------


class Normalise(nn.Module):
    """The published input layer: constants repeated to the size of the batch, then permuted."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def forward(self, x):
        """Standardised images."""
        count, _, height, width = x.shape
        mean = self.mean.to(x.device).repeat((count, height, width, 1)).permute(0, 3, 1, 2)
        std = self.std.to(x.device).repeat((count, height, width, 1)).permute(0, 3, 1, 2)
        return (x - mean) / std


def published_counts(model, x, n: int, batch: int) -> np.ndarray:
    """Votes of n noisy copies of one image, by the operations of the published code."""
    counts = np.zeros(CLASSES, dtype=int)
    with torch.no_grad():
        while n > 0:
            size = min(batch, n)
            n -= size
            copies = x.repeat((size, 1, 1, 1))
            drawn = torch.randn_like(copies) * SIGMA
            for vote in model(copies + drawn).argmax(1).cpu().numpy():
                counts[vote] += 1
    return counts


def published_certify(model, images, n: int, batch: int) -> np.ndarray:
    """Selection and estimation, image after image, the selection in a batch of its own."""
    made = []
    for x in images:
        published_counts(model, x, N0, batch)
        made.append(published_counts(model, x, n, batch))
    return np.stack(made)


# --- model and images ----------------------------------------------------------------------------


def load(count: int) -> tuple[Network, torch.Tensor, str]:
    """A ResNet-20 in eval mode, images, and where they come from."""
    net = cifar_resnet.build(cifar_resnet.Params(20), CLASSES)
    folder = os.environ.get("CERTBENCH_DATA")
    said = "random weights and images (CERTBENCH_DATA is not set)"
    if folder:
        import pyarrow.parquet as pq
        from PIL import Image

        from certbench.models.checkpoints import load_into, read_state

        weights = Path(folder) / "models" / "cifar10_resnet20_sigma0.25.safetensors"
        load_into(net, read_state(weights), str(weights))
        file = pq.ParquetFile(Path(folder) / "data" / "cifar10-jpeg" / "test.parquet")
        rows = next(file.iter_batches(count, columns=["image"])).to_pylist()
        pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        said = "trained weights, CIFAR-10 test images (JPEG copies)"
    else:
        torch.manual_seed(0)
        images = torch.randint(0, 256, (count, 3, 32, 32)).float() / 255
    network = Network(net, cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD, CLASSES)
    return network.to(DEVICE).eval().requires_grad_(False), images.contiguous(), said


def ours(
    model, images, n: int, *, numerics="fast", batch=400, backend="auto", start=0, classes=CLASSES
):
    """Votes of both streams, as the certifier counts them."""
    options = {
        "sigma": SIGMA,
        "num_classes": classes,
        "noise": sampling.Noise(1, backend),
        "batch_size": batch,
        "numerics": numerics,
        "device": DEVICE,
    }
    items = np.arange(len(images))
    sampling.count_votes(model, images, items, noises.SELECTION, 0, N0, **options)
    return sampling.count_votes(
        model, images, items, noises.ESTIMATION, start, start + n, **options
    )


def bare(model, batch: int, passes: int, side: int = 32) -> Callable[[], None]:
    """The same module on a resident batch of the same dtype, layout and size, full batches only."""
    x = torch.rand(batch, 3, side, side, device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(passes // batch):
                model(x)

    return run


def timed(contestants: dict[str, Callable], repeats: int, clock: str) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, after one warm-up round."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            before = now()
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if turn:
                spent[name].append(now() - before)
    return {name: float(np.median(times)) for name, times in spent.items()}


# --- parts ---------------------------------------------------------------------------------------


def speed(arguments) -> None:
    """P1 and P3: images a second against the published loop and against the bare module."""
    network, images, _ = load(arguments.images)
    published = nn.Sequential(
        Normalise(cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD), network.net
    ).eval()
    n, count = arguments.n, len(images)
    passes = count * (n + N0)
    folded, layout = sampling.for_inference(network)
    models = {"eager": folded}
    shapes = {
        numerics: sampling.batch_shape(numerics, 400, passes, images[0].numel(), DEVICE)
        for numerics in ("fast", "exact")
    }
    if arguments.compile:
        began = time.perf_counter()
        models["compiled"], _ = sampling.for_inference(network, compiled=True)
        for batch in shapes.values():
            bare(models["compiled"], batch, batch)()
        print(f"  compiling two batch shapes took {time.perf_counter() - began:.1f} s wall")
    if arguments.bfloat16:
        models["bfloat16"], _ = sampling.for_inference(
            network, compiled=arguments.compile, precision="bfloat16"
        )
    began = time.perf_counter()
    backends = list(dict.fromkeys(["eager", noises.resolve_backend(DEVICE)]))
    print(f"  the fastest noise backend was ready after {time.perf_counter() - began:.1f} s wall")
    moved = images.to(DEVICE)
    contestants: dict[str, Callable] = {
        f"published loop, batch {batch}": lambda b=batch: published_certify(published, moved, n, b)
        for batch in dict.fromkeys((400, shapes["fast"]))
    }
    pairs: dict[str, str] = {}
    counted: dict[str, int] = {}
    for name, model in models.items():
        for numerics, batch in shapes.items():
            resident = f"bare {name} {layout}, batch {batch}"
            counted[resident] = max(1, passes // batch) * batch
            contestants[resident] = bare(model, batch, counted[resident])
            for backend in backends:
                mine = f"ours, {numerics}, {name} model, {backend} noise"
                contestants[mine] = lambda m=model, k=numerics, b=backend: ours(
                    m, images, n, numerics=k, backend=b
                )
                pairs[mine] = resident
    found = {
        name: seconds * passes / counted.get(name, passes)
        for name, seconds in timed(contestants, arguments.repeats, arguments.clock).items()
    }
    first = found["published loop, batch 400"]
    print(f"  {'':58s} passes/s   x published  of bare")
    for name, seconds in found.items():
        rate = f"{passes / seconds:9,.0f}"
        share = f"{100 * found[pairs[name]] / seconds:5.1f} %" if name in pairs else ""
        print(f"  {name:58s} {rate} {first / seconds:10.2f}   {share}")
    a, b = ours(folded, images, n), ours(network, images, n)
    print(f"  votes that differ, folded against as given: {np.abs(a - b).sum() / 2 / a.sum():.1e}")
    best = max(found[pairs[name]] / found[name] for name in pairs)
    for kind, least in (("compiled", 1.8), ("eager", 1.3)):
        for numerics in shapes if kind in models else ():
            gain = max(first / found[name] for name in pairs if f"{numerics}, {kind}" in name)
            said = _verdict(gain >= least)
            print(f"  P1 {numerics}, {kind} model >= {least} x published: {gain:.2f} {said}")
    print(f"  P3 >= 90 % of the bare module: best {100 * best:.1f} % {_verdict(best >= 0.9)}")


#: Name, side of the images, classes.
NETWORKS = {"resnet20": (32, 10), "resnet110": (32, 10), "resnet50": (224, 1000)}

#: A target of 90 % makes sense where a pass costs more than this for as many noise values as a
#: CIFAR image has; below it the ratio is stated alone.
LEAST_MMAC = 40


def network_of(name: str) -> Network:
    """An architecture with random weights, in eval mode."""
    torch.manual_seed(0)
    _, classes = NETWORKS[name]
    if name == "resnet50":
        import torchvision

        net = torchvision.models.resnet50(num_classes=classes)
    else:
        net = cifar_resnet.build(cifar_resnet.Params(int(name.removeprefix("resnet"))), classes)
    network = Network(net, cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD, classes)
    return network.to(DEVICE).eval().requires_grad_(False)


def mmac(network: Network, side: int) -> float:
    """Millions of multiplications of convolutions and linear layers for one image."""
    found = []

    def count(module, given, made):
        per_output = module.weight[0].numel()
        found.append(per_output * made[0].numel())

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side, device=DEVICE))
    for hook in hooks:
        hook.remove()
    return sum(found) / 1e6


def efficiency(arguments) -> None:
    """P3 by network: share of the bare module's throughput, median of turns, eager model."""
    now = time.process_time if arguments.clock == "cpu" else time.perf_counter
    backends = list(dict.fromkeys(["eager", noises.resolve_backend(DEVICE)]))
    for name in arguments.models.split(","):
        side, classes = NETWORKS[name]
        batch = sampling.batch_shape("fast", 400, 400, 3 * side * side, DEVICE)
        network = network_of(name)
        model, layout = sampling.for_inference(network)
        per_image = mmac(network, side) * 3072 / (3 * side * side)
        images = torch.rand(1, 3, side, side)
        passes = max(arguments.passes // (side // 32) ** 2 // batch, 1) * batch
        resident = bare(model, batch, passes, side)

        def timed_once(run) -> float:
            before = now()
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            return now() - before

        def certify(backend, model=model, images=images, batch=batch, classes=classes, n=passes):
            options = {"num_classes": classes, "noise": sampling.Noise(1, backend)}
            sampling.count_votes(
                model, images, [0], noises.ESTIMATION, 0, n, sigma=SIGMA, batch_size=batch,
                numerics="fast", device=DEVICE, **options,
            )  # fmt: skip

        print(f"  {name}, {side} x {side}, {layout}, batch {batch}, {passes} passes a turn, "
              f"{per_image:.0f} MMAC per 3,072 noise values")  # fmt: skip
        for backend in backends:
            shares, rates = [], []
            for turn in range(arguments.repeats + 1):
                # The bare module before and after, so that a drift of the machine cancels.
                first = timed_once(resident)
                mine = timed_once(lambda b=backend: certify(b))
                last = timed_once(resident)
                if turn:
                    shares.append((first + last) / 2 / mine)
                    rates.append(passes / mine)
            share = float(np.median(shares))
            said = _verdict(share >= 0.9) if per_image >= LEAST_MMAC else ""
            print(f"    {backend:8s} noise {np.median(rates):9,.1f} passes/s "
                  f"{100 * share:6.1f} % of bare, turns {100 * min(shares):.1f} to "
                  f"{100 * max(shares):.1f} {said}")  # fmt: skip


def work_of(network, images, params, samples, **changes) -> CollectWork:
    """A shard's work."""
    made = {
        "network": network,
        "params": params,
        "images": images,
        "labels": np.zeros(len(images), np.int32),
        "item_index": np.arange(len(images), dtype=np.uint32),
        "samples": samples,
        "seed64": 1,
        "device": torch.device(DEVICE),
        "batch_size": 400,
        "numerics": "exact",
        "noise_backend": "auto",
        "model_sha256": "-",
        "variant": "clean",
    }
    return CollectWork(**{**made, **changes})


def shard_of(plugin, work: CollectWork) -> Shard:
    """The shard as it would be written."""
    import pyarrow as pa

    columns, identity = plugin.collect(work)
    slot = columns.pop("slot")
    return Shard(Path("-"), pa.table({**columns, "item_index": work.item_index[slot]}), identity)


def sequential(arguments) -> None:
    """P5 and P6: samples that stopping takes, on real votes, against the fixed budget."""
    from certbench.certify.intervals import cp_lower
    from certbench.certify.radii import radius_one

    network, images, _ = load(arguments.images)
    budget = arguments.budget
    grid = tuple(0.25 * k for k in range(1, 5))
    items = np.arange(len(images), dtype=np.uint32)
    fixed_params = randomized_smoothing.CollectParams(sigma=SIGMA, n=budget, n0=N0)
    chunk = {"sigma": SIGMA, "n0": N0}
    fixed_shard = shard_of(randomized_smoothing, work_of(network, images, chunk, (0, budget)))
    merged = randomized_smoothing.merge([fixed_shard], fixed_params, items)
    top = merged.selected[:, :-1].argmax(1)
    radius = radius_one(cp_lower(merged.estimated[items, top], budget, 0.001), SIGMA)
    questions = {
        "grid 0.25": {"radii": grid},
        "grid 0.5": {"radii": grid[1::2]},
        "r = 0.25 (1 sigma)": {"radii": (0.25,)},
        "r = 0.5 (2 sigma)": {"radii": (0.5,)},
        "radius within 0.025": {"tolerance": 0.025},
    }
    print(f"  {len(images)} images, sigma {SIGMA}, budget {budget}, doubling looks from 100")
    for name, question in questions.items():
        params = sequential_smoothing.CollectParams(sigma=SIGMA, n=budget, n0=N0, **question)
        stats = sequential_smoothing.merge(
            [shard_of(sequential_smoothing, work_of(network, images, as_dict(params), (0, None)))],
            params,
            items,
        )
        made = sequential_smoothing.decide(
            stats, params, sequential_smoothing.DecideParams(), np.zeros(len(items), int)
        )
        used = made["n_used"]
        lost = [
            int((radius >= r).sum() - (made["radius"] >= r).sum())
            for r in question.get("radii", grid)
        ]
        print(
            f"    {name:22s} mean n {used.mean():8.0f} ({100 * used.mean() / budget:5.1f} %)"
            f"  median {np.median(used):6.0f}  certificates lost {lost}"
            f"  open {int((~made['conclusive']).sum())}"
        )
    print("  over 100,000 samples and published logs: benchmarks/smoothing_statistics.py replay")


def memory(arguments) -> None:
    """P7: the peak does not grow with n."""
    network, images, _ = load(2)
    model, _ = sampling.for_inference(network)

    def peak() -> float:
        if DEVICE == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    bare(model, 400, 800)()
    alone = peak()
    ours(model, images, 400)
    few = peak()
    ours(model, images, 4000)
    many = peak()
    print(f"  peak {alone:.0f} MB bare module, {few:.0f} MB at n = 400, {many:.0f} MB at n = 4000")
    copies = 2 * 3600 * 3 * 32 * 32 * 4 / 2**20
    print(f"  the copies between 400 and 4000 would take {copies:.0f} MB", _verdict(many - few < 8))


def statistics(arguments) -> None:
    """P8: certificates of 10000 images and certified accuracy at 13 radii, from stored votes."""
    import pandas as pd

    from certbench.metrics.certification import certified_accuracy, radius_grid

    generator = np.random.default_rng(0)
    size, n = 10_000, 100_000
    top = generator.binomial(n, generator.beta(6, 1, size))
    estimated = np.zeros((size, CLASSES + 1), np.int64)
    estimated[:, 3], estimated[:, 5] = top, n - top
    stats = votes.Votes(
        np.arange(size, dtype=np.uint32), estimated, estimated,
        {"seed64": "1", "shape": [3, 32, 32], "scheme": "-", "backend": "-", "dtype": "float32"},
    )  # fmt: skip
    collect = randomized_smoothing.CollectParams(sigma=0.5, n=n)
    labels = np.full(size, 3)

    def run(options) -> None:
        made = randomized_smoothing.decide(
            stats, collect, randomized_smoothing.DecideParams(**options), labels
        )
        frame = pd.DataFrame({k: made[k] for k in ("predict", "radius")} | {"label": labels})
        certified_accuracy(frame, radius_grid(0.25, 13))

    for options in ({}, {"bound": "two"}, {"interval": "cp_randomised"}):
        spent = timed({"": lambda o=options: run(o)}, 3, arguments.clock)[""]
        print(f"  {options or 'one bound'!s:32s} {spent:6.3f} s {_verdict(spent < 2)}")


def invariance(arguments) -> None:
    """P9: equal counts for any batch size and any shards, in exact numerics."""
    network, images, _ = load(2)
    n = arguments.n
    params = randomized_smoothing.CollectParams(sigma=SIGMA, n=n, n0=N0)
    items = np.arange(2, dtype=np.uint32)

    def merged(pieces: int, batch_size: int) -> np.ndarray:
        edges = np.linspace(0, n, pieces + 1).astype(int)
        shards = []
        for a, b in itertools.pairwise(edges):
            work = work_of(
                network,
                images,
                {"sigma": SIGMA, "n0": N0 if a == 0 else 0},
                (int(a), int(b)),
                batch_size=batch_size,
            )
            shards.append(shard_of(randomized_smoothing, work))
        return randomized_smoothing.merge(shards[::-1], params, items).estimated

    reference = merged(1, 400)
    for pieces, batch_size in ((1, 64), (1, 1000), (3, 400), (10, 400)):
        same = np.array_equal(merged(pieces, batch_size), reference)
        print(f"  {pieces:2d} shards, batch_size {batch_size:4d}: equal counts {_verdict(same)}")
    model, _ = sampling.for_inference(network)
    a, b = (ours(model, images, n, batch=size) for size in (64, 400))
    differ = np.abs(a - b).sum() / 2 / a.sum()
    print(f"  fast numerics, batch 64 against 400: {differ:.1e} of the votes differ",
          _verdict(differ <= 1e-4))  # fmt: skip


def _verdict(met: bool) -> str:
    return "(met)" if met else "(MISSED)"


PARTS = {
    "memory": memory,
    "speed": speed,
    "efficiency": efficiency,
    "sequential": sequential,
    "statistics": statistics,
    "invariance": invariance,
}


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--images", type=int, default=4, help="images")
    parser.add_argument("--n", type=int, default=2000, help="samples per image")
    parser.add_argument("--budget", type=int, default=5000, help="largest n of part sequential")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument(
        "--models", default="resnet20", help=f"of part efficiency: {sorted(NETWORKS)}"
    )
    parser.add_argument(
        "--passes", type=int, default=2000, help="32 x 32 passes a turn, efficiency"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="seconds counted")
    parser.add_argument("--bfloat16", action="store_true", help="time bfloat16 passes too")
    parser.add_argument("--compile", action="store_true", help="time the compiled model too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _, _, said = load(1)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"ResNet-20, 3 x 32 x 32, float32 on {name}: {said}; clock: {arguments.clock}")
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part '{part}': choose {', '.join(PARTS)}")
        print(f"{part}: {PARTS[part].__doc__}")
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
