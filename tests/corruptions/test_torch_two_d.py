import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from certbench.corruptions import DETERMINISTIC, NAMES, corrupt, corrupt_torch
from certbench.corruptions import torch_two_d_blur as blur
from certbench.corruptions import torch_two_d_digital as digital
from certbench.corruptions import torch_two_d_weather as weather
from certbench.corruptions.severity import SEVERITIES, entry
from certbench.errors import CertbenchError

F64, F32 = torch.float64, torch.float32


def photograph(shape, seed=0):
    rng = np.random.default_rng(seed)
    waves = ndimage.gaussian_filter(rng.normal(size=(*shape, 3)), (4, 4, 0)) * 900
    return np.clip(128 + waves + rng.normal(0, 8, (*shape, 3)), 0, 255).astype(np.uint8)


def pictures(shape=(96, 72)):
    """A smooth image, noise, flat areas and saturated colours: uint8 [4, H, W, 3]."""
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    flat = np.kron(
        np.random.default_rng(2).integers(0, 256, (8, 8, 3)), np.ones((shape[0] // 8, 9, 1))
    ).astype(np.uint8)
    poster = (photograph(shape, 3) // 128 * 255).astype(np.uint8)
    return np.stack([photograph(shape), noise, flat[: shape[0], : shape[1]], poster])


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def array(made):
    return made.permute(0, 2, 3, 1).numpy()


IDS = ["a", "b", "c", "d"]


def by_torch(images, corruption, severity, table="imagenet", dtype=F64):
    ids = IDS[: len(images)]
    return array(
        corrupt_torch(tensor(images), ids, corruption, severity, table, 7, "digits", dtype=dtype)
    )


@pytest.mark.parametrize("corruption", sorted(DETERMINISTIC))
@pytest.mark.parametrize("table", ["imagenet", "imagenet299", "tiny64", "cifar32"])
def test_deterministic_types_in_float64_are_bit_equal_to_numpy(corruption, table):
    images = pictures()
    for severity in SEVERITIES:
        expected = np.stack([corrupt(image, corruption, severity, table, 0) for image in images])
        assert np.array_equal(by_torch(images, corruption, severity, table), expected), severity


@pytest.mark.parametrize("corruption", sorted(DETERMINISTIC))
def test_deterministic_types_in_float32_are_off_by_a_level_at_few_values(corruption):
    images = pictures()
    for severity in SEVERITIES:
        expected = np.stack([corrupt(x, corruption, severity, "imagenet", 0) for x in images])
        made = by_torch(images, corruption, severity, dtype=F32)
        difference = np.abs(made.astype(int) - expected)
        assert difference.max() <= 1
        shares = (difference > 0).mean(axis=(1, 2, 3))
        assert shares[:2].max() < 5e-4, severity  # smooth and noise
        # Flat areas and two-level images, where many results are integers but for rounding.
        assert shares[2:].max() < 0.03, severity


@pytest.mark.parametrize("corruption", ["pixelate", "zoom_blur", "defocus_blur", "gaussian_blur"])
@pytest.mark.parametrize("shape", [(33, 47), (50, 101), (225, 40)])
def test_deterministic_types_are_bit_equal_at_odd_sizes(corruption, shape):
    images = np.stack([photograph(shape), photograph(shape, 1)])
    for severity in SEVERITIES:
        expected = np.stack([corrupt(x, corruption, severity, "imagenet", 0) for x in images])
        assert np.array_equal(by_torch(images, corruption, severity), expected), severity


# With the random numbers of the NumPy code in place of their own, the other types give its images:
# in float64 to the byte (snow, spatter: to a level at few values), in float32 within the allowance
# of a level at 3 % of the values, which clipped areas use up to a third of.


def agree(made, image, corruption, severity, table, seed, worst, share):
    expected = corrupt(image, corruption, severity, table, seed)
    difference = np.abs(array(made)[0].astype(int) - expected)
    assert difference.max() <= worst
    assert (difference > 0).mean() <= share


TABLES = ["imagenet", "tiny64"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.0), (F32, 0.03)])
def test_motion_blur_agrees_given_the_angle(table, dtype, share):
    image = photograph((50, 77))
    for severity in SEVERITIES:
        angle = np.random.RandomState(severity).uniform(-45, 45)
        made = blur.motion_blur_with(
            tensor(image[None]), entry("motion_blur", severity, table), [angle], dtype
        )
        agree(made, image, "motion_blur", severity, table, severity, int(share > 0), share)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.0), (F32, 0.03)])
