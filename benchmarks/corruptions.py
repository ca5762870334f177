"""Damaged files of a run and what its readers make of them; writes docs/measurements/corruptions.md.

    python -m benchmarks.corruptions [--write docs/measurements/corruptions.md]

A run of two trials on the simulated engine; each of its files is corrupted in each way, REPEATS times, and read by
the commands that read it.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sweep.__main__ import main as sweep
from tests.corruptions import CORRUPTIONS, Finding, check

COMMAND = [
    *("backend=simulated", "model=tiny-llama", "workload=synthetic", "workload.input_tokens=16"),
    *("workload.output_tokens=6", "workload.num_requests=2", "load.batch_size=1,2", "cluster=inline", "tracking=none"),
]
REPEATS = 2
HEADER = """# Damaged files

Made by `python -m benchmarks.corruptions`: a run of two trials; each file corrupted in each of {ways} ways, {repeats}
times, and read by `sweep status`, our readers, and the commands that read it: the run's own with `dry_run=true` (the
ledger, the requests), `sweep report` (the trials, the requests) and `sweep export` (the requests). The requests are
those of a trial with a result. *Believed* counts content that a reader took for something else than what was written.
Those not named left the content as it was (a cut last line of the ledger, CRLF), or damaged a part that no command had
need to read.

| file | corruptions | tracebacks | believed | named |
|---|---|---|---|---|
"""


def table(findings: Iterable[Finding]) -> str:
    """The findings by file, as Markdown."""
    rows: dict[str, Counter[str]] = {}
    for finding in findings:
        row = rows.setdefault(finding.file, Counter())
        row.update(n=1, tracebacks=finding.tracebacks, believed=finding.believed, named=finding.named)
    lines = [f"| {file} | {n['n']} | {n['tracebacks']} | {n['believed']} | {n['named']} |" for file, n in rows.items()]
    return HEADER.format(ways=len(CORRUPTIONS), repeats=REPEATS) + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    target = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        sweep([*COMMAND, f"out={folder}/out"])
        text = table(list(check(Path(folder) / "out", COMMAND, Path(folder), REPEATS)))
    print(text)
    if target:
        target.write_text(text)


if __name__ == "__main__":
    main()
