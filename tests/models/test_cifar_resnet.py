import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from certbench.errors import CertbenchError
from certbench.models import cifar_resnet
from certbench.models.network import Network, folded, guard_logits, load_model, save_model


def net(depth=20, classes=10, seed=0):
    torch.manual_seed(seed)
    return cifar_resnet.build(cifar_resnet.Params(depth=depth), classes).eval()


@pytest.mark.parametrize("depth, convolutions", [(8, 7), (20, 19), (110, 109)])
def test_depth_counts_the_weighted_layers(depth, convolutions):
    made = [
        name
        for name, module in net(depth).named_modules()
        if isinstance(module, nn.Conv2d) and "downsample" not in name
    ]
    assert len(made) == convolutions  # and the linear layer


def test_depth_110_has_the_published_number_of_parameters():
    # 1.7 million in table 6 of He et al.; the two 1 x 1 convolution shortcuts add 2,752.
    count = sum(p.numel() for p in net(110).parameters())
    shortcuts = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count - shortcuts == 1_727_962


@pytest.mark.parametrize("depth", [9, 21, 100])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(CertbenchError, match="6n"):
        net(depth)


def test_pretrained_is_refused():
    with pytest.raises(CertbenchError, match="no weights of its own"):
        cifar_resnet.build(cifar_resnet.Params(), 10, pretrained=True)


class Normalise(nn.Module):
    """Keeps its constants outside the state, as the published code does."""

    def forward(self, x):
        return (x - 0.5) / 0.25


class DataParallel(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: n,
        lambda n: nn.Sequential(Normalise(), n),
        lambda n: nn.Sequential(Normalise(), DataParallel(n)),
        lambda n: DataParallel(nn.Sequential(Normalise(), n)),
    ],
    ids=["plain", "1.", "1.module.", "module.1."],
)
def test_published_layouts_convert_to_the_network(wrap):
    source, target = net(seed=1), net(seed=2)
    state = {k: v for k, v in wrap(source).state_dict().items() if "num_batches" not in k}
    made = cifar_resnet.convert(state)
    assert set(made) == set(source.state_dict())
    target.load_state_dict(made)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(source(images), target(images))


# ---- real checkpoints


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("CERTBENCH_DATA")
    if not folder:
        pytest.skip("CERTBENCH_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def test_images(data):
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(data / "data/cifar10-jpeg/test.parquet").slice(0, 500)
    pixels = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in table["image"].to_pylist()]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor(table["label"].to_pylist())


def real(data, sigma):
    facts = json.loads((data / f"models/cifar10_resnet20_sigma{sigma}.json").read_text())
    state = load_file(data / f"models/cifar10_resnet20_sigma{sigma}.safetensors")
    assert cifar_resnet.default_normalisation(cifar_resnet.Params()) == (
        tuple(facts["mean"]),
        tuple(facts["std"]),
    )
    made = net()
    made.load_state_dict(cifar_resnet.convert(state))  # strict: every key must match
    return Network(made, facts["mean"], facts["std"], 10).eval(), facts


@pytest.mark.data
@pytest.mark.parametrize("sigma", ["0.0", "0.25", "0.5"])
def test_real_checkpoints_reach_their_recorded_accuracy(data, test_images, sigma):
    network, facts = real(data, sigma)
    images, labels = test_images
    torch.manual_seed(0)
    noisy = images + float(sigma) * torch.randn_like(images)
    with torch.inference_mode():
        for batch, recorded in ((images, "clean_accuracy"), (noisy, "noisy_accuracy")):
            logits = guard_logits(network(batch), "real", 10)
            accuracy = (logits.argmax(1) == labels).float().mean().item()
            # 500 of the 10,000 images: 4 standard errors, false alarm 6e-5 each.
            error = (facts[recorded] * (1 - facts[recorded]) / 500) ** 0.5
            assert abs(accuracy - facts[recorded]) < 4 * error


@pytest.mark.data
def test_folding_a_real_checkpoint_changes_no_decision(data, test_images):
    network, _ = real(data, "0.0")
    with torch.inference_mode():
        wanted, made = network(test_images[0]), folded(network)(test_images[0])
    assert torch.equal(wanted.argmax(1), made.argmax(1))
    assert (wanted - made).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.data
def test_a_real_checkpoint_survives_saving_and_loading(data, test_images, tmp_path):
    network, facts = real(data, "0.5")
    card = {
        "model": "real",
        "builder": "cifar_resnet",
        "builder_version": cifar_resnet.version,
        "builder_params": {"depth": 20},
        "mean": facts["mean"],
        "std": facts["std"],
    }
    files = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_model(*files, network, card)
    images = test_images[0][:50]
    with torch.inference_mode():
        assert torch.equal(load_model(*files)(images), network(images))