def test_glass_blur_agrees_given_the_offsets(table, dtype, share):
    image = photograph((50, 41))
    for severity in SEVERITIES:
        parameters = entry("glass_blur", severity, table)
        _, delta, iterations = parameters
        rng = np.random.RandomState(severity)
        pixels = (50 - 2 * delta) * (41 - 2 * delta)
        offsets = [rng.randint(-delta, delta, (pixels, 2)) for _ in range(iterations)]
        made = blur.glass_blur_with(
            tensor(image[None]), parameters, torch.from_numpy(np.stack(offsets))[None], dtype
        )
        agree(made, image, "glass_blur", severity, table, severity, int(share > 0), share)


@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.0), (F32, 0.01)])
def test_elastic_transform_agrees_given_the_noise(dtype, share):
    image = photograph((64, 80))
    for severity in SEVERITIES:
        rng = np.random.RandomState(severity)
        noise = np.stack([rng.uniform(-0.32, 0.32, (64, 80)) for _ in range(2)])
        made = digital.elastic_transform_with(
            tensor(image[None]),
            entry("elastic_transform", severity, "imagenet"),
            torch.from_numpy(noise)[None].to(dtype),
        )
        agree(
            made, image, "elastic_transform", severity, "imagenet", severity, int(share > 0), share
        )


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.001), (F32, 0.03)])
def test_snow_agrees_given_noise_and_direction(table, dtype, share):
    image = photograph((64, 80))
    for severity in SEVERITIES:
        parameters = entry("snow", severity, table)
        rng = np.random.RandomState(severity)
        noise = rng.normal(size=(64, 80), loc=parameters[0], scale=parameters[1])
        angle = rng.uniform(-135, -45)
        made = weather.snow_with(
            tensor(image[None]), parameters, torch.from_numpy(noise)[None].to(dtype), [angle]
        )
        agree(made, image, "snow", severity, table, severity, 1, share)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.0), (F32, 0.01)])
def test_fog_agrees_given_the_noise(table, dtype, share):
    image = photograph((40, 64))
    for severity in SEVERITIES:
        rng = np.random.RandomState(severity)

        def next_uniform(rows, columns, rng=rng):
            return torch.from_numpy(rng.uniform(-1, 1, (rows, columns)))[None]

        made = weather.fog_with(
            tensor(image[None]), entry("fog", severity, table), next_uniform, dtype
        )
        agree(made, image, "fog", severity, table, severity, int(share > 0), share)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("dtype", "share"), [(F64, 0.002), (F32, 0.02)])
def test_spatter_agrees_given_the_noise(table, dtype, share):
    image = photograph((64, 80))
    for severity in SEVERITIES:
        parameters = entry("spatter", severity, table)
        rng = np.random.RandomState(severity)
        noise = rng.normal(size=(64, 80), loc=parameters[0], scale=parameters[1])
        made = weather.spatter_with(
            tensor(image[None]), parameters, torch.from_numpy(noise)[None].to(dtype)
        )
        agree(made, image, "spatter", severity, table, severity, 1, share)


def test_the_affine_part_of_the_elastic_transform_follows_opencv():
    import cv2

    image = photograph((60, 75))
    x = image.astype(np.float32) / 255
    center = np.float32((60, 75)) // 2
    corners = np.float32([center + 20, [center[0] + 20, center[1] - 20], center - 20])
    moves = np.random.RandomState(0).uniform(-12, 12, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, corners + moves)
    expected = cv2.warpAffine(x, matrix, (75, 60), borderMode=cv2.BORDER_REFLECT_101)
    made = digital._warped(torch.from_numpy(x).permute(2, 0, 1)[None].double(), moves)
    difference = np.abs(array(made)[0] - expected)
    # OpenCV places samples on a grid of 1/32 pixel.
    assert difference.mean() < 0.5 / 255
    assert np.quantile(difference, 0.99) < 4 / 255


