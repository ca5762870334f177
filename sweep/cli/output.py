"""Standard output and error that outlive their reader: no command ends because `head`, `tee` or an ssh session did."""

import errno
import io
import os
import stat
import sys
from typing import Any

READER_GONE = {errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET}  # a pipe's reader, or the other end of a socket


class _Descriptor(io.FileIO):
    """A standard descriptor, which leads nowhere once its reader is gone."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)  # a terminal
            if error.errno not in READER_GONE and not hung_up:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(content)


def outlive_readers() -> None:
    """Replace this process's standard streams by such, through which print, rich, warnings and logging all write."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # closed, or somebody else's: a test's, a notebook's
        raw = _Descriptor(stream.fileno(), "wb", closefd=False)
        lasting = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)
