"""Balls and boxes: projection, random starts, the final check, storage in 8 bits.

Images are float32 [N, C, H, W] in [0, 1]; ``norm`` is "linf" or "l2"; radii are in the same units.
"""

from __future__ import annotations

import numpy as np
import torch

from certbench.attacks import noise

#: Guard of all divisions by a norm (Croce and Hein 2020, reference implementation).
TINY = 1e-12


class GeometryError(RuntimeError):
    """An attack returned a point outside the ball, outside the box, or not finite: a bug."""


def per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N] as [N, 1, 1, 1], to broadcast against ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def replace_rows(old: torch.Tensor, mask: torch.Tensor, new: torch.Tensor) -> None:
    """Overwrite the images of ``old`` [N, ...] by those of ``new`` where ``mask`` [N] says so.

    On the CPU only the chosen images are moved; on a GPU finding them would wait for the device.
    """
    if old.is_cuda:
        torch.where(per_image(mask, old), new, old, out=old)
        return
    chosen = mask.nonzero().flatten()
    if len(chosen):
        old.index_copy_(0, chosen, new.index_select(0, chosen))


def length(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """Norm of each image of ``delta``: [N]."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return (flat**2).sum(-1).sqrt()


def unit(delta: torch.Tensor, norm: str) -> torch.Tensor:
    """``delta`` divided by its norm, image by image; zero stays zero."""
    return delta / (per_image(length(delta, norm), delta) + TINY)


def project(point: torch.Tensor, x: torch.Tensor, norm: str, epsilon: float) -> torch.Tensor:
    """The nearest point of ball and box (Linf), or a feasible point close to it (L2).

    In L2 the perturbation is shortened to ``epsilon`` and then clamped to the box, which cannot
    lengthen it because ``x`` lies in the box.

    Args:
        point: float32 [N, C, H, W].
        x: Centres, in [0, 1].
        norm: "linf" or "l2".
        epsilon: Radius.
    """
    if norm == "linf":
        return torch.min(torch.max(point, x - epsilon), x + epsilon).clamp(0.0, 1.0)
    delta = point - x
    size = per_image(length(delta, norm), delta)
    return (x + delta / (size + TINY) * size.clamp(max=epsilon)).clamp(0.0, 1.0)


def random_start(
    x: torch.Tensor,
    norm: str,
    epsilon: float,
    seeds: np.ndarray,
    purpose: str,
    counters: tuple[int, ...],
    boundary: bool,
) -> torch.Tensor:
    """A random point of the ball, clamped to the box.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
        norm: "linf" or "l2".
        epsilon: Radius.
        seeds: int64 [N], one per image.
        purpose: Name of the noise stream.
        counters: Restart and target rank.
        boundary: Linf only: stretch the noise until one coordinate touches the cube's boundary
            (as APGD does); otherwise uniform in the cube (Madry et al. 2018). In L2 the start is a
            Gaussian direction of length ``epsilon`` either way.
    """
    shape = tuple(x.shape[1:])
    if norm == "linf":
        drawn = 2 * noise.uniform(seeds, purpose, counters, shape) - 1
        if boundary:
            drawn = unit(drawn, norm)
    else:
        drawn = unit(noise.normal(seeds, purpose, counters, shape), norm)
    return (x + epsilon * drawn.to(x.device)).clamp(0.0, 1.0)


def tolerance(epsilon: float) -> float:
    """How far beyond the radius a float32 perturbation may measure."""
    return epsilon * 1e-5 + 1e-6


def feasible(x_adv: torch.Tensor, x: torch.Tensor, norm: str, epsilon: float) -> torch.Tensor:
    """Whether each image is finite and in box and ball, up to :func:`tolerance`: bool [N]."""
    flat = x_adv.flatten(1)
    finite = torch.isfinite(flat).all(1)
    box = ((flat >= 0) & (flat <= 1)).all(1)
    near = length(x_adv.double() - x.double(), norm) <= epsilon + tolerance(epsilon)
    return finite & box & near


def require_feasible(
    x_adv: torch.Tensor, x: torch.Tensor, norm: str, epsilon: float, items: np.ndarray
) -> None:
    """Check the final points of an attack.

    Raises:
        GeometryError: A point is not feasible; names the first items.
    """
    bad = (~feasible(x_adv, x, norm, epsilon)).nonzero().flatten().tolist()
    if bad:
        sizes = length(x_adv[bad].double() - x[bad].double(), norm).tolist()
        named = ", ".join(
            f"item {items[i]} ({norm} {size:.6g})"
            for i, size in list(zip(bad, sizes, strict=True))[:5]
        )
        raise GeometryError(
            f"{len(bad)} adversarial points leave the {norm} ball of radius {epsilon:g} or the "
            f"box [0, 1]: {named}"
        )


def quantise(
    x_adv: torch.Tensor, x: torch.Tensor, norm: str, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The points as 8-bit images, with rounding held back at the ball's boundary.

    In Linf each value is rounded and then moved to the nearest of the 8-bit values inside
    [x - epsilon, x + epsilon]. In L2, and where no 8-bit value lies in the interval, the rounded
    point may leave the ball, which the second result tells.

    Args:
        x_adv: float32 [N, C, H, W] in [0, 1].
        x: Centres.
        norm: "linf" or "l2".
        epsilon: Radius.

    Returns:
        uint8 [N, C, H, W], and bool [N]: whether the 8-bit image is inside the ball.
    """
    levels = torch.round(255.0 * x_adv.double())
    if norm == "linf":
        # Half the tolerance of the check, so that what is kept here also passes it.
        slack = 255.0 * 0.5 * tolerance(epsilon)
        low = torch.ceil(255.0 * (x.double() - epsilon) - slack)
        high = torch.floor(255.0 * (x.double() + epsilon) + slack)
        levels = torch.min(torch.max(levels, low), high)
    levels = levels.clamp(0, 255)
    stored = levels.to(torch.uint8)
    return stored, feasible((stored.double() / 255.0).float(), x, norm, epsilon)
