"""Randomized smoothing (Cohen, Rosenfeld, Kolter, ICML 2019): votes, PREDICT and CERTIFY.

The smoothed classifier g returns the class that the base classifier f is most likely to return for
``x + e`` with ``e ~ N(0, sigma^2 I)``. All model work ends in integer class counts; everything
statistical is a function of them (:mod:`certbench.certify.statistics`), so a radius can be
recomputed for any alpha and any bound without a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import noise as noises
from certbench.certify import statistics
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

ABSTAIN = -1

# In exact numerics every forward pass has this many images (the last is padded), whatever the
# configured batch size: the arithmetic of a sample never depends on its company.
EXACT_BATCH = 128

BOUNDS = ("one", "two")
SELECTIONS = ("two_stage", "single_stage", "label")
INTERVALS = ("cp", "cp_randomised")


@dataclass(frozen=True)
class Noise:
    """Where the noise comes from.

    Attributes:
        seed: 64-bit seed, see :func:`certbench.certify.noise.seed64`.
        backend: One of :data:`certbench.certify.noise.BACKENDS`.
        kind: ``gaussian``, or ``uniform`` on [-sigma, sigma] (l1 certificates).
    """

    seed: int = 0
    backend: str = "auto"
    kind: str = "gaussian"


@dataclass(frozen=True)
class Certificate:
    """What CERTIFY returns for one image; iterates as ``(label, radius)``.

    Attributes:
        label: The class, or ABSTAIN (-1).
        radius: Certified radius in the noise's norm, pixel values in [0, 1]; 0.0 on abstention.
        counts: int64 [K + 1] votes of the estimation stream; the last entry counts invalid votes.
        p_lower: Lower confidence bound on the top class's probability.
        p_upper: Upper confidence bound on every other class's, or None for the one-bound form.
    """

    label: int
    radius: float
    counts: np.ndarray
    p_lower: float
    p_upper: float | None = None

    def __iter__(self) -> Iterator[Any]:
        """Unpack like the published code's ``(prediction, radius)``."""
        return iter((self.label, self.radius))


class Prediction(int):
    """What PREDICT returns for one image: the class or -1, with its evidence.

    Attributes:
        p_value: Two-sided exact binomial p-value of the top two counts.
        n1: Votes of the top class.
        n2: Votes of the runner-up.
    """

    p_value: float
    n1: int
    n2: int

    def __new__(cls, label: int, p_value: float, n1: int, n2: int) -> Prediction:
        """Make one from the two largest counts."""
        made = super().__new__(cls, label)
        made.p_value, made.n1, made.n2 = p_value, n1, n2
        return made


