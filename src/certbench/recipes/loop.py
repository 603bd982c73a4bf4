"""The training loop that recipes share; a recipe adds the loss of a batch.

Each epoch's randomness (order, augmentation, noise, dropout) starts from a seed derived from the
run's seed and the epoch. So a state at the end of an epoch is weights and momentum alone, and a
killed training goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from certbench.datasets.masks import IGNORE
from certbench.errors import CertbenchError
from certbench.recipes.context import TrainingContext, derived_seed
from certbench.recipes.objective import right
from certbench.recipes.optimisation import Optimisation, learning_rate

_RESIDENT_BYTES = 8 << 30  # images up to this size move to the device once
_VALIDATION_BATCH = 500
_VALIDATION_PIXELS = 1 << 21  # in a batch whose pixels are all classified


@dataclass
class Cost:
    """Images that passed through the network, and gradients that came back.

    The loop counts what goes through the whole network; a loss that calls parts of it adds to this.
    """

    forward: int = 0
    backward: int = 0


@dataclass
class Batch:
    """One batch of augmented images.

    Attributes:
        images: float32 [B, 3, H, W] in [0, 1].
        labels: int64 [B], or label maps int64 [B, H, W] with 255 where a pixel has no class.
        epoch: Number of the epoch, from 0.
        generator: Source of all randomness of the epoch, on the images' device.
        cost: Passes of the epoch so far.
    """

    images: torch.Tensor
    labels: torch.Tensor
    epoch: int
    generator: torch.Generator
    cost: Cost = field(default_factory=Cost)

    def noise(self, sigma: float, copies: int = 1) -> torch.Tensor:
        """Gaussian noise of std ``sigma``, float32 [copies * B, 3, H, W].

        Copy s of image i is row ``s * B + i``, as in ``images.repeat(copies, 1, 1, 1)``.
        """
        shape = (copies * len(self.images), *self.images.shape[1:])
        return sigma * torch.randn(shape, generator=self.generator, device=self.images.device)

    def uniform(self) -> torch.Tensor:
        """One number in [0, 1) per image, float32 [B]."""
        return torch.rand(len(self.images), generator=self.generator, device=self.images.device)


#: Loss to minimise and the logits behind it, [copies * B, K] or, of label maps,
#: [copies * B, K, H, W], in the row order of Batch.noise.
BatchLoss = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]


def fit(
    context: TrainingContext, batch_loss: BatchLoss, *, sigma: float = 0.0, copies: int = 1
) -> None:
    """Train the context's network by stochastic gradient descent.

    Args:
        context: Network, images, parameters (an :class:`Optimisation`), services.
        batch_loss: Loss and logits of one batch.
        sigma: Std of the noise under which validation accuracy is measured.
        copies: Noisy copies of each image in a batch: ``batch_size // copies`` images per step.

    Raises:
        CertbenchError: The loss became NaN or infinite.
    """
    params: Optimisation = context.params
    device = context.device
    network = context.network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = context.images, context.labels.to(device)
    if images.numel() <= _RESIDENT_BYTES:
        images = images.to(device)
    optimiser = _optimiser(network, params)
    first = _restore(context, network, optimiser)
    batches = -(-len(labels) // max(1, params.batch_size // copies))
    generator = torch.Generator(device)
    for epoch in range(first, params.epochs):
        with _seeded(derived_seed(context.seed, "epoch", epoch), device), _counted(network) as cost:
            generator.manual_seed(derived_seed(context.seed, "batches", epoch))
            network.train()
            # Equal parts, not full batches and a rest: batch normalisation suffers from a tiny one.
            order = torch.randperm(len(labels), generator=generator, device=device)
            loss_sum = torch.zeros((), device=device)
            correct, seen = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
            rate = 0.0
            for number, chosen in enumerate(torch.tensor_split(order, batches)):
                rate = learning_rate(params, epoch * batches + number, params.epochs * batches)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                pixels = images[chosen.to(images.device)].to(device)
                wanted = labels[chosen]
                places = moves(pixels, params.flip, params.crop_padding, generator)
                pixels = moved(pixels, places)
                if wanted.ndim > 1:
                    wanted = moved(wanted[:, None], places, IGNORE)[:, 0].long()
                batch = Batch(pixels.float() / 255, wanted, epoch, generator, cost)
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=params.precision == "bfloat16"
                ):
                    loss, logits = batch_loss(network, batch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                with torch.no_grad():
                    loss_sum += loss.detach() * len(chosen)
                    hits, counted = right(logits, batch.labels)
                    correct += hits
                    seen += counted
                context.bar.update(len(chosen))
            mean_loss = float(loss_sum) / len(labels)
            if not np.isfinite(mean_loss):
                raise CertbenchError(
                    f"the loss is {mean_loss} in epoch {epoch + 1}",
                    where="training",
                    remedy="lower learning_rate, or choose schedule: one_cycle",
                )
            accuracy = int(correct) / max(1, int(seen))
            if context.val_images is not None and context.val_labels is not None:
                accuracy = noisy_accuracy(
                    network, context.val_images, context.val_labels, sigma, context.seed, device
                )
        context.log_epoch(epoch + 1, mean_loss, accuracy, rate, cost.forward, cost.backward)
        context.checkpoint.save(_state(network, optimiser, epoch + 1))
    network.eval()


@dataclass(frozen=True)
class Moves:
    """Where the pixels of each augmented image come from, in images padded by ``padding``.

    Attributes:
        rows: int64 [B, H].
        columns: int64 [B, W].
        padding: Pixels added on each side.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    padding: int


