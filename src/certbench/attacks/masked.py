"""Surrogates of masked and voting defences: what an attack climbs where the rule has no gradient.

Such a defence predicts from many views of an image (masks laid over it, bands cut out of it) by a
rule that is constant almost everywhere. The surrogates replace the rule, never the judge: success
is always decided by the certified rule itself.

* :class:`Expectation`: the mean loss over randomly drawn views.
* :class:`Unanimity`: one wrong class in every view (a unanimous wrong first round is returned).
* :class:`Coherent`: one wrong class in as many views as possible; for patches, which some mask
  always hides.
* :class:`SoftVotes`: votes with a threshold replaced by a steep sigmoid.
* :class:`VoteScores`: the vote margin itself, for attacks without gradients.

Random views belong to the image, the restart and the step, so an image's attack does not depend on
its company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from certbench.attacks import noise
from certbench.attacks.losses import Loss

#: Temperature of the soft minimum over views, in units of logits.
TEMPERATURE = 0.1

#: Slope of the sigmoid that stands for a vote's threshold.
SLOPE = 10.0

#: Weight of the mean margin beside the share of votes, which is what it breaks ties of.
TIE_BREAK = 0.01

#: Lead in logits beyond which a view is won, and pushed no further.
ENOUGH = 1.0


class Views(Protocol):
    """A defence that sees an image through numbered views, singly or two at once."""

    def views(self, shape: Sequence[int]) -> int:
        """Number of single views of images of a shape [C, H, W]."""

    def logits(self, x: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Logits [n, m, K] of images [n, C, H, W] through ``views``, int64 [n, m, 2]."""