class Smooth:
    """A smoothed classifier.

    Args:
        model: Callable, float32 [N, C, H, W] in [0, 1] -> logits [N, K]; normalisation inside.
            A module must be in eval mode.
        sigma: Noise level in pixel values of [0, 1], > 0.
        num_classes: K.
        noise: Seed and backend of the noise (default: seed 0).
        batch_size: Noisy copies per forward pass (``numerics="fast"``).
        numerics: ``exact``: one batch shape, so that votes do not depend on ``batch_size``.
        device: Where the model is; default, that of its first parameter, else the CPU.

    Raises:
        CertbenchError: sigma <= 0, or the model is in train mode.
    """

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        sigma: float,
        num_classes: int,
        noise: Noise | None = None,
        *,
        batch_size: int = 400,
        numerics: str = "exact",
        device: Any = None,
    ):
        import torch

        if not sigma > 0:
            raise CertbenchError(
                f"is {sigma}", where="sigma", remedy="give a noise level above 0, in [0, 1] pixels"
            )
        require_eval(model)
        if device is None:
            parameters = getattr(model, "parameters", lambda: iter(()))
            first = next(iter(parameters()), None)
            device = first.device if first is not None else "cpu"
        self.model = model
        self.sigma = float(sigma)
        self.num_classes = int(num_classes)
        self.noise = noise or Noise()
        self.batch_size = batch_size
        self.numerics = numerics
        self.device = torch.device(device)

    def predict(self, x: Any, n: int, alpha: float, *, item_index: int = 0) -> Prediction:
        """PREDICT: the smoothed class of one image, or -1 (section 3.2.1, Algorithm 1).

        Args:
            x: float [C, H, W] in [0, 1], tensor or array.
            n: Noise samples.
            alpha: Probability of an answer other than g(x).
            item_index: Key of the image's noise.

        Raises:
            CertbenchError: n can never answer at this alpha, or the image is out of range.
        """
        least = statistics.minimum_predict_samples(alpha)
        if n < least:
            raise CertbenchError(
                f"n = {n} can never answer at alpha = {alpha}",
                where="predict",
                remedy=f"use n >= {least}",
            )
        counts = self.counts(x, noises.PREDICTION, 0, n, item_index=item_index)
        labels, p_values = predict_counts(counts[None], alpha)
        top = np.sort(counts[:-1])[::-1]
        return Prediction(int(labels[0]), float(p_values[0]), int(top[0]), int(top[1]))

    def certify(
        self,
        x: Any,
        n0: int,
        n: int,
        alpha: float,
        *,
        bound: str = "one",
        selection: str = "two_stage",
        item_index: int = 0,
    ) -> Certificate:
        """CERTIFY: with probability >= 1 - alpha, abstain or return g(x) and a valid radius.

        Args:
            x: float [C, H, W] in [0, 1], tensor or array.
            n0: Selection samples (``two_stage``).
            n: Estimation samples.
            alpha: Failure probability of this certificate.
            bound: ``one`` (runner-up bounded by 1 - p_lower) or ``two`` (bounded on its own).
            selection: ``two_stage`` or ``single_stage``.
            item_index: Key of the image's noise.

        Raises:
            CertbenchError: n can never certify at this alpha, or the image is out of range.
        """
        check_budget(n0, n, alpha, bound, selection)
        selected = None
        if selection == "two_stage":
            selected = self.counts(x, noises.SELECTION, 0, n0, item_index=item_index)[None]
        estimated = self.counts(x, noises.ESTIMATION, 0, n, item_index=item_index)
        decided = certify_counts(
            selected, estimated[None], self.sigma, alpha, bound=bound, selection=selection
        )
        p_upper = decided["p_upper"][0]
        return Certificate(
            int(decided["predict"][0]),
            float(decided["radius"][0]),
            estimated,
            float(decided["p_lower"][0]),
            None if np.isnan(p_upper) else float(p_upper),
        )

    def counts(
        self, x: Any, stream: int, start: int, stop: int, *, item_index: int = 0
    ) -> np.ndarray:
        """Votes int64 [K + 1] of samples [start, stop) of a stream; the last are invalid ones."""
        import torch

        image = torch.as_tensor(x, dtype=torch.float32)
        if image.ndim != 3:
            raise CertbenchError(
                f"shape is {tuple(image.shape)}", where="x", remedy="give one image, [C, H, W]"
            )
        return count_votes(
            self.model,
            image[None],
            np.array([item_index], np.int64),
            stream,
            start,
            stop,
            sigma=self.sigma,
            num_classes=self.num_classes,
            noise=self.noise,
            batch_size=self.batch_size,
            numerics=self.numerics,
            device=self.device,
        )[0]


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


def for_inference(model: Any) -> tuple[Any, str]:
    """The function whose votes are counted: the model, made fast, and the name of what was done.

    A :class:`certbench.models.network.Network` gets its batch normalisation and input scale folded
    into its convolutions and a channels-last layout. A certificate holds for the function as it is
    evaluated, so the name is part of a shard's identity.
    """
    import torch

    from certbench.models.network import Network, folded

    if not isinstance(model, Network):
        return model, "as-given"
    return folded(model).to(memory_format=torch.channels_last), "folded-channels-last"


