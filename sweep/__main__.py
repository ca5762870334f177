"""The `sweep` command (`python -m sweep` in a checkout): every error becomes one line and an exit status."""

import gc
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from sweep.base.config import (
    ISSUE_AGAIN,
    MOST_ECHOED,
    OUR_ERROR,
    ConfigError,
    DamagedFile,
    Halted,
    Unforeseen,
    shortened,
)
from sweep.base.exits import Outage
from sweep.base.masking import masked_message, secret_values
from sweep.cli.commands import READING, dispatch
from sweep.cli.output import lost_output, replace_streams
from sweep.drive.policy import DISK_FULL, is_waited_for

# Allocations between two garbage collections: a long plan or ledger has millions of objects, none in a cycle.
COLLECT_EVERY = 100_000
LONG_WORD = re.compile(r"\S{256,}")  # longer than most paths, which are shown in full


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit status."""
    replace_streams()
    warnings.showwarning = _show_warning
    gc.set_threshold(COLLECT_EVERY, *gc.get_threshold()[1:])
    if os.path.expanduser("~") == "~":  # a user without a name, as in containers: libraries would make a folder `~`
        os.environ["HOME"] = os.devnull
    try:
        status = dispatch(arguments)
        if (problem := lost_output()) is None:
            return status
        print(f"error: standard output: {problem}; part of the output is missing", file=sys.stderr)
        return status or (ISSUE_AGAIN if READING.intersection(arguments[:1]) else 0)
    except (ConfigError, DamagedFile) as error:
        print(f"error: {_one_line(error, arguments)}", file=sys.stderr)
        return 2
    except (OSError, UnicodeError) as error:  # an unforeseen problem with a disk, a network or a locale
        print(f"error: {_one_line(error, arguments)}", file=sys.stderr)
        return ISSUE_AGAIN if is_waited_for(error) or getattr(error, "errno", None) in DISK_FULL else 2
    except Unforeseen as error:
        print(f"error: {_one_line(error, arguments)}", file=sys.stderr)
        return OUR_ERROR
    except KeyboardInterrupt:
        print("stopped before anything was started; run the same command again to continue", file=sys.stderr)
        return 130
    except Halted as error:
        print(f"stopped: {_one_line(error, arguments)}", file=sys.stderr)
        return ISSUE_AGAIN
    except Outage as error:
        print(f"stopped: {_one_line(error, arguments)}; run the same command again", file=sys.stderr)
        return ISSUE_AGAIN


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning like every other message: on one line, without the source code."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _one_line(error: Exception, arguments: Sequence[str]) -> str:
    """Return the message on one line, with secrets masked and long values shortened."""
    message = f"{error}; set PYTHONUTF8=1" if isinstance(error, UnicodeError) else str(error)
    for argument in arguments:
        content = argument.partition("=")[2] or argument
        if len(content) > MOST_ECHOED and "/" not in content:
            message = message.replace(content, shortened(content))
    message = LONG_WORD.sub(lambda word: shortened(word[0]), " ".join(message.split()))
    return masked_message(message, secret_values(os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
