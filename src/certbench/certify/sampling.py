"""Votes of a classifier on noisy copies of images: the one place where smoothing runs a model.

Batches are lists of (image, sample) pairs, so several images share one and none needs a batch of
its own. Votes are added up where the model is; nothing is read back before the end, except to keep
progress. Noise belongs to the pair (:mod:`certbench.certify.noise`), so counts depend neither on
batches nor on shards, their order, or a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from certbench.certify import arguments
from certbench.certify import noise as noises
from certbench.errors import CertbenchError, did_you_mean

if TYPE_CHECKING:
    import torch

# Values in a batch on a CPU: 64 images of 3 x 32 x 32, though not fewer than four images. Larger
# batches leave the caches (ResNet-20: 1.25 times as slow at 400 images as at 64).
_CPU_VALUES = 64 * 3 * 32 * 32
_CPU_LEAST = 4

# Backends that add the noise and normalise in the kernel that makes it.
_FUSING = ("compiled", "triton")

PRECISIONS = ("float32", "bfloat16")

KINDS = ("gaussian", "uniform", "lattice")

#: ``(slot, image_ids, samples, out)``: write the network's input of each pair into ``out``; all
#: int64 [B], ``slot`` the image's position, ``out`` float32 [B, C, H, W] in channels-last layout.
Perturb: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]"


@dataclass(frozen=True)
class Noise:
    """Where the noise comes from.

    Attributes:
        seed: 64-bit seed, see :func:`certbench.certify.noise.seed64`.
        backend: One of :data:`certbench.certify.noise.BACKENDS`.
        kind: ``gaussian``; ``uniform`` on [-sigma, sigma] (l1 certificates); ``lattice``, Gaussian
            noise rounded to 1/255, drawn exactly (:mod:`certbench.certify.lattice`).
    """

    seed: int = 0
    backend: str = "auto"
    kind: str = "gaussian"

    def __post_init__(self) -> None:
        """Refuse an unknown kind, and a seed that is no integer."""
        arguments.whole(self.seed, "seed", minimum=0)
        if self.kind not in KINDS:
            raise CertbenchError(
                f"unknown kind of noise '{self.kind}'",
                where="noise",
                remedy=did_you_mean(self.kind, KINDS),
            )

    @property
    def scheme(self) -> str:
        """Name of the map from counters to noise: part of a shard's identity."""
        if self.kind == "lattice":
            from certbench.certify import lattice

            return lattice.SCHEME
        return noises.SCHEME

    def resolved_backend(self, device: Any) -> str:
        """The generator that makes this noise on a device: part of a shard's identity."""
        # Lattice noise is integer arithmetic: there is one generator, the same on all devices.
        return "integer" if self.kind == "lattice" else noises.resolve_backend(device, self.backend)


def require_eval(model: Any) -> None:
    """Refuse a module in train mode: batch statistics would couple the samples.

    Raises:
        CertbenchError: Some submodule is in train mode.
    """
    modules = getattr(model, "modules", None)
    if modules is not None and any(module.training for module in modules()):
        raise CertbenchError(
            "the model is in train mode: its samples would not be independent",
            where="model",
            remedy="call model.eval() first",
        )


def for_inference(
    model: Any, compiled: bool = False, precision: str = "float32"
) -> tuple[Any, str]:
    """The function whose votes are counted: the model, made fast, and the name of what was done.

    A :class:`certbench.models.network.Network` gets its batch normalisation and input scale folded
    into its convolutions and a channels-last layout. A certificate holds for the function as it is
    evaluated, so the name is part of a shard's identity.

    Args:
        model: The model, in eval mode.
        compiled: Compile it for the one batch shape that is used (``torch.compile`` with frozen
            weights); needs a C++ compiler on a CPU, Triton on a GPU.
        precision: ``float32``, or ``bfloat16`` for weights and activations behind a normalisation
            in float32. The certificate is then one of the network so rounded.

    Raises:
        CertbenchError: Unknown precision.
    """
    import torch

    from certbench.models.network import Network, folded

    layout = "as-given"
    if isinstance(model, Network):
        model, layout = folded(model).to(memory_format=torch.channels_last), "folded-channels-last"
    model = _in_precision(model, precision)
    if precision != "float32":
        layout = f"{layout}-{precision}"
    if not compiled:
        return model, layout
    return torch.compile(model, dynamic=False, options={"freezing": True}), f"{layout}-compiled"


