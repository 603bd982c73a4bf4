import numpy as np
import pytest
import torch
from scipy import stats

from certbench.corruptions import torch_two_d_random as random
from certbench.corruptions.torch_two_d_random import Draws

CPU = torch.device("cpu")
KEYS = [0, 1, 2**63 + 5, 2**64 - 1]


def draws(keys=KEYS, dtype=torch.float64):
    return Draws(keys, CPU, dtype)


def unsigned(words):
    return [int(word) % 2**64 for word in words]


def test_words_are_those_of_the_published_generator():
    # The first outputs of SplitMix64 seeded with 1234567 (Rosetta Code, and Java's own).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    assert [random._mixed(1234567 + i * golden) for i in (1, 2, 3)] == expected


def test_tensors_hold_the_words_of_integer_arithmetic():
    for purpose in (0, 1, 7):
        made = draws()._words(purpose, 50)
        for row, key in zip(made, KEYS, strict=True):
            start = random._mixed(key ^ random._mixed(purpose * random._GOLDEN))
            assert unsigned(row) == [
                random._mixed(start + i * random._GOLDEN) for i in range(1, 51)
            ]
            assert draws([key])._word(key, purpose) == unsigned(row)[0]


def test_numbers_depend_on_key_purpose_and_position_alone():
    whole = draws().normal(3, (5, 7))
    alone = draws(KEYS[2:3]).normal(3, (5, 7))
    assert torch.equal(whole[2], alone[0])
    assert not torch.equal(draws().normal(4, (5, 7)), whole)
    assert len({float(x) for x in whole.flatten()}) == whole.numel()


def test_halves_are_uniform_and_uncorrelated():
    halves = draws(range(8)).halves(0, (20_000,)).double().flatten() / 2**32
    # Kolmogorov-Smirnov and serial correlation, false-alarm probability 1e-5 each.
    assert stats.kstest(halves.numpy(), "uniform").pvalue > 1e-5
    for lag in (1, 10_000):
        pairs = np.corrcoef(halves[:-lag], halves[lag:])[0, 1]
        assert abs(pairs) < 4.42 / np.sqrt(len(halves) - lag)


def test_every_bit_of_a_word_is_fair():
    words = draws(range(4))._words(0, 50_000)
    ones = torch.stack([(words >> bit) & 1 for bit in range(64)]).sum(dim=(1, 2)).double()
    n = words.numel()
    # 64 bits at 5 standard errors: false-alarm probability 4e-5.
    assert ((ones - n / 2).abs() < 5 * np.sqrt(n) / 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    normals = draws(range(8), dtype).normal(0, (25_001,)).flatten()
    assert normals.dtype == dtype and torch.isfinite(normals).all()
    assert stats.kstest(normals.double().numpy(), "norm").pvalue > 1e-5
    assert 4 < float(normals.abs().max()) < 6.7


def test_uniform_numbers_stay_inside():
    for dtype in (torch.float32, torch.float64):
        uniform = draws(range(4), dtype).uniform(0, (50_000,))
        assert float(uniform.min()) > 0 and float(uniform.max()) <= 1


@pytest.mark.parametrize("bound", [2, 5, 10])
def test_integers_are_uniform(bound):
    counts = torch.bincount(draws(range(4)).integers(0, (30_000,), bound).flatten())
    assert len(counts) == bound
    assert stats.chisquare(counts.numpy()).pvalue > 1e-5


def test_numbers_on_the_host_are_uniform():
    many = draws(range(20_000))
    angles = np.array(many.scalars(1, -45, 45))
    assert stats.kstest((angles + 45) / 90, "uniform").pvalue > 1e-5
    counts = np.bincount(many.choices(2, 5))
    assert len(counts) == 5 and stats.chisquare(counts).pvalue > 1e-5
