import dataclasses
import hashlib

import pytest
import timm as library
import torch

from certbench.errors import CertbenchError
from certbench.models import timm as builder
from certbench.params import build as build_params
from certbench.plugins import load


def make(name, num_classes=7, **kwargs):
    return builder.build(builder.Params(name, kwargs), num_classes)


def test_the_plugin_is_found_and_the_library_is_not_shadowed():
    module = load("model", "timm")
    assert module.version == 1
    assert library.__version__
    assert not hasattr(library, "default_normalisation")


@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k", "test_vit"])
def test_a_network_gives_one_logit_per_class(name):
    kwargs = {"img_size": 32} if "vit" in name else {}
    net = make(name, 7, **kwargs).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_the_same_seed_gives_the_library_s_own_network():
    torch.manual_seed(0)
    ours = make("test_resnet", 5).state_dict()
    torch.manual_seed(0)
    theirs = library.create_model("test_resnet", num_classes=5).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_normalisation_is_that_of_the_weights_and_depends_on_the_tag():
    assert builder.default_normalisation(builder.Params("test_vit")) == ((0.5,) * 3, (0.5,) * 3)
    dino = builder.default_normalisation(builder.Params("vit_base_patch16_224.dino"))
    plain = builder.default_normalisation(
        builder.Params("vit_base_patch16_224.augreg_in21k_ft_in1k")
    )
    assert dino == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert plain == ((0.5,) * 3, (0.5,) * 3)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(CertbenchError, match="did you mean 'resnet18'"):
        make("resnet_18")


def test_a_misspelt_tag_is_answered_with_the_nearest():
    with pytest.raises(CertbenchError, match="did you mean 'r160_in1k'"):
        make("test_resnet.r160_in1")


@pytest.mark.parametrize("name", ["hf-hub:timm/test_vit", "timm/test_vit", "local-dir:/tmp/m"])
def test_an_address_is_no_architecture(name):
    with pytest.raises(CertbenchError, match="is an address"):
        make(name)


def test_unknown_arguments_are_told_with_the_library_s_words():
    with pytest.raises(CertbenchError, match=r"(?s)kwargs: timm cannot build.*no_such_argument"):
        make("test_resnet", no_such_argument=1)


def test_the_number_of_classes_is_not_the_user_s_to_set_twice():
    with pytest.raises(CertbenchError, match="'num_classes' is set by certbench"):
        builder.build(builder.Params("test_resnet", {"num_classes": 3}), 7)


def test_parameters_come_from_the_configuration():
    params = build_params(builder.Params, {"name": "test_vit", "kwargs": {"img_size": 32}}, "c")
    assert builder.build(params, 3).num_classes == 3


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights of test_resnet with 1000 classes, in PyTorch's cache as if published by URL."""
    torch.manual_seed(3)
    state = library.create_model("test_resnet").state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, tmp_path / "w")
    digest = hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest()
    name = f"test-{digest[:12]}.pth"
    (tmp_path / "w").rename(cache / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    registry = library.models._registry._model_pretrained_cfgs
    key = "test_resnet.r160_in1k"
    weights = dataclasses.replace(
        registry[key], url=f"http://127.0.0.1:9/{name}", hf_hub_id=None, source=None
    )
    monkeypatch.setitem(registry, key, weights)
    return state


def test_pretrained_weights_come_from_the_cache_and_a_new_head_is_made(published):
    net = builder.build(builder.Params("test_resnet.r160_in1k"), 7, pretrained=True)
    loaded = net.state_dict()
    assert torch.equal(loaded["conv1.0.weight"], published["conv1.0.weight"])
    assert loaded["fc.weight"].shape == (7, published["fc.weight"].shape[1])


def test_pretrained_weights_keep_their_head_where_the_classes_are_as_many(published):
    net = builder.build(builder.Params("test_resnet.r160_in1k"), 1000, pretrained=True)
    loaded = net.state_dict()
    assert all(torch.equal(loaded[k], published[k]) for k in published)
