"""What the job entry hands to an attack plug-in, and what a plug-in says of its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Passes:
    """What the steps of an attack ask of a model for one image that survives all of them.

    Stopping early is not subtracted. The start of a run takes up to two forward passes and one
    backward pass more, which are left out.

    Attributes:
        forward: Forward passes of what it climbs or searches.
        backward: Backward passes.
        steps: Steps after which a prediction rule may be asked (it is, every ``judge_every``).
    """

    forward: int = 0
    backward: int = 0
    steps: int = 0

    @classmethod
    def climb(cls, steps: int, each: int = 1) -> Passes:
        """Gradient steps of ``each`` passes forward and back."""
        return cls(steps * each, steps * each, steps)

    @classmethod
    def search(cls, queries: int) -> Passes:
        """Queries without gradients."""
        return cls(queries, 0, queries)

    def __add__(self, other: Passes) -> Passes:
        """One attack after the other."""
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.steps + other.steps,
        )


class Progress(Protocol):
    """A resumable progress file; what was saved last is what is loaded."""

    def load(self) -> dict[str, Any] | None:
        """The state saved last (numpy arrays, numbers, text), or None at the first start."""

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state atomically."""


class Work(Protocol):
    """One shard of images and the model or defence to attack.

    Attributes:
        params: The plug-in's ``Params``.
        logits: float32 [n, C, H, W] in [0, 1] -> logits [n, K], differentiable in its argument;
            None where the target has no gradients.
        judge: float32 [n, C, H, W] -> int64 [n], the prediction rule whose answer counts, with
            -1 for an abstention; None means the argmax of the logits.
        images: float32 [N, C, H, W] in [0, 1], on ``device``.
        labels: int64 [N].
        item_index: int64 [N], the place of each image in its split; keys the random numbers.
        seed64: The run's seed for this dataset.
        device: Where the images and the model are.
        batch_size: Images per forward pass.
        num_classes: K.
        progress: Progress file, or None.
        tick: Called with (images done, images in all).

    Optional attributes, read with a default:
        scores: like ``logits`` but without gradients, for attacks that need only scores
            (default: ``logits``).
        exact: pad every batch to ``batch_size``, so that an image's arithmetic does not depend
            on its company (default: False).

    A ``logits``, ``scores`` or ``judge`` whose noise belongs to the image states
    ``needs_items = True`` and is called with ``items=`` (int64 [n] numpy, entries of
    ``item_index``) as well. One that calls the network more than once for an image states
    ``passes``, the number of times.
    """

    params: Any
    logits: Callable[..., torch.Tensor] | None
    judge: Callable[..., torch.Tensor] | None
    images: torch.Tensor
    labels: torch.Tensor
    item_index: np.ndarray
    seed64: int
    device: Any
    batch_size: int
    num_classes: int
    progress: Progress | None
    tick: Callable[[int, int], None]
