import numpy as np

from certbench.datasets.streets_noise import grain, mottled


def test_fractal_noise_is_uniform_and_repeats_every_sixteen_units():
    x, y = np.meshgrid(np.arange(0, 16, 1 / 16), np.arange(0, 16, 1 / 16))
    values = mottled(x, y)
    assert np.allclose(np.quantile(values, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=1e-3)
    assert np.array_equal(values, mottled(x + 16, y - 32))
    assert np.array_equal(mottled(x, y, smooth=False), values)


def test_fractal_noise_is_continuous():
    x = np.linspace(-3, 3, 4001)
    assert np.abs(np.diff(mottled(x, 0 * x + 0.7))).max() < 0.02


def test_grain_is_a_function_of_cell_and_key_and_looks_independent():
    i, j = np.meshgrid(np.arange(200), np.arange(200))
    one, two = grain(i, j, 1), grain(i, j, 2)
    assert np.array_equal(one, grain(i, j, 1))
    # 40,000 uniform numbers: mean within 5 standard errors (false alarm 6e-7 if independent).
    assert abs(one.mean() - 0.5) < 5 * np.sqrt(1 / 12 / one.size)
    for other in (two.ravel(), np.roll(one, 1, 0).ravel(), np.roll(one, 1, 1).ravel()):
        assert abs(np.corrcoef(one.ravel(), other)[0, 1]) < 5 / np.sqrt(one.size)
