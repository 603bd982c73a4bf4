import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from certbench.errors import CertbenchError
from certbench.models import denoised
from certbench.models._denoised_net import Denoised, DiffusionDenoiser, DnCNN
from certbench.models.diffusion import cumulative_alphas, timestep
from certbench.models.network import Network, folded, load_model, save_model
from certbench.params import as_dict
from certbench.params import build as build_params

# ---- schedules and timesteps


def test_the_linear_schedule_is_that_of_ho_et_al():
    wanted = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert cumulative_alphas("linear", 1000) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_the_cosine_schedule_is_the_curve_up_to_its_clipped_end(steps):
    made = np.array(cumulative_alphas("cosine", steps))
    t = np.arange(steps + 1) / steps
    curve = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    assert made[:-1] == pytest.approx((curve / curve[0])[1:-1], rel=1e-9)
    assert made[-1] == pytest.approx(made[-2] * 0.001)  # beta is at most 0.999


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sigma", [0.05, 0.12, 0.25, 0.5, 1.0])
def test_the_timestep_is_the_first_with_enough_noise(schedule, sigma):
    alphas = cumulative_alphas(schedule, 1000)
    noise = np.sqrt(1 - np.array(alphas)) / np.sqrt(alphas)
    wanted = int(np.argmax(noise >= 2 * sigma))
    assert timestep(sigma, alphas) == wanted > 0
    assert noise[wanted - 1] < 2 * sigma <= noise[wanted]


def test_the_boundary_counts_as_enough():
    # 2 sigma = 1 needs abar <= 1/2.
    assert timestep(0.5, [0.9, 0.5, 0.1]) == 1


def test_more_noise_than_the_schedule_has_is_refused():
    with pytest.raises(CertbenchError, match=r"at most 1\.5"):
        timestep(1.6, [0.9, 0.1])


# ---- one step of a diffusion model


class Oracle(nn.Module):
    """Knows the clean image: predicts the very noise, and keeps what it was shown."""

    def __init__(self, image, alpha):
        super().__init__()
        self.image, self.alpha, self.shown = image, alpha, []

    def forward(self, x_t, t):
        self.shown.append((x_t, t))
        clean = 2 * self.image - 1
        eps = (x_t - math.sqrt(self.alpha) * clean) / math.sqrt(1 - self.alpha)
        return torch.cat([eps, torch.full_like(eps, 7.0)], dim=1)  # a learned variance follows


def test_a_perfect_model_gives_the_clean_image_back():
    image, alpha = torch.rand(4, 3, 5, 5), 0.7
    denoise = DiffusionDenoiser(Oracle(image, alpha), 123, alpha)
    assert torch.allclose(denoise(image + 0.3 * torch.randn_like(image)), image, atol=1e-5)


def test_the_model_is_shown_its_own_kind_of_noise():
    """x_t = sqrt(abar) x + sqrt(1 - abar) z, with at least as much noise assumed as there is."""
    sigma = 0.25
    alphas = cumulative_alphas("linear", 1000)
    step = timestep(sigma, alphas)
    image, z = torch.rand(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    oracle = Oracle(image, alphas[step])
    DiffusionDenoiser(oracle, step, alphas[step])(image + sigma * z)
    ((shown, t),) = oracle.shown
    root = math.sqrt(alphas[step])
    assert torch.allclose(shown, root * (2 * image - 1) + root * 2 * sigma * z, atol=1e-5)
    assert t.dtype == torch.int64 and t.tolist() == [step] * 2
    assert root * 2 * sigma <= math.sqrt(1 - alphas[step]) < root * 2 * sigma * 1.02


def test_the_denoised_image_stays_in_the_range():
    wild = DiffusionDenoiser(Oracle(torch.rand(2, 3, 4, 4) * 9 - 4, 0.5), 5, 0.5)
    made = wild(torch.rand(2, 3, 4, 4))
    assert made.min() == 0 and made.max() == 1


# ---- the composition


def make_epsilon(channels):
    """A diffusion model for the tests, named as module:function."""

    class Epsilon(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, channels, 3, padding=1)

        def forward(self, x, t):
            return self.conv(x) * (t.view(-1, 1, 1, 1) / 1000)

    return Epsilon()


def params(**changes):
    values = {
        "classifier": {
            "builder": "small_cnn",
            "params": {"width": 3},
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.4],
        },
        "denoiser": {"builder": "dncnn", "params": {"depth": 4, "width": 5}},
        "sigma": 0.25,
        **changes,
    }
    return build_params(denoised.Params, values, "config: models.m.builder")


@pytest.fixture
def diffusion(monkeypatch):
    monkeypatch.setitem(sys.modules, "denoised_test_models", sys.modules[__name__])
    return params(
        denoiser={"module": "denoised_test_models:make_epsilon", "params": {"channels": 6}},
        schedule="linear",
    )


