"""Twelve checks of an attack evaluation, each a row with a number, a limit and a verdict.

C1 to C6 are those of the AutoAttack reference implementation. C7 to C12 follow the published
checklists: Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (arXiv 1802.00420), Tramer
et al. 2020 (arXiv 2002.08347), Pintor et al. 2021 (arXiv 2106.09947). An alarm says that the
robust accuracy is likely too high, or that the attack does not fit the model; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from certbench.attacks import apgd, geometry, losses, noise, shard
from certbench.attacks.target import Target

Scores = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Check:
    """One row of the report.

    Attributes:
        check: C1 to C12.
        test: What was measured.
        value: The measurement; NaN where it could not be made.
        limit: Beyond which the alarm goes off.
        alarm: Whether it did.
        meaning: What an alarm means.
    """

    check: str
    test: str
    value: float
    limit: float
    alarm: bool
    meaning: str

    def row(self) -> dict[str, Any]:
        """The check as a row."""
        return asdict(self)


def randomised(scores: Scores, x: torch.Tensor, y: torch.Tensor, passes: int = 5) -> Check:
    """C1: clean passes that differ.

    Args:
        scores: float32 [n, C, H, W] -> logits [n, K].
        x: float32 [n, C, H, W].
        y: int64 [n].
        passes: Number of passes.
    """
    with torch.no_grad():
        outputs = [scores(x) for _ in range(passes)]
    correct = {int((out.argmax(1) == y).sum()) for out in outputs}
    value = float(shard.spread(outputs))
    return Check(
        "C1",
        f"largest L2 distance of unit-length logits over {passes} clean passes",
        value,
        shard.RANDOMISED_ABOVE,
        value > shard.RANDOMISED_ABOVE or len(correct) > 1,
        "randomised: average over noise (suite rand, smoothed objective)",
    )


def probabilities(logits: torch.Tensor) -> Check:
    """C2: outputs [n, K] that are probabilities instead of logits."""
    given = shard.gives_probabilities(logits)
    return Check(
        "C2",
        "outputs lie in [0, 1] and sum to 1",
        float(given),
        0.0,
        given,
        "probabilities given: attack the logits",
    )


def zero_gradient(
    target: Target, x: torch.Tensor, y: torch.Tensor, ball: Any, seeds: np.ndarray
) -> Check:
    """C3: images whose DLR gradient at APGD's start is exactly zero.

    Args:
        target: What is attacked.
        x: float32 [n, C, H, W], correctly classified.
        y: int64 [n].
        ball: Parameters with ``norm`` and ``epsilon``.
        seeds: int64 [n].
    """
    target.bind(x)
    start = geometry.random_start(
        x, ball.norm, ball.epsilon, seeds, "apgd.dlr.start", (0, 0), boundary=True
    )
    classes = target.scores(x[:1], torch.arange(1, device=x.device)).shape[1]
    loss = losses.LOSSES["dlr" if classes >= 3 else "margin"]
    logits, _, slope = target.gradient(start, y, loss)
    # DLR is constant where the true class has fallen to the third place: only images that the
    # start leaves correct tell something about the model.
    correct = logits.argmax(1) == y
    flat = (slope == 0).flatten(1).all(1) & correct
    share = float(flat.sum() / correct.sum().clamp_min(1))
    return Check(
        "C3",
        "share of the images correct at the start whose gradient there is exactly zero",
        share,
        0.0,
        share > 0,
        "masking, quantisation or a step that cannot be differentiated",
    )


def square_lowers(columns: Mapping[str, np.ndarray]) -> Check:
    """C4: Square, after white-box attacks, lowers robust accuracy by more than 0.2 points.

    Args:
        columns: Rows of an AutoAttack run: ``check_flags``.
    """
    flagged = [("square_better" in str(flags).split(",")) for flags in columns["check_flags"]]
    points = 100.0 * float(np.mean(flagged)) if flagged else 0.0
    return Check(
        "C4",
        "points of robust accuracy lost to Square after the white-box attacks",
        points,
        0.2,
        points > 0.2,
        "white box failed: more queries, a differentiable stand-in, an adaptive attack",
    )


class _DifferentiationWatch(TorchFunctionMode):
    """Counts calls of autograd inside its context, in this thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("grad", "backward"):
            self.calls += 1
        return func(*args, **(kwargs or {}))


