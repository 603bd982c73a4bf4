import functools
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from certbench.errors import CertbenchError
from certbench.job import EXIT_REFUSED, Job, execute
from certbench.models import download as downloading
from certbench.models import fetching
from certbench.models.network import load_model
from certbench.models.sources import FetchedState
from certbench.plugins import load

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def small_cnn(classes=10):
    builder = load("model", "small_cnn")
    torch.manual_seed(0)
    net = builder.build(builder.Params(width=4), classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


class NormalizeLayer(nn.Module):
    """As in the published smoothing code: constants that are no part of the state."""

    def __init__(self, means, sds=(1.0, 1.0, 1.0)):
        super().__init__()
        self.means, self.sds = torch.tensor(means), torch.tensor(sds)

    def forward(self, images):
        return (images - self.means.view(1, 3, 1, 1)) / self.sds.view(1, 3, 1, 1)


class BufferedLayer(nn.Module):
    def __init__(self, mean, std=None):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        if std is not None:
            self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images):
        centred = images - self.mean
        return centred / self.std if hasattr(self, "std") else centred


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloading, "BACKOFF_S", 0.01)
    monkeypatch.setattr(downloading, "ATTEMPTS", 2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def work(source="file", classes=10, normalisation=None, builder=None, **params):
    return {
        "model": "cnn",
        "task": "classification",
        "builder": builder or {"name": "small_cnn", "version": 1, "params": {"width": 4}},
        "source": {"name": source, "version": 1, "params": params},
        "num_classes": classes,
        "normalisation": normalisation,
        "plugins": [],
    }


def outputs():
    folder = Path("results/models/cnn")
    return {"weights": folder / "model.safetensors", "card": folder / "model.json"}


def fetch(**values):
    """Run the job; the network it wrote, read back, and its card."""
    made = outputs()
    fetching.run(Job("fetch", work(**values), {}, made))
    return load_model(made["weights"], made["card"]), json.loads(made["card"].read_text())


def stated(mean=MEAN, std=STD):
    return {"mean": list(mean), "std": list(std)}


def same_function(network, module):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(network(images), module.eval()(images), atol=1e-5)


def test_a_checkpoint_becomes_a_model_with_weights_and_card():
    net = small_cnn()
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, "w.pt")
    network, card = fetch(path="w.pt", normalisation=stated())
    same_function(network, nn.Sequential(NormalizeLayer(MEAN, STD), net))
    file = Path("w.pt").read_bytes()
    assert card["source"] == {
        "name": "file",
        "version": 1,
        "sha256": hashlib.sha256(file).hexdigest(),
        "size_bytes": len(file),
    }
    assert card["origin"] == "file w.pt"
    assert (card["model"], card["task"]) == ("cnn", "classification")
    assert (card["builder"], card["builder_version"]) == ("small_cnn", 1)
    assert card["builder_params"] == {"width": 4}
    assert (tuple(card["mean"]), tuple(card["std"])) == (MEAN, STD)
    assert (card["num_classes"], card["input_kind"]) == (10, "standardise")
    assert card["parameters"] == sum(p.numel() for p in net.parameters())
    assert card["recipe"] is None and card["seed"] is None
    weights = outputs()["weights"].read_bytes()
    assert card["sha256"] == hashlib.sha256(weights).hexdigest()


def test_the_job_runs_through_the_one_entry(tmp_path, capfd):
    torch.save(small_cnn().state_dict(), "w.pt")
    log = tmp_path / "log"
    with capfd.disabled():  # the entry redirects the real streams
        code = execute("fetch", work(path="w.pt", normalisation=stated()), {}, outputs(), log)
    assert code == 0
    assert "file w.pt, sha256" in log.read_text()


def test_a_refusal_leaves_no_traceback_and_no_file(tmp_path, capfd):
    log = tmp_path / "log"
    with capfd.disabled():
        assert execute("fetch", work(path="no.pt"), {}, outputs(), log) == EXIT_REFUSED
    assert "no.pt does not exist" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not outputs()["weights"].exists()


def test_the_module_is_built_before_anything_is_fetched():
    builder = {"name": "cifar_resnet", "version": 1, "params": {"depth": 21}}
    with pytest.raises(CertbenchError, match="depth 21"):
        fetch(path="no.pt", builder=builder)


