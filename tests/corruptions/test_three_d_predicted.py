"""Depth from a network on the disk: how images go in, and what its output means."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from certbench.corruptions import three_d_predicted as p
from certbench.corruptions.three_d_depth import from_inverse
from certbench.errors import CertbenchError


class Red(torch.nn.Module):
    """Inverse depth is what the network sees as red."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class Ramp(torch.nn.Module):
    """Nearer from left to right, whatever the image; with a channel axis, as DPT has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x.shape[3], dtype=x.dtype) * 10.0 + 30.0
        return ramp.expand(1, 1, x.shape[2], x.shape[3])


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, 0], 7.0)


class Vector(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Convolved(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(3, 24, 5, padding=2)
        self.two = torch.nn.Conv2d(24, 1, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def saved(folder, network, **more):
    torch.manual_seed(0)
    path = folder / "depth.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(network()).save(str(path))
    return p.Checkpoint(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), **more)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_a_prediction_is_stretched_and_inverted(tmp_path, image):
    """Closed form: inverse depth grows linearly from 0 to 65535 over the columns."""
    depth = p.predict(saved(tmp_path, Ramp, size=None), image)
    wanted = np.clip(1 / (np.arange(96) / 95 * 65535 / 512 + 1e-6), 0, 0.5)
    assert depth.shape == (64, 96) and depth.dtype == np.float32
    np.testing.assert_allclose(depth, np.tile(wanted, (64, 1)), rtol=1e-4)
    assert depth[0, 0] == 0.5 and depth[0, -1] == pytest.approx(512 / 65535, rel=1e-5)


def test_without_stretching_the_values_of_the_network_count(tmp_path, image):
    depth = p.predict(saved(tmp_path, Ramp, size=None, stretch=False), image)
    wanted = from_inverse(np.tile(np.arange(96) * 10.0 + 30.0, (64, 1)))
    np.testing.assert_allclose(depth, wanted, rtol=1e-6)


def test_scale_and_shift_of_a_prediction_do_not_matter():
    inverse = np.random.default_rng(1).random((9, 9)).astype(np.float32)
    one, other = p.stretched(inverse), p.stretched(3.5 * inverse - 2)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=0.1)
    assert one.min() == 0 and one.max() == p.FULL_RANGE


def test_pixels_go_in_normalised_and_in_channel_order(tmp_path, image):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    checkpoint = saved(tmp_path, Red, size=None, stretch=False, mean=mean, std=std)
    bright = np.maximum(image, 200)
    depth = p.predict(checkpoint, bright)
    np.testing.assert_allclose(
        depth, from_inverse((bright[..., 0] / 255 - 0.485) / 0.229), rtol=1e-5
    )


def test_a_flat_prediction_is_far_and_unknown_pixels_stay_unknown(tmp_path, image):
    assert (p.predict(saved(tmp_path, Flat), image) == 0.5).all()
    holes = np.array([[1.0, np.nan], [3.0, np.inf]], np.float32)
    assert np.isnan(p.stretched(holes)[0, 1])


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((480, 640), 384, (384, 512)),
        ((224, 224), 384, (384, 384)),
        ((64, 128), 384, (192, 384)),
        ((1000, 500), 384, (768, 384)),
        ((50, 70), None, (64, 64)),
        ((8, 8), None, (32, 32)),
    ],
)
def test_networks_see_sizes_as_midas_makes_them(shape, size, expected):
    assert p.network_size(*shape, size) == expected


def test_depth_comes_back_at_the_size_of_the_image(tmp_path):
    checkpoint = saved(tmp_path, Ramp, size=64)
    depth = p.predict(checkpoint, np.zeros((45, 33, 3), np.uint8))
    assert depth.shape == (45, 33)
    assert (np.diff(depth[0]) <= 0).all() and depth[0, -1] < 0.02


def test_a_prediction_depends_on_neither_company_nor_threads(tmp_path):
    checkpoint = saved(tmp_path, Convolved, size=128)
    images = np.random.default_rng(2).integers(0, 256, (3, 40, 56, 3), np.uint8)
    first = [p.predict(checkpoint, image) for image in images]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = [p.predict(checkpoint, image) for image in images[::-1]][::-1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    assert len({one.tobytes() for one in first}) == 3


def test_another_checkpoint_than_stated_is_refused(tmp_path, image):
    checkpoint = saved(tmp_path, Flat)
    other = p.Checkpoint(checkpoint.path, "0" * 64)
    with pytest.raises(CertbenchError, match=f"depth_sha256.*{checkpoint.sha256}, not 000"):
        p.predict(other, image)
    with pytest.raises(CertbenchError, match=r"depth_model: there is no file .*gone\.pt"):
        p.check(p.Checkpoint(str(tmp_path / "gone.pt"), "0" * 64))
    # The same file replaced by another network is another file.
    p.predict(checkpoint, image)
    saved(tmp_path, Ramp)
    with pytest.raises(CertbenchError, match="depth_sha256"):
        p.predict(checkpoint, image)


def test_what_is_no_network_or_gives_no_map_is_refused(tmp_path, image):
    (tmp_path / "text.pt").write_text("not a network")
    digest = hashlib.sha256(b"not a network").hexdigest()
    with pytest.raises(CertbenchError, match=r"text\.pt: cannot be loaded as a network"):
        p.predict(p.Checkpoint(str(tmp_path / "text.pt"), digest), image)
    with pytest.raises(CertbenchError, match=r"gave \[1, 3\] for one image"):
        p.predict(saved(tmp_path, Vector), image)


def test_exported_networks_are_read_too(tmp_path, image):
    torch.manual_seed(0)
    network = Convolved().eval()
    example = (torch.zeros(1, 3, 64, 96),)
    path = tmp_path / "depth.pt2"
    torch.export.save(torch.export.export(network, example), str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    exported = p.predict(p.Checkpoint(str(path), digest, size=None), image)
    np.testing.assert_allclose(
        exported, p.predict(saved(tmp_path, Convolved, size=None), image), rtol=1e-3
    )


def test_a_folder_of_hugging_face_is_read(tmp_path, image):
    """Against the library's own pipeline; a tiny network with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    network = transformers.DPTForDepthEstimation(config).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0.05, 0.2)
    network.save_pretrained(tmp_path / "dpt")
    processor = transformers.DPTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "dpt")
    digest = hashlib.sha256((tmp_path / "dpt" / "model.safetensors").read_bytes()).hexdigest()
    checkpoint = p.Checkpoint(str(tmp_path / "dpt"), digest)
    depth = p.predict(checkpoint, image)
    from PIL import Image

    with torch.inference_mode():
        given = processor(images=Image.fromarray(image), return_tensors="pt")
        raw = network(**given).predicted_depth
        raw = torch.nn.functional.interpolate(raw[None], (64, 96), mode="bilinear")[0, 0].numpy()
    scaled = (raw - raw.min()) / (raw.max() - raw.min()) * 65535
    assert len(np.unique(raw)) > 100, "random weights must make something to compare"
    np.testing.assert_allclose(depth, from_inverse(scaled), rtol=1e-3)
    assert np.array_equal(depth, p.predict(checkpoint, image))


def test_a_folder_whose_model_predicts_metres_is_refused(tmp_path, image):
    transformers = pytest.importorskip("transformers")
    config = transformers.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )
    transformers.GLPNForDepthEstimation(config).save_pretrained(tmp_path / "glpn")
    transformers.GLPNImageProcessor().save_pretrained(tmp_path / "glpn")
    digest = hashlib.sha256((tmp_path / "glpn" / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(CertbenchError, match="model of type glpn, whose output is not inverse"):
        p.predict(p.Checkpoint(str(tmp_path / "glpn"), digest), image)


def test_a_folder_without_transformers_is_refused(tmp_path, monkeypatch):
    import sys

    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CertbenchError, match="transformers is not installed"):
        p.check(p.Checkpoint(str(tmp_path), "0" * 64))
