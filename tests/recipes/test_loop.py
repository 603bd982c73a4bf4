import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from certbench.errors import CertbenchError
from certbench.recipes import gaussian, standard
from certbench.recipes.loop import Batch, augment, fit, frozen, noisy_accuracy

FAST = {"epochs": 3, "batch_size": 20, "schedule": "one_cycle", "flip": False, "crop_padding": 1}


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# ---- learning


def test_the_loop_learns(context, memory, tiny_images):
    images, labels = tiny_images(90, seed=1)
    rows = memory()
    made = context(
        standard.Params(**{**FAST, "epochs": 15}), rows, val_images=images, val_labels=labels
    )
    standard.train(made)
    assert rows.rows[-1][2] > 0.95 and rows.rows[-1][1] < rows.rows[0][1]
    assert not made.network.training


def test_one_step_is_one_step_of_gradient_descent(context):
    """Against the update written out: weight decay, and the mean over the batch."""
    made = context(standard.Params(epochs=1, batch_size=100, flip=False, crop_padding=0), count=12)
    images, labels = made.images.float() / 255, made.labels
    before = weights(made.network)
    made.network.train()
    loss = nn.functional.cross_entropy(made.network(images), labels)
    gradients = torch.autograd.grad(loss, list(made.network.parameters()))
    wanted = {
        name: before[name] - 0.1 * (gradient + 1e-4 * before[name])
        for (name, _), gradient in zip(made.network.named_parameters(), gradients, strict=True)
    }
    made.network.load_state_dict(before)
    standard.train(made)
    for name, parameter in made.network.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-6), name


