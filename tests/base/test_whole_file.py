"""Files appear complete, on the disk too, and nothing stays beside them."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from sweep.base.whole_file import parsed_size, rename_whole, write_whole


@pytest.mark.parametrize("content", ["é", "é".encode(), lambda path: path.write_text("é", encoding="utf-8")])
def test_a_file_is_replaced_by_the_new_one(tmp_path, content):
    target = tmp_path / "folder" / "file"
    write_whole(target, "old")
    write_whole(target, content)
    assert target.read_bytes() == "é".encode()
    assert list(target.parent.iterdir()) == [target]


def test_a_write_that_fails_changes_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space")

    target, staging = tmp_path / "file", tmp_path / "staging"
    write_whole(target, "old")
    with pytest.raises(OSError, match="no space"):
        write_whole(target, fail, staging)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target, flushed = tmp_path / "target", []

    def fsync(descriptor: int) -> None:
        assert not target.exists()
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr("sweep.base.whole_file.os.fsync", fsync)
    folder = tmp_path / "partial"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("")
    (folder / "deep" / "b").write_text("")
    rename_whole(folder, target)
    assert sorted(flushed) == ["a", "b"]
    assert (target / "deep" / "b").exists()


def test_an_equal_file_is_kept_where_asked(tmp_path):
    target = tmp_path / "file"
    assert write_whole(target, "one", keep_equal=True)
    inode = target.stat().st_ino
    assert not write_whole(target, "one", keep_equal=True)
    assert target.stat().st_ino == inode
    assert write_whole(target, "two", keep_equal=True)
    assert target.read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


NARROW = ["[]", "{}", '{"a":"bc"}', '"ab"', "1.5", "9999999999"]
WIDE = ['"一"', '"\\u4e00"', '"😀"', f'"{"x" * 500}😀"']
LARGE = json.dumps({f"{key:x}": key for key in range(2000)})


@pytest.mark.parametrize("member", [*NARROW, *WIDE, LARGE])
def test_a_parsed_documents_size_is_bounded(member):
    """Of wide characters and short strings it was up to four times the bound."""
    document = f"[{','.join([member] * (1 if member == LARGE else 2000))}]".encode()
    tracemalloc.start()
    content = json.loads(document)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert content
    assert size < parsed_size(document) + 1000