def dynamic(scores: Scores, x: torch.Tensor) -> Check:
    """C5: autograd called while the model predicts."""
    with _DifferentiationWatch() as watch:
        scores(x)
    return Check(
        "C5",
        "calls of autograd inside one forward pass",
        float(watch.calls),
        0.0,
        watch.calls > 0,
        "optimisation at inference: adaptive attack needed",
    )


def target_count(num_classes: int, targets: int = 9) -> Check:
    """C6: fewer wrong classes than target ranks."""
    return Check(
        "C6",
        "wrong classes",
        float(num_classes - 1),
        float(targets),
        num_classes - 1 < targets,
        "targets are capped at the number of wrong classes",
    )


def accuracy_curve(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: apgd.Params, seeds: np.ndarray
) -> tuple[Check, Check]:
    """C7: robust accuracy at epsilon x 0.5, 1, 2, 4, and at Linf 0.5, where any image turns grey.

    Args:
        target: What is attacked.
        x: float32 [n, C, H, W].
        y: int64 [n].
        params: APGD's parameters at the radius under study.
        seeds: int64 [n].

    Returns:
        The largest rise along the curve (alarm if it rises, or stands still above zero), and the
        accuracy at Linf 0.5 (alarm above chance).
    """
    limit = 1.0 if params.norm == "linf" else float(x[0].numel()) ** 0.5
    radii = [min(params.epsilon * factor, limit) for factor in (0.5, 1.0, 2.0, 4.0)]
    curve = [accuracy(target, x, y, _changed(params, epsilon=radius), seeds) for radius in radii]
    steps = np.diff(curve)
    flat = bool((steps == 0).all() and curve[-1] > 0)
    shown = ", ".join(f"{100 * a:.1f}" for a in curve)
    monotone = Check(
        "C7",
        f"largest rise of robust accuracy over epsilon x 0.5, 1, 2, 4 ({shown} %)",
        100.0 * float(steps.max()),
        0.0,
        bool(steps.max() > 0) or flat,
        "attack broken",
    )
    grey = accuracy(target, x, y, _changed(params, norm="linf", epsilon=0.5), seeds)
    with torch.no_grad():
        chance = 1.0 / target.scores(x[:1], torch.arange(1, device=x.device)).shape[1]
    wide = Check(
        "C7",
        "robust accuracy at Linf 0.5 in per cent",
        100.0 * grey,
        100.0 * chance,
        grey > chance,
        "attack broken: at this radius every image can become grey",
    )
    return monotone, wide


