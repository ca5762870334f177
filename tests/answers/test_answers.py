"""The answer to what a run was made for: who is best within the SLO, how sure, and what would decide a tie."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from analysis.answers.deciding import Spread, answers, remedy
from analysis.answers.slo_bounds import bounds
from analysis.answers.task_answer import RankedConfiguration
from analysis.figures.pareto import on_front
from analysis.load import open_run
from analysis.report.page_data import page_data
from analysis.results import RunResults
from analysis.statistics.comparison import Trials, contest, fit
from analysis.statistics.intervals import Estimate
from benchmarks import winners
from sweep.__main__ import main
from tests.support.results import printed, report_of, rows_of, run_of, trial, warnings_of

CONFIG = {"model": {"name": "m"}, "workload": {"name": "qa"}, "load": {"name": "batch"}}
LATENCIES = ("ttft_p50", "ttft_p90", "ttft_p95", "ttft_p99")


def engines(folder: Path, speeds: dict[str, float], launched: int = 4, spread: float = 0.01, **other: Any) -> str:
    """A run of engines at two batch sizes, a launch for each replicate; what a launch adds is known."""
    factors = np.exp(spread * np.array([1, -1, 1, -1, 1, -1]))
    common = {"config": json.dumps(CONFIG), "startup_seconds": 60.0, "wall_seconds": 60.0}
    rows = [
        trial(backend, batch, replicate, speed * batch * float(factors[order]), launch=f"{backend}-{replicate}")
        | {**common, **dict.fromkeys(LATENCIES, 0.05 * batch * 100 / speed), **other}
        for index, (backend, speed) in enumerate(speeds.items())
        for batch in (1, 8)
        for replicate in range(launched)
        for order in [replicate if index % 2 else (replicate * 3 + 1) // 2 % 6]
    ]
    run_of(folder, rows)
    return str(folder)


def summary(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; of its text the sentences above the tables."""
    of_one = "--format" not in arguments and sum(Path(argument).exists() for argument in arguments) == 1
    assert main(["summary", *arguments, *(["--all"] if of_one else [])]) == 0
    printed = capsys.readouterr().out
    return printed if "--format" in arguments else printed.partition("\n\n")[0].rstrip("\n") + "\n"


def test_equal_engines_are_not_told_apart_and_the_launches_that_would_are_named(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 100, "tgi": 101}, spread=0.015)
    first, *rest = summary(capsys, run).splitlines()
    assert first == "tgi and vllm tie at 2 tasks in throughput"
    assert all("ties with vllm" in line for line in rest)
    assert all("more launches of each would detect a difference of 3.0%, about" in line for line in rest)
    answers = json.loads(summary(capsys, run, "--format", "json"))["answers"]
    best = answers[0]["configurations"][0]
    assert best["more_minutes"] == best["more_launches"] * 4  # 60 s to start and 60 s to run, of each of the two


def test_of_three_two_that_are_alike_do_not_make_all_alike(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 100, "tgi": 100.2, "transformers": 20}, spread=0.05)
    first = summary(capsys, run).splitlines()[0]
    assert first == "None of 3 configurations leads at any of 2 tasks in throughput"


def test_a_faster_engine_is_named_with_its_lead(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100})
    first, *rest = summary(capsys, run).splitlines()
    assert first == "vllm is the fastest at 2 of 2 tasks"
    assert rest[0].startswith("qa, batch size 1: vllm (110 tokens/s")
    assert "is the fastest; 1.10×" in rest[0]
    assert "ahead of tgi (100 tokens/s" in rest[0]


def test_with_a_price_the_cheapest_is_named(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 110}, cost_per_million_tokens=2.0)
    other = engines(tmp_path / "b", {"tgi": 120}, cost_per_million_tokens=3.0)
    first, *rest = summary(capsys, run, other).splitlines()
    assert first == "vllm is the cheapest at 2 of 2 tasks"
    assert all("is the cheapest; 1.50×" in line for line in rest)


