"""One shard of an attack job: refuse bad input, go through attacks and batches, make columns.

Progress is saved after every batch, so a kill costs at most the batch at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as TypingProtocol

import numpy as np
import torch

from certbench.attacks import geometry, losses, noise
from certbench.attacks.outcome import FLAGS, AttackOutcome, flag_text
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


class Region(TypingProtocol):
    """The points an attack may reach, where they are no ball."""

    def require(self, points: torch.Tensor, x: torch.Tensor, items: np.ndarray) -> None:
        """Raise :class:`certbench.attacks.geometry.GeometryError` for a point outside."""

    def quantise(self, points: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The points as 8-bit images, uint8, and whether these are inside, bool [N]."""


class BallRegion:
    """Ball and box of an attack's parameters (``norm``, ``epsilon``)."""

    def __init__(self, params: Any):
        self.norm, self.epsilon = params.norm, params.epsilon

    def require(self, points: torch.Tensor, x: torch.Tensor, items: np.ndarray) -> None:
        """See :func:`certbench.attacks.geometry.require_feasible`."""
        geometry.require_feasible(points, x, self.norm, self.epsilon, items)

    def quantise(self, points: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :func:`certbench.attacks.geometry.quantise`."""
        return geometry.quantise(points, x, self.norm, self.epsilon)


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


class Board:
    """Bookkeeping of a shard under one or several attacks in turn.

    ``alive`` are the images that no attack has broken; clean errors never were alive. Robust
    accuracy is ``alive.sum() / N`` over all images and can only fall.

    Args:
        work: The shard.
        extra: Columns that the attacks add, and their type names.
        region: Where adversarial points must lie.
    """

    def __init__(self, work: Work, extra: Mapping[str, str], region: Region):
        count = len(work.images)
        self.work = work
        self.region = region
        self.model_bits = 0
        self.x_adv = work.images.clone()
        self.clean_logits = torch.zeros(count, work.num_classes, device=work.images.device)
        self.clean_pred = np.full(count, -1, dtype=np.int32)
        self.adv_pred = np.full(count, -1, dtype=np.int32)
        self.correct = np.zeros(count, dtype=bool)
        self.alive = np.zeros(count, dtype=bool)
        self.margin_clean = np.full(count, np.nan)
        self.margin_final = np.full(count, np.nan)
        self.n_forward = np.zeros(count, dtype=np.int64)
        self.n_backward = np.zeros(count, dtype=np.int64)
        self.iterations = np.full(count, -1, dtype=np.int64)
        self.restart = np.full(count, -1, dtype=np.int64)
        self.flags = np.zeros(count, dtype=np.int64)
        self.first = np.full(count, "", dtype="<U32")
        self.broken_by = np.full(count, "", dtype="<U192")
        self.survives = np.zeros(count, dtype=bool)
        self.extra = {
            name: np.full(count, np.nan) if kind == "float64" else np.full(count, -1, np.int64)
            for name, kind in extra.items()
        }

    def correct_rows(self) -> np.ndarray:
        """The clean-correct images."""
        return self.correct.nonzero()[0]

    def alive_rows(self) -> np.ndarray:
        """The images that no attack has broken."""
        return self.alive.nonzero()[0]

    def look(self, target: Target, rows: np.ndarray) -> None:
        """Enter what the prediction rule says about the clean images ``rows``."""
        x, y = self.work.images[rows], self.work.labels[rows]
        target.bind(x)
        logits = target.scores(x)
        labels = target.labels(x, None, logits)
        target.require_finite()
        self.clean_logits[rows] = logits.to(self.clean_logits.dtype)
        self.clean_pred[rows] = self.adv_pred[rows] = _numpy(labels)
        self.correct[rows] = self.alive[rows] = _numpy(labels == y)
        self.margin_clean[rows] = self.margin_final[rows] = _numpy(target.margin(logits, y))
        self.n_forward[rows] += _numpy(target.n_forward)

    def add(self, name: str, rows: np.ndarray, outcome: AttackOutcome, target: Target) -> None:
        """Enter what attack ``name`` did to the images ``rows``.

        The claimed successes are checked for geometry and evaluated once more with the prediction
        rule; only confirmed ones count.

        Args:
            name: The attack.
            rows: int64 [n], images of the shard that were attacked.
            outcome: Its outcome on them.
            target: The target bound to them.

        Raises:
            GeometryError: A point claimed as a success is infeasible.
        """
        self.flags[rows] |= _numpy(outcome.flags)
        self.n_forward[rows] += _numpy(outcome.n_forward)
        self.n_backward[rows] += _numpy(outcome.n_backward)
        self.margin_final[rows] = np.fmin(self.margin_final[rows], _numpy(outcome.margin))
        for column, values in outcome.extra.items():
            if column in self.extra:
                self.extra[column][rows] = _numpy(values)
        won = outcome.broken.nonzero().flatten()
        if not len(won):
            return
        hit = rows[_numpy(won)]
        points, x, y = outcome.x_adv[won], self.work.images[hit], self.work.labels[hit]
        items = np.asarray(self.work.item_index)[hit]
        self.region.require(points, x, items)
        before = target.n_forward.clone()
        labels = target.labels(points, won)
        sure = target.is_broken(labels, y)
        stored, inside = self.region.quantise(points, x)
        survives = inside & target.is_broken(target.labels(stored.float() / 255.0, won), y)
        self.n_forward[rows] += _numpy(target.n_forward - before)
        confirmed = _numpy(sure)
        self.flags[hit[~confirmed]] |= FLAGS["unconfirmed"]
        for row in hit[confirmed]:
            self.broken_by[row] = f"{self.broken_by[row]},{name}".lstrip(",")
        # An image falls once: in individual mode later attacks do not take over its row.
        fresh = confirmed & self.alive[hit]
        hit, chosen = hit[fresh], torch.from_numpy(fresh).to(won.device)
        self.alive[hit] = False
        self.x_adv[hit] = points[chosen]
        self.adv_pred[hit] = _numpy(labels[chosen])
        self.survives[hit] = _numpy(survives[chosen])
        won = won[chosen]
        self.margin_final[hit] = _numpy(outcome.margin[won])
        self.iterations[hit] = _numpy(outcome.iterations_to_success[won])
        self.restart[hit] = _numpy(outcome.restart[won])
        self.first[hit] = name

    _ARRAYS = (
        "clean_pred",
        "adv_pred",
        "correct",
        "alive",
        "margin_clean",
        "margin_final",
        "n_forward",
        "n_backward",
        "iterations",
        "restart",
        "flags",
        "first",
        "broken_by",
        "survives",
    )

    def state(self, phase: int, done: int, queue: np.ndarray) -> dict[str, Any]:
        """Everything needed to go on: adversarial images of broken rows only, to stay small."""
        broken = (self.correct & ~self.alive).nonzero()[0]
        return {
            "phase": phase,
            "done": done,
            "model_bits": self.model_bits,
            "queue": queue,
            "broken_rows": broken,
            "broken_images": self.x_adv[broken].cpu().numpy(),
            "clean_logits": self.clean_logits.cpu().numpy(),
            **{name: getattr(self, name).copy() for name in self._ARRAYS},
            **{f"extra.{name}": values.copy() for name, values in self.extra.items()},
        }

    def restore(self, state: dict[str, Any]) -> tuple[int, int, np.ndarray]:
        """Take over a saved state; returns phase, images done in it, and its queue."""
        device = self.work.images.device
        for name in self._ARRAYS:
            setattr(self, name, np.array(state[name]))
        self.extra = {name: np.array(state[f"extra.{name}"]) for name in self.extra}
        self.clean_logits = torch.from_numpy(np.array(state["clean_logits"])).to(device)
        images = torch.from_numpy(np.array(state["broken_images"])).to(device)
        self.x_adv[np.array(state["broken_rows"])] = images
        self.model_bits = int(state["model_bits"])
        return int(state["phase"]), int(state["done"]), np.array(state["queue"])

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the rows, and ``x_adv``."""
        delta = self.x_adv.double() - self.work.images.double()
        status = np.where(self.alive, "survived", "broken").astype("<U11")
        status[~self.correct] = "clean_error"
        return {
            "label": _numpy(self.work.labels).astype(np.int32),
            "clean_pred": self.clean_pred,
            "adv_pred": self.adv_pred,
            "status": status,
            "pert_linf": _numpy(geometry.length(delta, "linf")),
            "pert_l2": _numpy(geometry.length(delta, "l2")),
            "first_breaking_attack": self.first,
            "broken_by": self.broken_by,
            "restart": self.restart,
            "iterations_to_success": self.iterations,
            "n_forward": self.n_forward,
            "n_backward": self.n_backward,
            "margin_clean": self.margin_clean,
            "margin_final": self.margin_final,
            "survives_quantisation": self.survives,
            "check_flags": np.array([flag_text(int(b)) for b in self.flags | self.model_bits]),
            **self.extra,
            "x_adv": _numpy(self.x_adv),
        }


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
