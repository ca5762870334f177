"""Damages files of a run and records what their readers do; writes docs/measurements/corruptions.md.

    python -m benchmarks.corruptions [--write docs/measurements/corruptions.md]

The run has two trials on the simulated engine. Each of its files is damaged in each way, as often as REPEATS says, and
read by every command that reads it. It takes about a quarter of an hour.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.documents import markdown_table
from sweep.__main__ import main as sweep
from tests.support.corruptions import CORRUPTIONS, FILES, OTHERS, READERS, Finding, check

COMMAND = [
    *("backend=simulated", "model=tiny-llama", "workload=synthetic", "workload.input_tokens=16"),
    *("workload.output_tokens=6", "workload.num_requests=2", "load.batch_size=1,2", "cluster=inline", "tracking=none"),
]
COLUMNS = ("damaged", "tracebacks", "believed", "silent", "long", "named")
REPEATS = {"ledger.jsonl": 7, "status.json": 3, "totals.json": 3, "trials.parquet": 2}  # 1: one report
HEADER = """# Damaged files

Made by `python -m benchmarks.corruptions` from a run of two trials. Each file is corrupted in each of {ways} ways, once
or several times at random places, and read by every command that reads it. Requests and telemetry are those of a trial
with a result; a compact file is that of a copy whose tables were put together.

*Damaged*: the file no longer holds, by its checksums or its form. The other corruptions left the content as it was
(CRLF at the end of a line, a cut in what a reader leaves out anyway). *Tracebacks*: commands that ended with one.
*Believed*: content that a reader took for something else than what was written. *Silent*: commands that read the
whole of a damaged file and did not name it. *Long*: commands that refused in more, or less, than one line (besides a
warning that names what is left out). *Named*: corruptions of which some command named the file.

"""


def table(findings: Iterable[Finding]) -> str:
    """Return the findings by file, as Markdown."""
    rows: dict[str, Counter[str]] = {}
    for finding in findings:
        counted = {column: getattr(finding, column) for column in COLUMNS}
        lengths = {name: len(value) if isinstance(value, tuple) else int(value) for name, value in counted.items()}
        rows.setdefault(finding.file, Counter()).update(corruptions=1, **lengths)
    cells = []
    for file, counts in rows.items():
        commands = [", ".join(readers.get(file, ())) for readers in (READERS, OTHERS)]
        cells.append([file, *commands, *(counts[each] for each in ("corruptions", *COLUMNS))])
    headings = " | ".join(["file", "read by", "in part by", "corruptions", *COLUMNS])
    return "\n".join([HEADER.format(ways=len(CORRUPTIONS)), *markdown_table(headings, cells), ""])


def _findings(folder: Path) -> Iterator[Finding]:
    for file in FILES:
        for finding in check(folder / "out", COMMAND, folder, REPEATS.get(file, 1), [file]):
            if finding.tracebacks or finding.believed or finding.silent or finding.long:
                print(finding, file=sys.stderr, flush=True)
            yield finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    target = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        sweep([*COMMAND, f"out={folder}/out"])
        text = table(_findings(Path(folder)))
    print(text)
    if target:
        target.write_text(text)


if __name__ == "__main__":
    main()
