import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from certbench.errors import CertbenchError
from certbench.models.checkpoints import (
    align,
    load_into,
    read_checkpoint,
    read_state,
    refuse_non_finite,
    sha256_file,
    unwrap,
)


def network(classes=4, width=3):
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, width, 3),
            bn1=nn.BatchNorm2d(width),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(width, classes),
        )
    )


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return dict(network().state_dict())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.anything"])
def test_safetensors_are_read_whatever_the_name(tmp_path, state, name):
    save_file(state, tmp_path / name)
    read = read_state(tmp_path / name)
    assert all(torch.equal(read[k], state[k]) for k in state) and set(read) == set(state)


@pytest.mark.parametrize("legacy", [False, True])
def test_both_archives_of_torch_save_are_read(tmp_path, state, legacy):
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    assert same(read_state(tmp_path / "w.pt"), state)


def test_size_and_digest_are_those_of_the_file(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    read = read_checkpoint(tmp_path / "w.pt")
    assert read.size_bytes == os.path.getsize(tmp_path / "w.pt")
    assert read.sha256 == sha256_file(tmp_path / "w.pt")


def test_a_wrong_digest_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"no weights at all")
    with pytest.raises(CertbenchError, match="expected " + "0" * 64):
        read_checkpoint(tmp_path / "w.pt", sha256="0" * 64)


def test_a_digest_in_capitals_is_the_same_digest(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    read_state(tmp_path / "w.pt", sha256=sha256_file(tmp_path / "w.pt").upper())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state", "model_state_dict", "net"])
def test_nested_dictionaries_are_opened(tmp_path, state, key):
    content = {
        "epoch": 90,
        "arch": "resnet50",
        key: OrderedDict(state),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{}]},
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt"), state)


def test_a_dictionary_two_levels_down_is_found(tmp_path, state):
    torch.save({"checkpoint": {"state_dict": state, "epoch": 3}}, tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt"), state)


def test_two_networks_in_one_file_need_a_choice(tmp_path, state):
    average = {k: v + 1 for k, v in state.items()}
    torch.save({"model": state, "model_ema": {"module": average}}, tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match=r"several networks: model, model_ema\.module"):
        read_state(tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt", key="model_ema.module"), average)


def test_a_wrong_entry_is_answered_with_the_right_one(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match="did you mean 'state_dict'"):
        read_state(tmp_path / "w.pt", key="state_dcit")


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, {}, torch.zeros(3)])
def test_a_file_without_a_dictionary_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match="no dictionary of tensors"):
        read_state(tmp_path / "w.pt")


