"""Parameters that every recipe shares, and the learning rate they mean (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from certbench.params import param

SCHEDULES = ("step", "cosine", "one_cycle", "constant")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Optimiser, length, learning rate, augmentation.

    The defaults are those of Cohen, Rosenfeld and Kolter (ICML 2019) for CIFAR-10.
    """

    epochs: int = param(90, help="passes over the training images", minimum=1)
    batch_size: int = param(
        400,
        help="network inputs per step; noisy copies of one image count",
        unit="inputs",
        minimum=1,
    )
    optimiser: str = param(
        "sgd",
        help="sgd with momentum; adamw is Adam with decoupled weight decay",
        choices=("sgd", "adamw"),
    )
    learning_rate: float = param(0.1, help="largest learning rate", above=0)
    schedule: str = param("step", help="course of the learning rate", choices=SCHEDULES)
    decay_at: tuple[float, ...] = param(
        (1 / 3, 2 / 3),
        help="where schedule step multiplies the learning rate by gamma",
        unit="fractions of the training",
        above=0,
        below=1,
    )
    gamma: float = param(0.1, help="factor of schedule step", above=0, maximum=1)
    warmup: float = param(
        0.3,
        help="where schedule one_cycle reaches its peak",
        unit="fraction of the training",
        minimum=0,
        below=1,
    )
    momentum: float = param(0.9, help="momentum of sgd; first beta of adamw", minimum=0, below=1)
    nesterov: bool = param(False, help="Nesterov's momentum, for sgd")
    weight_decay: float = param(1e-4, help="weight decay", minimum=0)
    flip: bool = param(True, help="mirror half of the images; wrong for digits and signs")
    crop_padding: int = param(
        4, help="shift images by up to this much, black outside", unit="pixels", minimum=0
    )
    precision: str = param(
        "float32", help="arithmetic of the passes", choices=("float32", "bfloat16")
    )


def learning_rate(params: Optimisation, step: int, steps: int) -> float:
    """Learning rate of one step.

    ``one_cycle`` climbs from 1/25 of the peak and falls to 0, both along half a cosine (Smith and
    Topin, "Super-Convergence", 2019).

    Args:
        params: The optimisation.
        step: Number of steps done, from 0.
        steps: Number of steps of the whole training.
    """
    progress = step / steps
    if params.schedule == "step":
        passed = sum(progress >= mark for mark in params.decay_at)
        return params.learning_rate * params.gamma**passed
    if params.schedule == "cosine":
        return params.learning_rate * _half_cosine(progress)
    if params.schedule == "one_cycle":
        if progress < params.warmup:
            low = params.learning_rate / 25
            return low + (params.learning_rate - low) * (1 - _half_cosine(progress / params.warmup))
        return params.learning_rate * _half_cosine((progress - params.warmup) / (1 - params.warmup))
    return params.learning_rate


def _half_cosine(progress: float) -> float:
    """Falls from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))
