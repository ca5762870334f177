"""The table that the terminal shows."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis.answers.deciding import answers
from analysis.answers.sentences import lead
from analysis.load import Run, open_run
from analysis.report.html import lead_of_run
from analysis.report.notebook import OpenedRun
from analysis.report.page_data import page_data
from analysis.report.terminal import screen_of
from analysis.results import RunResults
from analysis.summary import summarise
from analysis.warnings import grouped
from sweep.__main__ import main
from tests.explain.test_explain import factorial
from tests.support.results import claim_record, claims_in, printed, question_in, report_of, rows_of, run_of, trial
from tests.support.synthetic_run import make_completion_batches, make_run

WIDTHS = range(60, 201)
FLAG = "backend.flags.max-num-seqs"


def main_job(folder: Path) -> Run:
    """Two engines at eight points, and one that this host cannot run at four more."""
    return open_run(make_run(folder, replicates=3, batches=(1, 8), workloads=("qa", "reasoning")).out)


def doubtful(folder: Path) -> Run:
    """Two engines with long names on four tasks, with more warnings than a screen has room for."""
    doubts = {"foreign_cpu_share": 0.8, "foreign_processes": "x", "cpu_throttled_share": 0.9}
    doubts |= {"num_requests": 24, "ttft_p99": 0.2}
    rows = [
        trial(name, size, n, size * (speed + n), launch=f"{name}{n}", workload=task, tpot_p50=1 / speed, **doubts)
        for task in ("qa", "reasoning")
        for size in (1, 4)
        for name, speed in (("simulated, mean=0.008", 80.0), ("simulated, mean=0.004", 100.0))
        for n in range(3)
    ]
    for number, row in enumerate(rows):
        more = {"memory_peak_bytes": 2.0**30 + number * 2.0**24, "ttft_p50": 0.1 + number / 1000}
        row |= {"trial_id": str(number), "cost_per_million_tokens": 100 / row["output_throughput"], **more}
    return run_of(folder, rows)


def ladder(folder: Path) -> Run:
    steps = [(f"step {n}", f"step {n - 1}" if n else None, 100.0 + 20 * n) for n in range(10)]
    rows = [
        trial("vllm", 8, n, speed + n, launch=f"{step}{n}", ladder=step, ladder_parent=parent, ttft_p50=0.1)
        for step, parent, speed in steps
        for n in range(3)
    ]
    return run_of(folder, rows)


def many(folder: Path) -> Run:
    """200 points of 20 engines, whose names are long."""
    named = [(f"a-rather-long-name-of-engine-{n}", n) for n in range(20)]
    one = {"tpot_p50": 0.01, "cost_per_million_tokens": 0.3, "memory_peak_bytes": 2.0**30}
    rows = [
        trial(name, batch, 0, 100.0 + n * batch, ttft_p50=0.1 * n + 0.1, **one)
        for name, n in named
        for batch in range(1, 11)
    ]
    return run_of(folder, rows)


def capacities(folder: Path) -> Run:
    """Searches for the capacities of twelve configurations, two launches of the best, each at rates of its own."""
    rows = [
        trial("vllm", 1, 0, 10.0 * n + rate, slo='{"ttft": 0.2}', **{FLAG: 2**n, "load.rate": rate + n / 100})
        for n in range(12)
        for rate in (4.0, 8.0)
    ]
    run = run_of(folder, [row | {"trial_id": str(number)} for number, row in enumerate(rows)])
    names, sure = [f"vllm m, max-num-seqs={2**n}" for n in range(11)], {"status": "confirmed"}
    found = [claim_record(10 + n, 11 + n, name, fresh_launch={"lower": 9.5}, **sure) for n, name in enumerate(names)]
    failed = claim_record(0, 0, "vllm m, max-num-seqs=2048", limit="", ended="oom_load: no memory left")
    again = claim_record(21, 23, names[-1], replicate=1)
    claims_in(folder, *found, again, failed | {"cost_per_million_tokens": [None] * 2})
    return run


def screen(results: RunResults, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(screen_of(results))
    return console.file.getvalue().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("make", [main_job, doubtful, ladder, many, capacities])
def test_the_end_of_a_run_fits_every_width_and_24_lines_of_80(
    make: Callable[[Path], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = RunResults(make(Path("results/night")))
    shown, answered = screen_of(results), answers([results])
    for width in WIDTHS:
        console = Console(width=width, file=io.StringIO())
        console.print(shown)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) <= (23 if width >= 80 and make is not many else 30), "\n".join(lines)
        printed = " ".join(" ".join(lines).split())
        assert lead(answered) in printed
        assert "--table, or --all" in printed
        assert str(results.layout.lines[0]).split(", ")[0] in printed, width


@pytest.mark.slow
def test_the_screen_answers_each_task_and_says_its_doubts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = screen(RunResults(main_job(Path("throughput_bound"))), 80)
    text = "\n".join(lines)
    assert lines[0].rstrip() == "throughput_bound  tiny-llama  NVIDIA L4  24 of 36 trials ok  60 s on 2026-11-20"
    assert re.search(r"^qa, batch size 1 +vllm +tie with transformers +18\.3 \([\d.–]+\)$", text, re.MULTILINE)
    assert re.search(r"^qa, batch size 8 +vllm +1\.63× \(1\.62–1\.64\) +106 \([\d.–]+\)$", text, re.MULTILINE)
    shown = re.findall(r"^(\w+) +(\w+) +(\d) +\d", text, re.MULTILINE)
    assert shown[:3] == [("vllm", *task) for task in (("qa", "1"), ("qa", "8"), ("reasoning", "1"))], "winners first"
    warnings = [line for line in lines if line.startswith("! ")]
    assert warnings == ["! 12 trials without a result: tgi: unavailable"], "no YAML, hash, or list of processes"
    assert "(1 more warning" in text, "four tasks leave no line for it"
    combined = "\n".join(screen(factorial(Path("factorial")), 80))
    assert re.search(r"tokens/s\nvllm, batching=256, .*graphs=true", combined), "the best rows, where not all fit"
    ladder_text = "\n".join(screen(RunResults(ladder(Path("ladder"))), 80))
    assert "in all rows: task qa, TTFT p50 100 ms" in ladder_text
    assert ladder_text.count("vllm, step ") == 12, "ten steps, and two in the sentence"
    assert "more: --table" not in ladder_text
    assert "\ngain: sweep explain ladder" in ladder_text
    assert "\ngain: sweep explain factorial" in combined
    assert "sweep explain" not in text, "no setting varies"
    assert re.search(r"19\d more: --table", "\n".join(screen(RunResults(many(Path("many"))), 120)))


@pytest.mark.parametrize("make", [main_job, doubtful])
def test_lines_below_the_screen_take_the_place_of_rows(make: Callable[[Path], Run], tmp_path: Path) -> None:
    """W&B's line, or the lines of a search, once moved the heading out of the last 24 lines."""
    shown = screen_of(RunResults(make(tmp_path / "run")))
    below = ["W&B: wandb sync run/wandb/offline-run-*"]
    console = Console(width=80, file=io.StringIO())
    console.print(replace(shown, place="results/night").above(below, 80))
    lines = console.file.getvalue().splitlines()
    assert len(lines) + len(["report: results/night/report.html", *below]) <= 24, "\n".join(lines)
    assert lines[0].strip() == shown.heading


