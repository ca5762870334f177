"""Measures how often `sweep rerun` wrongly says "differs" of a row, and whether it names planted changes.

    python -m benchmarks.rerun rows RUN FOLDER [--replicate 1]   rows of a copied run, on a fresh clone of this commit
    python -m benchmarks.rerun planted FOLDER                    changes in a row, and on the simulated engine
    python -m benchmarks.rerun slowed FOLDER [--share 0.3]       a real llama.cpp, as it was and slowed down

`rows` copies what a mailed report needs (report.html, trials.parquet, plan.jsonl, locks/), and nothing else that was
measured. `planted` measures a run on the simulated engine, changes its weights, prompts, settings, variables and cores,
and runs it again. Then it changes one thing at a time in a copy of a row. `slowed` measures llama.cpp in
SLOWED_LAUNCHES launches, and runs each again twice: unchanged, and stopped for this share of the time (duty_cycle.py).
All print a table in Markdown.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backends.launch import supervisor
from benchmarks.documents import markdown_table, publish
from sweep.base.config import ROOT, build, cache_directory
from sweep.base.options import load_option
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.rerun.capsule import Capsule, parse_capsules
from sweep.rerun.circumstances import changed_circumstances, circumstances
from sweep.rerun.rows import capsules_of

COPIED = ("report.html", "trials.parquet", "plan.jsonl", "locks")
PER_ROW = ("output_throughput", "ttft_p50", "tpot_p50")
LAUNCHED = [  # a run of two launches on the simulated engine, slow enough for a busy machine
    *("backend=simulated", "backend.ttft.mean=0.6", "backend.itl.mean=0.1", "workload.output_tokens=6"),
    *("workload=prompts", "workload.num_requests=2", "workload.warmup_requests=1", "load.batch_size=1"),
    *("replicates=2", "relaunch=per_replicate", "cluster=inline", "tracking=none"),
]
SLOWED_LAUNCHES = 10
OF_LLAMACPP = [  # trials of some seconds, whose launches differ less than those of shorter trials
    *("backend=llamacpp", "backend.slots=4", "model=tiny-llama", "workload=synthetic", "load=closed"),
    *("workload.input_tokens=16", "workload.output_tokens=128", "workload.num_requests=80", "load.concurrency=4"),
    *(f"replicates={SLOWED_LAUNCHES}", "relaunch=per_replicate", "cluster=inline", "tracking=none"),
]
ENGINE_POLL = 0.5  # seconds between two searches for an engine to slow down
# Column, key in its JSON (empty: the column itself), planted value, and the name that `sweep rerun` must give.
PLANTED: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("driver", (), "580.95.05", "driver"),
    ("accelerator", (), "NVIDIA H100 80GB HBM3", "accelerator"),
    ("gpu_count", (), 2, "GPUs"),
    ("protocol", (), 4, "protocol version"),
    ("commit", (), "0123456789ab", "code commit"),
    ("engine_version", (), "0.0.1", "engine version"),
    ("dtype", (), "float8", "number format"),
    ("batch_form", (), "neither", "batches sent as"),
    ("hardware", ("cpu",), "Intel Xeon 8480", "processor"),
    ("hardware", ("cores",), 64, "cores"),
    ("hardware", ("gpus",), ["NVIDIA L4"], "GPU names"),
    ("hardware", ("kernel",), "5.10.0", "kernel"),
    ("hardware", ("glibc",), "2.28", "glibc"),
    ("hardware", ("memory_bytes",), 2**33, "memory"),
    ("hardware", ("node",), "another", "machine"),
    ("versions", ("numpy",), "1.26.0", "version of numpy"),
    ("versions", ("uvloop",), "0.1.0", "version of uvloop"),
    ("digests", ("model",), "edited", "weights"),
    ("digests", ("workload",), "edited", "prompts"),
    ("digests", ("lock",), "cpu.txt 0000", "lock"),
    ("settings", ("max_failed",), 0.5, "setting max_failed"),
    ("engine_facts", ("environ", "OMP_NUM_THREADS"), "7", "environment variable OMP_NUM_THREADS"),
    ("engine_facts", ("max_model_len",), 77, "engine's max_model_len"),
    ("engine_facts", ("command",), ["--planted", "1"], "flag planted"),
]


class Plant(NamedTuple):
    """A planted change, where it was planted, and the names of the differences found."""

    change: str
    where: str
    expected: str
    names: Sequence[str]

    @property
    def is_named(self) -> bool:
        return self.expected in self.names


def sweep(
    arguments: Sequence[str],
    folder: Path,
    checkout: Path = ROOT,
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run the command of a checkout; its output goes to a file."""
    command = [*prefix, sys.executable, "-m", "sweep", *arguments]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        variables = {**os.environ, **(environ or {})}
        return subprocess.run(command, cwd=checkout, stdout=output, stderr=output, env=variables).returncode


