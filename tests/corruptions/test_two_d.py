import hashlib
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from certbench.corruptions import (
    BENCHMARK_15,
    DETERMINISTIC,
    NAMES,
    SEVERITY_TABLES,
    corrupt,
    corrupt_batch,
    engine,
    image_seed,
)
from certbench.errors import CertbenchError

SEVERITIES = range(1, 6)

# Golden values of the package 1.1.2 and the published scripts: mean, standard deviation, first
# twelve digits of the SHA-256 of the bytes. The image is the formula image of the table's size.
DETERMINISTIC_224 = """
defocus_blur 1 127.3702 39.112 39577145119f
defocus_blur 3 127.3683 13.3241 35d51ed8f213
defocus_blur 5 128.7508 6.3577 7bd15734e5af
zoom_blur 1 127.2856 55.265 ea8db8bd5903
zoom_blur 3 127.2524 50.5266 85476f9451bf
zoom_blur 5 127.024 44.6453 d50f2186968f
brightness 1 143.2637 77.1319 426c2b6932c5
brightness 3 165.2322 77.2755 d4ad906c2ee0
brightness 5 178.6251 76.7447 470a1ac795e7
contrast 1 127.3182 29.493 4f06cbb00d8e
contrast 3 127.2922 14.7512 ff7eae09c7c0
contrast 5 127.2896 3.7013 03a16f5d036a
pixelate 1 128.2201 64.408 5a3f71290bf1
pixelate 3 127.8709 57.2146 85bb516f497c
pixelate 5 128.0807 47.7179 168da5efdaf0
jpeg_compression 1 127.9164 60.4957 6dd3e889fab6
jpeg_compression 3 127.9382 59.9645 62c16809af2e
jpeg_compression 5 127.8476 58.1794 4bbcfd576312
gaussian_blur 1 127.2736 51.5865 fdf83c76e073
gaussian_blur 3 127.1375 17.0109 3a8cd1b01947
gaussian_blur 5 126.8578 6.0155 ba5fde9253b5
saturate 1 161.1184 58.2887 8632fb23e9bf
saturate 3 106.8941 80.1261 8a9d78ec4758
saturate 5 87.8076 85.5976 55a1ed6ab9e9
"""
SEEDED_224 = """
gaussian_noise 3 127.7297 79.2239 bb834629ed1f
shot_noise 3 122.9758 81.8296 329177b1d0a3
speckle_noise 3 122.6232 79.3529 2058c96848e9
glass_blur 3 127.1825 34.3542 e06b11515935
motion_blur 3 126.7045 23.4417 1df1e331b2d4
snow 3 194.5835 60.7382 b3fd99f0baae
frost 3 187.2738 52.3784 8e8e1dd99fac
fog 3 151.8962 36.6819 1738c9413190
elastic_transform 3 126.293 65.3734 3c743ba07c64
spatter 3 139.2634 75.9555 771987e05eb8
"""
SMALL = """
cifar32 defocus_blur 128.8932 63.651 f3df5f380aef
cifar32 zoom_blur 129.1204 60.9791 6691fb7523dc
cifar32 brightness 151.2292 77.2196 670197e8a269
cifar32 contrast 128.7998 29.4687 e50f0646d20f
cifar32 pixelate 129.4935 70.1395 3eae4d73c6c8
cifar32 jpeg_compression 129.2471 63.6626 79de8aa9f7d4
cifar32 gaussian_blur 128.8255 61.3858 c2703a9ce1ab
cifar32 saturate 117.1162 78.0309 de4cb45b535e
tiny64 defocus_blur 127.4367 55.1451 d71d1a10e622
tiny64 zoom_blur 127.2582 53.0978 eb87014bbb06
tiny64 brightness 165.2322 77.2755 d4ad906c2ee0
tiny64 contrast 127.2922 14.7512 ff7eae09c7c0
tiny64 pixelate 128.1195 66.0016 68a80bdca3e2
tiny64 jpeg_compression 127.893 62.7376 91ee4e89f0a6
tiny64 gaussian_blur 127.2736 51.5865 fdf83c76e073
tiny64 saturate 106.8941 80.1261 8a9d78ec4758
"""


def rows(text):
    return [line.split() for line in text.strip().splitlines()]


