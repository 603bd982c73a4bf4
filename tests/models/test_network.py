import json

import pytest
import torch
from torch import nn

from certbench.errors import CertbenchError
from certbench.models import cifar_resnet, small_cnn
from certbench.models.network import (
    CARD_KEYS,
    FoldedNetwork,
    Network,
    check_classes,
    folded,
    guard_logits,
    input_kind,
    load_model,
    save_model,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def settled(net: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its batch normalisation far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.weight.data, module.bias.data):
                value.copy_(torch.randn(value.shape, generator=generator))
            module.running_var.copy_(
                0.5 + torch.rand(module.running_var.shape, generator=generator)
            )
    return net.eval()


def small(seed: int = 0, width: int = 4, classes: int = 5) -> Network:
    torch.manual_seed(seed)
    net = small_cnn.build(small_cnn.Params(width=width), classes)
    return Network(settled(net, seed), MEAN, STD, classes).eval()


def saved(folder, network=None, **card):
    weights, card_path = folder / "model.safetensors", folder / "model.json"
    made = {
        "model": "toy",
        "task": "classification",
        "builder": "small_cnn",
        "builder_version": small_cnn.version,
        "builder_params": {"width": 4},
        **card,
    }
    save_model(weights, card_path, network or small(), made)
    return weights, card_path


# ---- the module


def test_normalisation_is_the_first_step():
    network = Network(nn.Flatten(), MEAN, STD, 12)
    images = torch.rand(7, 3, 2, 2)
    expected = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1).flatten(1)
    assert torch.equal(network(images), expected)


def test_logits_are_float32_even_from_a_half_precision_network():
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), MEAN, STD, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(2, 3, 2, 2)).dtype == torch.float32


def test_weights_keep_the_builders_keys():
    network = small()
    assert {k.removeprefix("net.") for k in network.state_dict()} == set(network.net.state_dict())


@pytest.mark.parametrize("mean, std", [((0.1, 0.2), (1.0,)), ((0.0,), (0.0,)), ((0.0,), (-1.0,))])
def test_an_impossible_normalisation_is_refused(mean, std):
    with pytest.raises(CertbenchError, match="normalisation"):
        Network(nn.Identity(), mean, std, 2)


def test_the_kind_of_input_layer_tells_centring_from_standardising():
    assert input_kind((0, 0, 0), (1, 1, 1)) == "none"
    assert input_kind((0.4, 0.5, 0.6), (1, 1, 1)) == "centre"
    assert input_kind((0, 0, 0), (0.5, 0.5, 0.5)) == "standardise"


# ---- the two files


def test_a_saved_model_comes_back_frozen_with_the_same_logits(tmp_path):
    network = small()
    back = load_model(*saved(tmp_path, network))
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(back(images), network(images))
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    assert back.num_classes == 5


def test_the_card_has_every_key_and_what_the_network_knows(tmp_path):
    _, card_path = saved(tmp_path)
    card = json.loads(card_path.read_text())
    assert set(CARD_KEYS) <= set(card)
    assert card["num_classes"] == 5 and card["input_kind"] == "standardise"
    assert card["parameters"] == sum(p.numel() for p in small().net.parameters())
    assert card["mean"] == pytest.approx(MEAN, rel=1e-6)


def test_the_card_keeps_the_given_digits_of_the_normalisation(tmp_path):
    _, card_path = saved(tmp_path, mean=list(MEAN), std=list(STD))
    assert json.loads(card_path.read_text())["mean"] == list(MEAN)


def test_the_same_weights_give_the_same_file(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert first[0].read_bytes() == second[0].read_bytes()
    assert first[1].read_bytes() == second[1].read_bytes()


def test_changed_weights_are_refused(tmp_path):
    weights, card = saved(tmp_path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CertbenchError, match="sha256"):
        load_model(weights, card)


def test_weights_of_another_width_are_refused(tmp_path):
    with pytest.raises(CertbenchError, match="does not fit SmallCnn"):
        load_model(*saved(tmp_path, builder_params={"width": 8}))


def test_a_card_of_another_builder_version_is_refused(tmp_path):
    with pytest.raises(CertbenchError, match="version 99"):
        load_model(*saved(tmp_path, builder_version=99))


def test_an_unknown_builder_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(CertbenchError, match="did you mean 'small_cnn'"):
        load_model(*saved(tmp_path, builder="smal_cnn"))


def test_missing_and_broken_files_are_named(tmp_path):
    weights, card = saved(tmp_path)
    with pytest.raises(CertbenchError, match="does not exist"):
        load_model(weights, tmp_path / "none.json")
    with pytest.raises(CertbenchError, match="does not exist"):
        load_model(tmp_path / "none.safetensors", card)
    card.write_text("{")
    with pytest.raises(CertbenchError, match="no JSON"):
        load_model(weights, card)
    card.write_text('{"builder": "small_cnn"}')
    with pytest.raises(CertbenchError, match="lacks builder_params, num_classes"):
        load_model(weights, card)


def test_a_diverged_network_is_not_written(tmp_path):
    network = small()
    with torch.no_grad():
        network.net.fc.weight[0, 0] = float("nan")
    with pytest.raises(CertbenchError, match=r"fc\.weight"):
        saved(tmp_path, network)
    assert not list(tmp_path.iterdir())


def test_a_builder_from_outside_is_found(tmp_path):
    plugin = tmp_path / "toy_builder.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "version = 3\nkind = 'model'\n"
        "@dataclass(frozen=True)\nclass Params:\n    pass\n"
        "def build(params, num_classes, pretrained=False):\n"
        "    from torch import nn\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
    )
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), MEAN, STD, 2)
    files = saved(tmp_path, network, builder="toy_builder", builder_version=3, builder_params={})
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(load_model(*files, plugins=[str(plugin)])(images), network(images))


