"""The ends of launches, trials and preparations, as values: `sweep.drive.policy` decides what they mean.

Words count only where a foreign tool printed them: by the causes in `backends/tables/log_causes.yaml`, and by the table
here, of the libraries that all of them share.
"""

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from sweep.base.config import ConfigError

LIBRARY_OUTAGES = re.compile(  # as libc, Python and the HTTP clients of C, Python and Rust print them
    r"connection (was )?(re(set|fused)|aborted|closed|broken|timed out)|broken pipe|error sending request|dns error"
    r"|(temporary failure in|failed to resolve|error in) name resolution|name or service not known|no route to host"
    r"|(network|host) (is unreachable|cannot be reached)|(operation|read|request|connect) timed out"
    r"|remote end closed|incomplete ?read|bad gateway|service unavailable|gateway time-?out"
    r"|too ?many ?requests|could(n't| not) (connect to server|resolve host)"
    r"|(status|error)( code)?:? ?(429|50[0234])\b|stale (nfs )?file handle|input/output error"
    r"|no space left|disk quota exceeded|transport endpoint is not connected",
    re.IGNORECASE,
)
OUR_MODULES = ("sweep.", "backends.")  # modules whose messages are for people alone


class Cause(StrEnum):
    """The cause of an end that no process, system call or server states."""

    # Of the surroundings:
    SUPERVISOR = "supervisor killed"
    UNREACHABLE = "accepts no connections"
    ENDPOINT = "requests to an endpoint"  # whose network is not ours either
    PORT = "port"  # it is taken, or may not be used
    GPU_MEMORY = "GPU memory in use"
    NO_TOKENIZER = "no tokenizer"
    CLIENT = "client"
    GATEWAY = "gateway"
    CLOCK = "clock set"
    CONTRADICTION = "contradiction"  # the node is not as planned
    OUTAGE = "outage"
    LOST = "lost"
    NO_NODE = "no node"
    # Of the engine, or of what it was asked:
    NOT_READY = "not ready"
    STALLED = "stalled"
    TRIAL_TIMEOUT = "trial timeout"
    UNSENT = "unsent"
    NONE_SENT = "none sent"
    NONE_COMPLETED = "none completed"
    MANY_FAILED = "many failed"
    NO_TOKEN = "no token"
    OTHER_LENGTH = "other length"
    BELOW_GATE = "below gate"
    PROMPTS = "prompts"


class Blame(StrEnum):
    """Those who are to blame for an end, beside the engine and an outage."""

    NODE = "node"  # a part of it is broken, or its memory for processes is full
    USER = "user"  # something lacks on that machine that its user can add


@dataclass(frozen=True)
class Exit:
    """The end of a process, a call or a request. Unknown fields are left out."""

    cause: str = ""  # a Cause, or where an unforeseen error was raised
    signal: int | None = None  # that killed the process
    status: int | None = None  # of the process
    errno: int | None = None  # of the system call
    http: int | None = None  # status
    words: str = ""  # what a foreign tool printed of it
    outage: bool = False  # whether that tool's table reads an outage in them
    blames: Blame | None = None  # whom it reads in them otherwise

    def stored(self) -> str:
        """Return the known fields, as JSON."""
        return json.dumps({field: fact for field, fact in asdict(self).items() if fact not in ("", None, False)})

    @classmethod
    def restored(cls, stored: str) -> Self:
        """Return the exit that was stored so."""
        return cls(**json.loads(stored))


class Failed(Exception):
    """A failure that carries its exit; without one, the exit of the error from which it was raised."""

    def __init__(self, message: str, exit: Exit | None = None) -> None:
        super().__init__(message)
        self.exit = exit


class Outage(Failed, ValueError):
    """A network, a hub or a disk failed before it gave an answer: a retry may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit(Cause.OUTAGE))


def exit_of(error: BaseException) -> Exit:
    """Return the exit that an error tells: its own, the system's, a server's, else a library's words.

    Words of ours tell nothing. An error of ours has the exit of the one from which it was raised, else only its place.
    """
    if exit := getattr(error, "exit", None):
        assert isinstance(exit, Exit)
        return exit
    if isinstance(error, ConfigError):  # an answer, whatever it quotes
        return Exit("bad input")
    if isinstance(error, OSError) and error.errno is not None:
        return Exit(errno=error.errno, words=str(error))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return Exit(http=status, words=str(error))
    origin = _place_of_ours(error)
    if origin is None:
        return Exit(words=str(error), outage=LIBRARY_OUTAGES.search(str(error)) is not None)
    source = error.__cause__ or error.__context__
    return Exit(origin) if source is None else exit_of(source)


def _place_of_ours(error: BaseException) -> str | None:
    """Return the function of ours that raised an error; None where a library did."""
    if isinstance(error, OSError):  # which we raise with a number alone
        return None
    traceback, origin = error.__traceback__, ""
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals.get("__name__", "")
        origin, traceback = f"{type(error).__name__} in {module}.{code.co_qualname}", traceback.tb_next
    of_our_type = f"{type(error).__module__}.".startswith(OUR_MODULES)
    raised_by_us = type(error).__module__ == "builtins" and origin.partition(" in ")[2].startswith(OUR_MODULES)
    return (origin or type(error).__name__) if of_our_type or raised_by_us else None
