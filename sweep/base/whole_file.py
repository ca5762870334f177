"""Files that appear complete: written under another name, flushed to disk, then renamed."""

import filecmp
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


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