def enough_steps(climb: apgd.Climb) -> tuple[Check, Check]:
    """C8: the mean loss rises, and few images find their best loss at the very end.

    Args:
        climb: A finished APGD run.
    """
    steps = climb.params.steps
    trace = torch.stack(climb.trace).double().mean(1)
    late_mean = float(trace[-max(1, steps // 10) :].mean() - trace[0])
    late = 100.0 * float((climb.best_step > 0.95 * steps).double().mean())
    rising = Check(
        "C8",
        "mean loss of the last tenth of the steps minus the loss at the start",
        late_mean,
        0.0,
        not late_mean > 0,
        "the loss is not climbed",
    )
    converged = Check(
        "C8",
        "images whose best loss came in the last 5 % of the steps, in per cent",
        late,
        10.0,
        late > 10.0,
        "too few steps",
    )
    return rising, converged


def noise_against_attack(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    ball: Any,
    seeds: np.ndarray,
    broken: torch.Tensor,
    draws: int = 100,
) -> Check:
    """C9: random noise of norm epsilon breaks what the attack did not.

    Args:
        target: What was attacked.
        x: float32 [n, C, H, W].
        y: int64 [n].
        ball: Parameters with ``norm`` and ``epsilon``.
        seeds: int64 [n].
        broken: bool [n], the attack's successes.
        draws: Noise draws per image.
    """
    target.bind(x)
    by_noise = torch.zeros_like(broken)
    for draw in range(draws):
        point = geometry.random_start(
            x, ball.norm, ball.epsilon, seeds, "checks.noise", (draw,), boundary=True
        )
        by_noise |= target.is_broken(target.labels(point), y)
    missed = int((by_noise & ~broken).sum())
    return Check(
        "C9",
        f"images that {draws} draws of noise break and the attack does not",
        float(missed),
        0.0,
        missed > 0,
        "attack broken",
    )


def transfer_against_white_box(
    target: Target,
    surrogate_adv: torch.Tensor,
    y: torch.Tensor,
    broken: torch.Tensor,
) -> Check:
    """C10: examples made on an undefended surrogate break more than the white-box attack.

    Args:
        target: What was attacked.
        surrogate_adv: float32 [n, C, H, W], inside the same ball.
        y: int64 [n].
        broken: bool [n], the white-box attack's successes.
    """
    target.bind(surrogate_adv)
    transferred = target.is_broken(target.labels(surrogate_adv), y)
    points = 100.0 * float(transferred.double().mean() - broken.double().mean())
    return Check(
        "C10",
        "points by which transfer breaks more than the white-box attack",
        points,
        0.5,
        points > 0.5,
        "gradient masking",
    )


def no_surrogate() -> Check:
    """C10 where nothing is there to transfer: missing, with the reason."""
    return Check(
        "C10",
        "points by which transfer breaks more than the white-box attack: not made, because the "
        "attack names no surrogate",
        float("nan"),
        0.5,
        False,
        "gradient masking would go unseen by this check",
    )


def logit_scale(
    logits: Scores,
    x: torch.Tensor,
    y: torch.Tensor,
    params: apgd.Params,
    seeds: np.ndarray,
    items: np.ndarray | None = None,
) -> Check:
    """C11: APGD-CE at logits x 0.001, x 1, x 1000.

    Args:
        logits: float32 [n, C, H, W] -> [n, K].
        x: float32 [n, C, H, W].
        y: int64 [n].
        params: APGD's parameters; the loss is set to cross-entropy.
        seeds: int64 [n].
        items: int64 [n], for logits whose noise belongs to the item.
    """
    params = _changed(params, loss="ce")
    reached = [
        accuracy(Target(_Scaled(logits, factor), items=items), x, y, params, seeds)
        for factor in (0.001, 1.0, 1000.0)
    ]
    spread = 100.0 * (max(reached) - min(reached))
    shown = ", ".join(f"{100 * a:.1f}" for a in reached)
    return Check(
        "C11",
        f"points between APGD-CE at logits x 0.001, 1, 1000 ({shown} %)",
        spread,
        1.0,
        spread > 1.0,
        "cross-entropy saturates: trust DLR and FAB only",
    )


class _Scaled:
    def __init__(self, logits: Scores, factor: float):
        self.logits, self.factor = logits, factor
        self.needs_items = getattr(logits, "needs_items", False)
        self.passes = getattr(logits, "passes", 1)

    def __call__(self, x: torch.Tensor, **more: Any) -> torch.Tensor:
        return self.factor * self.logits(x, **more)


def unbounded_targets(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: apgd.Params, seeds: np.ndarray
) -> Check:
    """C12: success of a targeted attack that may change every pixel freely.

    Args:
        target: What is attacked.
        x: float32 [n, C, H, W].
        y: int64 [n].
        params: APGD's parameters; the ball is set to the whole box.
        seeds: int64 [n].
    """
    params = _changed(params, norm="linf", epsilon=1.0)
    target.bind(x)
    wanted = apgd.ranked_class(target.scores(x), y, 2)
    rows = torch.arange(len(x), device=x.device)

    def towards(logits, _, goal):
        return losses.margin(logits, goal)

    climb = apgd.Climb(target, x, y, rows, params, towards, wanted)
    start = geometry.random_start(x, "linf", 1.0, seeds, "checks.unbounded", (0,), boundary=True)
    climb.run(start)
    share = 100.0 * float((climb.best_loss > 0).double().mean())
    return Check(
        "C12",
        "success of a targeted attack without a bound, in per cent",
        share,
        100.0,
        share < 100.0,
        "gradients unusable",
    )


def accuracy(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: apgd.Params, seeds: np.ndarray
) -> float:
    """Robust accuracy over all images of one APGD attack; clean errors count as broken.

    Args:
        target: What is attacked.
        x: float32 [n, C, H, W].
        y: int64 [n].
        params: APGD's parameters.
        seeds: int64 [n].
    """
    return float((~broken_by(target, x, y, params, seeds)).double().mean())


def broken_by(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: apgd.Params, seeds: np.ndarray
) -> torch.Tensor:
    """Which images are clean errors or fall to one APGD attack: bool [n]."""
    target.bind(x)
    wrong = target.is_broken(target.labels(x), y)
    rows = (~wrong).nonzero().flatten()
    if len(rows):
        own = rows.cpu().numpy()
        inner = Target(
            target.logits,
            target.judge,
            items=target.items[own] if target.items is not None else None,
            pad_to=target.pad_to,
            abstain_breaks=target.abstain_breaks,
            judge_every=target.judge_every,
        )
        wrong[rows] = apgd.run(inner, x[rows], y[rows], params, seeds[own]).broken
    return wrong


def examine(
    work: Any,
    columns: Mapping[str, np.ndarray] | None = None,
    *,
    limit: int = 256,
    steps: int = 100,
    surrogate_adv: torch.Tensor | None = None,
) -> list[Check]:
    """All checks that can be made on a shard.

    Args:
        work: The shard (:class:`certbench.attacks.protocol.Work`), with ``params.norm`` and
            ``params.epsilon``.
        columns: Columns of the attack under check; needed for C4 and used for C9 and C10.
        limit: Number of images used by the checks that attack.
        steps: APGD steps of these checks.
        surrogate_adv: float32 [n, C, H, W], adversarial examples of a surrogate for the first
            ``limit`` images; without them C10 is a row that says so.

    Returns:
        Rows in the order C1 to C12; the checks that need gradients are left out where there are
        none.
    """
    scores = shard.scores_of(work)
    count = min(limit, len(work.images))
    rows = np.arange(count)
    x, y = work.images[:count], work.labels[:count]
    items = np.asarray(work.item_index)[:count]
    seeds = noise.image_seeds(work.seed64, items)
    plain = _with_items(scores, items)
    with torch.no_grad():
        clean = plain(x)
    found = [randomised(plain, x, y), probabilities(clean)]
    differentiable = work.logits is not None
    ball = work.params
    params = apgd.Params(
        norm=ball.norm, epsilon=ball.epsilon, loss="ce", steps=steps, allow_short=True
    )
    target = shard.target_of(work, rows, differentiable, work.params)
    if target.pad_to is not None:
        # All passes are over these images: one shape of their number serves as well.
        target.pad_to = min(target.pad_to, count)
    if differentiable:
        found.append(zero_gradient(target, x, y, ball, seeds))
    if columns is not None:
        found.append(square_lowers(columns))
    found += [dynamic(plain, x[:1]), target_count(work.num_classes)]
    broken = None
    if columns is not None:
        status = np.asarray(columns["status"])[:count]
        broken = torch.from_numpy(status != "survived").to(x.device)
    if differentiable:
        found += accuracy_curve(target, x, y, params, seeds)
        target.bind(x)
        climb = apgd.Climb(
            target, x, y, torch.arange(count, device=x.device), params, losses.LOSSES["ce"]
        )
        climb.run(x)
        found += enough_steps(climb)
        if broken is None:
            broken = broken_by(target, x, y, params, seeds)
    if broken is not None:
        found.append(noise_against_attack(target, x, y, ball, seeds, broken))
        found.append(
            no_surrogate()
            if surrogate_adv is None
            else transfer_against_white_box(target, surrogate_adv, y, broken)
        )
    if differentiable:
        found.append(logit_scale(work.logits, x, y, params, seeds, items))
        found.append(unbounded_targets(target, x, y, params, seeds))
    return found


def alarms(found: Sequence[Check]) -> list[str]:
    """The names of the checks that went off, each once, in order."""
    return list(dict.fromkeys(check.check for check in found if check.alarm))


def _with_items(function: Any, items: np.ndarray) -> Any:
    """A callable of images alone, for functions whose noise belongs to the item."""
    if not getattr(function, "needs_items", False):
        return function
    return lambda x: function(x, items=items[: len(x)])


def _changed(params: apgd.Params, **change: Any) -> apgd.Params:
    return replace(params, **change)
