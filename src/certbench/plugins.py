"""Plug-ins: one module per method, found by its file name without importing anything else.

A module is a plug-in when it states ``version = <integer>`` at top level. Those of the package live
in the package of their kind (:data:`PACKAGES`); those from outside state ``kind = "certifier"``
(or another kind) too, and are named in the configuration (``plugins: [module or file.py]``) or
installed under the entry-point group ``certbench.plugins``.

A plug-in module must import without torch: planning reads its parameters. Heavy imports belong
inside the functions that need them. What each kind must define is written in ``docs/extending.md``
and checked by :func:`load`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

from certbench.errors import CertbenchError, did_you_mean

PACKAGES = {
    "dataset": "certbench.datasets",
    "model": "certbench.models",
    "source": "certbench.models.sources",
    "recipe": "certbench.recipes",
    "variant": "certbench.variants",
    "certifier": "certbench.certify",
    "attack": "certbench.attacks",
    "metric": "certbench.metrics",
    "figure": "certbench.figures",
}

REQUIRED = {
    "dataset": ("Params", "splits", "prepare", "read"),
    "model": ("Params", "build"),
    "source": ("Params", "fetch"),
    "recipe": ("Params", "train"),
    "variant": ("Params", "slug", "apply"),
    "certifier": (
        "CollectParams",
        "DecideParams",
        "columns",
        "stats_columns",
        "threat",
        "samples",
        "collect",
        "merge",
        "decide",
    ),
    "attack": ("Params", "columns", "threat", "attack"),
    "metric": ("Params", "rows", "compute"),
    "figure": ("Params", "draw"),
}

GROUP = "certbench.plugins"
_VERSION = re.compile(r"^version(?:\s*:\s*int)?\s*=\s*\d+", re.MULTILINE)
_KIND = re.compile(r"^kind(?:\s*:\s*str)?\s*=\s*[\"'](\w+)[\"']", re.MULTILINE)


def load(kind: str, name: str, extra: Iterable[str] = (), where: str = "config") -> ModuleType:
    """The plug-in module ``name`` of ``kind``.

    Args:
        kind: A key of :data:`PACKAGES`.
        name: The module's file name without ``.py``.
        extra: Modules or files named under ``plugins:`` in the configuration.
        where: Prefix for messages.

    Raises:
        CertbenchError: No such plug-in (with the nearest spelling and the choices), or the module
            lacks something its kind requires.
    """
    files = available(kind, tuple(extra))
    if name not in files:
        raise CertbenchError(
            f"unknown {kind} '{name}'", where=where, remedy=did_you_mean(name, files)
        )
    module = _import(files[name])
    missing = [
        required for required in ("version", *REQUIRED[kind]) if not hasattr(module, required)
    ]
    if missing:
        raise CertbenchError(
            f"{kind} plug-in '{name}' does not define {', '.join(missing)}",
            where=str(getattr(module, "__file__", name)),
            remedy=f"a {kind} plug-in defines: version, {', '.join(REQUIRED[kind])}",
        )
    return module


def available(kind: str, extra: tuple[str, ...] = ()) -> dict[str, str]:
    """Names of all plug-ins of a kind, each with the module or file to import."""
    return {**_installed(kind), **dict(outside(extra).get(kind, {}).items())}


@cache
def _installed(kind: str) -> dict[str, str]:
    package = PACKAGES[kind]
    root = Path(__file__).parent.joinpath(*package.split(".")[1:])
    found = {
        path.stem: f"{package}.{path.stem}"
        for path in sorted(root.glob("*.py"))
        if not path.stem.startswith("_") and _VERSION.search(path.read_text(encoding="utf-8"))
    }
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.update(outside((entry.value,)).get(kind, {}))
    return found


@cache
def outside(extra: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Plug-ins named in the configuration, by kind and name.

    Raises:
        CertbenchError: A named module or file does not exist or states no known kind.
    """
    found: dict[str, dict[str, str]] = {}
    for reference in extra:
        path = Path(reference) if reference.endswith(".py") else _module_file(reference)
        if path is None or not path.is_file():
            raise CertbenchError(
                f"no plug-in module '{reference}'",
                where="config: plugins",
                remedy="name an importable module, or a .py file relative to the working folder",
            )
        text = path.read_text(encoding="utf-8")
        match = _KIND.search(text)
        if not match or match.group(1) not in PACKAGES or not _VERSION.search(text):
            raise CertbenchError(
                "states no kind and version",
                where=str(path),
                remedy=f"write kind = one of {', '.join(PACKAGES)} and version = 1 at top level",
            )
        found.setdefault(match.group(1), {})[path.stem] = reference
    return found


def _module_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _import(reference: str) -> ModuleType:
    if not reference.endswith(".py"):
        return importlib.import_module(reference)
    path = Path(reference).resolve()
    name = f"certbench_plugin_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CertbenchError("cannot be imported", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
