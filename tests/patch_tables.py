"""Numbers that published-style golden tables are made of: one linear congruential generator."""

from __future__ import annotations

import numpy as np
import torch


class Draws:
    """x <- (1103515245 x + 12345) mod 2^31; each draw is x >> 16."""

    def __init__(self, seed: int):
        self.x = seed

    def __call__(self) -> int:
        self.x = (1103515245 * self.x + 12345) % 2**31
        return self.x >> 16


def table(n: int, classes: int, y: int, q: int, seed: int) -> np.ndarray:
    """A symmetric table of labels, ``y`` with probability q / 1000."""
    draw, made = Draws(seed), np.zeros((n, n), np.int64)
    for i in range(n):
        for j in range(i, n):
            r = draw()
            made[i, j] = made[j, i] = (
                y if r % 1000 < q else (y + 1 + (r // 1000) % (classes - 1)) % classes
            )
    return made


def under_attack(n: int, y: int, a: int, m: int) -> np.ndarray:
    """Every entry ``a``, but row and column ``m``, which hold the patch, are ``y``."""
    made = np.full((n, n), a, np.int64)
    made[m, :] = made[:, m] = y
    return made


class Toy(torch.nn.Module):
    """A z + V max(U z, 0) / 4, z = x - 1/2, on grey 8 x 8 images: 3 classes, exact in float32."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        draw = Draws(11)

        def matrix(rows: int, columns: int, modulus: int, shift: int) -> torch.Tensor:
            values = [draw() % modulus - shift for _ in range(rows * columns)]
            return torch.tensor(values, dtype=torch.float32).view(rows, columns)

        self.register_buffer("a", matrix(3, 64, 9, 4))
        self.register_buffer("u", matrix(8, 64, 5, 2))
        self.register_buffer("v", matrix(3, 8, 7, 3))
        self.eval()

    def forward(self, x):
        z = x.flatten(1) - 0.5
        return z @ self.a.T + 0.25 * torch.relu(z @ self.u.T) @ self.v.T


def toy_images(model: Toy) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve images of the toy, float32 [12, 1, 8, 8], and their labels."""
    draw, images = Draws(21), []
    labels = torch.arange(12) % 3
    for label in labels.tolist():
        noise = torch.tensor([(draw() % 9 - 4) / 16 for _ in range(64)])
        images.append((0.5 + 0.5 * model.a[label] / 16 + noise).clamp(0, 1))
    return torch.stack(images).view(12, 1, 8, 8).float(), labels


def every_patch(image: torch.Tensor, side: int, levels: tuple[float, ...]) -> torch.Tensor:
    """The image under every content of a square from ``levels`` at every position.

    Returns:
        float32 [positions, contents, C, H, W], positions row by row.
    """
    grid = torch.cartesian_prod(*[torch.tensor(levels)] * side**2).view(-1, side, side)
    height, width = image.shape[1:]
    made = []
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            copies = image.expand(len(grid), *image.shape).clone()
            copies[:, :, top : top + side, left : left + side] = grid.unsqueeze(1)
            made.append(copies)
    return torch.stack(made)
