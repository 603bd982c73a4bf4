"""Mistakes end with one message and a code, before heavy work, and lose nothing."""

import shutil

import pytest

pytestmark = pytest.mark.workflow


def refused(project, *arguments):
    done = project.run(*arguments, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    return done.stdout


def test_an_unknown_name_stops_the_workflow_before_any_job(project, tiny):
    tiny["experiments"][0]["attacks"] = ["pdg"]
    project.configure(tiny)
    message = refused(project, "results/report.html")
    assert "config: experiments[0].attacks[0]" in message
    assert "did you mean 'pgd'?" in message
    assert not (project.folder / "results").exists()


def test_a_dataset_folder_that_does_not_exist_is_named_before_any_model_runs(project, tiny):
    tiny["datasets"]["photos"] = {
        "type": "image_folder",
        "root": "no/such/folder",
        "sizes": {"test": 10, "train": 10},
    }
    tiny["experiments"] = [
        {
            "name": "photos",
            "datasets": [{"name": "photos", "view": "squash32", "limit": 10}],
            "models": ["plain"],
        }
    ]
    project.configure(tiny)
    message = refused(project, "results/tables/photos.parquet")
    assert "no/such/folder" in message and "datasets.photos" in message
    assert not list(project.folder.glob("results/predictions/**/*.parquet"))


@pytest.mark.slow
def test_a_model_with_nan_weights_is_named_and_nothing_is_kept_of_it(project, tiny):
    import torch
    from safetensors.torch import load_file, save_file

    project.run("results/models/plain/model.safetensors")
    folder = project.folder / "results" / "models" / "plain"
    state = load_file(folder / "model.safetensors")
    state["fc.bias"] = torch.full_like(state["fc.bias"], torch.nan)
    save_file(state, project.folder / "nan.safetensors")
    tiny["models"]["broken"] = {
        "builder": {"type": "small_cnn", "width": 4},
        "source": {"type": "file", "path": "nan.safetensors"},
        "num_classes": 10,
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    tiny["experiments"][1]["models"] = ["broken"]
    project.configure(tiny)
    message = refused(project, "results/tables/shifted.parquet")
    assert "NaN" in message
    assert not list(project.folder.glob("results/predictions/**/broken/*.parquet"))


@pytest.mark.slow
def test_a_checkpoint_for_other_classes_is_refused_with_both_numbers(project, tiny):
    project.run("results/models/plain/model.safetensors")
    shutil.copy(
        project.folder / "results/models/plain/model.safetensors",
        project.folder / "ten.safetensors",
    )
    tiny["models"]["seven"] = {
        "builder": {"type": "small_cnn", "width": 4},
        "source": {"type": "file", "path": "ten.safetensors"},
        "num_classes": 7,
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    tiny["experiments"][1]["models"] = ["seven"]
    project.configure(tiny)
    message = refused(project, "results/tables/shifted.parquet")
    assert "10" in message and "7" in message and "classes" in message
