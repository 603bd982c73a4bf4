"""Snakemake's messages with the time left: ``snakemake --logger certbench``.

After every job one line says how many jobs are done, the time so far and the time left. The reasons
of a real run are left out (a dry run says them); warnings and errors are shown as always.
"""

from __future__ import annotations

import sys
import time
from logging import LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

# Said by Snakemake between jobs; they carry nothing for a reader.
_CHATTER = ("Select jobs to execute", "Execute ", "Finished jobid")


class LogHandler(LogHandlerBase):
    """Prints to standard error."""

    def __post_init__(self) -> None:
        self._began: float | None = None
        self._first = 0

    def emit(self, record: LogRecord) -> None:
        """Print one event."""
        try:
            text = self._text(record)
            if text:
                print(text, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def _text(self, record: LogRecord) -> str:
        event = getattr(record, "event", None)
        if getattr(self.common_settings, "dryrun", False):
            return self.format(record)
        if event == LogEvent.PROGRESS:
            return self._progress(int(record.done), int(record.total))  # type: ignore[attr-defined]
        if self._began is None and event in (LogEvent.JOB_INFO, LogEvent.JOB_STARTED):
            self._began = time.monotonic()
        if event == LogEvent.JOB_INFO:
            message = getattr(record, "rule_msg", None) or getattr(record, "rule_name", "job")
            return f"  start  {message}"
        if event in (LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED):
            return ""
        text = self.format(record)
        return "" if text.startswith(_CHATTER) else text

    def _progress(self, done: int, total: int) -> str:
        """How far the workflow is. Jobs differ in length, so the time left is a rough guide."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        spent = now - self._began
        line = (
            f"{done:>5} of {total} jobs done ({done / max(total, 1):.0%}), {_clock(spent)} so far"
        )
        if 0 < done < total:
            line += f", about {_clock(spent / done * (total - done))} left"
        return line

    @property
    def writes_to_stream(self) -> bool:
        """It replaces the default handler on standard error."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It writes no file of its own."""
        return False

    @property
    def has_filter(self) -> bool:
        """Snakemake's own filter (``--quiet``) applies."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Snakemake's own formatter is used for everything else."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """It draws no graph."""
        return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
