"""Randomized smoothing (Cohen, Rosenfeld, Kolter, ICML 2019): votes, PREDICT and CERTIFY.

The smoothed classifier g returns the class that the base classifier f is most likely to return for
``x + e`` with ``e ~ N(0, sigma^2 I)``. All model work ends in integer class counts; everything
statistical is a function of them (:mod:`certbench.certify.intervals` and
:mod:`certbench.certify.radii`), so a radius can be recomputed for any alpha and any bound without a
forward pass. Votes are counted by :mod:`certbench.certify.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import arguments
from certbench.certify import noise as noises
from certbench.certify.attainable import minimum_predict_samples, minimum_samples
from certbench.certify.intervals import LIMIT_ERROR, cp_lower, cp_lower_randomised, two_bounds
from certbench.certify.protocol import ABSTAIN
from certbench.certify.radii import radius_linf_from_l2, radius_one, radius_two, round_down
from certbench.certify.sampling import (
    KINDS,
    Noise,
    check_range,
    count_votes,
    for_inference,
    require_eval,
)
from certbench.certify.significance import predict_pvalue
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

    from certbench.certify.sequential import StoppingRule

__all__ = [
    "ABSTAIN",
    "BOUNDS",
    "INTERVALS",
    "SELECTIONS",
    "Certificate",
    "Noise",
    "Prediction",
    "Smooth",
    "certify_counts",
    "check_budget",
    "check_range",
    "count_votes",
    "for_inference",
    "predict_counts",
    "predict_decided",
    "require_eval",
]

BOUNDS = ("one", "two")
SELECTIONS = ("two_stage", "single_stage", "label")
INTERVALS = ("cp", "cp_randomised")


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
    counts: np.ndarray = field(compare=False)
    p_lower: float
    p_upper: float | None = None

    def __iter__(self) -> Iterator[Any]:
        """Unpack like the published code's ``(prediction, radius)``."""
        return iter((self.label, self.radius))


