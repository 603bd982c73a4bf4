"""Bookkeeping of a shard under attack: who still stands, what broke whom, and the columns of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from certbench.attacks import geometry
from certbench.attacks.outcome import FLAGS, AttackOutcome, flag_text
from certbench.attacks.protocol import Work
from certbench.attacks.target import Target


class Region(Protocol):
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
