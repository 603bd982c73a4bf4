"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search with scores only.

Each query changes a square window of the best perturbation so far and is kept where the margin of
the true class falls. Windows and signs belong to the image, unlike in the authors' code, which
draws one window for the whole batch (and never the last window position; here it is drawn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from certbench.attacks import ball
from certbench.attacks.outcome import COLUMNS
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.outcome import AttackOutcome, Ledger
    from certbench.attacks.protocol import Work
    from certbench.attacks.target import Target

version = 2

columns: dict[str, str] = dict(COLUMNS)

#: Queries whose random numbers are drawn together.
_BLOCK = 250

#: After how many queries the share of pixels in a window is divided by 2, 4, 8, ...
_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Params(ball.Ball):
    """Parameters of Square."""

    queries: int = param(5000, help="queries per restart", minimum=1)
    p_init: float = param(0.8, help="share of pixels in the first windows", above=0, maximum=1)
    restarts: int = param(1, help="runs, each on the images still correct", minimum=1)
    rescale_schedule: bool = param(
        False, help="stretch the schedule of window sizes to the number of queries"
    )
    judge_every: int = param(
        100, help="queries between calls of a prediction rule that is not the argmax", minimum=1
    )
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")


def threat(params: Params) -> dict[str, Any]:
    """The threat model of the attack."""
    return ball.threat(params)


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`."""
    from certbench.attacks import shard

    params = work.params
    step = shard.Step("square", params, run, gradients=False)
    return shard.attack_shard(work, [step])


def window_share(query: int, params: Params) -> float:
    """Share of the pixels in the window of a query (paper, section 4.1, halved at fixed queries).

    Args:
        query: Number of the query, from 0.
        params: Parameters.
    """
    if params.rescale_schedule:
        query = int(query / params.queries * 10000)
    return params.p_init / 2 ** sum(query > limit for limit in _SCHEDULE)


def window_side(query: int, params: Params, height: int, width: int) -> int:
    """Side of the window of a query in pixels; odd and at least 3 in L2, where it fits."""
    side = max(round(math.sqrt(window_share(query, params) * height * width)), 1)
    if params.norm == "l2":
        side = max(side, 3)
        side += 1 - side % 2
    return min(side, height, width)


def run(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: Params, seeds: np.ndarray
) -> AttackOutcome:
    """Square on one batch of correctly classified images.

    Args:
        target: What is attacked; only its scores and its judge are used.
        x: float32 [N, C, H, W] in [0, 1].
        y: int64 [N] labels.
        params: Parameters.
        seeds: int64 [N], one per image.

    Returns:
        The first point with margin 0 or less of each image; an exact tie that the argmax resolves
        to the true label ends the search without success. ``iterations_to_success`` counts
        queries after the start.
    """
    from certbench.attacks.outcome import Ledger

    target.bind(x)
    ledger = Ledger(x)
    for restart in range(params.restarts):
        rows = ledger.open_rows()
        if len(rows):
            _search(target, x, y, params, seeds, rows, restart, ledger)
    return target.outcome(ledger)


def _search(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    params: Params,
    seeds: np.ndarray,
    rows: torch.Tensor,
    restart: int,
    ledger: Ledger,
) -> None:
    import torch

    from certbench.attacks import noise
    from certbench.attacks.geometry import per_image

    x, y, own = x[rows], y[rows], seeds[rows.cpu().numpy()]
    channels, height, width = x.shape[1:]
    propose = _propose_linf if params.norm == "linf" else _propose_l2
    numbers = (2 if params.norm == "linf" else 5) + channels
    best = _start(x, params, own, restart)
    least = torch.full((len(x),), torch.inf, device=x.device)
    drawn = None
    for query in range(-1, params.queries):
        if query < 0:
            candidate = best
        else:
            if query % _BLOCK == 0:
                shape = (min(_BLOCK, params.queries - query), numbers)
                counters = (restart, query // _BLOCK)
                drawn = noise.uniform(own, "square.window", counters, shape).to(x.device)
            assert drawn is not None
            side = window_side(query, params, height, width)
            candidate = propose(best, x, side, drawn[:, query % _BLOCK], params.epsilon)
        logits = target.scores(candidate, rows)
        margins = target.margin(logits, y)
        better = margins < least
        if target.judge is None:
            better |= margins <= 0
        best = torch.where(per_image(better, best), candidate, best)
        least = torch.where(better, margins, least)
        last = query == params.queries - 1
        if target.judge is None:
            done = margins <= 0
            fresh = done & target.is_broken(logits.argmax(1), y)
            ledger.record(rows, fresh, candidate, margins, query + 1, restart)
        else:
            fresh = done = target.broken_at(best, y, rows, logits, query + 1, last)
            ledger.record(rows, fresh, best, least, query + 1, restart)
        if last or bool(done.any()):
            ledger.lower_margin(rows, torch.where(fresh, torch.inf, least))
            keep = (~done).nonzero().flatten()
            if not len(keep):
                return
            rows, x, y, best, least = (part[keep] for part in (rows, x, y, best, least))
            own = own[keep.cpu().numpy()]
            drawn = drawn[keep] if drawn is not None else None


def _start(x: torch.Tensor, params: Params, seeds: np.ndarray, restart: int) -> torch.Tensor:
    """Column stripes (Linf), or a grid of signed pyramids scaled to epsilon (L2)."""
    import torch

    from certbench.attacks import noise
    from certbench.attacks.geometry import unit

    count, (channels, height, width) = len(x), x.shape[1:]
    counters = (restart,)
    if params.norm == "linf":
        drawn = noise.uniform(seeds, "square.stripes", counters, (channels, 1, width))
        return (x + params.epsilon * _sign(drawn).to(x.device)).clamp(0.0, 1.0)
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    top, left = (height - down * side) // 2, (width - across * side) // 2
    drawn = noise.uniform(seeds, "square.tiles", counters, (1 + channels, down, across))
    drawn = drawn.to(x.device)
    pattern = _pyramid(side, x.device)
    flipped = (drawn[:, :1] > 0.5)[..., None, None]
    tiles = torch.where(flipped, pattern.T, pattern) * _sign(drawn[:, 1:])[..., None, None]
    grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, down * side, across * side)
    delta = torch.zeros_like(x)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return (x + params.epsilon * unit(delta, "l2")).clamp(0.0, 1.0)


def _propose_linf(
    best: torch.Tensor, x: torch.Tensor, side: int, drawn: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Move one window of each image to x + epsilon or x - epsilon, channel by channel.

    Args:
        best: float32 [n, C, H, W], best points so far.
        x: Clean images.
        side: Side of the window.
        drawn: float32 [n, 2 + C] uniform: corner, one sign per channel.
        epsilon: Radius.
    """
    import torch

    from certbench.attacks.geometry import project

    window = _window(x, _corner(drawn[:, :2], side, x), side)
    signs = _sign(drawn[:, 2:])[:, :, None, None]
    moved = project(best + 2.0 * epsilon * signs, x, "linf", epsilon)
    return torch.where(window, moved, best)


def _propose_l2(
    best: torch.Tensor, x: torch.Tensor, side: int, drawn: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Move the perturbation of a second window into a first one, reshaped to a signed pyramid.

    Args:
        best: float32 [n, C, H, W], best points so far.
        x: Clean images.
        side: Side of both windows.
        drawn: float32 [n, 5 + C] uniform: two corners, transposition, one sign per channel.
        epsilon: Radius.
    """
    import torch

    from certbench.attacks.geometry import length, per_image, unit

    delta = best - x
    count, channels = delta.shape[:2]
    first, second = _corner(drawn[:, :2], side, x), _corner(drawn[:, 2:4], side, x)
    inside, emptied = _window(x, first, side), _window(x, second, side)
    reserve = (epsilon**2 - length(delta, "l2") ** 2).clamp_min(0) / channels
    held = ((delta * (inside | emptied)) ** 2).sum((2, 3), keepdim=True)
    pattern = _pyramid(side, x.device)
    pattern = torch.where((drawn[:, 4] > 0.5)[:, None, None], pattern.T, pattern).unsqueeze(1)
    ahead = torch.arange(side, device=x.device)
    place = (
        torch.arange(count, device=x.device)[:, None, None, None],
        torch.arange(channels, device=x.device)[None, :, None, None],
        (first[:, :1] + ahead)[:, None, :, None],
        (first[:, 1:] + ahead)[:, None, None, :],
    )
    old = delta[place]
    old = old / (1e-12 + (old**2).sum((2, 3), keepdim=True).sqrt())
    content = pattern * _sign(drawn[:, 5:])[:, :, None, None] + old
    content = content / (1e-12 + (content**2).sum((2, 3), keepdim=True).sqrt())
    content = content * (per_image(reserve, x) + held).sqrt()
    delta = torch.where(emptied, 0.0, delta)
    delta[place] = content
    return (x + epsilon * unit(delta, "l2")).clamp(0.0, 1.0)


def _corner(drawn: torch.Tensor, side: int, x: torch.Tensor) -> torch.Tensor:
    """Upper left corners, uniform over all positions of the window: int64 [n, 2]."""
    import torch

    places = torch.tensor([x.shape[2] - side + 1, x.shape[3] - side + 1], device=x.device)
    return torch.minimum((drawn * places).long(), places - 1)


def _window(x: torch.Tensor, corner: torch.Tensor, side: int) -> torch.Tensor:
    """The window of each image: bool [n, 1, H, W]."""
    import torch

    down = torch.arange(x.shape[2], device=x.device) - corner[:, :1]
    across = torch.arange(x.shape[3], device=x.device) - corner[:, 1:]
    rows, cols = ((offset >= 0) & (offset < side) for offset in (down, across))
    return (rows[:, :, None] & cols[:, None, :]).unsqueeze(1)


def _sign(drawn: torch.Tensor) -> torch.Tensor:
    """-1 or 1 with equal chance from uniform numbers."""
    return (drawn >= 0.5).to(drawn.dtype) * 2 - 1


@cache
def _pyramid(side: int, device: torch.device) -> torch.Tensor:
    """The L2 pattern (paper, section 4.3): two pyramids of opposite sign, one above the other."""
    import numpy as np
    import torch

    if side == 1:
        return torch.ones(1, 1, device=device)
    upper, lower = side // 2, side - side // 2
    pattern = np.concatenate([_rectangles(upper, side), -_rectangles(lower, side)])
    pattern /= np.sqrt((pattern**2).sum())
    return torch.from_numpy(pattern.astype(np.float32)).to(device)


def _rectangles(height: int, width: int) -> np.ndarray:
    """Sum over k of 1/(k + 1)^2 on centred rectangles growing by one pixel per side, length 1."""
    import numpy as np

    total = np.zeros((height, width))
    for k in range(max(height, width) // 2 + 1):
        top, left = height // 2 - k, width // 2 - k
        total[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
    return total / np.sqrt((total**2).sum())
