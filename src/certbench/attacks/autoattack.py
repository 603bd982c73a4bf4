"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690): a fixed suite of attacks, first breaker wins.

``standard`` is the suite of published leaderboards: APGD-CE, targeted APGD, targeted FAB and
Square, each on the images that the ones before left correct.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS, FLAGS
from certbench.attacks.protocol import Passes, Work
from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.attacks.shard import Step

version = 2

EXTRA: dict[str, str] = {"distance": "float64"}

columns: dict[str, str] = {**COLUMNS, **EXTRA}

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")

SUITES: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}

#: What the named suites change; everything else has the defaults below.
_SUITE_VALUES: dict[str, dict[str, int]] = {
    "standard": {},
    "plus": {"restarts": 5},
    "rand": {"eot": 20},
}

_CUSTOM = ("attacks", "steps", "restarts", "targets", "queries", "eot", "allow_short")


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of AutoAttack; those from ``attacks`` on need ``suite: custom``."""

    suite: str = param(
        "standard", help="which attacks", choices=("standard", "plus", "rand", "custom")
    )
    individual: bool = param(False, help="every attack sees every correct image, for ablations")
    attacks: tuple[str, ...] = param((), help="attacks in order", choices=ATTACKS)
    steps: int = param(100, help="steps of APGD and FAB", minimum=1)
    restarts: int = param(1, help="restarts of apgd-ce, apgd-dlr and fab", minimum=1)
    targets: int = param(9, help="target classes of apgd-t and fab-t", minimum=1)
    queries: int = param(5000, help="queries of square", minimum=1)
    eot: int = param(1, help="passes to average per APGD step", minimum=1)
    allow_short: bool = param(False, help="allow fewer than 50 steps, which are weak")
    judge_every: int = param(
        10, help="steps between calls of a prediction rule that is not the argmax", minimum=1
    )
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suite == "custom":
            if not self.attacks:
                raise CertbenchError(
                    "names no attacks", where="attacks", remedy=did_you_mean("", ATTACKS)
                )
            if len(set(self.attacks)) < len(self.attacks):
                raise CertbenchError("names an attack twice", where="attacks")
            climbs = any(name.startswith("apgd") for name in self.attacks)
            if self.steps < 50 and climbs and not self.allow_short:
                raise CertbenchError(
                    f"is {self.steps}; APGD halves its step almost at once in short runs",
                    where="steps",
                    remedy="use 100, or set allow_short: true",
                )
            return
        defaults = {f.name: f.default for f in fields(self)}
        for name in _CUSTOM:
            if getattr(self, name) != defaults[name]:
                raise CertbenchError(
                    f"is fixed by suite '{self.suite}'", where=name, remedy="set suite: custom"
                )


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives the whole suite."""
    total = Passes()
    for _, module, settings in members(params):
        total += module.passes(settings, surrogates)
    return total


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`.

    With 2 classes ``apgd-dlr`` is left out: its loss does not exist, and its replacement,
    cross-entropy, has run already.
    """
    from certbench.attacks import shard

    params = work.params
    steps = suite(params, work.num_classes)
    bits = FLAGS["loss_replaced"] if len(steps) < len(names(params)) else 0
    columns = shard.attack_shard(
        work,
        steps,
        EXTRA,
        individual=params.individual,
        randomised_ok=params.suite == "rand" or params.eot > 1,
        model_bits=bits,
    )
    return _flag_square(columns, [step.name for step in steps])


def names(params: Params) -> tuple[str, ...]:
    """The attacks of a suite in order."""
    return params.attacks if params.suite == "custom" else SUITES[params.suite]


def suite(params: Params, num_classes: int) -> list[Step]:
    """The attacks of a suite, ready to run.

    Args:
        params: Parameters of the suite.
        num_classes: K; with 2 there is no DLR loss.

    Raises:
        CertbenchError: Nothing is left to run.
    """
    from certbench.attacks.shard import Step

    made = [
        Step(name, settings, module.run, gradients=name != "square")
        for name, module, settings in members(params)
        if num_classes >= 3 or name != "apgd-dlr"
    ]
    if not made:
        raise CertbenchError(
            f"no attack is possible with {num_classes} classes",
            where="attacks",
            remedy="use apgd-ce, fab-t or square",
        )
    return made


def members(params: Params) -> list[tuple[str, ModuleType, Any]]:
    """The attacks of a suite in order: name, plug-in and parameters."""
    from certbench.attacks import apgd, fab, square

    value = {"restarts": params.restarts, "eot": params.eot, **_SUITE_VALUES.get(params.suite, {})}
    common: dict[str, Any] = {
        "epsilon": params.epsilon,
        "norm": params.norm,
        "abstain_breaks": params.abstain_breaks,
    }
    climbing = {**common, "judge_every": params.judge_every, "steps": params.steps}
    apgd_common = {**climbing, "eot": value["eot"], "allow_short": params.allow_short}
    made: list[tuple[str, ModuleType, Any]] = []
    for name in names(params):
        settings: Any
        if name == "apgd-t":
            settings = apgd.Params(loss="dlr-targeted", targets=params.targets, **apgd_common)
            made.append((name, apgd, settings))
        elif name in ("apgd-ce", "apgd-dlr"):
            loss = name.removeprefix("apgd-")
            settings = apgd.Params(loss=loss, restarts=value["restarts"], **apgd_common)
            made.append((name, apgd, settings))
        elif name == "fab-t":
            settings = fab.Params(targeted=True, targets=params.targets, **climbing)
            made.append((name, fab, settings))
        elif name == "fab":
            settings = fab.Params(targeted=False, restarts=value["restarts"], **climbing)
            made.append((name, fab, settings))
        else:
            settings = square.Params(queries=params.queries, **common)
            made.append((name, square, settings))
    return made


def _flag_square(columns: dict[str, np.ndarray], order: list[str]) -> dict[str, np.ndarray]:
    """Flag images that Square broke first although white-box attacks came before (check C4)."""
    import numpy as np

    white_before = "square" in order and order.index("square") > 0
    if white_before:
        hit = columns["first_breaking_attack"] == "square"
        text = columns["check_flags"].tolist()
        flagged = [
            ",".join(filter(None, [flags, "square_better"])) if broken else flags
            for flags, broken in zip(text, hit, strict=True)
        ]
        columns["check_flags"] = np.array(flagged, dtype=np.str_)
    return columns
