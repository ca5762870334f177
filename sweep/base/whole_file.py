"""Files written to appear complete, under another name, flushed, renamed; and files of others, read within bounds."""

import errno
import filecmp
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

LARGEST_FILE = 2 << 30  # bytes of a file that is read
OBJECT_BYTES, MEMBER_BYTES = 240, 40  # of an object or list of JSON once it is parsed, and of each further member


def read_bounded(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a regular file. Raises OSError for a device, a pipe or a folder, and for a file that is larger."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "expected a regular file", str(path))
        if facts.st_size > largest:
            raise OSError(errno.EFBIG, f"expected at most {largest:,} bytes", str(path))
        return file.read(largest)


def parsed_size(document: bytes) -> int:
    """Bytes that a document of JSON takes at most once it is parsed, about."""
    objects, members = document.count(b"{") + document.count(b"["), document.count(b",")
    return OBJECT_BYTES * objects + MEMBER_BYTES * members + len(document)


def write_whole(
    target: Path,
    content: str | bytes | Callable[[Path], None],
    staging: Path | None = None,
    *,
    keep_equal: bool = False,
) -> bool:
    """Write a file that appears complete or not at all: a text (UTF-8), bytes, or what `content` writes to a path.

    It is written in the new folder `staging`, on the same file system; by default beside the target. With `keep_equal`,
    a target with equal content is left alone. Returns whether the target was written.
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
    """Flush a file or folder to disk, then rename it: a power cut must not keep the rename but lose the content."""
    for path in [source, *source.rglob("*")]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    source.replace(target)
