"""Weights files from outside, read without running anything in them.

safetensors files and PyTorch archives are told apart by their first bytes; archives go through
PyTorch's restricted unpickler (tensors and plain containers only). What training code wraps around
a network is taken off: dictionaries, data-parallel and compiler prefixes, and an input
normalisation in front of the network, whose constants are reported where the file holds them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.models.download import sha256_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "Checkpoint",
    "InputLayer",
    "Unwrapped",
    "align",
    "load_into",
    "read_checkpoint",
    "read_state",
    "refuse_non_finite",
    "sha256_file",
    "unwrap",
]

FORMATS = ("auto", "safetensors", "torch")

_SHOWN = 5
_MEANS = ("mean", "means", "mu", "new_mean")
_DEVIATIONS = ("std", "stds", "sd", "sds", "sigma", "new_std")
_INPUT_KEY = re.compile(
    r"(?:(?:0|norm|normali[sz]er?|normali[sz]ation|normali[sz]e_layer|normali[sz]ation_layer"
    r"|preprocess|preprocessing|input_layer)\.)?(?P<name>" + "|".join(_MEANS + _DEVIATIONS) + r")"
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
_TORCH_HEADS = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5)))

logger = logging.getLogger("certbench")


@dataclass(frozen=True)
class InputLayer:
    """A normalisation that a checkpoint brings along in front of its network.

    Attributes:
        kind: ``standardise`` (subtract, divide), ``centre`` (subtract only), or ``unrecorded``: the
            keys betray a layer in front, but its constants are not in the file.
        mean: Subtracted per channel, in the units of the checkpoint's input; empty if unrecorded.
        std: Divisor per channel; ones for ``centre``; empty if unrecorded.
    """

    kind: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds.

    Attributes:
        state: Tensors by key, on the CPU, as in the file.
        sha256: Of the file.
        size_bytes: Of the file.
    """

    state: dict[str, torch.Tensor]
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Unwrapped:
    """Tensors of a network after some wrappers were taken off.

    Attributes:
        state: Tensors by key.
        input_layer: The normalisation in front that was taken off, or None.
    """

    state: dict[str, torch.Tensor]
    input_layer: InputLayer | None = None


def read_state(
    path: str | Path, sha256: str | None = None, key: str | None = None
) -> dict[str, torch.Tensor]:
    """Tensors of the network in a weights file, every wrapper taken off.

    See :func:`read_checkpoint` for the arguments and what it raises, :func:`unwrap` for wrappers.
    """
    return unwrap(read_checkpoint(path, sha256, key).state)[-1].state


def read_checkpoint(
    path: str | Path,
    sha256: str | None = None,
    key: str | None = None,
    format: str = "auto",
    where: str | None = None,
) -> Checkpoint:
    """Read a weights file; no code in it runs.

    Args:
        path: A safetensors file or what ``torch.save`` wrote of a (nested) dictionary of tensors.
        sha256: Hexadecimal digest that the file must have, or None.
        key: Entry that holds the tensors, dots between levels (``ema.state_dict``). By default the
            only one there is.
        format: One of :data:`FORMATS`; ``auto`` goes by the first bytes, not by the name.
        where: Prefix for messages (the path).

    Raises:
        CertbenchError: Missing file, wrong sha256, no weights file (an HTML page, a Git LFS
            pointer, a broken archive), Python objects beside tensors, no or several dictionaries of
            tensors.
    """
    path = Path(path)
    where = where or str(path)
    if path.is_dir() or not path.exists():
        raise CertbenchError(
            f"{path} is a folder" if path.is_dir() else f"{path} does not exist",
            where=where,
            remedy="name the weights file itself (paths are relative to the working folder)",
        )
    found = sha256_file(path)
    if sha256 is not None and found != sha256.lower():
        raise CertbenchError(
            f"{path} has sha256 {found}, expected {sha256}",
            where=where,
            remedy="the file was changed or is another one; if you trust it, set its sha256",
        )
    kind = _kind(path, where)
    if format != "auto" and format != kind:
        raise CertbenchError(
            f"{path} is a {kind} file, not {format}", where=where, remedy="leave format out"
        )
    if kind == "safetensors":
        content: Any = _read_safetensors(path, where)
    else:
        content = _read_torch(path, where)
    return Checkpoint(_entry(content, key, where), found, path.stat().st_size)


