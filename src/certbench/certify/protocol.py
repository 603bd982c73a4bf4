"""What certifier plug-ins are given, and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

# The class of an image on which a certifier gives no answer.
ABSTAIN = -1


@dataclass
class CollectWork:
    """One shard of model calls.

    Attributes:
        network: The model, in eval mode: float32 [N, C, H, W] in [0, 1] -> logits [N, K].
        params: The collect parameters this shard depends on.
        images: float32 [M, C, H, W] in [0, 1], on the CPU.
        labels: int32 [M].
        item_index: uint32 [M], keys of the items' random numbers.
        samples: Half-open range of samples; ``stop`` is None for methods without samples.
        seed64: Seed of the dataset's random numbers.
        device: Torch device.
        batch_size: Images per forward pass.
        numerics: ``exact`` or ``fast``.
        noise_backend: Requested noise backend.
        model_sha256: Identity of the weights.
        variant: Identity of the variant.
        progress: Resumable progress of this job, or None.
        tick: Called with the number of forward passes done since the last call.
    """

    network: Any
    params: Mapping[str, Any]
    images: torch.Tensor
    labels: np.ndarray
    item_index: np.ndarray
    samples: tuple[int, int | None]
    seed64: int
    device: Any
    batch_size: int
    numerics: str
    noise_backend: str
    model_sha256: str
    variant: str
    progress: Any = None
    tick: Callable[[int], None] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.network.num_classes)


@dataclass(frozen=True)
class Shard:
    """A written shard: its rows, what it may be merged with, and where it lies."""

    path: Path
    rows: pa.Table
    identity: Mapping[str, Any]


@dataclass
class SurfaceWork:
    """What a certifier needs to say how it is attacked.

    Attributes:
        network: The base model.
        params: What the plug-in's ``attack_params`` chose (default, all parameters), JSON values.
        num_classes: K.
        seed64: Seed of the dataset's random numbers.
        device: Torch device.
        batch_size: Images per forward pass.
        numerics: ``exact`` or ``fast``.
        noise_backend: Requested noise backend.
    """

    network: Any
    params: Mapping[str, Any]
    num_classes: int
    seed64: int
    device: Any
    batch_size: int
    numerics: str
    noise_backend: str = "auto"


@dataclass(frozen=True)
class Surface:
    """How a defended predictor is attacked.

    Attributes:
        logits: Differentiable objective, float32 [n, C, H, W] -> [n, K]; None without gradients.
        judge: The certified prediction rule, float32 [n, C, H, W] -> int64 [n], -1 abstains. Both
            may state ``needs_items`` and ``passes`` (see :mod:`certbench.attacks.protocol`).
        confirm: The same rule with random numbers that no attack has seen, called once with
            ``items=`` on what looks broken; None for deterministic rules.
        scores: Objective of attacks that need no gradients; None means ``logits``.
        attacked: Name of the objective ``logits``, as rows tell it.
        judged_by: The prediction rule with its settings, as rows tell it.
        objectives: Every surrogate of the defence by name, for attacks that try them all; ``base``
            is the model without its defence.
    """

    logits: Callable[..., Any] | None
    judge: Callable[..., Any] | None
    confirm: Callable[..., Any] | None = None
    scores: Callable[..., Any] | None = None
    attacked: str = "defence"
    judged_by: str = ""
    objectives: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
