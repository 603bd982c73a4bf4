import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from certbench import job as job_module
from certbench.datasets import digits
from certbench.datasets.access import Items
from certbench.job import EXIT_REFUSED, EXIT_TERMINATED, execute
from certbench.models import cifar_resnet, small_cnn
from certbench.models.network import load_model
from certbench.params import as_dict
from certbench.recipes.training import EpochLog, normalisation
from certbench.results import rows
from certbench.results.progress import Progress

DIGITS = as_dict(digits.Params(train=200, calibration=0, val=50, test=100))
RECIPE = {
    "sigma": 0.2,
    "epochs": 3,
    "batch_size": 50,
    "schedule": "one_cycle",
    "flip": False,
    "crop_padding": 1,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    names = ["train", "val", "test"]
    work = {
        "dataset": "digits",
        "plugin": "digits",
        "version": digits.version,
        "params": DIGITS,
        "splits": names,
        "sizes": dict.fromkeys(names),
        "seed": 0,
        "plugins": [],
    }
    files = {"index": folder / "index.parquet", "card": folder / "card.json"}
    assert execute("prepare", work, {}, files) == 0
    return {"index": [files["index"]], "val_index": [files["index"]]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(**changes):
    work = {
        "model": "m",
        "task": "classification",
        "builder": {"name": "small_cnn", "version": small_cnn.version, "params": {"width": 4}},
        "recipe": {"name": "gaussian", "version": 1, "params": RECIPE},
        "dataset": {
            "id": "digits",
            "plugin": "digits",
            "version": digits.version,
            "params": DIGITS,
            "view": "native",
            "train_split": "train",
            "val_split": "val",
            "limit": None,
        },
        "num_classes": None,
        "normalisation": None,
        "model_seed": 0,
        "seed": 0,
        "device": "cpu",
        "numerics": "exact",
        "plugins": [],
    }
    dataset = {**work["dataset"], **changes.pop("dataset", {})}
    return {**work, "dataset": dataset, **changes}


def outputs(folder):
    folder = Path(folder)
    return {
        "weights": folder / "model.safetensors",
        "card": folder / "model.json",
        "training": folder / "training.parquet",
    }


def trained(prepared, folder=".", **changes):
    made = outputs(folder)
    assert execute("train", planned(**changes), prepared, made) == 0
    return made


def refused(prepared, capsys, **changes):
    made = outputs(".")
    assert execute("train", planned(**changes), prepared, made) == EXIT_REFUSED
    assert not any(path.exists() for path in made.values())
    return capsys.readouterr().err


def test_a_training_writes_a_model_that_loads(prepared):
    made = trained(prepared)
    network = load_model(made["weights"], made["card"])
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    card = json.loads(made["card"].read_text())
    assert card["builder"] == "small_cnn" and card["builder_params"] == {"width": 4}
    assert card["recipe"]["name"] == "gaussian" and card["recipe"]["params"]["sigma"] == 0.2
    assert card["origin"] == {
        "kind": "trained",
        "dataset": "digits",
        "view": "native",
        "split": "train",
        "images": 200,
    }
    assert not list(job_module.PROGRESS_FOLDER.glob("*"))


def test_the_training_table_has_a_row_per_epoch(prepared):
    made = trained(prepared)["training"]
    table = rows.read(made, "training").to_pandas()
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["n_forward"].tolist() == [250] * 3 and table["n_backward"].tolist() == [200] * 3
    assert (table["wall_time_s"] > 0).all() and (table["loss"] > 0).all()
    assert set(table["model"]) == {"m"} and set(table["split"]) == {"train"}
    assert rows.provenance(made)["accuracy_of"] == "val"


def test_the_accuracy_of_the_last_row_is_that_of_the_written_model(prepared):
    recipe = {"name": "standard", "params": {k: v for k, v in RECIPE.items() if k != "sigma"}}
    made = trained(prepared, recipe=recipe)
    batch = Items(prepared["index"][0], "val", "native", digits, digits.Params()).load(0, 50)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255
    network = load_model(made["weights"], made["card"])
    accuracy = (network(images).argmax(1).numpy() == batch.labels).mean()
    assert rows.read(made["training"], "training")["accuracy"][-1].as_py() == accuracy


def test_seed_and_model_seed_decide_the_weights(prepared):
    def digest(name, **seeds):
        Path(name).mkdir()
        return json.loads(trained(prepared, name, **seeds)["card"].read_text())["sha256"]

    first = digest("a")
    assert digest("b") == first
    assert len({first, digest("c", seed=1), digest("d", model_seed=1)}) == 3


def test_the_limit_and_the_absence_of_a_validation_split(prepared, tmp_path):
    made = trained(prepared, dataset={"limit": 60, "val_split": None})
    table = rows.read(made["training"], "training").to_pandas()
    assert table["n_forward"].tolist() == [60] * 3
    (tmp_path / "b").mkdir()
    made_b = trained(prepared, tmp_path / "b", dataset={"limit": 20})
    # The limit is for training only: 20 images, and the 50 of the validation split.
    assert rows.read(made_b["training"], "training")["n_forward"][0].as_py() == 70
    assert rows.provenance(made["training"])["accuracy_of"] == "train"


def test_a_terminated_job_goes_on_to_the_same_bytes(prepared, tmp_path):
    long = {"recipe": {"name": "gaussian", "version": 1, "params": {**RECIPE, "epochs": 40}}}
    (tmp_path / "whole").mkdir()
    whole = trained(prepared, tmp_path / "whole", **long)
    made = outputs(tmp_path)
    code = (
        "import json, sys; from pathlib import Path; from certbench.job import execute\n"
        "work, inputs, outputs = json.loads(sys.argv[1])\n"
        "inputs = {k: [Path(p) for p in v] for k, v in inputs.items()}\n"
        "outputs = {k: Path(v) for k, v in outputs.items()}\n"
        "sys.exit(execute('train', work, inputs, outputs, Path('log')))"
    )
    arguments = [planned(**long), prepared, made]
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(arguments, default=str)])
    log = tmp_path / "log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "epoch 3:" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == EXIT_TERMINATED
    assert not any(path.exists() for path in made.values())

    trained(prepared, tmp_path, **long)
    for name in ("weights", "card"):
        assert made[name].read_bytes() == whole[name].read_bytes()
    columns = ["epoch", "loss", "accuracy", "learning_rate", "n_forward"]
    tables = [rows.read(files["training"], "training", columns) for files in (made, whole)]
    assert tables[0].equals(tables[1])


