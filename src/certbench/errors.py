"""The one exception for everything a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CertbenchError(ValueError):
    """A mistake in the input, told in one message: where, what, and the remedy.

    Entry points (console command, job entry, Snakefile) print ``str(error)`` and exit non-zero
    without a traceback. Anything else that escapes is a bug and keeps its traceback.

    Args:
        problem: What is wrong, in one sentence.
        where: The file and field, for example ``config: defenses.rs.sigma``.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None):
        self.problem = problem
        self.where = where
        self.remedy = remedy
        text = f"{where}: {problem}" if where else problem
        super().__init__(f"{text}\n  -> {remedy}" if remedy else text)

    def __reduce__(self):
        """Pickle with the keyword arguments (worker processes pass errors back)."""
        return (_rebuild, (type(self), self.problem, self.where, self.remedy))


def _rebuild(cls, problem, where, remedy):
    return cls(problem, where=where, remedy=remedy)


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest spelling, then all choices.

    Args:
        name: What was written.
        choices: What could have been written.
    """
    known = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    shown = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
    return f"{hint}choices: {shown or '(none)'}"
