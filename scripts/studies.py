"""Runs every published study's experiment on this machine and writes docs/studies.md and docs/measurements/studies.md.

    python scripts/studies.py                 all of them; what was measured before is not measured again
    python scripts/studies.py batch_size      only these; the others are taken from their folders, if they were run
    python scripts/studies.py --no-run        only the documents

Experiments without results in that folder keep what the pages say of an earlier run.
An interrupted script goes on where it stopped: each experiment is an ordinary run in results/studies/NAME. Beside it
NAME.time.json keeps how long its command took, whether its folder was empty before, and what had to be built first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402

import analysis  # noqa: E402
from analysis.studies.findings import published_rows  # noqa: E402
from analysis.studies.printed import BESIDE, CATALOGUE, CatalogueRow, repeated, run_conditions, run_parts  # noqa: E402
from analysis.studies.tables import Study, all_studies  # noqa: E402
from analysis.table import Table, markdown_lines  # noqa: E402
from sweep.base.config import cache_directory  # noqa: E402
from sweep.base.wording import count, duration_text  # noqa: E402
from sweep.disk.ledger import ledger_entries  # noqa: E402

STUDIES = ROOT / "docs" / "studies.md"
MEASUREMENTS = ROOT / "docs" / "measurements" / "studies.md"
EXPERIMENTS = (
    "latency_bound",
    "throughput_bound",
    "kv_cache",
    "batch_size",
    "sequence_length",
    "request_count",
    "completion_batches",
    "serving",
    "serving_ladder",
    "decomposition",
)
SHOWN = {  # charts and their captions
    "output_throughput": "Output throughput",
    "memory": "Memory against the batch",
    "memory_timeline": "KV cache and memory over time",
    "requests_timeline": "Requests running and waiting over time",
}
MAIN_FIGURE = ("output_throughput",)
FIGURES = {  # for experiments in whose study memory is a result; the rest have only the main table
    "completion_batches": ("output_throughput", "memory"),
    "kv_cache": ("output_throughput", "memory_timeline"),
    "serving_ladder": ("output_throughput", "memory_timeline", "requests_timeline"),
}
PREPARED = {  # the cache's folders, with the word for one item
    "environments": "environment",
    "models": "model",
    "converted": "conversion",
    "agreement": "reference",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiments", nargs="*", choices=[[], *EXPERIMENTS], help="default: all")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "studies")
    options = parser.parse_args()
    for experiment in () if options.no_run else options.experiments or EXPERIMENTS:
        status = measure(experiment, options.results / experiment)
        print(f"{experiment}: exit status {status}", flush=True)
    folders = {experiment: options.results / experiment for experiment in EXPERIMENTS}
    runs = {experiment: folder for experiment, folder in folders.items() if (folder / "trials.parquet").is_file()}
    for page, lines in ((STUDIES, studies_page), (MEASUREMENTS, measurements_page)):
        page_text = "\n".join(lines(runs, sections(page)))
        page.write_text(f"{page_text}\n")


def measure(name: str, folder: Path) -> int:
    """Run an experiment's command, add its time to the time of earlier parts, and return its exit status."""
    timed = time_file(folder)
    if not (folder / "ledger.jsonl").is_file():
        timed.unlink(missing_ok=True)
        parts = []
    elif timed.is_file():
        parts = json.loads(timed.read_text())
    else:
        parts = [None]  # an earlier part of the run was not timed
    before, begun = prepared(), time.monotonic()
    line = [f"+experiment={name}", f"out={folder}", "tracking=none"]
    status = subprocess.run([sys.executable, "-m", "sweep", *line], cwd=ROOT).returncode
    seconds, new = time.monotonic() - begun, prepared() - before
    counts = {kind: sum(path.startswith(f"{kind}/") for path in new) for kind in PREPARED}
    parts.append({"seconds": seconds, "prepared": counts, "exit_status": status})
    timed.parent.mkdir(parents=True, exist_ok=True)
    timed.write_text(json.dumps(parts))
    return status


def time_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.time.json")


def prepared() -> set[str]:
    """Return what engines need and this machine's cache has, as KIND/NAME."""
    cache = cache_directory(None)
    paths = (path for kind in PREPARED for path in (cache / kind).glob("*"))
    return {f"{path.parent.name}/{path.name}" for path in paths if path.suffix not in (".lock", ".log")}