def test_the_screen_of_a_question_about_a_capacity_has_its_answer_and_no_claim_of_each_launch(tmp_path: Path) -> None:
    """The run ended with the answer alone; the claims of its launches took the place of the rows afterwards."""
    results = RunResults(run_of(tmp_path, tied(3, 0.01)))
    claims_in(tmp_path, *(claim_record(10, 12, f"vllm {number}") for number in range(9)))
    question_in(tmp_path)
    assert screen_of(results).claims == ["best: vllm qa"]
    assert len(results.searched) == 10, "the tables and the JSON have all"


def test_several_capacities_are_a_table_with_one_row_for_each_configuration(tmp_path: Path) -> None:
    """With four lines for each claim, the end of a grid's search was longer than a terminal from the fourth on."""
    results = RunResults(capacities(tmp_path))
    text = "\n".join(screen(results, 80))
    assert re.search(r"max-num-seqs=1024 +20.0–23.0 +ttft.p90 <= 0.2 s +1.00–2.00 +≥ 9.50", text)
    assert "95%" not in text, "a claim's interval is another"
    assert "\n! 2 of 13 searches ended early: their capacities are not confirmed\n" in text
    assert re.search(r"qa poisson +20.0–23.0 (.|\n)* qa poisson +unknown +oom_load", repr(OpenedRun(results)))
    assert "20.0–23.0" not in repr(screen_of(results, answers([results], {"ttft.p99": 0.2})).points), "another SLO's"


