"""Smallest displacement of a point onto a hyperplane inside the box [0, 1]^d.

The subproblem of FAB (Croce and Hein 2020, arXiv 1907.02044, section 2.2), solved in closed form
by sorting. In both norms the optimum moves every coordinate towards the plane until it hits its
wall, ``|d_i| = |w_i|^p min(alpha, r_i)`` with one common ``alpha``, so one root search serves both.
"""

from __future__ import annotations

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
    w = torch.where((excess >= 0).unsqueeze(1), w, -w)
    excess = excess.abs()
    size = w.abs()
    room = torch.where(w > 0, t, 1 - t).clamp_min(0)
    if norm == "linf":
        mobile = size > 0
        weight, stop = size, torch.where(mobile, room, 0.0)
    else:
        mobile = size >= _LEAST_WEIGHT
        weight = torch.where(mobile, size**2, 0.0)
        stop = torch.where(mobile, room / size.clamp_min(_LEAST_WEIGHT), 0.0)
    alpha = _level(weight, stop, excess)
    moved = torch.minimum(stop, alpha.unsqueeze(1))
    if norm == "l2":
        # Rounding of stop * size may pass the wall by one unit in the last place.
        moved = torch.minimum(moved * size, room)
    return torch.where(mobile, -w.sign() * moved, torch.zeros_like(t))


def _level(weight: torch.Tensor, stop: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Solve sum_i weight_i min(alpha, stop_i) = wanted for alpha; infinite where out of reach.

    The sum is piecewise linear and rising in alpha; its values at the sorted stops locate the
    segment. Sums start at the largest stop, in the authors' order of operations: FAB's path can
    fork on the last bit, and so the published paths are followed.
    """
    total = (weight * stop).sum(1, keepdim=True)
    stop, order = stop.sort(dim=1, descending=True)
    weight = weight.gather(1, order)
    slope = weight.cumsum(1)  # of the coordinates that still move beyond each stop
    filled = total - (weight * stop).cumsum(1)  # by the coordinates at their stop
    wanted = wanted.unsqueeze(1)
    still_moving = ((filled + slope * stop) > wanted).sum(1, keepdim=True)
    last = (still_moving - 1).clamp_min(0)
    least = torch.finfo(slope.dtype).tiny
    alpha = (wanted - filled.gather(1, last)) / slope.gather(1, last).clamp_min(least)
    return torch.where(still_moving == 0, torch.inf, alpha.clamp_min(0)).squeeze(1)
