import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from certbench.corruptions import corrupt
from certbench.corruptions import two_d_digital as digital
from certbench.corruptions.severity import SEVERITIES, SEVERITY_TABLES, entry


def all_kinds_of_colour():
    """Every combination of extreme and equal levels, and a hundred thousand random colours."""
    ties = np.array(list(itertools.product((0, 1, 2, 3, 127, 128, 200, 254, 255), repeat=3)))
    random = np.random.default_rng(0).integers(0, 256, (100_000, 3))
    colours = np.concatenate([ties, random]).astype(np.uint8)
    return colours[: len(colours) // 9 * 9].reshape(9, -1, 3)


@pytest.mark.parametrize("corruption", ["brightness", "saturate"])
@pytest.mark.parametrize("table", ["imagenet", "tiny64", "cifar32"])
def test_changes_in_hsv_equal_those_through_scikit_image(corruption, table):
    from skimage.color import hsv2rgb, rgb2hsv

    image = all_kinds_of_colour()
    for severity in SEVERITIES:
        parameters = entry(corruption, severity, table)
        hsv = rgb2hsv(image / 255.0)
        if corruption == "brightness":
            hsv[..., 2] = np.clip(hsv[..., 2] + parameters, 0, 1)
        else:
            hsv[..., 1] = np.clip(hsv[..., 1] * parameters[0] + parameters[1], 0, 1)
        expected = np.uint8(np.clip(hsv2rgb(hsv), 0, 1) * 255)
        assert np.array_equal(getattr(digital, corruption)(image, parameters), expected)


def test_saturate_turns_grey_reddish():
    out = corrupt(np.full((32, 32, 3), 128, np.uint8), "saturate", 5, "imagenet", 0)
    assert (out == (128, 102, 102)).all()


def test_contrast_keeps_a_constant_image_and_shrinks_deviations():
    assert (corrupt(np.full((32, 32, 3), 77, np.uint8), "contrast", 5, "imagenet", 0) == 77).all()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = corrupt(image, "contrast", 3, "imagenet", 0)
    assert out.std() == pytest.approx(0.2 * image.std(), rel=0.02)


@pytest.mark.parametrize("scale", [0, 0.3, 5, 60, 400])
def test_sampling_equals_scipy_at_positions_inside_and_far_outside(scale):
    rng = np.random.default_rng(1)
    x = rng.random((37, 53, 3), dtype=np.float32)
    rows = np.arange(37)[:, np.newaxis] + rng.normal(0, scale, (37, 53))
    columns = np.arange(53)[np.newaxis, :] + rng.normal(0, scale, (37, 53))
    if scale == 60:  # halves and integers, where the edge rules meet
        rows, columns = np.round(rows * 2) / 2, np.round(columns * 2) / 2
    expected = [
        ndimage.map_coordinates(x[..., k], (rows, columns), order=1, mode="reflect")
        for k in range(3)
    ]
    made = digital._sampled(x, rows.copy(), columns.copy())
    assert np.array_equal(made, np.stack(expected, axis=-1))


def literal_elastic_imagenet_c(image, parameters, rng):
    """The published recipe, written out with SciPy and OpenCV."""
    alpha, sigma, affine = parameters
    x = np.array(image, dtype=np.float32) / 255.0
    height, width = x.shape[:2]
    center = np.float32((height, width)) // 2
    size = min(height, width) // 3
    corners = np.float32([center + size, [center[0] + size, center[1] - size], center - size])
    moved = corners + rng.uniform(-affine, affine, size=(3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    shifts = []
    for _ in range(2):
        noise = rng.uniform(-1, 1, size=(height, width))
        smooth = ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3)
        shifts.append((smooth * alpha).astype(np.float32)[..., np.newaxis])
    columns, rows, channels = np.meshgrid(np.arange(width), np.arange(height), np.arange(3))
    positions = (rows + shifts[1], columns + shifts[0], channels)
    out = ndimage.map_coordinates(x, positions, order=1, mode="reflect")
    return np.uint8(np.clip(out, 0, 1) * 255)


@pytest.mark.parametrize("table", SEVERITY_TABLES)
def test_elastic_transform_of_imagenet_c_equals_the_literal_recipe(table):
    image = np.random.default_rng(2).integers(0, 256, (60, 75, 3), dtype=np.uint8)
    for severity in SEVERITIES:
        parameters = entry("elastic_transform_imagenet_c", severity, table)
        out = corrupt(image, "elastic_transform_imagenet_c", severity, table, seed=severity)
        rng = np.random.RandomState(severity)
        assert np.array_equal(out, literal_elastic_imagenet_c(image, parameters, rng)), severity


def displacement(name, severity):
    """RMS of the elastic displacement at 224 pixels, in pixels, over three seeds."""
    squares = []
    for seed in range(3):
        rng = np.random.RandomState(seed)
        parameters = entry(name, severity, "imagenet")
        if name == "elastic_transform":
            reach, sigma, alpha = 224 * 0.005, 2.24, parameters
        else:
            reach, (alpha, sigma, _) = 1.0, parameters
        for _ in range(2):
            noise = rng.uniform(-reach, reach, (224, 224))
            squares.append((digital._smoothed(noise, sigma) * alpha) ** 2)
    return np.sqrt(2 * np.mean(squares))


def test_displacements_have_the_measured_size():
    package = [displacement("elastic_transform", s) for s in SEVERITIES]
    assert package == pytest.approx([1.5, 1.9, 2.5, 2.9, 3.6], abs=0.1)
    published = [displacement("elastic_transform_imagenet_c", s) for s in SEVERITIES[1:]]
    assert published == pytest.approx([6.6, 1.2, 1.6, 2.8], rel=0.12)


def test_wide_filters_as_matrices_equal_convolution():
    noise = np.random.default_rng(0).uniform(-1, 1, (60, 45))
    expected = ndimage.gaussian_filter(noise, 70.0, mode="reflect", truncate=3)
    assert np.abs(digital._smoothed(noise, 70.0) - expected).max() < 1e-13


def test_geometric_and_block_types_keep_a_constant_image():
    for value in (0, 3, 128, 255):
        image = np.full((64, 64, 3), value, np.uint8)
        for corruption in ("elastic_transform", "elastic_transform_imagenet_c", "pixelate"):
            for severity in SEVERITIES:
                out = corrupt(image, corruption, severity, "imagenet", severity).astype(int)
                assert value - 1 <= out.min() and out.max() <= value
        out = corrupt(image, "jpeg_compression", 5, "imagenet", 0).astype(int)
        assert np.abs(out - value).max() <= 4