def test_an_slo_that_only_one_meets_changes_the_answer(tmp_path, capsys):
    """At batch 8 both are at their fastest; the latencies are 364 and 400 ms there, and 45 and 50 ms at batch 1."""
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100})
    only = summary(capsys, run, "--slo", "ttft=380ms")
    assert "vllm is the fastest at 1 of 1 task" not in only
    assert only.startswith("qa: vllm at batch size 8 (880 tokens/s")
    assert "headroom 4%: TTFT p95 364 ms" in only
    assert "ahead of tgi at batch size 1 (100 tokens/s" in only
    alone = summary(capsys, run, "--slo", "ttft=48ms")
    assert "alone meets TTFT p95 ≤ 48.0 ms of 2" in alone
    none = summary(capsys, run, "--slo", "ttft=0.03s")
    assert "none of 2 configurations meets TTFT p95 ≤ 30.0 ms; the closest is vllm at batch size 1" in none
    assert "52% over" in none


def test_an_slo_is_never_judged_at_a_percentile_below_the_90th(tmp_path, capsys):
    """24 requests a point tell no p90: their p50 is within the bound, and that is no answer."""
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100}, num_requests=6)
    judged = summary(capsys, run, "--slo", "ttft=380ms")
    assert judged.startswith("qa: too few requests to judge TTFT p90 ≤ 380 ms")
    assert "meets" not in judged
    assert summary(capsys, run, "--slo", "ttft=380ms", "--format", "csv").count("too few requests") >= 2
    enough = engines(tmp_path / "b", {"vllm": 110, "tgi": 100}, num_requests=13)
    assert "TTFT p90 364 ms" in summary(capsys, enough, "--slo", "ttft=380ms")


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_requests_that_are_counted_by_the_batch_make_no_task_of_their_own(tmp_path, capsys, runs):
    """As in the main job without a GPU: fewer requests one by one than in batches."""
    settings = {count: {**CONFIG, "workload": {"name": "qa", "num_requests": count}} for count in (20, 40)}
    for name in "ab"[:runs]:
        rows = [
            trial(
                *(backend, batch, replicate, speed * batch * (1 + 0.01 * replicate)),
                **{"workload.num_requests": count, "num_requests": count, "launch": f"{backend}-{replicate}"},
                **{"config": json.dumps(settings[count]), **dict.fromkeys(LATENCIES, 0.05 * batch * 100 / speed)},
            )
            for backend, speed in (("vllm", 110), ("tgi", 100))
            for batch, count in ((1, 20), (8, 40))
            for replicate in range(3)
        ]
        run_of(tmp_path / name, rows)
    answer = summary(capsys, *(str(tmp_path / name) for name in "ab"[:runs]), "--slo", "ttft=380ms")
    first = "vllm" if runs == 1 else "vllm (a)"
    assert answer.startswith(f"qa: {first} at batch size 8"), answer


@pytest.mark.parametrize(("others", "named"), [(0.5, True), (1.0, False)])
def test_the_best_of_several_equal_loads_must_lead_by_more(tmp_path, capsys, others, named):
    """A lead of 3.3 standard errors is enough for one load (t of 4 degrees of freedom: 2.8), not for five."""
    deviations = 0.01 * np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)
    lead = 3.3 * 0.01 / np.sqrt(5)
    common = {"config": json.dumps(CONFIG), **dict.fromkeys(LATENCIES, 0.05)}
    rows = [
        trial("vllm", batch, index, speed * float(np.exp(lead + each)), launch=f"vllm-{index}", **common)
        for batch, speed in ((1, 100), *((batch, 100 * others) for batch in (2, 4, 8, 16)))
        for index, each in enumerate(deviations)
    ]
    rows += [trial("tgi", 1, index, 100, launch=f"tgi-{index}", **common) for index in range(5)]
    run_of(tmp_path / "a", rows)
    answer = summary(capsys, str(tmp_path / "a"), "--slo", "ttft=200ms")
    assert ("ties with" in answer) is not named, answer


