"""Atomic file writes (temporary name, flush, rename), and bounded reads of files that a user provides."""

import errno
import filecmp
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

LARGEST_FILE = 2 << 30  # maximum bytes of a file to read
# Bytes of a parsed JSON object or list, of each member, and in addition of each string and each key.
OBJECT_BYTES, MEMBER_BYTES, STRING_BYTES, KEY_BYTES = 160, 40, 40, 80
WIDE_CHARACTER = re.compile(rb"[\xf0-\xf7]|\\u[dD][89aAbB]")  # its string takes four bytes for each character


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting. Raises OSError for a device, pipe or folder."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "expected a regular file", str(path))


def read_bounded(path: Path, largest: int = LARGEST_FILE, first: int = LARGEST_FILE) -> bytes:
    """Return a regular file's `first` bytes. Raises OSError for any other file, or above `largest` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise OSError(errno.EFBIG, f"expected at most {largest:,} bytes", str(path))
        return file.read(min(largest, first)) or b""  # a log of the kernel without a new line has None


def parsed_size(document: bytes) -> int:
    """Return a rough upper bound of the memory, in bytes, that a JSON document takes once parsed."""
    objects, members = document.count(b"{") + document.count(b"["), document.count(b",")
    strings, keys = document.count(b'"') // 2, document.count(b":")
    is_narrow = document.isascii() and b"\\u" not in document and b"\0" not in document[:4]
    width = 1 if is_narrow else 4 if WIDE_CHARACTER.search(document) else 2
    parts = OBJECT_BYTES * objects + MEMBER_BYTES * members + STRING_BYTES * strings + KEY_BYTES * keys
    return parts + width * len(document)


def write_whole(
    target: Path,
    content: str | bytes | Callable[[Path], None],
    staging: Path | None = None,
    *,
    keep_equal: bool = False,
) -> bool:
    """Write a file atomically. `content` is text (UTF-8), bytes, or a function that writes to a path.

    `staging` is a new folder on the same file system, by default next to the target. With `keep_equal`, a target with
    equal content is not rewritten. Returns whether the target was written.
    """
    staging = staging or target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(parents=True)
    staged = staging / f"{target.name}.partial"
    try:
        if callable(content):
            content(staged)
        else:
            staged.write_bytes(content.encode() if isinstance(content, str) else content)
        if keep_equal and target.exists() and filecmp.cmp(staged, target, shallow=False):
            return False
        rename_whole(staged, target)
        return True
    finally:
        shutil.rmtree(staging)


def rename_whole(source: Path, target: Path) -> None:
    """Flush a file or folder to disk, then rename it, so that a power cut cannot leave a renamed but empty file."""
    for path in [source, *source.rglob("*")]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    source.replace(target)
