"""One shard of an attack job: refuse bad input, go through the batches, make the columns.

Progress is saved after every batch, so a kill costs at most the batch at work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from certbench.attacks import geometry, losses, noise
from certbench.attacks.outcome import FLAGS, AttackOutcome, flag_text
from certbench.attacks.protocol import Work
from certbench.attacks.target import Target
from certbench.errors import CertbenchError

AttackBatch = Callable[[Target, torch.Tensor, torch.Tensor, np.ndarray], AttackOutcome]


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
    if not params.epsilon > 0:
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


def target_of(work: Work, part: slice, gradients: bool) -> Target:
    """The target of one batch.

    Args:
        work: The shard.
        part: Images of the batch.
        gradients: Whether the attack needs gradients.
    """
    function = work.logits if gradients else scores_of(work)
    assert function is not None  # require_input has refused it
    return Target(
        function,
        work.judge,
        items=np.asarray(work.item_index)[part],
        pad_to=work.batch_size if getattr(work, "exact", False) else None,
        abstain_breaks=getattr(work.params, "abstain_breaks", True),
        judge_every=getattr(work.params, "judge_every", 10),
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
    first = slice(0, min(work.batch_size, len(work.images)))
    target = target_of(work, first, gradients)
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


def attack_shard(
    work: Work,
    name: str,
    attack_batch: AttackBatch,
    *,
    gradients: bool = True,
    randomised_ok: bool = False,
) -> dict[str, np.ndarray]:
    """Run one attack over all images of a shard.

    Args:
        work: The shard.
        name: The attack, for ``first_breaking_attack``.
        attack_batch: (target, x, y, seeds) -> outcome, called with correctly classified images.
        gradients: Whether the attack needs gradients.
        randomised_ok: Whether the attack is made for randomised models.

    Returns:
        Columns, each [N], and ``x_adv`` float32 [N, C, H, W]. ``n_forward`` is the attack's
        passes, plus one for the clean label, plus two where broken (confirmation, 8-bit copy).

    Raises:
        CertbenchError: The input is refused.
        GeometryError: An adversarial point left the ball or the box.
    """
    require_input(work, gradients)
    total = len(work.images)
    state = (work.progress.load() if work.progress is not None else None) or {"done": 0}
    done = int(state["done"])
    parts = [{k: v for k, v in state.items() if k != "done"}] if done else []
    flags = model_flags(work, gradients, randomised_ok) if done < total else 0
    seeds = noise.image_seeds(work.seed64, work.item_index)
    while done < total:
        part = slice(done, min(done + work.batch_size, total))
        target = target_of(work, part, gradients)
        parts.append(_batch(work, name, target, part, seeds[part], attack_batch, flags))
        done = part.stop
        parts = [{k: np.concatenate([p[k] for p in parts]) for k in parts[0]}]
        if work.progress is not None:
            work.progress.save({"done": done, **parts[0]})
        work.tick(done, total)
    return parts[0] if parts else {}


def _batch(
    work: Work,
    name: str,
    target: Target,
    part: slice,
    seeds: np.ndarray,
    attack_batch: AttackBatch,
    model_bits: int,
) -> dict[str, np.ndarray]:
    x, y = work.images[part], work.labels[part]
    clean = Clean.of(target, x, y)
    rows = clean.correct.nonzero().flatten()
    items = np.asarray(work.item_index)[part]
    board = Board(work.params, items, x, y, clean)
    if len(rows):
        own = rows.cpu().numpy()
        inner = target_of(work, part, target.logits is work.logits)
        inner.items = items[own]
        inner.clean_logits = clean.logits[rows] if inner.logits is target.logits else None
        outcome = attack_batch(inner, x[rows], y[rows], seeds[own])
        board.add(name, rows, outcome, inner)
    return board.columns(target, model_bits)


class Clean:
    """What the prediction rule says about the clean images of a batch.

    Attributes:
        logits: [N, K].
        labels: int64 [N].
        correct: bool [N].
        margin: [N], logit margin of the true class.
        n_forward: int64 [N].
    """

    def __init__(self, logits, labels, y, n_forward):
        self.logits = logits
        self.labels = labels
        self.correct = labels == y
        self.margin = losses.margin(logits, y)
        self.n_forward = n_forward

    @classmethod
    def of(cls, target: Target, x: torch.Tensor, y: torch.Tensor) -> Clean:
        """Evaluate the clean images ``x`` with labels ``y``."""
        target.bind(x)
        logits = target.scores(x)
        labels = target.labels(x, None, logits)
        target.require_finite()
        return cls(logits, labels, y, target.n_forward.clone())


class Board:
    """Bookkeeping of one batch under one or several attacks in turn.

    ``alive`` are the images that no attack has broken; clean errors never were alive. Robust
    accuracy is ``alive.sum() / N`` over all images and can only fall.
    """

    def __init__(
        self, params: Any, items: np.ndarray, x: torch.Tensor, y: torch.Tensor, clean: Clean
    ):
        self.params = params
        self.items = items
        self.x = x
        self.y = y
        self.clean = clean
        self.alive = clean.correct.clone()
        self.x_adv = x.clone()
        self.adv_pred = clean.labels.clone()
        self.margin = clean.margin.clone()
        self.n_forward = clean.n_forward.clone()
        self.n_backward = torch.zeros_like(self.n_forward)
        self.iterations = torch.full_like(self.n_forward, -1)
        self.restart = torch.full_like(self.n_forward, -1)
        self.flags = torch.zeros_like(self.n_forward)
        self.first = np.full(len(x), "", dtype="<U16")
        self.extra: dict[str, torch.Tensor] = {}

    def add(self, name: str, rows: torch.Tensor, outcome: AttackOutcome, target: Target) -> None:
        """Enter what attack ``name`` did to the images ``rows``.

        The claimed successes are checked for geometry and evaluated once more with the prediction
        rule; only confirmed ones count.

        Args:
            name: The attack.
            rows: int64 [n], images of the batch that were attacked.
            outcome: Its outcome on them.
            target: The target bound to ``rows``.

        Raises:
            GeometryError: A point claimed as a success is infeasible.
        """
        won = outcome.broken.nonzero().flatten()
        self.flags[rows] |= outcome.flags
        self.n_forward[rows] += outcome.n_forward
        self.n_backward[rows] += outcome.n_backward
        self.margin[rows] = self.margin[rows].minimum(outcome.margin)
        for column, values in outcome.extra.items():
            if column not in self.extra:
                blank = torch.nan if values.is_floating_point() else -1
                self.extra[column] = torch.full(
                    (len(self.x),), blank, dtype=values.dtype, device=values.device
                )
            self.extra[column][rows] = values
        if not len(won):
            return
        hit, points = rows[won], outcome.x_adv[won]
        geometry.require_feasible(
            points,
            self.x[hit],
            self.params.norm,
            self.params.epsilon,
            self.items[hit.cpu().numpy()],
        )
        before = target.n_forward.clone()
        labels = target.labels(points, won)
        self.n_forward[rows] += target.n_forward - before
        sure = target.is_broken(labels, self.y[hit])
        self.flags[hit[~sure]] |= FLAGS["unconfirmed"]
        hit, won = hit[sure], won[sure]
        self.alive[hit] = False
        self.x_adv[hit] = points[sure]
        self.adv_pred[hit] = labels[sure]
        self.margin[hit] = outcome.margin[won]
        self.iterations[hit] = outcome.iterations_to_success[won]
        self.restart[hit] = outcome.restart[won]
        self.first[hit.cpu().numpy()] = name

    def survives_quantisation(self, target: Target) -> torch.Tensor:
        """Whether the 8-bit copy of a broken image is in the ball and wrong too: bool [N]."""
        survives = torch.zeros_like(self.alive)
        rows = (self.clean.correct & ~self.alive).nonzero().flatten()
        if not len(rows):
            return survives
        stored, inside = geometry.quantise(
            self.x_adv[rows], self.x[rows], self.params.norm, self.params.epsilon
        )
        before = target.n_forward.clone()
        labels = target.labels(stored.float() / 255.0, rows)
        self.n_forward += target.n_forward - before
        survives[rows] = inside & target.is_broken(labels, self.y[rows])
        return survives

    def columns(self, target: Target, model_bits: int) -> dict[str, np.ndarray]:
        """The columns of the batch's rows, and ``x_adv``.

        Args:
            target: The target bound to the whole batch.
            model_bits: Flags that hold for every image.
        """
        survives = self.survives_quantisation(target)
        delta = self.x_adv.double() - self.x.double()
        status = np.where(self.alive.cpu().numpy(), "survived", "broken").astype("<U11")
        status[~self.clean.correct.cpu().numpy()] = "clean_error"
        bits = (self.flags | model_bits).cpu().numpy()
        return {
            "label": self.y.cpu().numpy().astype(np.int32),
            "clean_pred": self.clean.labels.cpu().numpy().astype(np.int32),
            "adv_pred": self.adv_pred.cpu().numpy().astype(np.int32),
            "status": status,
            "pert_linf": geometry.length(delta, "linf").cpu().numpy(),
            "pert_l2": geometry.length(delta, "l2").cpu().numpy(),
            "first_breaking_attack": self.first.copy(),
            "restart": self.restart.cpu().numpy(),
            "iterations_to_success": self.iterations.cpu().numpy(),
            "n_forward": self.n_forward.cpu().numpy(),
            "n_backward": self.n_backward.cpu().numpy(),
            "margin_clean": self.clean.margin.double().cpu().numpy(),
            "margin_final": self.margin.double().cpu().numpy(),
            "survives_quantisation": survives.cpu().numpy(),
            "check_flags": np.array([flag_text(int(b)) for b in bits], dtype="<U160"),
            **{k: v.cpu().numpy() for k, v in self.extra.items()},
            "x_adv": self.x_adv.cpu().numpy(),
        }
