"""One shard of an attack job: refuse bad input, go through attacks and batches, make columns.

Progress is saved after every batch, so a kill costs at most the batch at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from certbench.attacks import losses, noise
from certbench.attacks.board import BallRegion, Board, Region
from certbench.attacks.outcome import FLAGS, AttackOutcome
from certbench.attacks.protocol import Work
from certbench.attacks.target import Target
from certbench.errors import CertbenchError


def require_classes(work: Work, loss: str) -> None:
    """Refuse a loss that needs more classes than there are.

    Raises:
        CertbenchError: Names the loss that would work.
    """
    fewest = losses.FEWEST_CLASSES[loss]
    if work.num_classes < fewest:
        instead = "dlr" if work.num_classes == 3 else "ce"
        raise CertbenchError(
            f"'{loss}' needs {fewest} classes, there are {work.num_classes}",
            where="attack: loss",
            remedy=f"use '{instead}'",
        )


def require_input(work: Work, gradients: bool) -> None:
    """Refuse what no attack can work with, before any pass through the model.

    Args:
        work: The shard.
        gradients: Whether the attack needs gradients.

    Raises:
        CertbenchError: Epsilon, images, labels or the model's mode are wrong, or gradients are
            missing.
    """
    params = work.params
    if hasattr(params, "epsilon") and not params.epsilon > 0:
        raise CertbenchError(
            f"is {params.epsilon}", where="attack: epsilon", remedy="give a radius above 0"
        )
    if gradients and work.logits is None:
        raise CertbenchError(
            "the target has no gradients",
            where="attack",
            remedy="attack it with 'square', which needs only scores",
        )
    if scores_of(work) is None:
        raise CertbenchError("the target gives neither logits nor scores", where="attack")
    images, labels = work.images, work.labels
    if images.dim() != 4 or images.dtype != torch.float32:
        raise CertbenchError(
            f"images are {images.dtype} {list(images.shape)}",
            where="attack",
            remedy="expected float32 [N, C, H, W]",
        )
    outside = ~((images >= 0) & (images <= 1)).flatten(1).all(1)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise CertbenchError(
            f"item {int(work.item_index[first])} has values outside [0, 1] "
            f"({images[first].min():.4g} to {images[first].max():.4g})",
            where="attack",
            remedy="attack images before normalisation; the model owns its normalisation",
        )
    wrong = (labels < 0) | (labels >= work.num_classes)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise CertbenchError(
            f"item {int(work.item_index[first])} has label {int(labels[first])}, "
            f"but there are {work.num_classes} classes",
            where="attack",
        )
    for function in (work.logits, getattr(work, "scores", None), work.judge):
        if isinstance(function, torch.nn.Module) and any(m.training for m in function.modules()):
            raise CertbenchError(
                "the model is in train mode", where="attack", remedy="call model.eval() first"
            )


def scores_of(work: Work) -> Callable[..., torch.Tensor] | None:
    """The callable that gives scores without gradients."""
    return getattr(work, "scores", None) or work.logits


def objectives_of(work: Work) -> dict[str, Callable[..., torch.Tensor]]:
    """The surrogates that the target offers by name; a bare model is its own."""
    offered = dict(getattr(work, "objectives", {}))
    if not offered and work.logits is not None:
        offered = {attacked_name(work): work.logits}
    return offered


def attacked_name(work: Work) -> str:
    """Name of the objective that attacks climb where they name none."""
    return getattr(work, "attacked", "") or "base"


def told(work: Work, steps: Sequence[Step]) -> dict[str, str]:
    """What a row says of the attack: what was attacked, who judged, and what the attacker knew.

    Args:
        work: The shard.
        steps: The attacks.

    Returns:
        ``attacked``, ``judged_by``, ``knowledge``; several entries are joined by " + ".
    """
    names, known = [], []
    for step in steps:
        name = step.objective or attacked_name(work)
        function = (
            objectives_of(work)[step.objective]
            if step.objective
            else (work.logits if step.gradients else scores_of(work))
        )
        own = getattr(function, "attacked", "")
        names.append(own or name)
        stated = getattr(function, "knowledge", "")
        if stated or not step.gradients:
            known.append(stated or "scores")
        else:
            bare = work.judge is None or name != "base"
            known.append("gradients" if bare else "gradients of the base model")
    return {
        "attacked": " + ".join(dict.fromkeys(names)),
        "judged_by": getattr(work, "judged_by", "")
        or ("argmax" if work.judge is None else "the prediction rule"),
        "knowledge": " + ".join(dict.fromkeys(known)),
    }


def target_of(
    work: Work, rows: np.ndarray, gradients: bool, params: Any, objective: str = ""
) -> Target:
    """The target of one batch.

    Args:
        work: The shard.
        rows: int64 [n], images of the batch.
        gradients: Whether the attack needs gradients.
        params: Parameters of the attack, for the judge's schedule.
        objective: Which surrogate of the defence is climbed (default, the work's own).
    """
    function = work.logits if gradients else scores_of(work)
    if objective:
        function = objectives_of(work)[objective]
    assert function is not None  # require_input has refused it
    return Target(
        function,
        work.judge,
        items=np.asarray(work.item_index)[rows],
        pad_to=work.batch_size if getattr(work, "exact", False) else None,
        abstain_breaks=getattr(params, "abstain_breaks", True),
        judge_every=getattr(params, "judge_every", 10),
    )


def model_flags(work: Work, gradients: bool, randomised_ok: bool = False) -> int:
    """Look at the model once, on the first images: checks C1 and C2, and the number of classes.

    Args:
        work: The shard.
        gradients: Whether the attack needs gradients.
        randomised_ok: Whether the attack is made for randomised models.

    Returns:
        Bits of :data:`certbench.attacks.outcome.FLAGS` that hold for every image.

    Raises:
        CertbenchError: Logits are NaN, have another number of classes, or differ between two
            passes although the attack takes the model for deterministic.
    """
    first = np.arange(min(work.batch_size, len(work.images)))
    target = target_of(work, first, gradients, work.params)
    x = work.images[first]
    target.bind(x)
    logits = target.scores(x)
    target.require_finite()
    if logits.shape[1] != work.num_classes:
        raise CertbenchError(
            f"the model gives {logits.shape[1]} logits, there are {work.num_classes} classes",
            where="attack",
        )
    flags = 0
    again = target.scores(x)
    if float(spread([logits, again])) > RANDOMISED_ABOVE:
        if not randomised_ok:
            raise CertbenchError(
                "the model is randomised: two passes over the same images differ",
                where="attack",
                remedy="use autoattack with suite 'rand', or attack the smoothed objective",
            )
        flags |= FLAGS["randomised"]
    if gives_probabilities(logits):
        flags |= FLAGS["probabilities"]
    return flags


#: Check C1 (Croce and Hein's reference): distance of unit-length logit vectors of two passes.
RANDOMISED_ABOVE = 1e-4


def spread(passes: list[torch.Tensor]) -> torch.Tensor:
    """Largest L2 distance between unit-length logits [n, K] of any two passes (check C1)."""
    unit = [logits / (logits.norm(dim=1, keepdim=True) + 1e-10) for logits in passes]
    return torch.stack(
        [(a - b).norm(dim=1).max() for i, a in enumerate(unit) for b in unit[i + 1 :]]
    ).max()


def gives_probabilities(logits: torch.Tensor) -> bool:
    """Whether the outputs [n, K] lie in [0, 1] and sum to 1 (check C2)."""
    inside = (logits >= -1e-5).all() & (logits <= 1 + 1e-5).all()
    return bool(inside & ((logits.sum(1) - 1).abs() <= 1e-5).all())


@dataclass(frozen=True)
class Step:
    """One attack of a suite.

    Attributes:
        name: For ``first_breaking_attack``.
        params: Parameters of the attack; norm and epsilon are those of the suite.
        run: (target, x, y, params, seeds) -> outcome, called with correctly classified images.
        gradients: Whether it needs gradients.
        objective: Which surrogate of the defence it climbs (default, the work's own).
    """

    name: str
    params: Any
    run: Callable[[Target, torch.Tensor, torch.Tensor, Any, np.ndarray], AttackOutcome]
    gradients: bool = True
    objective: str = ""


def attack_shard(
    work: Work,
    steps: Sequence[Step],
    extra: Mapping[str, str] | None = None,
    *,
    individual: bool = False,
    randomised_ok: bool = False,
    model_bits: int = 0,
    region: Region | None = None,
) -> dict[str, np.ndarray]:
    """Run attacks over all images of a shard, one attack after the other.

    Clean errors are never attacked. Each attack sees the images that are still correct when it
    begins; the denominator of every accuracy is all images.

    Args:
        work: The shard.
        steps: The attacks in order.
        extra: Columns that the attacks add (``AttackOutcome.extra``) and their type names.
        individual: Every attack sees every clean-correct image.
        randomised_ok: Whether the attacks are made for randomised models.
        model_bits: Flags to set on every row.
        region: Where the points must lie (default, the ball of the work's parameters).

    Returns:
        Columns, each [N], and ``x_adv`` float32 [N, C, H, W]. ``n_forward`` is the attacks'
        passes, plus one for the clean label, plus two per confirmed success (confirmation, 8-bit
        copy).

    Raises:
        CertbenchError: The input is refused.
        GeometryError: An adversarial point left the ball or the box.
    """
    gradients = any(step.gradients for step in steps)
    require_input(work, gradients)
    total = len(work.images)
    if not total:
        raise CertbenchError("there are no images to attack", where="attack")
    seeds = noise.image_seeds(work.seed64, work.item_index)
    board = Board(work, extra or {}, region or BallRegion(work.params))
    state = work.progress.load() if work.progress is not None else None
    phase, done, queue = (-1, 0, np.arange(total)) if state is None else board.restore(state)
    if state is None:
        board.model_bits = model_bits | model_flags(work, gradients, randomised_ok)
    while True:
        while done < len(queue):
            part = queue[done : done + work.batch_size]
            if phase < 0:
                board.look(target_of(work, part, gradients, work.params), part)
            else:
                step = steps[phase]
                target = target_of(work, part, step.gradients, step.params, step.objective)
                if target.logits is work.logits or work.logits is None:
                    target.clean_logits = board.clean_logits[part]
                x, y = work.images[part], work.labels[part]
                outcome = step.run(target, x, y, step.params, seeds[part])
                board.add(step.name, part, outcome, target)
            done += len(part)
            if work.progress is not None:
                work.progress.save(board.state(phase, done, queue))
            share = (phase + 1 + done / len(queue)) / (len(steps) + 1)
            work.tick(int(total * share), total)
        phase, done = phase + 1, 0
        if phase == len(steps):
            break
        queue = board.correct_rows() if individual else board.alive_rows()
    work.tick(total, total)
    said = {name: np.full(total, text) for name, text in told(work, steps).items()}
    return {**said, **board.columns()}
