"""Attacking a smoothed classifier: the logarithm of the mean probability under Gaussian noise.

SmoothAdv (Salman et al. 2019, arXiv 1906.04584, section 3) attacks
``G(x) = E[softmax f(x + sigma n)]`` itself, by ``J = -log(mean_i softmax f(x + sigma n_i)_y)``. The
mean of log-probabilities, which is easier to write, spends its gradient on hopeless draws.

:class:`SmoothedLogits` returns ``log G`` per class. That is a vector of logits: its cross-entropy
is J, its argmax the soft vote, and every attack of this package can use it. Success is judged by
the certified prediction rule, never by one noisy pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from certbench.attacks import noise

#: Probabilities are kept above this (Salman et al., published code).
LEAST_PROBABILITY = 1e-20


def log_mean_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean probability over draws.

    Args:
        logits: [m, n, K], one set of logits per noise draw.

    Returns:
        [n, K], at least log(1e-20).
    """
    spread = torch.logsumexp(torch.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))
    return spread.clamp_min(math.log(LEAST_PROBABILITY))


class SmoothedLogits:
    """log E[softmax f(x + sigma n)] estimated with noise draws that belong to the image.

    The draws of an image stay the same for all steps, which makes the objective deterministic,
    until :meth:`redraw` asks for new ones; they stay in the device's memory, ``draws`` images for
    every image of the batch. Noise is not clamped to the box.

    Args:
        logits: The base classifier, float32 [n, C, H, W] -> [n, K].
        sigma: Standard deviation of the noise, in pixel values of [0, 1].
        draws: Noise draws per image and evaluation (m).
        seed64: The run's seed for the dataset.
        gradient: "autograd" differentiates the base classifier; "score" estimates the gradient
            from probabilities alone, ``mean((p_i - p) n_i) / sigma`` with a leave-one-out baseline
            p, for classifiers without useful gradients (needs ``draws`` of 1000 or more).
        batch_size: Noisy images per pass of the base classifier, where no graph is kept.
    """

    needs_items = True

    def __init__(
        self,
        logits: Callable[[torch.Tensor], torch.Tensor],
        sigma: float,
        draws: int = 32,
        *,
        seed64: int = 0,
        gradient: str = "autograd",
        batch_size: int = 1024,
    ):
        if gradient not in ("autograd", "score"):
            raise ValueError(f"gradient is {gradient!r}, expected 'autograd' or 'score'")
        if gradient == "score" and draws < 2:
            raise ValueError("the score gradient needs at least 2 draws")
        self.logits = logits
        self.sigma = sigma
        self.draws = draws
        self.seed64 = seed64
        self.gradient = gradient
        self.batch_size = batch_size
        self.passes = draws
        self.backward_passes = draws if gradient == "autograd" else 0
        self.knowledge = "scores" if gradient == "score" else ""
        self._round = 0
        self._items = np.zeros(0, dtype=np.int64)
        self._noise = torch.zeros(0)

    def redraw(self, round_: int) -> None:
        """Use other noise from now on (round 0 is the first set of draws)."""
        if round_ != self._round:
            self._round = round_
            self._items = np.zeros(0, dtype=np.int64)

    def __call__(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """The logits log G(x): [n, K].

        Args:
            x: float32 [n, C, H, W].
            items: int64 [n], the item each point belongs to.
        """
        drawn = self._draws_of(x, np.asarray(items))
        if self.gradient == "score":
            probabilities: torch.Tensor = _ScoreGradient.apply(x, drawn, self)
            return probabilities
        if not torch.is_grad_enabled():
            return log_mean_softmax(self.noisy_logits(x, drawn))
        noisy = (x.unsqueeze(1) + self.sigma * drawn).flatten(0, 1)
        logits = self.logits(noisy).unflatten(0, (len(x), self.draws)).transpose(0, 1)
        return log_mean_softmax(logits)

    def noisy_logits(self, x: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """[m, n, K] without a graph, in bounded memory."""
        step = max(1, self.batch_size // max(len(x), 1))
        parts = []
        with torch.no_grad():
            for first in range(0, self.draws, step):
                part = drawn[:, first : first + step]
                noisy = (x.unsqueeze(1) + self.sigma * part).flatten(0, 1)
                parts.append(self.logits(noisy).unflatten(0, (len(x), part.shape[1])))
        return torch.cat(parts, 1).transpose(0, 1)

    def _draws_of(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """[n, m, C, H, W]: cached, because an attack evaluates the same images again and again."""
        if not np.array_equal(items, self._items):
            order = {int(item): row for row, item in enumerate(self._items)}
            rows = [order.get(int(item)) for item in items]
            shape = (self.draws, *x.shape[1:])
            if None not in rows and self._noise.shape[1:] == shape:
                return self._noise[torch.tensor(rows, device=x.device)]
            seeds = noise.image_seeds(self.seed64, items)
            drawn = noise.normal(seeds, "smoothed", (self._round,), shape)
            self._items, self._noise = items.copy(), drawn.to(x.device)
        return self._noise


class _ScoreGradient(torch.autograd.Function):
    """log G with the gradient estimated from the probabilities of the draws."""

    @staticmethod
    def forward(ctx, x, drawn, owner):
        probabilities = torch.softmax(owner.noisy_logits(x, drawn), dim=-1)
        mean = probabilities.mean(0).clamp_min(LEAST_PROBABILITY)
        ctx.save_for_backward(probabilities, mean, drawn)
        ctx.sigma = owner.sigma
        return mean.log()

    @staticmethod
    def backward(ctx, slope):
        probabilities, mean, drawn = ctx.saved_tensors
        # Leave-one-out baseline: p_i - mean_{j != i} p_j = (p_i - p) m / (m - 1). The noise has
        # mean zero, so this changes the variance of the estimate and not its expectation.
        centred = probabilities - probabilities.mean(0)
        weight = (centred * (slope / mean)).sum(-1) / (len(probabilities) - 1)
        return torch.einsum("mn,nm...->n...", weight, drawn) / ctx.sigma, None, None
