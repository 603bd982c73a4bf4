"""The attacked function: scores with gradients, the prediction rule that judges, and their cost.

What an attack climbs (``logits``) and what decides success (``judge``) are two callables, because
a defence predicts by a rule (a vote, a double masking) that has no useful gradient. Passes are
counted per image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from certbench.attacks.losses import Loss, margin
from certbench.attacks.outcome import ABSTAIN, AttackOutcome, Ledger
from certbench.errors import CertbenchError


class Target:
    """A model or defence, bound to one batch of images.

    Args:
        logits: float32 [n, C, H, W] -> logits [n, K].
        judge: float32 [n, C, H, W] -> int64 [n] labels, -1 for an abstention; None: the argmax of
            the logits (the first maximum, so a tie with the true label first is no success).
        items: int64 [N], item of each image of the batch, for callables with ``needs_items``.
        pad_to: Pad every call to this many images, so that arithmetic is independent of company.
        abstain_breaks: Whether an abstention counts as a success of the attack.
        judge_every: Steps between calls of a separate judge.
        name: For messages.
    """

    def __init__(
        self,
        logits: Callable[..., torch.Tensor],
        judge: Callable[..., torch.Tensor] | None = None,
        *,
        items: np.ndarray | None = None,
        pad_to: int | None = None,
        abstain_breaks: bool = True,
        judge_every: int = 10,
        name: str = "model",
    ):
        self.logits = logits
        self.judge = judge
        self.items = items
        self.pad_to = pad_to
        self.abstain_breaks = abstain_breaks
        self.judge_every = judge_every
        self.name = name
        #: Logits [N, K] of the clean images of the batch, where somebody has computed them.
        self.clean_logits: torch.Tensor | None = None
        self.bind(torch.zeros(0))

    def bind(self, x: torch.Tensor) -> None:
        """Start counting for a batch ``x`` of N images."""
        self._forward = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._backward = torch.zeros_like(self._forward)
        self._finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        # Steps of a run are over the same rows: what they spent is added up when the rows change.
        self._rows: torch.Tensor | None = None
        self._owed: list[Any] = [0, 0]
        self._taint: torch.Tensor | None = None

    @property
    def n_forward(self) -> torch.Tensor:
        """int64 [N]: forward passes spent on each image."""
        self._settle()
        return self._forward

    @property
    def n_backward(self) -> torch.Tensor:
        """int64 [N]: backward passes spent on each image."""
        self._settle()
        return self._backward

    def redraw(self, round_: int) -> bool:
        """Set which noise an objective that averages over draws uses.

        Args:
            round_: 0 for the first set of draws.

        Returns:
            Whether the objective has draws at all.
        """
        if not hasattr(self.logits, "redraw"):
            return False
        self.logits.redraw(round_)
        return True

    def scores(self, x: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [n, K] of the points ``x`` of the images ``rows``, without gradients."""
        with torch.no_grad():
            logits = self._call(self.logits, x, rows)
        self._note(rows, _passes(self.logits), 0, logits)
        return logits

    def gradient(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        loss: Loss,
        rows: torch.Tensor | None = None,
        wanted: torch.Tensor | None = None,
        draws: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, loss and gradient of the loss at the points ``x``.

        The gradient is that of the sum over the batch: a mean would divide tiny gradients by the
        batch size.

        Args:
            x: float32 [n, C, H, W].
            y: int64 [n] true labels.
            loss: One of :data:`certbench.attacks.losses.LOSSES`.
            rows: Images of the batch that the points belong to (None: all).
            wanted: int64 [n] target classes of a targeted loss.
            draws: Passes to average over, for randomised models; logits and loss are averaged too.

        Raises:
            CertbenchError: The logits do not depend differentiably on the image.
        """
        total: list[torch.Tensor] = []
        for _ in range(draws):
            point = x.detach().requires_grad_(True)
            with torch.enable_grad():
                logits, value = self._climbed(point, y, loss, rows, wanted)
            self._require_gradient(value)
            (slope,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
            if slope is None:
                slope = torch.zeros_like(x)
            parts = [logits.detach(), value.detach(), slope]
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        logits, value, slope = (part / draws for part in total) if draws > 1 else total
        backward = draws * _backward_passes(self.logits)
        self._note(rows, draws * _passes(self.logits), backward, logits)
        return logits, value, slope

    def _climbed(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        loss: Loss,
        rows: torch.Tensor | None,
        wanted: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, K] and loss [n]; an objective of several passes makes the loss itself."""
        objective: Any = self.logits
        if not hasattr(objective, "per_pass"):
            logits = self._call(objective, x, rows)
            return logits, loss(logits, y, wanted)
        passes = self._call(objective.per_pass, x, rows)
        return passes.mean(1), objective.loss(passes, y, loss, wanted)

    def margin(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How far the logits [n, K] are from an error: [n], positive while correct.

        An objective of votes has its own margin; all others have that of the logits.
        """
        own = getattr(self.logits, "vote_margin", None)
        return margin(logits, y) if own is None else own(logits, y)

    def at_step(self, restart: int, step: int, check: bool) -> None:
        """Tell an objective that draws anew at every step where the attack is.

        Args:
            restart: Run of the attack.
            step: Step in the run, from 0.
            check: Whether the step is one at which all of a defence's views are looked at.
        """
        tell = getattr(self.logits, "at_step", None)
        if tell is not None:
            tell(restart, step, check)

    def jacobian(
        self, x: torch.Tensor, rows: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, K] and the gradient of each, [n, K, C, H, W]: K backward passes.

        Raises:
            CertbenchError: The logits do not depend differentiably on the image.
        """
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._call(self.logits, point, rows)
        self._require_gradient(logits)
        classes = logits.shape[1]
        slopes = [
            torch.autograd.grad(logits[:, c].sum(), point, retain_graph=c < classes - 1)[0]
            for c in range(classes)
        ]
        passes = _passes(self.logits)
        logits = logits.detach()
        self._note(rows, passes, classes * passes, logits)
        return logits, torch.stack(slopes, 1)

    def labels(
        self, x: torch.Tensor, rows: torch.Tensor | None = None, logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int64 [n]: what the prediction rule answers.

        Args:
            x: float32 [n, C, H, W].
            rows: Images of the batch that the points belong to.
            logits: The logits at ``x`` where they are known, which saves a pass.
        """
        if self.judge is None:
            return (self.scores(x, rows) if logits is None else logits).argmax(1)
        with torch.no_grad():
            labels = self._call(self.judge, x, rows)
        self._note(rows, _spent(self.judge, labels), 0)
        return labels.to(torch.int64)

    def is_broken(self, labels: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Whether the answers ``labels`` are successes of an attack on ``y``: bool [n]."""
        wrong = labels != y
        return wrong if self.abstain_breaks else wrong & (labels != ABSTAIN)

    def broken_at(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        rows: torch.Tensor,
        logits: torch.Tensor,
        step: int,
        last: bool,
    ) -> torch.Tensor:
        """Successes at iterate ``step``: free for the argmax, on schedule for a separate judge."""
        if self.judge is None:
            return self.is_broken(logits.argmax(1), y)
        if last or (step > 0 and step % self.judge_every == 0):
            return self.is_broken(self.labels(x, rows), y)
        return torch.zeros_like(y, dtype=torch.bool)

    def require_finite(self) -> None:
        """Refuse NaN or infinite logits.

        Raises:
            CertbenchError: Names the model and the items.
        """
        self._settle()
        bad = (~self._finite).nonzero().flatten().tolist()
        if bad:
            names = [int(self.items[i]) if self.items is not None else i for i in bad[:5]]
            raise CertbenchError(
                f"logits are NaN or infinite for item {', '.join(map(str, names))}"
                + (" and others" if len(bad) > 5 else ""),
                where=self.name,
                remedy="evaluate in float32 and check the weights",
            )

    def outcome(self, ledger: Ledger, **extra: torch.Tensor) -> AttackOutcome:
        """The result of an attack that kept ``ledger``.

        Raises:
            CertbenchError: Logits were NaN or infinite.
        """
        self.require_finite()
        return AttackOutcome(
            x_adv=ledger.x_adv,
            broken=ledger.broken,
            iterations_to_success=ledger.iterations,
            restart=ledger.restart,
            n_forward=self.n_forward.clone(),
            n_backward=self.n_backward.clone(),
            margin=ledger.margin,
            flags=ledger.flags,
            extra=extra,
        )

    def _require_gradient(self, value: torch.Tensor) -> None:
        if not value.requires_grad:
            raise CertbenchError(
                "the logits carry no gradient",
                where=self.name,
                remedy="attack it with 'square', which needs only scores",
            )

    def _call(
        self, function: Callable[..., torch.Tensor], x: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        count = len(x)
        padding = 0 if self.pad_to is None else max(self.pad_to - count, 0)
        if getattr(function, "own_batches", False):
            padding = 0
        if padding:
            x = torch.cat([x, x[:1].detach().expand(padding, *x.shape[1:])])
        if not getattr(function, "needs_items", False):
            return function(x)[:count]
        if self.items is None:
            raise ValueError(f"{self.name} keys its noise by item, but no items are given")
        items = self.items if rows is None else self.items[rows.cpu().numpy()]
        items = np.concatenate([items, np.repeat(items[:1], padding)]) if padding else items
        return function(x, items=items)[:count]

    def _note(
        self,
        rows: torch.Tensor | None,
        forward: int | torch.Tensor,
        backward: int,
        logits: torch.Tensor | None = None,
    ) -> None:
        """Count passes of the images ``rows`` and remember whether their logits were finite."""
        if rows is not self._rows:
            self._settle()
            self._rows = rows
        self._owed = [self._owed[0] + forward, self._owed[1] + backward]
        if logits is not None:
            # Zero times a number is zero, and NaN where it is NaN or infinite.
            taint = logits.mul(0).sum(1)
            self._taint = taint if self._taint is None else self._taint.add_(taint)

    def _settle(self) -> None:
        """Enter what was spent on the present rows into the counters of the batch."""
        rows = slice(None) if self._rows is None else self._rows
        self._forward[rows] += self._owed[0]
        self._backward[rows] += self._owed[1]
        self._owed = [0, 0]
        if self._taint is not None:
            self._finite[rows] &= self._taint == 0
            self._taint = None


def _passes(function: Callable) -> int:
    return int(getattr(function, "passes", 1))


def _backward_passes(function: Callable) -> int:
    """Backward passes of one gradient: none where it is estimated from scores."""
    return int(getattr(function, "backward_passes", _passes(function)))


def _spent(judge: Callable, labels: torch.Tensor) -> int | torch.Tensor:
    """Passes of the judge's last call: one number, or one per image where it stops early."""
    spent = getattr(judge, "spent", None)
    if spent is None:
        return _passes(judge)
    return torch.as_tensor(np.asarray(spent)[: len(labels)], device=labels.device)