# ---- checks


def test_another_number_of_classes_is_refused_by_card_or_count():
    check_classes({"num_classes": 10}, 10, "here")
    check_classes(10, 10, "here")
    for known in ({"num_classes": 10}, 10):
        with pytest.raises(CertbenchError, match=r"m on d: the model tells 10 .* dataset has 7"):
            check_classes(known, 7, "m on d")


def test_bad_logits_name_the_model():
    good = torch.zeros(4, 3)
    assert guard_logits(good, "m1", 3) is good
    for bad in (torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 3, 8, 8)):
        with pytest.raises(CertbenchError, match=r"'m1'.*shape"):
            guard_logits(bad, "m1", 3)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = torch.zeros(4, 3)
        bad[1, 2] = value
        with pytest.raises(CertbenchError, match=r"'m1'.* 1 of 4"):
            guard_logits(bad, "m1", 3)


# ---- folding


def largest_difference(network: Network, size: int = 32, count: int = 8) -> float:
    """Relative to the largest logit; in float64, so that only wrong algebra shows."""
    torch.manual_seed(1)
    network = network.double()
    images = torch.rand(count, 3, size, size, dtype=torch.float64) * 3 - 1
    with torch.inference_mode():
        wanted, made = network(images), folded(network)(images)
    assert made.dtype == torch.float32
    return float((wanted - made).abs().max() / wanted.abs().max())


def count_of(module: nn.Module, kind: type) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


@pytest.mark.parametrize(
    "net",
    [
        small_cnn.build(small_cnn.Params(width=5), 5),
        cifar_resnet.build(cifar_resnet.Params(depth=14), 5),
    ],
    ids=["small_cnn", "cifar_resnet"],
)
def test_folding_leaves_no_batch_normalisation_and_the_same_logits(net):
    network = Network(settled(net), MEAN, STD, 5).eval()
    made = folded(network)
    assert count_of(network, nn.BatchNorm2d) > 0 and count_of(made, nn.BatchNorm2d) == 0
    assert largest_difference(network) < 1e-6  # float32 logits of a float64 network


def test_folding_agrees_on_networks_that_were_not_written_for_it():
    models = pytest.importorskip("torchvision.models")
    for build in (models.resnet18, models.mobilenet_v3_small, models.densenet121):
        torch.manual_seed(0)
        network = Network(settled(build(num_classes=5)), MEAN, STD, 5).eval()
        assert largest_difference(network, count=2) < 1e-5


def test_without_padding_the_whole_normalisation_is_folded():
    torch.manual_seed(0)
    for bias in (True, False):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(), nn.Flatten())
        network = Network(net, MEAN, STD, 144).eval()
        made = folded(network)
        assert made.shift is None and made.scale is None
        assert largest_difference(network, size=8) < 1e-6


def test_with_padding_the_mean_stays_outside():
    made = folded(small())
    assert made.shift is not None and made.scale is None


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.AvgPool2d(2),
    ],
    ids=["grouped", "reflected", "same", "pooling"],
)
def test_unusual_first_layers_stay_exact(first):
    network = Network(nn.Sequential(first, nn.Flatten()), MEAN, STD, 1).eval()
    assert largest_difference(network, size=8) < 1e-6


class Shared(nn.Module):
    """One convolution before two normalisations, and an input with two readers."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = (
            nn.Conv2d(3, 3, 3),
            nn.BatchNorm2d(3),
            nn.BatchNorm2d(3),
        )

    def forward(self, x):
        return (self.second(self.conv(self.first(self.conv(x)))).flatten(1)) + x.mean()


class Branching(nn.Module):
    """Cannot be traced: the values decide the path."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)).flatten(1) * (2 if x.mean() > 0 else 3)


class NormAndReLU(nn.BatchNorm2d):
    """Does more than its base class."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "net",
    [
        Shared(),
        Branching(),
        nn.Sequential(nn.Conv2d(3, 3, 3), NormAndReLU(3), nn.Flatten()),
        nn.Sequential(
            nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()
        ),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Flatten()),
    ],
    ids=["shared", "branching", "norm-and-relu", "batch-statistics", "no-affine"],
)
def test_what_cannot_be_folded_is_left_alone(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    assert largest_difference(Network(net, MEAN, STD, 1).eval(), size=10) < 1e-6


def test_folding_leaves_the_network_as_it_was():
    plain = Network(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), MEAN, STD, 1).eval()
    for network in (small(), plain):
        before = {k: v.clone() for k, v in network.state_dict().items()}
        made = folded(network)
        assert isinstance(made, FoldedNetwork) and not made.training
        assert made.num_classes == network.num_classes
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert all(p.requires_grad for p in network.parameters())
        assert not any(p.requires_grad for p in made.parameters())


def test_a_folded_network_has_the_gradients_of_the_network():
    network = small()
    images = torch.rand(2, 3, 16, 16)
    gradients = []
    for module in (network, folded(network)):
        point = images.clone().requires_grad_()
        module(point).square().sum().backward()
        gradients.append(point.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_normalisation_shared_by_two_convolutions_is_folded_into_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.second(self.norm(self.first(x)))).flatten(1)

    network = Network(settled(Twice()), MEAN, STD, 1).eval()
    assert count_of(folded(network), nn.BatchNorm2d) == 0
    assert largest_difference(network, size=8) < 1e-6


def test_a_network_in_training_mode_is_not_folded():
    with pytest.raises(CertbenchError, match="training mode"):
        folded(small().train())