def check_golden(out, mean, std, digits, corruption):
    """The exact bytes; for JPEG, whose library may change, its mean within 0.3."""
    if hashlib.sha256(out.tobytes()).hexdigest()[:12] == digits:
        return
    assert corruption == "jpeg_compression", "bytes differ"
    assert abs(out.mean() - float(mean)) < 0.3
    assert abs(out.std() - float(std)) < 0.3


def test_the_golden_image_is_the_one_meant(golden_image):
    image = golden_image(64)
    assert image.mean() == pytest.approx(127.7992, abs=1e-4)
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith("02690dae8b87")


@pytest.mark.parametrize(
    ("corruption", "severity", "mean", "std", "digits"), rows(DETERMINISTIC_224)
)
def test_deterministic_types_reproduce_the_golden_bytes(
    golden_image, corruption, severity, mean, std, digits
):
    out = corrupt(golden_image(64), corruption, int(severity), "imagenet", seed=12345)
    check_golden(out, mean, std, digits, corruption)


@pytest.mark.parametrize(("corruption", "severity", "mean", "std", "digits"), rows(SEEDED_224))
def test_seeded_types_reproduce_the_bytes_of_the_package_under_the_same_seed(
    golden_image, corruption, severity, mean, std, digits
):
    out = corrupt(
        golden_image(64), corruption, int(severity), "imagenet", seed=1000 + int(severity)
    )
    check_golden(out, mean, std, digits, corruption)


@pytest.mark.parametrize(("table", "corruption", "mean", "std", "digits"), rows(SMALL))
def test_small_tables_reproduce_the_golden_bytes(
    golden_image, table, corruption, mean, std, digits
):
    size = {"cifar32": 32, "tiny64": 64}[table]
    out = corrupt(golden_image(size), corruption, 3, table, seed=0)
    check_golden(out, mean, std, digits, corruption)


@pytest.mark.parametrize("corruption", [n for n in NAMES[:19] if n != "impulse_noise"])
def test_the_table_imagenet_is_bit_equal_to_the_installed_package(
    shipped, golden_image, corruption
):
    odd = np.ascontiguousarray(golden_image(91)[:48, :91])
    for severity in SEVERITIES:
        if corruption == "glass_blur" and severity in (2, 4):
            continue  # the literal loop has its own test
        np.random.seed(7 * severity)  # noqa: NPY002
        expected = shipped(odd, severity=severity, corruption_name=corruption)
        out = corrupt(odd, corruption, severity, "imagenet", seed=7 * severity)
        assert np.array_equal(out, expected), severity


@pytest.mark.parametrize("table", SEVERITY_TABLES)
@pytest.mark.parametrize("shape", [(48, 72), (32, 32)])
def test_every_type_and_severity_gives_an_image_and_prints_nothing(table, shape, capfd):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    for corruption in NAMES:
        for severity in SEVERITIES:
            with np.errstate(all="raise", under="ignore"):
                out = corrupt(image, corruption, severity, table, seed=severity)
            assert out.shape == image.shape and out.dtype == np.uint8
            assert not np.array_equal(out, image) or (corruption, severity) == ("pixelate", 1)
    assert np.array_equal(image, before)
    assert capfd.readouterr() == ("", "")


def test_deterministic_types_ignore_the_seed_and_the_others_do_not(golden_image):
    image = golden_image(40)
    for corruption in NAMES:
        same = np.array_equal(
            corrupt(image, corruption, 3, "imagenet", seed=1),
            corrupt(image, corruption, 3, "imagenet", seed=2),
        )
        assert same == (corruption in DETERMINISTIC), corruption


def test_only_the_package_table_has_its_own_elastic_recipe(golden_image):
    image = golden_image(48)
    for table in SEVERITY_TABLES:
        package, published = (
            corrupt(image, name, 4, table, seed=9)
            for name in ("elastic_transform", "elastic_transform_imagenet_c")
        )
        assert np.array_equal(package, published) == (table != "imagenet")


def test_grey_images_come_back_with_three_channels(golden_image):
    grey = np.ascontiguousarray(golden_image(36)[:, :, 0])
    stacked = np.stack([grey] * 3, axis=-1)
    for corruption in NAMES:
        expected = corrupt(stacked, corruption, 2, "imagenet", seed=4)
        for image in (grey, grey[..., np.newaxis]):
            out = corrupt(image, corruption, 2, "imagenet", seed=4)
            assert np.array_equal(out, expected)