def unwrap(state: Mapping[str, torch.Tensor]) -> list[Unwrapped]:
    """Take wrappers off the keys of a network, one after the other.

    ``module.`` (data parallel), ``_orig_mod.`` (compiled), ``model.``, ``net.``, ``network.`` go
    where every key has them, and so does the ``1.`` of ``Sequential(normalise, network)``. The code
    of Cohen et al. (2019) and Salman et al. (2019) keeps the constants of that layer outside its
    state, and some published models only centre the input, so a bare ``1.`` means ``unrecorded``.

    Returns:
        Every stage, from the state as given to the one without wrappers.
    """
    stages = [Unwrapped(dict(state))]
    while True:
        made, layer = stages[-1].state, stages[-1].input_layer
        others = [key for key in made if key != "n_averaged"]  # a counter of weight averaging
        wrapper = next((w for w in _WRAPPERS if _all_start(others, w)), None)
        if wrapper is not None:
            made = {key[len(wrapper) :]: made[key] for key in others}
        elif layer is None and (constants := _input_constants(made)):
            layer = _input_layer({key: made[key] for key in constants})
            made = {key: value for key, value in made.items() if key not in constants}
            if _all_start(made, "1."):
                made = {key[2:]: value for key, value in made.items()}
        # Two levels below the 1: a network, not the second layer of a plain Sequential.
        elif layer is None and _all_start(made, "1.") and all(k.count(".") >= 2 for k in made):
            layer = InputLayer("unrecorded")
            made = {key[2:]: value for key, value in made.items()}
        else:
            return stages
        stages.append(Unwrapped(made, layer))


def align(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    convert: Callable[[dict], dict] | None = None,
) -> Unwrapped:
    """The stage of unwrapping whose keys fit ``module`` best.

    Mostly the last one. A module that is itself a ``Sequential``, or normalises by itself, has keys
    that look like wrappers: there an earlier stage fits, and nothing counts as taken off.

    Args:
        module: The network to be loaded.
        state: Tensors by key, as in the file.
        convert: From a published key layout to the module's, applied to each stage.
    """
    wanted = set(module.state_dict())
    best: tuple[int, Unwrapped] | None = None
    for stage in reversed(unwrap(state)):
        made = convert(stage.state) if convert else stage.state
        misfits = len(wanted ^ set(made))
        if best is None or misfits < best[0]:
            best = misfits, Unwrapped(made, stage.input_layer)
        if misfits == 0:
            break
    assert best is not None  # the state as given is always a stage
    return best[1]


def load_into(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    where: str,
    new_head: bool = False,
) -> None:
    """Load ``state`` into ``module``: every key, every shape, every kind of number accounted for.

    The batch counters of batch normalisation may be absent (checkpoints from before 2018 have
    none; inference does not read them).

    Args:
        module: The network; unchanged if anything does not fit.
        state: Tensors by key.
        where: Prefix for messages.
        new_head: Let the module keep its own last layer where only the number of classes differs
            (to train it further; never for evaluation).

    Raises:
        CertbenchError: Another number of classes, missing or unexpected keys, other shapes,
            quantised weights.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    shared = [key for key in wanted if key in state]
    misshapen = [key for key in shared if state[key].shape != wanted[key].shape]
    if misshapen and not missing and not unexpected:
        classes = _class_counts(misshapen, state, wanted)
        if classes and new_head:
            logger.warning(
                "%s: new head for %d classes (the checkpoint's has %d): %s",
                where,
                classes[1],
                classes[0],
                ", ".join(misshapen),
            )
            state = {key: value for key, value in state.items() if key not in misshapen}
            misshapen = []
        elif classes:
            raise CertbenchError(
                f"checkpoint has {classes[0]} classes, model/dataset wants {classes[1]} "
                f"({', '.join(misshapen[:_SHOWN])})",
                where=where,
                remedy="evaluate it on the dataset it was trained for, or train a model on this "
                "one (models.<id>.recipe)",
            )
    other_numbers = [
        f"{key} {state[key].dtype}"
        for key in shared
        if key in state and state[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}" for key in misshapen
    ]
    problems = [
        _listed(label, keys)
        for label, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("other shape", shapes),
            ("other kind of number", other_numbers),
        )
        if keys
    ]
    if problems:
        stranger = shared == [] or (len(missing) == len(wanted) and unexpected)
        raise CertbenchError(
            f"the checkpoint does not fit {type(module).__name__}: {'; '.join(problems)}",
            where=where,
            remedy="no key fits: it belongs to another architecture, or its names need converting"
            if stranger
            else "check the builder and its parameters (name, depth, width, image size)",
        )
    # strict is settled above; a plain dict lets batch normalisation fill in its counters.
    module.load_state_dict(dict(state), strict=False)


def refuse_non_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CertbenchError: Naming the first of them.
    """
    import torch

    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all())
    ]
    if bad:
        raise CertbenchError(
            _listed("weights are NaN or infinite", bad),
            where=where,
            remedy="the training of this checkpoint diverged, or the file is damaged",
        )


def _kind(path: Path, where: str) -> str:
    """``safetensors`` or ``torch``, by the first bytes; refuses everything else by name."""
    with open(path, "rb") as handle:
        head = handle.read(512)
    if head.startswith(_TORCH_HEADS):
        return "torch"
    # A safetensors file starts with the length of its JSON header, then the header itself.
    if len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 10**8:
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        problem, remedy = "is empty", "fetch it again"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        problem = "is an HTML page, not weights"
        remedy = "the address led to a web page (a login, an error): fetch the file itself"
    elif text.startswith(b"version https://git-lfs"):
        problem, remedy = "is a Git LFS pointer, not weights", "run: git lfs pull"
    elif head.startswith(b"\x1f\x8b"):
        problem, remedy = "is gzip-compressed", "unpack it first: gunzip"
    else:
        problem, remedy = "is no weights file", "name a .safetensors file or a torch.save file"
    raise CertbenchError(f"{path} {problem}", where=where, remedy=remedy)


