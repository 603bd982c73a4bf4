"""Projected gradient descent (Madry et al. 2018), any-iterate success, restarts on survivors.

PGD is what papers publish and a good diagnostic; headline numbers come from ``autoattack``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS
from certbench.attacks.protocol import Passes, Work
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.outcome import AttackOutcome, Ledger
    from certbench.attacks.target import Target

version = 2

columns: dict[str, str] = dict(COLUMNS)

#: Finished images leave the batch every so many steps. Fixed, so that an image's passes do not
#: depend on the others.
_COMPACT_EVERY = 5


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of PGD."""

    steps: int = param(40, help="gradient steps per restart", minimum=1)
    step_size: float = param(0.25, help="step length as a share of epsilon", above=0, maximum=2)
    restarts: int = param(5, help="runs, each on the images still correct", minimum=1)
    loss: str = param("ce", help="loss to maximise", choices=("ce", "dlr", "margin"))
    schedule: str = param(
        "constant",
        help="stepped: full steps for 60 % of the run, then 0.4 and 0.08 of them, for objectives "
        "that draw anew at every step",
        choices=("constant", "stepped"),
    )
    random_start: bool = param(True, help="start at a random point of the ball")
    judge_every: int = param(
        10, help="steps between calls of a prediction rule that is not the argmax", minimum=1
    )
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives all restarts."""
    return Passes.climb(params.steps * params.restarts)


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`."""
    from certbench.attacks import shard

    params = work.params
    shard.require_classes(work, params.loss)
    return shard.attack_shard(work, [shard.Step("pgd", params, run)])


def run(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: Params, seeds: np.ndarray
) -> AttackOutcome:
    """PGD on one batch of correctly classified images.

    Args:
        target: What is attacked.
        x: float32 [N, C, H, W] in [0, 1].
        y: int64 [N] labels.
        params: Parameters.
        seeds: int64 [N], one per image.

    Returns:
        The first successful iterate of each image; the start counts as iterate 0.
    """
    from certbench.attacks.outcome import Ledger

    target.bind(x)
    ledger = Ledger(x)
    for restart in range(params.restarts):
        rows = ledger.open_rows()
        if not len(rows):
            break
        _climb(target, x, y, params, seeds, rows, restart, ledger)
    return target.outcome(ledger)


def _climb(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    params: Params,
    seeds: np.ndarray,
    rows: torch.Tensor,
    restart: int,
    ledger: Ledger,
) -> None:
    from certbench.attacks import losses, noise
    from certbench.attacks.geometry import project, random_start

    norm, epsilon = params.norm, params.epsilon
    loss = losses.LOSSES[params.loss]
    x, y = x[rows], y[rows]
    own = seeds[rows.cpu().numpy()]
    point = x.clone()
    if params.random_start:
        point = random_start(x, norm, epsilon, own, "pgd.start", (restart,), boundary=False)
    spare = None
    if norm == "l2":
        # Where the gradient vanishes a random direction is better than standing still.
        spare = noise.normal(own, "pgd.spare", (restart,), tuple(x.shape[1:])).to(x.device)
    for step in range(params.steps + 1):
        last = step == params.steps
        target.at_step(restart, step, last or step % params.judge_every == 0)
        if last:
            logits = target.scores(point, rows)
        else:
            logits, _, slope = target.gradient(point, y, loss, rows)
        margin = target.margin(logits, y)
        if step == 0:
            # DLR is constant where the true class has fallen to the third place; that is no mask.
            flat = (slope == 0).flatten(1).all(1) & (margin >= 0)
            ledger.flag(rows, flat, "zero_gradient")
        open_ = ~ledger.broken[rows]
        fresh = target.broken_at(point, y, rows, logits, step, last) & open_
        ledger.lower_margin(rows[open_], margin[open_])
        ledger.record(rows, fresh, point, margin, step, restart)
        if last:
            break
        move = step_share(params, step) * _ascend(slope, spare, params)
        point = project(point + move, x, norm, epsilon)
        if step % _COMPACT_EVERY == _COMPACT_EVERY - 1:
            keep = (~ledger.broken[rows]).nonzero().flatten()
            if not len(keep):
                break
            if len(keep) < len(rows):
                rows, x, y, point = rows[keep], x[keep], y[keep], point[keep]
                spare = spare[keep] if spare is not None else None


def step_share(params: Params, step: int) -> float:
    """Share of the full step length at a step, from 0."""
    if params.schedule == "constant":
        return 1.0
    done = step / params.steps
    return 1.0 if done < 0.6 else 0.4 if done < 0.9 else 0.08


def _ascend(slope: torch.Tensor, spare: torch.Tensor | None, params: Params) -> torch.Tensor:
    """The step: epsilon * step_size along the sign (Linf) or the direction (L2) of the gradient."""
    from certbench.attacks.geometry import length, per_image, unit

    size = params.step_size * params.epsilon
    if spare is None:
        return size * slope.sign()
    import torch

    flat = per_image(length(slope, "l2") == 0, slope)
    return size * unit(torch.where(flat, spare, slope), "l2")
