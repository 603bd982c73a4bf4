"""The configuration: read, merged, checked against the schema, completed with defaults.

Messages name the offending key, the nearest spelling and the choices. Parameters of plug-ins are
checked by :mod:`certbench.plan`, which knows the plug-ins. Imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from certbench.errors import CertbenchError, did_you_mean


def project_root() -> Path:
    """The folder of the project: the working folder, or the one this package lies in.

    Raises:
        CertbenchError: Neither holds ``config/schema.yaml``.
    """
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).resolve().parents):
        if (folder / "config" / "schema.yaml").is_file():
            return folder
    raise CertbenchError(
        "no certbench project found (config/schema.yaml)",
        where=str(Path.cwd()),
        remedy="run it from the project's folder",
    )


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of the configuration."""
    return load_yaml(project_root() / "config" / "schema.yaml")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """One YAML file with a mapping at its top.

    Raises:
        CertbenchError: The file is missing, no YAML, or no mapping.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=str(path)) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise CertbenchError(f"is no valid YAML: {problem}", where=f"{path}{line}") from error
    if not isinstance(value, dict):
        raise CertbenchError("holds no mapping of keys to values", where=str(path))
    return value


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Overlay one configuration on another: mappings merge, everything else is replaced.

    This is what Snakemake does with several ``--configfile``.
    """
    merged = dict(base)
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def load(files: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Read ``config/config.yaml``, overlay the given files in order, check and complete.

    Raises:
        CertbenchError: Any of it is wrong.
    """
    config = load_yaml(project_root() / "config" / "config.yaml")
    for file in files:
        config = merge(config, load_yaml(file))
    return check(config)


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration against the schema and fill in the defaults.

    Args:
        config: The merged configuration, as from YAML.

    Raises:
        CertbenchError: The first violation, with the key, the nearest spelling and the choices.
    """
    from jsonschema import Draft202012Validator

    complete = _unshared(config)
    validator = Draft202012Validator(schema())
    errors = sorted(validator.iter_errors(complete), key=lambda e: (len(e.absolute_path), str(e)))
    if errors:
        raise _explain(errors[0])
    _fill(complete, schema())
    return complete


def _unshared(value: Any) -> Any:
    """A copy in which no two places share an object, as YAML's anchors make them share one."""
    if isinstance(value, Mapping):
        return {key: _unshared(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unshared(inner) for inner in value]
    return value


def _resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        target = schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    return dict(node)


def _fill(value: Any, node: Mapping[str, Any]) -> None:
    node = _resolve(node)
    if isinstance(value, dict):
        for key, child in node.get("properties", {}).items():
            child = _resolve(child)
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
            if key in value:
                _fill(value[key], child)
        extra = node.get("additionalProperties")
        if isinstance(extra, Mapping):
            for key, inner in value.items():
                if key not in node.get("properties", {}):
                    _fill(inner, extra)
    elif isinstance(value, list) and "items" in node:
        for inner in value:
            _fill(inner, node["items"])


def _explain(error: Any) -> CertbenchError:
    path = ".".join(
        f"[{part}]" if isinstance(part, int) else str(part) for part in error.absolute_path
    ).replace(".[", "[")
    where = f"config: {path}" if path else "config"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        return CertbenchError(
            f"unknown key '{unknown}'", where=where, remedy=did_you_mean(unknown, known)
        )
    if error.validator == "enum":
        choices = error.validator_value
        return CertbenchError(
            f"unknown value {error.instance!r}",
            where=where,
            remedy=did_you_mean(error.instance, map(str, choices)),
        )
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        described = error.schema.get("properties", {}).get(missing, {}).get("description", "")
        return CertbenchError(
            f"key '{missing}' is missing", where=where, remedy=described or "add it"
        )
    if error.validator == "pattern":
        return CertbenchError(
            f"'{error.instance}' is no valid id",
            where=where,
            remedy="use lower-case letters, digits, '-' and '_', starting with a letter or digit",
        )
    if error.validator == "oneOf" and error.context:
        return _explain(max(error.context, key=lambda e: len(e.absolute_path)))
    expected = {
        key: error.schema[key] for key in ("type", "minimum", "unit") if key in error.schema
    }
    return CertbenchError(
        error.message,
        where=where,
        remedy="expected " + ", ".join(f"{k} {v}" for k, v in expected.items()) or None,
    )
