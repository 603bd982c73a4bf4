"""How well pixels are classified: mIoU, IoU of each class, pixel accuracy, with intervals.

All of them are ratios of pixel counts summed over the data set, as benchmarks of segmentation form
them: mIoU is not the mean of the images' mIoU. Pixels without a class (255) count nowhere. A class
that no image of the set shows and no pixel is said to be of has no IoU and is left out of the
means; one that is only predicted has IoU 0 and is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

version = 1

rows = "segmentation"


@dataclass(frozen=True)
class Params:
    """How the intervals are made, and which classes mIoU is over."""

    resamples: int = param(1000, help="bootstrap resamples of images", minimum=100)
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)
    seed: int = param(0, help="seed of the resampling", minimum=0)
    mean_over: str = param(
        "union",
        help="classes of the means: those labelled or predicted anywhere, or those labelled",
        choices=("union", "labelled"),
    )


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Rows for one model on one variant; intervals resample images (percentile bootstrap).

    ``miou`` and ``mean_class_accuracy`` (mean recall) are means over classes, ``pixel_accuracy`` is
    over pixels. ``iou:<class>`` and ``frequency:<class>`` (share of the labelled pixels) are about
    one class; ``classes_labelled`` counts those that the labels show.
    """
    import numpy as np

    from certbench.metrics.tabulating import value

    counts, names = per_image(group)
    n = len(counts)
    found = ratios(counts.sum(0), params.mean_over)
    generator = np.random.default_rng(params.seed)
    drawn = generator.multinomial(n, np.full(n, 1 / n), params.resamples)
    resampled = ratios(np.tensordot(drawn, counts, 1), params.mean_over)
    tail = (1 - params.confidence) / 2

    def row(name: str, number: Any, draws: np.ndarray) -> dict[str, Any]:
        made = value(name, float(number), n)
        known = draws[np.isfinite(draws)]
        if made["value"] is None or not len(known):
            return made
        low, high = np.quantile(known, [tail, 1 - tail])
        return {**made, "low": float(low), "high": float(high)}

    made = [
        row(name, found[name], resampled[name])
        for name in ("miou", "pixel_accuracy", "mean_class_accuracy")
    ]
    made.append(value("classes_labelled", float((counts[:, 2].sum(0) > 0).sum()), n))
    for name in ("iou", "frequency"):
        made += [
            row(f"{name}:{class_name}", found[name][k], resampled[name][:, k])
            for k, class_name in names.items()
        ]
    return made


def per_image(group: pd.DataFrame) -> tuple[np.ndarray, dict[int, str]]:
    """The counts of each image, and the names of the classes that any of them has.

    Args:
        group: Rows of kind ``segmentation``.

    Returns:
        int64 [N, 3, K] (intersection, predicted pixels, label pixels), and names by class.
    """
    import numpy as np
    import pandas as pd

    place, items = pd.factorize(group["item_id"])
    class_id = group["class_id"].to_numpy()
    counts = np.zeros((len(items), 3, int(class_id.max()) + 1), np.int64)
    for i, column in enumerate(("intersection", "predicted_pixels", "label_pixels")):
        np.add.at(counts[:, i], (place, class_id), group[column].to_numpy())
    names = group.drop_duplicates("class_id").sort_values("class_id")
    return counts, dict(
        zip(names["class_id"].tolist(), names["class_name"].astype(str), strict=True)
    )


def ratios(counts: np.ndarray, mean_over: str = "union") -> dict[str, np.ndarray]:
    """All ratios from counts summed over images.

    Args:
        counts: [..., 3, K]: intersection, predicted pixels, label pixels.
        mean_over: ``union``: means leave out classes neither labelled nor predicted; ``labelled``:
            those not labelled.

    Returns:
        ``miou``, ``pixel_accuracy``, ``mean_class_accuracy`` [...], ``iou`` and ``frequency``
        [..., K]; NaN where there is nothing to divide by.
    """
    import numpy as np

    both, predicted, labelled = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    union = predicted + labelled - both
    total = labelled.sum(-1)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)

    def mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
        return ratio(np.where(counted, values, 0.0).sum(-1), counted.sum(-1).astype(np.float64))

    iou, recall = ratio(both, union), ratio(both, labelled)
    return {
        "miou": mean(iou, (union if mean_over == "union" else labelled) > 0),
        "pixel_accuracy": ratio(both.sum(-1), total),
        "mean_class_accuracy": mean(recall, labelled > 0),
        "iou": iou,
        "frequency": ratio(labelled, np.broadcast_to(total[..., None], labelled.shape)),
    }