def slowed_sweep(arguments: Sequence[str], folder: Path, share: float) -> int:
    """Run the command while each engine that it launches is stopped for this share of the time."""
    command = [sys.executable, "-m", "sweep", *arguments]
    slowing: dict[int, subprocess.Popen[bytes]] = {}
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                for pid in set(_engines_of(process.pid)) - slowing.keys():
                    duty = [sys.executable, "-m", "benchmarks.duty_cycle", str(pid), str(share)]
                    slowing[pid] = subprocess.Popen(duty, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output)
                time.sleep(ENGINE_POLL)
        finally:
            process.terminate()  # unless it has ended
            for each in slowing.values():
                each.communicate()
    if not slowing:
        raise SystemExit(f"no engine was found to slow down: {folder / 'output.txt'}")
    return process.wait()


def _engines_of(owner: int) -> list[int]:
    """Return the engines that a process has launched."""
    return supervisor.marked(
        lambda environ: (
            environ.get(supervisor.OWNER, "").startswith(f"{owner}:") and supervisor.SUPERVISOR not in environ
        )
    )


def slowed_rows(folder: Path, share: float) -> list[str]:
    """Return the verdicts on a real engine, unchanged and slowed down."""
    folder = folder.absolute()
    run = folder / "run"
    if sweep([*OF_LLAMACPP, f"out={run}"], folder):
        raise SystemExit(f"the run of llama.cpp failed: {folder / 'output.txt'}")
    rows = []
    for name in ("as it was", f"stopped for {share:.0%} of the time"):
        again = folder / f"again-{name.partition(' ')[0]}"
        rerun = ["rerun", str(run), "--out", str(again)]
        status = sweep(rerun, folder) if name == "as it was" else slowed_sweep(rerun, folder, share)
        if status not in (0, 1, 3):
            raise SystemExit(f"sweep rerun ended with {status}: {folder / 'output.txt'}")
        verdicts = json.loads((again / "rerun.json").read_text())
        results = Counter(each["result"] for each in verdicts)
        cells = [_changes(verdicts, column) for column in PER_ROW]
        rows.append([name, *cells, ", ".join(f"{n} {result}" for result, n in results.items())])
    return markdown_table(" | ".join(["engine", *(f"{each}, changes (noise)" for each in PER_ROW), "verdicts"]), rows)


def _changes(verdicts: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return the smallest, median and largest change of a quantity, and its noise."""
    figures = [figure for each in verdicts for figure in each["figures"] if figure["column"] == column]
    changes = sorted(figure["change"] for figure in figures)
    most = max(figure["most"] for figure in figures)
    return f"{changes[0]:+.1%}, {statistics.median(changes):+.1%}, {changes[-1]:+.1%} (±{most:.1%})"


def rows_again(run: Path, folder: Path, replicate: int | None) -> list[dict[str, Any]]:
    """Run the results of a copied run again on a fresh clone; return the verdicts."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    copied = clone / "results" / "copied"
    copied.mkdir(parents=True)
    for name in COPIED:
        if (run / name).is_dir():
            shutil.copytree(run / name, copied / name)
        elif (run / name).exists():
            shutil.copy(run / name, copied / name)
    target = str(copied.relative_to(clone))
    if replicate is not None:
        chosen = [each for each in capsules_of(str(copied)) if each.trial["replicate"] == replicate]
        (clone / "capsules.txt").write_text("\n".join(each.text() for each in chosen))
        target = "capsules.txt"
    status = sweep(["rerun", target, "--out", str((folder / "again").absolute())], folder, clone)
    if status not in (0, 1, 3):
        raise SystemExit(f"sweep rerun ended with {status}: {folder / 'output.txt'}")
    verdicts: list[dict[str, Any]] = json.loads((folder / "again" / "rerun.json").read_text())
    return verdicts


def rows_table(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a row of Markdown for each trial, and a sentence about all trials."""
    rows = []
    for each in verdicts:
        figures = {figure["column"]: figure for figure in each["figures"]}
        rows.append([each["label"], *(_figure(figures.get(column)) for column in PER_ROW), each["result"]])
    headings = " | ".join(["trial", *(f"{column}, change (noise)" for column in PER_ROW), "verdict"])
    yield from markdown_table(headings, rows)
    differ = sum(each["result"] == "differs" for each in verdicts)
    unknown = sum(each["result"] == "cannot tell" for each in verdicts)
    yield f"\n{differ} of {len(verdicts)} rows differ; of {unknown} it cannot be said."
    yield "What is not the same, and in how many rows:\n"
    names = [pair["name"] for each in verdicts for pair in each["differences"]]
    yield from (f"- {name}: {names.count(name)}" for name in dict.fromkeys(names))


def _figure(figure: Mapping[str, Any] | None) -> str:
    return "—" if figure is None else f"{figure['change']:+.1%} (±{figure['most']:.1%})"


def planted_in_rows(run: Path) -> Iterator[Plant]:
    """Yield each of PLANTED, planted in a copy of a run's first result, with the differences found."""
    row = next(row for row in run_files.read_trials(RunPaths(run).trials) if row["outcome"] == "ok")
    before = circumstances(row)
    for column, place, value, expected in PLANTED:
        after = circumstances({**row, column: _changed(row.get(column), place, value)})
        names = [pair.name for pair in changed_circumstances(before, after)]
        yield Plant(f"{'.'.join([column, *place])} = {value}", "row", expected, names)


def _changed(content: Any, place: tuple[str, ...], value: Any) -> Any:
    if not place:
        return value
    settings = json.loads(content or "{}")
    *parents, last = place
    mapping = settings
    for key in parents:
        mapping = mapping.setdefault(key, {})
    mapping[last] = [*mapping[last], *value] if last == "command" else value
    return json.dumps(settings)


def planted_for_real(folder: Path) -> Iterator[Plant]:
    """Yield changes that are planted between a run of the simulated engine and its rerun."""
    folder = folder.absolute()
    source = build(load_option("model", "tiny-llama"), "model").prepare(cache_directory(None), print)  # type: ignore[attr-defined]
    shutil.copytree(source, folder / "model")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"How many are {n} and {n}?"}) + "\n" for n in range(9)))
    files = ["model=path", f"model.path={folder / 'model'}", f"workload.file={prompts}", f"out={folder / 'run'}"]
    if sweep([*LAUNCHED, *files], folder):
        raise SystemExit(f"the run on the simulated engine failed: {folder / 'output.txt'}")
    capsule = capsules_of(str(folder / "run"))[0]
    yield from _edited_capsules(capsule, folder)
    variables = {"MALLOC_ARENA_MAX": "1"}
    one_core = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))))
    names = _rerun(capsule, folder / "machine", ["max_failed=0.2"], one_core, variables)[0]
    yield Plant("run on one core", "launched", "cores", names)
    yield Plant("a variable of the shell", "launched", "environment variable MALLOC_ARENA_MAX", names)
    yield Plant("max_failed=0.2", "launched", "setting max_failed", names)
    with next((folder / "model").glob("*.safetensors")).open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x01")
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": "And how many are ten?"}) + "\n")
    names = _rerun(capsule, folder / "files")[0]
    yield Plant("a byte of the weights", "launched", "weights", names)
    yield Plant("a line of the prompts' file", "launched", "prompts", names)


