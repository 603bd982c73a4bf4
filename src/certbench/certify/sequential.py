"""When to stop sampling: bounds that stay valid however often one looks.

A plain Clopper-Pearson limit holds at one sample size fixed in advance; looked at repeatedly it is
wrong more often than alpha. Two schemes repair that here:

- ``looks``: sample sizes n_1 < ... < n_K fixed in advance, the limit at look k at its own share
  alpha_k of alpha (they sum to alpha). All K limits hold together, so the largest may be reported,
  samples may be cumulative, and any rule may stop.
- ``mixture``: Robbins' confidence sequence with a Beta(1/2, 1/2) mixture, valid at all sample
  sizes at once (Robbins, 1970; in the betting view, Waudby-Smith and Ramdas, 2024; for smoothing,
  Voracek, NeurIPS 2024).

Giving up an image early needs no share of alpha: a certificate that is not given cannot be wrong.
Its level (``futility``) only decides how often a certificate is missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special

from certbench.certify.attainable import minimum_samples
from certbench.certify.intervals import LIMIT_ERROR, cp_lower, cp_upper
from certbench.certify.protocol import ABSTAIN
from certbench.certify.radii import radius_one, round_down
from certbench.errors import CertbenchError, did_you_mean

METHODS = ("looks", "mixture")

# What float64 may add to a limit: that of the mixture is a root of differences of large numbers
# (measured, 5e-13 for up to 2 million trials against 45-digit arithmetic).
_ERROR = {"looks": LIMIT_ERROR, "mixture": 2e-12}
SPLITS = ("last", "equal", "telescoping")


def doubling_looks(n_max: int, first: int = 100) -> tuple[int, ...]:
    """The default looks: ``first`` times 1, 2, 4, ... below ``n_max``, then ``n_max``.

    Args:
        n_max: Largest number of samples, >= 1.
        first: Samples at the first look, >= 1.

    Raises:
        CertbenchError: An argument is out of range.
    """
    if n_max < 1 or first < 1:
        raise CertbenchError(
            f"need positive numbers of samples, got n_max {n_max} and first {first}", where="looks"
        )
    sizes = []
    size = int(first)
    while size < n_max:
        sizes.append(size)
        size *= 2
    return (*sizes, int(n_max))


def split_alpha(alpha: float, count: int, split: str = "equal") -> tuple[float, ...]:
    """Shares of alpha for the looks.

    Args:
        alpha: Error probability of all looks together.
        count: Number of looks.
        split: ``equal``: alpha / count; ``telescoping``: alpha / (k (k + 1)), whose sum stays below
            alpha for any number of looks, so that later looks can be added; ``last``: half of it
            for the last look, which alone certifies what lies near the cap, and equal shares of
            the rest (earlier looks need a few more samples where votes are clear).

    Raises:
        CertbenchError: Unknown split.
    """
    if split == "last":
        return (*((alpha / (2 * (count - 1)),) * (count - 1)), alpha / 2) if count > 1 else (alpha,)
    if split == "equal":
        return (alpha / count,) * count
    if split == "telescoping":
        return tuple(alpha / (k * (k + 1)) for k in range(1, count + 1))
    raise CertbenchError(
        f"unknown split '{split}'", where="split", remedy=did_you_mean(split, SPLITS)
    )


# --- the confidence sequence ----------------------------------------------------------------------


def mixture_log_e(successes: Any, trials: Any, p: Any) -> Any:
    """Logarithm of the mixture martingale against the null value p.

    log B(S + 1/2, n - S + 1/2) - log B(1/2, 1/2) - S log p - (n - S) log(1 - p). Under p it is a
    non-negative martingale of mean 1, so it ever reaches 1 / alpha with probability <= alpha.

    Args:
        successes: Counts S.
        trials: Counts n.
        p: Null values in [0, 1].
    """
    s, n, p = np.broadcast_arrays(
        np.asarray(successes, np.float64),
        np.asarray(trials, np.float64),
        np.asarray(p, np.float64),
    )
    evidence = special.betaln(s + 0.5, n - s + 0.5) - special.betaln(0.5, 0.5)
    return (evidence - special.xlogy(s, p) - special.xlog1py(n - s, -p))[()]


def mixture_lower(successes: Any, trials: Any, alpha: Any) -> Any:
    """Lower confidence sequence: P[it ever exceeds p] <= alpha, over all sample sizes.

    Args:
        successes: Counts S, integers with 0 <= S <= n.
        trials: Counts n, integers.
        alpha: Error probability, in (0, 1).

    Returns:
        Limits in [0, 1): the root below S / n of log E(p) = log(1 / alpha).

    Raises:
        CertbenchError: Counts are not integers, S > n, or alpha is out of range.
    """
    cp_lower(successes, trials, alpha)  # refuses bad counts and levels
    s, n, a = np.broadcast_arrays(
        np.asarray(successes, np.int64), np.asarray(trials, np.int64), np.asarray(alpha, np.float64)
    )
    target = -np.log(a)
    # log E falls from infinity at p = 0 to its least value at S / n, which is below 0.
    low, high = np.zeros(s.shape), s / np.maximum(n, 1)
    for _ in range(80):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = mixture_log_e(s, n, middle) >= target
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    # The lower end of the bracket is on the safe side. All votes equal: closed form.
    evidence = special.betaln(s + 0.5, n - s + 0.5) - special.betaln(0.5, 0.5)
    all_agree = np.exp((evidence - target) / np.maximum(n, 1))
    return np.where(s == 0, 0.0, np.where(s == n, all_agree, low))[()]


def mixture_upper(successes: Any, trials: Any, alpha: Any) -> Any:
    """Upper confidence sequence: P[it ever falls below p] <= alpha, over all sample sizes.

    Args:
        successes: Counts S, integers with 0 <= S <= n.
        trials: Counts n, integers.
        alpha: Error probability, in (0, 1).

    Raises:
        CertbenchError: Counts are not integers, S > n, or alpha is out of range.
    """
    cp_lower(successes, trials, alpha)
    failures = np.asarray(trials, np.int64) - np.asarray(successes, np.int64)
    return 1 - mixture_lower(failures, trials, alpha)


# --- the stopping rule ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What is known of M images after some looks; all arrays have length M.

    Attributes:
        look: Index of the last look, -1 before the first.
        p_lower: Largest lower limit of all looks.
        p_upper: Smallest upper limit of all looks (for stopping only, at the futility level).
        p_best: The largest lower limit that the remaining samples could still give.
        label: The class that ``p_lower`` is about, -1 before the first look.
        n_used: Samples spent.
        decided: Whether more samples are pointless: the question is answered, or the rest of the
            budget cannot change the answer (so it holds for all images after the last look).
    """

    look: int
    p_lower: np.ndarray
    p_upper: np.ndarray
    p_best: np.ndarray
    label: np.ndarray
    n_used: np.ndarray
    decided: np.ndarray


