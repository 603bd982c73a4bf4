"""What a reader must know before believing a number, and what each metric means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from certbench.figures import wording
from certbench.report import crosstable, details
from certbench.report.numbers import Numbers, defended

if TYPE_CHECKING:
    from certbench.report.sources import Sources

SMALL = 1000
"""Fewer images than this get a remark on the standard error."""

NOTABLE_CAP_SHARE = 0.05

GLOSSARY = {
    "accuracy": "Share of images that the bare model classifies correctly.",
    "mIoU": "Mean over classes of the intersection over union (IoU) of labelled and predicted "
    "pixels, each summed over all images; classes that are neither labelled nor predicted are left "
    "out. Its interval is a bootstrap over images.",
    "pixels right": "Share of the labelled pixels whose class a segmentation model tells.",
    "certified accuracy": "Share of all images on which the defended classifier is right and "
    "certified at least to a radius; abstentions count as failures.",
    "certified accuracy, surely": "Certified accuracy less the largest number of certificates that "
    "may fail by chance (binomial, at level ρ), as a share.",
    "certified at a threat": "The same for a threat model: radii are converted to its norm first, "
    "conservatively.",
    "average certified radius (ACR)": "Mean over all images of the radius where the answer is "
    "right, 0 elsewhere.",
    "abstain rate": "Share of images without an answer, because no class is ahead significantly.",
    "cap share": "Share of certificates with unanimous votes: more samples would give a larger "
    "radius.",
    "pA": "Lower confidence bound of the probability that the model, under noise, gives the top "
    "class; certificates need more than one half, unless the runner-up is bounded on its own.",
    "robust accuracy": "Share of images, clean errors included, that stay right under an attack; "
    "abstaining counts as failing. Only an upper bound: a better attack may leave less.",
    "not fooled": "The same, with abstaining counted as safe.",
    "proven": "Certified at the attack's budget; the attack failed, as it must.",
    "refuted": "Not certified at the budget, and the attack found an error.",
    "unknown": "Neither certified at the budget nor broken: the truth lies between.",
    "outside": "The attack is of another kind than the certificate speaks of (a ball, a patch): "
    "nothing is compared.",
    "violation": "The attack found an error inside the certified region. At most a share α of "
    "certificates may fail; more is a bug in the certificate, the attack or the units.",
    "gap": "Share of unknown images: robust accuracy less certified accuracy at the same budget.",
    "unsettled share": "Unknown images as a share of those not proven.",
    "mCE": "Mean corruption error: errors at all severities of a type over those of a bare "
    "reference model, in percent, averaged over the types of a complete set (Hendrycks and "
    "Dietterich, ICLR 2019). Relative mCE takes the errors that corruption adds.",
    "rPC": "Relative performance under corruption: the mean over types and severities (mPC) as a "
    "share of the clean images' value.",
    "95% interval": "Exact binomial (Clopper-Pearson) interval over the choice of images, not over "
    "training.",
    "passes": "Forward passes of the model for one certificate; the bare model answers with one.",
}


def build(sources: Sources, numbers: Numbers) -> list[str]:
    """Warnings that apply to these results, most important first."""
    made = []
    for place in numbers.places:
        sizes = {
            value.n
            for pair in numbers.pairs[place]
            for metric in ("accuracy", "certified_accuracy")
            for value in numbers.over(metric, place, pair).values()
        }
        if sizes and min(sizes) < SMALL:
            n = min(sizes)
            error = wording.standard_error(n)
            made.append(
                f"{place[0]}: {wording.plural(n, 'image')} only. The standard error of a share "
                f"near one half is {wording.points(error)}; differences below about "
                f"{wording.points(2 * 2**0.5 * error, 0)} between unpaired shares mean nothing."
            )
    made += _capped(sources, numbers)
    pairs = [pair for place in numbers.places for pair in numbers.pairs[place]]
    used = crosstable.ordered(list(dict.fromkeys(pairs)), sources.config)
    made += unlike_noise(sources.config, used)
    made += told_the_labels(sources.config, used)
    if sources.reported["metric"].eq("acr").any():
        made.append(
            "The average certified radius grows with the number of samples and is dominated by "
            "easy images (Sun et al., arXiv 2410.06895): compare it only at equal budgets, and "
            "read it beside the quantiles of pA and the cap share."
        )
    if numbers.attacks:
        made.append(
            "Robust accuracy under attack is an upper bound: it says what these attacks with these "
            "budgets did not find."
        )
    alarms = [check for check in details.checks(sources) if check["alarm"]]
    if alarms:
        attacks = wording.listed(list(dict.fromkeys(str(check["attack"]) for check in alarms)))
        made.append(
            f"{wording.plural(len(alarms), 'check')} of the evaluation with {attacks} raised an "
            "alarm (see the attacks): what these attacks leave is likely too high."
        )
    commits = {footer.get("commit") for footer in sources.footers}
    if len(commits) > 1:
        made.append(
            f"The results were made at {len(commits)} different commits (see provenance): parts "
            "that did not change were not made again."
        )
    numerics = {
        footer["work"]["numerics"] for footer in sources.footers if "numerics" in footer["work"]
    }
    if "fast" in numerics:
        made.append(
            "Numerics are fast: up to one in ten thousand votes may differ from exact arithmetic. "
            "A certificate holds for the function as evaluated."
        )
    return made


def unlike_noise(config: Mapping[str, Any], pairs: list[tuple[str, str]]) -> list[str]:
    """Smoothed models that learned another noise than the one they are smoothed with.

    Args:
        config: The configuration.
        pairs: Models with their defences.
    """
    made = []
    for model, defense in pairs:
        smoothed = config["defenses"].get(defense, {})
        learned = _learned_noise(config["models"].get(model, {}))
        if smoothed.get("type") not in ("randomized_smoothing", "sequential_smoothing"):
            continue
        sigma = float(smoothed["sigma"])
        if learned is None or learned == sigma:
            continue
        how = f"noise of σ = {learned:g}" if learned else "no noise"
        made.append(
            f"{wording.series(model, defense)}: the model learned with {how} and is smoothed with "
            f"σ = {sigma:g}. Certificates get rare and small where the two differ."
        )
    return made


def _learned_noise(model: Mapping[str, Any]) -> float | None:
    """Noise level of a model's training; None where the configuration does not tell."""
    recipe = model.get("recipe") or {}
    builder = model.get("builder") or {}
    if builder.get("type") == "denoised":
        return float(builder["sigma"])
    if "sigma" in recipe:
        return float(recipe["sigma"])
    return 0.0 if recipe.get("type") == "standard" else None


def told_the_labels(config: Mapping[str, Any], pairs: list[tuple[str, str]]) -> list[str]:
    """Defences whose certificates test the label, which a classifier in use does not know."""
    used = dict.fromkeys(defense for _, defense in pairs)
    told = [name for name in used if config["defenses"].get(name, {}).get("selection") == "label"]
    if not told:
        return []
    return [
        f"{wording.listed(told)}: the certificates were told the labels (selection: label). They "
        "are for evaluation; a classifier in use cannot give them."
    ]


def _capped(sources: Sources, numbers: Numbers) -> list[str]:
    made = []
    for place in numbers.places:
        for pair in crosstable.ordered(numbers.pairs[place], sources.config):
            share = numbers.get("cap_share", place, pair) if defended(pair) else None
            if share is not None and share.value >= NOTABLE_CAP_SHARE:
                made.append(
                    f"{wording.series(*pair)} on {place[0]}: {share.percent} of the certificates "
                    "are limited by the sample budget (all votes agree). Their radii, and "
                    "certified accuracy near the largest radius, would grow with more samples."
                )
    return made
