"""What an attack did to each image, and the columns that tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: The prediction of a rule that declines to answer.
ABSTAIN = -1

#: Columns that every image-wide attack adds to the base columns of attack rows.
#: ``iterations_to_success`` and ``restart`` are -1 where nothing succeeded; ``broken_by`` lists all
#: attacks that broke the image, which differs from the first one where every attack sees it.
COLUMNS: dict[str, str] = {
    "first_breaking_attack": "string",
    "broken_by": "string",
    "restart": "int64",
    "iterations_to_success": "int64",
    "margin_clean": "float64",
    "margin_final": "float64",
    "survives_quantisation": "bool",
    "check_flags": "string",
}

#: Warnings about one image's attack, as bits. The text of a row joins their names by commas.
FLAGS: dict[str, int] = {
    "randomised": 1,  # C1: clean logits differ between two passes
    "probabilities": 2,  # C2: the model returns probabilities, not logits
    "zero_gradient": 4,  # C3: the gradient at the start is exactly zero
    "square_better": 8,  # C4: black box broke what the white-box attacks did not
    "dynamic": 16,  # C5: the model differentiates while it predicts
    "targets_capped": 32,  # C6: fewer wrong classes than target ranks
    "loss_replaced": 64,  # too few classes for the loss: DLR or cross-entropy instead
    "late_best": 128,  # C8: best loss in the last 5 % of the steps
    "unconfirmed": 256,  # success was not seen again when the final point was evaluated
}


def flag_text(bits: int) -> str:
    """The names of the flags in ``bits``, joined by commas."""
    return ",".join(name for name, bit in FLAGS.items() if bits & bit)


@dataclass(frozen=True)
class AttackOutcome:
    """Per-image result of one attack on one batch.

    Attributes:
        x_adv: float32 [N, C, H, W]; the adversarial image where broken, else the clean one.
        broken: bool [N]; whether the prediction rule was made wrong inside the ball.
        iterations_to_success: int64 [N]; steps made in the successful run before success
            (0: the start itself), -1 where not broken.
        restart: int64 [N]; the run that succeeded (restart or target rank), -1 where not broken.
        n_forward: int64 [N]; forward passes spent on the image.
        n_backward: int64 [N]; backward passes.
        margin: float32 [N]; logit margin of the true class at the adversarial image, or the
            smallest one met where not broken.
        flags: int64 [N]; bits of :data:`FLAGS`.
        extra: Further per-image values, by column name.
    """

    x_adv: torch.Tensor
    broken: torch.Tensor
    iterations_to_success: torch.Tensor
    restart: torch.Tensor
    n_forward: torch.Tensor
    n_backward: torch.Tensor
    margin: torch.Tensor
    flags: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)


class Ledger:
    """Collects successes while an attack runs.

    Args:
        x: Clean images float32 [N, C, H, W].
    """

    def __init__(self, x: torch.Tensor):
        import torch

        count, device = len(x), x.device
        self.x_adv = x.clone()
        self.broken = torch.zeros(count, dtype=torch.bool, device=device)
        self.iterations = torch.full((count,), -1, dtype=torch.int64, device=device)
        self.restart = torch.full((count,), -1, dtype=torch.int64, device=device)
        self.margin = torch.full((count,), torch.inf, device=device)
        self.flags = torch.zeros(count, dtype=torch.int64, device=device)

    def open_rows(self) -> torch.Tensor:
        """int64: the images not broken yet."""
        return (~self.broken).nonzero().flatten()

    def lower_margin(self, rows: torch.Tensor, margin: torch.Tensor) -> None:
        """Note margins of unbroken images: the smallest is kept."""
        self.margin[rows] = self.margin[rows].minimum(margin)

    def record(
        self,
        rows: torch.Tensor,
        fresh: torch.Tensor,
        points: torch.Tensor,
        margins: torch.Tensor,
        iterations: torch.Tensor | int,
        restart: int,
    ) -> None:
        """Keep the points of ``rows`` where ``fresh``.

        Args:
            rows: int64 [n], images of the batch.
            fresh: bool [n], which of them succeeded.
            points: float32 [n, C, H, W].
            margins: [n], logit margins at the points.
            iterations: Step of the success.
            restart: Run of the success.
        """
        # On a GPU the test would cost more than the copies: it waits for the device.
        if not fresh.is_cuda and not bool(fresh.any()):
            return
        import torch

        wide = fresh.reshape(-1, *[1] * (points.dim() - 1))
        self.x_adv[rows] = torch.where(wide, points, self.x_adv[rows])
        self.margin[rows] = torch.where(fresh, margins, self.margin[rows])
        steps = torch.as_tensor(iterations, device=rows.device, dtype=torch.int64)
        self.iterations[rows] = torch.where(fresh, steps, self.iterations[rows])
        self.restart[rows] = torch.where(
            fresh, torch.full_like(self.restart[rows], restart), self.restart[rows]
        )
        self.broken[rows] |= fresh

    def flag(self, rows: torch.Tensor, raised: torch.Tensor, name: str) -> None:
        """Set the flag ``name`` on ``rows`` where ``raised``."""
        self.flags[rows] |= raised.to(self.flags.dtype) * FLAGS[name]