@dataclass(frozen=True)
class StoppingRule:
    """Which images need more samples, and what is certified when sampling ends.

    Feed it the cumulative votes of each look with :meth:`update`, in order; draw no more samples
    for images that are ``decided``; read :meth:`certificates` at any time. Nothing here draws,
    stores or waits: the state is a :class:`Bounds` of plain arrays.

    Attributes:
        sigma: Noise level, > 0.
        alpha: Error probability of each image's certificate, in (0, 1).
        looks: Cumulative sample sizes, ascending; fixed before sampling.
        radii: Decide for each of these radii whether it is certified (0: whether to abstain).
        tolerance: Decide the radius up to this much of what the budget can still give.
        method: ``looks`` or ``mixture``.
        split: Shares of alpha, one of :data:`SPLITS` (``looks`` only).
        single_stage: The class is the top class of the same votes, which costs half of alpha. It
            may change between looks; the class reported belongs to the bound reported.
        futility: Probability of giving up an image that would have been decided otherwise.
    """

    sigma: float
    alpha: float
    looks: tuple[int, ...]
    radii: tuple[float, ...] = ()
    tolerance: float | None = None
    method: str = "looks"
    split: str = "last"
    single_stage: bool = False
    futility: float = 0.001

    def __post_init__(self) -> None:
        """Refuse rules that can never decide or that nobody proved valid."""
        sizes = self.looks
        if not sizes or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
            raise CertbenchError(
                f"must be ascending sample sizes, is {sizes}",
                where="looks",
                remedy="for example doubling_looks(100000)",
            )
        if self.method not in METHODS:
            raise CertbenchError(
                f"unknown method '{self.method}'",
                where="method",
                remedy=did_you_mean(self.method, METHODS),
            )
        for name in ("alpha", "futility"):
            if not 0 < getattr(self, name) < 1:
                raise CertbenchError(f"must lie in (0, 1), is {getattr(self, name)}", where=name)
        if not self.radii and self.tolerance is None:
            raise CertbenchError(
                "nothing to decide",
                where="radii",
                remedy="give radii, a tolerance, or both",
            )
        if any(not (math.isfinite(r) and r >= 0) for r in self.radii):
            raise CertbenchError(f"must not be negative, is {self.radii}", where="radii")
        if self.tolerance is not None and not self.tolerance > 0:
            raise CertbenchError(f"must be positive, is {self.tolerance}", where="tolerance")
        if self.single_stage and self.method == "mixture":
            raise CertbenchError(
                "single-stage selection is proved for fixed looks only",
                where="single_stage",
                remedy="use method 'looks', or choose the class from separate samples",
            )
        cap = float(radius_one(self._lower(sizes[-1], sizes[-1], len(sizes) - 1), self.sigma))
        if cap <= 0:
            least = minimum_samples(self.alphas[-1])
            more = "more than" if self.method == "mixture" else "at least"
            raise CertbenchError(
                f"{sizes[-1]} samples can never certify",
                where="looks",
                remedy=f"use {more} {least} samples",
            )
        if self.radii and self.tolerance is None and min(self.radii) > cap:
            raise CertbenchError(
                f"are all beyond {cap:.6g}, the most that {sizes[-1]} samples certify at sigma "
                f"{self.sigma:g}",
                where="radii",
                remedy="ask for smaller radii, or allow more samples",
            )

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """The level of each look's lower limit."""
        level = self.alpha / 2 if self.single_stage else self.alpha
        if self.method == "mixture":
            return (level,) * len(self.looks)
        return split_alpha(level, len(self.looks), self.split)

    def start(self, count: int) -> Bounds:
        """The state of ``count`` images before the first look."""
        return Bounds(
            look=-1,
            p_lower=np.zeros(count),
            p_upper=np.ones(count),
            p_best=np.ones(count),
            label=np.full(count, ABSTAIN, np.int64),
            n_used=np.zeros(count, np.int64),
            decided=np.zeros(count, bool),
        )

    def update(
        self,
        bounds: Bounds,
        look: int,
        successes: Any,
        labels: Any,
        trials: Any = None,
    ) -> Bounds:
        """The state after one more look; decided images keep theirs.

        Args:
            bounds: The state after the look before (looks may be skipped, never repeated).
            look: Index into ``looks``.
            successes: int [M], cumulative votes of the class under test (for ``single_stage``, of
                the top class); entries of decided images are ignored.
            labels: int [M], that class.
            trials: int [M] or one number, cumulative samples, at least ``looks[look]``, which is
                the default. More is allowed where a batch went on, if the votes of the image had
                no part in how much.

        Raises:
            CertbenchError: The look is out of order, or counts do not fit.
        """
        if not bounds.look < look < len(self.looks):
            raise CertbenchError(
                f"look {look} after look {bounds.look} of {len(self.looks)}",
                where="looks",
                remedy="each look counts once against alpha: go through them in order",
            )
        open_ = np.flatnonzero(~bounds.decided)
        size = np.shape(bounds.decided)
        s = np.broadcast_to(np.asarray(successes), size)[open_]
        label = np.broadcast_to(np.asarray(labels, np.int64), size)[open_]
        given = self.looks[look] if trials is None else trials
        n = np.broadcast_to(np.asarray(given), size)[open_]
        if np.any(n < self.looks[look]) or np.any(n < bounds.n_used[open_]):
            raise CertbenchError(
                f"fewer samples than look {look} needs ({self.looks[look]})", where="trials"
            )
        now = np.atleast_1d(self._lower(s, n, look))
        before = bounds.p_lower[open_]
        changed = bounds.label[open_] != label
        if not self.single_stage and np.any(changed & (bounds.label[open_] != ABSTAIN)):
            raise CertbenchError(
                "the class under test changed between looks",
                where="labels",
                remedy="choose it once from separate samples, or set single_stage",
            )
        better = (now > before) | (bounds.label[open_] == ABSTAIN)
        lower = np.where(better, now, before)
        # An upper limit of an earlier look may be about another class.
        upper = np.atleast_1d(self._upper(s, n))
        upper = np.where(changed, upper, np.minimum(upper, bounds.p_upper[open_]))
        best = np.maximum(lower, self._best(s, n, look))
        return replace(
            bounds,
            look=look,
            p_lower=_put(bounds.p_lower, open_, lower),
            p_upper=_put(bounds.p_upper, open_, upper),
            p_best=_put(bounds.p_best, open_, best),
            label=_put(bounds.label, open_, np.where(better, label, bounds.label[open_])),
            n_used=_put(bounds.n_used, open_, n),
            decided=_put(bounds.decided, open_, self._settled(lower, upper, best)),
        )

    def certificates(self, bounds: Bounds) -> dict[str, np.ndarray]:
        """What is certified in this state.

        Args:
            bounds: A state.

        Returns:
            ``predict`` (the class, or -1), ``radius`` (float64, rounded down, 0.0 on abstention),
            ``p_lower``, ``abstain``, ``n_used``, and ``conclusive`` (False where the budget ended
            before the question was answered), each of length M.
        """
        unlimited = np.full(bounds.p_best.shape, np.nextafter(1.0, 0.0))
        radius = np.atleast_1d(round_down(radius_one(bounds.p_lower, self.sigma)))
        abstain = ~(radius > 0)
        return {
            "predict": np.where(abstain, ABSTAIN, bounds.label),
            "radius": np.where(abstain, 0.0, radius),
            "p_lower": bounds.p_lower,
            "abstain": abstain,
            "n_used": bounds.n_used,
            "conclusive": self._settled(bounds.p_lower, bounds.p_upper, unlimited),
        }

    def replay(self, successes: Any, labels: Any) -> Bounds:
        """All looks over votes that are already there; samples count until an image is decided.

        Args:
            successes: int [M, K], cumulative votes of the class under test at each look.
            labels: int [M], that class, or [M, K] for ``single_stage``.

        Raises:
            CertbenchError: Counts do not fit.
        """
        votes = np.asarray(successes)
        if votes.ndim != 2 or votes.shape[1] != len(self.looks):
            raise CertbenchError(
                f"need one column per look ({len(self.looks)}), got shape {votes.shape}",
                where="successes",
            )
        classes = np.asarray(labels, np.int64)
        bounds = self.start(votes.shape[0])
        for look in range(len(self.looks)):
            label = classes if classes.ndim == 1 else classes[:, look]
            bounds = self.update(bounds, look, votes[:, look], label)
            if bounds.decided.all():
                break
        return bounds

    def _lower(self, successes: Any, trials: Any, look: int) -> Any:
        limit = mixture_lower if self.method == "mixture" else cp_lower
        exact = limit(successes, trials, self.alphas[look])
        return np.maximum(exact - _ERROR[self.method], 0.0)

    def _upper(self, successes: Any, trials: Any) -> Any:
        if self.method == "mixture":
            return mixture_upper(successes, trials, self.futility)
        return cp_upper(successes, trials, self.futility / len(self.looks))

    def _best(self, successes: np.ndarray, trials: np.ndarray, look: int) -> np.ndarray:
        """The lower limits if every sample still to come voted for the class."""
        best = np.zeros(successes.shape)
        # The mixture's limit only grows with further votes: its last look is its best.
        later = range(look + 1, len(self.looks))
        for k in later if self.method == "looks" else later[-1:]:
            size = np.maximum(self.looks[k], trials)
            best = np.maximum(best, self._lower(successes + (size - trials), size, k))
        return best

    def _settled(self, lower: np.ndarray, upper: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Whether the limits leave nothing open that more samples could answer."""
        low = np.atleast_1d(radius_one(lower, self.sigma))
        # The most that can be reported: what is likely at all, and what the budget still allows.
        reach = np.minimum(best, np.minimum(upper, np.nextafter(1.0, 0.0)))
        high = np.maximum(low, radius_one(reach, self.sigma))
        settled = np.ones(low.shape, bool)
        for radius in self.radii:
            if radius == 0:
                settled &= (low > 0) | (high <= 0)
            else:
                settled &= (low >= radius) | (high < radius)
        if self.tolerance is not None:
            settled &= high - low <= self.tolerance
        return settled


def _put(array: np.ndarray, places: np.ndarray, values: Any) -> np.ndarray:
    """A copy of ``array`` with some entries replaced."""
    copy = array.copy()
    copy[places] = values
    return copy


def cumulative_votes(votes: Sequence[Any] | np.ndarray, looks: Sequence[int]) -> np.ndarray:
    """Cumulative successes at each look from single votes, for :meth:`StoppingRule.replay`.

    Args:
        votes: bool [M, n_max], whether each sample voted for the class under test.
        looks: Sample sizes, ascending, at most n_max.

    Returns:
        int64 [M, K].

    Raises:
        CertbenchError: There are fewer votes than the last look needs.
    """
    single = np.asarray(votes, dtype=bool)
    if single.ndim != 2 or single.shape[1] < looks[-1]:
        raise CertbenchError(
            f"need {looks[-1]} votes per image, got shape {single.shape}", where="votes"
        )
    edges = np.concatenate([[0], np.asarray(looks, np.int64)])
    steps = [single[:, a:b].sum(axis=1) for a, b in pairwise(edges)]
    return np.cumsum(np.stack(steps, axis=1), axis=1)
