"""A shard of work for attack plug-ins, and the toy network with known attack results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch


class MemoryProgress:
    """Keeps what was saved; can stop the run after a number of saves, as a kill would."""

    def __init__(self, kill_after: int | None = None):
        self.state: dict[str, Any] | None = None
        self.saves = 0
        self.kill_after = kill_after

    def load(self):
        return None if self.state is None else dict(self.state)

    def save(self, state):
        self.state = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}
        self.saves += 1
        if self.kill_after is not None and self.saves >= self.kill_after:
            raise KeyboardInterrupt


@dataclasses.dataclass
class FakeWork:
    params: Any
    logits: Callable | None
    images: torch.Tensor
    labels: torch.Tensor
    judge: Callable | None = None
    item_index: Any = None
    seed64: int = 0
    device: str = "cpu"
    batch_size: int = 64
    num_classes: int = 10
    progress: Any = None
    exact: bool = False
    scores: Callable | None = None
    ticks: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if self.item_index is None:
            self.item_index = np.arange(len(self.images))

    def tick(self, done, total):
        self.ticks.append((done, total))


class Toy(torch.nn.Module):
    """V tanh(U x) on 1 x 4 x 4 images, 6 classes; no parameters that need gradients."""

    def __init__(self):
        super().__init__()
        i, j = np.arange(12)[:, None], np.arange(16)[None]
        k, h = np.arange(6)[:, None], np.arange(12)[None]
        u = np.sin(1 + 3 * i + 7 * j + i * j)
        v = 1.5 * np.cos(2 + 5 * k + 2 * h + k * h)
        self.register_buffer("u", torch.tensor(u, dtype=torch.float32))
        self.register_buffer("v", torch.tensor(v, dtype=torch.float32))
        self.eval()

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.u.T) @ self.v.T


def toy_images() -> torch.Tensor:
    n, p = np.arange(4)[:, None], np.arange(16)[None]
    return torch.tensor(((37 * n + 11 * p + 5) % 97) / 96, dtype=torch.float32).reshape(4, 1, 4, 4)


class RowwiseLinear(torch.nn.Module):
    """A linear classifier whose arithmetic on an image does not depend on the batch."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eval()

    def forward(self, x):
        flat = x.flatten(1).double()
        return ((flat[:, None, :] * self.weight.double()).sum(-1) + self.bias.double()).float()


def random_linear(
    classes: int, shape: tuple[int, int, int], seed: int, scale: float = 1.0
) -> RowwiseLinear:
    rng = np.random.default_rng(seed)
    weight = torch.tensor(rng.normal(size=(classes, int(np.prod(shape)))) * scale).float()
    # Centred, so that all classes occur on images around the middle of the box.
    return RowwiseLinear(weight, -0.5 * weight.sum(1))


def middle_images(count: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """Images away from the faces of the box, where distances to hyperplanes are exact."""
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.uniform(0.35, 0.65, size=(count, *shape))).float()


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def toy_x():
    return toy_images()


@pytest.fixture
def toy_y(toy, toy_x):
    return toy(toy_x).argmax(1)


@pytest.fixture
def make_work():
    return FakeWork


@pytest.fixture
def memory_progress():
    return MemoryProgress


@pytest.fixture
def linear():
    return random_linear


@pytest.fixture
def middle():
    return middle_images


class Digits:
    """A small network trained against attacks on scikit-learn's digits; 100 held-out images."""

    epsilon = 0.1

    def __init__(self):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        torch.manual_seed(0)
        images = torch.tensor(bunch.images / 16.0).float()[:, None]
        images = torch.nn.functional.interpolate(
            images, size=(16, 16), mode="bilinear", align_corners=False
        )
        labels = torch.tensor(bunch.target)
        order = torch.randperm(len(images))
        images, labels = images[order], labels[order]
        self.model = self._train(images[:1500], labels[:1500])
        self.x, self.y = images[1500:1600].clone(), labels[1500:1600].clone()

    @staticmethod
    def _train(x, y, epochs=12, epsilon=0.15):
        nn = torch.nn
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(384, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        optimiser = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=5e-3, total_steps=epochs * 15
        )
        loss = nn.functional.cross_entropy
        for _ in range(epochs):
            for batch in torch.randperm(1500).split(100):
                xb, yb = x[batch], y[batch]
                delta = (torch.rand_like(xb) * 2 - 1) * epsilon
                for _ in range(3):
                    delta.requires_grad_(True)
                    (slope,) = torch.autograd.grad(loss(model((xb + delta).clamp(0, 1)), yb), delta)
                    delta = (delta + 0.7 * epsilon * slope.sign()).clamp(-epsilon, epsilon).detach()
                optimiser.zero_grad()
                loss(model((xb + delta).clamp(0, 1)), yb).backward()
                optimiser.step()
                schedule.step()
        return model.eval().requires_grad_(False)

    def variant(self, name):
        """The same network behind a mask: what it predicts on clean images changes little."""
        model = self.model
        return {
            "plain": model,
            "times 1000": lambda x: 1000 * model(x),
            "softmax": lambda x: model(x).softmax(1),
            "log-softmax": lambda x: model(x).log_softmax(1),
            "by 1000": lambda x: model(x) / 1000,
            "8 levels": lambda x: model((x * 7).round() / 7),
        }[name]


@pytest.fixture(scope="session")
def digits():
    return Digits()