class Bomb:
    """Runs a command wherever it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def bomb_in_zip(content, path):
    torch.save(content, path)


def bomb_in_legacy_archive(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bomb_in_plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [bomb_in_zip, bomb_in_legacy_archive, bomb_in_plain_pickle])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, state, write, monkeypatch):
    # The switch that relaxes torch.load for other programs must change nothing here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trace, path = tmp_path / "it ran", tmp_path / "w.pt"
    write({"state_dict": state, "extra": Bomb(trace)}, path)
    with pytest.raises(CertbenchError, match=r"Python objects beside tensors|damaged"):
        read_state(path)
    assert not trace.exists()
    # The file is live: without the restriction it does run.
    if write is bomb_in_plain_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"\n  <html lang='en'>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"", "is empty"),
        (b"\x00\x01\x02 some bytes", "no weights file"),
    ],
)
def test_what_is_no_weights_file_is_named_for_what_it_is(tmp_path, head, problem):
    (tmp_path / "w.pt").write_bytes(head)
    with pytest.raises(CertbenchError, match=problem):
        read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_truncated_file_is_damaged(tmp_path, state, kind):
    path = tmp_path / "w"
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CertbenchError, match="damaged"):
        read_state(path)


def test_a_zip_of_something_else_is_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("photo.txt", "hello")
    with pytest.raises(CertbenchError, match="damaged"):
        read_state(tmp_path / "w.pt")


def test_a_stated_format_must_be_that_of_the_file(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match="is a torch file, not safetensors"):
        read_checkpoint(tmp_path / "w.pt", format="safetensors")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(CertbenchError, match="does not exist"):
        read_state(tmp_path / "w.pt")
    with pytest.raises(CertbenchError, match="is a folder"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net."]
)
def test_prefixes_of_training_wrappers_go(tmp_path, state, prefix):
    torch.save(under(prefix, state), tmp_path / "w.pt")
    assert same(read_state(tmp_path / "w.pt"), state)


def test_the_state_of_real_wrappers_is_unwrapped():
    net = network()
    wrapped = [
        nn.DataParallel(net),
        torch.optim.swa_utils.AveragedModel(net),
        nn.Sequential(nn.Identity(), net),
        nn.Sequential(nn.Identity(), nn.DataParallel(net)),
        nn.DataParallel(nn.Sequential(nn.Identity(), net)),
    ]
    for module in wrapped:
        assert same(unwrap(module.state_dict())[-1].state, net.state_dict())


def test_a_network_without_wrappers_has_one_stage_and_no_input_layer(state):
    (stage,) = unwrap(state)
    assert stage.input_layer is None
    assert same(stage.state, state)


class NormalizeLayer(nn.Module):
    """As in the published smoothing code: constants that are no part of the state."""

    def __init__(self, means, sds):
        super().__init__()
        self.means, self.sds = torch.tensor(means), torch.tensor(sds)


class BufferedLayer(nn.Module):
    def __init__(self, **constants):
        super().__init__()
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))


def test_an_input_layer_without_its_constants_is_reported_as_unrecorded():
    net = network()
    module = nn.Sequential(NormalizeLayer([0.5] * 3, [0.2] * 3), nn.DataParallel(net))
    stage = unwrap(module.state_dict())[-1]
    assert stage.input_layer.kind == "unrecorded"
    assert same(stage.state, net.state_dict())


@pytest.mark.parametrize("names", [("mean", "std"), ("means", "sds"), ("mu", "sigma")])
def test_a_standardising_layer_is_reported_with_its_constants(names):
    net = network()
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
    module = nn.Sequential(BufferedLayer(**dict(zip(names, (mean, std), strict=True))), net)
    stage = unwrap(module.state_dict())[-1]
    assert stage.input_layer.kind == "standardise"
    assert stage.input_layer.mean == tuple(mean)
    assert stage.input_layer.std == tuple(std)
    assert same(stage.state, net.state_dict())


@pytest.mark.parametrize("constants", [{}, {"std": [1.0, 1.0, 1.0]}])
def test_a_centring_layer_is_told_from_a_standardising_one(constants):
    module = nn.Sequential(BufferedLayer(mean=[0.485, 0.456, 0.406], **constants), network())
    layer = unwrap(nn.DataParallel(module).state_dict())[-1].input_layer
    assert layer.kind == "centre"
    assert (layer.mean, layer.std) == ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0))


class Named(nn.Module):
    """A model with its normalisation as a named part, as robustness toolkits have it."""

    def __init__(self, net, **constants):
        super().__init__()
        self.normalizer = BufferedLayer(**constants)
        self.model = net


def test_a_named_normaliser_is_found():
    net = network()
    module = nn.DataParallel(Named(net, new_mean=[0.5] * 3, new_std=[0.25] * 3))
    stage = unwrap(module.state_dict())[-1]
    assert stage.input_layer.mean == (0.5, 0.5, 0.5)
    assert same(stage.state, net.state_dict())


def test_batch_statistics_are_no_input_layer():
    module = nn.Sequential(nn.BatchNorm2d(3), network())
    assert all(stage.input_layer is None for stage in unwrap(module.state_dict()))


def test_a_plain_sequential_keeps_its_keys():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    assert len(unwrap(module.state_dict())) == 1
    found = align(module, module.state_dict())
    assert found.input_layer is None
    assert same(found.state, module.state_dict())


def test_a_module_that_is_itself_a_sequential_gets_its_prefix_back():
    module = nn.Sequential(nn.Identity(), network())
    found = align(module, nn.DataParallel(module).state_dict())
    assert found.input_layer is None
    assert same(found.state, module.state_dict())


def test_a_module_that_normalises_itself_keeps_its_constants():
    module = Named(network(), mean=[0.5] * 3, std=[0.25] * 3)
    found = align(module, nn.DataParallel(module).state_dict())
    assert found.input_layer is None
    assert same(found.state, module.state_dict())


def test_align_converts_published_keys_after_the_wrappers_are_off():
    net = network()
    published = {k.replace("fc.", "linear."): v for k, v in net.state_dict().items()}
    wrapped = under("1.module.", published)

    def convert(state):
        return {k.replace("linear.", "fc."): v for k, v in state.items()}

    found = align(net, wrapped, convert)
    assert found.input_layer.kind == "unrecorded"
    assert same(found.state, net.state_dict())


def test_loading_takes_every_tensor_over(state):
    torch.manual_seed(1)
    module = network()
    load_into(module, state, "w.pt")
    assert same(dict(module.state_dict()), state)


def test_half_precision_is_widened(state):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    module = network()
    load_into(module, half, "w.pt")
    assert module.conv1.weight.dtype == torch.float32
    assert torch.equal(module.conv1.weight, half["conv1.weight"].float())


def test_old_checkpoints_without_batch_counters_load(state):
    module = network()
    load_into(module, {k: v for k, v in state.items() if "num_batches" not in k}, "w.pt")
    assert torch.equal(module.fc.weight, state["fc.weight"])


@pytest.mark.parametrize("have", [2, 10])
def test_another_number_of_classes_is_told_as_such(have, state):
    module = network(classes=have)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(
        CertbenchError, match=rf"w\.pt: checkpoint has 4 classes, model/dataset wants {have} \(fc"
    ):
        load_into(module, state, "w.pt")
    assert same(dict(module.state_dict()), before)


def test_a_new_head_keeps_the_rest(state):
    module = network(classes=10)
    head = module.fc.weight.clone()
    load_into(module, state, "w.pt", new_head=True)
    assert torch.equal(module.conv1.weight, state["conv1.weight"])
    assert torch.equal(module.fc.weight, head)


def test_another_width_is_no_other_number_of_classes(state):
    with pytest.raises(CertbenchError, match=r"other shape: conv1\.weight \[3, 3, 3, 3\] instead"):
        load_into(network(width=5), state, "w.pt", new_head=True)


def test_missing_and_unexpected_keys_are_listed_five_each(state):
    short = {k: v for k, v in state.items() if k.startswith("conv1")}
    extra = {f"extra.{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(CertbenchError) as caught:
        load_into(network(), {**short, **extra}, "w.pt")
    text = str(caught.value)
    first = "bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var, fc.weight"
    assert f"missing: {first} and 1 more" in text
    assert "unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more" in text


def test_another_architecture_is_suspected_where_no_key_fits():
    with pytest.raises(CertbenchError, match="another architecture"):
        load_into(network(), {"blocks.0.weight": torch.zeros(3)}, "w.pt")


def test_quantised_weights_are_refused(state):
    state["fc.weight"] = torch.zeros(4, 3, dtype=torch.int8)
    with pytest.raises(CertbenchError, match=r"other kind of number: fc\.weight torch\.int8"):
        load_into(network(), state, "w.pt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(state, value):
    refuse_non_finite(state, "w.pt")
    state["bn1.bias"][1] = value
    with pytest.raises(CertbenchError, match=r"w\.pt: weights are NaN or infinite: bn1\.bias"):
        refuse_non_finite(state, "w.pt")


@pytest.mark.data
def test_real_checkpoints_are_read_whole():
    from pathlib import Path

    if not os.environ.get("CERTBENCH_DATA"):
        pytest.skip("CERTBENCH_DATA is not set")
    (path, *_) = sorted(Path(os.environ["CERTBENCH_DATA"], "models").glob("*.safetensors"))
    state = read_state(path)
    assert state["fc.weight"].shape == (10, 64)
    refuse_non_finite(state, str(path))
