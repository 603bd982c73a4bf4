import numpy as np
import pytest
from scipy import stats

from certbench.corruptions import corrupt, two_d_weather
from certbench.corruptions.imagecorruptions_adapter import frost_photographs
from certbench.corruptions.severity import SEVERITIES, SEVERITY_TABLES, entry


@pytest.mark.parametrize("table", SEVERITY_TABLES)
def test_fog_on_a_constant_image_stays_within_its_range(table):
    for severity in SEVERITIES:
        strength, _ = entry("fog", severity, table)
        for value in (0.2, 0.5, 1.0):
            level = int(value * 255)
            v = level / 255
            out = corrupt(np.full((64, 64, 3), level, np.uint8), "fog", severity, table, severity)
            low, high = np.floor(255 * v * v / (v + strength)), level
            assert out.min() >= low - 1 and out.max() <= high
            assert (out[..., 0] == out[..., 1]).all()  # the same fog in every channel
    # The fractal is normalised to [0, 1], and at a power of two all of it is used.
    assert abs(int(out.min()) - low) <= 1 and abs(int(out.max()) - high) <= 1


def test_fog_leaves_a_black_image_black():
    assert not corrupt(np.zeros((32, 32, 3), np.uint8), "fog", 5, "imagenet", 1).any()


def test_snow_whitens_and_never_darkens_a_bright_image():
    image = np.full((64, 64, 3), 180, np.uint8)
    for severity in SEVERITIES:
        out = corrupt(image, "snow", severity, "imagenet", severity)
        assert out.min() >= 179 and out.mean() > 190


def test_spatter_without_a_drop_returns_the_image():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for mud in (0, 1):
        # No layer of mean 0.65 and deviation 0.3, smoothed, reaches 5.
        parameters = (0.65, 0.3, 4, 5.0, 0.6, mud)
        with np.errstate(all="raise"):
            out = two_d_weather.spatter(image, parameters, np.random.RandomState(1))
        assert np.array_equal(out, image)


def test_water_is_added_and_mud_covers():
    grey = np.full((96, 96, 3), 120, np.uint8)
    water = corrupt(grey, "spatter", 2, "imagenet", 5).astype(int)
    assert (water >= 120).all() and (water > 120).any()
    mud = corrupt(grey, "spatter", 5, "imagenet", 5).astype(int)
    assert (mud <= 120).all() and mud.min() < 80
    # Under full cover the colour of mud is left, up to the mask's last fraction.
    darkest = mud.reshape(-1, 3)[mud.sum(axis=2).argmin()]
    assert np.abs(darkest - [63, 42, 20]).max() <= 12


def test_frost_draws_each_of_five_photographs_alike(monkeypatch):
    drawn = []
    photograph = two_d_weather.frost_photograph
    monkeypatch.setattr(
        two_d_weather,
        "frost_photograph",
        lambda index, *rest: drawn.append(index) or photograph(index, *rest),
    )
    image = np.zeros((32, 32, 3), np.uint8)
    for seed in range(400):
        corrupt(image, "frost", 1, "imagenet", seed)
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > 1e-5  # the false-alarm probability
    assert len(frost_photographs()) == 5


@pytest.mark.parametrize(
    ("table", "size", "expected"),
    [
        ("imagenet", 224, (660, 991)),  # enlarged by 1.1, the product in floating point rounded up
        ("imagenet299", 299, (600, 900)),  # as it is
        ("tiny64", 64, (180, 270)),  # 0.3
        ("cifar32", 32, (120, 180)),  # 0.2
    ],
)
def test_the_photograph_is_scaled_as_the_table_says(table, size, expected):
    scale = entry("frost", 1, table)[2]
    assert two_d_weather.frost_photograph(0, scale, size, size).shape[:2] == expected


@pytest.mark.parametrize("table", SEVERITY_TABLES)
def test_frost_fits_images_larger_than_the_photograph(table):
    image = np.zeros((700, 1000, 3), np.uint8)
    for seed in range(6):
        assert corrupt(image, "frost", 3, table, seed).shape == image.shape
    photograph = two_d_weather.frost_photograph(1, entry("frost", 1, table)[2], 700, 1000)
    assert photograph.shape[0] > 700 and photograph.shape[1] > 1000


def test_frost_of_a_black_image_is_a_weighted_crop_of_a_photograph():
    image = np.zeros((40, 40, 3), np.uint8)
    out = corrupt(image, "frost", 1, "imagenet", 3)
    rng = np.random.RandomState(3)
    photograph = two_d_weather.frost_photograph(rng.randint(5), 1.1, 40, 40)
    top = rng.randint(0, photograph.shape[0] - 40)
    left = rng.randint(0, photograph.shape[1] - 40)
    crop = photograph[top : top + 40, left : left + 40]
    assert np.array_equal(out, (0.4 * crop).astype(np.uint8))
