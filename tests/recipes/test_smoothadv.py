import pytest
import torch

from certbench.recipes import smoothadv
from certbench.recipes.loop import Batch


def prepared(context, count=8, epoch=100, **values):
    params = smoothadv.Params(sigma=0.2, epochs=150, attack_steps=3, **values)
    made = context(params)
    generator = torch.Generator().manual_seed(0)
    batch = Batch(made.images[:count].float() / 255, made.labels[:count], epoch, generator)
    return made.network.train(), batch, params


def test_epsilon_grows_over_the_first_tenth_epochs_as_published():
    made = [smoothadv.ramp(epoch, 150, 1 / 15) for epoch in (0, 4, 9, 10, 149)]
    assert made == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert smoothadv.ramp(0, 10, 0.0) == 1.0


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_the_attack_moves_images_within_the_epsilon_of_the_epoch(context, attack):
    for epoch, epsilon in ((0, 0.05), (100, 0.5)):
        network, batch, params = prepared(context, epoch=epoch, attack=attack, ddn_gamma=0.9)
        moved = smoothadv.attacked(network.eval(), batch, batch.noise(0.2, 4), params)
        distance = (moved - batch.images).flatten(1).norm(dim=1)
        assert (distance <= epsilon + 1e-5).all()
        if attack == "pgd":
            assert (distance > 0.5 * epsilon).all()


@pytest.mark.parametrize("train_on_all, count", [(True, 32), (False, 8)])
def test_the_network_learns_from_all_or_one_of_the_noise_samples(context, train_on_all, count):
    network, batch, params = prepared(context, train_on_all=train_on_all)
    loss, logits = smoothadv.batch_loss(network, batch, params)
    assert len(logits) == count and loss.requires_grad
    wanted = torch.nn.functional.cross_entropy(logits, batch.labels.repeat(count // 8))
    assert loss.item() == pytest.approx(wanted.item())
    assert network.training and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("train_on_all", [True, False])
@pytest.mark.parametrize("count", [2, 8])
def test_the_learnt_inputs_are_the_moved_images_under_the_noise_of_the_attack(
    context, count, train_on_all
):
    network, batch, params = prepared(context, count=count, train_on_all=train_on_all)
    shown = []
    network.register_forward_pre_hook(
        lambda module, inputs: shown.append((module.training, inputs[0]))
    )
    smoothadv.batch_loss(network, batch, params)
    (learnt,) = [inputs for training, inputs in shown if training]
    attacked = [inputs for training, inputs in shown if not training]
    assert len(learnt) == (4 * count if train_on_all else count)
    # The first inputs of every attack are image + noise; learnt inputs differ from them by the
    # perturbation alone, which has at most length epsilon (noise has 2.8 on average).
    first = torch.cat([part if train_on_all else part[: len(part) // 4] for part in attacked[::3]])
    assert ((learnt - first).flatten(1).norm(dim=1) <= 0.5 + 1e-4).all()
    assert max(len(part) for part in attacked) <= (
        4 * count if train_on_all else 4 * -(-count // 4)
    )
