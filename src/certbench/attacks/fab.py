"""Fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044): smallest perturbations.

FAB linearises the model, steps onto the nearest class boundary of the linearisation, and pulls the
point back towards the clean image once it is misclassified. Epsilon enters only in the verdict and
in random restarts, so one run gives the whole curve of robust accuracy over epsilon (column
``distance``). The targeted form needs one backward pass per step, the untargeted one per class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS, FLAGS
from certbench.attacks.protocol import Passes, Work
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.outcome import AttackOutcome, Ledger
    from certbench.attacks.target import Target

version = 2

#: ``distance`` is the norm of the smallest misclassified perturbation met, inside the ball or not,
#: and infinite where there was none.
EXTRA: dict[str, str] = {"distance": "float64"}

columns: dict[str, str] = {**COLUMNS, **EXTRA}

_LEAST_LENGTH = 1e-8


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of FAB."""

    targeted: bool = param(True, help="one target class per run instead of all classes per step")
    targets: int = param(9, help="target classes, by descending logit", minimum=1)
    steps: int = param(100, help="steps per run", minimum=1)
    restarts: int = param(1, help="runs per target; the first starts at the image", minimum=1)
    alpha_max: float = param(
        0.1, help="largest pull towards the clean image's projection", minimum=0, maximum=1
    )
    eta: float = param(1.05, help="overshoot of the boundary", minimum=1)
    beta: float = param(0.9, help="share kept when going back from success", above=0, below=1)
    judge_every: int = param(
        10, help="steps between calls of a prediction rule that is not the argmax", minimum=1
    )
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives all runs."""
    if params.targeted:
        return Passes.climb(params.steps * params.targets * params.restarts, 2)
    return Passes.climb(params.steps * params.restarts)


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`."""
    from certbench.attacks import shard

    params = work.params
    name = "fab-t" if params.targeted else "fab"
    return shard.attack_shard(work, [shard.Step(name, params, run)], EXTRA)


def run(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: Params, seeds: np.ndarray
) -> AttackOutcome:
    """FAB on one batch of correctly classified images.

    Args:
        target: What is attacked. ``target.clean_logits`` [N, K] saves the pass that ranks the
            target classes.
        x: float32 [N, C, H, W] in [0, 1].
        y: int64 [N] labels.
        params: Parameters.
        seeds: int64 [N], one per image.

    Returns:
        Broken are the images whose smallest perturbation is at most epsilon; ``extra`` holds
        ``distance``. ``restart`` counts runs over targets and restarts.
    """
    import torch

    from certbench.attacks.apgd import ranked_class
    from certbench.attacks.outcome import Ledger

    target.bind(x)
    ledger = Ledger(x)
    distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    ranks: list[int | None] = [None]
    clean = None
    if params.targeted:
        clean = target.clean_logits if target.clean_logits is not None else target.scores(x)
        last = min(params.targets + 1, clean.shape[1])
        if last < params.targets + 1:
            ledger.flags |= FLAGS["targets_capped"]
        ranks = list(range(2, last + 1))
    number = 0
    for rank in ranks:
        for restart in range(params.restarts):
            rows = ledger.open_rows()
            if not len(rows):
                break
            wanted = None
            if rank is not None and clean is not None:
                wanted = ranked_class(clean[rows], y[rows], rank)
            start = x[rows]
            if restart > 0:
                start = _restart_point(x, rows, distance, params, seeds, (rank or 0, restart))
            _approach(target, x, y, params, rows, wanted, start, number, ledger, distance)
            number += 1
    return target.outcome(ledger, distance=distance)


def _restart_point(
    x: torch.Tensor,
    rows: torch.Tensor,
    distance: torch.Tensor,
    params: Params,
    seeds: np.ndarray,
    counters: tuple[int, ...],
) -> torch.Tensor:
    """Half the smaller of epsilon and the best distance, in a random direction."""
    from certbench.attacks import noise
    from certbench.attacks.geometry import per_image, unit

    own, shape = seeds[rows.cpu().numpy()], tuple(x.shape[1:])
    if params.norm == "linf":
        drawn = 2 * noise.uniform(own, "fab.start", counters, shape) - 1
    else:
        drawn = noise.normal(own, "fab.start", counters, shape)
    reach = 0.5 * distance[rows].clamp(max=params.epsilon).to(x.dtype)
    direction = unit(drawn, params.norm).to(x.device)
    return (x[rows] + per_image(reach, x) * direction).clamp(0.0, 1.0)


