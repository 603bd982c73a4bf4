import dataclasses
import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import torch
from safetensors.torch import save_file

from certbench.errors import CertbenchError
from certbench.models import download as downloading
from certbench.models.sources import SourceContext, file, huggingface, url
from certbench.models.sources import timm as timm_source
from certbench.models.sources import torchvision as torchvision_source
from certbench.params import build as build_params
from certbench.plugins import available, load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


class Handler(http.server.BaseHTTPRequestHandler):
    """Plain files under /files/, and the Hub's protocol for one repository, tiny/net."""

    def answer(self, body, **headers):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, code, **headers):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_GET(self):
        site, path = self.server.site, unquote(self.path.partition("?")[0])
        site.requests.append((self.command, path))
        if path.startswith("/files/"):
            body = site.files.get(path.removeprefix("/files/"))
            return self.answer(body) if body is not None else self.refuse(404)
        parts = path.strip("/").split("/")
        if parts[:2] == ["terms", "net"]:
            return self.refuse(403, X_Error_Code="GatedRepo")
        if parts[:2] != ["tiny", "net"] or len(parts) < 5 or parts[2] != "resolve":
            return self.refuse(404, X_Error_Code="RepoNotFound")
        revision, name = parts[3], "/".join(parts[4:])
        if revision not in ("main", COMMIT):
            return self.refuse(404, X_Error_Code="RevisionNotFound")
        if name not in site.files:
            return self.refuse(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        body = site.files[name]
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return self.answer(body, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    base = f"http://127.0.0.1:{server.server_port}"
    server.site = SimpleNamespace(files={}, requests=[], base=base, files_url=f"{base}/files")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "BACKOFF_S", 0.01)
    monkeypatch.setattr(downloading, "ATTEMPTS", 2)
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def weights(tmp_path):
    save_file(STATE, tmp_path / "given.safetensors")
    return (tmp_path / "given.safetensors").read_bytes()


def digest(body):
    return hashlib.sha256(body).hexdigest()


def same(state, other=STATE):
    return set(state) == set(other) and all(torch.equal(state[k], other[k]) for k in other)


def parameters(module, **values):
    return build_params(module.Params, values, "config: models.m.source")


def test_every_source_is_found_and_importing_them_loads_no_torch():
    names = {"file", "url", "huggingface", "timm", "torchvision"}
    assert names <= set(available("source"))
    script = (
        "import sys; from certbench.plugins import load;"
        f"[load('source', n) for n in {sorted(names)}]; load('model', 'timm');"
        "load('model', 'torchvision'); import certbench.models.fetching;"
        "assert not {'torch', 'numpy', 'timm', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# file ---------------------------------------------------------------------------------------------


def test_a_file_is_read_where_it_lies(tmp_path, weights):
    path = tmp_path / "given.safetensors"
    params = parameters(file, path=str(path), sha256=digest(weights))
    fetched = load("source", "file").fetch(params, tmp_path / "unused", SourceContext())
    assert same(fetched.state)
    assert (fetched.sha256, fetched.size_bytes) == (digest(weights), len(weights))
    assert fetched.origin == f"file {path}"
    assert not (tmp_path / "unused").exists()


def test_a_missing_file_names_the_model(tmp_path):
    params = parameters(file, path=str(tmp_path / "no.pt"))
    with pytest.raises(CertbenchError, match=r"^model 'm': source: .*no\.pt does not exist"):
        file.fetch(params, tmp_path, SourceContext("model 'm': source"))


def test_a_digest_that_is_none_is_refused_while_planning():
    with pytest.raises(CertbenchError, match="'abc' is no sha256"):
        parameters(file, path="w.pt", sha256="abc")


# url ----------------------------------------------------------------------------------------------


def test_a_url_is_fetched_once_and_verified(site, tmp_path, weights):
    site.files["w.safetensors"] = weights
    params = parameters(url, url=f"{site.files_url}/w.safetensors", sha256=digest(weights))
    told = []
    context = SourceContext("m", lambda done, total: told.append((done, total)))
    for _ in range(2):
        fetched = url.fetch(params, tmp_path / "downloads", context)
        assert same(fetched.state)
        assert fetched.origin == f"{site.files_url}/w.safetensors"
        assert fetched.sha256 == digest(weights)
    assert len(site.requests) == 1
    assert told[-1] == (len(weights), len(weights))


def test_two_urls_with_one_file_name_do_not_share_a_download(tmp_path):
    one = url.cached_path("https://a.example/w.pt?x=1", tmp_path)
    other = url.cached_path("https://b.example/w.pt?x=1", tmp_path)
    assert one != other and one.name.endswith("-w.pt")


def test_a_url_needs_a_digest_or_consent(site, tmp_path, weights):
    site.files["w.safetensors"] = weights
    address = f"{site.files_url}/w.safetensors"
    with pytest.raises(CertbenchError, match=r"(?s)has no sha256.*allow_unverified: true"):
        parameters(url, url=address)
    params = parameters(url, url=address, allow_unverified=True)
    assert url.fetch(params, tmp_path, SourceContext()).sha256 == digest(weights)


def test_a_url_of_another_kind_is_refused_while_planning():
    with pytest.raises(CertbenchError, match="no http or https address"):
        parameters(url, url="ftp://host/w.pt", allow_unverified=True)


def test_a_url_with_other_content_is_refused(site, tmp_path, weights):
    site.files["w.safetensors"] = weights + b"x"
    params = parameters(url, url=f"{site.files_url}/w.safetensors", sha256=digest(weights))
    with pytest.raises(CertbenchError, match=f"expected {digest(weights)}"):
        url.fetch(params, tmp_path, SourceContext())


def test_a_password_in_the_url_stays_out_of_the_card(site, tmp_path, weights):
    site.files["w.safetensors"] = weights
    address = f"{site.files_url}/w.safetensors"
    # The file is in the cache under the address with the password; no request is made.
    secret = address.replace("http://", "http://me:secret@")
    (tmp_path / "x").mkdir()
    url.cached_path(secret, tmp_path).write_bytes(weights)
    params = parameters(url, url=secret, sha256=digest(weights))
    assert url.fetch(params, tmp_path, SourceContext()).origin == address


# huggingface --------------------------------------------------------------------------------------


@pytest.fixture
def hub(site, tmp_path, monkeypatch, weights):
    """A hub of our own, an empty cache, no token."""
    from huggingface_hub import constants

    site.files["model.safetensors"] = weights
    site.cache = tmp_path / "hub"
    monkeypatch.setenv("HF_ENDPOINT", site.base)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(site.cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    return site


def from_hub(repo="tiny/net", context=None, **values):
    params = parameters(huggingface, repo=repo, **values)
    return huggingface.fetch(params, Path("unused"), context or SourceContext("model 'm': source"))


def test_a_file_of_the_hub_is_fetched_with_its_commit(hub, weights):
    told = []
    fetched = from_hub(context=SourceContext("m", lambda *bytes: told.append(bytes)))
    assert same(fetched.state)
    assert fetched.origin == f"hf://tiny/net@{COMMIT}/model.safetensors"
    assert (fetched.sha256, fetched.size_bytes) == (digest(weights), len(weights))
    assert told[-1] == (len(weights), len(weights))


def test_a_cached_file_of_a_commit_needs_no_network(hub, monkeypatch):
    from_hub(revision=COMMIT)
    hub.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same(from_hub(revision=COMMIT).state)
    assert hub.requests == []


def test_a_cached_file_of_a_branch_is_used_where_the_hub_cannot_be_reached(hub, monkeypatch):
    from_hub()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same(from_hub().state)


def test_no_network_and_no_cache_is_told_with_the_remedy(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CertbenchError) as caught:
        from_hub()
    text = str(caught.value)
    assert text.startswith("model 'm': source: cannot reach http://127.0.0.1")
    assert str(hub.cache) in text and "HF_HOME" in text


def test_a_missing_repository_revision_and_file_are_told_apart(hub):
    with pytest.raises(CertbenchError, match="no repository tiny/other at"):
        from_hub("tiny/other")
    with pytest.raises(CertbenchError, match="tiny/net has no revision 'v9'"):
        from_hub(revision="v9")
    with pytest.raises(CertbenchError, match=r"tiny/net@main has no file 'other\.bin'"):
        from_hub(filename="other.bin")
    with pytest.raises(CertbenchError, match=r"(?s)consent to its terms.*HF_TOKEN"):
        from_hub("terms/net")
    with pytest.raises(CertbenchError, match=r"(?s)no repository name.*owner/name"):
        from_hub("a/b/c")


def test_a_file_of_the_hub_with_another_digest_is_refused(hub):
    with pytest.raises(CertbenchError, match="expected " + "0" * 64):
        from_hub(sha256="0" * 64)


# timm ---------------------------------------------------------------------------------------------


@pytest.fixture
def timm_weights(tmp_path):
    import timm

    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "timm.pth")
    save_file(state, tmp_path / "timm.safetensors")
    return state, (tmp_path / "timm.pth").read_bytes(), (tmp_path / "timm.safetensors").read_bytes()


def record(monkeypatch, **values):
    """Change where timm's registry says that the weights of test_resnet are."""
    import timm

    registry = timm.models._registry._model_pretrained_cfgs
    key = "test_resnet.r160_in1k"
    monkeypatch.setitem(registry, key, dataclasses.replace(registry[key], **values))


def from_timm(name="test_resnet.r160_in1k", **values):
    params = parameters(timm_source, name=name, **values)
    return timm_source.fetch(params, Path("unused"), SourceContext("model 'm': source"))


def test_timm_weights_come_from_a_url_into_the_cache(site, tmp_path, monkeypatch, timm_weights):
    state, body, _ = timm_weights
    name = f"test-{digest(body)[:12]}.pth"
    site.files[name] = body
    record(monkeypatch, url=f"{site.files_url}/{name}", hf_hub_id=None, source=None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for _ in range(2):
        fetched = from_timm()
        assert same(fetched.state, state)
        assert (fetched.sha256, fetched.size_bytes) == (digest(body), len(body))
        assert fetched.origin == f"{site.files_url}/{name}"
    assert len(site.requests) == 1
    with pytest.raises(CertbenchError, match="expected " + "0" * 64):
        from_timm(sha256="0" * 64)


def test_timm_without_network_names_the_cache(site, tmp_path, monkeypatch):
    record(monkeypatch, url="http://127.0.0.1:9/test.pth", hf_hub_id=None, source=None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CertbenchError) as caught:
        from_timm()
    assert str(tmp_path / "hub" / "checkpoints" / "test.pth") in str(caught.value)
    assert "login nodes" in str(caught.value)


@pytest.mark.parametrize("pickled", [False, True])
def test_timm_weights_come_from_the_hub(hub, monkeypatch, timm_weights, pickled):
    from huggingface_hub import constants

    # timm asks the endpoint that was set when the Hub's package was imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.base)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.base + "/{repo_id}/resolve/{revision}/{filename}",
    )
    state, torch_file, safe_file = timm_weights
    hub.files.clear()
    name, body = ("pytorch_model.bin", torch_file) if pickled else ("model.safetensors", safe_file)
    hub.files[name] = body
    record(monkeypatch, hf_hub_id="tiny/net", url="")
    fetched = from_timm()
    assert same(fetched.state, state)
    assert fetched.sha256 == digest(body)
    assert fetched.origin == f"hf://tiny/net/{name}"


def test_timm_s_hub_weights_without_network_name_the_cache(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    record(monkeypatch, hf_hub_id="tiny/net", url="")
    with pytest.raises(CertbenchError, match=r"(?s)not in the cache.*HF_HOME"):
        from_timm()


def test_a_timm_model_without_weights_is_refused(monkeypatch):
    record(monkeypatch, hf_hub_id=None, url="", file=None)
    with pytest.raises(CertbenchError, match="publishes no weights for 'test_resnet"):
        from_timm()


def test_the_normalisation_of_timm_weights_follows_their_tag():
    dino = parameters(timm_source, name="vit_base_patch16_224.dino")
    assert timm_source.normalisation(dino) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    plain = parameters(timm_source, name="vit_base_patch16_224")
    assert timm_source.normalisation(plain) == ((0.5,) * 3, (0.5,) * 3)


# torchvision --------------------------------------------------------------------------------------


@pytest.fixture
def squeezenet(site, tmp_path, monkeypatch):
    """SqueezeNet 1.1 with weights published by a server of our own."""
    import torchvision

    torch.manual_seed(3)
    state = torchvision.models.get_model("squeezenet1_1", weights=None).state_dict()
    torch.save(state, tmp_path / "squeezenet.pth")
    body = (tmp_path / "squeezenet.pth").read_bytes()
    name = f"squeezenet1_1-{digest(body)[:12]}.pth"
    site.files[name] = body
    entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry.value, "url", f"{site.files_url}/{name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return SimpleNamespace(state=state, body=body, name=name, entry=entry)


def from_torchvision(**values):
    params = parameters(torchvision_source, **{"name": "squeezenet1_1", **values})
    return torchvision_source.fetch(params, Path("unused"), SourceContext("model 'm': source"))


def test_torchvision_weights_come_into_the_cache_once(site, squeezenet):
    for weights in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        fetched = from_torchvision(weights=weights)
        assert same(fetched.state, squeezenet.state)
        assert fetched.sha256 == digest(squeezenet.body)
        assert fetched.size_bytes == len(squeezenet.body)
    assert len(site.requests) == 1


def test_torchvision_without_network_names_the_cache(site, squeezenet, tmp_path, monkeypatch):
    monkeypatch.setattr(squeezenet.entry.value, "url", "http://127.0.0.1:9/net-0a0a0a0a.pth")
    with pytest.raises(CertbenchError) as caught:
        from_torchvision()
    assert str(tmp_path / "hub" / "checkpoints" / "net-0a0a0a0a.pth") in str(caught.value)


def test_a_cached_file_that_would_run_code_is_never_unpickled(
    site, squeezenet, tmp_path, monkeypatch
):
    class Bomb:
        def __reduce__(self):
            import os

            return os.system, (f"touch '{tmp_path / 'it ran'}'",)

    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"features": Bomb()}, cache / "net.pth")
    monkeypatch.setattr(squeezenet.entry.value, "url", f"{site.files_url}/net.pth")
    with pytest.raises(CertbenchError, match="Python objects beside tensors"):
        from_torchvision()
    assert not (tmp_path / "it ran").exists()


def test_torchvision_weights_of_another_name_are_answered_with_the_choices(site):
    with pytest.raises(CertbenchError, match="did you mean 'IMAGENET1K_V1'"):
        from_torchvision(weights="IMAGENET1K_V3")


def test_arguments_that_do_not_go_with_the_weights_are_told(squeezenet):
    with pytest.raises(CertbenchError, match="cannot build squeezenet1_1 with IMAGENET1K_V1"):
        from_torchvision(kwargs={"num_classes": 10})