def augment(
    images: torch.Tensor, flip: bool, padding: int, generator: torch.Generator
) -> torch.Tensor:
    """Random shift by up to ``padding`` pixels (black outside) and random mirror image.

    Args:
        images: uint8 [B, C, H, W].
        flip: Whether to mirror half of the images.
        padding: Largest shift in pixels.
        generator: Source of randomness, on the images' device.
    """
    return moved(images, moves(images, flip, padding, generator))


def moves(
    images: torch.Tensor, flip: bool, padding: int, generator: torch.Generator
) -> Moves | None:
    """The moves that :func:`augment` makes; None where it makes none. Label maps make them too."""
    if not flip and not padding:
        return None
    count, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(count, height)
    columns = torch.arange(width, device=device).expand(count, width)
    if flip:
        mirrored = torch.rand((count, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    if padding:
        shift = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + shift[0], columns + shift[1]
    return Moves(rows, columns, padding)


def moved(images: torch.Tensor, moves: Moves | None, outside: int = 0) -> torch.Tensor:
    """Images or maps [B, C, H, W] after the moves, with one value outside of them."""
    if moves is None:
        return images
    if moves.padding:
        images = functional.pad(images, [moves.padding] * 4, value=outside)
    item = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return images[item, channel, moves.rows[:, None, :, None], moves.columns[:, None, None, :]]


@torch.no_grad()
def noisy_accuracy(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    sigma: float,
    seed: int,
    device: torch.device,
) -> float:
    """Accuracy of the network itself, not of its smoothed version, under one noise per image.

    Of label maps it is the share of the pixels that have a class.

    Args:
        network: Images in [0, 1] to logits; left in eval mode.
        images: uint8 [M, 3, H, W].
        labels: int64 [M], or label maps uint8 [M, H, W].
        sigma: Std of the noise, in pixel values of [0, 1].
        seed: The noise is the same for the same seed.
        device: Where the network is.
    """
    network.eval()
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "validation"))
    correct, seen = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    size = _VALIDATION_BATCH
    if labels.ndim > 1:
        size = max(1, min(size, _VALIDATION_PIXELS // labels[0].numel()))
    for start in range(0, len(labels), size):
        part = images[start : start + size].to(device).float() / 255
        if sigma:
            part = part + sigma * torch.randn(part.shape, generator=generator, device=device)
        wanted = labels[start : start + size].to(device).long()
        hits, counted = right(network(part), wanted)
        correct += hits
        seen += counted
    return int(correct) / max(1, int(seen))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients to the weights, for an attack within a training step."""
    wanted = [(p, p.requires_grad) for p in network.parameters()]
    training = network.training
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


@contextmanager
def _counted(network: nn.Module) -> Iterator[Cost]:
    """Count the images that pass through the network, and the gradients that come back."""
    cost = Cost()

    def came_back(gradient: torch.Tensor) -> None:
        cost.backward += len(gradient)

    def passed(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        cost.forward += len(output)
        if output.requires_grad:
            output.register_hook(came_back)

    handle = network.register_forward_hook(passed)
    try:
        yield cost
    finally:
        handle.remove()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (dropout reads them); restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _optimiser(network: nn.Module, params: Optimisation) -> torch.optim.Optimizer:
    if params.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(),
            lr=params.learning_rate,
            betas=(params.momentum, 0.999),
            weight_decay=params.weight_decay,
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=params.learning_rate,
        momentum=params.momentum,
        nesterov=params.nesterov and params.momentum > 0,
        weight_decay=params.weight_decay,
    )


def _state(network: nn.Module, optimiser: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    """Copies of weights and optimiser state after ``epoch`` epochs, as numpy arrays."""
    state: dict[str, Any] = {"epoch": epoch}
    for name, value in network.state_dict().items():
        state[f"model.{name}"] = value.detach().cpu().numpy().copy()
    for index, parameter in enumerate(optimiser.param_groups[0]["params"]):
        for name, value in optimiser.state[parameter].items():
            if value is not None:
                state[f"optimiser.{index}.{name}"] = value.detach().cpu().numpy().copy()
    return state


def _restore(context: TrainingContext, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Take up the newest checkpoint; return the number of epochs it has done."""
    state = context.checkpoint.load()
    if state is None:
        return 0
    weights = {}
    parameters = optimiser.param_groups[0]["params"]
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = torch.from_numpy(np.array(value))
        elif kind == "optimiser":
            index, _, key = rest.partition(".")
            parameter = parameters[int(index)]
            # Copied: the optimiser writes into it, and the checkpoint must not change.
            held = torch.from_numpy(np.array(value))
            optimiser.state[parameter][key] = (
                held.to(parameter.device) if held.shape == parameter.shape else held
            )
    network.load_state_dict(weights)
    return int(state["epoch"])