def sections(page: Path) -> dict[str, list[str]]:
    """Return a page's sections and subsections by heading; each text includes its heading."""
    by_heading: dict[str, list[str]] = {}
    section: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith(("## ", "### ")):
            section = by_heading.setdefault(line.lstrip("# "), [])
        section.append(line)
    return {heading: "\n".join(lines).rstrip().splitlines() for heading, lines in by_heading.items()}


def studies_page(runs: dict[str, Path], earlier: dict[str, list[str]]) -> Iterator[str]:
    """Write docs/studies.md: each study, its command, its findings, and its table next to this or an earlier run's."""
    yield from (
        "# The published studies",
        "",
        "This page lists the questions of the published student and demo studies, the command that repeats each",
        "study, and what each study's tables show about its findings. `python scripts/studies.py` writes this",
        "page.",
        "",
        "`sweep studies RUN` and the report judge a run. Each finding is reproduced, not reproduced, not decided,",
        "not testable here, or contradicted by the study's own table. A finding is reproduced only if it holds at",
        "the unfavourable ends of the intervals of a new launch. It is not reproduced only if the whole interval",
        "contradicts it. An interval that spans a limit decides nothing. If a study gives no limit, sweep sets",
        'one ("judged by").',
        "",
        "- A run must have everything that a study compares. A finding about what fits in memory needs the",
        "  study's hardware, and is judged by the outcomes.",
        "- Throughput below saturation is not ranked, since the load sets it. Nor are memory values of",
        "  different kinds compared.",
        "- A single launch does not show how much launches differ, so it cannot test a finding that compares",
        "  engines or flags. A finding about the loads of one launch uses the interval of these launches, and the",
        "  output notes that.",
        "- Without an interval, e.g. after a single replicate, a finding is not testable.",
        "- The studies' tables have no intervals and are judged by their numbers. A ratio of two points has the",
        "  same interval as in the report and the summary ([metrics](metrics.md#comparisons)).",
        "",
        "The tables and their sources are data (`analysis/studies/data`). The runs below use the small forms for",
        "a machine without a GPU. Only ratios can be compared, and most findings need the study's hardware.",
    )
    for study in all_studies():
        yield from study_section(study, runs, earlier)


def study_section(study: Study, runs: dict[str, Path], earlier: dict[str, list[str]]) -> Iterator[str]:
    yield from ("", f"## {study.title}", "", study.asked, "")
    conditions = " ".join(f"{key.capitalize()}: {value}." for key, value in study.conditions.items())
    yield f"Source: {study.source}. {conditions}"
    yield from ("", "```", *(f"sweep +experiment={name}" for name in study.experiments), "```", "")
    yield from Table(CATALOGUE, [CatalogueRow(study, each) for each in study.findings]).markdown()
    for name in study.experiments:
        if name not in runs and name in earlier:
            yield from ("", *earlier[name])
            continue
        if name not in runs:
            yield from ("", f"### {name}", "", "Not run on the machine that wrote this page.")
            if name in study.tables:
                yield ""
                yield from Table(BESIDE, list(published_rows(study.tables[name], pd.DataFrame()))).markdown()
            if name in study.without_figures:
                yield from ("", repeated(study, name))
            continue
        results = analysis.open_results(runs[name])
        conditions = run_conditions(results)
        yield from ("", f"### {name}", "", f"{conditions[0].upper()}{conditions[1:]}. {circumstances(runs[name])}", "")
        yield from markdown_lines(run_parts(results))
        for figure, caption in SHOWN.items():
            if figure in FIGURES.get(name, MAIN_FIGURE) and (copied := copy_figure(runs[name], name, figure)):
                yield from ("", f"![{caption} of {name}]({copied})")


