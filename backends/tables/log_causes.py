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
    words: str  # a regular expression
    whose: Literal["engine", "itself", "user", "node", "outage", "memory"] = "engine"
    remedy: str
    summary: bool = False  # whether other lines may name a more specific cause


class CauseTable(Strict):
    """The known causes (the first match is used), and the pattern of lines that are only consequences."""

    causes: tuple[KnownCause, ...]
    symptoms: str  # pattern of a line that is a mere consequence of another line's error

    def find(self, line: str) -> KnownCause | None:
        """Return the cause that a line reports; None if it is unknown."""
        return next((cause for cause in self.causes if re.search(cause.words, line, re.IGNORECASE)), None)

    def find_remedy(self, words: str) -> str:
        """Return the remedy for the cause in a program's message; "" if the cause is unknown."""
        cause = self.find(words)
        return cause.remedy if cause else ""

    @property
    def out_of_memory(self) -> tuple[str, ...]:
        """Return the patterns of out-of-memory messages that any engine may log."""
        return tuple(cause.words for cause in self.causes if cause.whose == "memory")


@cache
def cause_table() -> CauseTable:
    """Return the table of log_causes.yaml."""
    return CauseTable.model_validate(yaml.safe_load(FILE.read_text()))


def told(words: str) -> Exit:
    """Classify the exit of a program that printed these words about its failure."""
    cause = cause_table().find(words)
    outage = LIBRARY_OUTAGES.search(words) is not None or (cause is not None and cause.whose == "outage")
    blames = Blame(cause.whose) if cause and cause.whose in tuple(Blame) else None
    return Exit(words=words, outage=outage, blames=blames)
