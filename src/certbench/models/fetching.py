"""The fetch job: weights from outside become a model of the study.

The module is built first, so that a wrong name or argument fails before any byte is downloaded.
Then the weights are fetched, matched key by key, checked, and written with their card.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError
from certbench.models.sources import SourceContext
from certbench.params import as_dict
from certbench.params import build as build_params

if TYPE_CHECKING:
    from certbench.job import Bar, Job
    from certbench.models.checkpoints import InputLayer

DOWNLOADS = Path("results/downloads")

_MIB = 1 << 20

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

logger = logging.getLogger("certbench")


def run(job: Job) -> None:
    """Fetch one model and write its weights and card.

    ``job.work``: ``model`` (id), ``task``, ``builder`` and ``source`` (each name, version, params),
    ``num_classes``, ``normalisation`` (mean and std, or null: what the checkpoint records, else
    what the source knows of its weights, else the builder's default), ``plugins``. Outputs:
    ``weights``, ``card``.

    Args:
        job: The job.

    Raises:
        CertbenchError: The model cannot be built, the weights cannot be had, do not fit, are not
            finite, or it is not known which normalisation they were trained with.
    """
    work = job.work
    name = f"model '{work['model']}'"
    builder = job.plugin("model", work["builder"]["name"])
    source = job.plugin("source", work["source"]["name"])
    params = build_params(builder.Params, work["builder"].get("params"), f"{name}: builder")
    wanted = build_params(source.Params, work["source"].get("params"), f"{name}: source")
    num_classes = int(work["num_classes"])
    net = builder.build(params, num_classes, pretrained=False)

    from certbench.models.checkpoints import align, load_into, refuse_non_finite
    from certbench.models.network import Network, save_model

    with _Progress(job, f"fetch {work['model']}") as progress:
        context = SourceContext(f"{name}: source", progress.tick)
        fetched = source.fetch(wanted, DOWNLOADS, context)
    logger.info("%s: %s, sha256 %s", name, fetched.origin, fetched.sha256)
    unwrapped = align(net, fetched.state, getattr(builder, "convert", None))
    load_into(net, unwrapped.state, f"{name}: {fetched.origin}")
    refuse_non_finite(net.state_dict(), f"{name}: {fetched.origin}")
    published = source.normalisation(wanted) if hasattr(source, "normalisation") else None
    default = (
        builder.default_normalisation(params)
        if published is None and hasattr(builder, "default_normalisation")
        else published
    )
    mean, std = _normalisation(work.get("normalisation"), unwrapped.input_layer, default, name)
    card = {
        "model": work["model"],
        "task": work["task"],
        "builder": work["builder"]["name"],
        "builder_version": builder.version,
        "builder_params": as_dict(params),
        "mean": list(mean),
        "std": list(std),
        "origin": fetched.origin,
        "source": {
            "name": work["source"]["name"],
            "version": source.version,
            "sha256": fetched.sha256,
            "size_bytes": fetched.size_bytes,
        },
    }
    network = Network(net, mean, std, num_classes)
    save_model(job.output("weights"), job.output("card"), network, card)


def _normalisation(
    given: dict[str, Any] | None, layer: InputLayer | None, default: Normalisation | None, name: str
) -> Normalisation:
    """The input layer of the model: what the checkpoint records, the configuration, the default.

    A wrong input layer gives a model near chance without any other sign (published ImageNet models
    of Salman et al., 2019, centre their input where others standardise), so nothing is guessed.
    """
    where = f"{name}: normalisation"
    stated = None
    if given is not None:
        stated = tuple(map(float, given["mean"])), tuple(map(float, given["std"]))
    if layer is not None and layer.kind != "unrecorded":
        recorded = _to_unit_range(layer, where)
        if stated is not None and not _close(stated, recorded):
            raise CertbenchError(
                f"the checkpoint brings its own input layer ({layer.kind}: mean "
                f"{list(recorded[0])}, std {list(recorded[1])}), the configuration states mean "
                f"{list(stated[0])}, std {list(stated[1])}",
                where=where,
                remedy="leave normalisation out: the checkpoint's own is used, once",
            )
        return recorded
    if stated is not None:
        if default is not None and not _close(stated, default):
            logger.warning("%s: mean %s, std %s instead of the usual %s", name, *stated, default)
        return stated
    if layer is not None:
        raise CertbenchError(
            "the checkpoint was saved with an input layer in front of the network (its keys start "
            "with '1.'), but does not hold that layer's constants",
            where=where,
            remedy="state them: normalisation: {mean: [...], std: [...]} as in training; a layer "
            "that only subtracts the mean has std: [1, 1, 1]",
        )
    if default is None:
        raise CertbenchError(
            "is not known: neither the checkpoint nor its source nor the builder states it",
            where=where,
            remedy="state it: normalisation: {mean: [...], std: [...]}, in pixel values of [0, 1]",
        )
    return tuple(default[0]), tuple(default[1])


def _to_unit_range(layer: InputLayer, where: str) -> Normalisation:
    """The recorded constants, if they are those of images in [0, 1]."""
    if max(map(abs, layer.mean)) > 1 or (layer.kind == "standardise" and max(layer.std) > 1):
        raise CertbenchError(
            f"the checkpoint's own input layer (mean {list(layer.mean)}, std {list(layer.std)}) "
            "is not one of images in [0, 1]",
            where=where,
            remedy="convert the checkpoint: divide both by 255 if it was trained on 0..255",
        )
    channels = max(len(layer.mean), len(layer.std))
    # One constant for all channels broadcasts in the published code.
    mean = layer.mean * channels if len(layer.mean) == 1 else layer.mean
    std = layer.std * channels if len(layer.std) == 1 else layer.std
    return mean, std


def _close(one: Normalisation, other: Normalisation) -> bool:
    """Equal up to the digits that papers print; one constant stands for all channels."""
    pairs: list[tuple[float, float]] = []
    for a, b in zip(one, other, strict=True):
        channels = max(len(a), len(b))
        a, b = (values * channels if len(values) == 1 else values for values in (a, b))
        if len(a) != len(b):
            return False
        pairs.extend(zip(a, b, strict=True))
    return all(math.isclose(a, b, rel_tol=0, abs_tol=5e-4) for a, b in pairs)


class _Progress:
    """A progress bar in MiB that starts with the first bytes."""

    def __init__(self, job: Job, label: str):
        self.job, self.label = job, label
        self.bar: Bar | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def tick(self, done: int, total: int | None) -> None:
        """Bytes so far and in all."""
        if self.bar is None:
            size = -(-(total or done) // _MIB)
            start = done // _MIB if total and done < total else 0
            self.bar = self._open.enter_context(self.job.bar(size, self.label, "MiB", start))
        now = -(-done // _MIB) if done == total else done // _MIB
        if now != self.bar.done:
            self.bar.update(now - self.bar.done)
