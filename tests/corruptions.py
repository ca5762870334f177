"""Corruptions of a run's files, and what the readers make of each: a line, or content as it was written; never neither.

`python -m benchmarks.corruptions` writes the table of them; tests/test_corruptions.py asserts it.
"""

import contextlib
import io
import random
import re
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweep.__main__ import main
from sweep.disk import run_files
from sweep.disk.ledger import Ledger, ledger_entries
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import read_table
from sweep.drive.monitor.status import read_status_file

Corrupt = Callable[[bytes, random.Random], bytes]


def _block(change: Callable[[bytes], bytes]) -> Corrupt:
    def corrupt(content: bytes, chance: random.Random) -> bytes:
        begin = chance.randrange(len(content))
        end = min(len(content), begin + chance.randrange(1, 200))
        return content[:begin] + change(content[begin:end]) + content[end:]

    return corrupt


def _character(pattern: bytes, characters: bytes) -> Corrupt:
    def corrupt(content: bytes, chance: random.Random) -> bytes:
        places = [match.start() for match in re.finditer(pattern, content)]
        place = chance.choice(places or range(len(content)))
        other = chance.choice([character for character in characters if character != content[place]])
        return content[:place] + bytes([other]) + content[place + 1 :]

    return corrupt


def _line(line: bytes) -> Corrupt:
    def corrupt(content: bytes, chance: random.Random) -> bytes:
        lines = content.splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines) + 1), line + b"\n")
        return b"".join(lines)

    return corrupt


CORRUPTIONS: dict[str, Corrupt] = {
    "truncated": lambda content, chance: content[: chance.randrange(len(content))],
    "a byte 0xff": _character(rb"(?s).", b"\xff\xfe"),
    "a bit": lambda content, chance: _flip(content, chance.randrange(8 * len(content))),
    "a digit": _character(rb"\d", b"0123456789"),
    "a letter": _character(rb"[a-z]", b"abcdefghijklmnopqrstuvwxyz"),
    "a block of zeros": _block(lambda block: bytes(len(block))),
    "a block deleted": _block(lambda block: b""),
    "a block twice": _block(lambda block: block * 2),
    "zeros at the end": lambda content, chance: content + bytes(512),
    "a line null": _line(b"null"),
    "a line {}": _line(b"{}"),
    "a line of another kind": _line(b'{"event": "trial", "kind": "trial", "row": {"trial_id": 3}}'),
    "an invented row": _line(b'{"event": "trial", "row": {"trial_id": "x", "deployment_id": "d", "outcome": "ok"}}'),
    "a byte order mark": lambda content, chance: b"\xef\xbb\xbf" + content,
    "CRLF": lambda content, chance: content.replace(b"\n", b"\r\n"),
    "UTF-16": lambda content, chance: content.decode("latin-1").encode("utf-16"),
    "empty": lambda content, chance: b"",
}


def _flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class Finding(NamedTuple):
    """What the readers made of one corruption."""

    file: str
    corruption: str
    tracebacks: int
    believed: int  # readers that took changed content for what was written
    named: bool  # some command's output names the file


FILES = ("ledger.jsonl", "plan.jsonl", "status.json", "trials.parquet", "requests.parquet")


def check(
    out: Path, command: list[str], scratch: Path, repeats: int = 2, files: Sequence[str] = FILES
) -> Iterator[Finding]:
    """Corrupt files of a finished run, `repeats` times in each way, and read each with every command that reads it."""
    chance = random.Random(1)
    paths = RunPaths(out)
    for file in (_requests_of_a_result(paths) if name == "requests.parquet" else out / name for name in files):
        for name, corrupt in CORRUPTIONS.items():
            for _ in range(repeats):
                copy = scratch / "copy"
                shutil.copytree(out, copy)
                target = copy / file.relative_to(out)
                content = target.read_bytes()
                target.write_bytes(corrupt(content, chance))
                yield _read(file.name, name, RunPaths(copy), paths, target, command)
                shutil.rmtree(copy)


def _requests_of_a_result(paths: RunPaths) -> Path:
    """The requests of a trial with a result: no command reads those of another."""
    rows = run_files.read_trials(paths.trials)
    row = next((row for row in rows if row["outcome"] == "ok"), None)
    assert row, "no trial has a result: the machine was too busy"
    return paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).requests


def _read(file: str, name: str, paths: RunPaths, original: RunPaths, target: Path, command: list[str]) -> Finding:
    run = [argument for argument in command if not argument.startswith("out=")] + [f"out={paths.out}"]
    commands = [["status", str(paths.out)]]
    if file in ("ledger.jsonl", "requests.parquet"):  # what a command reads besides
        commands.append([*run, "dry_run=true"])
    if file in ("trials.parquet", "requests.parquet"):
        commands.append(["report", str(paths.out)])
    if file == "requests.parquet":
        commands.append(["export", str(paths.out), str(paths.out / "exported")])
    printed = [_printed(each) for each in commands]
    believed = int(_believed(file, paths, original, target))
    named = any(target.name in text for text in printed)
    return Finding(file, name, sum("Traceback" in text for text in printed), believed, named)


def _printed(command: list[str]) -> str:
    """Everything that a command says, also by Python's warnings, which are otherwise said once for each text."""
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        try:
            main(command)
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 - it is what is looked for
            traceback.print_exc(file=output)
    return "\n".join([output.getvalue(), *(str(warning.message) for warning in said)])


def _believed(file: str, paths: RunPaths, original: RunPaths, target: Path) -> bool:
    """Return whether a reader takes the file for something else than what was written."""
    try:
        if file == "ledger.jsonl":
            return _foreign_rows(paths, original)
        if file == "plan.jsonl":
            return bool(run_files.read_plan(target) != run_files.read_plan(original.plan))
        if file == "status.json":
            return bool(_without_seal(read_status_file(paths)) != _without_seal(read_status_file(original)))
        source = original.out / target.relative_to(paths.out)
        return bool(not read_table(target).equals(read_table(source)))
    except DamagedFile:
        return False


def _foreign_rows(paths: RunPaths, original: RunPaths) -> bool:
    with original.ledger.open("rb") as lines:
        committed = [entry["row"] for entry in ledger_entries(lines) if entry["event"] == "trial"]
    rows = Ledger(paths.ledger, write=False).rows.values()
    return any(row not in committed for row in rows)


def _without_seal(content: Any) -> Any:
    return {key: value for key, value in content.items() if key != "crc"} if content else content
