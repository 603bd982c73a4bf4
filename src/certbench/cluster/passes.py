"""Forward and backward passes of a planned job, counted from its work and not guessed.

What an attack or a sequential certification might save by stopping early is not subtracted, so the
numbers are upper bounds. Certifiers and attacks say themselves what they cost. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from certbench import params as parameters
from certbench import plugins
from certbench.attacks.protocol import Passes

if TYPE_CHECKING:
    from certbench.plan import PlannedJob

# Side of an image where the view does not say it.
SIDE = 224
# What a masked or voting defence offers to the attack on every surrogate, at most.
SURROGATES = 5
# Passes of an attack on a bare model beside its steps: clean label, confirmation, 8-bit copy.
BESIDE = 3

# Forward and backward passes for each image and epoch, by what the recipes' papers compute.
_RECIPES: dict[str, Any] = {
    "standard": lambda p: (1, 1),
    "gaussian": lambda p: (1, 1),
    "consistency": lambda p: (p["noise_samples"], p["noise_samples"]),
    "macer": lambda p: (p["noise_samples"], p["noise_samples"]),
    "smoothadv": lambda p: 2 * (p["noise_samples"] * (p["attack_steps"] + 1),),
    "smoothmix": lambda p: 2 * (p["noise_samples"] * (p["attack_steps"] + 2),),
}


def passes(
    job: PlannedJob, train_items: int | None = None, side: int | None = None
) -> tuple[int, int]:
    """Forward and backward passes of a job: an upper bound.

    Args:
        job: A planned job.
        train_items: Training images, where the job trains (None if unknown: counted as 50,000).
        side: Height and width of the images (None if unknown: 224).
    """
    work = job.work
    if job.rule == "predict":
        return work["items"][1] - work["items"][0], 0
    if job.rule == "collect":
        start, stop = work["samples"]
        params = work["defense"]["collect"]
        fixed = _fixed_passes(work, params, side)
        if fixed is not None:
            return (work["items"][1] - work["items"][0]) * fixed, 0
        samples = (params.get("n", 0) if stop is None else stop - start) + params.get("n0", 0)
        return (work["items"][1] - work["items"][0]) * int(samples), 0
    if job.rule == "attack":
        forward, backward = _attack_passes(work, side)
        items = work["items"][1] - work["items"][0]
        return items * forward, items * backward
    if job.rule == "fit":
        forward, backward = _attack_passes(work, side)
        items = work["attack"]["params"].get("fit_items", 10_000)
        return items * forward, items * backward
    if job.rule == "train":
        params = work["recipe"]["params"]
        items = work["dataset"]["limit"] or train_items or 50_000
        counts = _RECIPES.get(work["recipe"]["name"], lambda p: (1, 1))(params)
        epochs = int(params.get("epochs", 1))
        return items * epochs * counts[0], items * epochs * counts[1]
    return 0, 0


def _plugin(work: Mapping[str, Any], kind: str, name: str) -> Any:
    return plugins.load(kind, name, tuple(work.get("plugins", ())), where="estimate")


def _fixed_passes(
    work: Mapping[str, Any], params: Mapping[str, Any], side: int | None
) -> int | None:
    """What a certifier says one certificate costs; None where samples say it."""
    if "name" not in work["defense"]:
        return None
    told = getattr(_plugin(work, "certifier", work["defense"]["name"]), "forward_passes", None)
    return int(told(params, side or SIDE)) if told else None


def _attack_passes(work: Mapping[str, Any], side: int | None = None) -> tuple[int, int]:
    """Forward and backward passes for one image that survives the whole attack."""
    given = work["attack"]["params"]
    defense = work["defense"].get("params", {})
    draws = sum(
        int(defense.get(name, 0))
        for name in ("attack_draws", "attack_masks", "attack_pairs", "attack_views")
    )
    draws = max(1, draws)
    predict = int(defense.get("predict_n", 0)) or _fixed_passes(work, defense, side) or 0
    module = _plugin(work, "attack", work["attack"]["name"])
    if hasattr(module, "passes"):
        params = parameters.build(module.Params, given, "estimate")
        made = module.passes(params, SURROGATES if predict else 0)
    else:
        made = _usual_passes(given)
    if not predict:
        return made.forward + BESIDE, made.backward
    looks = math.ceil(made.steps / int(given.get("judge_every", 1)))
    return made.forward * draws + (looks + 2) * predict, made.backward * draws


def _usual_passes(params: Mapping[str, Any]) -> Passes:
    """Of an attack that does not say: gradient steps by the customary names of parameters."""
    steps = int(params.get("steps", 100)) * int(params.get("restarts", 1))
    return Passes.climb(steps, int(params.get("eot", 1)))