def test_a_kill_between_a_row_and_its_state_leaves_neither(tmp_path):
    path = tmp_path / "progress.npz"
    with pytest.raises(KeyboardInterrupt), Progress(path, "work", every_s=1000) as progress:
        log = EpochLog(progress)
        log.load()
        for epoch in (1, 2):
            log(epoch, 0.5, 0.9, 0.1)
            log.save({"epoch": epoch})  # the second waits in memory
        log(3, 0.4, 0.9, 0.1)
        raise KeyboardInterrupt
    with Progress(path, "work") as progress:
        log = EpochLog(progress)
        assert log.load() == {"epoch": 2} and log.epochs_done == 2


# ---- normalisation


def test_normalisation_comes_from_the_configuration_first(prepared):
    wanted = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    card = json.loads(trained(prepared, normalisation=wanted)["card"].read_text())
    assert card["mean"] == wanted["mean"] and card["std"] == wanted["std"]


def test_then_from_the_builder():
    made = normalisation(None, cifar_resnet, cifar_resnet.Params(), torch.zeros(1, 3, 2, 2))
    assert made == (cifar_resnet.CIFAR10_MEAN, cifar_resnet.CIFAR10_STD)


def test_then_from_the_training_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 9, 7)).astype(np.uint8)
    images[:, 1] //= 3
    mean, std = normalisation(None, small_cnn, None, torch.from_numpy(images))
    values = images.astype(np.float64) / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-6)
    assert std == pytest.approx(values.std((0, 2, 3)), abs=1e-6)


def test_a_constant_channel_is_not_divided_by_nothing():
    mean, std = normalisation(
        None, small_cnn, None, torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    )
    assert mean == (0.2, 0.2, 0.2) and std == (1.0, 1.0, 1.0)


# ---- refusals


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_classes": 5}, ["labels go from 0 to 9", "5 classes"]),
        ({"recipe": {"name": "gausian", "params": {}}}, ["did you mean 'gaussian'"]),
        ({"recipe": {"name": "gaussian", "params": {}}}, ["sigma", "is required"]),
        ({"recipe": {"name": "gaussian", "version": 9, "params": RECIPE}}, ["version 9"]),
        ({"builder": {"name": "small_cnn", "params": {"widht": 3}}}, ["did you mean 'width'"]),
        ({"dataset": {"train_split": "trian"}}, ["trian", "did you mean 'train'"]),
        ({"recipe": {"name": "gaussian", "params": {**RECIPE, "learning_rate": 1e20}}}, ["loss"]),
    ],
    ids=["classes", "recipe", "sigma", "version", "width", "split", "diverged"],
)
def test_mistakes_are_refused_in_one_message(prepared, capsys, changes, words):
    message = refused(prepared, capsys, **changes)
    assert all(word in message for word in words) and "Traceback" not in message