def test_an_slo_judges_the_figure_that_the_tables_show(tmp_path, capsys):
    """Start and drain lift vllm's p99 over the bound; its steady state, which tables show instead, is within it."""
    steady = {"steady_begin": 1.0, "steady_ttft_p99": 0.2, "steady_num_requests": 300, "steady_num_failed": 0}
    engines = ("vllm", 110.0, {**dict.fromkeys(LATENCIES, 0.3), **steady}), ("tgi", 100.0, {"ttft_p99": 0.22})
    rows = [
        trial(backend, 8, replicate, speed, launch=f"{backend}-{replicate}", **{"num_requests": 400, **latencies})
        for backend, speed, latencies in engines
        for replicate in range(4)
    ]
    run = run_of(tmp_path / "a", rows, slo={"ttft": 0.25})
    table = [cells for cells in rows_of(report_of(run)) if cells[:1] == ["vllm"]]
    assert any("200°" in cell for cells in table for cell in cells), table
    said = summary(capsys, str(tmp_path / "a"), "--slo", "ttft.p99=250ms")
    assert "vllm" in said.split("(")[0], said
    assert "headroom 20%: TTFT p99 steady 200 ms" in said
    assert "none of 2 configurations meets" in summary(capsys, str(tmp_path / "a"), "--slo", "ttft.p99=190ms")
    page = page_data([RunResults(run)])
    ttft = next(each for each in page["quantities"] if each["key"] == "ttft_p99")
    assert (ttft["value"], ttft["steady"]) == ([200, 220], [0])
    few = [{**row, **({"steady_num_requests": 20} if "steady_ttft_p99" in row else {})} for row in rows]
    run_of(tmp_path / "b", few)
    assert "too few requests" in summary(capsys, str(tmp_path / "b"), "--slo", "ttft.p99=250ms", "--format", "csv")


@pytest.mark.slow
def test_the_slo_of_the_run_is_seen_in_the_terminal_and_on_the_reports_first_screen(tmp_path):
    engines(tmp_path / "a", {"vllm": 110, "tgi": 100}, slo=json.dumps({"ttft": 0.38}))
    run = open_run(tmp_path / "a")
    text = " ".join(printed(run, 120).split())
    assert text.startswith("qa: vllm at batch size 8 (880 tokens/s")
    document = report_of(run)
    assert document.index('id="answer"') < document.index('id="explore"')
    (row,) = [cells for cells in rows_of(document) if cells[:2] == ["qa", "vllm at batch size 8"]]
    assert row[3].startswith("4%")
    assert row[4].startswith("tgi at batch size 1")
    assert row[6] == "leads"


def test_the_front_has_what_no_other_point_dominates():
    x, y = np.array([1.0, 2.0, 3.0, 2.0, 3.0]), np.array([9.0, 8.0, 5.0, 7.0, 5.0])
    assert list(on_front(x, y)) == [True, True, True, False, True]


def test_an_answer_says_when_it_was_measured_and_replicates_that_aged_are_named(tmp_path, capsys):
    """Two old replicates of an endpoint, and two of the next day, when it had become 1.5 times slower."""
    rows = [
        trial("openai", 1, day + 2 * number, speed, started_at=f"2026-11-2{5 + day}T13:0{number}:00+00:00")
        for day, speeds in enumerate(((100, 101), (67, 66)))
        for number, speed in enumerate(speeds)
    ]
    run = run_of(tmp_path / "a", rows)
    assert "Measured 2026-11-25 13:00 to 2026-11-26 13:01 UTC" in summary(capsys, str(tmp_path / "a"))
    assert "the later have -34% in throughput" in warnings_of(run)["replicates-apart"]
    alike = [each | {"output_throughput": 100.0 + each["replicate"] % 3} for each in rows]
    assert "replicates-apart" not in warnings_of(run_of(tmp_path / "b", alike))


def test_one_launch_tells_nothing_and_says_so(tmp_path, capsys):
    out = summary(capsys, engines(tmp_path / "a", {"vllm": 200, "tgi": 100}, launched=1))
    assert out.startswith("vllm and tgi had too few launches to tell which leads at any of 2 tasks")
    assert "does not show how much launches differ; replicates=3 with relaunch=per_replicate would show it" in out


def test_runs_without_a_result_have_no_answer(tmp_path, capsys):
    for name in "ab":
        run_of(tmp_path / name, [trial("vllm", 1, 0, None)])
    assert summary(capsys, str(tmp_path / "a"), str(tmp_path / "b")) == "no configuration has a result\n"


