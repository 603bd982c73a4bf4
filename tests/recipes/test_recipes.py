"""What every recipe of the package promises."""

import subprocess
import sys

import pytest
import torch

from certbench import plugins
from certbench.errors import CertbenchError
from certbench.models import denoised
from certbench.models.network import Network
from certbench.params import as_dict, build

SHORT = {
    "epochs": 3,
    "batch_size": 40,
    "learning_rate": 0.05,
    "schedule": "one_cycle",
    "flip": False,
    "crop_padding": 0,
}
OWN = {
    "standard": {},
    "gaussian": {"sigma": 0.2},
    "smoothadv": {"sigma": 0.2, "noise_samples": 2, "attack_steps": 2},
    "macer": {"sigma": 0.2, "noise_samples": 4, "strength": 1.0},
    "consistency": {"sigma": 0.2, "strength": 2.0},
    "smoothmix": {"sigma": 0.2, "attack_steps": 2, "step_size": 0.4, "eta": 1.0},
    "denoising": {"learning_rate": 0.01},
}
PASSES = {  # forward and backward per image: learning plus attack
    "standard": (1, 1),
    "gaussian": (1, 1),
    "smoothadv": (2 + 2 * 2, 2 + 2 * 2),
    "macer": (4, 4),
    "consistency": (2, 2),
    "smoothmix": (2 + 2 + 2 * 2, 2 + 2 + 2 * 2),
    "denoising": (1, 1),
}


def params_of(name, **more):
    recipe = plugins.load("recipe", name)
    return recipe, build(recipe.Params, {**SHORT, **OWN[name], **more}, name)


@pytest.fixture
def started(context):
    """Makes the context of a recipe, with a network that it can train."""

    def make(name, params, memory=None, **more):
        net = None
        if name == "denoising":
            spec = {"builder": "small_cnn", "params": {"width": 4}}
            sizes = {"builder": "dncnn", "params": {"depth": 3, "width": 8}}
            torch.manual_seed(0)
            net = denoised.build(denoised.Params(classifier=spec, denoiser=sizes, sigma=0.2), 3)
            net = Network(net, (0.0,) * 3, (1.0,) * 3, 3)
        return context(params, memory, net=net, **more)

    return make


def test_every_recipe_is_covered_here():
    assert set(OWN) == set(plugins.available("recipe"))


@pytest.mark.parametrize("name", OWN)
def test_it_learns(started, memory, name, tiny_images):
    recipe, params = params_of(name, epochs=12)
    rows, (images, labels) = memory(), tiny_images(60, seed=9)
    recipe.train(started(name, params, rows, val_images=images, val_labels=labels))
    assert rows.rows[-1][2] > 0.8  # a third by guessing


@pytest.mark.parametrize("name", OWN)
def test_a_kill_changes_nothing(started, memory, name):
    recipe, params = params_of(name)
    whole = started(name, params)
    recipe.train(whole)
    rows = memory(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(started(name, params, rows))
    rows.stop_after = None
    resumed = started(name, params, rows)
    recipe.train(resumed)
    made, wanted = resumed.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", OWN)
def test_its_cost_is_learning_plus_attack(started, memory, name):
    recipe, params = params_of(name, epochs=1)
    rows = memory()
    recipe.train(started(name, params, rows))
    assert rows.rows[0][4:] == tuple(60 * passes for passes in PASSES[name])


@pytest.mark.parametrize("name", OWN)
def test_its_parameters_survive_json(name):
    recipe, params = params_of(name)
    assert build(recipe.Params, as_dict(params), name) == params


def test_planning_imports_recipes_without_torch():
    names = ", ".join(f"certbench.recipes.{name}" for name in OWN)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_denoising_removes_noise(started, tiny_images):
    recipe, params = params_of("denoising", epochs=30)
    made = started("denoising", params, count=120)
    recipe.train(made)
    images = tiny_images(300, seed=5)[0].float() / 255
    noisy = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (made.network.net.denoiser(noisy) - images).square().mean()
    assert error < 0.6 * 0.2**2


def test_denoising_refuses_another_builder(context):
    recipe, params = params_of("denoising")
    with pytest.raises(CertbenchError, match="use the builder denoised"):
        recipe.train(context(params))