class _Objective:
    """An objective of several passes per image.

    ``per_pass`` gives logits [n, m, K] and ``loss`` one value per image; calling it gives the mean
    logits [n, K], for margins.
    """

    needs_items = True

    def __init__(self, defence: Views, seed64: int = 0):
        self.defence = defence
        self.seed64 = seed64
        self.passes = 1
        self._restart, self._step, self._check = 0, 0, False
        self._seeds: dict[int, int] = {}
        self._items = np.zeros(0, np.int64)

    def at_step(self, restart: int, step: int, check: bool) -> None:
        """Draw for this step from now on; a check looks at all single views."""
        self._restart, self._step, self._check = restart, step, check

    def redraw(self, round_: int) -> None:
        """Other views from now on, the same at every step, for attacks that keep their draws."""
        self._restart, self._step, self._check = 0, round_, False

    def chosen(self, shape: Sequence[int], items: np.ndarray) -> np.ndarray:
        """The views of this step: int64 [n, m, 2]."""
        each = np.arange(self.defence.views(shape))
        return np.broadcast_to(np.stack([each, each], 1), (len(items), len(each), 2))

    def per_pass(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """Logits [n, m, K] through the views of this step."""
        self._items = np.asarray(items)
        views = self.chosen(tuple(x.shape[1:]), self._items)
        self.passes = views.shape[1]
        return self.defence.logits(x, torch.from_numpy(np.array(views)).to(x.device))

    per_pass.needs_items = True  # type: ignore[attr-defined]

    def __call__(self, x: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        """Mean logits [n, K]."""
        return self.per_pass(x, items).mean(1)

    def loss(
        self, passes: torch.Tensor, y: torch.Tensor, loss: Loss, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """One value per image, to be maximised.

        Args:
            passes: [n, m, K], what ``per_pass`` gave.
            y: int64 [n].
            loss: The attack's loss of one pass.
            wanted: int64 [n] target classes of a targeted loss.
        """
        raise NotImplementedError

    def _generator(self, item: int) -> np.random.Generator:
        if item not in self._seeds:
            self._seeds[item] = int(noise.image_seeds(self.seed64, np.array([item]))[0])
        return noise.generator(self._seeds[item], "views", self._restart, self._step)

    def _drawn(self, items: np.ndarray, total: int, singles: int, pairs: int) -> np.ndarray:
        """Random views without repetition, then random pairs: int64 [n, singles + pairs, 2]."""
        made = np.empty((len(items), singles + pairs, 2), np.int64)
        for row, item in enumerate(items.tolist()):
            generator = self._generator(item)
            made[row, :singles] = generator.permutation(total)[:singles, None]
            for pair in range(pairs):
                made[row, singles + pair] = generator.choice(total, 2, replace=False)
        return made


class Expectation(_Objective):
    """Mean of the attack's loss over random views; over all single ones at checks.

    Args:
        defence: What is seen through views.
        singles: Single views per step.
        pairs: Pairs of views per step, for rules with a second round.
        seed64: The run's seed for the dataset.
    """

    def __init__(self, defence: Views, singles: int, pairs: int = 0, *, seed64: int = 0):
        super().__init__(defence, seed64)
        self.singles, self.pairs = singles, pairs

    def chosen(self, shape: Sequence[int], items: np.ndarray) -> np.ndarray:
        """The views of this step: int64 [n, m, 2]."""
        total = self.defence.views(shape)
        pairs = self.pairs if total > 1 else 0
        if not self._check:
            return self._drawn(items, total, min(self.singles, total), pairs)
        every = super().chosen(shape, items)
        return np.concatenate([every, self._drawn(items, total, 0, pairs)], 1) if pairs else every

    def loss(
        self, passes: torch.Tensor, y: torch.Tensor, loss: Loss, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """The mean of ``loss`` over passes: [n]."""
        n, m = passes.shape[:2]
        goals = None if wanted is None else wanted.repeat_interleave(m)
        return (
            loss(passes.flatten(0, 1), y.repeat_interleave(m), goals).unflatten(0, (n, m)).mean(1)
        )


class _Targeted(_Objective):
    """Objectives that want one wrong class: chosen at the first step of each restart, then kept.

    It is the most frequent wrong class among the views; between equal numbers, and where no view is
    wrong, the one with the largest mean probability. Restarts go down this order.
    """

    def __init__(self, defence: Views, seed64: int = 0):
        super().__init__(defence, seed64)
        self._wanted: dict[int, int] = {}

    def at_step(self, restart: int, step: int, check: bool) -> None:
        """Draw for this step from now on; the first one chooses the classes anew."""
        super().at_step(restart, step, check)
        if step == 0:
            self._wanted = {}

    def redraw(self, round_: int) -> None:
        """Other views from now on; the first round chooses the classes anew."""
        super().redraw(round_)
        if round_ == 0:
            self._wanted = {}

    def wanted(self, passes: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The class wanted of each image of the last call: int64 [n]."""
        items = self._items[: len(y)].tolist()
        if any(item not in self._wanted for item in items):
            order = wrong_classes(passes.detach(), y)
            rank = self._restart % order.shape[1]
            for item, label in zip(items, order[:, rank].tolist(), strict=True):
                self._wanted.setdefault(item, label)
        return torch.tensor([self._wanted[item] for item in items], device=y.device)

    def leads(self, passes: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """By how much the wanted class leads in each pass: [n, m]."""
        goal = self.wanted(passes, y)[:, None, None].expand(-1, passes.shape[1], 1)
        rivals = passes.scatter(2, goal, -torch.inf).amax(2)
        return passes.gather(2, goal).squeeze(2) - rivals


def wrong_classes(passes: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Wrong classes by number of votes, then by mean probability: int64 [n, K - 1].

    Args:
        passes: [n, m, K].
        y: int64 [n].
    """
    classes = passes.shape[2]
    votes = torch.nn.functional.one_hot(passes.argmax(2), classes).sum(1)
    # A mean probability is at most 1, so it decides between equal numbers of votes only.
    order = votes.double() + 0.999 * torch.softmax(passes.double(), 2).mean(1)
    order = order.scatter(1, y[:, None], -torch.inf)
    return order.argsort(dim=1, descending=True, stable=True)[:, : classes - 1]


class Unanimity(_Targeted):
    """Soft minimum over all views of the lead of one wrong class (temperature 0.1)."""

    def __init__(self, defence: Views, *, seed64: int = 0):
        super().__init__(defence, seed64)

    def loss(
        self, passes: torch.Tensor, y: torch.Tensor, loss: Loss, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """``-t log mean exp(-lead / t)``, at least the smallest lead: [n]."""
        spread = torch.logsumexp(-self.leads(passes, y) / TEMPERATURE, 1)
        return -TEMPERATURE * (spread - float(np.log(passes.shape[1])))


class Coherent(_Targeted):
    """Mean over views of one wrong class's lead, no lead counting more than one logit.

    Args:
        defence: What is seen through views.
        singles: Views drawn per step; all of them at checks.
        seed64: The run's seed for the dataset.
    """

    def __init__(self, defence: Views, singles: int, *, seed64: int = 0):
        super().__init__(defence, seed64)
        self.singles = singles

    def chosen(self, shape: Sequence[int], items: np.ndarray) -> np.ndarray:
        """The views of this step: int64 [n, m, 2]."""
        if self._check:
            return super().chosen(shape, items)
        total = self.defence.views(shape)
        return self._drawn(items, total, min(self.singles, total), 0)

    def loss(
        self, passes: torch.Tensor, y: torch.Tensor, loss: Loss, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """The mean of ``min(1, lead)``: [n]."""
        return self.leads(passes, y).clamp(max=ENOUGH).mean(1)


class SoftVotes(_Objective):
    """Lead of the best wrong class in votes whose threshold is a sigmoid.

    Args:
        defence: What is seen through views.
        soft: Logits [n, m, K] -> soft votes [n, m, K] in (0, 1).
    """

    def __init__(self, defence: Views, soft: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__(defence)
        self.soft = soft

    def loss(
        self, passes: torch.Tensor, y: torch.Tensor, loss: Loss, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """Largest mean vote of a wrong class less that of the true one: [n]."""
        votes = self.soft(passes).mean(1)
        rivals = votes.scatter(1, y[:, None], -torch.inf).amax(1)
        return rivals - votes.gather(1, y[:, None]).squeeze(1)


def threshold_votes(passes: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Votes [n, m, K] (0 or 1): probabilities at or above the threshold, or the largest logit."""
    if threshold is None:
        classes = passes.shape[2]
        return torch.nn.functional.one_hot(passes.argmax(2), classes).to(passes.dtype)
    return (torch.softmax(passes, 2) >= threshold).to(passes.dtype)


def soft_votes(passes: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """The same with a sigmoid of slope 10 for the threshold (or for the best rival's probability).

    Args:
        passes: [n, m, K].
        threshold: Least probability of a vote, or None for the largest logit.
    """
    probability = torch.softmax(passes, 2)
    if threshold is not None:
        return torch.sigmoid(SLOPE * (probability - threshold))
    top = probability.topk(2, 2).values
    leader = probability == top[..., :1]
    rival = torch.where(leader, top[..., 1:], top[..., :1])
    return torch.sigmoid(SLOPE * (probability - rival))


class VoteScores:
    """Vote margins for attacks without gradients: [n, K], what the margin is if k is the label.

    That is the share of views that vote for k, plus 0.01 times the mean margin of k, which tells
    points with equal votes apart.

    Args:
        defence: What is seen through views.
        votes: Logits [n, m, K] -> votes [n, m, K]; None means the largest logit.
    """

    #: Gradients of votes are zero almost everywhere: this is searched, not climbed.
    searched = True
    knowledge = "scores"
    attacked = "votes"

    def __init__(self, defence: Any, votes: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.defence = defence
        self.votes = votes or (lambda passes: threshold_votes(passes, None))
        self.passes = 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the points ``x``, float32 [n, C, H, W]: [n, K]."""
        shape = tuple(x.shape[1:])
        each = torch.arange(self.defence.views(shape), device=x.device)
        self.passes = len(each)
        views = torch.stack([each, each], 1).expand(len(x), -1, 2)
        passes = self.defence.logits(x, views)
        top = passes.topk(2, 2).values
        rival = torch.where(passes == top[..., :1], top[..., 1:], top[..., :1])
        return self.votes(passes).mean(1) + TIE_BREAK * (passes - rival).mean(1)

    def vote_margin(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The entry of the label: [n]."""
        return scores.gather(1, y[:, None]).squeeze(1)
