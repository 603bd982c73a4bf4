import pytest
import torch
from scipy import stats

from certbench.recipes import smoothmix
from certbench.recipes.loop import Batch


def test_a_mix_lies_between_the_points_and_between_the_targets():
    images, far = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    prediction = torch.tensor([[0.7, 0.2, 0.1]]).repeat(4, 1)
    share = torch.tensor([0.0, 0.1, 0.25, 0.5])
    mixed, targets = smoothmix.mix(images, far, prediction, share)
    for i, t in enumerate(share.tolist()):
        assert torch.allclose(mixed[i], (1 - t) * images[i] + t * far[i])
        assert torch.allclose(targets[i], (1 - t) * prediction[i] + t / 3)
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_the_divergence_is_kullback_leiblers_and_flows_to_the_targets():
    logits = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.rand(6, 4, dtype=torch.float64).softmax(1).requires_grad_()
    made = smoothmix.divergence(logits, targets)
    wanted = stats.entropy(targets.detach().numpy(), logits.softmax(1).numpy(), axis=1)
    assert made.detach().numpy() == pytest.approx(wanted)
    made.sum().backward()
    assert (targets.grad != 0).all()


def batch_of(made, count=6, epoch=0):
    generator = torch.Generator().manual_seed(0)
    return Batch(made.images[:count].float() / 255, made.labels[:count], epoch, generator)


def loss_of(context, epoch=100, **values):
    params = smoothmix.Params(sigma=0.1, epochs=150, **values)
    made = context(params)
    loss, logits = smoothmix.batch_loss(made.network.eval(), batch_of(made, epoch=epoch), params)
    return float(loss.detach()), logits, made


def test_without_weight_the_loss_is_the_cross_entropy_of_the_noisy_images(context):
    loss, logits, made = loss_of(context, eta=0.0)
    wanted = torch.nn.functional.cross_entropy(logits, made.labels[:6].repeat(2))
    assert loss == pytest.approx(wanted.item())


def test_the_weight_of_the_mix_grows_over_the_first_epochs(context):
    plain = loss_of(context, eta=0.0)[0]
    parts = [loss_of(context, epoch=epoch, eta=5.0)[0] - plain for epoch in (0, 4, 9, 100)]
    assert parts[3] > 0
    assert [p / parts[3] for p in parts] == pytest.approx([0.1, 0.5, 1.0, 1.0], rel=1e-4)


def test_images_that_are_wrong_are_not_mixed(context):
    made = context(smoothmix.Params(sigma=0.1))
    batch = batch_of(made)
    params = smoothmix.Params(sigma=0.1)
    network = made.network.eval()
    with torch.no_grad():
        network.net.fc.bias[:] = torch.tensor([100.0, 0.0, 0.0])
    batch.labels = torch.ones(6, dtype=torch.int64)
    loss, logits = smoothmix.batch_loss(network, batch, params)
    wanted = torch.nn.functional.cross_entropy(logits, batch.labels.repeat(2))
    assert loss.item() == pytest.approx(wanted.item())


def test_the_attack_sees_the_network_in_eval_mode_and_learning_does_not(context):
    params = smoothmix.Params(sigma=0.1, attack_steps=3)
    made = context(params)
    modes = []
    made.network.train().register_forward_pre_hook(lambda module, _: modes.append(module.training))
    loss, _ = smoothmix.batch_loss(made.network, batch_of(made), params)
    assert modes == [False] * 3 + [True] * 2
    assert loss.requires_grad and all(p.requires_grad for p in made.network.parameters())


@pytest.mark.parametrize("epoch, grown", [(0, 0.1), (149, 1.0)])
def test_the_one_step_variant_learns_a_point_within_the_grown_step(context, epoch, grown):
    seen = []
    params = smoothmix.Params(sigma=0.0, step_size=0.3, one_step=True, epochs=150)
    made = context(params)
    made.network.eval()
    handle = made.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_of(made, epoch=epoch)
    smoothmix.batch_loss(made.network, batch, params)
    handle.remove()
    learnt = seen[params.attack_steps][: len(batch.images)]  # the first pass after the attack
    distance = (learnt - batch.images).flatten(1).norm(dim=1)
    assert (distance > 0.01).all() and (distance <= 0.3 * grown + 1e-5).all()