def _in_precision(model: Any, precision: str) -> Any:
    """The model with weights of this type; one that is changed is a copy."""
    import torch

    from certbench.models.network import FoldedNetwork, LowPrecision

    arguments.choice(precision, "precision", PRECISIONS)
    if precision == "float32":
        return model
    dtype = getattr(torch, precision)
    if isinstance(model, FoldedNetwork):
        # It is this function's own; its normalisation stays in float32.
        model.net = LowPrecision(model.net, dtype)
        return model
    return LowPrecision(model, dtype).eval()


def _without_normalisation(
    model: Any, wanted: bool
) -> tuple[Any, torch.Tensor | None, torch.Tensor | None]:
    """What is left of a folded model, and the shift and the factor of its input, if ``wanted``."""
    from certbench.models.network import FoldedNetwork

    if wanted and isinstance(model, FoldedNetwork):
        return model.net, model.shift, model.scale
    return model, None, None


def check_range(images: torch.Tensor) -> None:
    """Refuse images outside [0, 1]: sigma and radii are in these units.

    Raises:
        CertbenchError: Says the range found.
    """
    if not images.numel():
        return
    low, high = float(images.min()), float(images.max())
    if not (low >= 0.0 and high <= 1.0):
        raise CertbenchError(
            f"values lie in [{low:.4g}, {high:.4g}], not in [0, 1]",
            where="images",
            remedy="give pixels / 255 before normalisation (the model owns its normalisation)",
        )


