"""How many images per second a model takes on named hardware: a table, and a probe.

The table starts from two published measurements and scales them: by multiply-accumulates to other
networks of the same image size, by peak float32 rate to other GPUs. That is good to a factor of
about two, enough to see a week coming; :func:`probe` measures the real thing in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from certbench.errors import CertbenchError, did_you_mean


@dataclass(frozen=True)
class Hardware:
    """A processor.

    Attributes:
        name: What it is.
        float32: Peak float32 rate without tensor cores, in TFLOP/s, from its data sheet.
        fast: How much faster ``numerics: fast`` (TF32 tensor cores, autotuning) is.
    """

    name: str
    float32: float
    fast: float


HARDWARE = {
    "a100": Hardware("NVIDIA A100 80 GB", 19.5, 2.5),
    "h100": Hardware("NVIDIA H100 SXM 80 GB", 66.9, 1.5),
    "v100": Hardware("NVIDIA V100 32 GB", 15.7, 1.0),
    "rtx2080ti": Hardware("NVIDIA RTX 2080 Ti", 13.4, 1.0),
    "cpu": Hardware("one x86 server core", 0.05, 1.0),
}

# Cohen, Rosenfeld, Kolter (ICML 2019), section 4: certifying one image with n = 100,000 takes
# 110 s for ResNet-50 on ImageNet and 15 s for ResNet-110 on CIFAR-10, on an RTX 2080 Ti.
REFERENCE = "rtx2080ti"
MEASURED = {"resnet50": 100_000 / 110, "cifar_resnet110": 100_000 / 15}

# Multiply-accumulates of one forward pass in 10^9, at 224 x 224 (cifar_resnet, small_cnn: 32 x 32),
# from the papers and model cards of these networks.
MACS = {
    "cifar_resnet20": 0.041,
    "cifar_resnet32": 0.069,
    "cifar_resnet44": 0.097,
    "cifar_resnet56": 0.125,
    "cifar_resnet110": 0.253,
    "small_cnn": 0.020,
    "resnet18": 1.82,
    "resnet34": 3.67,
    "resnet50": 4.11,
    "resnet101": 7.83,
    "resnet152": 11.6,
    "wide_resnet50_2": 11.4,
    "densenet121": 2.87,
    "efficientnet_b0": 0.40,
    "mobilenetv3_large_100": 0.22,
    "convnext_tiny": 4.47,
    "convnext_small": 8.70,
    "convnext_base": 15.4,
    "vit_tiny_patch16_224": 1.26,
    "vit_small_patch16_224": 4.61,
    "vit_base_patch16_224": 17.6,
    "swin_tiny_patch4_window7_224": 4.51,
    "beit_large_patch16_512": 362.0,
}
_SMALL = ("cifar_resnet", "small_cnn")


def hardware_of(devices: Iterable[str]) -> str:
    """Key of :data:`HARDWARE` for the names that torch gives devices; ``cpu`` where none fits."""
    names = " ".join(devices).lower().replace(" ", "")
    return next((key for key in HARDWARE if key != "cpu" and key in names), "cpu")


@dataclass(frozen=True)
class Rate:
    """Forward passes per second, and where the number comes from."""

    images_per_s: float
    source: str


def architecture(builder: Mapping[str, Any]) -> str:
    """Name of a planned model's architecture, as the table knows it."""
    params = builder["params"]
    if builder["name"] == "cifar_resnet":
        return f"cifar_resnet{params['depth']}"
    return str(params.get("name", builder["name"])).split(".")[0]


def rate(hardware: str, model: str, side: int | None, numerics: str = "exact") -> Rate | None:
    """Forward passes per second from the table, or None for a model it does not know.

    Args:
        hardware: Key of :data:`HARDWARE`.
        model: As from :func:`architecture`.
        side: Height of the images in pixels, None where the view does not say.
        numerics: ``exact`` or ``fast``.

    Raises:
        CertbenchError: Unknown hardware.
    """
    if hardware not in HARDWARE:
        raise CertbenchError(
            f"unknown hardware '{hardware}'",
            where="--hardware",
            remedy=did_you_mean(hardware, HARDWARE),
        )
    macs = MACS.get(model)
    if macs is None:
        return None
    small = model.startswith(_SMALL)
    base = "cifar_resnet110" if small else "resnet50"
    native = 512 if model.endswith("512") else 32 if small else 224
    area = ((side or native) / native) ** 2
    chip = HARDWARE[hardware]
    scale = chip.float32 / HARDWARE[REFERENCE].float32 * (chip.fast if numerics == "fast" else 1.0)
    value = MEASURED[base] * MACS[base] / (macs * area) * scale
    exact = hardware == REFERENCE and model == base and area == 1
    how = "measured" if exact else f"scaled from {base} on {HARDWARE[REFERENCE].name}"
    return Rate(value, f"{chip.name}, {how}")


def probe(work: Mapping[str, Any], seconds: float, batch_size: int) -> Rate:
    """Measure a planned certification: noise, forward pass and vote, on this machine.

    Weights are drawn at random: time does not depend on them.

    Args:
        work: Work of a planned ``collect`` or ``predict`` job, with ``task``, ``builder``,
            ``num_classes`` and ``side`` added.
        seconds: How long to measure, after a warm-up.
        batch_size: Images per forward pass.
    """
    import numpy as np
    import torch

    from certbench import plugins
    from certbench.certify import smoothing
    from certbench.job import Job
    from certbench.models.network import Network
    from certbench.params import build

    job = Job("collect", dict(work), {}, {})
    device, side = job.device, int(work["side"])
    block = work["builder"]
    builder = plugins.load("model", block["name"], tuple(work["plugins"]), where="probe")
    params = build(builder.Params, block["params"], "probe")
    net = builder.build(params, work["num_classes"], pretrained=False)
    if work["task"] == "segmentation":  # one vote an image is counted, whatever its pixels say
        net = torch.nn.Sequential(net, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    whole = Network(net, (0.5,) * 3, (0.25,) * 3, work["num_classes"])
    model, _ = smoothing.for_inference(whole.to(device).eval().requires_grad_(False))
    images = torch.rand((1, 3, side, side))

    def votes(count: int, start: int) -> None:
        smoothing.count_votes(
            model,
            images,
            np.zeros(1, np.int64),
            1,
            start,
            start + count,
            sigma=0.25,
            num_classes=work["num_classes"],
            noise=smoothing.Noise(0, work["noise_backend"]),
            batch_size=batch_size,
            numerics=work["numerics"],
            device=device,
        )

    count = batch_size
    votes(count, 0)
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        votes(count, done)
        done += count
        if time.perf_counter() - began < seconds / 8:
            count *= 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Rate(done / spent, f"measured here: {name}, {torch.get_num_threads()} threads")