def test_another_number_of_classes_is_told_as_such():
    torch.save(small_cnn(10).state_dict(), "w.pt")
    with pytest.raises(
        CertbenchError, match="checkpoint has 10 classes, model/dataset wants 7"
    ) as caught:
        fetch(path="w.pt", classes=7, normalisation=stated())
    assert str(caught.value).startswith("model 'cnn': file w.pt: ")
    assert not outputs()["weights"].exists()


def test_weights_that_are_not_finite_are_refused():
    state = small_cnn().state_dict()
    key = next(k for k in state if k.endswith("running_var"))
    state[key][0] = float("nan")
    torch.save(state, "w.pt")
    with pytest.raises(CertbenchError, match=f"NaN or infinite: {key}") as caught:
        fetch(path="w.pt", normalisation=stated())
    assert str(caught.value).startswith("model 'cnn': file w.pt: ")
    assert not outputs()["weights"].exists()


# Which normalisation ------------------------------------------------------------------------------


def test_a_recorded_standardising_layer_is_used_once():
    module = nn.Sequential(BufferedLayer(MEAN, STD), nn.DataParallel(small_cnn()))
    torch.save(module.state_dict(), "w.pt")
    network, card = fetch(path="w.pt")
    same_function(network, nn.Sequential(NormalizeLayer(MEAN, STD), small_cnn()))
    assert (tuple(card["mean"]), tuple(card["std"])) == (MEAN, STD)


def test_a_recorded_centring_layer_is_not_turned_into_a_standardising_one():
    module = nn.Sequential(BufferedLayer(MEAN), small_cnn())
    torch.save(module.state_dict(), "w.pt")
    network, card = fetch(path="w.pt")
    same_function(network, module)
    assert card["input_kind"] == "centre"


def test_a_recorded_layer_against_the_configuration_is_a_contradiction():
    torch.save(nn.Sequential(BufferedLayer(MEAN), small_cnn()).state_dict(), "w.pt")
    with pytest.raises(CertbenchError, match=r"own input layer \(centre: mean \[0\.4914"):
        fetch(path="w.pt", normalisation=stated())
    fetch(path="w.pt", normalisation=stated(std=(1, 1, 1)))


def test_an_unrecorded_layer_must_be_stated_even_where_the_builder_has_a_default():
    builder = load("model", "cifar_resnet")
    net = builder.build(builder.Params(depth=8), 10)
    module = nn.DataParallel(nn.Sequential(NormalizeLayer(MEAN), net))
    torch.save({"arch": "cifar", "state_dict": module.state_dict()}, "w.pt")
    spec = {"name": "cifar_resnet", "version": 1, "params": {"depth": 8}}
    with pytest.raises(CertbenchError, match=r"(?s)does not hold that layer's constants.*1, 1, 1"):
        fetch(path="w.pt", builder=spec)
    network, card = fetch(path="w.pt", builder=spec, normalisation=stated(std=(1, 1, 1)))
    same_function(network, module)
    assert card["input_kind"] == "centre"


def test_without_any_trace_the_builder_s_default_is_used():
    builder = load("model", "cifar_resnet")
    torch.save(builder.build(builder.Params(depth=8), 10).state_dict(), "w.pt")
    spec = {"name": "cifar_resnet", "version": 1, "params": {"depth": 8}}
    _, card = fetch(path="w.pt", builder=spec)
    assert (tuple(card["mean"]), tuple(card["std"])) == builder.default_normalisation(None)


def test_without_any_default_the_normalisation_must_be_stated():
    torch.save(small_cnn().state_dict(), "w.pt")
    with pytest.raises(CertbenchError, match=r"(?s)normalisation: is not known.*state it"):
        fetch(path="w.pt")


def test_constants_of_images_up_to_255_are_refused():
    layer = BufferedLayer([123.7, 116.3, 103.5], [58.4, 57.1, 57.4])
    torch.save(nn.Sequential(layer, small_cnn()).state_dict(), "w.pt")
    with pytest.raises(CertbenchError, match=r"(?s)not one of images in \[0, 1\].*255"):
        fetch(path="w.pt")


