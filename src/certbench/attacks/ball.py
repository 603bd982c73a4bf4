"""The ball that an image-wide attack may move an image in, as parameters and as a threat model.

Torch-free, because planning reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from certbench.errors import CertbenchError
from certbench.params import param

NORMS = ("linf", "l2")

#: Largest radius taken for plausible. Beyond it the value was probably meant in 1/255: an Linf
#: ball of radius 1 already holds every image, and published L2 radii end at about 5.
LARGEST = {"linf": 1.0, "l2": 10.0}


@dataclass(frozen=True)
class Ball:
    """Norm and radius; every attack's parameters begin with these two."""

    epsilon: float = param(
        help="radius of the ball around each image", unit="pixel values in [0, 1]", above=0
    )
    norm: str = param("linf", help="norm of the perturbation", choices=NORMS)

    def __post_init__(self) -> None:
        limit = LARGEST.get(self.norm)
        if limit is not None and self.epsilon > limit:
            raise CertbenchError(
                f"is {self.epsilon:g}, but pixel values lie in [0, 1]",
                where="epsilon",
                remedy=f"did you mean {self.epsilon:g}/255 = {self.epsilon / 255:.6g}? "
                f"the largest radius in {self.norm} is {limit:g}",
            )


def threat(ball: Ball) -> dict[str, Any]:
    """The fields of the threat model of an attack inside ``ball``."""
    return {
        "kind": "lp",
        "norm": ball.norm,
        "size": ball.epsilon,
        "space": "pixel01",
        "unit": "item",
        "guarantee": "none",
        "alpha": None,
    }