def test_a_tie_of_long_names_that_end_alike_takes_a_line_for_each_task(tmp_path: Path) -> None:
    axes = [{"backend.itl.mean": itl, "backend.ttft.mean": ttft} for itl in (0.01, 0.02) for ttft in (0.1, 0.2)]
    rows = [
        trial("simulated", size, n, size * (100.0 + n), launch=f"{place}{n}", trial_id=f"{place}{size}{n}", **axis)
        | {"accelerator": "cpu", "hardware": '{"cores": 2, "cpu": "EPYC"}'}
        for place, axis in enumerate(axes)
        for size in (1, 4)
        for n in range(3)
    ]
    results = RunResults(run_of(tmp_path, rows))
    text = "\n".join(screen(results, 80))
    tie = r"^qa, batch size 4 +simulated, itl mean=0.0\d, ttft mean=0.\d +tie with 3 others$"
    assert re.search(tie, text, re.MULTILINE), text
    assert "  2 CPU cores  " in text
    assert " · 2 CPU cores (EPYC)" in lead_of_run(results)


def tied(replicates: int, spread: float) -> list[dict[str, Any]]:
    """Two engines at two loads: a lead of 25%, and a tie of engines 4% apart; `spread` is between launches."""
    rates = (("a", 1, 1, 100.0), ("b", 2, 1, 125.0), ("a", 1, 8, 100.0), ("b", 2, 8, 104.0))
    return [
        trial(name, batch, n, speed * (1 + spread * (phase % 3 - 1)), launch=f"{name}{n}", wall_seconds=60.0)
        for name, shift, batch, speed in rates
        for n in range(replicates)
        for phase in [n * shift + (batch > 1)]
    ]


def test_a_tie_among_several_tasks_says_what_would_decide_it(tmp_path: Path) -> None:
    """Only `--all` said it once. Missing replicates are no further ones."""

    def advice(name: str, rows: list[dict[str, Any]], **experiment: Any) -> str:
        return screen_of(RunResults(run_of(tmp_path / name, rows, **experiment))).advice

    decisive = "replicates=6 (about 6 min more) would detect 4.0% at qa, batch size 8"
    assert advice("near", tied(3, 0.01)) == decisive
    assert f"\ntie: {decisive}\n" in "\n".join(screen(RunResults(open_run(tmp_path / "near")), 80))
    assert advice("far", tied(3, 0.02)) == "", "too many launches"
    assert advice("missing", tied(3, 0.01), replicates=6) == "", "they are planned"
    assert advice("single", tied(1, 0)) == "replicates=3 with relaunch=per_replicate shows how much launches differ"


