"""Measure agreement and quality for correct engines, coarser formats and planted faults, and print a table:

    python scripts/agreement_study.py [RUNS] [CASE...] > docs/measurements/agreement.md

Each case is launched once and compared RUNS times (default 1) with the reference, each time on different texts. With
more than one run it gets only the first prompts, as many as the main job sends to a correct engine. Such a series is
kept in results/agreement_study, with a line per run. The same command at the same commit continues it.
"""

import json
import random
import re
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.launch import host_facts, server
from scripts import faults
from sweep.base import code_version
from sweep.base.config import ROOT, Settings
from sweep.drive.preflight import surroundings
from sweep.node import agreement, answers
from sweep.node.deployment import prepare_node
from sweep.node.work import Work
from sweep.plan.compose import compose_run
from sweep.plan.plan import Deployment
from sweep.plan.planning import make_plan

SERIES = ROOT / "results" / "agreement_study"
AT_ONCE = 5  # runs whose references one process computes
GATE = {"agreement": 0.95, "quality": 0.98}
ABOUT = f"""\
The cases are SmolLM2-135M-Instruct (`model=smollm2`) on correct engines, on weights in a coarser format, and on
transformers with a planted fault in its copy of the weights or configuration. Each engine continues {agreement.PROMPTS}
story openings and {agreement.SAMPLED_REQUESTS} requests of `workload=qa` by {agreement.TOKENS} tokens. It is also asked
for the log-probabilities of at least {agreement.TEXT_TOKENS:,} tokens of shipped text. Where a time limit applied,
positions and tokens are fewer. The reference is transformers in float32. In brackets: 95% intervals. Alarm: the whole
interval of a figure lies below the gate of the main job (agreement {GATE["agreement"]}, quality {GATE["quality"]}).

A case with several runs was launched once. Each run had other openings, requests and passages, drawn from the shipped
ones, and the engine was asked the first {answers.IN_FLIGHT} prompts alone. The main job also stops there once the whole
interval is above the gate. Its figures are the means, its intervals and counts come from the first run.

Made by `scripts/agreement_study.py`, one core for the engine. Below the table: where and at which commit."""
TABLE = """\
| case | runs | alarms | agreement | positions | quality | tokens | time of one comparison |
|---|---|---|---|---|---|---|---|"""
WIDTH = 120


@dataclass(frozen=True)
class Case:
    """An engine and the change that is made to its weights."""

    name: str
    overrides: tuple[str, ...]
    fault: faults.Fault | None = None


# A limit that no engine reaches, so that each gets all prompts, even if other work shares its core.
EACH = ("model=smollm2", "workload=qa", "load=batch", "hardware=cpu", "cluster=inline", "comparison_limit=1500")
FLOAT32 = ("backend=transformers", "backend.dtype=float32")
BF16 = ("backend=transformers", "backend.dtype=bfloat16")
CASES = (
    Case("transformers, float32", FLOAT32),
    Case("transformers, bfloat16", BF16),
    Case("CTranslate2, float32", ("backend=ctranslate2",)),
    Case("OpenVINO, float32", ("backend=openvino",)),
    Case("transformers, continuous batching, bfloat16", ("backend=transformers_cb", "backend.dtype=bfloat16")),
    Case("llama.cpp, F16", ("backend=llamacpp",)),
    Case("vLLM, bfloat16", ("backend=vllm", "backend.dtype=bfloat16")),
    Case("coarser: 4 bits, round to nearest, groups of 64", BF16, faults.coarse_weights),
    Case("fault: rope base 10,000", BF16, faults.rope_base),
    Case("fault: two heads swapped", BF16, faults.swapped_heads),
    Case(f"fault: cache truncated to {faults.WINDOW} tokens", BF16, faults.truncated_cache),
    Case("fault: one broken layer", BF16, faults.broken_layer),
)


