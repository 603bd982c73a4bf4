import pytest
import torch
import torchvision as library

from certbench.errors import CertbenchError
from certbench.models import torchvision as builder
from certbench.params import build as build_params
from certbench.plugins import load

models = library.models


def make(name, num_classes=5, **kwargs):
    return builder.build(builder.Params(name, kwargs), num_classes)


def test_the_plugin_is_found_and_the_library_is_not_shadowed():
    assert load("model", "torchvision").version == 1
    assert library.__version__
    assert not hasattr(library, "default_normalisation")


def test_a_classifier_gives_one_logit_per_class():
    net = make("squeezenet1_1").eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_the_same_seed_gives_the_library_s_own_network():
    torch.manual_seed(0)
    ours = make("shufflenet_v2_x0_5").state_dict()
    torch.manual_seed(0)
    theirs = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=5).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_segmentation_network_gives_the_logits_of_the_library_s_main_output():
    torch.manual_seed(0)
    ours = make("lraspp_mobilenet_v3_large").eval()
    theirs = models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        logits = ours(images)
        assert logits.shape == (1, 5, 64, 48)
        assert torch.equal(logits, theirs(images)["out"])


def test_no_auxiliary_classifier_is_built_and_none_is_downloaded(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a download was started")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert make("deeplabv3_mobilenet_v3_large").aux_classifier is None


def test_convert_drops_auxiliary_classifiers_of_published_weights():
    published = models.get_model(
        "deeplabv3_mobilenet_v3_large",
        weights=None,
        weights_backbone=None,
        num_classes=5,
        aux_loss=True,
    ).state_dict()
    net = make("deeplabv3_mobilenet_v3_large")
    assert set(published) > set(net.state_dict())
    net.load_state_dict(builder.convert(published), strict=True)


def test_convert_renames_the_keys_of_old_densenets():
    net = models.DenseNet(4, (2, 2), 8, num_classes=5)
    state = net.state_dict()
    old = {
        key.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    assert list(builder.convert(old)) == list(state)


def test_googlenet_renormalises_its_input_as_with_published_weights():
    assert make("googlenet").transform_input is True
    assert make("googlenet", transform_input=False).transform_input is False
    assert make("googlenet").aux1 is None


def test_the_normalisation_is_that_of_the_published_weights():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert builder.default_normalisation(builder.Params("resnet18")) == imagenet
    half = builder.default_normalisation(builder.Params("efficientnet_v2_l"))
    assert half == ((0.5,) * 3, (0.5,) * 3)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(CertbenchError, match="did you mean 'resnet18'"):
        make("resnet_18")


def test_detectors_are_refused():
    with pytest.raises(CertbenchError, match="no classification or segmentation model"):
        make("fasterrcnn_resnet50_fpn")


def test_unknown_arguments_are_told():
    with pytest.raises(CertbenchError, match="torchvision cannot build squeezenet1_1"):
        make("squeezenet1_1", no_such_argument=1)


@pytest.mark.parametrize("key", ["num_classes", "weights", "aux_loss", "aux_logits"])
def test_what_certbench_sets_is_not_the_user_s_to_set(key):
    with pytest.raises(CertbenchError, match=f"'{key}' is set by certbench"):
        builder.build(builder.Params("squeezenet1_1", {key: True}), 5)


def test_parameters_come_from_the_configuration():
    values = {"name": "squeezenet1_1", "kwargs": {"dropout": 0.1}}
    net = builder.build(build_params(builder.Params, values, "c"), 3)
    assert net.classifier[0].p == 0.1
