import hashlib
import random
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certbench.datasets import sampling
from certbench.errors import CertbenchError


def worst_error(sequence, counts):
    """Largest |number among the first k - proportional number| over all k and classes, exactly."""
    total, seen, worst = sum(counts), [0] * len(counts), Fraction(0)
    for k, which in enumerate(sequence, start=1):
        seen[which] += 1
        for c, n in enumerate(counts):
            worst = max(worst, abs(seen[c] - Fraction(k * n, total)))
    return worst


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=9).filter(any))
def test_every_prefix_is_proportional_to_within_less_than_one(counts):
    sequence = sampling.turns(counts)
    assert Counter(sequence) == {c: n for c, n in enumerate(counts) if n}
    assert worst_error(sequence, counts) < 1


@pytest.mark.parametrize("counts", [[1000, 1, 1], [1, 999], [500, 499, 1], [7] * 40, [3, 5, 250]])
def test_prefixes_are_proportional_for_very_unequal_classes(counts):
    assert worst_error(sampling.turns(counts), counts) < 1


def test_equal_classes_take_turns_in_blocks():
    sequence = sampling.turns([50] * 10)
    for k in range(0, 500, 10):
        assert sorted(sequence[k : k + 10]) == list(range(10))


def data(n, classes, seed=0):
    source = random.Random(seed)
    return [f"item/{i:05d}" for i in range(n)], [source.randrange(classes) for _ in range(n)]


def test_the_order_does_not_depend_on_the_order_of_the_items():
    ids, labels = data(300, 7)
    expected = [ids[i] for i in sampling.ordered(ids, labels, seed=5)]
    mixed = list(range(300))
    random.Random(1).shuffle(mixed)
    got = sampling.ordered([ids[i] for i in mixed], [labels[i] for i in mixed], seed=5)
    assert [ids[mixed[i]] for i in got] == expected
    assert sorted(got) == list(range(300))


def test_the_order_depends_on_the_seed_and_the_use():
    ids, labels = data(300, 7)
    orders = [
        tuple(sampling.ordered(ids, labels, seed, use)) for seed in (0, 1) for use in ("rank", "b")
    ]
    assert len(set(orders)) == 4


def test_within_a_class_items_follow_their_hashes():
    ids, _ = data(50, 1)
    expected = sorted(
        range(50),
        key=lambda i: hashlib.blake2b(f"rank/3/item/{ids[i]}".encode(), digest_size=16).digest(),
    )
    assert sampling.ordered(ids, [0] * 50, seed=3) == expected


def test_a_new_item_leaves_the_others_of_its_class_in_their_order():
    ids, _ = data(60, 1)
    before = [ids[i] for i in sampling.ordered(ids[:59], [0] * 59, seed=0)]
    after = [ids[i] for i in sampling.ordered(ids, [0] * 60, seed=0)]
    after.remove(ids[59])
    assert after == before


def test_holdouts_are_disjoint_stratified_and_of_the_size_asked_for():
    ids, labels = data(1000, 10)
    splits = sampling.carve(ids, labels, {"test": 200, "val": 101}, "train", 0, "here")
    assert Counter(splits) == {"test": 200, "val": 101, "train": 699}
    left = list(range(1000))
    for name in ("test", "val"):
        size = splits.count(name)
        counts = Counter(labels[i] for i in left)
        inside = Counter(labels[i] for i in left if splits[i] == name)
        for label, n in counts.items():
            assert abs(inside[label] - Fraction(size * n, len(left))) < 1
        left = [i for i in left if splits[i] != name]


def test_the_first_holdout_does_not_change_with_the_sizes_of_the_others():
    ids, labels = data(500, 5)
    one = sampling.carve(ids, labels, {"test": 100, "val": 10}, "train", 0, "here")
    two = sampling.carve(ids, labels, {"test": 100, "val": 90}, "train", 0, "here")
    assert [s == "test" for s in one] == [s == "test" for s in two]
    assert {i for i, s in enumerate(one) if s == "val"} < {
        i for i, s in enumerate(two) if s == "val"
    }


def test_holding_out_more_than_there_is_is_refused():
    with pytest.raises(CertbenchError, match=r"here: the holdouts \(test 9, val 2\) need more"):
        sampling.carve(*data(10, 2), {"test": 9, "val": 2}, "train", 0, "here")


@pytest.mark.parametrize(
    ("holdout", "rest", "message"),
    [
        ({"cal": 0}, "train", r"holdout.cal: is 0"),
        ({"cal": True}, "train", r"holdout.cal: is True"),
        ({"cal": "5"}, "train", r"holdout.cal: is '5'"),
        ({"test": 5}, "train", r"'test' cannot name a holdout"),
        ({"Cal!": 5}, "train", r"'Cal!' cannot name a holdout"),
        ({"cal": 5}, "tarin", r"holdout_from: no split 'tarin'"),
    ],
)
def test_a_wrong_holdout_is_refused_with_its_key(holdout, rest, message):
    with pytest.raises(CertbenchError, match=message):
        sampling.check_holdout(holdout, rest, ["train", "test"])


def test_no_holdout_is_no_mistake():
    sampling.check_holdout({}, "train", ["test"])
    sampling.check_holdout({"calibration": 5}, "train", ["train", "test"])


def test_ordering_takes_little_more_than_in_proportion_to_the_items():
    def seconds(items):
        ids, labels = data(items, 1000)
        began = time.process_time()
        sampling.ordered(ids, labels, seed=0)
        return time.process_time() - began

    # Ten times the items: n log n is 13 times the work, a quadratic order would be 100 times.
    assert seconds(200_000) < 40 * min(seconds(20_000) for _ in range(3))