def test_other_questions_of_another_run_are_no_rivals(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 110})
    longer = {**CONFIG, "workload": {"name": "qa", "output_tokens": 512}}
    other = engines(tmp_path / "b", {"tgi": 50}, config=json.dumps(longer))
    assert summary(capsys, run, other).startswith("At each of 4 tasks a single configuration can be compared")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "workload", "load"])
def test_a_run_of_other_files_is_no_rival_and_one_of_unknown_files_is(tmp_path, capsys, part):
    """An endpoint's model and a row from before digests have none; with two files to choose from it is of neither."""
    known = engines(tmp_path / "a", {"vllm": 110}, digests=json.dumps({part: "e", "lock": "1"}))
    changed = engines(tmp_path / "b", {"tgi": 100}, digests=json.dumps({part: "f"}))
    equal = engines(tmp_path / "c", {"tgi": 100}, digests=json.dumps({part: "e", "lock": "2"}))
    unknown = engines(tmp_path / "d", {"llamacpp": 90})
    assert summary(capsys, known, changed).startswith("At each of 4 tasks a single configuration can be compared")
    assert summary(capsys, known, equal).startswith("vllm is the fastest at 2 of 2 tasks")
    assert summary(capsys, known, unknown).startswith("vllm is the fastest at 2 of 2 tasks")
    assert summary(capsys, known, unknown, changed).startswith("At each of 6 tasks a single configuration")


def test_engines_on_other_numbers_of_gpus_in_another_run_are_no_rivals(tmp_path, capsys):
    texts = [json.dumps({**CONFIG, "backend": {"gpus": gpus}}) for gpus in (1, 8)]
    run = engines(tmp_path / "a", {"vllm": 110}, config=texts[0])
    other, equal = (engines(tmp_path / f"b{n}", {"tgi": 500}, config=texts[n]) for n in (1, 0))
    assert summary(capsys, run, other).startswith("At each of 4 tasks a single configuration can be compared")
    assert summary(capsys, run, equal).startswith("tgi is the fastest at 2 of 2 tasks")


def test_a_bound_is_on_a_percentile_that_the_run_has(tmp_path, capsys):
    """600 requests would tell p99, which was not asked for: it is not taken for one that fell on failures."""
    missing = {"ttft_p95": None, "ttft_p99": None, "ttft_mean": 0.3, "num_requests": 600}
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100}, percentiles="50, 90", **missing)
    assert "headroom 4%: TTFT p90 364 ms" in summary(capsys, run, "--slo", "ttft=380ms")


@pytest.mark.parametrize(
    ("percentiles", "requests", "judged"), [("50, 92, 98", 20, "p92"), ("50, 99.9", 2000, "p99_9"), (None, 20, "p90")]
)
def test_the_summary_and_the_page_judge_an_slo_by_the_same_percentile(tmp_path, percentiles, requests, judged):
    """The highest that all trials have and 4 launches of so many requests can tell, whatever the default ones are."""
    latencies = {f"ttft_{name}": 0.1 for name in ("p50", "p92", "p90", "p95", "p98", "p99", "p99_9")}
    stated = {"percentiles": percentiles} if percentiles else {}
    engines(tmp_path / "a", {"vllm": 110}, slo=json.dumps({"ttft": 0.2}), num_requests=requests, **stated, **latencies)
    results = RunResults(open_run(tmp_path / "a"))
    assert {answer.best.tightest.quantity.column for answer in answers([results])} == {f"ttft_{judged}"}
    page = page_data([results])
    assert page["percentiles"]["usual"] == judged
    names = (percentiles or "50, 90, 95, 99").replace(".", "_").split(", ")
    assert page["percentiles"]["names"] == [f"p{name}" for name in names]


def test_runs_of_other_percentiles_are_judged_by_one_that_all_have(tmp_path, capsys):
    runs = [
        engines(tmp_path / name, {"vllm": 110}, percentiles=percentiles, ttft_p75=0.1, ttft_p80=0.1, num_requests=600)
        for name, percentiles in (("a", "50, 75"), ("b", "50, 80"))
    ]
    assert "TTFT p50" in summary(capsys, *runs, "--slo", "ttft=9s")