def test_an_image_that_is_not_contiguous_gives_the_same_bytes(golden_image):
    image = golden_image(40)
    view = np.asfortranarray(image)[::1]
    for corruption in NAMES:
        out = corrupt(view, corruption, 3, "cifar32", seed=4)
        assert np.array_equal(out, corrupt(image, corruption, 3, "cifar32", seed=4)), corruption


GOOD = np.zeros((32, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GOOD.astype(np.float32), "dtype float32"),
        (GOOD.astype(np.int64), "dtype int64"),
        (GOOD.transpose(2, 0, 1), "channels first"),
        (GOOD[:31], "31 x 40 pixels"),
        (np.zeros((40, 40, 4), np.uint8), r"shape \(40, 40, 4\)"),
        (np.zeros((2, 40, 40, 3), np.uint8), r"shape \(2, 40, 40, 3\)"),
        (np.zeros(40, np.uint8), r"shape \(40,\)"),
        ([[1, 2], [3, 4]], "a list"),
    ],
)
def test_what_is_no_such_image_is_refused(image, message):
    with pytest.raises(CertbenchError, match=message):
        corrupt(image, "contrast", 1, "imagenet", seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_a_seed_that_is_no_32_bit_integer_is_refused(seed):
    with pytest.raises(CertbenchError, match="2\\*\\*32"):
        corrupt(GOOD, "contrast", 1, "imagenet", seed=seed)


def test_severity_and_table_are_checked(golden_image):
    for severity in (0, 6, "3", None):
        with pytest.raises(CertbenchError, match="from 1 to 5"):
            corrupt(GOOD, "snow", severity, "imagenet", seed=0)
    with pytest.raises(TypeError):
        corrupt(GOOD, "snow", 1, seed=0)  # a table is never guessed
    with pytest.raises(CertbenchError, match="severity table"):
        corrupt(GOOD, "snow", 1, "imagenet224", seed=0)


def batch(n=6):
    images = np.random.default_rng(5).integers(0, 256, (n, 32, 36, 3), dtype=np.uint8)
    return images, [f"val/{i:03d}.png" for i in range(n)]


@pytest.mark.parametrize("corruption", NAMES)
def test_a_batch_does_not_depend_on_order_shards_or_the_global_state(corruption):
    images, ids = batch()
    np.random.seed(11)  # noqa: NPY002
    expected_draw = np.random.RandomState(11).rand()
    whole = corrupt_batch(images, ids, corruption, 3, "imagenet", 7, "digits")
    assert np.random.rand() == expected_draw  # noqa: NPY002
    order = [4, 1, 5, 0, 3, 2]
    shuffled = corrupt_batch(
        images[order], [ids[i] for i in order], corruption, 3, "imagenet", 7, "digits"
    )
    assert np.array_equal(shuffled, whole[order])
    for i in (2, 5):
        alone = corrupt_batch(
            images[i : i + 1], ids[i : i + 1], corruption, 3, "imagenet", 7, "digits"
        )
        assert np.array_equal(alone[0], whole[i])


def one_shard(start):
    images, ids = batch()
    part = slice(start, start + 2)
    return b"".join(
        corrupt_batch(images[part], ids[part], name, 4, "imagenet", 7, "digits").tobytes()
        for name in ("impulse_noise", "glass_blur", "snow", "frost", "elastic_transform")
    )


def test_worker_processes_make_the_same_bytes():
    here = [one_shard(start) for start in (0, 2, 4)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(one_shard, (0, 2, 4)) == here


def test_threads_do_not_disturb_each_other():
    from concurrent.futures import ThreadPoolExecutor

    images, ids = batch(24)

    def one(i):
        return corrupt_batch(
            images[i : i + 1], ids[i : i + 1], "gaussian_noise", 3, "imagenet", 7, "digits"
        )[0]

    whole = corrupt_batch(images, ids, "gaussian_noise", 3, "imagenet", 7, "digits")
    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(np.stack(list(pool.map(one, range(24)))), whole)


def test_image_seeds_depend_on_every_part_of_the_identity():
    key = (7, "digits", "0001", "snow", 3, "imagenet")
    others = [
        (8, *key[1:]),
        (7, "digit", *key[2:]),
        (7, "digits0", "001", *key[3:]),
        (*key[:2], "0002", *key[3:]),
        (*key[:3], "fog", *key[4:]),
        (*key[:4], 4, key[5]),
        (*key[:5], "tiny64"),
    ]
    seeds = [image_seed(*k) for k in (key, *others)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    digest = hashlib.sha256(b'[7,"digits","0001","snow",3,"imagenet"]').digest()
    assert seeds[0] == int.from_bytes(digest[:4], "big")


def test_a_batch_row_is_the_image_under_its_own_seed():
    images, ids = batch(2)
    made = corrupt_batch(images, ids, "fog", 2, "tiny64", 3, "digits")
    seed = image_seed(3, "digits", ids[1], "fog", 2, "tiny64")
    assert np.array_equal(made[1], corrupt(images[1], "fog", 2, "tiny64", seed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_ids": ["a"]}, "1 item ids for 2 images"),
        ({"item_ids": ["a", 7]}, "item id 7 is not text"),
        ({"images": GOOD}, "ndarray of shape"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8)}, "channels first"),
        ({"images": np.zeros((2, 32, 32, 3))}, "dtype float64"),
    ],
)
def test_a_wrong_batch_is_refused(change, message):
    arguments = {"images": np.zeros((2, 32, 32, 3), np.uint8), "item_ids": ["a", "b"], **change}
    with pytest.raises(CertbenchError, match=message):
        corrupt_batch(
            **arguments, corruption="fog", severity=1, severity_table="tiny64", seed=1, dataset="d"
        )


def test_an_empty_batch_stays_empty():
    out = corrupt_batch(np.empty((0, 32, 40, 3), np.uint8), [], "fog", 1, "tiny64", 1, "d")
    assert out.shape == (0, 32, 40, 3) and out.dtype == np.uint8


def test_the_engine_of_a_type_is_told():
    assert engine("snow", "imagenet") == "imagecorruptions 1.1.2"
    assert engine("snow", "cifar32") == "certbench"
    assert engine("impulse_noise", "imagenet") == "certbench"


# Over the legacy seeds 0..199 (glass: 0..59) at severity 3: mean over seeds and standard deviation
# over seeds of the image's mean, its standard deviation, and the mean absolute change.
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


@pytest.mark.parametrize("row", rows(DISTRIBUTION), ids=lambda row: row[0])
def test_statistics_over_seeds_are_those_of_the_package(golden_image, row):
    corruption, *numbers = row
    image = golden_image(64)
    means, stds = np.array(numbers, float).reshape(3, 2).T
    seeds = 60 if corruption == "glass_blur" else 200
    made = [corrupt(image, corruption, 3, "imagenet", seed).astype(float) for seed in range(seeds)]
    statistics = np.array([[x.mean(), x.std(), np.abs(x - image).mean()] for x in made])
    difference = np.abs(statistics.mean(0) - means)
    if corruption == "impulse_noise":
        # Another generator: the difference of two means of 200. At 4 standard errors a false
        # alarm has probability 2e-4 for the three together.
        assert (difference < 4 * stds * np.sqrt(2 / seeds)).all()
    else:
        assert (difference < 6e-4).all()
        assert np.abs(statistics.std(0) - stds).max() < 6e-4 or (
            np.abs(statistics.std(0, ddof=1) - stds).max() < 6e-4
        )


def test_importing_the_package_of_corruptions_loads_no_image_library():
    heavy = "{'cv2', 'skimage', 'scipy', 'PIL', 'torch', 'imagecorruptions'}"
    code = f"""
import sys
import certbench.corruptions as c
from certbench.corruptions import corrupt, corrupt_batch, NAMES, BENCHMARK_15, SEVERITY_TABLES
assert not {heavy} & set(sys.modules), sys.modules.keys()
import numpy as np
image = np.zeros((32, 32, 3), np.uint8)
for name in ("gaussian_noise", "impulse_noise", "brightness", "contrast", "zoom_blur", "fog"):
    corrupt(image, name, 1, "cifar32", 0)
loaded = {heavy} & set(sys.modules)
assert loaded <= {{'PIL'}}, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_benchmark_types_are_exported_by_name():
    import certbench.corruptions as package

    assert package.BENCHMARK_15 == BENCHMARK_15
    assert {"corrupt", "corrupt_torch", "image_seed"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'corupt'"):
        _ = package.corupt
