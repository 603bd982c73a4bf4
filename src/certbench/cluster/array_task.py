"""One task of a SLURM job array becomes the job it stands for.

The executor plugin (2.8) submits an array as the command of its *first* job, with those of the
other jobs as an argument. Each task starts Snakemake for the first job, which starts Snakemake for
the task's own job, and then looks for the output of the first job: a task that ends while the first
is still at work, was cancelled or waits for another node is called failed, and its finished output
is deleted. So a task replaces itself by its own command before anything is planned.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence

OPTION = "--slurm-jobstep-array-execs"


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The shell command of this array task, or None for the first task and outside of arrays.

    Args:
        arguments: Arguments of this process.
        environment: Its environment.
    """
    task = environment.get("SLURM_ARRAY_TASK_ID")
    text = _value(arguments)
    if task is None or not text:
        return None
    packed = json.loads(base64.b64decode(text)).get(task)
    return None if packed is None else zlib.decompress(bytes.fromhex(packed)).decode()


def _value(arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith(OPTION + "="):
            return argument[len(OPTION) + 1 :].strip("'\"")
        if argument == OPTION and i + 1 < len(arguments):
            return arguments[i + 1].strip("'\"")
    return None


def become() -> None:
    """Replace this process by the task's own command, if it is a task other than the first."""
    own = command(sys.argv, os.environ)
    if own is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv("/bin/sh", ["/bin/sh", "-c", own])