def test_however_many_launches_are_needed_are_stated():
    trials = Trials(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.full(4, None))
    model = fit(np.exp([0.0, 2.0, -2.0, 0.0]), trials, 2)
    equal = contest(model._replace(effects=np.zeros(2), variance=16.0, freedom=10_000), "higher")
    advised = remedy(equal, (0, 1), Spread(0.0, 0), minutes=1.0)
    exact = 2 * 16 * (1.96 + 1.28) ** 2 / np.log1p(0.03) ** 2
    assert exact <= advised.replicates <= 1.03 * exact


@pytest.mark.parametrize(("engines_compared", "launched"), [(2, 3), (5, 5)])
def test_advice_after_a_tie_holds_nine_times_in_ten(engines_compared, launched):
    """The launches that a tie asks for decide, if the engines differ as measured: within two errors of 120 ties."""
    chance, decided = np.random.default_rng(8), []
    while len(decided) < 120:
        logs = chance.normal(0, 0.02, (engines_compared, launched)) + np.linspace(0.03, 0, engines_compared)[:, None]
        pilot = contest(fit(np.exp(logs.ravel()), winners.trials_of(*logs.shape), len(logs)), "higher")
        if pilot.won:
            continue
        best, rival = (int(point) for point in np.argsort(-pilot.model.effects)[:2])
        advised = remedy(pilot, (best, rival), Spread(0.0, 0), 1.0)
        effects = pilot.model.effects - pilot.model.effects[best]
        effects = np.where(np.arange(len(logs)) == best, 0, np.minimum(effects, -math.log1p(advised.difference)))
        logs = chance.normal(0, 0.02, (len(logs), advised.replicates)) + effects[:, None]
        again = contest(fit(np.exp(logs.ravel()), winners.trials_of(*logs.shape), len(logs)), "higher")
        decided.append(again.won and again.best == best)
    assert np.mean(decided) > 0.9 - 2 * math.sqrt(0.9 * 0.1 / 120)


def test_engines_whose_whole_interval_is_within_the_margin_are_equal(tmp_path, capsys):
    _, *rest = summary(capsys, engines(tmp_path / "a", {"vllm": 100, "tgi": 100.1}, spread=0.002)).splitlines()
    assert all("is equal within 3% to" in line and "would" not in line for line in rest)


def test_below_saturation_the_latency_decides(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 110}, below_saturation=True, e2el_p50=0.9)
    other = engines(tmp_path / "b", {"tgi": 100}, below_saturation=True, e2el_p50=0.6)
    assert "tgi (600 ms" in summary(capsys, run, other).splitlines()[1]


def test_an_slo_chooses_among_the_rates_of_an_open_loop(tmp_path, capsys):
    """What was offered within the SLO is the answer: below saturation as well, it is no shorter answer."""
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100}, below_saturation=True)
    (answer,) = summary(capsys, run, "--slo", "ttft=380ms").splitlines()
    assert answer.startswith("qa: vllm at batch size 8")
    assert "shorter" not in answer


def test_each_bound_of_an_slo_needs_its_requests(tmp_path, capsys):
    """60 requests tell a p90 and no p99, whichever bound is typed first."""
    run = engines(tmp_path / "a", {"vllm": 110, "tgi": 100}, num_requests=15)
    for slo in ("ttft.p90=380ms,e2el.p99=90s", "e2el.p99=90s,ttft.p90=380ms"):
        assert "too few requests to judge" in summary(capsys, run, "--slo", slo)


def test_below_saturation_shorter_answers_win_nothing(tmp_path, capsys):
    """Half as many tokens take half the time: a comparison of the two refuses them, and so does the answer."""
    answered = {"below_saturation": True, "num_requests": 10, "num_failed": 0}
    run = engines(tmp_path / "a", {"vllm": 110, "llamacpp": 100}, e2el_p50=0.9, output_tokens=1280, **answered)
    other = engines(tmp_path / "b", {"tgi": 100}, e2el_p50=0.5, output_tokens=640, **answered)
    lead, *rest = summary(capsys, run, other).splitlines()
    assert "tgi is the fastest" not in lead
    assert all(line.endswith("; not compared, since answers were shorter: tgi") for line in rest)
    equal = engines(tmp_path / "c", {"tgi": 100}, e2el_p50=0.5, output_tokens=1240, **answered)
    assert "tgi (500 ms" in summary(capsys, run, equal).splitlines()[1]