# Rows: mean over seeds and standard deviation over seeds of the image's mean, of its standard
# deviation, and of the mean absolute change; severity 3, the package at seeds 0..199 (glass 0..59).
DISTRIBUTION = """
gaussian_noise 127.346 0.380 79.212 0.279 32.460 0.225
shot_noise 122.889 0.400 81.181 0.263 34.675 0.241
impulse_noise 127.789 0.428 80.055 0.196 11.453 0.393
speckle_noise 122.190 0.373 79.377 0.254 30.543 0.235
glass_blur 126.816 1.068 34.282 0.348 65.266 0.644
motion_blur 127.169 0.674 33.979 16.133 51.444 13.117
snow 192.646 3.759 61.153 1.051 64.846 3.759
frost 196.327 23.706 46.490 8.392 70.006 21.860
fog 127.044 15.317 37.780 3.788 52.325 2.020
elastic_transform 127.284 1.100 65.909 0.471 51.957 0.737
spatter 135.454 1.567 74.666 0.612 7.655 1.567
"""


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("row", [r.split() for r in DISTRIBUTION.strip().splitlines()])
def test_statistics_over_seeds_are_those_of_the_package(golden_image, row, dtype):
    corruption, *numbers = row
    means, stds = np.array(numbers, float).reshape(3, 2).T
    reference = 60 if corruption == "glass_blur" else 200
    n = 100 if dtype == F32 else 200
    image = torch.from_numpy(golden_image(64)).permute(2, 0, 1)
    made = corrupt_torch(
        image.expand(n, -1, -1, -1),
        list(map(str, range(n))),
        corruption,
        3,
        "imagenet",
        0,
        "A",
        dtype,
    ).double()
    change = (made - image).abs().mean(dim=(1, 2, 3))
    statistics = [made.mean(dim=(1, 2, 3)), made.std(dim=(1, 2, 3), correction=0), change]
    averages = np.array([float(s.mean()) for s in statistics])
    # Difference of two means at 4 standard errors: false-alarm probability 2e-4 for the three.
    assert (np.abs(averages - means) < 4 * stds * np.sqrt(1 / n + 1 / reference)).all()
    # Standard deviations over seeds, as a ratio at about 5 standard errors of a normal sample;
    # the mixtures over photographs and angles are lighter-tailed than that.
    spread = np.array([float(s.std()) for s in statistics]) / stds
    assert (np.abs(np.log(spread)) < 5 * np.sqrt(0.5 / n + 0.5 / reference)).all()


LEVELS = (0, 40, 128, 255)
ALPHA = 1e-5


def constant(value, corruption, severity, dtype, table="imagenet"):
    images = torch.full((2, 3, 64, 64), value, dtype=torch.uint8)
    return corrupt_torch(images, ["x", "y"], corruption, severity, table, 3, "c", dtype)


def counts(made):
    return np.bincount(made.flatten().numpy(), minlength=256)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("value", LEVELS)
def test_noise_on_a_constant_image_has_its_exact_law(laws, value, dtype):
    # Chi-square at a false-alarm probability of 1e-5 each.
    for severity in SEVERITIES:
        made = constant(value, "gaussian_noise", severity, dtype)
        law = laws.normal(value, entry("gaussian_noise", severity, "imagenet"))
        assert laws.fits(counts(made), law) > ALPHA
        for table in ("imagenet", "cifar32"):
            made = constant(value, "shot_noise", severity, dtype, table)
            law = laws.poisson(value, entry("shot_noise", severity, table))
            assert laws.fits(counts(made), law) > ALPHA
        share = entry("impulse_noise", severity, "imagenet")
        law = np.zeros(256)
        law[[0, 255]] += share / 2
        law[value] += 1 - share
        assert laws.fits(counts(constant(value, "impulse_noise", severity, dtype)), law) > ALPHA
        if value:
            made = constant(value, "speckle_noise", severity, dtype)
            law = laws.normal(value, entry("speckle_noise", severity, "imagenet") * value / 255)
            assert laws.fits(counts(made), law) > ALPHA


