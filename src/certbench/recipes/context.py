"""What a recipe is given: the network, the images, and the services of the training job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from certbench.models.network import Network


class Checkpoint(Protocol):
    """Where a recipe keeps its state, so that a killed job goes on."""

    def load(self) -> dict[str, Any] | None:
        """The newest state saved for this very work, or None."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep numpy arrays and JSON values; they must not change afterwards."""


class LogEpoch(Protocol):
    """Takes one row of the training table."""

    def __call__(
        self,
        epoch: int,
        loss: float,
        accuracy: float,
        learning_rate: float,
        n_forward: int = 0,
        n_backward: int = 0,
    ) -> None:
        """Keep a row: epoch from 1, mean loss, accuracy in [0, 1], images through the network."""


class NoCheckpoint:
    """Keeps nothing: for notebooks and short trainings."""

    def load(self) -> None:
        """There is never an earlier state."""

    def save(self, state: dict[str, Any]) -> None:
        """Forget the state."""


class NoBar:
    """Shows nothing."""

    def update(self, count: int) -> None:
        """Ignore that ``count`` more images are done."""


def _forget(*_: Any, **__: Any) -> None:
    pass


@dataclass
class TrainingContext:
    """Everything that a recipe's ``train(context)`` works with.

    Attributes:
        network: The model to train, on ``device``; ``train`` leaves it in eval mode.
        images: Training images, uint8 [N, 3, H, W].
        labels: Their classes, int64 [N]; for segmentation label maps, uint8 [N, H, W] with 255
            where a pixel has no class.
        params: The recipe's ``Params``.
        seed: Seed of the run; the same seed gives the same weights on the same machine.
        device: Where to train.
        val_images: Validation images, uint8 [M, 3, H, W], or None.
        val_labels: Their classes or label maps, or None.
        log_epoch: Takes the row of an epoch.
        checkpoint: Keeps the state after each epoch.
        bar: Progress in images.
    """

    network: Network
    images: torch.Tensor
    labels: torch.Tensor
    params: Any
    seed: int
    device: torch.device
    val_images: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None
    log_epoch: LogEpoch = _forget
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)
    bar: Any = field(default_factory=NoBar)


def derived_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose (an epoch, the initial weights), independent of the others.

    Args:
        seed: Seed of the run.
        purpose: Names and numbers of the purpose.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


TrainFunction = Callable[[TrainingContext], None]
