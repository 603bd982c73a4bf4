"""How smoothed classifiers are attacked: the parameters, the objective and the judge they share.

An attack climbs the logarithm of the mean probability over fixed noise draws (Salman et al.,
NeurIPS 2019). Its success is judged by PREDICT with fresh noise, never by one noisy pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    from certbench.certify.protocol import Surface, SurfaceWork


@dataclass(frozen=True, kw_only=True)
class PredictorParams:
    """The prediction rule that judges attacks, and the objective that attacks climb."""

    predict_n: int = param(
        1000, help="samples of the predictor that judges attacks", unit="samples", minimum=1
    )
    predict_alpha: float = param(0.001, help="level of that predictor", above=0, below=1)
    attack_draws: int = param(
        16, help="noise draws of the objective that attacks climb", unit="samples", minimum=1
    )
    attack_gradient: str = param(
        "autograd",
        help="score: estimate gradients from probabilities alone, for a model that has none of "
        "use; needs attack_draws of 1000 or more",
        choices=("autograd", "score"),
    )


#: Fewest draws of a gradient estimated from probabilities: its error falls with their root.
LEAST_SCORE_DRAWS = 1000


def check_predictor(params: PredictorParams, where: str) -> None:
    """Refuse a predictor that can never answer, and too few draws for estimated gradients.

    Raises:
        CertbenchError: Says the smallest sufficient number of samples.
    """
    from certbench.certify.attainable import minimum_predict_samples

    least = minimum_predict_samples(params.predict_alpha)
    if params.predict_n < least:
        raise CertbenchError(
            f"{params.predict_n} samples can never answer at alpha = {params.predict_alpha}",
            where=f"{where}.predict_n",
            remedy=f"use predict_n >= {least}",
        )
    if params.attack_gradient == "score" and params.attack_draws < LEAST_SCORE_DRAWS:
        raise CertbenchError(
            f"{params.attack_draws} draws are too few to estimate a gradient from probabilities",
            where=f"{where}.attack_draws",
            remedy=f"use {LEAST_SCORE_DRAWS} or more, or attack_gradient: autograd",
        )


def attack_params(
    sigma: float, kind: str, params: PredictorParams, precision: str = "float32"
) -> dict[str, Any]:
    """What an attack on a smoothed classifier depends on: not alpha, bound or budget."""
    return {
        "sigma": sigma,
        "noise": kind,
        "precision": precision,
        "predict_n": params.predict_n,
        "predict_alpha": params.predict_alpha,
        "attack_draws": params.attack_draws,
        "attack_gradient": params.attack_gradient,
    }


def surface(work: SurfaceWork) -> Surface:
    """Objective and judges of a smoothed classifier.

    Args:
        work: Its ``params`` are those of :func:`attack_params`.
    """
    from certbench.attacks.smoothed import SmoothedLogits
    from certbench.certify import lattice, votes
    from certbench.certify import noise as noises
    from certbench.certify.protocol import Surface
    from certbench.certify.sampling import Noise, for_inference

    sigma, kind = float(work.params["sigma"]), str(work.params.get("noise", "gaussian"))
    objective = _uniform_objective() if kind == "uniform" else SmoothedLogits
    precision = str(work.params.get("precision", "float32"))
    network, _ = for_inference(work.network, precision=precision)
    logits = objective(
        network,
        sigma,
        int(work.params["attack_draws"]),
        seed64=work.seed64,
        batch_size=work.batch_size,
        gradient=str(work.params.get("attack_gradient", "autograd")),
    )
    if kind == "lattice":
        # The points of an attack are no 8-bit images, so the rule is evaluated as it is defined
        # for real values: Gaussian noise, then Q, which is part of the classifier.
        network, kind = lattice.Rounded(network, sigma), "gaussian"
    noise = Noise(work.seed64, work.noise_backend, kind)
    n, alpha = int(work.params["predict_n"]), float(work.params["predict_alpha"])
    return Surface(
        logits=logits,
        judge=votes.Judge(work, sigma, noise, n, alpha, network=network),
        confirm=votes.Judge(work, sigma, noise, n, alpha, stream=noises.AUDIT, network=network),
        attacked="smoothed",
        judged_by=f"PREDICT, n = {n}, alpha = {alpha:g}",
        objectives={"base": work.network, "smoothed": logits},
    )


def _uniform_objective() -> Any:
    import torch

    from certbench.attacks.smoothed import SmoothedLogits

    class UniformSmoothedLogits(SmoothedLogits):
        """The same objective under uniform noise on [-sigma, sigma]."""

        def _draws_of(self, x, items):
            # The distribution function makes uniform numbers of normal ones.
            return 2 * torch.special.ndtr(super()._draws_of(x, items)) - 1

    return UniformSmoothedLogits
