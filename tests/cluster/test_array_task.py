from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import zlib

import pytest

from certbench.cluster import array_task

COMMANDS = {"2": "python -m snakemake 'second job'", "3": "python -m snakemake 'third job'"}


def packed(commands: dict[str, str]) -> str:
    """As the executor plugin packs the commands of an array."""
    made = {key: zlib.compress(text.encode(), level=9).hex() for key, text in commands.items()}
    return base64.b64encode(json.dumps(made).encode()).decode()


@pytest.mark.parametrize("joined", [True, False])
def test_a_task_finds_its_own_command(joined):
    text = packed(COMMANDS)
    option = [f"{array_task.OPTION}={text}"] if joined else [array_task.OPTION, text]
    arguments = ["snakemake", "--jobs", "1", *option]
    for task, wanted in COMMANDS.items():
        assert array_task.command(arguments, {"SLURM_ARRAY_TASK_ID": task}) == wanted


def test_the_first_task_and_other_processes_stay_what_they_are():
    arguments = ["snakemake", f"{array_task.OPTION}={packed(COMMANDS)}"]
    assert array_task.command(arguments, {"SLURM_ARRAY_TASK_ID": "1"}) is None
    assert array_task.command(arguments, {}) is None
    assert array_task.command(["snakemake"], {"SLURM_ARRAY_TASK_ID": "2"}) is None


def test_a_task_becomes_its_command_with_the_same_process_id():
    code = "from certbench.cluster import array_task; array_task.become(); print('still me')"
    text = packed({"2": "echo $$ own"})
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"{array_task.OPTION}={text}"],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _ = process.communicate(timeout=60)
    assert said.split() == [str(process.pid), "own"]


@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm_jobstep") is None,
    reason="needs the executor plugin (make install-slurm)",
)
def test_commands_are_unpacked_as_the_executor_plugin_does():
    import snakemake_executor_plugin_slurm_jobstep as theirs

    text = packed(COMMANDS)
    for task in COMMANDS:
        ours = array_task.command([f"{array_task.OPTION}={text}"], {"SLURM_ARRAY_TASK_ID": task})
        assert ours == theirs._decompress_array_task_call(text, int(task))
