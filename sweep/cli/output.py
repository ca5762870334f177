"""Standard output and error that survive the loss of their reader, and that text from engines or runs cannot control.

No run fails because `head`, `tee` or an ssh session ended, or because the disk of its output is full. Control
characters are shown as `\\x1b`, except those that a console writes for its styles.
"""

import errno
import io
import os
import select
import stat
import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sweep.base.wording import printable

READER_GONE = {errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET}  # a pipe's reader, or the other end of a socket


class _Descriptor(io.FileIO):
    """A standard descriptor, which discards output once its reader is gone, and while its disk fails or is full."""

    lost: OSError | None = None  # the error of a disk that did not take the output

    def write(self, content: Any, /) -> int:
        rest, size = memoryview(content).cast("B"), memoryview(content).nbytes
        try:
            while rest:
                if (written := super().write(rest)) is None:  # others may make a shared terminal or pipe non-blocking
                    select.select([], [self.fileno()], [])
                rest = rest[written or 0 :]
            return size
        except OSError as error:
            hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)  # a closed terminal
            if error.errno not in READER_GONE and not hung_up:
                self.lost = error
                return size
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return size


class _Stream(io.TextIOWrapper):
    """A standard stream on which text cannot control the terminal."""

    raw: _Descriptor

    def write(self, text: str, /) -> int:
        return super().write(printable(text))


class _Styled:
    """The same stream for a console, which may write control sequences."""

    def __init__(self, stream: _Stream) -> None:
        self.stream = stream

    def write(self, text: str, /) -> int:
        return io.TextIOWrapper.write(self.stream, text)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)


class SafeConsole(Console):
    """A console whose displayed text cannot control the terminal."""

    @property
    def file(self) -> IO[str]:
        stream: Any = super().file
        return stream if not isinstance(stream, _Stream) else cast("IO[str]", _Styled(stream))

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with control characters escaped in every text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def make_console(width: int | None = None, markup: bool = True) -> SafeConsole:
    """Return a console; `width` applies if there is no terminal and no COLUMNS."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(highlight=False, markup=markup, width=None if has_width else width)


def replace_streams() -> None:
    """Replace this process's standard streams, through which print, rich, warnings and logging all write.

    A closed stream leads nowhere: its number must not become that of a results file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, attribute in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, attribute)
        if stream is not getattr(sys, f"__{attribute}__"):
            continue  # replaced by a test or a notebook
        stream = stream or open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
        if number:
            stream = _safe(stream)
        setattr(sys, attribute, stream)


def _safe(stream: Any) -> _Stream:
    raw = _Descriptor(stream.fileno(), "wb", closefd=False)
    replacement = _Stream(
        raw if stream.write_through else io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",  # replace characters that the locale lacks, instead of failing
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    replacement.raw = raw
    return replacement


def lost_output() -> str | None:
    """Write what is buffered; return why part of standard output was lost, or None."""
    sys.stdout.flush()
    error = sys.stdout.raw.lost if isinstance(sys.stdout, _Stream) else None
    return None if error is None else os.strerror(error.errno or 0)
