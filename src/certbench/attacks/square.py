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
from certbench.attacks.protocol import Passes, Work
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.outcome import AttackOutcome, Ledger
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


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives all queries."""
    return Passes.search(params.queries * params.restarts)


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

    x, y, own = x[rows], y[rows], seeds[rows.cpu().numpy()]
    moves_of = _LinfMoves if params.norm == "linf" else _L2Moves
    moves = moves_of(x, _start(x, params, own, restart), params, own, restart)
    least = torch.full((len(x),), torch.inf, device=x.device)
    for query in range(-1, params.queries):
        candidate = moves.best if query < 0 else moves.propose(query)
        logits = target.scores(candidate, rows)
        margins = target.margin(logits, y)
        # Images with a margin of 0 or less have left, so every success is an improvement.
        better = margins < least
        if query >= 0:
            moves.settle(better)
        least = least.minimum(margins)
        last = query == params.queries - 1
        if target.judge is None:
            done = margins <= 0
        else:
            done = target.broken_at(moves.best, y, rows, logits, query + 1, last)
        if last or bool(done.any()):
            fresh = done
            if target.judge is None:
                fresh = done & target.is_broken(logits.argmax(1), y)
            ledger.record(rows, fresh, moves.best, least, query + 1, restart)
            ledger.lower_margin(rows, torch.where(fresh, torch.inf, least))
            keep = (~done).nonzero().flatten()
            if not len(keep):
                return
            rows, y, least = rows[keep], y[keep], least[keep]
            moves.keep(keep)


class _Moves:
    """The best points of a search, and what the next queries change of them.

    Random numbers are drawn, and windows placed, for a block of queries at a time.

    Args:
        x: float32 [n, C, H, W], clean images.
        start: float32 [n, C, H, W], first points.
        params: Parameters.
        seeds: int64 [n], one per image.
        restart: Run of the attack.

    Attributes:
        best: float32 [n, C, H, W], the best points so far; between :meth:`propose` and
            :meth:`settle` those under evaluation, where a subclass writes in place.
    """

    #: Random numbers of a query beside one sign per channel.
    numbers = 0

    def __init__(
        self, x: torch.Tensor, start: torch.Tensor, params: Params, seeds: np.ndarray, restart: int
    ):
        self.x, self.best = x, start.contiguous()
        self.params, self.seeds, self.restart = params, seeds, restart
        self.block: dict[str, torch.Tensor] = {}

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with the images ``rows`` alone."""
        self.x, self.best = self.x[rows], self.best[rows]
        self.seeds = self.seeds[rows.cpu().numpy()]
        self.block = {name: values[rows] for name, values in self.block.items()}

    def _side(self, query: int) -> int:
        return window_side(query, self.params, *self.x.shape[2:])

    def _advance(self, query: int) -> int:
        """The query's place in its block, whose random numbers are drawn at its first query."""
        import torch

        from certbench.attacks import noise

        place = query % _BLOCK
        if place == 0:
            count = min(_BLOCK, self.params.queries - query)
            shape = (count, self.numbers + self.x.shape[1])
            counters = (self.restart, query // _BLOCK)
            drawn = noise.uniform(self.seeds, "square.window", counters, shape).to(self.x.device)
            sides = torch.tensor([self._side(query + i) for i in range(count)], device=drawn.device)
            self.block = self._place(drawn, sides)
        return place

    def _place(self, drawn: torch.Tensor, sides: torch.Tensor) -> dict[str, torch.Tensor]:
        """Windows and signs, each [n, queries, ...], of uniform numbers."""
        raise NotImplementedError

    def _pixel(self, drawn: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        """Upper left pixels of windows as places in a channel: int64 [n, queries]."""
        corner = _corner(drawn, sides, self.x)
        return corner[..., 0] * self.x.shape[3] + corner[..., 1]


class _LinfMoves(_Moves):
    """One window of each image moves to x + epsilon or x - epsilon, channel by channel.

    Adding 2 epsilon and clamping to the ball, as the paper has it, gives these values, because
    every pixel of the start lies at one of them.
    """

    numbers = 2

    def __init__(self, x, start, params, seeds, restart):
        import torch

        super().__init__(x, start, params, seeds, restart)
        ends = [(x - params.epsilon).clamp(0.0, 1.0), (x + params.epsilon).clamp(0.0, 1.0)]
        self.ends = torch.stack(ends, 1).flatten(1)

    def keep(self, rows: torch.Tensor) -> None:
        super().keep(rows)
        self.ends = self.ends[rows]

    def _place(self, drawn, sides):
        upper = (drawn[..., 2:] >= 0.5).long() * self.x[0].numel()
        return {"pixel": self._pixel(drawn[..., :2], sides), "upper": upper}

    def propose(self, query: int) -> torch.Tensor:
        """Write the window of a query into the best points; :meth:`settle` takes it back."""
        place = self._advance(query)
        offsets = _offsets(self._side(query), *self.x.shape[1:], self.x.device)
        index = self.block["pixel"][:, place, None, None] + offsets
        self.index = index.flatten(1)
        source = index + self.block["upper"][:, place, :, None]
        self.new = self.ends.gather(1, source.flatten(1))
        flat = self.best.view(len(index), -1)
        self.old = flat.gather(1, self.index)
        flat.scatter_(1, self.index, self.new)
        return self.best

    def settle(self, better: torch.Tensor) -> None:
        """Keep the windows of the images that are ``better`` for them, bool [n]."""
        import torch

        kept = torch.where(better.unsqueeze(1), self.new, self.old)
        self.best.view(len(better), -1).scatter_(1, self.index, kept)


class _L2Moves(_Moves):
    """The perturbation of a second window moves into a first one, reshaped to a signed pyramid."""

    numbers = 5

    def _place(self, drawn, sides):
        return {
            "first": self._pixel(drawn[..., :2], sides),
            "second": self._pixel(drawn[..., 2:4], sides),
            "flipped": (drawn[..., 4] > 0.5).long(),
            "sign": _sign(drawn[..., 5:]),
        }

    def propose(self, query: int) -> torch.Tensor:
        """The points of a query: float32 [n, C, H, W] (paper, algorithm 3)."""
        from certbench.attacks.geometry import unit

        place, side, epsilon = self._advance(query), self._side(query), self.params.epsilon
        block, x = self.block, self.x
        count, channels = x.shape[:2]
        offsets = _offsets(side, *x.shape[1:], x.device)
        first = (block["first"][:, place, None, None] + offsets).flatten(1)
        second = (block["second"][:, place, None, None] + offsets).flatten(1)
        delta = (self.best - x).view(count, -1)
        reserve = (epsilon**2 - (delta**2).sum(1)).clamp_min_(0) / channels
        # What the second window holds is read after the first is empty: they may overlap.
        old = delta.gather(1, first).view(count, channels, -1)
        delta.scatter_(1, first, 0.0)
        moved = delta.gather(1, second).view(count, channels, -1)
        delta.scatter_(1, second, 0.0)
        inside = (old**2).sum(2, keepdim=True)
        held = inside + (moved**2).sum(2, keepdim=True)
        pattern = _patterns(side, x.device)[block["flipped"][:, place]].unsqueeze(1)
        content = pattern * block["sign"][:, place, :, None]
        content += old / inside.sqrt().add_(1e-12)
        content /= (content**2).sum(2, keepdim=True).sqrt_().add_(1e-12)
        content *= held.add_(reserve[:, None, None]).sqrt_()
        delta.scatter_(1, first, content.flatten(1))
        self.new = unit(delta, "l2").mul_(epsilon).view_as(x).add_(x).clamp_(0.0, 1.0)
        return self.new

    def settle(self, better: torch.Tensor) -> None:
        """Keep the points of the images that are ``better``, bool [n]."""
        from certbench.attacks.geometry import replace_rows

        replace_rows(self.best, better, self.new)


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


def _corner(drawn: torch.Tensor, side: int | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Upper left corners, uniform over all positions of the window.

    Args:
        drawn: float32 [..., 2], uniform numbers.
        side: Side of the windows, one or [...].
        x: Images [n, C, H, W].

    Returns:
        int64 [..., 2].
    """
    import torch

    sides = torch.as_tensor(side, device=x.device)
    places = torch.stack([x.shape[2] - sides + 1, x.shape[3] - sides + 1], -1)
    return torch.minimum((drawn * places).long(), places - 1)


@cache
def _offsets(
    side: int, channels: int, height: int, width: int, device: torch.device
) -> torch.Tensor:
    """Places of a window's pixels in a flat image, from its first pixel: int64 [C, side^2]."""
    import torch

    pixels = (torch.arange(side)[:, None] * width + torch.arange(side)).flatten()
    return (torch.arange(channels)[:, None] * height * width + pixels).to(device)


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


@cache
def _patterns(side: int, device: torch.device) -> torch.Tensor:
    """The pattern and its transpose: float32 [2, side^2]."""
    import torch

    pattern = _pyramid(side, device)
    return torch.stack([pattern.flatten(), pattern.T.flatten()])


def _rectangles(height: int, width: int) -> np.ndarray:
    """Sum over k of 1/(k + 1)^2 on centred rectangles growing by one pixel per side, length 1."""
    import numpy as np

    total = np.zeros((height, width))
    for k in range(max(height, width) // 2 + 1):
        top, left = height // 2 - k, width // 2 - k
        total[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
    return total / np.sqrt((total**2).sum())
