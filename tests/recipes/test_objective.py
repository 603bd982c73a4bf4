"""The cross-entropy of images and of pixels, and how label maps move with their images."""

import pytest
import torch

from certbench.errors import CertbenchError
from certbench.models import small_unet
from certbench.models.network import Network
from certbench.recipes import gaussian, loop, objective, standard
from certbench.recipes.context import TrainingContext


def pixels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((3, 4, 5, 6), generator=generator)
    labels = torch.randint(0, 4, (3, 5, 6), generator=generator)
    labels[torch.rand((3, 5, 6), generator=generator) < 0.3] = 255
    return logits, labels


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 0.5, 3.0)])
def test_pixels_without_a_class_count_nowhere(weights):
    logits, labels = pixels()
    log_probability = logits.log_softmax(1)
    total, scale = 0.0, 0.0
    for i in range(3):
        for y in range(5):
            for x in range(6):
                k = int(labels[i, y, x])
                if k != 255:
                    w = weights[k] if weights else 1.0
                    total -= w * float(log_probability[i, k, y, x])
                    scale += w
    found = objective.cross_entropy(logits, labels, weights)
    assert float(found) == pytest.approx(total / scale, rel=1e-5)


def test_a_batch_without_any_class_has_loss_zero_and_finite_gradients():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    for weights in ((), (1.0, 2.0, 3.0)):
        loss = objective.cross_entropy(logits, torch.full((2, 4, 4), 255), weights)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert float(loss.detach()) == 0.0 and not gradient.any()


def test_class_255_of_a_classifier_is_a_class():
    logits = torch.zeros(2, 300)
    found = objective.cross_entropy(logits, torch.tensor([255, 7]))
    assert float(found) == pytest.approx(torch.log(torch.tensor(300.0)))
    hits, of = objective.right(torch.eye(300)[[255, 7]], torch.tensor([255, 8]))
    assert (int(hits), int(of)) == (1, 2)


def test_the_number_of_weights_must_be_that_of_the_classes():
    logits, labels = pixels()
    with pytest.raises(CertbenchError, match="3 weights for 4 classes"):
        objective.cross_entropy(logits, labels, (1.0, 1.0, 1.0))


def test_right_pixels_of_noisy_copies_are_counted_once_each():
    logits, labels = pixels()
    hits, of = objective.right(torch.cat([logits, -logits]), labels)
    kept = labels != 255
    expected = [((sign * logits).argmax(1) == labels)[kept].sum() for sign in (1, -1)]
    assert int(hits) == sum(map(int, expected)) and int(of) == 2 * int(kept.sum())


def test_label_maps_move_with_their_images():
    """A map that is the image's first channel still is after mirroring and shifting."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(1, 200, (40, 3, 9, 12), generator=generator, dtype=torch.uint8)
    places = loop.moves(images, True, 3, generator)
    moved = loop.moved(images, places)[:, 0]
    maps = loop.moved(images[:, :1], places, 255)[:, 0]
    outside = maps == 255
    assert (moved[outside] == 0).all() and torch.equal(moved[~outside], maps[~outside])
    assert outside.any() and not torch.equal(moved, images[:, 0])


def scenes(count=24):
    """A bright box on a dark ground; its map, and a border without a class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (count, 3, 16, 24), generator=generator, dtype=torch.uint8)
    maps = torch.zeros((count, 16, 24), dtype=torch.uint8)
    for i in range(count):
        y, x = 2 + i % 6, 2 + (5 * i) % 12
        images[i, :, y : y + 7, x : x + 9] += 150
        maps[i, y : y + 7, x : x + 9] = 1
    maps[:, 0] = 255
    return images, maps


class Memory:
    def __init__(self, stop_after=None):
        self.state, self.rows, self.stop_after = None, [], stop_after

    def load(self):
        return self.state

    def save(self, state):
        self.state = state
        if state["epoch"] == self.stop_after:
            raise KeyboardInterrupt

    def __call__(self, epoch, loss, accuracy, *rest):
        self.rows.append((epoch, loss, accuracy))


def trained(recipe, params, memory):
    torch.manual_seed(0)
    net = Network(small_unet.build(small_unet.Params(width=4), 2), (0.3,) * 3, (0.3,) * 3, 2)
    images, maps = scenes()
    recipe.train(
        TrainingContext(
            network=net,
            images=images,
            labels=maps,
            params=params,
            seed=0,
            device=torch.device("cpu"),
            val_images=images[:5],
            val_labels=maps[:5],
            log_epoch=memory,
            checkpoint=memory,
        )
    )
    return net


SHORT = {"batch_size": 8, "optimiser": "adamw", "learning_rate": 0.01, "crop_padding": 2}


@pytest.mark.parametrize(
    ("recipe", "more"), [(standard, {}), (gaussian, {"sigma": 0.1, "class_weights": (1.0, 2.0)})]
)
def test_both_recipes_learn_label_maps(recipe, more):
    memory = Memory()
    net = trained(recipe, recipe.Params(epochs=20, **SHORT, **more), memory)
    images, maps = scenes()
    seen = images.float() / 255  # as the recipe shows them
    seen += more.get("sigma", 0) * torch.randn(
        seen.shape, generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        predicted = net(seen).argmax(1)
    known = maps != 255
    box = known & (maps == 1)
    assert (predicted[known] == maps[known]).float().mean() > 0.9
    assert (predicted[box] == 1).float().mean() > 0.8
    assert memory.rows[-1][2] > 0.9 and memory.rows[-1][1] < memory.rows[0][1]


def test_a_killed_training_on_label_maps_goes_on_to_the_same_weights():
    params = standard.Params(epochs=3, **SHORT)
    whole = trained(standard, params, Memory())
    memory = Memory(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        trained(standard, params, memory)
    memory.stop_after = None
    resumed = trained(standard, params, memory)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