def _read_safetensors(path: Path, where: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError) as error:
        raise CertbenchError(
            f"{path} is damaged ({error})", where=where, remedy="fetch it again"
        ) from error


def _read_torch(path: Path, where: str) -> Any:
    import argparse

    import torch

    try:
        # A Namespace of command-line options is inert: attributes are set, nothing is called.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile stream makes the unpickler raise anything
        text = str(error)
        refused = re.search(r"GLOBAL ([\w.]+)", text)
        if refused or "Weights only load failed" in text or "TorchScript" in text:
            what = f" ({refused.group(1)})" if refused else ""
            raise CertbenchError(
                f"{path} holds Python objects beside tensors{what}; unpickling them could run code",
                where=where,
                remedy="if you trust its author, save the tensors alone, outside certbench: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')",
            ) from error
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise CertbenchError(
            f"{path} is damaged or incomplete ({first})", where=where, remedy="fetch it again"
        ) from error


def _is_state(value: object) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _entry(content: Any, key: str | None, where: str) -> dict[str, torch.Tensor]:
    """The dictionary of tensors inside what the file holds."""
    if key is not None:
        for level in key.split("."):
            if not isinstance(content, Mapping) or level not in content:
                choices = content if isinstance(content, Mapping) else ()
                raise CertbenchError(
                    f"the checkpoint has no entry '{key}'",
                    where=f"{where}: key",
                    remedy=did_you_mean(level, [c for c in choices if isinstance(c, str)]),
                )
            content = content[level]
    if _is_state(content):
        return {name: value.detach() for name, value in content.items()}
    found = _states(content)
    if len(found) == 1:
        return {name: value.detach() for name, value in next(iter(found.values())).items()}
    if found:
        raise CertbenchError(
            f"the checkpoint holds several networks: {', '.join(found)}",
            where=where,
            remedy=f"choose one, for example key: {next(iter(found))}",
        )
    shape = (
        f"a dictionary with {', '.join(map(str, list(content)[:_SHOWN])) or 'nothing'}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise CertbenchError(
        f"no dictionary of tensors in the checkpoint (it is {shape})",
        where=where,
        remedy="save module.state_dict()",
    )


def _states(content: Any, depth: int = 2, path: str = "") -> dict[str, Mapping]:
    """All dictionaries of tensors, by their dotted names, at most ``depth`` levels down."""
    found: dict[str, Mapping] = {}
    if not isinstance(content, Mapping) or depth == 0:
        return found
    for name, value in content.items():
        if not isinstance(name, str) or "optim" in name.lower() or "sched" in name.lower():
            continue
        if _is_state(value):
            found[path + name] = value
        else:
            found.update(_states(value, depth - 1, f"{path}{name}."))
    return found


def _all_start(keys: Iterable[str], prefix: str) -> bool:
    keys = list(keys)
    return bool(keys) and all(key.startswith(prefix) and len(key) > len(prefix) for key in keys)


def _input_constants(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Keys of the constants of an input normalisation: one or three channels, floating point."""
    found = [
        key
        for key, value in state.items()
        if _INPUT_KEY.fullmatch(key) and value.numel() in (1, 3) and value.is_floating_point()
    ]
    has_mean = any(key.rpartition(".")[2] in _MEANS for key in found)
    return found if has_mean and len(found) < len(state) else []


def _input_layer(constants: Mapping[str, torch.Tensor]) -> InputLayer:
    values = {key.rpartition(".")[2]: _digits(value) for key, value in constants.items()}
    mean = next(v for k, v in values.items() if k in _MEANS)
    std = next((v for k, v in values.items() if k in _DEVIATIONS), None)
    if std is None or all(s == 1 for s in std):
        return InputLayer("centre", mean, (1.0,) * len(mean))
    return InputLayer("standardise", mean, std)


def _digits(values: torch.Tensor) -> tuple[float, ...]:
    """The shortest decimals that give these numbers: 0.4914 rather than 0.49140000343322754."""
    return tuple(float(str(value)) for value in values.detach().flatten().float().numpy())


def _class_counts(
    misshapen: list[str],
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
) -> tuple[int, int] | None:
    """(classes of the checkpoint, classes of the module) if only the head's width differs."""
    pairs = set()
    for key in misshapen:
        have, want = state[key].shape, wanted[key].shape
        if len(have) != len(want) or not have or have[1:] != want[1:]:
            return None
        pairs.add((int(have[0]), int(want[0])))
    # Other widths change the inputs of the next layer too, and so the trailing dimensions.
    return pairs.pop() if len(pairs) == 1 else None


def _listed(label: str, keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{label}: {', '.join(keys[:_SHOWN])}{more}"
