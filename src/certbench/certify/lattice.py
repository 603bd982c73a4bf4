"""Gaussian noise rounded to the pixel lattice k/255, drawn exactly: smoothing without float gaps.

Floating-point noise is not normal: its sums with pixels land on an uneven grid, and certificates
computed as if it were normal can be broken well inside their radius (Voracek and Hein, ICLR 2023).
The remedy smooths the classifier ``f(Q(.))``, where Q rounds every value to the nearest multiple of
1/255 (and clips far outside the pixel range). Under real Gaussian noise at an image whose values
are multiples of 1/255, ``Q(x + e)`` is the image plus independent integers J with

    P[J = j] = Phi((j + 1/2) / (255 sigma)) - Phi((j - 1/2) / (255 sigma))

which integer arithmetic draws: a 62-bit uniform integer is compared with the distribution
function's values, rounded to 62 bits. The certificate is about the smoothed ``f(Q(.))`` and about
every real perturbation of the image, with the usual l2 radius. What the rounding of thresholds
changes in the law is bounded (:func:`distance_from_law`) and taken off the bounds.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify import noise as noises
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

    from certbench.certify.sampling import Perturb

SCHEME = "lattice-v1"
LEVELS = 255
BITS = 62

# Elements drawn at a time: bounds the memory of 64-bit temporaries.
_CHUNK = 1 << 21


def clip_range(sigma: float) -> tuple[int, int]:
    """Levels that Q clips to: [-255 k, 255 (k + 1)] with k = max(1, floor(6 sigma))."""
    k = max(1, math.floor(6 * sigma))
    return -LEVELS * k, LEVELS * (k + 1)


def largest_step(sigma: float) -> int:
    """Largest integer that is drawn; beyond it Q clips, whatever the pixel was."""
    return clip_range(sigma)[1]


@lru_cache(maxsize=16)
def thresholds(sigma: float) -> np.ndarray:
    """Distribution function of J in units of 2^-62: int64 [2 J_max], of j = -J_max .. J_max - 1.

    Args:
        sigma: Noise level in pixel values of [0, 1], > 0.
    """
    reach = largest_step(sigma)
    # The lower half has full relative precision; the upper half follows from symmetry, because
    # the distribution function near 1 has none.
    lower = [int(_tail(j, sigma) * 2.0**BITS) for j in range(-reach, 0)]
    upper = [2**BITS - value for value in reversed(lower)]
    table = np.array(lower + upper, np.int64)
    table.setflags(write=False)
    return table


def _tail(j: int, sigma: float) -> float:
    """Phi((j + 1/2) / (255 sigma)) for j < 0."""
    return 0.5 * math.erfc(-(j + 0.5) / (LEVELS * sigma) / math.sqrt(2))


def distance_from_law(sigma: float, dimension: int) -> float:
    """Upper bound on the total variation between drawn and exact noise of a whole image.

    Every threshold may be off by its rounding to 62 bits and by the float64 complementary error
    function: relative 2^-52 times 4 for the function and 2 t^2 for the rounding of its argument t.

    Args:
        sigma: Noise level.
        dimension: Values of one image, C x H x W.
    """
    t = (np.arange(largest_step(sigma)) + 0.5) / (LEVELS * sigma)
    tails = np.array([_tail(-1 - j, sigma) for j in range(len(t))])
    error = tails * (4 + 2 * t**2) * 2.0**-52 + 2.0**-BITS
    return float(dimension * 2 * error.sum())


def levels_of(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as whole levels 0..255, int64.

    Raises:
        CertbenchError: A value is no multiple of 1/255 in float32.
    """
    import torch

    levels = torch.round(images * LEVELS)
    if images.numel() and not torch.equal((levels / LEVELS).float(), images.float()):
        raise CertbenchError(
            "values are not multiples of 1/255",
            where="images",
            remedy="lattice noise needs 8-bit images: use noise: gaussian for float variants",
        )
    return levels.long()


def steps(
    seed: int,
    stream: int,
    image_ids: torch.Tensor,
    samples: torch.Tensor,
    elements: int,
    table: torch.Tensor,
) -> torch.Tensor:
    """The integers J of each (image, sample) pair: int64 [B, elements].

    Two words of the counter ``(element // 2, sample, image_id, stream)`` make one 62-bit integer:
    the upper 30 bits of the first and the second.

    Args:
        seed: The noise seed, in [0, 2^64).
        stream: Stream constant of :mod:`certbench.certify.noise`.
        image_ids: int64 [B].
        samples: int64 [B].
        elements: Values of one image.
        table: :func:`thresholds`, on the device of the result.
    """
    import torch

    from certbench.certify._noise_torch import _philox

    blocks = torch.arange(-(-elements // 2), device=table.device)
    counter = [blocks, samples[:, None], image_ids[:, None], stream]
    words = _philox(counter, noises.round_keys(seed))
    uniform = torch.stack(
        [((words[0] >> 2) << 32) | words[1], ((words[2] >> 2) << 32) | words[3]], -1
    )
    uniform = uniform.view(len(image_ids), -1)[:, :elements].contiguous()
    # The number of thresholds <= U: P[J <= j] = P[U < T_j] = T_j / 2^62.
    return torch.searchsorted(table, uniform, right=True) - len(table) // 2


def perturbation(
    seed: int, sigma: float, stream: int, images: torch.Tensor, device: Any
) -> Perturb:
    """Q(x + e) of images with 8-bit values; see :data:`certbench.certify.sampling.Perturb`.

    Raises:
        CertbenchError: Images are not multiples of 1/255.
    """
    import torch

    levels = levels_of(images).to(device).flatten(1)
    table = torch.from_numpy(thresholds(sigma).copy()).to(device)
    low, high = clip_range(sigma)
    shape, elements = tuple(images.shape[1:]), levels.shape[1]
    rows = max(1, _CHUNK // elements)

    def perturb(slot, image_ids, samples, out):
        for first in range(0, len(slot), rows):
            part = slice(first, first + rows)
            drawn = steps(seed, stream, image_ids[part], samples[part], elements, table)
            noisy = (levels[slot[part]] + drawn).clamp_(low, high)
            out[part] = (noisy.float() / LEVELS).view(-1, *shape)

    return perturb


class Rounded:
    """The classifier f(Q(.)), for inputs that are not on the lattice (an attack's points).

    Args:
        model: float32 [N, C, H, W] -> logits [N, K].
        sigma: Noise level; decides where Q clips.
    """

    def __init__(self, model: Any, sigma: float):
        self.model = model
        self.low, self.high = clip_range(sigma)

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        """Logits of the rounded inputs."""
        import torch

        return self.model(torch.round(noisy * LEVELS).clamp_(self.low, self.high) / LEVELS)
