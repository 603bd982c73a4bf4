import itertools

import pytest
import torch
from torch import nn

from certbench.recipes.adversary import ascent, ddn, pgd, soft_loss, soft_smoothed, unrestricted


class Linear(nn.Module):
    """Two classes, logits (0, w . x - b): the direction of every attack is known."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        score = x.flatten(1) @ self.weight - self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def linear(generator):
    weight = torch.randn(27, generator=generator)
    weight = 4 * weight / weight.norm()
    images = 0.3 + 0.4 * torch.rand((6, 3, 3, 3), generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    noise = 0.1 * torch.randn((4 * 6, 3, 3, 3), generator=generator)
    bias = float((images.flatten(1) @ weight).mean())
    return Linear(weight, bias), images, labels, noise


def towards(labels):
    """-1 where the other class lies against the weight, 1 where it lies along it."""
    return 1 - 2 * labels.float()


def test_the_soft_smoothed_prediction_is_the_mean_over_an_images_own_copies():
    logits = torch.randn(3 * 5, 4)
    wanted = torch.stack([logits[[i, 5 + i, 10 + i]].softmax(1).mean(0) for i in range(5)])
    assert torch.allclose(soft_smoothed(logits, 3), wanted)
    labels = torch.tensor([0, 3, 1, 2, 0])
    wanted_loss = torch.stack([-wanted[i, label].log() for i, label in enumerate(labels)])
    assert torch.allclose(soft_loss(logits, labels), wanted_loss)


def test_a_hopeless_probability_gives_a_finite_loss():
    logits = torch.tensor([[0.0, 1e4]])
    assert soft_loss(logits, torch.tensor([0])).isfinite().all()


def test_ascent_is_the_unit_gradient_of_the_soft_loss_at_the_noisy_points(linear, generator):
    network, images, labels, noise = linear
    _, direction = ascent(network, images, labels, noise, generator)
    wanted = towards(labels)[:, None] * network.weight / network.weight.norm()
    assert torch.allclose(direction.flatten(1), wanted, atol=1e-5)


def test_where_the_gradient_vanishes_the_direction_is_random_and_of_length_one(generator):
    flat = Linear(torch.zeros(27), 0.0)
    images, noise = torch.rand(5, 3, 3, 3), torch.zeros(5, 3, 3, 3)
    _, direction = ascent(flat, images, torch.zeros(5, dtype=torch.int64), noise, generator)
    assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(5), atol=1e-5)
    assert len({d.numpy().tobytes() for d in direction}) == 5


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_pgd_on_a_linear_classifier_goes_straight_to_the_edge_of_the_ball(linear, generator, steps):
    network, images, labels, noise = linear
    moved = pgd(network, images, labels, noise, 0.2, steps, generator)
    wanted = 0.2 * towards(labels)[:, None] * network.weight / network.weight.norm()
    assert torch.allclose((moved - images).flatten(1), wanted, atol=1e-5)


def test_a_step_of_pgd_has_twice_the_length_of_epsilon_over_steps(linear, generator):
    network, images, labels, noise = linear
    shown = []
    network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach()))
    pgd(network, images, labels, noise, 0.2, 5, generator)
    lengths = [(points - shown[0]).flatten(1).norm(dim=1) for points in shown]
    for length, wanted in zip(lengths, (0, 0.08, 0.16, 0.2, 0.2), strict=True):
        assert torch.allclose(length, torch.full((24,), float(wanted)), atol=1e-5)


def test_pgd_stays_in_the_ball_and_in_the_range(linear, generator):
    network, images, labels, noise = linear
    images = images.round()  # corners of the cube
    moved = pgd(network, images, labels, noise, 1.5, 5, generator)
    assert moved.min() >= 0 and moved.max() <= 1
    assert ((moved - images).flatten(1).norm(dim=1) <= 1.5 + 1e-5).all()
    assert not torch.equal(moved, images)


def wrong_votes(network, points, labels, noise, copies=4):
    votes = network(points.repeat(copies, 1, 1, 1) + noise).argmax(1).view(copies, -1)
    return votes.mode(0).values != labels


def test_ddn_comes_close_to_the_nearest_adversarial_point(linear, generator):
    network, images, labels, _ = linear
    noise = torch.zeros(6, 3, 3, 3)
    score = network(images)[:, 1]
    labels = (score > 0).long()  # every image is right, at a known distance
    distance = score.abs() / network.weight.norm()
    moved = ddn(network, images, labels, noise, 1.0, 200, generator)
    assert wrong_votes(network, moved, labels, noise, 1).all()
    found = (moved - images).flatten(1).norm(dim=1)
    # gamma 0.05 steps around the distance; 256 levels add up to sqrt(27) / 510.
    assert (found >= distance - 1e-5).all()
    assert (found <= distance * 1.06 + 27**0.5 / 510).all()


def test_ddn_leaves_an_image_alone_that_no_step_could_fool(linear, generator):
    network, images, _, noise = linear
    far = Linear(network.weight, -1e3)
    labels = torch.ones(6, dtype=torch.int64)
    assert torch.equal(ddn(far, images, labels, noise, 0.5, 5, generator), images)


def test_ddn_finds_an_already_wrong_image_at_no_distance(linear, generator):
    network, images, labels, noise = linear
    wrong = wrong_votes(network, images, labels, noise)
    moved = ddn(network, images, labels, noise, 0.5, 5, generator)
    assert wrong.any() and torch.equal(moved[wrong], images[wrong])


def test_ddn_returns_points_within_epsilon_and_the_range(linear, generator):
    network, images, labels, noise = linear
    images = images.round()
    moved = ddn(network, images, labels, noise, 0.3, 20, generator)
    assert ((moved - images).flatten(1).norm(dim=1) <= 0.3 + 1e-5).all()
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6


def test_the_unrestricted_attack_takes_steps_of_fixed_length(linear, generator):
    network, images, labels, noise = linear
    points = unrestricted(network, images, labels, noise, 0.05, 4, generator)
    assert len(points) == 5 and torch.equal(points[0], images)
    for before, after in itertools.pairwise(points):
        lengths = (after - before).flatten(1).norm(dim=1)
        assert torch.allclose(lengths, torch.full((6,), 0.05), atol=1e-5)
    far = unrestricted(network, images, labels, noise, 9.0, 3, generator)[-1]
    assert far.min() >= 0 and far.max() <= 1


def test_attacks_reduce_the_mean_probability_of_a_real_network(tiny_network, tiny_images):
    images, labels = tiny_images(12)
    images = images.float() / 255
    network = tiny_network().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn((24, 3, 8, 8), generator=generator)

    def losses(points):
        return soft_loss(network(points.repeat(2, 1, 1, 1) + noise), labels)

    moved = pgd(network, images, labels, noise, 1.0, 10, generator)
    assert (losses(moved) > losses(images)).all()
