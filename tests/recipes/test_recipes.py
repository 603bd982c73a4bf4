"""What every recipe of the package promises."""

import subprocess
import sys

import pytest
import torch

from certbench import plugins
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
}
PASSES = {  # forward and backward per image: learning plus attack
    "standard": (1, 1),
    "gaussian": (1, 1),
    "smoothadv": (2 + 2 * 2, 2 + 2 * 2),
    "macer": (4, 4),
    "consistency": (2, 2),
    "smoothmix": (2 + 2 + 2 * 2, 2 + 2 + 2 * 2),
}


def params_of(name, **more):
    recipe = plugins.load("recipe", name)
    return recipe, build(recipe.Params, {**SHORT, **OWN[name], **more}, name)


def test_every_recipe_is_covered_here():
    assert set(OWN) == set(plugins.available("recipe"))


@pytest.mark.parametrize("name", OWN)
def test_it_learns(context, memory, name, tiny_images):
    recipe, params = params_of(name, epochs=12)
    rows, (images, labels) = memory(), tiny_images(60, seed=9)
    recipe.train(context(params, rows, val_images=images, val_labels=labels))
    assert rows.rows[-1][2] > 0.8  # a third by guessing


@pytest.mark.parametrize("name", OWN)
def test_a_kill_changes_nothing(context, memory, name):
    recipe, params = params_of(name)
    whole = context(params)
    recipe.train(whole)
    rows = memory(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(context(params, rows))
    rows.stop_after = None
    resumed = context(params, rows)
    recipe.train(resumed)
    made, wanted = resumed.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", OWN)
def test_its_cost_is_learning_plus_attack(context, memory, name):
    recipe, params = params_of(name, epochs=1)
    rows = memory()
    recipe.train(context(params, rows))
    assert rows.rows[0][4:] == tuple(60 * passes for passes in PASSES[name])


@pytest.mark.parametrize("name", OWN)
def test_its_parameters_survive_json(name):
    recipe, params = params_of(name)
    assert build(recipe.Params, as_dict(params), name) == params


def test_planning_imports_recipes_without_torch():
    names = ", ".join(f"certbench.recipes.{name}" for name in OWN)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