def test_the_composition_is_the_classifier_after_the_denoiser():
    net = denoised.build(params(), 5).eval()
    images = torch.rand(2, 3, 16, 16)
    cleaned = net.denoiser(images)
    wanted = net.classifier.net((cleaned - net.classifier.mean) / net.classifier.std)
    assert torch.allclose(net(images), wanted) and wanted.shape == (2, 5)
    assert net.classifier.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert denoised.default_normalisation(params()) == ((0, 0, 0), (1, 1, 1))


def test_a_new_dncnn_is_the_identity():
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(DnCNN(5, 4).eval()(images), images)


def test_dncnn_has_the_keys_of_the_published_denoisers():
    # A convolution with bias, then blocks of convolution, normalisation, ReLU from index 2 on.
    state = DnCNN(17, 64).state_dict()
    convolutions = {f"dncnn.{2 + 3 * i}.weight" for i in range(16)} | {"dncnn.0.weight"}
    assert {k for k, v in state.items() if v.ndim == 4} == convolutions
    normalised = {k.removesuffix(".running_mean") for k in state if k.endswith("running_mean")}
    assert normalised == {f"dncnn.{3 + 3 * i}" for i in range(15)}
    assert {k for k in state if k.endswith("bias")} == {"dncnn.0.bias"} | {
        f"{name}.bias" for name in normalised
    }
    assert state["dncnn.47.weight"].shape == (3, 64, 3, 3)


def test_a_diffusion_model_from_outside_takes_the_place_of_the_denoiser(diffusion):
    net = denoised.build(diffusion, 5).eval()
    assert isinstance(net.denoiser, DiffusionDenoiser)
    assert net.denoiser.timestep == timestep(0.25, cumulative_alphas("linear", 1000))
    assert net(torch.rand(2, 3, 16, 16)).shape == (2, 5)


def test_nothing_in_the_composition_is_random(diffusion):
    for one in (params(), diffusion):
        net = denoised.build(one, 5).eval()
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(net(images), net(images))


def test_the_denoised_image_is_resized_for_the_classifier():
    net = denoised.build(params(classifier_size=24), 5).eval()
    shown = []
    net.classifier.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].shape))
    net(torch.rand(2, 3, 16, 16))
    assert shown == [(2, 3, 24, 24)]


def test_the_builders_normalisation_is_used_where_none_is_given():
    spec = {"builder": "cifar_resnet", "params": {"depth": 8}}
    net = denoised.build(params(classifier=spec), 5)
    assert net.classifier.std.flatten().tolist() == pytest.approx([0.2023, 0.1994, 0.2010])
    spec = {"builder": "small_cnn"}
    assert denoised.build(params(classifier=spec), 5).classifier.mean.abs().max() == 0


def test_merged_weights_fill_the_composition(diffusion):
    for one in (params(), diffusion):
        source, target = denoised.build(one, 5).eval(), denoised.build(one, 5).eval()
        is_diffusion = one.schedule is not None
        part = source.denoiser.net if is_diffusion else source.denoiser
        state = denoised.merged(
            source.classifier.net.state_dict(), part.state_dict(), diffusion=is_diffusion
        )
        target.load_state_dict(state)  # strict
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(source(images), target(images))


def test_it_is_saved_loaded_and_folded_like_any_other_model(tmp_path):
    network = Network(denoised.build(params(), 5), (0,) * 3, (1,) * 3, 5).eval()
    files = tmp_path / "m.safetensors", tmp_path / "m.json"
    card = {
        "builder": "denoised",
        "builder_version": denoised.version,
        "builder_params": as_dict(params()),
    }
    save_model(*files, network, card)
    back, images = load_model(*files), torch.rand(2, 3, 16, 16)
    assert torch.equal(back(images), network(images))
    assert torch.allclose(folded(back)(images), network(images), atol=1e-5)
    assert isinstance(back.net, Denoised)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"classifier": {"builder": "smal_cnn"}}, "did you mean 'small_cnn'"),
        ({"classifier": {"params": {}}}, "builder: is required"),
        ({"classifier": {"builder": "small_cnn", "mean": [0.5]}}, "one of mean and std"),
        ({"denoiser": {}}, "exactly one of builder and module"),
        ({"denoiser": {"builder": "dncn"}}, "did you mean 'dncnn'"),
        ({"denoiser": {"module": "no.such:thing"}}, "cannot import"),
        ({"denoiser": {"module": "math:nothing"}}, "cannot import"),
        ({"denoiser": {"builder": "dncnn", "params": {"dept": 3}}}, "did you mean 'depth'"),
        ({"schedule": "linear", "sigma": 100.0}, "more noise than the schedule has"),
    ],
)
def test_mistakes_name_what_is_wrong(changes, words):
    with pytest.raises(CertbenchError, match=words):
        denoised.build(params(**changes), 5)


def test_parameters_outside_their_range_are_refused():
    for changes in ({"schedule": "quadratic"}, {"sigma": 0.0}, {"timesteps": 1}):
        with pytest.raises(CertbenchError, match=next(iter(changes))):
            params(**changes)


def test_planning_imports_the_builder_without_torch():
    code = "import sys, certbench.models.denoised; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