def copy_figure(run: Path, name: str, figure: str) -> str:
    """Copy a run's chart to the documents and return its path relative to them; empty if the run has no such chart."""
    source = run / "figures" / f"{figure}.png"
    if not source.is_file():
        return ""
    target = ROOT / "docs" / "images" / "studies" / (f"{name}.png" if figure in MAIN_FIGURE else f"{name}-{figure}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return str(target.relative_to(ROOT / "docs"))


def measurements_page(runs: dict[str, Path], earlier: dict[str, list[str]]) -> Iterator[str]:
    """Write docs/measurements/studies.md: what the command printed at the end of each run."""
    yield from (
        "# The studies on a machine without a GPU",
        "",
        "What each study's command prints at its end on a machine without a GPU, with small models. It shows that",
        "the engines run, within an experiment on the same weights, through the same client, into one table. It",
        "says nothing about engines on GPUs. On a few cores shared by engine, client and Ray the figures of one run",
        "are rough, so each run says how busy the machine was. The time of the launches runs from their submission",
        "to their end, with what had to be prepared first: environments, weights, references. Virtual cores differ",
        "by the hour: on these the main job once took a third longer.",
        "Each block is what the commit named above it printed; later commits use other words and columns.",
        "`python scripts/studies.py` runs them all and writes this page.",
    )
    missing = [name for name in EXPERIMENTS if name not in runs and name not in earlier]
    if missing:  # above all sections, so that no later page copies it with a section
        yield from ("", f"Not run: {', '.join(missing)}.")
    for name in EXPERIMENTS:
        if name not in runs:
            yield from ("", *earlier[name]) if name in earlier else ()
            continue
        folder = runs[name]
        command = [sys.executable, "-m", "sweep", "report", str(folder)]
        wide = {**os.environ, "COLUMNS": "140"}
        printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=wide).stdout
        printed = printed.replace(f"{folder}/", "")
        lines = [line.rstrip() for line in printed.splitlines() if not line.startswith("report: ")]
        yield from ("", f"## {name}", "", f"`sweep +experiment={name}`. {circumstances(folder)}")
        yield from ("", "```", *lines, "```")


def circumstances(folder: Path) -> str:
    """Describe what was run, where, how long it took, and how busy the machine was, from the run's files."""
    rows = analysis.load(folder)
    ran = rows.dropna(subset=["engine_version"])
    engines = sorted({f"{name} {version}" for name, version in zip(ran.backend, ran.engine_version, strict=True)})
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in rows["outcome"].value_counts().items())
    commits = ", ".join(sorted(rows["commit"].dropna().unique()))
    parts = [f"Trials: {outcomes}", f"Engines: {', '.join(engines)}", f"Commit: {commits}"]
    return f"{'. '.join([*parts, *machine(rows), launch_time(folder), *command_time(folder)])}."


def machine(rows: pd.DataFrame) -> Iterator[str]:
    """Describe the machine and its load average during the trials."""
    nodes = [json.loads(hardware) for hardware in rows["hardware"].dropna()]
    if nodes:
        loads = [node["load_average"] for node in nodes]
        yield f"Machine: {nodes[0]['cores']} cores of {nodes[0]['cpu']}"
        yield f"Load average: {min(loads):.1f} to {max(loads):.1f} during the trials"


def launch_time(folder: Path) -> str:
    """Return the total time of all launches from the ledger; on one machine they run one after another."""
    begun: dict[tuple[str, str], float] = {}
    times = []
    for event in ledger_entries((folder / "ledger.jsonl").open("rb")):
        if event["event"] == "attempt":
            begun[event["deployment_id"], event["attempt"]] = event["at"]
        elif event["event"] == "attempt_end":
            times.append(event["at"] - begun.pop((event["deployment_id"], event["attempt"])))
    return f"{count(len(times), 'launch')} took {duration_text(sum(times))}"


def command_time(folder: Path) -> Iterator[str]:
    """Yield the command's time from start to end; nothing if a part of the run was not timed."""
    timed = time_file(folder)
    parts: list[Any] = json.loads(timed.read_text()) if timed.is_file() else [None]
    if None in parts:
        return
    minutes, seconds = divmod(round(sum(session["seconds"] for session in parts)), 60)
    took = f"The command took {f'{minutes} min ' if minutes else ''}{seconds} s from an empty results folder"
    counts = {preparation: sum(session["prepared"][preparation] for session in parts) for preparation in PREPARED}
    new = [count(number, PREPARED[preparation]) for preparation, number in counts.items() if number]
    circumstance = (
        f"with {', '.join(new)} to prepare first" if new else "with environments, weights and references in the cache"
    )
    yield f"{took}, {circumstance}{'' if len(parts) == 1 else f', in {len(parts)} parts'}"


if __name__ == "__main__":
    main()
