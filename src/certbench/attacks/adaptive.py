"""Every surrogate of a defence in turn, each on the images that the ones before left correct.

A certified rule (a vote, a double masking, a smoothed classifier) has no useful gradient, and no
single stand-in for it is strongest on every image (Tramer et al. 2020, arXiv 2002.08347). The
defence offers surrogates by name (:mod:`certbench.attacks.masked`,
:mod:`certbench.certify.smoothed_predictor`); this attack climbs each by PGD, and searches those
without gradients by Square. Success is decided by the certified rule alone. A bare model is its
own and only surrogate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS
from certbench.attacks.protocol import Passes, Work
from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.attacks.shard import Step

version = 1

columns: dict[str, str] = dict(COLUMNS)


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of the attack on every surrogate."""

    objectives: tuple[str, ...] = param(
        (), help="surrogates in order ([]: all that the defence offers); base: without the defence"
    )
    individual: bool = param(
        False, help="every surrogate sees every correct image, to compare them"
    )
    loss: str = param(
        "ce", help="loss of one pass, where the surrogate has none", choices=("ce", "dlr", "margin")
    )
    steps: int = param(40, help="gradient steps per restart", minimum=1)
    step_size: float = param(0.25, help="step length as a share of epsilon", above=0, maximum=2)
    restarts: int = param(2, help="runs per surrogate; targeted ones change the class", minimum=1)
    queries: int = param(500, help="queries on surrogates without gradients", minimum=1)
    judge_every: int = param(10, help="steps between calls of the certified rule", minimum=1)
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives every surrogate, and the search of one without gradients.

    Args:
        params: Parameters.
        surrogates: Surrogates that the defence offers at most; 0 without a defence.
    """
    count = len(params.objectives) or max(1, surrogates)
    climbs = Passes.climb(params.steps * params.restarts * count)
    return climbs + Passes.search(params.queries) if surrogates else climbs


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`.

    Raises:
        CertbenchError: A named surrogate is not offered.
    """
    from certbench.attacks import shard

    params = work.params
    steps = plan(work)
    if params.loss == "dlr":
        shard.require_classes(work, params.loss)
    return shard.attack_shard(work, steps, individual=params.individual)


def plan(work: Work) -> list[Step]:
    """One attack per surrogate, in order.

    Raises:
        CertbenchError: A named surrogate is not offered, or none is.
    """
    from certbench.attacks import pgd, shard, square

    params = work.params
    offered = shard.objectives_of(work)
    chosen = params.objectives or tuple(offered)
    for name in chosen:
        if name not in offered:
            raise CertbenchError(
                f"the target offers no surrogate '{name}'",
                where="attack: objectives",
                remedy=did_you_mean(name, offered),
            )
    if not chosen:
        raise CertbenchError("the target offers no surrogate", where="attack: objectives")
    common: dict[str, Any] = {
        "epsilon": params.epsilon,
        "norm": params.norm,
        "restarts": params.restarts,
        "abstain_breaks": params.abstain_breaks,
    }
    made = []
    for name in chosen:
        if getattr(offered[name], "searched", False):
            search = square.Params(
                queries=params.queries,
                rescale_schedule=True,
                judge_every=params.judge_every,
                **{**common, "restarts": 1},
            )
            step = shard.Step(f"square:{name}", search, square.run, False, name)
        else:
            climb = pgd.Params(
                steps=params.steps,
                step_size=params.step_size,
                loss=params.loss,
                schedule="stepped",
                judge_every=params.judge_every,
                **common,
            )
            step = shard.Step(f"pgd:{name}", climb, pgd.run, True, name)
        made.append(step)
    return made