def additive(
    noise: Noise,
    sigma: float,
    stream: int,
    images: torch.Tensor,
    device: Any,
    size: int,
    shift: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> Perturb:
    """Noise of one kind, added to images; see :data:`Perturb`.

    Where the noise is compiled, one kernel makes it, adds it and normalises.

    Args:
        noise: Seed, backend, kind.
        sigma: Standard deviation, or half width of uniform noise.
        stream: Stream constant of :mod:`certbench.certify.noise`.
        images: float32 [M, C, H, W] in [0, 1].
        device: Where the noise is made and added.
        size: Pairs in a batch.
        shift: Subtracted from the sum, with C elements; needs :func:`fuses`.
        factor: Multiplied then, with C elements; needs :func:`fuses`.

    Raises:
        CertbenchError: Lattice noise on images that are not multiples of 1/255.
    """
    import torch

    if noise.kind == "lattice":
        from certbench.certify import lattice

        return lattice.perturbation(noise.seed, sigma, stream, images, device)
    on_device = images.to(device)
    shape = tuple(images.shape[1:])
    backend = noise.resolved_backend(device)
    make = noises.noise_batch if noise.kind == "gaussian" else noises.uniform_batch
    if backend in _FUSING:
        kind = "normal" if noise.kind == "gaussian" else "uniform"
        pictures = on_device.contiguous()

        def fused(slot, image_ids, samples, out):
            noises.add_noise(
                kind,
                noise.seed,
                stream,
                image_ids,
                samples,
                sigma,
                pictures,
                slot,
                out,
                shift,
                factor,
                backend=backend,
            )

        return fused
    # The noise is made in C x H x W order; adding it also changes the layout.
    drawn = torch.empty((size, *shape), dtype=torch.float32, device=device)

    def perturb(slot, image_ids, samples, out):
        make(
            noise.seed,
            stream,
            image_ids,
            samples,
            shape,
            sigma,
            device,
            backend=backend,
            out=drawn[: len(slot)],
        )
        _add(drawn[: len(slot)], on_device, slot, out)

    return perturb


def fuses(noise: Noise, device: Any) -> bool:
    """Whether :func:`additive` can normalise too."""
    return noise.kind != "lattice" and noise.resolved_backend(device) in _FUSING


def _add(drawn: torch.Tensor, images: torch.Tensor, slot: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``images[slot] + drawn`` into ``out``, whatever the layouts."""
    import torch

    runs = out.device.type == "cpu" and images.shape[1] <= 4
    if runs:
        values, counts = slot.unique_consecutive(return_counts=True)
        runs = len(values) <= len(slot) // 8
    if not runs:
        torch.add(drawn, images[slot], out=out)
        return
    # Pairs of one image follow each other: the image is read from the cache, not copied to each.
    # Channel by channel, because a loop over three channels-last values is no loop for a CPU.
    start = 0
    for image, count in zip(values.tolist(), counts.tolist(), strict=True):
        part = slice(start, start + count)
        for channel in range(images.shape[1]):
            torch.add(drawn[part, channel], images[image, channel], out=out[part, channel])
        start += count


def batches(
    images: torch.Tensor,
    item_index: np.ndarray,
    start: int,
    stop: int,
    perturb: Perturb,
    size: int,
    device: Any,
    done: int = 0,
    pad: bool = True,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Network inputs of samples [start, stop) of all images, in batches of one shape.

    The last batch is padded with its last pair, or shorter.

    Args:
        images: float32 [M, C, H, W].
        item_index: int [M], keys of the images' noise.
        start: First sample.
        stop: End of the samples.
        perturb: Writes the inputs.
        size: Pairs in a batch.
        device: Torch device.
        done: Pairs to skip.
        pad: Whether to pad the last batch.

    Yields:
        ``slot`` and ``sample`` (int64 [size]), ``real`` (bool [size], False for padding), the
        inputs (overwritten by the next batch), and the number of real pairs.
    """
    import torch

    samples = stop - start
    total = len(images) * samples
    keys = torch.as_tensor(np.asarray(item_index, np.int64)).to(device)
    # Convolutions read channels-last twice as fast.
    batch = torch.empty(
        (size, *images.shape[1:]),
        dtype=torch.float32,
        device=device,
        memory_format=torch.channels_last,
    )
    while done < total:
        step = min(size, total - done)
        pair = torch.arange(done, done + (size if pad else step), device=device)
        real = pair < total
        pair = pair.clamp_max(total - 1)
        slot, sample = pair // samples, pair % samples + start
        filled = batch[: len(pair)]
        perturb(slot, keys[slot], sample, filled)
        yield slot, sample, real, filled, step
        done += step


def exact_batch(device: Any) -> int:
    """Images of every forward pass in exact numerics, whatever the configured batch size.

    The last batch is padded, so that the arithmetic of a sample never depends on its company. The
    number suits the kind of device, whose arithmetic is its own anyway.
    """
    import torch

    return 64 if torch.device(device).type == "cpu" else 512


def batch_shape(numerics: str, batch_size: int, total: int, elements: int, device: Any) -> int:
    """Pairs in a batch: one number in exact numerics, else at most ``batch_size``.

    In fast numerics a batch on a CPU has no more values than its caches hold with the layers
    behind them.

    Args:
        numerics: ``exact`` or ``fast``.
        batch_size: Pairs asked for.
        total: Pairs there are.
        elements: Values of one image, C x H x W.
        device: Torch device.
    """
    import torch

    if numerics == "exact":
        return exact_batch(device)
    if torch.device(device).type == "cpu":
        batch_size = min(batch_size, max(_CPU_VALUES // elements, _CPU_LEAST))
    return min(batch_size, max(total, 1))


def count_votes(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    item_index: np.ndarray,
    stream: int,
    start: int,
    stop: int,
    *,
    sigma: float,
    num_classes: int,
    noise: Noise,
    batch_size: int,
    numerics: str,
    device: Any,
    progress: Any = None,
    label: str = "votes",
    tick: Callable[[int], None] | None = None,
    perturb: Perturb | None = None,
) -> np.ndarray:
    """Votes of the model over noisy copies of many images, in full batches.

    Args:
        model: float32 [B, C, H, W] -> logits [B, K].
        images: float32 [M, C, H, W] in [0, 1].
        item_index: int [M], keys of the images' noise.
        stream: Stream constant of :mod:`certbench.certify.noise`.
        start: First sample.
        stop: End of the samples.
        sigma: Noise level (half width for uniform noise).
        num_classes: K.
        noise: Seed, backend, kind.
        batch_size: Pairs per forward pass, where numerics are not exact; fewer on a CPU, see
            :func:`batch_shape`.
        numerics: ``exact`` or ``fast``.
        device: Torch device.
        progress: A :class:`certbench.results.progress.Progress`, or None. A SIGTERM loses nothing;
            a SIGKILL loses what was done since the last write.
        label: Key of this call's state in the progress file.
        tick: Called with the number of pairs done since the last call.
        perturb: Makes the inputs instead of ``noise`` (ablation, shifts).

    Returns:
        int64 [M, K + 1]: counts per class; class K counts votes with NaN or infinite logits. Each
        row sums to stop - start.

    Raises:
        CertbenchError: Images outside [0, 1], or logits of another width.
    """
    import torch

    check_range(images)
    count, samples = len(images), stop - start
    total = count * samples
    size = batch_shape(numerics, batch_size, total, images[0].numel() if count else 1, device)
    votes = torch.zeros((count + 1) * (num_classes + 1), dtype=torch.int64, device=device)
    done = 0
    state = (progress.load() if progress is not None else None) or {}
    if f"{label}.votes" in state:
        votes = torch.from_numpy(np.array(state[f"{label}.votes"], np.int64)).to(device)
        done = int(state[f"{label}.done"])
        if tick is not None:
            tick(done)
    if total and perturb is None:
        inner, shift, factor = _without_normalisation(model, fuses(noise, device))
        model = inner
        perturb = additive(noise, sigma, stream, images, device, size, shift, factor)
    # A GPU tunes and a compiler compiles for one shape; a CPU takes the rest as it is.
    compiled = hasattr(model, "_orig_mod")
    pad = numerics == "exact" or compiled or torch.device(device).type != "cpu"
    classes = torch.arange(num_classes, device=device)
    ones = torch.ones(size, dtype=torch.int64, device=device)
    before, resumed_at = votes.sum(), done

    def save(force: bool) -> None:
        # Every pair adds a vote, padding included, so the votes themselves tell how far they
        # reach, even where a signal struck between a batch and its bookkeeping.
        counted = votes.clone()
        reached = min(resumed_at + int(counted.sum() - before), total)
        state.update({f"{label}.votes": counted.cpu().numpy(), f"{label}.done": reached})
        progress.save(state, force=force)

    try:
        with torch.inference_mode():
            made = batches(images, item_index, start, stop, perturb, size, device, done, pad)  # type: ignore[arg-type]
            for slot, _, real, batch, step in made:
                logits = model(batch)
                if not isinstance(logits, torch.Tensor):
                    raise CertbenchError(
                        f"returns a {type(logits).__name__}, not a tensor",
                        where="model",
                        remedy="wrap it to return its logits",
                    )
                if tuple(logits.shape) != (len(batch), num_classes):
                    raise CertbenchError(
                        f"the model returns {tuple(logits.shape)} for {len(batch)} images, "
                        f"not [N, {num_classes}]",
                        where="model",
                        remedy="use a model for this number of classes, one row for each image",
                    )
                logits = logits.float()
                top = logits.amax(1, keepdim=True)
                # The lowest index among equal maxima: argmax does not promise it on every device.
                vote = torch.where(logits == top, classes, num_classes).amin(1)
                vote = torch.where(torch.isfinite(logits).all(1), vote, num_classes)
                slot = torch.where(real, slot, count)
                votes.index_add_(0, slot * (num_classes + 1) + vote, ones[: len(slot)])
                done += step
                if tick is not None:
                    tick(step)
                if progress is not None and progress.due and done < total:
                    save(force=True)
    except BaseException as error:
        # A signal (SIGTERM, Ctrl-C), not a fault of the computation: what is counted stays.
        if progress is not None and not isinstance(error, Exception):
            save(force=True)
        raise
    if progress is not None and done > resumed_at:
        save(force=True)
    table = votes.view(count + 1, num_classes + 1)[:count].cpu().numpy()
    if not (table.sum(1) == samples).all():
        raise AssertionError("votes do not sum to the number of samples")
    return table
