"""A square patch per image: positions screened by the gradient, content by sign steps.

The pixels of one square may take any value in [0, 1]; all others stay. Every position has a
first-order gain, exact for a linear model: the best content moves each pixel to 0 or 1, whichever
raises the loss. The attack climbs at the positions of largest gain, the four corners (which the
fewest masks cover) and random ones, from the best corner-of-the-cube content and from noise, by
sign steps with momentum that shrink (patch PGD; positions as in Rao, Stutz, Schiele 2020, arXiv
2005.02313, content as in LaVAN, Karmon et al. 2018, arXiv 1801.02608). Content is rounded to 8 bits
before it is judged, and only the prediction rule decides.

On a masked defence it climbs the surrogate ``coherent`` (one wrong class in as many masked views
as possible): the masks that hide the patch give no gradient, and the rest must agree on one class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.attacks.outcome import COLUMNS
from certbench.attacks.protocol import Passes, Work
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from certbench.attacks.outcome import AttackOutcome, Ledger
    from certbench.attacks.target import Target

version = 1

#: Rows and columns of the patch's first pixel where the attack succeeded, else -1.
EXTRA: dict[str, str] = {"patch_row": "int64", "patch_column": "int64", "positions": "int64"}

columns: dict[str, str] = {
    **COLUMNS,
    **EXTRA,
    "patch_h": "int32",
    "patch_w": "int32",
    "geometry_ok": "bool",
}

#: Step lengths in pixel values: for 60 % of a run, for 30 %, and for the last 10 %.
STEP_LENGTHS = (0.05, 0.02, 1 / 255)

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Params:
    """Parameters of the patch attack."""

    patch_size: int = param(help="side of the square", unit="pixels of the input", minimum=1)
    positions: int = param(8, help="positions of largest first-order gain", minimum=0)
    random_positions: int = param(4, help="random positions beside them", minimum=0)
    corners: bool = param(True, help="try the four corners too")
    steps: int = param(100, help="gradient steps per position and start", minimum=1)
    restarts: int = param(
        2, help="starts per position: best extreme content first, then noise", minimum=1
    )
    judge_every: int = param(10, help="steps between calls of the prediction rule", minimum=1)
    abstain_breaks: bool = param(True, help="count an abstention as a success of the attack")


def threat(params: Params) -> dict[str, Any]:
    """One square patch anywhere; its size is its side in pixels."""
    return {
        "kind": "patch",
        "norm": "square",
        "size": float(params.patch_size),
        "space": "pixels",
        "unit": "item",
        "guarantee": "none",
        "alpha": None,
    }


def passes(params: Params, surrogates: int) -> Passes:
    """Passes for one image that survives at every position."""
    positions = params.positions + params.random_positions + 4 * params.corners
    return Passes.climb(params.steps * params.restarts * positions)


def attack(work: Work) -> dict[str, np.ndarray]:
    """Attack a shard of images; see :func:`certbench.attacks.shard.attack_shard`.

    Raises:
        CertbenchError: The patch does not fit into the images.
    """
    import numpy as np

    from certbench.attacks import shard
    from certbench.errors import CertbenchError

    params, side = work.params, work.params.patch_size
    height, width = work.images.shape[-2:]
    if side > min(height, width):
        raise CertbenchError(
            f"a patch of {side} pixels does not fit into {height} x {width}",
            where="attack: patch_size",
            remedy=f"use at most {min(height, width)}",
        )
    objective = "coherent" if "coherent" in shard.objectives_of(work) else ""
    step = shard.Step("patch-pgd", params, run, True, objective)
    made = shard.attack_shard(work, [step], EXTRA, region=PatchRegion(side))
    count = len(work.images)
    broken = made["status"] == "broken"
    for name in ("patch_row", "patch_column"):
        made[name] = np.where(broken, made[name], -1)
    return {
        **made,
        "patch_h": np.full(count, side),
        "patch_w": np.full(count, side),
        # A point outside its square raises before a row is made.
        "geometry_ok": np.ones(count, bool),
    }


class PatchRegion:
    """Images that differ from the clean ones inside one square only.

    Args:
        side: Pixels of the square.
    """

    def __init__(self, side: int):
        self.side = side

    def inside(self, points: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Whether each point is finite, in [0, 1], and changed inside one square: bool [n]."""
        import torch

        changed = (points != x).any(1)
        flat = points.flatten(1)
        sound = torch.isfinite(flat).all(1) & ((flat >= 0) & (flat <= 1)).all(1)
        for axis in (1, 2):
            line = changed.any(3 - axis).to(torch.int64)
            first = line.argmax(1)
            last = line.shape[1] - 1 - line.flip(1).argmax(1)
            sound &= (last - first < self.side) | (line.sum(1) == 0)
        return sound

    def require(self, points: torch.Tensor, x: torch.Tensor, items: np.ndarray) -> None:
        """Refuse points outside.

        Raises:
            GeometryError: Names the first items.
        """
        from certbench.attacks.geometry import GeometryError

        bad = (~self.inside(points, x)).nonzero().flatten().tolist()
        if bad:
            named = ", ".join(str(items[i]) for i in bad[:5])
            raise GeometryError(
                f"{len(bad)} adversarial points differ outside a square of {self.side} pixels, "
                f"or leave [0, 1]: item {named}"
            )

    def quantise(self, points: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The points as 8-bit images, and whether these are inside."""
        import torch

        stored = torch.round(255.0 * points.double()).clamp(0, 255).to(torch.uint8)
        return stored, self.inside(stored.float() / 255.0, x)


def gains(slope: torch.Tensor, x: torch.Tensor, side: int) -> torch.Tensor:
    """First-order gain of the best content at every position: [n, H - side + 1, W - side + 1].

    The sum over the square of ``max(g (1 - x), -g x)``, from an integral image.

    Args:
        slope: Gradient of the loss at ``x``, [n, C, H, W].
        x: Images in [0, 1].
        side: Pixels of the square.
    """
    import torch

    gain = torch.maximum(slope * (1 - x), -slope * x).sum(1).double()
    total = torch.nn.functional.pad(gain.cumsum(1).cumsum(2), (1, 0, 1, 0))
    upper, lower = total[:, :-side], total[:, side:]
    return lower[..., side:] - lower[..., :-side] - upper[..., side:] + upper[..., :-side]


def choose(gain: torch.Tensor, params: Params, seeds: np.ndarray) -> torch.Tensor:
    """Positions to attack, the most promising first: int64 [n, m, 2].

    Neighbours of a chosen position closer than half a patch along both axes are passed over.

    Args:
        gain: [n, P, Q], first-order gain of each position.
        params: Parameters.
        seeds: int64 [n], one per image.
    """
    import torch

    from certbench.attacks import noise

    count, down, across = gain.shape
    left = gain.clone()
    reach = (params.patch_size + 1) // 2
    rows = torch.arange(down, device=gain.device)
    columns_ = torch.arange(across, device=gain.device)
    chosen = []
    for _ in range(min(params.positions, down * across)):
        best = left.flatten(1).argmax(1)
        row, column = best // across, best % across
        chosen.append(torch.stack([row, column], 1))
        near = ((rows - row[:, None]).abs() < reach)[:, :, None]
        near = near & ((columns_ - column[:, None]).abs() < reach)[:, None, :]
        left = left.masked_fill(near, -torch.inf)
    if params.corners:
        for corner in ((0, 0), (0, across - 1), (down - 1, 0), (down - 1, across - 1)):
            chosen.append(torch.tensor([corner], device=gain.device).expand(count, 2))
    if params.random_positions:
        drawn = noise.uniform(seeds, "patch.position", (), (params.random_positions, 2))
        places = torch.tensor([down, across])
        at = torch.minimum((drawn * places).long(), places - 1).to(gain.device)
        chosen += list(at.unbind(1))
    return torch.stack(chosen, 1)


def run(
    target: Target, x: torch.Tensor, y: torch.Tensor, params: Params, seeds: np.ndarray
) -> AttackOutcome:
    """Patch PGD on one batch of correctly classified images.

    Args:
        target: What is attacked.
        x: float32 [N, C, H, W] in [0, 1].
        y: int64 [N] labels.
        params: Parameters.
        seeds: int64 [N], one per image.

    Returns:
        The first 8-bit patch of each image that the prediction rule falls for; ``restart`` counts
        positions and starts.
    """
    import torch

    from certbench.attacks.losses import negative_margin
    from certbench.attacks.outcome import Ledger

    target.bind(x)
    ledger = Ledger(x)
    target.at_step(0, 0, True)
    _, _, slope = target.gradient(x, y, negative_margin)
    flat = (slope == 0).flatten(1).all(1)
    ledger.flag(torch.arange(len(x), device=x.device), flat, "zero_gradient")
    places = choose(gains(slope, x, params.patch_size), params, seeds)
    where = torch.full((len(x), 2), -1, dtype=torch.int64, device=x.device)
    tried = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for place in range(places.shape[1]):
        for restart in range(params.restarts):
            rows = ledger.open_rows()
            if not len(rows):
                break
            number = place * params.restarts + restart
            corner = places[rows, place]
            start = _start(x[rows], slope[rows], seeds[rows.cpu().numpy()], number, restart)
            _climb(target, x, y, params, rows, corner, start, number, restart, ledger)
            won = ledger.broken[rows]
            where[rows[won]] = corner[won]
            tried[rows] = place + 1
    return target.outcome(ledger, patch_row=where[:, 0], patch_column=where[:, 1], positions=tried)


def _start(
    x: torch.Tensor, slope: torch.Tensor, seeds: np.ndarray, number: int, restart: int
) -> torch.Tensor:
    """Content everywhere, of which the patch keeps its square: extreme at first, then noise."""
    import torch

    from certbench.attacks import noise

    if restart == 0:
        # Where the gradient says nothing, grey.
        return torch.where(slope == 0, 0.5, (slope > 0).to(x.dtype))
    return noise.uniform(seeds, "patch.content", (number,), tuple(x.shape[1:])).to(x.device)


def _square(x: torch.Tensor, corner: torch.Tensor, side: int) -> torch.Tensor:
    """The square of each image: bool [n, 1, H, W]."""
    import torch

    down = torch.arange(x.shape[2], device=x.device) - corner[:, :1]
    across = torch.arange(x.shape[3], device=x.device) - corner[:, 1:]
    rows, cols = ((at >= 0) & (at < side) for at in (down, across))
    return (rows[:, :, None] & cols[:, None, :]).unsqueeze(1)


def _climb(
    target: Target,
    x: torch.Tensor,
    y: torch.Tensor,
    params: Params,
    rows: torch.Tensor,
    corner: torch.Tensor,
    content: torch.Tensor,
    number: int,
    restart: int,
    ledger: Ledger,
) -> None:
    """One run of the images ``rows`` at one position each."""
    import torch

    from certbench.attacks.losses import negative_margin

    x, y = x[rows], y[rows]
    square = _square(x, corner, params.patch_size)
    pace = torch.zeros_like(x)
    for step in range(params.steps + 1):
        last = step == params.steps
        check = last or step % params.judge_every == 0
        target.at_step(restart, step, check)
        if check:
            # Only content of 8 bits counts, so that is what is judged, margin included.
            rounded = torch.where(square, torch.round(255.0 * content) / 255.0, x)
            logits = target.scores(rounded, rows)
            margin = target.margin(logits, y)
            labels = target.labels(rounded, rows, logits)
            fresh = target.is_broken(labels, y)
            ledger.lower_margin(rows[~fresh], margin[~fresh])
            ledger.record(rows, fresh, rounded, margin, step, number)
            keep = (~fresh).nonzero().flatten()
            if last or not len(keep):
                return
            if len(keep) < len(rows):
                rows, x, y = rows[keep], x[keep], y[keep]
                square, content, pace = square[keep], content[keep], pace[keep]
        point = torch.where(square, content, x)
        _, _, slope = target.gradient(point, y, negative_margin, rows)
        size = slope.abs().flatten(1).mean(1).clamp_min(1e-20)[:, None, None, None]
        pace = _MOMENTUM * pace + slope / size
        done = step / params.steps
        length = STEP_LENGTHS[0 if done < 0.6 else 1 if done < 0.9 else 2]
        content = (content + length * pace.sign()).clamp(0.0, 1.0)
