"""The ends of launches, trials and preparations, as values; `sweep.drive.policy` decides what follows.

Only the output of foreign tools is interpreted as text: with the causes in `backends/tables/log_causes.yaml`, and with
the table here for the libraries that all tools share.
"""

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from sweep.base.config import ConfigError

LIBRARY_OUTAGES = re.compile(  # messages of libc, Python and HTTP clients in C, Python and Rust
    r"connection (was )?(re(set|fused)|aborted|closed|broken|timed out)|broken pipe|error sending request|dns error"
    r"|(temporary failure in|failed to resolve|error in) name resolution|name or service not known|no route to host"
    r"|(network|host) (is unreachable|cannot be reached)|(operation|read|request|connect) timed out"
    r"|(server|peer|remote end) (disconnected|closed|hung up)|unexpected[ _]eof(?! while parsing)"
    r"|(handshake|i/o|connection) time-?out|timeout was reached|(deadline|timeout) exceeded|policy exhausted"
    r"|AWS Error (NETWORK_CONNECTION(?!.*certificate)|SLOW_DOWN|THROTTLING|INTERNAL_F|SERVICE_UNAV|REQUEST_TIMEOUT)"
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED)|error decoding response body|not closed cleanly|failed to connect to"
    r"|incomplete ?read|transfer closed|failed after \d+ retries|bad gateway|service unavailable|gateway time-?out"
    r"|too ?many ?requests|could(n't| not) (connect to server|resolve host)"
    r"|(status|error)( code)?:? ?(429|50[0234])\b|stale (nfs )?file handle|(input/output|remote i/o) error"
    r"|no space left|disk quota exceeded|transport endpoint is not connected",
    re.IGNORECASE,
)
OUR_MODULES = ("sweep.", "backends.")  # modules whose messages are never interpreted


class Cause(StrEnum):
    """Why a trial or launch ended, where no exit status, errno or HTTP status gives the reason."""

    # Causes outside the engine:
    SUPERVISOR = "supervisor killed"
    UNREACHABLE = "accepts no connections"
    ENDPOINT = "requests to an endpoint"  # also covers the network to it
    PORT = "port"  # the port is in use or not permitted
    GPU_MEMORY = "GPU memory in use"
    LEASED = "GPUs leased"  # by another sweep
    NO_TOKENIZER = "no tokenizer"
    CLIENT = "client"
    GATEWAY = "gateway"
    CLOCK = "clock set"
    CONTRADICTION = "contradiction"  # the node differs from the plan's assumptions
    OUTAGE = "outage"
    LOST = "lost"
    NO_NODE = "no node"
    # Causes in the engine or its settings:
    NOT_READY = "not ready"
    STALLED = "stalled"
    TRIAL_TIMEOUT = "trial timeout"
    UNSENT = "unsent"
    NONE_SENT = "none sent"
    NONE_COMPLETED = "none completed"
    MANY_FAILED = "many failed"
    NO_TOKEN = "no token"
    OTHER_LENGTH = "other length"
    NO_CERTIFICATE = "no certificate"
    BELOW_GATE = "below gate"
    PROMPTS = "prompts"


class Blame(StrEnum):
    """Who caused a failure, if its signal or status alone would suggest another."""

    ITSELF = "itself"  # the engine: its own watchdog killed it
    NODE = "node"  # part of the node is broken, or its memory for processes is full
    USER = "user"  # something is missing on the machine that its user can install


@dataclass(frozen=True)
class Exit:
    """The end of a process, a call or a request. Unknown fields keep their defaults."""

    cause: str = ""  # a Cause, or the place where an unexpected error was raised
    signal: int | None = None  # signal that killed the process
    status: int | None = None  # exit status of the process
    errno: int | None = None  # errno of the system call
    http: int | None = None  # HTTP status
    words: str = ""  # what a foreign tool printed when it ended
    outage: bool = False  # whether that tool's table recognizes an outage in the words
    blames: Blame | None = None  # the Blame that the table assigns to the words

    def stored(self) -> str:
        """Return the fields that are set, as JSON."""
        return json.dumps({field: fact for field, fact in asdict(self).items() if fact not in ("", None, False)})

    @classmethod
    def restored(cls, stored: str) -> Self:
        """Return the exit that `stored` wrote."""
        return cls(**json.loads(stored))


class Failed(Exception):
    """A failure with its exit; by default, the exit of the error that caused it."""

    def __init__(self, message: str, exit: Exit | None = None) -> None:
        super().__init__(message)
        self.exit = exit


class Outage(Failed, ValueError):
    """A network, hub or disk failed before it gave a definite result: a retry may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit(Cause.OUTAGE))


def exit_of(error: BaseException) -> Exit:
    """Return the exit that an error describes: from its `exit`, errno, HTTP status, or a library's message.

    Messages of this project are not interpreted: their exit is the exit of their cause, or else the raising function.
    """
    if exit := getattr(error, "exit", None):
        assert isinstance(exit, Exit)
        return exit
    if isinstance(error, ConfigError):  # a definite result, whatever text it quotes
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
    """Return the function of this project that raised an error; None if a library raised it."""
    if isinstance(error, OSError):  # sweep's own OSErrors are identified by errno alone
        return None
    traceback, origin = error.__traceback__, ""
    while traceback is not None:
        code, module = traceback.tb_frame.f_code, traceback.tb_frame.f_globals.get("__name__", "")
        origin, traceback = f"{type(error).__name__} in {module}.{code.co_qualname}", traceback.tb_next
    of_our_type = f"{type(error).__module__}.".startswith(OUR_MODULES)
    raised_by_us = type(error).__module__ == "builtins" and origin.partition(" in ")[2].startswith(OUR_MODULES)
    return (origin or type(error).__name__) if of_our_type or raised_by_us else None
