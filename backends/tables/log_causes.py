"""The causes of failures: a table of log patterns, each with who is to blame and a remedy in terms of sweep's keys."""

import re
from functools import cache
from typing import Literal

import yaml

from backends.tables.table import FOLDER
from sweep.base.config import Strict
from sweep.base.exits import LIBRARY_OUTAGES, Blame, Exit

FILE = FOLDER / "log_causes.yaml"


class KnownCause(Strict):
    """A cause of failures, from log_causes.yaml."""

    cause: str
    pattern: str  # a regular expression
    whose: Literal["engine", "itself", "user", "node", "outage", "memory"] = "engine"
    remedy: str
    summary: bool = False  # whether other lines may name a more specific cause


class CauseTable(Strict):
    """The known causes (the first match is used), and the pattern of lines that are only consequences."""

    causes: tuple[KnownCause, ...]
    symptoms: str  # pattern of a line that is a mere consequence of another line's error

    def find(self, line: str) -> KnownCause | None:
        """Return the cause that a line reports; None if it is unknown."""
        return next((cause for cause in self.causes if re.search(cause.pattern, line, re.IGNORECASE)), None)

    def find_remedy(self, message: str) -> str:
        """Return the remedy for the cause in a program's message; "" if the cause is unknown."""
        cause = self.find(message)
        return cause.remedy if cause else ""

    @property
    def out_of_memory(self) -> tuple[str, ...]:
        """Return the patterns of out-of-memory messages that any engine may log."""
        return tuple(cause.pattern for cause in self.causes if cause.whose == "memory")


@cache
def cause_table() -> CauseTable:
    """Return the table of log_causes.yaml."""
    return CauseTable.model_validate(yaml.safe_load(FILE.read_text()))


def reported_exit(message: str) -> Exit:
    """Return the exit that a program's message about its failure reports."""
    cause = cause_table().find(message)
    outage = LIBRARY_OUTAGES.search(message) is not None or (cause is not None and cause.whose == "outage")
    blames = Blame(cause.whose) if cause and cause.whose in tuple(Blame) else None
    return Exit(words=message, outage=outage, blames=blames)
