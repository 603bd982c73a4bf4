"""The training job: dataset and builder in, weights, card and training table out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from certbench.datasets.masks import IGNORE
from certbench.errors import CertbenchError
from certbench.job import Job
from certbench.models.network import Network, save_model
from certbench.params import as_dict
from certbench.params import build as build_params
from certbench.recipes.context import TrainingContext, derived_seed
from certbench.recipes.reading import Split, read_split
from certbench.results import rows
from certbench.results.progress import Progress

logger = logging.getLogger("certbench")


def run(job: Job) -> None:
    """Train one model.

    The work names ``model``, ``task``, ``builder`` and ``recipe`` (name, version, params),
    ``dataset`` (id, plugin, params, view, train_split, val_split, limit), ``num_classes`` and
    ``normalisation`` (or null), ``model_seed``, ``seed``, ``device``, ``numerics``, ``plugins``.
    A killed job goes on after its last finished epoch; on one machine the result is the same as
    without the kill.

    Args:
        job: Inputs ``index`` (of the training split) and, with a validation split, ``val_index``;
            outputs ``weights``, ``card`` and ``training``.

    Raises:
        CertbenchError: Builder, recipe, classes or normalisation do not fit, the split is empty, or
            the training diverged.
    """
    work = job.work
    where = f"config: models.{work['model']}"
    builder, builder_params = _plugin(job, "model", work["builder"], f"{where}.builder")
    recipe, recipe_params = _plugin(job, "recipe", work["recipe"], f"{where}.recipe")
    dataset = work["dataset"]
    train = read_split(job, "index", dataset["train_split"], dataset.get("limit"))
    num_classes = work.get("num_classes") or len(train.class_names)
    _check_labels(train.labels, num_classes, where)
    val: Split | None = None
    if dataset.get("val_split"):
        val = read_split(job, "val_index", dataset["val_split"])
        _check_labels(val.labels, num_classes, where)
    mean, std = normalisation(work.get("normalisation"), builder, builder_params, train.images)

    device, seed = job.device, _seed(work)
    with torch.random.fork_rng([]):
        torch.manual_seed(derived_seed(seed, "weights"))
        net = builder.build(builder_params, num_classes, pretrained=False)
    network = Network(net, mean, std, num_classes).to(device)

    with job.progress() as progress:
        log = EpochLog(progress)
        epochs = getattr(recipe_params, "epochs", 1)
        total, done = epochs * len(train.labels), log.epochs_done * len(train.labels)
        with job.bar(total, f"train {work['model']}", "images", done) as bar:
            recipe.train(
                TrainingContext(
                    network=network,
                    images=train.images,
                    labels=train.labels,
                    params=recipe_params,
                    seed=seed,
                    device=device,
                    val_images=val.images if val else None,
                    val_labels=val.labels if val else None,
                    log_epoch=log,
                    checkpoint=log,
                    bar=bar,
                )
            )
        save_model(
            job.output("weights"),
            job.output("card"),
            network.cpu(),
            {
                "model": work["model"],
                "task": work["task"],
                "builder": work["builder"]["name"],
                "builder_version": builder.version,
                "builder_params": as_dict(builder_params),
                "mean": mean,
                "std": std,
                "origin": {
                    "kind": "trained",
                    "dataset": dataset["id"],
                    "view": dataset["view"],
                    "split": dataset["train_split"],
                    "images": len(train.labels),
                },
                "recipe": {
                    "name": work["recipe"]["name"],
                    "version": recipe.version,
                    "params": as_dict(recipe_params),
                },
                "seed": work.get("model_seed", work["seed"]),
                "run_seed": work["seed"],
            },
        )
        rows.write(
            job.output("training"),
            log.table(job),
            "training",
            job.provenance(seconds=progress.seconds, accuracy_of=_accuracy_of(work)),
        )
        progress.clear()


class EpochLog:
    """Rows of the finished epochs, kept together with the recipe's state.

    It is both the ``log_epoch`` and the ``checkpoint`` of a training context.

    Args:
        progress: The job's progress file, locked.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._state = progress.load()
        self._rows: list[dict[str, Any]] = self._state.pop("training_rows") if self._state else []
        self._last = time.monotonic()

    @property
    def epochs_done(self) -> int:
        """Number of epochs whose state is kept."""
        return len(self._rows)

    def load(self) -> dict[str, Any] | None:
        """The recipe's newest state, or None."""
        self._last = time.monotonic()
        return self._state

    def save(self, state: dict[str, Any]) -> None:
        """Keep the recipe's state and all rows so far."""
        self._progress.save({**state, "training_rows": list(self._rows)})

    def __call__(
        self,
        epoch: int,
        loss: float,
        accuracy: float,
        learning_rate: float,
        n_forward: int = 0,
        n_backward: int = 0,
    ) -> None:
        """Add the row of an epoch; its seconds are those since the last one."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._rows.append(
            {
                "epoch": epoch,
                "loss": loss,
                "accuracy": accuracy,
                "learning_rate": learning_rate,
                "wall_time_s": seconds,
                "n_forward": n_forward,
                "n_backward": n_backward,
            }
        )
        logger.info(
            "epoch %d: loss %.4f, accuracy %.4f, learning rate %.2g, %.1f s",
            epoch,
            loss,
            accuracy,
            learning_rate,
            seconds,
        )

    def table(self, job: Job) -> Any:
        """The rows of kind ``training`` (a pyarrow table)."""
        work = job.work
        columns = {
            name: [row[name] for row in self._rows]
            for name in (
                "epoch",
                "loss",
                "accuracy",
                "learning_rate",
                "wall_time_s",
                "n_forward",
                "n_backward",
            )
        }
        columns["device_time_s"] = columns["wall_time_s"]  # a training job does nothing else
        keys = {
            "task": work["task"],
            "dataset": work["dataset"]["id"],
            "split": work["dataset"]["train_split"],
            "view": work["dataset"]["view"],
            "model": work["model"],
            "seed": work["seed"],
        }
        return rows.table("training", columns, keys, length=len(self._rows))


def normalisation(
    wanted: dict[str, Sequence[float]] | None,
    builder: ModuleType,
    builder_params: Any,
    images: torch.Tensor,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel: configured, else the builder's, else those of the images.

    Args:
        wanted: ``{"mean": [...], "std": [...]}`` from the configuration, or None.
        builder: The builder plug-in; its ``default_normalisation(params)`` may be absent or None.
        builder_params: The builder's parameters.
        images: Training images, uint8 [N, C, H, W].

    Returns:
        Mean and std in pixel values of [0, 1].
    """
    if wanted is not None:
        return tuple(wanted["mean"]), tuple(wanted["std"])
    if hasattr(builder, "default_normalisation"):
        default = builder.default_normalisation(builder_params)
        if default is not None:
            return default
    counts = torch.zeros((images.shape[1], 256), dtype=torch.float64)
    for part in images.split(1000):
        for channel, pixels in enumerate(part.transpose(0, 1)):
            counts[channel] += torch.bincount(pixels.flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts / counts.sum(dim=1, keepdim=True)
    mean = (weights * values).sum(dim=1)
    std = (weights * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    # A constant channel has no spread to divide by.
    std = torch.where(std < 1e-3, torch.ones_like(std), std)
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


def _plugin(job: Job, kind: str, named: dict[str, Any], where: str) -> tuple[ModuleType, Any]:
    """A plug-in and its parameters; its version must be the planned one."""
    plugin = job.plugin(kind, named["name"])
    if named.get("version") not in (None, plugin.version):
        raise CertbenchError(
            f"was planned with version {named['version']} of {kind} '{named['name']}', "
            f"which is now version {plugin.version}",
            where=where,
            remedy="start the workflow again",
        )
    return plugin, build_params(plugin.Params, named["params"], where)


def _check_labels(labels: torch.Tensor, num_classes: int, where: str) -> None:
    if labels.ndim > 1:
        present = torch.zeros(256, dtype=torch.int64)
        for part in labels.split(256):  # a copy of all label maps may not fit into memory
            present += torch.bincount(part.flatten(), minlength=256)
        present[IGNORE] = 0
        values = present.nonzero().flatten()
        if not len(values):
            raise CertbenchError("no pixel of the training images has a class", where=where)
        low, high = int(values[0]), int(values[-1])
    else:
        low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise CertbenchError(
            f"labels go from {low} to {high}, but the model has {num_classes} classes",
            where=where,
            remedy="set num_classes to that of the dataset, or leave it out",
        )


def _seed(work: dict[str, Any]) -> int:
    """Seed of the training: the run's and, where the model has one of its own, the model's."""
    if "model_seed" not in work:
        return work["seed"]
    return derived_seed(work["seed"], "model", work["model_seed"])


def _accuracy_of(work: dict[str, Any]) -> str:
    """Which images the column ``accuracy`` speaks of."""
    return work["dataset"].get("val_split") or work["dataset"]["train_split"]