class Prediction(int):
    """What PREDICT returns for one image: the class or -1, with its evidence.

    Attributes:
        p_value: Two-sided exact binomial p-value of ``n1`` and ``n2``.
        n1: The largest count.
        n2: The second largest; invalid votes count as a rival like any class.
    """

    p_value: float
    n1: int
    n2: int

    def __new__(cls, label: int, p_value: float, n1: int, n2: int) -> Prediction:
        """Make one from the two largest counts."""
        made = super().__new__(cls, label)
        made.p_value, made.n1, made.n2 = p_value, n1, n2
        return made

    def __getnewargs__(self) -> tuple[int, float, int, int]:  # type: ignore[override]
        """What a copy and a pickle are made of."""
        return int(self), self.p_value, self.n1, self.n2


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
        CertbenchError: An argument is out of range, or the model is in train mode.
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
        level = arguments.noise_level(sigma)
        self.device = device_of(model, device)
        require_eval(model)
        if noise is not None and not isinstance(noise, Noise):
            raise CertbenchError(
                f"is {noise!r}", where="noise", remedy="for example Noise(seed=0, kind='gaussian')"
            )
        arguments.choice(numerics, "numerics", ("exact", "fast"))
        self.model = model
        self.sigma = level
        self.num_classes = arguments.whole(num_classes, "num_classes")
        self.noise = noise or Noise()
        self.batch_size = arguments.whole(batch_size, "batch_size")
        self.numerics = numerics

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
        least = minimum_predict_samples(alpha)
        if check_samples(n, "n", minimum=0) < least:
            raise CertbenchError(
                f"n = {n} can never answer at alpha = {alpha}",
                where="predict",
                remedy=f"use n >= {least}",
            )
        counts = self.counts(x, noises.PREDICTION, 0, n, item_index=item_index)
        labels, p_values = predict_counts(counts[None], alpha)
        most = np.sort(counts)[::-1]
        return Prediction(int(labels[0]), float(p_values[0]), int(most[0]), int(most[1]))

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

        Returns:
            The certificate, its radius in the noise's norm: l2, or l1 for uniform noise.

        Raises:
            CertbenchError: n can never certify at this alpha, or the image is out of range.
        """
        check_budget(n0, n, alpha, bound, selection)
        if selection == "label":
            raise CertbenchError(
                "the label of an image is not known here",
                where="selection",
                remedy="use two_stage or single_stage; certify_counts takes votes and labels",
            )
        selected = None
        if selection == "two_stage":
            selected = self.counts(x, noises.SELECTION, 0, n0, item_index=item_index)[None]
        estimated = self.counts(x, noises.ESTIMATION, 0, n, item_index=item_index)
        decided = certify_counts(
            selected,
            estimated[None],
            self.sigma,
            alpha,
            bound=bound,
            selection=selection,
            kind=self.noise.kind,
            slack=distance_from_law(self.noise.kind, self.sigma, int(np.prod(np.shape(x)))),
        )
        p_upper = decided["p_upper"][0]
        return Certificate(
            int(decided["predict"][0]),
            float(decided["radius"][0]),
            estimated,
            float(decided["p_lower"][0]),
            None if np.isnan(p_upper) else float(p_upper),
        )

    def certify_sequential(
        self, x: Any, rule: StoppingRule, n0: int = 100, *, item_index: int = 0
    ) -> Certificate:
        """CERTIFY that stops once the rule's question is answered; ``counts`` sum to what it took.

        Args:
            x: float [C, H, W] in [0, 1], tensor or array.
            rule: Looks, level and question; its sigma must be this classifier's.
            n0: Selection samples (not drawn where the rule is ``single_stage``).
            item_index: Key of the image's noise.

        Raises:
            CertbenchError: The rule has another sigma, the noise is uniform, or the image is out of
                range.
        """
        from certbench.certify.sequential_smoothing import after_look

        if rule.sigma != self.sigma or self.noise.kind == "uniform":
            raise CertbenchError(
                f"is {rule.sigma} with {self.noise.kind} noise of level {self.sigma}",
                where="rule.sigma",
                remedy="give a rule for this classifier's Gaussian noise",
            )
        totals = np.zeros((1, self.num_classes + 1), np.int64)
        selected = totals
        if not rule.single_stage:
            arguments.whole(n0, "n0")
            selected = self.counts(x, noises.SELECTION, 0, n0, item_index=item_index)[None]
        bounds, before = rule.start(1), 0
        for look, size in enumerate(rule.looks):
            totals = totals + self.counts(x, noises.ESTIMATION, before, size, item_index=item_index)
            bounds, before = after_look(rule, bounds, look, selected, totals), size
            if bounds.decided[0]:
                break
        slack = distance_from_law(self.noise.kind, self.sigma, int(np.prod(np.shape(x))))
        p_lower = max(float(bounds.p_lower[0]) - slack, 0.0)
        radius = float(round_down(radius_one(p_lower, self.sigma)))
        label = int(bounds.label[0]) if radius > 0 else ABSTAIN
        return Certificate(label, radius, totals[0], p_lower)

    def counts(
        self, x: Any, stream: int, start: int, stop: int, *, item_index: int = 0
    ) -> np.ndarray:
        """Votes int64 [K + 1] of samples [start, stop) of a stream; the last are invalid ones."""
        require_eval(self.model)  # it may have been trained on since
        return count_votes(
            self.model,
            one_image(x)[None],
            np.array([arguments.whole(item_index, "item_index", minimum=0)], np.int64),
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


def device_of(model: Any, device: Any = None) -> torch.device:
    """Where a model is: the device that is named, else that of its first parameter, else the CPU.

    Raises:
        CertbenchError: The model is no function, or there is no such device.
    """
    import torch

    if not callable(model):
        raise CertbenchError(
            f"is {model!r}", where="model", remedy="give a function of images, or a module"
        )
    if device is None:
        first = next(iter(getattr(model, "parameters", tuple)()), None)
        device = "cpu" if first is None else first.device
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise CertbenchError(
            f"is {device!r}", where="device", remedy="for example cpu, cuda or cuda:1"
        ) from None


def one_image(x: Any) -> torch.Tensor:
    """One image as float32 [C, H, W].

    Raises:
        CertbenchError: Not one image, or levels from 0 to 255.
    """
    import torch

    try:
        image = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise CertbenchError(
            f"is a {type(x).__name__}", where="x", remedy="give a tensor or an array, [C, H, W]"
        ) from None
    if image.ndim != 3 or not image.numel():
        raise CertbenchError(
            f"shape is {tuple(image.shape)}", where="x", remedy="give one image, [C, H, W]"
        )
    if image.dtype == torch.uint8:
        # A dark image of levels 0 and 1 would pass for one in [0, 1].
        raise CertbenchError(
            "holds levels from 0 to 255 (uint8)", where="x", remedy="give pixels / 255"
        )
    return image.detach().to(torch.float32)


def check_budget(n0: int, n: int, alpha: float, bound: str, selection: str) -> None:
    """Refuse a sample budget that can never certify.

    Raises:
        CertbenchError: Says the smallest n, or which options exclude each other.
    """
    arguments.level(alpha)
    _check_options(bound, selection)
    check_samples(n, "n", minimum=0)
    level = alpha / 2 if bound == "two" or selection == "single_stage" else alpha
    least = minimum_samples(level)
    if n < least:
        raise CertbenchError(
            f"{n} samples can never certify at alpha = {alpha}",
            where="n",
            remedy=f"use n >= {least}",
        )
    if check_samples(n0, "n0", minimum=0) < 1 and selection == "two_stage":
        raise CertbenchError(f"is {n0}", where="n0", remedy="two_stage selection needs n0 >= 1")


def check_samples(n: Any, name: str, minimum: int = 1) -> int:
    """Refuse more samples than there is noise for: its counter would start again.

    Raises:
        CertbenchError: Not an integer, or out of range.
    """
    count = arguments.whole(n, name, minimum)
    if count > 2**32:
        raise CertbenchError(
            f"is {count:,}", where=name, remedy=f"an image has noise for {2**32:,} samples"
        )
    return count


def _check_options(bound: str, selection: str) -> None:
    arguments.choice(bound, "bound", BOUNDS)
    arguments.choice(selection, "selection", SELECTIONS)
    if bound == "two" and selection == "single_stage":
        raise CertbenchError(
            "the two-bound form needs a class chosen from other samples",
            where="selection",
            remedy="use selection: two_stage with bound: two",
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
    kind: str = "gaussian",
    slack: float = 0.0,
) -> dict[str, np.ndarray]:
    """CERTIFY for many images, from their counts.

    Args:
        selected: int64 [M, K + 1] votes of the selection stream (``two_stage``), else None.
        estimated: int64 [M, K + 1] votes of the estimation stream; the last column is invalid.
        sigma: Noise level (half width of uniform noise).
        alpha: Failure probability of each certificate.
        bound: ``one`` or ``two``.
        selection: ``two_stage``; ``single_stage`` (class and bound from the same votes at
            alpha / 2); ``label`` (the true class is tested: an evaluation device only).
        interval: ``cp`` (Clopper-Pearson) or ``cp_randomised`` (needs ``coins``).
        coins: float64 [M] in (0, 1], fixed per image.
        labels: int [M], for ``label``.
        kind: Kind of noise: ``gaussian`` and ``lattice`` give l2 radii, ``uniform`` l1 radii.
        slack: Largest distance (total variation) of the drawn noise from the law it stands for; it
            is taken off the lower and added to the upper bounds.

    Raises:
        CertbenchError: Something that an option needs is missing or out of range.

    Returns:
        Arrays of length M: ``top`` (the class tested), ``predict`` (it, or -1), ``radius``
        (float64, rounded down), ``n_top``, ``n_runner``, ``runner``, ``n_invalid``, ``p_lower``,
        ``p_upper`` (NaN for one-bound), ``abstain``, ``capped``.
    """
    # A misspelt option must not fall through to another one: it would be another guarantee.
    _check_options(bound, selection)
    arguments.choice(interval, "interval", INTERVALS)
    arguments.choice(kind, "kind", KINDS)
    estimated = arguments.counts(estimated, "estimated")
    votes = estimated[:, :-1]
    totals = estimated.sum(1)
    if selection == "two_stage":
        if selected is None:
            raise CertbenchError("two_stage selection needs selection votes", where="selection")
        selected = arguments.counts(selected, "selected")
        if selected.shape != estimated.shape:
            raise CertbenchError(
                f"has shape {selected.shape}, the estimation votes have {estimated.shape}",
                where="selected",
                remedy="give both streams of the same images and classes",
            )
        top = selected[:, :-1].argmax(1)
    elif selection == "label":
        if labels is None:
            raise CertbenchError("selection by label needs the labels", where="selection")
        top = np.asarray(labels, np.int64)
        if len(top) and (top.min() < 0 or top.max() >= votes.shape[1]):
            raise CertbenchError(
                f"labels go from {top.min()} to {top.max()} for {votes.shape[1]} classes",
                where="selection",
                remedy="selection: label needs the class of every image",
            )
    else:
        top = votes.argmax(1)
    rows = np.arange(len(votes))
    n_top = votes[rows, top]
    others = votes.copy()
    others[rows, top] = -1
    runner = others.argmax(1)
    n_runner = others[rows, runner]
    level = alpha / 2 if selection == "single_stage" else alpha
    if interval == "cp_randomised" and (coins is None or bound == "two"):
        raise CertbenchError(
            "randomised limits are defined for the one-bound form, with one coin per image",
            where="interval",
            remedy="use interval: cp with bound: two",
        )
    p_upper = np.full(len(votes), np.nan)
    slack += LIMIT_ERROR
    if bound == "two":
        # An invalid vote is one more answer of f, so it is a rival like any class.
        rivals = np.maximum(n_runner, estimated[:, -1])
        p_lower, p_upper = two_bounds(n_top, rivals, totals, level)
        p_upper = np.minimum(p_upper + slack, 1.0)
    elif interval == "cp_randomised":
        p_lower = cp_lower_randomised(n_top, totals, level, coins)
    else:
        p_lower = cp_lower(n_top, totals, level)
    p_lower = np.maximum(p_lower - slack, 0.0)
    radius = _radius(kind, p_lower, p_upper if bound == "two" else 1 - p_lower, sigma)
    radius = round_down(radius)
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


def _radius(kind: str, p_lower: np.ndarray, p_upper: np.ndarray, sigma: float) -> np.ndarray:
    """Radii in the norm of the noise; 0 where the bounds do not separate the classes."""
    if kind == "uniform":
        # A shift by r in l1 changes every class's probability by at most r / (2 lambda).
        return np.maximum(sigma * (p_lower - np.minimum(p_upper, 1 - p_lower)), 0.0)
    return np.asarray(radius_two(p_lower, p_upper, sigma))


def l2_equivalents(radius: np.ndarray, dimension: int) -> dict[str, np.ndarray]:
    """Radii in l1 and linf that an l2 radius implies, as columns; rounded down.

    The l2 ball holds the l1 ball of the same radius, and the linf ball of R / sqrt(d).

    Args:
        radius: float64 [M], l2.
        dimension: Values of one image, C x H x W.
    """
    linf = radius_linf_from_l2(radius, dimension)
    return {
        "radius_l1_equivalent": np.asarray(radius, np.float64),
        "radius_linf_equivalent": np.asarray(round_down(linf), np.float64),
    }


def distance_from_law(kind: str, sigma: float, dimension: int) -> float:
    """Total variation between the noise of an image as drawn and the law a certificate assumes.

    Known, and negligible, for lattice noise. Float noise is taken at its word: its distance from
    the normal law is not bounded here, which is what lattice noise is for.
    """
    if kind != "lattice":
        return 0.0
    from certbench.certify import lattice

    return lattice.distance_from_law(sigma, dimension)


def predict_counts(counts: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """PREDICT for many images: labels int64 [M] (-1 abstains) and p-values float64 [M].

    Args:
        counts: int64 [M, K + 1] votes; the last column counts invalid ones.
        alpha: Level.
    """
    order = np.sort(counts, axis=1)
    p_values = np.asarray(predict_pvalue(order[:, -1], order[:, -2]), np.float64)
    # Equal top counts give a p-value of 1, so a tie always abstains; so does a majority of
    # invalid votes, which is no class.
    top = counts.argmax(1)
    answers = (p_values <= alpha) & (top < counts.shape[1] - 1)
    return np.where(answers, top, ABSTAIN), p_values


def predict_decided(counts: np.ndarray, left: int, alpha: float) -> np.ndarray:
    """Whether ``left`` more votes can no longer change the answer of PREDICT: bool [M].

    The p-value falls with the largest count and rises with the second. So an answer stands if it
    survives all remaining votes going to the runner-up, and an abstention if it survives all of
    them going to the top class; :func:`predict_counts` then says now what it would say at the end.

    Args:
        counts: int64 [M, K + 1] votes so far; the last column counts invalid ones.
        left: Votes to come.
        alpha: Level.
    """
    order = np.sort(counts, axis=1)
    top, second = order[:, -1], order[:, -2]
    # Where the runner-up could draw level, the worst case is a tie, whose p-value is 1.
    worst = predict_pvalue(top, np.minimum(second + left, top))
    best = predict_pvalue(top + left, second)
    return np.asarray((worst <= alpha) | (best > alpha))
