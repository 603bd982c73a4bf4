"""Rules over masked predictions: golden tables, soundness and tightness by enumeration."""

import itertools

import numpy as np
import pytest

from certbench.certify import masking
from patch_tables import Draws, table, under_attack

ROWS = [
    # n, L, y, q, seed, sum, output, case, calls, challenger output and calls, certified rows
    (4, 2, 1, 700, 9, 10, 1, 1, 4, 1, 4, [0, 1, 2, 3]),
    (4, 2, 1, 700, 44, 7, 1, 2, 7, 1, 7, [1]),
    (4, 2, 1, 700, 4, 7, 1, 3, 7, 1, 6, [1, 2]),
    (4, 2, 1, 700, 30, 5, 1, 3, 7, 0, 7, []),
    (4, 3, 1, 600, 10, 13, 1, 2, 9, 1, 7, [2]),
    (4, 3, 1, 600, 2, 10, 0, 3, 7, 2, 7, []),
    (9, 3, 0, 930, 14, 0, 0, 1, 9, 0, 9, list(range(9))),
    (9, 4, 0, 800, 47, 23, 0, 2, 21, 0, 16, [5]),
    (9, 3, 0, 600, 6, 27, 1, 3, 17, 0, 15, []),
    (36, 10, 3, 985, 1, 2031, 3, 3, 37, 3, 37, 18),
    (36, 10, 3, 985, 2, 2019, 3, 1, 36, 3, 36, 25),
]


def both(tables):
    first = np.diagonal(tables, axis1=1, axis2=2)
    oracle = masking.table_oracle(tables)
    return masking.double_masking(first, oracle), masking.challenger_masking(first, oracle)


def test_the_generator_is_the_published_one():
    draw = Draws(1)
    assert [draw() for _ in range(3)] == [16838, 5758, 10113]


@pytest.mark.parametrize("row", ROWS)
def test_golden_tables(row):
    n, classes, y, q, seed, total, output, case, calls, rival, rival_calls, rows = row
    made = table(n, classes, y, q, seed)
    assert made[np.triu_indices(n)].sum() == total
    double, challenger = both(made[None])
    assert (double.labels[0], double.case[0], double.evaluations[0]) == (output, case, calls)
    assert (challenger.labels[0], challenger.evaluations[0]) == (rival, rival_calls)
    found = np.flatnonzero(masking.certified_rows(made[None], np.array([y]))[0])
    assert len(found) == rows if isinstance(rows, int) else found.tolist() == rows


@pytest.mark.parametrize(
    ("n", "y", "a", "m", "total", "calls", "rival_calls"),
    [(4, 1, 0, 2, 4, 7, 7), (9, 0, 2, 4, 72, 17, 17), (36, 5, 7, 20, 4590, 71, 71)],
)
def test_a_patch_that_one_mask_removes_is_recovered(n, y, a, m, total, calls, rival_calls):
    made = under_attack(n, y, a, m)
    assert made[np.triu_indices(n)].sum() == total
    double, challenger = both(made[None])
    assert (double.labels[0], double.case[0], double.evaluations[0]) == (y, 2, calls)
    assert (challenger.labels[0], challenger.evaluations[0]) == (y, rival_calls)
    assert np.flatnonzero(masking.certified_rows(made[None], np.array([y]))[0]).tolist() == [m]


def test_images_do_not_depend_on_their_company():
    tables = np.array([table(9, 3, 0, 600 + 3 * s, s) for s in range(60)])
    alone = [both(t[None]) for t in tables]
    for rule, whole in enumerate(both(tables)):
        for name in ("labels", "case", "evaluations"):
            parts = np.concatenate([getattr(pair[rule], name) for pair in alone])
            assert np.array_equal(getattr(whole, name), parts)


def plain_double_masking(t):
    """The rule as its paper states it, for one table."""
    n, diagonal = len(t), np.diag(t)
    if len(set(diagonal)) == 1:
        return diagonal[0]
    values, counts = np.unique(diagonal, return_counts=True)
    most = values[counts == counts.max()].max()
    for i in range(n):
        if diagonal[i] != most and all(t[i, j] == diagonal[i] for j in range(n)):
            return diagonal[i]
    return most


def test_the_vectorised_rule_is_the_plain_one_on_random_tables():
    tables = np.array([table(5, 3, 1, 500, s) for s in range(400)])
    made, _ = both(tables)
    assert made.labels.tolist() == [plain_double_masking(t) for t in tables]
    # All three cases occur, so that the comparison says something.
    assert set(made.case.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(("n", "classes"), [(2, 2), (2, 3), (3, 2), (3, 3), (4, 2)])
def test_a_row_certifies_exactly_the_unbreakable_positions(n, classes):
    """Mask 0 holds the patch: its row is clean, the attacker writes everything else."""
    others = [(i, j) for i in range(1, n) for j in range(i, n)]
    for row in itertools.product(range(classes), repeat=n):
        contents = np.array(list(itertools.product(range(classes), repeat=len(others))))
        tables = np.zeros((len(contents), n, n), np.int64)
        tables[:, 0, :] = tables[:, :, 0] = row
        for k, (i, j) in enumerate(others):
            tables[:, i, j] = tables[:, j, i] = contents[:, k]
        certified = all(value == 0 for value in row)
        for made in both(tables):
            breakable = bool((made.labels != 0).any())
            assert breakable != certified


def test_ties_of_the_majority_go_to_the_largest_label():
    assert masking.majority(np.array([[0, 2, 2, 0], [1, 1, 0, 3], [0, 0, 0, 0]])).tolist() == [
        2,
        1,
        0,
    ]