def test_every_level_has_its_own_law_of_shot_noise(laws):
    # All 256 levels in one image: a wrong row of the table would show as a wrong mean.
    ramp = torch.arange(256, dtype=torch.uint8).repeat_interleave(64).view(1, 1, 128, 128)
    made = corrupt_torch(
        ramp.expand(8, 1, -1, -1), list("abcdefgh"), "shot_noise", 3, "imagenet", 0, "r"
    )
    sums = made.double().permute(2, 3, 0, 1).reshape(256, -1)
    levels = np.arange(256)
    expected = np.array([laws.poisson(v, 12) @ levels for v in levels])
    deviation = np.array(
        [
            np.sqrt(laws.poisson(v, 12) @ levels**2 - e**2)
            for v, e in zip(levels, expected, strict=True)
        ]
    )
    z = (sums.mean(dim=1).numpy() - expected)[1:] / (deviation[1:] / np.sqrt(sums.shape[1]))
    assert np.abs(z).max() < 5.5  # 255 levels: false-alarm probability 1e-5
    assert not made[:, :, :1, :64].any()


@pytest.mark.parametrize("dtype", [F64, F32])
def test_geometric_types_keep_a_constant_image(dtype):
    for value in LEVELS:
        for corruption in (
            "glass_blur",
            "motion_blur",
            "zoom_blur",
            "gaussian_blur",
            "elastic_transform",
            "elastic_transform_imagenet_c",
            "pixelate",
        ):
            for severity in SEVERITIES:
                made = constant(value, corruption, severity, dtype).int()
                assert value - 2 <= int(made.min()) and int(made.max()) <= value


@pytest.mark.parametrize("dtype", [F64, F32])
def test_fog_on_a_constant_image_stays_within_its_range(dtype):
    for severity in SEVERITIES:
        strength, _ = entry("fog", severity, "imagenet")
        for value in LEVELS[1:]:
            v = value / 255
            made = constant(value, "fog", severity, dtype)
            assert int(made.min()) >= np.floor(255 * v * v / (v + strength)) - 1
            assert value - 1 <= int(made.max()) <= value


@pytest.mark.parametrize("corruption", NAMES)
def test_a_batch_does_not_depend_on_order_or_shards(corruption):
    images = tensor(pictures((40, 36)))
    whole = corrupt_torch(images, IDS, corruption, 3, "imagenet", 7, "digits", F32)
    order = [2, 0, 3, 1]
    shuffled = corrupt_torch(
        images[order], [IDS[i] for i in order], corruption, 3, "imagenet", 7, "digits", F32
    )
    assert torch.equal(shuffled, whole[order])
    alone = corrupt_torch(images[1:2], ["b"], corruption, 3, "imagenet", 7, "digits", F32)
    assert torch.equal(alone[0], whole[1])
    other = corrupt_torch(images, IDS, corruption, 3, "imagenet", 8, "digits", F32)
    assert torch.equal(other, whole) == (corruption in DETERMINISTIC)


@pytest.mark.parametrize("corruption", NAMES)
def test_the_whole_batch_at_once_gives_the_same_images_within_a_level(corruption):
    # What a GPU does; its sums may be ordered in another way, hence the level.
    from certbench.corruptions import torch_two_d
    from certbench.corruptions.torch_two_d_random import Draws

    images = tensor(pictures((40, 36)))
    parameters = entry(corruption, 4, "imagenet")
    keys = [5, 6, 7, 8]
    function = torch_two_d._function(corruption)
    together = function(images, parameters, Draws(keys, images.device, F64))
    one_by_one = [
        function(images[i : i + 1], parameters, Draws(keys[i : i + 1], images.device, F64))
        for i in range(4)
    ]
    difference = (together.int() - torch.cat(one_by_one).int()).abs()
    assert int(difference.max()) <= 1 and float((difference > 0).double().mean()) < 1e-3