def test_the_lead_says_where_one_alone_meets_the_slo(tmp_path, capsys):
    """At one of three tasks both meet it, at one vLLM alone, and at one it was measured alone."""

    def run(name, **speeds):
        config = json.dumps({**CONFIG, "workload": {"name": name}})
        return engines(tmp_path / name, speeds, config=config, slo=json.dumps({"ttft": 0.38}))

    runs = [run("a", vllm=110, tgi=100), run("b", vllm=110, tgi=100), run("c", vllm=110)]
    rows = pq.read_table(tmp_path / "b" / "trials.parquet").to_pylist()
    slow = dict.fromkeys(LATENCIES, 0.5)
    run_of(tmp_path / "b", [{**row, **(slow if row["backend"] == "tgi" else {})} for row in rows])
    alone = "(1 more with nothing to compare); vllm (b) alone meets the SLO at 1 of 3 tasks"
    assert summary(capsys, *runs).startswith(f"vllm (a) is the fastest at 1 of 1 task {alone}\n")
    run("a", vllm=100, tgi=100)
    assert summary(capsys, *runs).startswith(f"vllm (a) and tgi (a) tie at qa in throughput {alone}\n"), "who ties"


def test_a_configuration_that_the_race_dropped_at_one_point_is_not_said_to_be_dropped_at_all(tmp_path, capsys):
    run = engines(tmp_path / "a", {"vllm": 200, "tgi": 100})
    rows = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    dropped = {"outcome": "dropped", "output_throughput": None, "reason": "surely not the best"}
    lasts = [("vllm", 1, 3), ("tgi", 1, 3)]
    keys = ("backend", "batch_size", "replicate")
    run_of(tmp_path / "a", [row | (dropped if tuple(row[key] for key in keys) in lasts else {}) for row in rows])
    lead, *answered = summary(capsys, run).splitlines()
    assert lead == "vllm is the fastest at 2 of 2 tasks; dropped by the race: tgi (1 of 2 tasks)"
    assert ["dropped by the race: tgi" in answer for answer in answered] == [True, False]


def test_a_configuration_of_several_runs_is_named_with_its_run_and_their_slos_must_agree(tmp_path, capsys):
    runs = [
        engines(tmp_path / name, {"vllm": speed}, slo=json.dumps({"ttft": limit}))
        for name, speed, limit in (("a", 110, 0.38), ("b", 100, 0.5))
    ]
    out = summary(capsys, *runs)
    assert out.startswith("vllm (a) is the fastest at 2 of 2 tasks")
    assert "headroom" not in out


def test_a_bound_is_met_surely_with_the_whole_interval_and_never_by_failed_requests():
    (bound,) = bounds({"ttft": 0.2}, 1000)
    assert bound.text == "TTFT p99 ≤ 200 ms"
    assert bound.headroom(math.nan) == -math.inf
    latencies = [Estimate(0.18, low, high, 3, math.nan, math.nan) for low, high in ((0.17, 0.19), (0.15, 0.21))]
    sure, unsure = (RankedConfiguration("vllm", "", "a", latency, 0.1, bound, latency) for latency in latencies)
    assert [sure.meets, sure.surely_meets] == [True, True]
    assert [unsure.meets, unsure.surely_meets] == [True, False]


def test_advice_from_two_launches_says_that_they_reveal_little(tmp_path, capsys):
    doubt = "this few launches hardly show the spread"
    few = engines(tmp_path / "a", {"vllm": 100, "tgi": 101}, launched=2, spread=0.006)
    assert doubt in summary(capsys, few)
    assert doubt not in summary(capsys, engines(tmp_path / "b", {"vllm": 100, "tgi": 101}, spread=0.02))


def test_a_question_of_one_launch_borrows_the_spread_of_the_others():
    model = fit(np.array([1.1, 1.0]), Trials(np.array([0, 1]), np.zeros(2, np.int64), np.full(2, None)), 2)
    alone = contest(model, "higher")
    assert remedy(alone, (0, 1), Spread(0.0, 0), 1.0).launches == 0
    assert remedy(alone, (0, 1), Spread(0.05**2 * 30, 30), 1.0).launches > 1


