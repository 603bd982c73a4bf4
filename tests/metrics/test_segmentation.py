"""mIoU and its relatives against brute force, scikit-learn, and worked examples."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from certbench.metrics import segmentation

NAMES = ("road", "sky", "car", "person", "bus")


def rows_of(labels, predictions, classes):
    """Rows of kind segmentation by brute force, without those of classes an image lacks."""
    made = []
    for i, (label, predicted) in enumerate(zip(labels, predictions, strict=True)):
        for k in range(classes):
            counted = [
                (a, b) for a, b in zip(label.ravel(), predicted.ravel(), strict=True) if a != 255
            ]
            row = {
                "item_id": f"i{i}",
                "class_id": k,
                "class_name": NAMES[k],
                "intersection": sum(a == b == k for a, b in counted),
                "predicted_pixels": sum(b == k for _, b in counted),
                "label_pixels": sum(a == k for a, _ in counted),
            }
            if k == 0 or row["predicted_pixels"] or row["label_pixels"]:
                made.append(row)
    return pd.DataFrame(made)


def random_maps(seed, images=7, classes=4, never=()):
    rng = np.random.default_rng(seed)
    allowed = [k for k in range(classes) if k not in never]
    labels = rng.choice(allowed, (images, 6, 5)).astype(np.uint8)
    wrong = rng.integers(0, classes, labels.shape).astype(np.uint8)
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, wrong)
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels, predictions


def measured(labels, predictions, classes=4, **params):
    frame = rows_of(labels, predictions, classes)
    made = segmentation.compute(frame, segmentation.Params(**params), None)
    return {row["metric"]: row for row in made}


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_scikit_learn_on_random_maps(seed):
    labels, predictions = random_maps(seed)
    found = measured(labels, predictions)
    kept = labels != 255
    y, p = labels[kept], predictions[kept]
    each = jaccard_score(y, p, average=None, labels=range(4))
    assert found["miou"]["value"] == pytest.approx(each.mean(), abs=1e-12)
    for k in range(4):
        assert found[f"iou:{NAMES[k]}"]["value"] == pytest.approx(each[k], abs=1e-12)
        frequency = found[f"frequency:{NAMES[k]}"]["value"]
        assert frequency == pytest.approx((y == k).mean(), abs=1e-12)
    matrix = confusion_matrix(y, p, labels=range(4))
    assert found["pixel_accuracy"]["value"] == pytest.approx((y == p).mean(), abs=1e-12)
    recall = (np.diag(matrix) / matrix.sum(1)).mean()
    assert found["mean_class_accuracy"]["value"] == pytest.approx(recall, abs=1e-12)
    assert found["classes_labelled"]["value"] == 4 and found["miou"]["n"] == 7


def test_a_class_nowhere_is_left_out_and_one_only_predicted_counts_as_zero():
    labels, predictions = random_maps(1, classes=4, never=(3,))
    nowhere = np.where(predictions == 3, 0, predictions)
    found = measured(labels, nowhere)
    three = [found[f"iou:{name}"]["value"] for name in NAMES[:3]]
    assert found["miou"]["value"] == pytest.approx(np.mean(three), abs=1e-12)
    assert "iou:person" not in found and found["classes_labelled"]["value"] == 3
    assert (predictions[labels != 255] == 3).any()
    union = measured(labels, predictions)
    assert union["iou:person"]["value"] == 0.0
    three = [union[f"iou:{name}"]["value"] for name in NAMES[:3]]
    assert union["miou"]["value"] == pytest.approx(sum(three) / 4, abs=1e-12)
    labelled = measured(labels, predictions, mean_over="labelled")
    assert labelled["miou"]["value"] == pytest.approx(np.mean(three), abs=1e-12)


def test_the_worked_example_of_two_maps():
    """Two 4 x 6 maps; the mean of the images' mIoU, which is not the metric, is .4049."""
    i, j = np.mgrid[0:4, 0:6]
    labels = np.stack([(i * j + 2 * i + j) % 4, (3 * i + j) % 3])
    predictions = np.stack(
        [
            (labels[0] + ((i + 2 * j) % 5 == 0)) % 4,
            (3 * i + j + ((2 * i + j) % 4 == 0)) % 4,
        ]
    )
    labels = labels.astype(np.uint8)
    labels[0, 0, 0] = labels[1, 3, 5] = 255
    found = measured(labels, predictions)
    ious = [found[f"iou:{name}"]["value"] for name in NAMES[:4]]
    assert ious == pytest.approx([0.333333, 0.3125, 0.523810, 0.25], abs=1e-6)
    assert found["miou"]["value"] == pytest.approx(0.35491071, abs=1e-8)
    assert found["pixel_accuracy"]["value"] == pytest.approx(0.54347826, abs=1e-8)
    assert found["mean_class_accuracy"]["value"] == pytest.approx(0.62355700, abs=1e-8)


def test_images_without_any_labelled_pixel_count_nothing():
    labels, predictions = random_maps(2)
    empty = np.full_like(labels[:1], 255)
    more = measured(np.concatenate([labels, empty]), np.concatenate([predictions, predictions[:1]]))
    assert more["miou"]["value"] == measured(labels, predictions)["miou"]["value"]
    assert more["miou"]["n"] == 8
    alone = measured(empty, predictions[:1])
    assert alone["miou"]["value"] is None and alone["miou"]["low"] is None


def test_the_interval_is_the_bootstrap_over_images():
    labels, predictions = random_maps(3, images=12)
    found = measured(labels, predictions, resamples=400, seed=5)
    again = measured(labels, predictions, resamples=400, seed=5)
    other = measured(labels, predictions, resamples=400, seed=6)
    assert found == again and found["miou"] != other["miou"]
    assert found["miou"]["low"] < found["miou"]["value"] < found["miou"]["high"]
    # The same resamples, drawn and measured one by one by scikit-learn.
    drawn = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 400)
    values = []
    for weights in drawn:
        y, p = (np.concatenate(np.repeat(maps, weights, 0)) for maps in (labels, predictions))
        kept = y != 255
        values.append(jaccard_score(y[kept], p[kept], average=None, labels=range(4)).mean())
    low, high = np.quantile(values, [0.025, 0.975])
    assert found["miou"]["low"] == pytest.approx(low, abs=1e-12)
    assert found["miou"]["high"] == pytest.approx(high, abs=1e-12)


def test_rows_of_several_files_and_of_any_order_give_the_same():
    labels, predictions = random_maps(4)
    frame = rows_of(labels, predictions, 4)
    shuffled = frame.sample(frac=1, random_state=0)
    one, two = (
        {
            row["metric"]: row["value"]
            for row in segmentation.compute(f, segmentation.Params(), None)
        }
        for f in (frame, shuffled)
    )
    assert one == two
