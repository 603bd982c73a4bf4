"""The lines that a running workflow prints."""

import logging
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

import snakemake_logger_plugin_certbench as plugin


@pytest.fixture
def handler(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(plugin.time, "monotonic", lambda: clock.now)
    made = plugin.LogHandler(SimpleNamespace(dryrun=False), None)
    made.clock = clock
    return made


def record(message="", **fields):
    made = logging.makeLogRecord({"msg": message, "levelno": logging.INFO})
    vars(made).update(fields)
    return made


def test_a_line_after_each_job_says_what_is_done_and_what_is_left(handler, capsys):
    handler.emit(record(event=LogEvent.JOB_INFO, rule_msg="train plain"))
    handler.clock.now += 30
    handler.emit(record(event=LogEvent.PROGRESS, done=1, total=4))
    handler.clock.now += 30
    handler.emit(record(event=LogEvent.PROGRESS, done=2, total=4))
    handler.clock.now += 60
    handler.emit(record(event=LogEvent.PROGRESS, done=4, total=4))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  start  train plain",
        "    1 of 4 jobs done (25%), 0:30 so far, about 1:30 left",
        "    2 of 4 jobs done (50%), 1:00 so far, about 1:00 left",
        "    4 of 4 jobs done (100%), 2:00 so far",
    ]


def test_errors_and_other_messages_are_shown_and_chatter_is_not(handler, capsys):
    handler.emit(record("Something is wrong", levelno=logging.ERROR))
    handler.emit(record("Select jobs to execute..."))
    assert capsys.readouterr().err == "Something is wrong\n"


def test_hours_are_shown_as_hours():
    assert plugin._clock(3725) == "1:02:05"
    assert plugin._clock(59.6) == "1:00"
