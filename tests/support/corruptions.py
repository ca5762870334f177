"""Corruptions of a run's files, and what commands make of each: a line, or content as it was written; never neither.

`python -m benchmarks.corruptions` writes the table of them; tests/disk/test_corruptions.py asserts it.
"""

import contextlib
import io
import itertools
import random
import re
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweep.__main__ import main
from sweep.disk import run_files
from sweep.disk.compaction import compact
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import read_table
from sweep.drive.monitor.status import read_status_file
from sweep.drive.monitor.totals import read_totals
from tests.support.results import committed_rows

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
    """What the commands made of one corruption."""

    file: str
    corruption: str
    damaged: bool  # by the file's own reader
    tracebacks: int
    believed: int  # readers that took changed content for what was written
    silent: tuple[str, ...]  # commands that read the file, which no longer holds, without naming it
    long: tuple[str, ...]  # commands that refused in more or less than one line
    named: bool  # some command's output names the file


# By file, the commands that read all of it, and so name it if it does not hold.
READERS: dict[str, tuple[str, ...]] = {
    "ledger.jsonl": ("status", "dry run"),
    "plan.jsonl": ("status", "rerun"),
    "status.json": ("status", "run"),
    "totals.json": ("status",),
    "trials.parquet": ("summary", "compare", "explain", "export", "studies", "rerun", "wandb", "report"),
    "requests.parquet": ("export",),
    "telemetry.parquet": ("report",),  # which draws it
    "compact requests": ("export",),
}
# Those that read a part of it, or only look whether it is there: they refuse in one line, or go on.
OTHERS: dict[str, tuple[str, ...]] = {
    "plan.jsonl": ("report", "summary", "compare", "explain", "export", "studies", "dry run", "run"),
    "totals.json": ("run",),
    "trials.parquet": ("dry run", "run"),  # the columns with durations, for the estimate
    "requests.parquet": ("status", "summary", "compare", "report", "dry run"),
    "telemetry.parquet": ("status", "export"),
    "compact requests": ("status", "summary", "report", "dry run"),
}
FILES = tuple(READERS)


def check(
    out: Path,
    command: list[str],
    scratch: Path,
    repeats: int = 2,
    files: Sequence[str] = FILES,
    ways: Iterable[str] = CORRUPTIONS,
) -> Iterator[Finding]:
    """Corrupt files of a finished run, `repeats` times in each way, and read each with every command that reads it."""
    chance, numbers = random.Random(1), itertools.count()
    for file in files:
        source = _compacted(out, scratch / "compacted") if file.startswith("compact") else out
        place = _place(file, RunPaths(source)).relative_to(source)
        for name in ways:
            for _ in range(repeats):
                copy = scratch / f"copy-{next(numbers)}"  # a path of its own: indexes of compact files are remembered
                shutil.copytree(source, copy)
                target = copy / place
                target.write_bytes(CORRUPTIONS[name](target.read_bytes(), chance))
                yield _read(file, name, RunPaths(copy), RunPaths(source), target, command)
                shutil.rmtree(copy)


def _compacted(out: Path, copy: Path) -> Path:
    if not copy.exists():
        shutil.copytree(out, copy)
        assert compact(RunPaths(copy), fewest=1)
    return copy


def _place(file: str, paths: RunPaths) -> Path:
    """The path of a kind of file; a trial's is that of one with a result, as no command reads those of another."""
    if file.startswith("compact"):
        return next(paths.compact.glob(f"{file.split()[1]}-*.parquet"))
    if file not in ("requests.parquet", "telemetry.parquet"):
        return paths.out / file
    row = next((row for row in run_files.read_trials(paths.trials) if row["outcome"] == "ok"), None)
    assert row, "no trial has a result: the machine was too busy"
    return paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).folder / file


def _read(file: str, name: str, paths: RunPaths, original: RunPaths, target: Path, command: list[str]) -> Finding:
    holds, believed = _content(file, paths, original, target)  # before a run mends it
    commands = _commands(paths, original, command)
    names = {*READERS[file], *OTHERS.get(file, ())}
    read = {each: _printed(line) for each, line in commands.items() if each in names}
    naming = {each for each, printed in read.items() if target.name in printed.text}
    long = tuple(each for each, printed in read.items() if printed.is_long)
    silent = () if holds else tuple(each for each in READERS[file] if each not in naming)
    tracebacks = sum("Traceback" in printed.text for printed in read.values())
    return Finding(file, name, not holds, tracebacks, int(believed), silent, long, bool(naming))


def _commands(paths: RunPaths, original: RunPaths, command: list[str]) -> dict[str, list[str]]:
    """The commands that read a run's files, by name, in an order in which none but the last mends anything."""
    out, run = str(paths.out), [argument for argument in command if not argument.startswith("out=")]
    run += [f"out={paths.out}", "retry=none"]
    return {
        "status": ["status", out],
        "summary": ["summary", out],
        "compare": ["compare", str(original.out), out],
        "explain": ["explain", out],
        "export": ["export", out, str(paths.out / "exported")],
        "studies": ["studies", out],
        "rerun": ["rerun", out, "--capsule"],
        "wandb": ["wandb", out, "--no-trials"],
        "report": ["report", out],
        "dry run": [*run, "dry_run=true"],
        "run": [*run, "report=false", "deadline=08:00"],
    }


class Printed(NamedTuple):
    """All that a command said."""

    status: int
    text: str
    lines: list[str]  # of stderr

    @property
    def is_long(self) -> bool:
        """True if it refused in more or less than one line, warnings about what is left out not counted."""
        return self.status == 2 and len([line for line in self.lines if not line.startswith("warning: ")]) != 1


def _printed(command: list[str]) -> Printed:
    """Run a command; of what it says, Python's warnings too, which are otherwise said once for each text."""
    output, errors, status = io.TextIOWrapper(io.BytesIO()), io.StringIO(), 0  # the first takes bytes, too
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            status = main(command)
        except SystemExit:
            pass
        except BaseException:  # noqa: BLE001 - it is what is looked for
            traceback.print_exc(file=errors)
    output.seek(0)
    return Printed(status, output.read() + errors.getvalue(), errors.getvalue().splitlines())


def _content(file: str, paths: RunPaths, original: RunPaths, target: Path) -> tuple[bool, bool]:
    """Return whether the file holds by its reader, and whether the reader believes what was not written."""
    try:
        if file == "ledger.jsonl":
            ledger = Ledger(paths.ledger, write=False)
            return not ledger.describe_damage(), _foreign_rows(ledger, original)
        if file == "plan.jsonl":
            return True, bool(run_files.read_plan(target) != run_files.read_plan(original.plan))
        if file == "status.json":
            return True, bool(_without_seal(read_status_file(paths)) != _without_seal(read_status_file(original)))
        if file == "totals.json":
            return True, read_totals(paths, False) not in (None, read_totals(original, False))
        source = original.out / target.relative_to(paths.out)
        return True, bool(not read_table(target).equals(read_table(source)))
    except DamagedFile:
        return False, False


def _foreign_rows(ledger: Ledger, original: RunPaths) -> bool:
    committed = committed_rows(original.ledger)
    return any(row not in committed for row in ledger.rows.values())


def _without_seal(content: Any) -> Any:
    return {key: value for key, value in content.items() if key != "crc"} if content else content