def test_marks_are_explained_and_a_doubt_about_few_points_names_them(tmp_path: Path) -> None:
    rows = tied(3, 0.01)
    doubt = {"foreign_cpu_share": 0.8, "foreign_processes": "x"}
    rows = [row | (doubt if row["trial_id"].startswith("b-8") else {}) for row in rows]
    text = "\n".join(screen(RunResults(run_of(tmp_path, rows)), 80))
    assert "(a–b): 95% interval" in text
    assert re.search(r"^! .* \(b, qa, batch size 8\)$", text, re.MULTILINE)


def test_a_full_screen_keeps_the_memory_and_each_tasks_winner(tmp_path: Path) -> None:
    """It once had 25 lines, and the intervals took the place of the memory."""
    results = RunResults(doubtful(tmp_path / "run"))
    lines = screen(results, 80)
    text = "\n".join(lines)
    assert "GiB" in text
    shown = re.findall(r"^(simulated, mean=\S+) +(\w+) +(\d) +\d", text, re.MULTILINE)
    assert shown[:3] == [("simulated, mean=0.004", *task) for task in (("qa", "1"), ("qa", "4"), ("reasoning", "1"))]
    left_out = len(grouped(results.warnings)) - sum(line.startswith("! ") for line in lines)
    assert f"--all ({left_out} more warnings)" in " ".join(text.split())


@pytest.mark.slow
def test_all_points_and_all_figures_are_printed_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for option in ("--table", "--all"):
        assert main(["summary", str(tmp_path), option]) == 0
        printed = capsys.readouterr().out
        assert printed.count("name-of-engine-7 ") >= 10
        assert max(map(len, printed.splitlines())) <= 80 or option == "--all"
    assert main(["compare", str(tmp_path), str(tmp_path), "--all"]) == 2
    assert capsys.readouterr().err == "error: --all: expected --all-rows\n"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lockstep_batches_show_what_a_batch_took(tmp_path: Path, width: int) -> None:
    make_completion_batches(tmp_path)
    text = printed(open_run(tmp_path), width)
    for said in (
        *("latency", "Output", "Memory", "Agreement", "5,792", "24.2"),
        "float32: transformers\n",
        "bfloat16, bitsandbytes int8: transformers_8bit",
        "float16, gptq (made by GPTQ): vllm_gptq",
        "F16: llamacpp",
    ):
        assert said in text, said
    for said in (
        "transformers, stories: batch 16 (ran out at 64)",
        "llamacpp, stories: batch 4 (ran out at 16; not tried at 64)",
    ):
        assert said in " ".join(text.split()), said  # the second is longer than 60 characters


def test_a_thousand_ways_to_fail_are_counted(tmp_path: Path) -> None:
    rows = [{**trial("a", 1, index, None), "reason": f"failed at {chr(0x4E00 + index)}"} for index in range(1000)]
    rows += [{**trial("a", 2, index, None), "reason": "failed alike"} for index in range(5)]
    run_of(tmp_path, rows)
    text = printed(open_run(tmp_path), 120)
    assert "1,005 trials have no result" in text
    assert "hung x5 a: failed alike" in text
    assert "warning" not in text  # about numbers, of which there are none
    assert "and 961 more trials with 961 other failures" in text


@pytest.mark.slow
def test_a_ratio_that_may_be_none_is_marked(tmp_path: Path) -> None:
    speeds = {"plain": (10.0, 11.0), "alike": (10.2, 11.2), "fast": (30.0, 30.1)}
    rows = [trial(name, 8, index, speed) for name, both in speeds.items() for index, speed in enumerate(both)]
    run_of(tmp_path, rows, baseline={"backend": "plain"})
    text = printed(open_run(tmp_path), 120)
    assert " ≈1.02×" in text
    assert " 2.87×" in text
    assert "≈ may be a tie: the interval includes 1 or is missing" in text
    run_of(tmp_path, [row for row in rows if row["backend"] != "alike"], baseline={"backend": "plain"})
    assert "≈" not in printed(open_run(tmp_path), 120)
    run_of(tmp_path, [trial("plain", 8, 0, 10.0), trial("fast", 8, 0, 20.0)], baseline={"backend": "plain"})
    assert " ≈2.00×" in printed(open_run(tmp_path), 120), "one launch each"