def check_budget(n0: int, n: int, alpha: float, bound: str, selection: str) -> None:
    """Refuse a sample budget that can never certify.

    Raises:
        CertbenchError: Says the smallest n, or which options exclude each other.
    """
    if not 0 < alpha < 1:
        raise CertbenchError(f"is {alpha}", where="alpha", remedy="give a level in (0, 1)")
    if bound == "two" and selection == "single_stage":
        raise CertbenchError(
            "the two-bound form needs a class chosen from other samples",
            where="selection",
            remedy="use selection: two_stage with bound: two",
        )
    level = alpha / 2 if bound == "two" or selection == "single_stage" else alpha
    least = statistics.minimum_samples(level)
    if n < least:
        raise CertbenchError(
            f"{n} samples can never certify at alpha = {alpha}",
            where="n",
            remedy=f"use n >= {least}",
        )
    if selection == "two_stage" and n0 < 1:
        raise CertbenchError(f"is {n0}", where="n0", remedy="two_stage selection needs n0 >= 1")


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
) -> np.ndarray:
    """Votes of the model over noisy copies of many images, in full batches.

    Batches are lists of (image, sample) pairs: several images share one, and no image needs a batch
    of its own. Nothing is read back from the device until the end, except to keep progress.

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
        batch_size: Pairs per forward pass, where numerics are not exact.
        numerics: ``exact`` or ``fast``.
        device: Torch device.
        progress: A :class:`certbench.results.progress.Progress`, or None.
        label: Key of this call's state in the progress file.
        tick: Called with the number of pairs done since the last call.

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
    size = EXACT_BATCH if numerics == "exact" else min(batch_size, max(total, 1))
    votes = torch.zeros((count + 1) * (num_classes + 1), dtype=torch.int64, device=device)
    done = 0
    state = (progress.load() if progress is not None else None) or {}
    if f"{label}.votes" in state:
        votes = torch.from_numpy(np.ascontiguousarray(state[f"{label}.votes"])).to(device)
        done = int(state[f"{label}.done"])
        if tick is not None:
            tick(done)
    on_device = images.to(device)
    keys = torch.as_tensor(np.asarray(item_index, np.int64)).to(device)
    classes = torch.arange(num_classes, device=device)
    ones = torch.ones(size, dtype=torch.int64, device=device)
    shape = tuple(images.shape[1:])
    noisy = torch.empty((size, *shape), dtype=torch.float32, device=device)
    # Convolutions read channels-last twice as fast; the noise is made in C x H x W order.
    batch = torch.empty_like(noisy, memory_format=torch.channels_last)
    make = noises.noise_batch if noise.kind == "gaussian" else noises.uniform_batch
    backend = noises.resolve_backend(device, noise.backend) if total else noise.backend
    with torch.inference_mode():
        while done < total:
            pair = torch.arange(done, done + size, device=device)
            real = pair < total
            pair = pair.clamp_max(total - 1)
            slot, sample = pair // samples, pair % samples + start
            make(
                noise.seed,
                stream,
                keys[slot],
                sample,
                shape,
                sigma,
                device,
                backend=backend,
                out=noisy,
            )
            torch.add(noisy, on_device[slot], out=batch)
            logits = model(batch).float()
            if logits.ndim != 2 or logits.shape[1] != num_classes:
                raise CertbenchError(
                    f"the model returns {tuple(logits.shape)}, not [N, {num_classes}]",
                    where="model",
                    remedy="use a model for this number of classes",
                )
            top = logits.amax(1, keepdim=True)
            # The lowest index among equal maxima: argmax does not promise it on every device.
            vote = torch.where(logits == top, classes, num_classes).amin(1)
            vote = torch.where(torch.isfinite(logits).all(1), vote, num_classes)
            slot = torch.where(real, slot, count)
            votes.index_add_(0, slot * (num_classes + 1) + vote, ones)
            step = min(size, total - done)
            done += step
            if tick is not None:
                tick(step)
            if progress is not None and progress.due and done < total:
                state |= {f"{label}.votes": votes.cpu().numpy(), f"{label}.done": done}
                progress.save(state, force=True)
    table = votes.view(count + 1, num_classes + 1)[:count].cpu().numpy()
    if progress is not None:
        state |= {f"{label}.votes": votes.cpu().numpy(), f"{label}.done": done}
        progress.save(state)
    if not (table.sum(1) == samples).all():
        raise AssertionError("votes do not sum to the number of samples")
    return table


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


def certify_counts(
    selected: np.ndarray | None,
    estimated: np.ndarray,
    sigma: float,
    alpha: float,
    *,
    bound: str = "one",
    selection: str = "two_stage",
    interval: str = "cp",
    coins: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """CERTIFY for many images, from their counts.

    Args:
        selected: int64 [M, K + 1] votes of the selection stream (``two_stage``), else None.
        estimated: int64 [M, K + 1] votes of the estimation stream; the last column is invalid.
        sigma: Noise level.
        alpha: Failure probability of each certificate.
        bound: ``one`` or ``two``.
        selection: ``two_stage``; ``single_stage`` (class and bound from the same votes at
            alpha / 2); ``label`` (the true class is tested: an evaluation device only).
        interval: ``cp`` (Clopper-Pearson) or ``cp_randomised`` (needs ``coins``).
        coins: float64 [M] in (0, 1], fixed per image.
        labels: int [M], for ``label``.

    Returns:
        Arrays of length M: ``top`` (the class tested), ``predict`` (it, or -1), ``radius``
        (float64, rounded down), ``n_top``, ``n_runner``, ``runner``, ``n_invalid``, ``p_lower``,
        ``p_upper`` (NaN for one-bound), ``abstain``, ``capped``.
    """
    votes = estimated[:, :-1]
    totals = estimated.sum(1)
    if selection == "two_stage":
        if selected is None:
            raise CertbenchError("two_stage selection needs selection votes", where="selection")
        top = selected[:, :-1].argmax(1)
    elif selection == "label":
        if labels is None:
            raise CertbenchError("selection by label needs the labels", where="selection")
        top = np.asarray(labels, np.int64)
    else:
        top = votes.argmax(1)
    rows = np.arange(len(votes))
    n_top = votes[rows, top]
    others = votes.copy()
    others[rows, top] = -1
    runner = others.argmax(1)
    n_runner = others[rows, runner]
    level = alpha / 2 if selection == "single_stage" else alpha
    p_upper = np.full(len(votes), np.nan)
    if bound == "two":
        # An invalid vote is one more answer of f, so it is a rival like any class.
        rivals = np.maximum(n_runner, estimated[:, -1])
        p_lower, p_upper = statistics.two_bounds(n_top, rivals, totals, level)
        radius = statistics.radius_two(p_lower, p_upper, sigma)
    else:
        if interval == "cp_randomised":
            if coins is None:
                raise CertbenchError("randomised limits need one coin per image", where="coins")
            p_lower = statistics.cp_lower_randomised(n_top, totals, level, coins)
        else:
            p_lower = statistics.cp_lower(n_top, totals, level)
        radius = statistics.radius_one(p_lower, sigma)
    radius = statistics.round_down(radius)
    abstain = ~(radius > 0)
    return {
        "top": top,
        "predict": np.where(abstain, ABSTAIN, top),
        "radius": np.where(abstain, 0.0, radius),
        "n_top": n_top,
        "n_runner": n_runner,
        "runner": runner,
        "n_invalid": estimated[:, -1],
        "p_lower": np.asarray(p_lower, np.float64),
        "p_upper": np.asarray(p_upper, np.float64),
        "abstain": abstain,
        "capped": n_top == totals,
    }


def predict_counts(counts: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """PREDICT for many images: labels int64 [M] (-1 abstains) and p-values float64 [M].

    Args:
        counts: int64 [M, K + 1] votes; the last column counts invalid ones.
        alpha: Level.
    """
    order = np.sort(counts, axis=1)
    p_values = np.asarray(statistics.predict_pvalue(order[:, -1], order[:, -2]), np.float64)
    # Equal top counts give a p-value of 1, so a tie always abstains; so does a majority of
    # invalid votes, which is no class.
    top = counts.argmax(1)
    answers = (p_values <= alpha) & (top < counts.shape[1] - 1)
    return np.where(answers, top, ABSTAIN), p_values