def _edited_capsules(capsule: Capsule, folder: Path) -> Iterator[Plant]:
    """Yield the capsule with one setting edited by hand, three times, so that the record does not follow from it."""
    edits = [
        (("backend", "itl", "mean"), 0.15, "flag config.itl.mean"),
        (("model", "dtype"), "float16", "number format"),
        (("backend", "environ"), {"PLANTED": "1"}, "environment variable PLANTED"),
    ]
    texts = []
    for place, value, _ in edits:
        (copy,) = parse_capsules(capsule.text())
        *parents, last = place
        mapping = copy.config
        for key in parents:
            mapping = mapping[key]
        mapping[last] = value
        texts.append(copy.text())
    (folder / "edited.txt").write_text("\n".join(texts))
    differences = _rerun(folder / "edited.txt", folder / "edited")
    for (place, value, expected), names in zip(edits, differences, strict=True):
        yield Plant(f"{'.'.join(place)} = {value}", "launched", expected, names)


def _rerun(
    target: Capsule | Path,
    folder: Path,
    overrides: Sequence[str] = (),
    prefix: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """Return the names of the differences in each trial that is run again."""
    file = target if isinstance(target, Path) else folder.with_suffix(".txt")
    if isinstance(target, Capsule):
        file.write_text(target.text())
    out = folder / "out"
    status = sweep(["rerun", str(file), "--out", str(out), *overrides], folder, prefix=prefix, environ=environ)
    if status not in (0, 1, 3):
        raise SystemExit(f"sweep rerun ended with {status}: {folder / 'output.txt'}")
    verdicts = json.loads((out / "rerun.json").read_text())
    return [[pair["name"] for pair in each["differences"]] for each in verdicts]


def planted_table(plants: Sequence[Plant]) -> Iterator[str]:
    """Yield a row of Markdown for each planted change."""
    rows = ([each.change, each.where, each.expected if each.is_named else "no"] for each in plants)
    yield from markdown_table("planted | where | named", rows)
    yield f"\n{sum(each.is_named for each in plants)} of {len(plants)} planted changes are named."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    rows, planted, slowed = (kinds.add_parser(name) for name in ("rows", "planted", "slowed"))
    rows.add_argument("run", type=Path, metavar="RUN", help="a results folder")
    rows.add_argument("--replicate", type=int, help="of each point only this one")
    slowed.add_argument("--share", type=float, default=0.3, help="of the time in which the engine is stopped")
    for each in (rows, planted, slowed):
        each.add_argument("folder", type=Path, metavar="FOLDER", help="a new one")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    if options.kind == "rows":
        lines: Iterable[str] = rows_table(rows_again(options.run, options.folder, options.replicate))
    elif options.kind == "slowed":
        lines = slowed_rows(options.folder, options.share)
    else:
        launched = list(planted_for_real(options.folder))
        lines = planted_table([*launched, *planted_in_rows(options.folder / "run")])
    publish(lines)


if __name__ == "__main__":
    main()