@pytest.mark.parametrize("table", ["imagenet", "imagenet299", "tiny64", "cifar32"])
def test_every_type_and_severity_gives_images(table):
    images = tensor(pictures((48, 36))[:2])
    for corruption in NAMES:
        for severity in SEVERITIES:
            made = corrupt_torch(images, IDS[:2], corruption, severity, table, 0, "d", F32)
            assert made.shape == images.shape and made.dtype == torch.uint8
            assert made.is_contiguous()


def test_float_images_are_rounded_to_8_bit_and_come_back_as_floats():
    images = tensor(pictures((40, 36)))
    expected = corrupt_torch(images, IDS, "contrast", 2, "imagenet", 0, "d")
    for dtype in (F32, F64):
        x = images.to(dtype) / 255
        made = corrupt_torch(x, IDS, "contrast", 2, "imagenet", 0, "d")
        assert made.dtype == dtype
        assert torch.equal(made, expected.to(dtype) / 255)
        moved = (x + 0.4 / 255).clamp(0, 1)
        assert torch.equal(corrupt_torch(moved, IDS, "contrast", 2, "imagenet", 0, "d"), made)


def test_grey_images_come_back_with_three_channels():
    grey = tensor(pictures((40, 36)))[:, :1]
    made = corrupt_torch(grey, IDS, "fog", 2, "imagenet", 0, "d")
    assert torch.equal(
        made, corrupt_torch(grey.repeat(1, 3, 1, 1), IDS, "fog", 2, "imagenet", 0, "d")
    )


def test_the_input_is_left_alone_and_no_gradient_is_kept():
    images = tensor(pictures((40, 36)))
    x = (images.double() / 255).requires_grad_()
    for corruption in NAMES:
        made = corrupt_torch(x, IDS, corruption, 2, "imagenet", 0, "d")
        assert not made.requires_grad
    assert torch.equal((x.detach() * 255).round().to(torch.uint8), images)


GOOD = torch.zeros(2, 3, 32, 40, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": GOOD.permute(0, 2, 3, 1)}, "channels last"),
        ({"images": GOOD[0]}, r"shape \(3, 32, 40\)"),
        ({"images": GOOD[:, :2]}, r"shape \(2, 2, 32, 40\)"),
        ({"images": GOOD[:, :, :31]}, "31 x 40 pixels"),
        ({"images": GOOD.long()}, "dtype torch.int64"),
        ({"images": GOOD.half()}, "dtype torch.float16"),
        ({"images": GOOD.float() - 0.1}, "before normalising"),
        ({"images": GOOD.float() + float("nan")}, "before normalising"),
        ({"images": GOOD.numpy()}, "corrupt_batch"),
        ({"item_ids": ["a"]}, "1 item ids for 2 images"),
        ({"item_ids": ["a", 1]}, "item id 1 is not text"),
        ({"corruption": "fogg"}, "did you mean 'fog'"),
        ({"severity": 0}, "from 1 to 5"),
        ({"severity_table": "cifar10"}, "did you mean 'cifar32'"),
        ({"dtype": torch.float16}, "pass torch.float64 or torch.float32"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "images": GOOD,
        "item_ids": ["a", "b"],
        "corruption": "fog",
        "severity": 1,
        "severity_table": "imagenet",
        "seed": 0,
        "dataset": "d",
        **change,
    }
    with pytest.raises(CertbenchError, match=message):
        corrupt_torch(**arguments)


def test_importing_the_module_loads_no_torch():
    code = "import sys, certbench.corruptions.torch_two_d; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("corruption", NAMES)
def test_a_gpu_gives_the_images_of_the_cpu_within_a_level(corruption):
    images = tensor(pictures())
    for dtype in (F64, F32):
        here = corrupt_torch(images, IDS, corruption, 3, "imagenet", 7, "digits", dtype)
        there = corrupt_torch(images.cuda(), IDS, corruption, 3, "imagenet", 7, "digits", dtype)
        difference = (here.int() - there.cpu().int()).abs()
        assert int(difference.max()) <= 1
        assert float((difference > 0).double().mean()) < (1e-4 if dtype == F64 else 0.03)