def test_every_image_is_seen_once_an_epoch_in_batches_of_nearly_equal_size(context):
    made = context(standard.Params(**{**FAST, "crop_padding": 0}), count=50)
    known = {image.numpy().tobytes(): i for i, image in enumerate(made.images)}
    seen, sizes = [], []

    def loss(network, batch):
        sizes.append(len(batch.images))
        pixels = (batch.images * 255).round().to(torch.uint8)
        seen.extend(known[p.numpy().tobytes()] for p in pixels)
        logits = network(batch.images)
        return logits.sum() * 0, logits

    fit(made, loss)
    assert sizes == [17, 17, 16] * 3
    epochs = [seen[i : i + 50] for i in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_copies_shrink_the_number_of_images_per_step(context):
    sizes = []

    def loss(network, batch):
        sizes.append(len(batch.images))
        logits = network(batch.images)
        return logits.mean(), logits

    fit(context(standard.Params(**{**FAST, "epochs": 1})), loss, copies=4)
    assert sizes == [5] * 12


def test_a_diverging_training_is_refused_with_its_epoch(context):
    params = standard.Params(**{**FAST, "learning_rate": 1e20})
    with pytest.raises(CertbenchError, match=r"in epoch \d"):
        standard.train(context(params))


def test_bfloat16_trains_too_and_differently(context):
    made = [context(standard.Params(**FAST, precision=p)) for p in ("float32", "bfloat16")]
    for one in made:
        standard.train(one)
    assert not same(*(weights(one.network) for one in made))
    assert all(v.isfinite().all() for v in weights(made[1].network).values())


# ---- seeds, kills


class Dropping(nn.Module):
    """Draws from torch's global generator."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))


@pytest.mark.parametrize("net", [None, Dropping], ids=["plain", "dropout"])
def test_the_seed_decides_the_result(context, net):
    def started():
        torch.manual_seed(0)
        return net() if net else None

    params = gaussian.Params(sigma=0.2, **FAST)
    made = [context(params, seed=seed, net=started()) for seed in (1, 1, 2)]
    for one in made:
        torch.rand(1)  # the global generator must not matter
        gaussian.train(one)
    first, again, other = (weights(one.network) for one in made)
    assert same(first, again) and not same(first, other)


def test_the_global_generator_is_left_alone(context):
    made = context(gaussian.Params(sigma=0.2, **FAST))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    gaussian.train(made)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_killed_training_goes_on_to_the_same_result(
    context, memory, tiny_network, stop_after, dropout, optimiser
):
    def net():
        torch.manual_seed(0)
        return Dropping() if dropout else tiny_network()

    params = gaussian.Params(sigma=0.2, optimiser=optimiser, **FAST)
    whole = context(params, net=net())
    gaussian.train(whole)

    killed = memory(stop_after)
    with pytest.raises(KeyboardInterrupt):
        gaussian.train(context(params, killed, net=net()))
    killed.stop_after = None
    resumed = context(params, killed, net=net())
    gaussian.train(resumed)
    assert same(weights(whole.network), weights(resumed.network))
    assert [row[0] for row in killed.rows] == [1, 2, 3]


def test_a_saved_state_does_not_change_while_training_goes_on(context, memory):
    states = []

    class Keeping(memory):
        def save(self, state):
            states.append({k: np.array(v, copy=True) for k, v in state.items()})
            super().save(state)
            self.first = getattr(self, "first", state)

    keeping = Keeping()
    standard.train(context(standard.Params(**FAST), keeping))
    assert all(np.array_equal(keeping.first[k], v) for k, v in states[0].items())


def test_a_finished_training_is_not_trained_again(context, memory):
    done = memory()
    first = context(standard.Params(**FAST), done)
    standard.train(first)
    rows = len(done.rows)
    again = context(standard.Params(**FAST), done)
    standard.train(again)
    assert len(done.rows) == rows and same(weights(first.network), weights(again.network))
    assert not again.network.training


# ---- cost


def test_rows_count_the_images_that_pass_forward_and_back(context, memory, tiny_images):
    rows = memory()
    images, labels = tiny_images(10)
    made = context(standard.Params(**FAST), rows, val_images=images, val_labels=labels)
    standard.train(made)
    assert [row[4:] for row in rows.rows] == [(60 + 10, 60)] * 3


# ---- augmentation


def test_augmented_images_are_shifts_and_mirror_images_and_all_of_them_occur():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (3, 5, 4), generator=generator).to(torch.uint8)
    padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
    known = {}
    for top in range(5):
        for left in range(5):
            window = padded[:, top : top + 5, left : left + 4]
            known[window.tobytes()] = (top, left, False)
            known[np.ascontiguousarray(window[:, :, ::-1]).tobytes()] = (top, left, True)
    assert len(known) == 50
    count = 5000
    made = augment(image.expand(count, -1, -1, -1), True, 2, generator)
    seen = dict.fromkeys(known.values(), 0)
    for one in made.numpy():
        seen[known[one.tobytes()]] += 1
    # Uniform over the 50: chi-square, false alarm 1e-6.
    assert stats.chisquare(list(seen.values())).pvalue > 1e-6


def test_flip_alone_and_shift_alone():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (200, 3, 4, 4), generator=generator).to(torch.uint8)
    flipped = augment(images, True, 0, generator)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (flipped == images).flatten(1).all(1)).all())
    # Binomial(200, 1/2) outside 58..142: false alarm below 1e-8.
    assert 58 <= int(mirrored.sum()) <= 142
    shifted = augment(images, False, 1, generator)
    assert not torch.equal(shifted, images)
    assert augment(images, False, 0, generator) is images


# ---- noise


class Recording(nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen, self.fc = [], nn.Linear(192, 3)

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.fc(x.flatten(1))


def test_noise_is_gaussian_fresh_and_not_clipped(context):
    from certbench.models.network import Network

    inner = Recording()
    net = Network(inner, (0.5,) * 3, (0.25,) * 3, 3)
    made = context(gaussian.Params(sigma=0.4, **{**FAST, "crop_padding": 0}), net=net)
    images = {i: made.images[i].float() / 255 for i in range(60)}
    gaussian.train(made)
    noisy = torch.cat(inner.seen) * 0.25 + 0.5  # undo the normalisation: noise came before it
    assert noisy.min() < -0.3 and noisy.max() > 1.3
    everything = torch.stack(list(images.values()))
    nearest = torch.cdist(noisy.flatten(1), everything.flatten(1)).argmin(1)
    noise = noisy - everything[nearest]
    # Kolmogorov-Smirnov against N(0, 0.4): false alarm 1e-6.
    assert stats.kstest(noise.flatten().double().numpy(), "norm", (0, 0.4)).pvalue > 1e-6
    assert len({n.numpy().tobytes() for n in noise}) == len(noise)


def test_noise_rows_go_with_repeated_images():
    images = torch.rand(4, 3, 2, 2)
    batch = Batch(images, torch.zeros(4), 0, torch.Generator().manual_seed(0))
    noise = batch.noise(0.5, 3)
    assert noise.shape == (12, 3, 2, 2) == images.repeat(3, 1, 1, 1).shape
    assert batch.noise(0.0).abs().max() == 0


def test_validation_accuracy_is_that_of_the_network_under_the_same_noise_each_time(
    tiny_images, tiny_network
):
    images, labels = tiny_images(1100)
    net, device = tiny_network(), torch.device("cpu")
    clean = noisy_accuracy(net, images, labels, 0.0, 0, device)
    with torch.no_grad():
        wanted = (net.eval()(images.float() / 255).argmax(1) == labels).float().mean().item()
    assert clean == pytest.approx(wanted)
    noisy = [noisy_accuracy(net, images, labels, 2.0, seed, device) for seed in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2]


# ---- freezing


def test_freezing_is_undone_even_after_an_error(tiny_network):
    net = tiny_network().train()
    net.net.fc.weight.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(net):
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        raise RuntimeError
    assert net.training and all(m.training for m in net.modules())
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert flags.pop("net.fc.weight") is False and all(flags.values())
    with frozen(net.eval()):
        pass
    assert not net.training
