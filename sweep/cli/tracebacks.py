"""Unexpected errors: one line for the user, and the traceback in a file."""

import errno
import os
import shlex
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweep.base.config import ConfigError, DamagedFile, Halted, Unforeseen, cache_directory, first_line, shortened
from sweep.base.exits import Outage
from sweep.base.masking import masked_message, secret_values


@contextmanager
def traced(arguments: Sequence[str], expected: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise Unforeseen for an error that is neither bad input nor `expected`, and write its traceback to a file."""
    try:
        yield
    except (ConfigError, DamagedFile, Halted, Outage):
        raise
    except Exception as error:
        if isinstance(error, expected):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # a path that the user typed
            raise ConfigError(f"{shortened(error.filename)}: {os.strerror(error.errno)}") from None
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # of a path that begins with ~
            raise ConfigError("~: no such home directory is known; expected a path without ~") from None
        text = masked_message(f"sweep {shlex.join(arguments)}\n{traceback.format_exc()}", secret_values(os.environ))
        problem = f"internal error of sweep: {type(error).__name__}: {shortened(first_line(error))}"
        raise Unforeseen(f"{problem}; traceback: {_error_file(text)}") from error


def _error_file(text: str) -> Path:
    """Write this text to a new file in the cache folder, or else in the folder for temporary files; return its path."""
    try:
        folder = cache_directory(None) / "errors"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix="planning-", suffix=".txt", dir=folder, delete=False) as file:
            file.write(text)
    except (OSError, ConfigError):
        with tempfile.NamedTemporaryFile("w", prefix="sweep-planning-", suffix=".txt", delete=False) as file:
            file.write(text)
    return Path(file.name)
