"""What the workflow says at its end: violations first, and a page from what there is.

Imported by the Snakefile, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from certbench.plan import Plan


# Violations listed for each experiment; all of them are in the audit's verdict file.
_SHOWN = 20


class ViolationsFound(SystemExit):
    """Certificates were broken inside their own region: the workflow exits non-zero."""


def judge(plan: Plan) -> None:
    """End the workflow with exit code 1 where an audit found violations; say where results are.

    Raises:
        ViolationsFound: The message lists them.
    """
    lines: list[str] = []
    unsound, left = False, 0
    for path in plan.verdicts():
        if not Path(path).is_file():
            continue
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        unsound |= not found["sound"]
        left += max(len(found["violations"]) - _SHOWN, 0)
        for violation in found["violations"][:_SHOWN]:
            lines.append(
                "  {model}, {defense}, {dataset} ({variant_id}), item {item_id}: certified to "
                "{certified_size:.4g}, broken by {attack} at {attack_size:.4g}".format(**violation)
            )
    if not lines:
        return
    if left:
        lines.append(f"  and {left} more, see results/audit")
    head = (
        "certificates were broken inside their own region"
        if unsound
        else "certificates were broken, as often as their alpha allows"
    )
    print(f"certbench audit: {head}:", *lines, sep="\n", file=sys.stderr)
    if unsound:
        raise ViolationsFound(1)


def report_partly(plan: Plan) -> None:
    """After a failed run, build the report from what exists, in a process of its own."""
    command = [sys.executable, "-m", "certbench", "report", "--partial", "--config-stdin"]
    done = subprocess.run(
        command, check=False, input=json.dumps(plan.config), stdout=subprocess.PIPE, text=True
    )
    if done.returncode == 0:
        print(f"certbench: a page from what there is: {done.stdout.strip()}", file=sys.stderr)