def test_a_failure_leaves_room_for_its_log_and_counts_its_kind(tmp_path: Path) -> None:
    """The most frequent kind is named with its share; the log takes no warning's place."""
    lost = [("oom_load", "no memory left", "w", 4), ("hung", "not done in time", "v", 1)]
    rows = [
        {**trial(name, batch, 0, None), "outcome": outcome, "reason": reason}
        for outcome, reason, name, times in lost
        for batch in range(1, times + 1)
    ]
    results = RunResults(run_of(tmp_path, [trial("a", 1, 0, 10.0), *rows]))
    first, *_ = map(str, screen_of(results).doubtful(80))
    assert "5 trials without a result: w: oom_load (4 of them): no memory left" in first


def test_launches_add_their_spread_to_the_interval_of_the_comparison(tmp_path: Path) -> None:
    """The sample is the same at each launch, so its part is in no spread between them: the halves add as squares."""
    from_launches = [
        trial("a", 1, replicate, 100.0, launch=f"{replicate}", agreement=agreement)
        for replicate, agreement in enumerate((0.88, 0.9, 0.92))
    ]
    spread = summarise(run_of(tmp_path / "spread", from_launches)).loc[0]
    low, high = spread["agreement_new_launch_low"], spread["agreement_new_launch_high"]
    ends = {"agreement_low": low, "agreement_high": high}  # as far apart as the launches are
    both = summarise(run_of(tmp_path / "both", [row | ends for row in from_launches])).loc[0]
    assert 0.9 - both["agreement_new_launch_low"] == pytest.approx(2**0.5 * (0.9 - low))
    assert both["agreement_new_launch_high"] - 0.9 == pytest.approx(2**0.5 * (high - 0.9))
    assert list(both[["agreement_ci_low", "agreement_ci_high"]]) == pytest.approx([low, high])
    once = summarise(run_of(tmp_path / "once", [row | ends | {"launch": "0"} for row in from_launches])).loc[0]
    assert math.isnan(once["agreement_new_launch_low"])


@pytest.mark.slow
def test_quality_stands_beside_agreement_with_the_interval_of_the_comparison(tmp_path: Path) -> None:
    """Both launches compared the same sample: their equal figures are no proof, the comparison's interval stays."""
    answers = {"agreement": 0.9, "agreement_low": 0.85, "agreement_high": 0.94}
    answers |= {"quality": 0.985, "quality_low": 0.976, "quality_high": 0.9932}
    rows = [trial("a", 1, replicate, 100.0, launch=f"{replicate}", **answers) for replicate in range(2)]
    rows += [trial("b", 1, replicate, 90.0, launch=f"b{replicate}") for replicate in range(2)]
    run = run_of(tmp_path, rows)
    text = printed(run, 200)
    assert "90.0 (85.0–94.0)" in text
    assert "for agreement and quality, of the comparison with the reference" in text
    point = summarise(run).set_index("backend").loc["a"]
    assert list(point[["agreement_ci_low", "agreement_ci_high"]]) == pytest.approx([0.85, 0.94])
    assert list(point[["quality_new_launch_low", "quality_new_launch_high"]]) == pytest.approx([0.976, 0.9932])
    shown = {each["key"]: each for each in page_data([RunResults(run)])["quantities"]}
    assert [shown["quality"][end][0] for end in ("value", "low", "high")] == [98.5, 97.6, 99.32]
    assert shown["agreement"]["low"][0] == 85
    assert [row for row in rows_of(report_of(run)) if "90.0 85.0–94.0" in row and "98.5 97.6–99.3" in row]
    assert "95% interval of the comparison" not in printed(run_of(tmp_path / "none", rows[2:]), 200)
