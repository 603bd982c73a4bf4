"""Smoothing of real-valued outputs: a percentile under Gaussian noise, with certified bounds.

Chiang et al., "Detection as Regression: Certified Object Detection by Median Smoothing" (NeurIPS
2020). The smoothed output ``h_p(x)`` is the p-quantile of ``f(x + e)``. For every shift delta with
``|delta|_2 <= epsilon`` it lies between two other quantiles at x itself,

    h_{p-}(x) <= h_p(x + delta) <= h_{p+}(x),     p-/+ = Phi(Phi^-1(p) -/+ epsilon / sigma),

which order statistics of samples enclose. Every output of a vector is smoothed on its own; the
statement about several outputs together needs a smaller alpha (Bonferroni: alpha / outputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from certbench.certify import arguments, sampling, smoothing
from certbench.certify import noise as noises
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch


def median_smoothing_indices(
    n: Any, percentile: float, epsilon: float, sigma: float, alpha: float, slack: float = 0.0
) -> tuple[int | None, int | None]:
    """Order statistics that enclose a percentile-smoothed value under every shift up to epsilon.

    For p = ``percentile`` the smoothed value at any point within l2 distance epsilon lies between
    the percentiles Phi(Phi^-1(p) -/+ epsilon / sigma) at the centre. The sorted samples at the two
    returned places enclose those, each side failing with probability at most alpha / 2.

    Args:
        n: Samples.
        percentile: p in (0, 1); 0.5 is the median.
        epsilon: l2 size of the shift, >= 0.
        sigma: Noise level, > 0.
        alpha: Error probability of both sides together, in (0, 1).
        slack: Largest distance (total variation) of the drawn noise from the normal law.

    Returns:
        ``(lower, upper)``, 1-based places in ascending order; None where n samples give no bound.

    Raises:
        CertbenchError: A value is out of range.

    Source: Chiang et al., NeurIPS 2020.
    """
    # A second of import time that planning need not spend.
    from scipy import stats

    total = arguments.whole(n, "n")
    tail = float(arguments.level(alpha)) / 2
    centre = float(special.ndtri(float(arguments.level(percentile, "percentile"))))
    scale = float(arguments.positive(sigma, "sigma"))
    shift = float(arguments.not_negative(epsilon, "epsilon")) / scale
    low_p = max(float(special.ndtr(centre - shift)) - slack, 0.0)
    high_p = min(float(special.ndtr(centre + shift)) + slack, 1.0)
    # Lower place: the largest q with P[Bin(n, low_p) <= q - 1] <= tail.
    below = int(stats.binom.ppf(tail, total, low_p))
    while below > 0 and stats.binom.cdf(below - 1, total, low_p) > tail:
        below -= 1
    while below < total and stats.binom.cdf(below, total, low_p) <= tail:
        below += 1
    # Upper place: the smallest q with P[Bin(n, high_p) >= q] <= tail.
    above = int(stats.binom.isf(tail, total, high_p)) + 1
    while above > 1 and stats.binom.sf(above - 2, total, high_p) <= tail:
        above -= 1
    while above <= total and stats.binom.sf(above - 1, total, high_p) > tail:
        above += 1
    return (below if below > 0 else None), (above if above <= total else None)


@dataclass(frozen=True)
class Interval:
    """Certified range of a percentile-smoothed output under every shift up to ``epsilon``.

    Attributes:
        lower: float64 [D]; minus infinity where the samples give no bound.
        value: float64 [D], the empirical percentile at the centre (an estimate, not certified).
        upper: float64 [D]; plus infinity where the samples give no bound.
        epsilon: l2 size of the shifts, pixel values in [0, 1].
        alpha: Probability that an output's range is wrong.
    """

    lower: np.ndarray
    value: np.ndarray
    upper: np.ndarray
    epsilon: float
    alpha: float


class MedianSmooth:
    """A percentile-smoothed function.

    Args:
        model: Callable, float32 [N, C, H, W] -> [N, D] or [N]. A module must be in eval mode.
        sigma: Noise level in pixel values of [0, 1], > 0.
        percentile: p in (0, 1); 0.5 is the median.
        noise: Seed and backend of Gaussian noise (default: seed 0).
        batch_size: Noisy copies per pass (``numerics="fast"``).
        numerics: ``exact`` or ``fast``.
        device: Where the model is; default, that of its first parameter, else the CPU.

    Raises:
        CertbenchError: An argument is out of range, or the model is in train mode.
    """

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        sigma: float,
        percentile: float = 0.5,
        noise: sampling.Noise | None = None,
        *,
        batch_size: int = 400,
        numerics: str = "exact",
        device: Any = None,
    ):
        self.sigma = arguments.noise_level(sigma)
        arguments.choice(numerics, "numerics", ("exact", "fast"))
        if not 0 < percentile < 1:
            raise CertbenchError(
                f"is {percentile}", where="percentile", remedy="0.5 for the median"
            )
        self.noise = noise or sampling.Noise()
        if self.noise.kind == "uniform":
            raise CertbenchError(
                "is uniform", where="noise", remedy="percentile bounds hold for Gaussian noise"
            )
        sampling.require_eval(model)
        self.device = smoothing.device_of(model, device)
        self.model, self.percentile = model, float(percentile)
        self.batch_size, self.numerics = arguments.whole(batch_size, "batch_size"), numerics

    def sample(
        self, x: Any, n: int, *, stream: int = noises.ESTIMATION, item_index: int = 0
    ) -> np.ndarray:
        """Outputs of n noisy copies of one image: float64 [n, D].

        Args:
            x: float [C, H, W] in [0, 1].
            n: Noise samples.
            stream: Stream constant of :mod:`certbench.certify.noise`.
            item_index: Key of the image's noise.

        Raises:
            CertbenchError: The image is out of range, or the model's outputs are not one for each.
        """
        import torch

        image = smoothing.one_image(x)[None]
        sampling.check_range(image)
        sampling.require_eval(self.model)  # it may have been trained on since
        smoothing.check_samples(n, "n")
        item = arguments.whole(item_index, "item_index", minimum=0)
        size = sampling.batch_shape(self.numerics, self.batch_size, n, image.numel(), self.device)
        perturb = sampling.additive(self.noise, self.sigma, stream, image, self.device, size)
        parts = []
        with torch.inference_mode():
            for _, _, _, batch, real in sampling.batches(
                image, np.array([item]), 0, n, perturb, size, self.device
            ):
                made = self.model(batch)
                if len(made) != len(batch):
                    raise CertbenchError(
                        f"the model returns {len(made)} outputs for {len(batch)} images",
                        where="model",
                        remedy="return [N, D] or [N]",
                    )
                parts.append(made.reshape(len(batch), -1)[:real].double())
            return torch.cat(parts).cpu().numpy()

    def bounds(
        self, x: Any, epsilon: float, n: int, alpha: float, *, item_index: int = 0
    ) -> Interval:
        """With probability >= 1 - alpha per output, its range under every shift up to epsilon.

        Outputs that are NaN count as minus infinity for the lower and plus infinity for the upper
        bound.

        Args:
            x: float [C, H, W] in [0, 1].
            epsilon: l2 size of the shifts, pixel values in [0, 1], >= 0.
            n: Noise samples.
            alpha: Error probability of one output's range, in (0, 1).
            item_index: Key of the image's noise.

        Raises:
            CertbenchError: A value is out of range.
        """
        dimension = smoothing.one_image(x).numel()
        slack = smoothing.distance_from_law(self.noise.kind, self.sigma, dimension)
        places = median_smoothing_indices(n, self.percentile, epsilon, self.sigma, alpha, slack)
        drawn = self.sample(x, n, item_index=item_index)
        lowest = np.sort(np.where(np.isnan(drawn), -np.inf, drawn), axis=0)
        highest = np.sort(np.where(np.isnan(drawn), np.inf, drawn), axis=0)
        nothing = np.full(drawn.shape[1], np.inf)
        lower = -nothing if places[0] is None else lowest[places[0] - 1]
        upper = nothing if places[1] is None else highest[places[1] - 1]
        middle = lowest[min(n - 1, int(np.ceil(self.percentile * n)) - 1)]
        return Interval(lower, middle, upper, float(epsilon), float(alpha))
