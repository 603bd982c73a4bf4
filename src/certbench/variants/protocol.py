"""What a variant step may ask for beside the images, and what it must say while planning.

A step is a plug-in with ``Params``, ``slug(params)`` and ``apply(params, images, item_ids, seed,
dataset, **needs)``. Optional, at the top level of its module:

* ``needs``: names of :data:`NEEDS` that ``apply`` (and ``label_maps``) get as keywords.
* ``needs_uint8 = True``: float images are rounded to levels first.
* ``replaces = True``: the step takes the place of the images, so it must be the first of a variant.
* ``requires(params)``: names of :data:`HOOKS` that the dataset must offer; planning refuses others.
* ``spoils(params)``: tasks whose labels the step makes untrue; planning refuses them.
* ``check(params, source)``: refuse, before any model is loaded, what cannot be applied to these
  items (:class:`Source`).
* ``label_maps(params, maps, item_ids, seed, dataset, **needs)``: the label of each pixel after the
  step, uint8 [N, H, W]; a step without it leaves labels where they are.

Planning reads this module: it imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    from certbench.datasets.views import View

NEEDS = {
    "item_index": "uint32 [N], the items' places in their source split",
    "labels": "int32 [N], -1 where an item has no label",
    "attack_images": "image files of the attack that the step names",
    "source": "the dataset itself, with its hooks",
}

HOOKS = {
    "read_depth": "true depth",
    "read_scenes": "scenes that can be rendered again",
}


@dataclass(frozen=True)
class Source:
    """The dataset behind some items, for steps that ask it for more than images.

    Attributes:
        module: The dataset plug-in.
        params: Its parameters.
        rows: Index rows of the items, in their order.
        view: How the images are looked at; depth and rendered images take the same view.
    """

    module: ModuleType
    params: Any
    rows: pa.Table
    view: View


def needs_of(module: Any, name: str) -> tuple[str, ...]:
    """What a step asks for.

    Raises:
        CertbenchError: Something that no step can get.
    """
    wanted = tuple(getattr(module, "needs", ()))
    for need in wanted:
        if need not in NEEDS:
            raise CertbenchError(
                f"asks for '{need}', which no step can get",
                where=f"variant step {name}",
                remedy=did_you_mean(need, NEEDS),
            )
    return wanted


def check_fit(step: Any, position: int, dataset: Any, task: str, where: str) -> None:
    """Refuse, while planning, a step that cannot be applied to a dataset or task.

    Args:
        step: The step (``name``, ``module``, ``params``).
        position: Its place in the variant, from 0.
        dataset: The dataset (``id``, ``name``, ``module``).
        task: Task of the experiment.
        where: Prefix for messages.

    Raises:
        CertbenchError: The step replaces images that an earlier step made, needs something that the
            dataset does not offer, or would make the labels untrue.
    """
    if position and getattr(step.module, "replaces", False):
        raise CertbenchError(
            f"step '{step.name}' takes the place of the images, and what comes before it is lost",
            where=where,
            remedy=f"make the {step.name} step the first",
        )
    needs_of(step.module, step.name)
    hooks = step.module.requires(step.params) if hasattr(step.module, "requires") else ()
    for hook in hooks:
        if not hasattr(dataset.module, hook):
            raise CertbenchError(
                f"step '{step.name}' needs {HOOKS.get(hook, hook)}, which dataset '{dataset.id}' "
                f"(type {dataset.name}) does not have",
                where=where,
                remedy="use it on a dataset that has, such as type streets, or exclude this "
                "dataset and variant",
            )
    if hasattr(step.module, "spoils") and task in step.module.spoils(step.params):
        raise CertbenchError(
            f"step '{step.name}' changes what the labels of task {task} say",
            where=where,
            remedy="use it for another task, or leave the variant out of this experiment",
        )
