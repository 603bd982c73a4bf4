import pytest
import torch

from certbench.models import small_cnn
from certbench.models.network import Network
from certbench.recipes.context import TrainingContext


class Memory:
    """A checkpoint in memory, and the rows of the epochs."""

    def __init__(self, stop_after=None):
        self.state, self.rows, self.stop_after = None, [], stop_after

    def load(self):
        return self.state

    def save(self, state):
        self.state = state
        if state["epoch"] == self.stop_after:
            raise KeyboardInterrupt

    def __call__(self, epoch, loss, accuracy, learning_rate, n_forward=0, n_backward=0):
        self.rows.append((epoch, loss, accuracy, learning_rate, n_forward, n_backward))


def halves(count=60, seed=0, size=8):
    """Images brighter on the left (class 0), the right (1) or in the middle (2)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 3, size, size), generator=generator)
    third = size // 3 + 1
    for index, label in enumerate(labels.tolist()):
        start = {0: 0, 1: size - third, 2: (size - third) // 2}[label]
        images[index, :, :, start : start + third] += 140
    return images.to(torch.uint8), labels


def network(seed=0, width=4, classes=3):
    torch.manual_seed(seed)
    net = small_cnn.build(small_cnn.Params(width=width), classes)
    return Network(net, (0.4,) * 3, (0.3,) * 3, classes)


@pytest.fixture
def context():
    """Makes a training context on the tiny images."""

    def make(params, memory=None, seed=0, net=None, count=60, **more):
        images, labels = halves(count)
        memory = memory or Memory()
        return TrainingContext(
            network=net or network(),
            images=images,
            labels=labels,
            params=params,
            seed=seed,
            device=torch.device("cpu"),
            log_epoch=memory,
            checkpoint=memory,
            **more,
        )

    return make


@pytest.fixture
def memory():
    return Memory


@pytest.fixture
def tiny_images():
    return halves


@pytest.fixture
def tiny_network():
    return network