def test_the_source_s_own_normalisation_beats_the_builder_s(tmp_path):
    builder = load("model", "cifar_resnet")
    torch.save(builder.build(builder.Params(depth=8), 10).state_dict(), "w.pt")
    plugin = tmp_path / "studio.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from certbench.models.sources import FetchedState\n"
        'kind = "source"\n'
        "version = 4\n"
        "@dataclass(frozen=True)\nclass Params:\n    pass\n"
        "def normalisation(params):\n    return (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)\n"
        "def fetch(params, folder, context):\n"
        "    import torch\n"
        "    context.tick(3, None)\n"
        "    context.tick(9 << 20, 9 << 20)\n"
        "    return FetchedState(torch.load('w.pt', weights_only=True), 'ab', 'studio', 3)\n"
    )
    made = outputs()
    spec = {"name": "cifar_resnet", "version": 1, "params": {"depth": 8}}
    plan = {**work("studio", builder=spec), "plugins": ["studio.py"]}
    fetching.run(Job("fetch", plan, {}, made))
    card = json.loads(made["card"].read_text())
    assert (card["mean"], card["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert card["source"]["version"] == 4


# Over the network ---------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_comes_from_a_web_address_and_again_without_network(site):
    folder, base = site
    torch.save(small_cnn().state_dict(), folder / "w.pt")
    sha = hashlib.sha256((folder / "w.pt").read_bytes()).hexdigest()
    values = {"source": "url", "url": f"{base}/w.pt", "sha256": sha, "normalisation": stated()}
    network, card = fetch(**values)
    same_function(network, nn.Sequential(NormalizeLayer(MEAN, STD), small_cnn()))
    assert card["origin"] == f"{base}/w.pt"
    (folder / "w.pt").unlink()
    first = outputs()["weights"].read_bytes()
    fetch(**values)
    assert outputs()["weights"].read_bytes() == first


def test_a_web_page_under_the_address_is_told_as_one(site):
    folder, base = site
    (folder / "w.pt").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(CertbenchError, match=r"model 'cnn': source: .*HTML page"):
        fetch(source="url", url=f"{base}/w.pt", allow_unverified=True)
    with pytest.raises(CertbenchError, match="HTTP 404"):
        fetch(source="url", url=f"{base}/other.pt", allow_unverified=True)


def test_a_malicious_file_from_the_web_does_not_run(site, tmp_path):
    folder, base = site
    trace = tmp_path / "it ran"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch '{trace}'",)

    torch.save({"state_dict": small_cnn().state_dict(), "hook": Bomb()}, folder / "w.pt")
    with pytest.raises(CertbenchError, match="Python objects beside tensors"):
        fetch(source="url", url=f"{base}/w.pt", allow_unverified=True)
    assert not trace.exists()


# Real weights -------------------------------------------------------------------------------------


@pytest.mark.data
def test_a_real_checkpoint_classifies_real_images_as_its_record_says():
    folder = os.environ.get("CERTBENCH_DATA")
    if not folder:
        pytest.skip("CERTBENCH_DATA is not set")
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    path = Path(folder, "models", "cifar10_resnet20_sigma0.0.safetensors")
    record = json.loads(path.with_suffix(".json").read_text())
    network, card = fetch(
        path=str(path),
        sha256=record["sha256"],
        builder={"name": "cifar_resnet", "version": 1, "params": {"depth": 20}},
        normalisation={"mean": record["mean"], "std": record["std"]},
    )
    assert card["parameters"] == pytest.approx(270_000, rel=0.05)
    rows = pq.read_table(Path(folder, "data/cifar10-jpeg/test.parquet")).slice(0, 500).to_pydict()
    images = np.stack([np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in rows["image"]])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        hits = (network(batch).argmax(1) == torch.tensor(rows["label"])).sum().item()
    # A band of 4.5 standard errors: false alarm below 1e-5 for 500 random images.
    p = record["clean_accuracy"]
    assert abs(hits / 500 - p) < 4.5 * (p * (1 - p) / 500) ** 0.5


def test_the_contract_of_a_source_is_four_fields():
    assert list(FetchedState.__dataclass_fields__) == ["state", "sha256", "origin", "size_bytes"]
