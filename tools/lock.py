"""Write the lock files from what is installed: exact versions, no index addresses.

``requirements.lock`` holds what the project needs to run, ``requirements-dev.lock`` what its tests
and checks need beside it. Run it in an environment in which everything works (``make lock``).
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Declares the GUI build of OpenCV, of which the headless wheel is the replacement on servers: it is
# installed without its dependencies (as is everything in the lock files, which are complete).
EXTRA = ["imagecorruptions"]

REPLACED = {"opencv-python"}

# Attack libraries that the tests compare with. What they need beside the project's own packages
# (version control, downloads) is not used here.
ORACLES = ["pyautoattack", "foolbox", "eagerpy"]


def normal(name: str) -> str:
    """A distribution's normalised name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(roots: list[str]) -> dict[str, str]:
    """Versions of the roots and of everything they need on this platform."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    queue = [(Requirement(root), frozenset(Requirement(root).extras)) for root in roots]
    seen: set[tuple[str, frozenset]] = set()
    while queue:
        requirement, extras = queue.pop()
        name = normal(requirement.name)
        if name in REPLACED:
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            sys.exit(f"lock: {name} is needed but not installed")
        if requirement.specifier and not requirement.specifier.contains(
            distribution.version, prereleases=True
        ):
            sys.exit(f"lock: {name} {distribution.version} does not satisfy {requirement}")
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[name] = distribution.version
        for text in distribution.requires or []:
            wanted = Requirement(text)
            environments = [{"extra": extra} for extra in (*extras, "")]
            if wanted.marker is None or any(wanted.marker.evaluate(e) for e in environments):
                queue.append((wanted, frozenset(wanted.extras)))
    return found


def write(path: Path, note: str, versions: dict[str, str]) -> None:
    """Write one lock file."""
    lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
    path.write_text(f"# {note}\n" + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write both lock files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = closure([*project["dependencies"], *EXTRA])
    developing = closure(project["optional-dependencies"]["dev"])
    developing |= {name: metadata.version(name) for name in ORACLES}
    write(
        ROOT / "requirements.lock",
        "Made by `make lock`; install with --no-deps (Python 3.11, Linux).",
        runtime,
    )
    write(
        ROOT / "requirements-dev.lock",
        "Made by `make lock`; what tests and checks need beside requirements.lock.",
        {name: version for name, version in developing.items() if name not in runtime},
    )


if __name__ == "__main__":
    main()
