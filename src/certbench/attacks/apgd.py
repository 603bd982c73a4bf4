"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, algorithm 1) with cross-entropy, DLR and DLR-T.

The step size is halved by the attack itself: at checkpoints, images whose loss rose too rarely or
whose best loss stood still go back to their best point and take half the step. Checkpoints follow
the integer recursion of the authors' code, which equals the paper's fractions at 100 and 200 steps
and checks far more often in short runs; that is why fewer than 50 steps must be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS, FLAGS
from certbench.attacks.protocol import Passes, Work
from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.losses import Loss
    from certbench.attacks.outcome import AttackOutcome, Ledger
    from certbench.attacks.target import Target

version = 2

#: ``best_loss``, ``best_step`` and ``final_step`` (as a share of epsilon) are of the image's last
#: run.
EXTRA: dict[str, str] = {"best_loss": "float64", "best_step": "int64", "final_step": "float64"}

columns: dict[str, str] = {**COLUMNS, **EXTRA}

#: Share of the momentum point in the update after the first step.
_MOMENTUM = 0.75

#: Smoothed objectives keep their noise for this share of the steps and then draw anew at every
#: checkpoint, so that the end of the climb does not overfit the draws.
_FIXED_DRAWS = 0.7


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of APGD."""

    loss: str = param("ce", help="loss to maximise", choices=("ce", "dlr", "dlr-targeted"))
    steps: int = param(100, help="gradient steps per run", minimum=1)
    restarts: int = param(1, help="runs, each on the images still correct", minimum=1)
    targets: int = param(9, help="target classes of dlr-targeted, by descending logit", minimum=1)
    rho: float = param(
        0.75, help="share of rising steps below which the step is halved", above=0, maximum=1
    )
    eot: int = param(1, help="passes to average per step, for randomised models", minimum=1)
    allow_short: bool = param(False, help="allow fewer than 50 steps, which are weak")
    random_start: bool = param(True, help="start at a random point of the ball")
    judge_every: int = param(
        10, help="steps between calls of a prediction rule that is not the argmax", minimum=1
    )
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 50 and not self.allow_short:
            raise CertbenchError(
                f"is {self.steps}; APGD halves its step almost at once in short runs",
                where="steps",
                remedy="use 100, or set allow_short: true",
            )


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives all runs: over targets, or over restarts."""
    runs = params.targets if params.loss == "dlr-targeted" else params.restarts
    return Passes.climb(params.steps * runs, params.eot)


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`."""
    from certbench.attacks import shard

    params = work.params
    if params.loss == "dlr":
        shard.require_classes(work, params.loss)
    name = "apgd-t" if params.loss == "dlr-targeted" else f"apgd-{params.loss}"
    step = shard.Step(name, params, run)
    return shard.attack_shard(work, [step], EXTRA, randomised_ok=params.eot > 1)


def checkpoints(steps: int) -> list[int]:
    """Numbers of steps after which the step size is reconsidered.

    Args:
        steps: Length of the run.
    """
    interval, shrink, least = _intervals(steps)
    at, found = interval, []
    while at <= steps:
        found.append(at)
        interval = max(interval - shrink, least)
        at += interval
    return found


def _intervals(steps: int) -> tuple[int, int, int]:
    """First interval between checkpoints, how much it shrinks each time, and its least value."""
    return max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)


def run(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: Params, seeds: np.ndarray
) -> AttackOutcome:
    """APGD on one batch of correctly classified images.

    Args:
        target: What is attacked.
        x: float32 [N, C, H, W] in [0, 1].
        y: int64 [N] labels.
        params: Parameters. With 3 classes ``dlr-targeted`` becomes ``dlr``, with 2 ``ce``, and
            the images carry the flag ``loss_replaced``.
        seeds: int64 [N], one per image.

    Returns:
        The last misclassified iterate of each image (as in the authors' code); ``restart`` counts
        runs over targets and restarts.
    """
    import torch

    from certbench.attacks.outcome import Ledger

    target.bind(x)
    ledger = Ledger(x)
    extra = {
        "best_loss": torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device),
        "best_step": torch.full((len(x),), -1, dtype=torch.int64, device=x.device),
        "final_step": torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device),
    }
    if params.loss != "dlr-targeted":
        for restart in range(params.restarts):
            rows = ledger.open_rows()
            if len(rows):
                _run_once(target, x, y, params, seeds, rows, params.loss, 0, restart, ledger, extra)
        return target.outcome(ledger, **extra)

    rank, run_index = 2, 0
    loss = params.loss
    last_rank = params.targets + 1
    while rank <= last_rank:
        for restart in range(params.restarts):
            rows = ledger.open_rows()
            if not len(rows):
                return target.outcome(ledger, **extra)
            logits = target.scores(x[rows], rows)
            classes = logits.shape[1]
            if classes < 4:
                loss, last_rank = ("dlr" if classes == 3 else "ce"), rank
                ledger.flags |= FLAGS["loss_replaced"]
                wanted = None
            else:
                if last_rank > classes:
                    last_rank = classes
                    ledger.flags |= FLAGS["targets_capped"]
                wanted = ranked_class(logits, y[rows], rank)
            _run_once(
                target, x, y, params, seeds, rows, loss, run_index, restart, ledger, extra, wanted
            )
            run_index += 1
        rank += 1
    return target.outcome(ledger, **extra)


def ranked_class(logits: torch.Tensor, y: torch.Tensor, rank: int) -> torch.Tensor:
    """The class with the ``rank``-th largest logit, the true class taken as the first.

    Args:
        logits: [n, K].
        y: int64 [n].
        rank: 2 for the most likely wrong class, up to K.
    """
    import torch

    wrong = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return wrong.topk(rank - 1, dim=1).indices[:, -1]


def _run_once(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    params: Params,
    seeds: np.ndarray,
    rows: torch.Tensor,
    loss_name: str,
    run_index: int,
    restart: int,
    ledger: Ledger,
    extra: dict[str, torch.Tensor],
    wanted: torch.Tensor | None = None,
) -> None:
    """One climb of the images ``rows``, entered into the ledger."""
    from certbench.attacks.geometry import random_start
    from certbench.attacks.losses import LOSSES

    centre = x[rows]
    start = centre
    if params.random_start:
        own = seeds[rows.cpu().numpy()]
        counters = (run_index, restart)
        purpose = f"apgd.{loss_name}.start"
        start = random_start(
            centre, params.norm, params.epsilon, own, purpose, counters, boundary=True
        )
    climb = Climb(target, centre, y[rows], rows, params, LOSSES[loss_name], wanted)
    climb.run(start)
    ledger.flag(rows, climb.flat_start, "zero_gradient")
    late = climb.best_step > 0.95 * params.steps
    ledger.flag(rows, late & ~climb.broken, "late_best")
    ledger.lower_margin(rows, climb.least_margin)
    number = run_index if wanted is not None else restart
    ledger.record(
        rows, climb.broken, climb.success, climb.success_margin, climb.first_success, number
    )
    extra["best_loss"][rows] = climb.best_loss.double()
    extra["best_step"][rows] = climb.best_step
    extra["final_step"][rows] = climb.step.flatten().double() / max(params.epsilon, 1e-12)


class Climb:
    """One APGD run on n images; the state of every image is a row of the tensors.

    Args:
        target: What is attacked.
        x: float32 [n, C, H, W], centres.
        y: int64 [n].
        rows: int64 [n], images of the target's batch.
        params: Parameters.
        loss: Loss to maximise.
        wanted: int64 [n], target classes of a targeted loss.

    Attributes:
        best: Point with the highest loss.
        best_loss: [n].
        best_step: int64 [n], steps made when it was reached.
        step: [n, 1, 1, 1], current step size.
        broken: bool [n].
        success: Last misclassified iterate.
        success_margin: Its logit margin.
        first_success: int64 [n], steps made at the first success.
        least_margin: [n].
        flat_start: bool [n], whether the start is correct and has a gradient of exactly zero.
        trace: Loss [n] at the start and after each step.
    """

    def __init__(
        self,
        target: Target,
        x: torch.Tensor,
        y: torch.Tensor,
        rows: torch.Tensor,
        params: Params,
        loss: Loss,
        wanted: torch.Tensor | None = None,
    ):
        import torch

        self.target, self.x, self.y, self.rows = target, x, y, rows
        self.params, self.loss, self.wanted = params, loss, wanted
        count, device = len(x), x.device
        self.step = torch.full(
            (count, *[1] * (x.dim() - 1)), 2.0 * params.epsilon, dtype=x.dtype, device=device
        )
        self.broken = torch.zeros(count, dtype=torch.bool, device=device)
        self.success = x.clone()
        self.success_margin = torch.full((count,), torch.inf, device=device)
        self.least_margin = torch.full((count,), torch.inf, device=device)
        self.first_success = torch.full((count,), -1, dtype=torch.int64, device=device)
        self.best_step = torch.zeros(count, dtype=torch.int64, device=device)
        self.trace: list[torch.Tensor] = []
        self.best = x
        self.best_loss = self.flat_start = torch.zeros(0)

    def run(self, start: torch.Tensor) -> None:
        """Climb from ``start``, float32 [n, C, H, W]."""
        import torch

        from certbench.attacks.geometry import per_image, replace_rows

        steps = self.params.steps
        interval, shrink, least = _intervals(steps)
        point = start.clamp(0.0, 1.0)
        self.target.redraw(0)
        loss, slope = self._evaluate(point, 0)
        # DLR is constant where the true class has fallen to the third place; that is no mask.
        self.flat_start = (slope == 0).flatten(1).all(1) & (self.least_margin >= 0)
        self.best, best_slope, self.best_loss = point.clone(), slope.clone(), loss.clone()
        checked_loss = loss.clone()
        reduced = torch.ones_like(self.broken)
        # The first comparison of a rising loss is made with zero: the authors' code reads the last
        # row of a history that starts out as zeros.
        previous_loss = torch.zeros_like(loss)
        rises = torch.zeros_like(loss)
        before = point.clone()
        since = 0
        for i in range(steps):
            momentum = point - before
            before = point
            point = self._step(point, slope, momentum, 1.0 if i == 0 else _MOMENTUM)
            loss, slope = self._evaluate(point, i + 1)
            rises += (loss > previous_loss).to(rises.dtype)
            previous_loss = loss
            higher = loss > self.best_loss
            replace_rows(self.best, higher, point)
            replace_rows(best_slope, higher, slope)
            self.best_loss = torch.maximum(loss, self.best_loss)
            self.best_step.masked_fill_(higher, i + 1)
            since += 1
            if since < interval:
                continue
            stuck = ~reduced & (checked_loss >= self.best_loss)
            reduced = (rises <= self.params.rho * interval) | stuck
            checked_loss = self.best_loss
            wide = per_image(reduced, point)
            self.step = torch.where(wide, self.step / 2.0, self.step)
            # ``before`` stays: the next momentum is the jump from there to the restored point.
            point = torch.where(wide, self.best, point)
            slope = torch.where(wide, best_slope, slope)
            rises = torch.zeros_like(rises)
            since, interval = 0, max(interval - shrink, least)
            late = _FIXED_DRAWS * steps <= i + 1 < steps
            if late and self.target.redraw(i + 1):
                # Losses under other draws do not compare: measure the best point again.
                point = before = self.best.clone()
                loss, slope = self._evaluate(point, i + 1, judged=False)
                self.best_loss = checked_loss = previous_loss = loss
                best_slope = slope.clone()

    def _step(
        self, point: torch.Tensor, slope: torch.Tensor, momentum: torch.Tensor, share: float
    ) -> torch.Tensor:
        """The next point: a step along the gradient, mixed with the momentum (algorithm 1)."""
        from certbench.attacks.geometry import project, unit

        norm, epsilon = self.params.norm, self.params.epsilon
        direction = slope.sign() if norm == "linf" else unit(slope, norm)
        ahead = project(point + self.step * direction, self.x, norm, epsilon)
        mixed = point + (ahead - point) * share + momentum * (1 - share)
        return project(mixed, self.x, norm, epsilon)

    def _evaluate(
        self, point: torch.Tensor, made: int, judged: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient at ``point`` after ``made`` steps; notes successes if ``judged``."""
        from certbench.attacks.geometry import replace_rows
        from certbench.attacks.losses import margin

        logits, loss, slope = self.target.gradient(
            point, self.y, self.loss, self.rows, self.wanted, self.params.eot
        )
        if not judged:
            return loss, slope
        self.trace.append(loss)
        last = made == self.params.steps
        wrong = self.target.broken_at(point, self.y, self.rows, logits, made, last)
        margins = margin(logits, self.y)
        self.least_margin = self.least_margin.minimum(margins)
        replace_rows(self.success, wrong, point)
        replace_rows(self.success_margin, wrong, margins)
        self.first_success.masked_fill_(wrong & ~self.broken, made)
        self.broken = self.broken | wrong
        return loss, slope
