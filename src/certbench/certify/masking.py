"""Prediction rules over masked images, and what tables of masked predictions certify.

A rule sees predictions only through an *oracle* that answers pairs of masks, so the same code runs
on a complete table and on a network that is asked as late as possible. All images of a batch go
through a rule together; an image's answer and its number of evaluations do not depend on the
others.

Double masking and its certificate: PatchCleanser (arXiv 2108.09135), sections 3.3 and 3.4.
Challenger masking: the same paper, appendix. One mask holds the patch; every prediction that
involves it sees clean pixels only. If all pairs with that mask give class c on the clean image,
then whatever the patch shows, either round one is unanimous for c, or the mask is a disagreer that
passes round two, and no other class can pass, because its second mask may be this one. So a row of
the table certifies the positions its mask holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

#: ``(images, first, second)``, each int64 [q]: labels int64 [q] of the images under both masks.
Oracle: TypeAlias = "Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]"

ENGINES = ("double", "challenger")

# Pairs of one row that are evaluated together: more wastes evaluations after a mismatch, fewer
# makes small batches. Only what precedes a mismatch is counted as needed by the rule.
_UNKNOWN = -2


@dataclass(frozen=True)
class Inference:
    """What a rule answered.

    Attributes:
        labels: int64 [n].
        case: int64 [n]; 1 unanimous, 2 a disagreer passed, 3 the majority stands. Challenger
            masking has cases 1 and 2 only (2: some pair was evaluated).
        evaluations: int64 [n], calls of the network per image, the first round included.
    """

    labels: np.ndarray
    case: np.ndarray
    evaluations: np.ndarray


def unpack(tables: np.ndarray, masks: int) -> np.ndarray:
    """Symmetric tables [n, N, N] from their upper triangles [n, N (N + 1) / 2]."""
    first, second = np.triu_indices(masks)
    made = np.empty((len(tables), masks, masks), tables.dtype)
    made[:, first, second] = tables
    made[:, second, first] = tables
    return made


def table_oracle(tables: np.ndarray) -> Oracle:
    """An oracle that reads complete tables, int [n, N, N]."""
    return lambda images, first, second: tables[images, first, second].astype(np.int64)


def majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each row, the largest one among equals: int64 [n].

    Args:
        labels: int [n, N], at least 0.
    """
    classes = int(labels.max(initial=0)) + 1
    counts = np.zeros((len(labels), classes), np.int64)
    np.add.at(counts, (np.arange(len(labels))[:, None], labels), 1)
    return classes - 1 - counts[:, ::-1].argmax(1)


def double_masking(first_round: np.ndarray, oracle: Oracle) -> Inference:
    """Double-masking inference (algorithm 1): the second round as late as possible.

    Disagreers are tried in the order of their masks, each against the other masks in order, until
    one passes. A row stops at its first mismatch; pairs are evaluated once.

    Args:
        first_round: int64 [n, N], predictions under each mask.
        oracle: Answers pairs of different masks.
    """
    n, masks = first_round.shape
    labels = majority(first_round)
    unanimous = (first_round == first_round[:, :1]).all(1)
    case = np.where(unanimous, 1, 3)
    evaluations = np.full(n, masks, np.int64)
    known = np.full((n, masks, masks), _UNKNOWN, np.int64)
    disagrees = first_round != labels[:, None]
    open_ = np.flatnonzero(~unanimous)
    # One row (disagreer) and one place in it per image; a wave asks one pair of every image.
    row = np.full(n, -1, np.int64)
    place = np.full(n, masks, np.int64)
    failed = np.ones(n, bool)
    while len(open_):
        fresh = open_[failed[open_]]
        row[fresh], left = _next_disagreer(disagrees[fresh], row[fresh])
        place[fresh], failed[fresh] = 0, False
        ended = fresh[~left]
        open_ = open_[~np.isin(open_, ended)]
        at = open_
        # The pair of a mask with itself is round one.
        same = place[at] == row[at]
        place[at[same]] += 1
        passed = at[place[at] >= masks]
        labels[passed] = first_round[passed, row[passed]]
        case[passed] = 2
        open_ = open_[~np.isin(open_, passed)]
        at = open_
        if not len(at):
            continue
        i, j = row[at], place[at]
        ask = known[at, i, j] == _UNKNOWN
        if ask.any():
            asked, a, b = at[ask], i[ask], j[ask]
            answers = np.asarray(oracle(asked, a, b), np.int64)
            known[asked, a, b] = known[asked, b, a] = answers
            evaluations[asked] += 1
        failed[at] = known[at, i, j] != first_round[at, i]
        place[at] += 1
    return Inference(labels, case, evaluations)


def challenger_masking(first_round: np.ndarray, oracle: Oracle) -> Inference:
    """Challenger masking: at most N - 1 evaluations of pairs, the same certificate.

    Args:
        first_round: int64 [n, N], predictions under each mask.
        oracle: Answers pairs of different masks.
    """
    n, masks = first_round.shape
    candidate = np.zeros(n, np.int64)
    alive = np.ones((n, masks), bool)
    evaluations = np.full(n, masks, np.int64)
    case = np.ones(n, np.int64)
    while True:
        own = np.take_along_axis(first_round, candidate[:, None], 1)
        rival = alive & (first_round != own)
        open_ = np.flatnonzero(rival.any(1))
        if not len(open_):
            break
        challenger = rival[open_].argmax(1)
        answers = np.asarray(oracle(open_, candidate[open_], challenger), np.int64)
        evaluations[open_] += 1
        case[open_] = 2
        wins = answers == first_round[open_, challenger]
        loser = np.where(wins, candidate[open_], challenger)
        alive[open_, loser] = False
        candidate[open_] = np.where(wins, challenger, candidate[open_])
    labels = np.take_along_axis(first_round, candidate[:, None], 1)[:, 0]
    return Inference(labels, case, evaluations)


def infer(engine: str, first_round: np.ndarray, oracle: Oracle) -> Inference:
    """The rule named ``engine``: ``double`` or ``challenger``."""
    rule = {"double": double_masking, "challenger": challenger_masking}[engine]
    return rule(first_round, oracle)


def certified_rows(tables: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Masks whose every pair gives the class: bool [n, N].

    Args:
        tables: int [n, N, N], predictions on clean images.
        classes: int [n], one class per image.
    """
    return (tables == np.asarray(classes)[:, None, None]).all(2)


def certified_positions(rows: np.ndarray, holding: np.ndarray) -> np.ndarray:
    """Number of patch positions that some certified row's mask holds: int64 [n].

    Args:
        rows: bool [n, N] (:func:`certified_rows`).
        holding: bool [N, P, Q] (:meth:`certbench.certify.masks.MaskSet.holding`).
    """
    flat = holding.reshape(len(holding), -1)
    return np.array([flat[row].any(0).sum() for row in rows], np.int64).reshape(len(rows))


def _next_disagreer(disagrees: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First disagreer behind each position ``after``, and whether there is one."""
    later = disagrees & (np.arange(disagrees.shape[1])[None] > after[:, None])
    return later.argmax(1), np.asarray(later.any(1))