def test_every_format_has_every_candidate(tmp_path, capsys):
    run, file = engines(tmp_path / "a", {"vllm": 110, "tgi": 100}), tmp_path / "answer"
    assert summary(capsys, run, "--format", "csv", "--output", str(file)) == ""
    frame = pd.read_csv(file)
    assert list(frame["configuration"]) == ["vllm", "tgi"] * 2
    assert list(frame["verdict"]) == ["best", "behind"] * 2
    assert list(frame["best_over_it"]) == pytest.approx([1, 1.1] * 2, rel=0.02)
    assert "| qa, batch size 1 | tgi | 100 tokens/s" in summary(capsys, run, "--format", "markdown")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "ttft"], "ttft: expected bounds such as ttft=200ms,tpot.p90=0.05s"),
        (["--slo", "ttft="], "ttft=: expected a time above 0 with its unit, such as 200ms or 0.2s"),
        (["--slo", "ttft=200"], "ttft=200: expected a unit: 200ms or 200s"),
        (["--slo", "ttft.p42=1s"], "slo=ttft.p42: expected one of p50, p90, p95, p99"),
        (["--format", "latex"], "--format latex: expected one of text, markdown, csv, json"),
        (["--slo", "ttft:0.5"], "ttft:0.5: expected bounds such as ttft=200ms,tpot.p90=0.05s"),
        (["--slo", "itl=1s"], "itl: expected ttft, tpot or e2el, with a percentile as in ttft.p90"),
        (["--slo", "ttft=-1"], "ttft=-1: expected a time above 0"),
        (["--output", "/proc/none/answer"], "--output /proc/none/answer"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["summary", engines(tmp_path / "a", {"vllm": 110}), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_launches_asked_for_do_tell_nine_times_in_ten():
    """A difference of 5 % between two engines whose launches differ by 4 %."""
    draws, difference, deviation = np.random.default_rng(3), np.log(1.05), 0.04

    def model_of(launched: int):
        point, replicate = np.repeat([0, 1], launched), np.tile(np.arange(launched), 2)
        trials = Trials(point, replicate, np.array([f"{i}" for i in range(2 * launched)], object))
        return fit(np.exp(draws.normal(0, deviation, 2 * launched) + difference * (point == 0)), trials, 2)

    first = model_of(4)._replace(effects=np.array([difference, 0.0]), variance=deviation**2)
    advised = remedy(contest(first, "higher"), (0, 1), Spread(deviation**2 * 100, 100), minutes=2.0)
    assert advised.difference == pytest.approx(0.05)
    assert advised.minutes == 2 * advised.launches
    contests = [contest(model_of(advised.replicates), "higher") for _ in range(400)]
    decided = sum(each.won and each.best == 0 for each in contests)
    assert 0.88 < decided / 400 < 0.98


def test_launches_that_drift_are_named_and_few_launches_say_what_they_cannot_show(tmp_path):
    """Two engines gain 2 % with each of 20 launches; of a third's few, and of independent launches, nothing is said."""
    chance = np.random.default_rng(4).normal(0, 0.02, (3, 20))
    found = {}
    for name, step, count in (("trend", 0.02, 20), ("independent", 0.0, 20), ("few", 0.02, 3)):
        rows = [
            trial(backend, 1, i, speed * float(np.exp(chance[engine, i] + step * i)), launch=f"{backend}{i}")
            | {"started_at": f"2026-11-25T{i:02}:00:00"}
            for engine, (backend, speed) in enumerate((("vllm", 100), ("tgi", 50), ("sglang", 20)))
            for i in range(count if engine < 2 else 3)
        ]
        found[name] = warnings_of(run_of(tmp_path / name, rows))
    assert found["trend"]["launch-order"].startswith("successive launches resemble each other (correlation 0.")
    assert found["trend"]["launch-order"].endswith("[2 of 3 points: vllm, qa; tgi, qa]")
    assert not {"launch-order", "few-launches"} & {*found["independent"]}
    assert "launch-order" not in found["few"]
    assert found["few"]["few-launches"].startswith("3 launches of each hardly show a trend")