def compared(case: Case, runs: int, folder: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the columns of each run, from number `first` on, on one launch."""
    command = [*case.overrides, *EACH]
    plan = make_plan(composition := compose_run(command, lambda cluster: "cpu"), surroundings(composition.settings, []))
    deployment: Deployment = plan.deployments[0]
    settings: Settings = plan.settings  # no gate, so a single run gets all prompts
    work = Work(deployment, settings, str(folder), case.name, ())
    gated = replace(work, settings=settings.model_copy(update={"gate": GATE}))
    asking = gated if runs > 1 else work
    node = prepare_node(work, (), lambda event: None)
    model = faults.planted(node.launch.model, folder / "faulty", case.fault) if case.fault else node.launch.model
    launch = replace(node.launch, model=model)
    with server.running(deployment.backend, launch, marker=f"study/{folder.name}") as engine:
        for run, reference in enumerate(_references(work, launch, runs, first), first):
            print(f"{case.name}: comparison {run + 1} of {runs}", file=sys.stderr, flush=True)
            begin = time.monotonic()
            columns = agreement.compare(asking, engine, reference)
            below = agreement.below_gate(gated, engine, columns)
            yield columns | {"below_gate": below, "seconds": time.monotonic() - begin}


def _references(work: Work, launch: Any, runs: int, first: int) -> Iterator[agreement.Reference]:
    """Yield the references of the runs from number `first` on, each on its own openings and passages, a few at a time.

    If there are several runs, each has only the first prompts, since a correct engine gets no more.
    """
    if runs == 1:
        yield _known(agreement.reference(work, launch, lambda message: None))
        return
    for begin in range(first, runs, AT_ONCE):
        jobs = [_job_of(work, run) for run in range(begin, min(begin + AT_ONCE, runs))]
        prompts, texts = (list(chain(*parts)) for parts in zip(*jobs, strict=True))
        with patch.multiple(agreement, prompts=Mock(return_value=prompts), texts=Mock(return_value=texts)):
            reference = _known(agreement.reference(work, launch, lambda message: None))
        tokens, log_probabilities = iter(reference.tokens), iter(reference.log_probabilities)
        for prompts, passages in jobs:
            own_tokens, own_values = list(islice(tokens, len(prompts))), list(islice(log_probabilities, len(passages)))
            yield replace(reference, prompts=prompts, texts=passages, tokens=own_tokens, log_probabilities=own_values)


def _job_of(work: Work, run: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return a run's first prompts and passages: the shipped texts in the run's order, and the run's own requests."""
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    seeded = replace(work, settings=work.settings.model_copy(update={"seed": run}))
    shipped = agreement.shipped

    def other(file: str) -> list[str]:
        lines = shipped(file)
        return random.Random(f"{run}/{file}").sample(lines, len(lines)) if run else lines

    with patch.object(agreement, "shipped", other):
        return agreement.prompts(seeded, tokenizer)[: answers.IN_FLIGHT], agreement.texts(tokenizer)


def _known(reference: agreement.Reference | str) -> agreement.Reference:
    if isinstance(reference, str):
        raise SystemExit(reference)
    return reference


def line(case: Case, rows: list[dict[str, Any]]) -> str:
    alarms = sum(run["below_gate"] is not None for run in rows)
    cells = [case.name, str(len(rows)), str(alarms)]
    for measure, unit in (("agreement", "positions"), ("quality", "tokens")):
        figures = [run for run in rows if run[measure] is not None]
        if not figures:
            cells += ["–", "–"]
            continue
        example, mean = figures[0], sum(run[measure] for run in figures) / len(figures)
        without = f"; none in {len(rows) - len(figures)}" if len(figures) < len(rows) else ""
        cells += [f"{mean:.3f} ({example[f'{measure}_low']:.3f} to {example[f'{measure}_high']:.3f}){without}"]
        cells += [f"{example[f'{measure}_{unit}']:,}"]
    return f"| {' | '.join(cells)} | {sum(run['seconds'] for run in rows) / len(rows):.0f} s |"


def head() -> str:
    """Return the text above the table."""
    paragraphs = (textwrap.fill(paragraph, WIDTH, break_on_hyphens=False) for paragraph in ABOUT.split("\n\n"))
    return "\n\n".join(["# Agreement and quality", *paragraphs, TABLE])


def circumstances() -> str:
    """Return the commit, the machine and its load for this call of the script, which may measure only some cases."""
    machine = host_facts.hardware()
    commit_and_machine = (
        f"These rows: commit {code_version.commit()}; {machine['cores']} cores of {machine['cpu']}; load average "
    )
    return textwrap.fill(
        f"{commit_and_machine}{machine['load_average']:.1f} at the end.", WIDTH, break_on_hyphens=False
    )


def main(runs: int, names: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # even in a shell's background, where interrupts are ignored
        signal.signal(number, signal.default_int_handler)
    print(head(), flush=True)
    for case in CASES:
        if not names or any(case_name in case.name for case_name in names):
            print(line(case, finished(measured(case, runs))), flush=True)
    print(f"\n{circumstances()}")


def measured(case: Case, runs: int) -> Iterator[dict[str, Any]]:
    """Yield the runs of a case: first the runs stored by a series, then the rest as they are measured."""
    stem = re.sub("[^a-z0-9]+", "_", case.name.lower())
    series = SERIES / str(code_version.commit()) / f"{stem}.jsonl"
    records = series.read_text().splitlines()[:runs] if runs > 1 and series.exists() else []
    done = [json.loads(record) for record in records]
    yield from done
    if len(done) == runs:
        return
    with tempfile.TemporaryDirectory(prefix="agreement-") as folder:
        for columns in compared(case, runs, Path(folder), len(done)):
            if runs > 1:
                series.parent.mkdir(parents=True, exist_ok=True)
                with series.open("a") as file:
                    file.write(json.dumps(columns) + "\n")
            yield columns


def finished(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of a case; after an interrupt, the runs before it."""
    done: list[dict[str, Any]] = []
    try:
        done.extend(run for run in rows)
    except KeyboardInterrupt:
        if not done:
            raise
    return done


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2:])
