"""Smallest displacement of a point onto a hyperplane inside the box [0, 1]^d.

The subproblem of FAB (Croce and Hein 2020, arXiv 1907.02044, section 2.2), solved in closed form
by sorting. In both norms the optimum moves every coordinate towards the plane until it hits its
wall, ``|d_i| = |w_i|^p min(alpha, r_i)`` with one common ``alpha``, so one root search serves both.
"""

from __future__ import annotations

import numpy as np
import torch

#: Coordinates with a smaller weight do not move in L2 (their break point would overflow).
_LEAST_WEIGHT = 1e-8


def displacement(t: torch.Tensor, w: torch.Tensor, b: torch.Tensor, norm: str) -> torch.Tensor:
    """Minimise the norm of d subject to <w, t + d> = b and 0 <= t + d <= 1.

    Args:
        t: float32 [n, d], points in the box.
        w: float32 [n, d], normals.
        b: float32 [n], offsets.
        norm: "linf" or "l2".

    Returns:
        float32 [n, d]; where the box does not reach the plane, the displacement to the corner
        closest to it.
    """
    excess = (w * t).sum(1) - b
    # Towards the plane each coordinate moves against the sign of its (flipped) weight.
    w = w * torch.where(excess >= 0, 1.0, -1.0).to(w.dtype).unsqueeze(1)
    size = w.abs()
    # Masks are numbers here: on the CPU that is several times faster than torch.where.
    wall = w.clone().le_(0)  # 1 where the coordinate moves up, to the wall at 1
    room = (t - wall).abs_()
    if norm == "linf":
        mobile = size.sign()
        weight, stop = size, room * mobile
    else:
        mobile = size.clone().ge_(_LEAST_WEIGHT)
        weight = size**2 * mobile
        stop = room / size.clamp_min(_LEAST_WEIGHT) * mobile
    moved = torch.minimum(stop, _level(weight, stop, excess.abs()).unsqueeze(1))
    if norm == "l2":
        # Rounding of stop * size may pass the wall by one unit in the last place.
        moved = torch.minimum(moved.mul_(size), room)
    return moved.mul_(w.sign_().neg_())


def _level(weight: torch.Tensor, stop: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Solve sum_i weight_i min(alpha, stop_i) = wanted for alpha; infinite where out of reach.

    The sum is piecewise linear and rising in alpha; its values at the sorted stops locate the
    segment. Sums start at the largest stop, in the authors' order of operations: FAB's path can
    fork on the last bit, and so the published paths are followed.
    """
    total = (weight * stop).sum(1, keepdim=True)
    order = _descending(stop)
    stop, weight = stop.gather(1, order), weight.gather(1, order)
    slope = weight.cumsum(1)  # of the coordinates that still move beyond each stop
    filled = total - weight.mul_(stop).cumsum(1)  # by the coordinates at their stop
    wanted = wanted.unsqueeze(1)
    moving = (slope * stop).add_(filled).gt_(wanted)
    still_moving = moving.sum(1, keepdim=True).long()
    last = (still_moving - 1).clamp_min(0)
    least = torch.finfo(slope.dtype).tiny
    alpha = (wanted - filled.gather(1, last)) / slope.gather(1, last).clamp_min(least)
    return torch.where(still_moving == 0, torch.inf, alpha.clamp_min(0)).squeeze(1)


def _descending(values: torch.Tensor) -> torch.Tensor:
    """int64 [n, d]: the order in which each row falls."""
    if values.device.type == "cpu":
        # Six times faster than torch's sort of short rows.
        return torch.from_numpy(np.argsort(-values.numpy(), axis=1))
    return values.argsort(dim=1, descending=True)
