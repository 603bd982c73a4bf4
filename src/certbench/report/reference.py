"""The configuration reference: every key, from the schema and from the plug-ins themselves."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from certbench import config, params, plugins

# Kinds of plug-ins, where they stand in the configuration, and their parameters by phase.
_KINDS = {
    "dataset": ("`datasets:`", {"": "Params"}),
    "model": ("`models: {<id>: {builder: ...}}`", {"": "Params"}),
    "source": ("`models: {<id>: {source: ...}}`", {"": "Params"}),
    "recipe": ("`models: {<id>: {recipe: ...}}`", {"": "Params"}),
    "certifier": (
        "`defenses:`",
        {"collect (changes cost model calls)": "CollectParams", "decide (free)": "DecideParams"},
    ),
    "attack": ("`attacks:`", {"": "Params"}),
    "variant": ("`variants:`", {"": "Params"}),
    "metric": ("`metrics:`", {"": "Params"}),
    "figure": ("`figures:`", {"": "Params"}),
}

_HEAD = """# Configuration

This page is generated: `certbench schema --write docs/configuration.md`.

{description}

`config/config.yaml` is always read; every `--configfile` is laid over it: mappings merge, lists and
values are replaced. Ids match `[a-z0-9][a-z0-9_-]*`. `certbench check FILE` checks a file without
running anything.

"""


def markdown() -> str:
    """The reference as Markdown.

    Raises:
        CertbenchError: No project is found, or a plug-in is broken.
    """
    schema = config.schema()
    parts = [_HEAD.format(description=" ".join(schema["description"].split()))]
    parts.append("## Keys\n\n")
    parts.append("| key | type | default | meaning |\n|---|---|---|---|\n")
    parts += [_row(*entry) for entry in _keys(schema, "")]
    for kind, (where, phases) in _KINDS.items():
        parts.append(f"\n## {kind.capitalize()} plug-ins\n\nUnder {where}, `type:` is one of:\n")
        for name in sorted(plugins.available(kind)):
            parts.append(_plugin(kind, name, phases))
    return "".join(parts)


def _resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node of the schema with what it refers to."""
    if "$ref" not in node:
        return dict(node)
    target = config.schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _keys(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every key below a node, with its description, and whether it is required."""
    required = set(node.get("required", ()))
    for name, child in node.get("properties", {}).items():
        resolved = _resolve(child)
        path = f"{prefix}{name}"
        yield path, resolved, name in required
        yield from _below(resolved, path)


def _below(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    if node.get("type") == "array" and isinstance(node.get("items"), Mapping):
        items = _resolve(node["items"])
        if "properties" in items and set(items["properties"]) != {"type"}:
            yield from _keys(items, f"{path}[].")
        return
    yield from _keys_unless_plugin(node, f"{path}.")
    extra = node.get("additionalProperties")
    if isinstance(extra, Mapping) and ("$ref" in extra or "properties" in extra):
        inner = _resolve(extra)
        yield from _keys_unless_plugin(inner, f"{path}.<id>.")


def _keys_unless_plugin(
    node: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The keys of a node; what a plug-in alone decides stands in its own table."""
    if set(node.get("properties", {})) != {"type"}:
        yield from _keys(node, prefix)


def _row(path: str, node: Mapping[str, Any], required: bool) -> str:
    default = "**required**" if required else _value(node["default"]) if "default" in node else ""
    meaning = " ".join(str(node.get("description", "")).split())
    return f"| `{path}` | {_kind(node)} | {default} | {_cell(meaning)} |\n"


def _kind(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return " or ".join(f"`{choice}`" for choice in node["enum"])
    if "oneOf" in node:
        return "mapping or list of mappings"
    kinds = node.get("type", "any")
    names = {"object": "mapping", "array": "list", "string": "text", "boolean": "true/false"}
    listed = [kinds] if isinstance(kinds, str) else list(kinds)
    text = " or ".join(names.get(kind, kind) for kind in listed)
    if "array" in listed and isinstance(node.get("items"), Mapping):
        inner = _resolve(node["items"]).get("type")
        text += f" of {names.get(inner, inner)}s" if isinstance(inner, str) else ""
    for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<=")):
        if key in node:
            text += f", {sign} {node[key]}"
    return text + (f", in {node['unit']}" if "unit" in node else "")


def _plugin(kind: str, name: str, phases: Mapping[str, str]) -> str:
    module = plugins.load(kind, name)
    first = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    text = f"\n### `{name}`\n\n{first}\n"
    for phase, attribute in phases.items():
        declared = getattr(module, attribute)
        fields = dataclasses.fields(declared)
        if not fields:
            continue
        hints = typing.get_type_hints(declared)
        title = f"{phase}: parameter" if phase else "parameter"
        text += f"\n| {title} | type | default | meaning |\n|---|---|---|---|\n"
        for field in fields:
            if field.default is not dataclasses.MISSING:
                default = _value(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                default = _value(field.default_factory())
            else:
                default = "**required**"
            meta = dict(field.metadata)
            bare = dataclasses.field(metadata={**meta, "help": None})
            kind_text = params.describe(bare, hints[field.name]).replace("dict", "mapping", 1)
            text += (
                f"| `{field.name}` | {_cell(kind_text)} | {default} | "
                f"{_cell(str(meta.get('help') or ''))} |\n"
            )
    return text


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return f"`{_cell(params.canonical(value))}`" if value not in ({}, []) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