def _approach(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    params: Params,
    rows: torch.Tensor,
    wanted: torch.Tensor | None,
    point: torch.Tensor,
    number: int,
    ledger: Ledger,
    distance: torch.Tensor,
) -> None:
    """One run of the images ``rows`` from ``point``; enters successes and distances."""
    import torch

    from certbench.attacks.geometry import length, replace_rows
    from certbench.attacks.hyperplane import displacement
    from certbench.attacks.losses import margin

    norm, x, y = params.norm, x[rows], y[rows]
    count = len(x)
    # What is projected: the points above, the clean images below.
    both = torch.cat([point.flatten(1), x.flatten(1)])
    here = both[:count]
    best = torch.full((count,), torch.inf, dtype=x.dtype, device=x.device)
    best_point, best_margin = x.clone(), torch.full_like(best, torch.inf)
    best_step = torch.full((count,), -1, dtype=torch.int64, device=x.device)
    for step in range(params.steps):
        gap, normal = _nearest_boundary(target, point, y, rows, wanted, norm)
        if step == 0:
            ledger.flag(rows, (normal == 0).all(1), "zero_gradient")
        here.copy_(point.flatten(1))
        offset = (normal * here).sum(1) - gap
        moves = displacement(both, normal.repeat(2, 1), offset.repeat(2), norm)
        lengths = length(moves, norm).clamp_min(_LEAST_LENGTH)
        pull = (lengths[:count] / (lengths[:count] + lengths[count:])).clamp(max=params.alpha_max)
        pull = pull.unsqueeze(1)
        ends = moves.mul_(params.eta).add_(both)
        mixed = ends[:count].mul_(1 - pull).add_(ends[count:].mul_(pull))
        point = mixed.clamp_(0.0, 1.0).reshape(x.shape)

        logits = target.scores(point, rows)
        wrong = target.is_broken(logits.argmax(1), y)
        last = step == params.steps - 1
        counts = target.broken_at(point, y, rows, logits, step + 1, last)
        change = point - x
        size = length(change, norm)
        closer = counts & (size < best)
        replace_rows(best_point, closer, point)
        replace_rows(best_margin, closer, margin(logits, y))
        best_step.masked_fill_(closer, step + 1)
        replace_rows(best, closer, size)
        replace_rows(point, wrong, change.mul_(params.beta).add_(x))
    distance[rows] = distance[rows].minimum(best.double())
    inside = best <= params.epsilon
    ledger.record(rows, inside, best_point, best_margin, best_step, number)


def _nearest_boundary(
    target: Target,
    point: torch.Tensor,
    y: torch.Tensor,
    rows: torch.Tensor,
    wanted: torch.Tensor | None,
    norm: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logit difference to the class aimed at, [n], and its gradient, [n, d]."""
    import torch

    from certbench.attacks.losses import difference

    if wanted is not None:
        _, gap, slope = target.gradient(point, y, difference, rows, wanted)
        return gap, slope.flatten(1)
    logits, slopes = target.jacobian(point, rows)
    own = y.reshape(-1, 1)
    gaps = logits - logits.gather(1, own)
    slopes = slopes.flatten(2)
    slopes = slopes - slopes[torch.arange(len(y), device=y.device), y].unsqueeze(1)
    # The dual norm turns a logit difference into a distance to the linearised boundary.
    size = slopes.abs().sum(2) if norm == "linf" else (slopes**2).sum(2).sqrt()
    reach = (gaps.abs() / (1e-12 + size)).scatter(1, own, torch.inf)
    nearest = reach.argmin(1)
    each = torch.arange(len(y), device=y.device)
    return gaps[each, nearest], slopes[each, nearest]
