"""`sweep capacity` and `sweep quick` against the simulated engine, whose capacity a small queue knows."""

import csv
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import open_results
from sweep.base.config import ConfigError
from sweep.base.wording import number
from sweep.cli import run
from sweep.cli.commands import dispatch
from sweep.cli.searches import quick
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import endpoint_model
from sweep.node import deployment, verdict
from sweep.search import capacity
from sweep.search.capacity import Claim, Probe
from sweep.search.launch_search import without_doubt
from tests.support.results import committed_rows
from tests.support.simulated_engine import ROOT, simulated
from tests.support.waiting import wait_until

SLOTS, TTFT, ITL, OUTPUT = 4, 0.1, 0.01, 11
SERVICE = TTFT + (OUTPUT - 1) * ITL
BOUND = 0.4  # s, of the TTFT
CAPACITY = 16.85  # requests/s: in a simulated M/D/4 queue, 90% of 40,000 requests wait 0.3 s at most
SHORT = ["workload.input_tokens=16", f"workload.output_tokens={OUTPUT}", "workload.spread=0"]


@pytest.fixture
def url(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    monkeypatch.chdir(tmp_path)
    with simulated(ttft={"mean": TTFT}, itl={"mean": ITL}, max_concurrency=SLOTS) as (url, _):
        yield url


def rows(out):
    return {row["trial_id"]: row for row in read_trials(RunPaths(out).trials)}


def claims_of(url, *keys, slo="ttft=1s", budget="2s", status=(0, 1)):
    """The claims of a short search by point; a busy machine may limit the client, which ends it with status 1."""
    assert dispatch(["capacity", url, "--slo", slo, "--budget", budget, *SHORT, "out=run", *keys]) in status
    return json.loads(Path("run/capacity.json").read_text())


@pytest.mark.slow
def test_the_interval_of_a_search_holds_the_capacity_and_the_command_goes_on(url, capsys):
    search = {"slo": f"ttft={BOUND}s", "budget": "20s"}
    for _ in range(3):
        (claim,) = claims_of(url, **search).values()
        printed = capsys.readouterr().out
        if not claim["ended"]:
            break
    assert 0 < claim["lower"] < 1.05 * CAPACITY < 1.15 * claim["upper"] < 1.15 * 1.6 * CAPACITY
    assert [line.partition(":")[0] for line in printed.splitlines()[-3:]] == ["capacity", "limit", "how sure"]
    measured = rows(Path("run"))
    assert sum(row["outcome"] == "ok" for row in measured.values()) >= claim["probes"]
    (again,) = claims_of(url, "--format", "json", **search).values()
    assert list(json.loads(capsys.readouterr().out).values()) == [again]
    assert again["probes"] >= claim["probes"]
    if not claim["ended"]:
        assert again == claim
        assert rows(Path("run")).keys() == measured.keys()
    dispatch(["report", "run"])
    assert again["lines"][0] in Path("run/report.html").read_text()
    assert list(open_results("run").claims.values()) == [again]
    capsys.readouterr()
    dispatch(["summary", "run"])
    *_, first, second, third, report = capsys.readouterr().out.splitlines()
    assert [first, second, third] == again["lines"]
    assert report.startswith("report: ")


@pytest.mark.slow
@pytest.mark.figures
def test_a_claim_is_the_answer_wherever_the_run_is_shown(url, capsys):
    for budget in ("20s", "40s", "80s"):  # on a busy machine a short search finds no lower end
        (claim,) = claims_of(url, "backend.price_per_hour=2", slo=f"ttft={BOUND}s", budget=budget).values()
        if claim["lower"] and claim["twin"]:
            break
    capsys.readouterr()
    dispatch(["capacity", url, "--slo", "ttft=9s", *SHORT, "backend.price_per_hour=2", "out=run", "dry_run=true"])
    expected = r"about (\S+) requests \((\S+) tokens in, .*, at most (\S+) requests .*, by earlier searches"
    volume = re.search(expected, capsys.readouterr().out)
    sent, tokens, most = (int(each.replace(",", "")) for each in volume.groups())
    assert (sent, most) == pytest.approx((480 * claim["lower"], 720 * claim["throughput"]), abs=1)
    assert tokens == pytest.approx(16 * sent, abs=16)
    cost = [2 / 3600 / (end * OUTPUT) * 1e6 for end in (claim["lower"], claim["upper"])]
    assert claim["cost_per_million_tokens"] == pytest.approx(cost)
    loads = [probe["load"] for probe in claim["measured"]]
    assert {row["rate"] for row in rows(Path("run")).values() if row["rate"]} >= set(loads)
    assert claim["twin"][0]["load"] == min(loads)
    capsys.readouterr()
    dispatch(["summary", "run", "--slo", f"ttft.p90={BOUND}s", "--format", "csv"])
    (answer,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [float(answer[key]) for key in ("value", "ci_low", "ci_high")] == [claim["lower"], *ends(claim)]
    dispatch(["summary", "run", "--slo", "ttft=9s", "--format", "csv"])
    assert "capacity" not in {row["column"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    shutil.copytree("run", "again")
    dispatch(["compare", "run", "again", "--format", "json"])
    (ratio,) = json.loads(capsys.readouterr().out)["capacities"]
    low, high = ends(claim)
    assert [ratio["low"], ratio["high"]] == pytest.approx([low / high, high / low])
    dispatch(["report", "run"])
    report, chart = Path("run/report.html").read_text(), Path("run/figures/capacity.svg").read_text()
    assert 'figure-capacity"' in report
    assert f">{number(cost[1])}–{number(cost[0])}<" in re.sub(r"\s*<", "<", report)
    assert all(text in chart for text in ("the twin in the long run", f"ttft.p90 &lt;= {BOUND} s", "load (requests/s)"))


def ends(claim):
    return claim["lower"], claim["upper"]


@pytest.mark.slow
def test_the_users_of_a_closed_loop_that_an_endpoint_sustains(url, capsys):
    """Four slots of 0.2 s each: with N users the TTFT is 0.1 s + 0.05 s * (N - 4), and 0.3 s allow eight users."""
    for _ in range(3):
        (claim,) = claims_of(url, "load=closed", "fresh=true", slo="ttft=0.33s", budget="30s").values()
        if not claim["ended"]:
            break
    assert (claim["unit"], claim["limit"]) == ("users", "ttft.p90 <= 0.33 s")
    assert 3 <= claim["lower"] <= 8 <= claim["upper"] <= 15, claim
    assert re.search(r"^capacity: .* users", capsys.readouterr().out, re.M)
    assert {row["num_requests"] for row in rows(Path("run")).values() if row["concurrency"] == 16} >= {220}


@pytest.mark.slow
def test_a_probe_whose_requests_failed_counts_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with simulated(faults={"status_429": 0.3}) as (url, _):
        (claim,) = claims_of(url, budget="3s", status=(1,)).values()
    measured = [*Path("run").glob("*/*/*/*/trial.parquet")]  # a disturbed probe has two
    assert 2 < claim["probes"] <= len(rows(Path("run"))) <= len(measured) < 2 * claim["probes"]


@pytest.mark.slow
def test_a_probe_whose_load_is_far_too_high_ends_early(url, monkeypatch):
    """The twin is planted wrong: it has three times the capacity."""
    monkeypatch.setattr(capacity.Capacity, "_capacity_of_twin", lambda *_: 3 * CAPACITY)
    for _ in range(3):
        (claim,) = claims_of(url, "fresh=true", slo=f"ttft={BOUND}s", budget="40s").values()
        if early := [row for row in rows(Path("run")).values() if row["outcome"] == "censored"]:
            break
    reason = r"the load is too high: \S+ requests in flight after \S+ s; \S+ of \S+ were not sent"
    assert re.match(reason, early[0]["reason"])
    assert early[0]["trial_id"] in claim["trials"], "it is evidence"
    assert min(row["rate"] for row in early) > CAPACITY
    measured = {probe["load"]: probe["good"][f"ttft.p90 <= {BOUND} s"] for probe in claim["measured"]}
    assert measured[early[0]["rate"]] < 0.8
    assert claim["upper"] <= early[0]["rate"]


@pytest.mark.slow
def test_a_trace_is_scaled_by_its_speed_and_the_command_goes_on(url):
    draw, due = random.Random(1), 0.0
    times = [due := due + draw.expovariate(2.0) for _ in range(300)]
    Path("times.txt").write_text("".join(f"{time:.6f}\n" for time in times))
    trace = ["load=trace", "load.path=times.txt", "load.repeat=2"]
    (claim,) = claims_of(url, *trace, "capacity.trials=9", slo=f"ttft={BOUND}s", budget="12s").values()
    measured = rows(Path("run"))
    speeds = {row["trial_id"]: row["load.speed"] for row in measured.values() if row["load"] == "trace"}
    natural = 299 / (times[-1] - times[0])
    offered = {trial: natural * speed for trial, speed in speeds.items() if trial in claim["trials"]}
    assert [probe["load"] for probe in claim["measured"]] == pytest.approx([*offered.values()], rel=1e-3)
    assert min(offered.values()) > 4, "faster than it was recorded"
    (again,) = claims_of(url, *trace, slo=f"ttft={BOUND}s", budget="12s").values()
    assert again["trials"][: len(claim["trials"])] == claim["trials"]
    assert claim["lower"] < 1.2 * CAPACITY


@pytest.mark.slow
def test_no_probe_begins_that_would_end_after_the_longest_duration(url, monkeypatch):
    monkeypatch.setattr(deployment, "OVERTIME", 0.5)
    (claim,) = claims_of(url, budget="20s").values()
    assert claim["ended"] in ("0.5 times its budget has passed", ""), claim
    assert claim["seconds"] < 14


@pytest.mark.slow
def test_a_bound_on_failures_and_a_number_of_trials(monkeypatch, tmp_path):
    """More than four requests at once are refused, so that failures, and no latency, limit the rate."""
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    monkeypatch.chdir(tmp_path)
    keys = ["capacity.max_failed=5%", "fresh=true"]
    with simulated(ttft={"mean": TTFT}, itl={"mean": ITL}, max_concurrency=SLOTS, max_queue=4) as (url, _):
        for _ in range(3):
            (claim,) = claims_of(url, *keys, slo="e2el=9s", budget="30s").values()
            if claim["lower"]:
                break
        assert claim["limit"] == "failed <= 5%", claim
        assert claim["bounds"]["failed <= 5%"] == pytest.approx(0.95)
        good = {probe["load"]: probe["good"]["failed <= 5%"] for probe in claim["measured"]}
        assert claim["lower"] <= max(load for load, share in good.items() if share >= 0.95)
        assert claim["lower"] < SLOTS / SERVICE
        (claim,) = claims_of(url, *keys, "capacity.trials=2", budget="30s").values()
    assert (claim["probes"], claim["ended"]) == (2, "2 trials were measured")


def test_the_options_for_lengths_are_keys_of_the_run(url, capsys):
    Path("mine.txt").write_text("one prompt\nanother\n")
    Path("results/unreadable/capacity.json").mkdir(parents=True)  # is no earlier search
    for options, shown in (
        (["--input-tokens", "300", "--output-tokens", "7"], "300 in, 7 out"),
        (["--workload", "mine.txt", "--output-tokens", "9"], "mine"),
    ):
        assert dispatch(["capacity", url, "--slo", "ttft=1s", *options, "dry_run=true"]) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.slow
def test_a_client_that_cannot_send_faster_ends_the_search_with_what_it_could_send(url, monkeypatch):
    """It is too slow for more than 16 users; the engine serves four at once."""
    limited = verdict.limited
    monkeypatch.setattr(capacity, "FIRST_USERS", 4)
    monkeypatch.setattr(capacity, "RISING", 0.0)  # more users are always tried

    def too_slow(report, records):
        crowded = len(records.phase) > 60 and all(map(math.isnan, records.scheduled))
        return "the client was busy" if crowded else limited(report, records)

    monkeypatch.setattr(verdict, "limited", too_slow)
    for _ in range(3):
        (claim,) = claims_of(url, "fresh=true", slo="ttft=9s", budget="40s").values()
        if claim["measured"]:
            break
    assert claim["upper"] == 0 or claim["status"] == "above", claim
    assert claim["throughput"] == pytest.approx(SLOTS / SERVICE, rel=0.2)
    assert "client_limited" in {row["outcome"] for row in rows(Path("run")).values()}
    assert claim["measured"], "open loops below it"


@pytest.mark.slow
def test_a_finished_search_starts_no_executor_and_no_tracker(url, monkeypatch):
    while (claim := next(iter(claims_of(url, slo="ttft=1ms").values())))["status"] != "impossible":
        pass  # on a busy machine the client was too late
    monkeypatch.setattr(run, "_executor", None)
    monkeypatch.setattr(run, "_tracker", None)
    assert list(claims_of(url, slo="ttft=1ms").values()) == [claim]


def test_an_endpoint_that_refuses_every_request_has_no_claim(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with simulated(faults={"status_429": 1.0}) as (url, _):
        (claim,) = claims_of(url, status=(1,)).values()
    assert (claim["status"], claim["lower"], claim["probes"]) == ("interval", 0, 0)
    assert re.match("invalid: none of 5 requests completed; .*429", claim["ended"])
    assert "capacity: unknown\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_severe_warning_at_the_claim_is_a_refusal(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    bursts = {"itl": {"kind": "bursty", "mean": 0.005, "burst": 4}, "events_per_write": 4}
    with simulated(ttft={"mean": 0.2}, **bursts) as (url, _):
        (claim,) = claims_of(url, slo="tpot=1s", budget="3s").values()
        assert (claim["status"], claim["lower"], claim["upper"], claim["limit"]) == ("refused", 0, 0, "")
        assert re.match(r"buffered-stream at \S+ (users|requests/s): \d+% of events", claim["ended"])
        assert "capacity: unknown\n" in capsys.readouterr().out


@pytest.mark.parametrize(("at", "refused"), [(4.0, True), (6.0, False)])
def test_a_queue_that_grows_is_a_doubt_only_at_or_below_the_claim(at, refused):
    rows = [(Probe(90, rate), {"outcome": "ok", "trial_id": "x", "queue_growth": 9 * (rate == at)}) for rate in (2, at)]
    claim = without_doubt(Claim("interval", 5.0, 8.0, "ttft"), rows, ["ttft.p95"])
    assert (claim.status == "refused", claim.lower == 0) == (refused, refused)
    assert without_doubt(Claim("interval", 5.0, 8.0), rows, ["tpot"]).lower == 5.0


@pytest.mark.slow
def test_claims_are_of_this_command_and_its_points_and_probes_are_trials(url, capsys):
    points = "workload.output_tokens=5,11"
    claims = claims_of(url, points, slo="ttft.p85=1s", budget="1s")
    assert [claim["slo"] for claim in claims.values()] == [{"ttft.p85": "1.0s"}] * 2
    rows_of_table = r"^(?:openai \S+ +)?serving poisson output_tokens=(5|11) "
    assert sorted(re.findall(rows_of_table, capsys.readouterr().out, re.M)) == ["11", "5"]
    dispatch(["summary", "run", "--format", "json"])
    assert list(json.loads(capsys.readouterr().out)["claims"].values()) == [claims]
    claims = claims_of(url, points, "deadline=2020-01-01T00:00", slo="ttft=2s", budget="30s", status=(75,))
    stopped = ({"ttft": "2.0s"}, "the run was stopped")
    assert [(claim["slo"], claim["ended"]) for claim in claims.values()] == [stopped] * 2
    trial_id, row = next(pair for pair in rows(Path("run")).items() if pair[1]["outcome"] == "ok")
    assert "capacity" not in json.loads(row["settings"])
    dispatch(["rerun", f"run#{trial_id}", "--trust"])
    assert f"{trial_id}  openai" in capsys.readouterr().out


FAILING = "simulated tiny-llama die_at_launch=error"
LAUNCHED = ["+experiment=capacity", "backend=simulated", "model=tiny-llama", "tracking=none", "hardware=cpu"]
LAUNCHED += ["cluster=inline", "report=false", f"backend.ttft.mean={TTFT}", f"backend.itl.mean={ITL}", *SHORT]
LAUNCHED += [f"backend.max_concurrency={SLOTS}", "out=run"]


def launched(*keys, slo="ttft=1ms", budget="2s"):
    """The arguments of a search on engines that sweep launches."""
    return ["run", *LAUNCHED, f"slo={slo}", f"capacity.budget={budget}", *keys]


def all_rows():
    return list(read_trials(RunPaths(Path("run")).trials))


def claims_of_launches():
    return json.loads(Path("run/capacity.json").read_text())


def test_a_failing_launch_is_a_configuration_without_a_capacity(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    command = launched("backend.die_at_launch=error,null")
    assert dispatch(command) == 1
    printed = capsys.readouterr().out
    planned = "capacity: 2 points in 2 launches, whose time is added to about 4 s, at most 6 s; each search has 2 s"
    assert planned in printed
    volume = "about 4 requests (64 tokens in, 44 out), at most 6 requests (96 tokens in, 66 out)"
    assert f"capacity: {volume} for each request/s of throughput\n" in printed
    failed, found = claims_of_launches().values()
    assert (failed["configuration"], failed["lower"], failed["probes"]) == (FAILING, 0, 0)
    assert failed["ended"].startswith("launch_failed: ")
    assert re.search("^simulated tiny-llama die_at_launch=error .*launch_failed", printed, re.M)
    assert (found["status"], found["probes"]) == ("impossible", 1)
    assert {row["launch"] for row in all_rows() if row["outcome"] == "ok"} == {found["launch"]}
    before = Path("run/capacity.json").read_text(), all_rows()
    assert dispatch(command) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert (Path("run/capacity.json").read_text(), all_rows()) == before
    earlier = {name: {**claim, "budget": claim.pop("search")["budget"]} for name, claim in claims_of_launches().items()}
    Path("run/capacity.json").write_text(json.dumps(earlier))
    assert dispatch(command) == 1
    assert all_rows() == before[1], "an earlier version's claims count"
    Path("run/capacity.json").unlink()
    assert dispatch(command) == 1
    assert (Path("run/capacity.json").read_text(), all_rows()) == before, "the rows say it all"


@pytest.mark.slow
def test_probes_share_a_launch_and_a_killed_search_goes_on_with_its_next_launch(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    monkeypatch.chdir(tmp_path)
    command = launched(slo=f"ttft={BOUND}s", budget="20s")
    process = subprocess.Popen([sys.executable, "-m", "sweep", *command], env={**os.environ, "PYTHONPATH": str(ROOT)})
    ledger = RunPaths(Path("run")).ledger
    wait_until(lambda: any(row.get("rate") for row in committed_rows(ledger)), 200, "the twin's fit")
    process.kill()
    process.wait()
    dead = committed_rows(ledger)
    assert len({row["launch"] for row in dead}) == 1
    assert dispatch(command) in (0, 1)
    (claim,) = claims_of_launches().values()
    rows = {row["trial_id"]: row for row in all_rows()}
    assert {row["trial_id"] for row in dead} <= rows.keys() - {*claim["trials"]}
    assert {rows[trial]["launch"] for trial in claim["trials"]} == {claim["launch"]} != {dead[0]["launch"]}
    assert len(claim["trials"]) == claim["probes"] > 2
    loops = [rows[trial]["concurrency"] for trial in claim["trials"]]
    assert loops[0] > 1, "no single request is measured again"
    assert loops[1:] == [None] * (len(loops) - 1), "the saturating users are known"
    light = next(row["num_requests"] for row in dead if row.get("rate"))
    assert all(rows[trial]["num_requests"] > light for trial in claim["trials"][1:]), "the twin is fitted"
    assert claim["lower"] < 1.05 * CAPACITY < 1.15 * (claim["upper"] or CAPACITY)
    assert len({row["attempt"] for row in rows.values()}) == 2, "a launch has all of its probes"
    if claim["finished"]:
        dispatch(command)
        assert all_rows() == [*rows.values()]
        assert [*claims_of_launches().values()] == [claim]


@pytest.mark.slow
def test_replicates_are_launches_and_give_a_figure_for_a_fresh_launch(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(capacity, "LONG_RUN", 4000)
    monkeypatch.chdir(tmp_path)
    for budget in ("20s", "60s"):  # on a busy machine a short search finds no lower end
        assert dispatch(launched("replicates=2", slo="tpot=9s", budget=budget)) in (0, 1)
        printed, claims = capsys.readouterr().out, claims_of_launches()
        if all(claim["lower"] for claim in claims.values()):
            break
    assert [claim["replicate"] for claim in claims.values()] == [0, 1]
    assert len({claim["launch"] for claim in claims.values()}) == 2
    rows = {row["trial_id"]: row for row in all_rows()}
    for claim in claims.values():
        assert {rows[trial]["launch"] for trial in claim["trials"]} == {claim["launch"]}
    lowers = [claim["lower"] for claim in claims.values()]
    assert min(lowers) > 0, printed
    (fresh,) = {json.dumps(claim["fresh_launch"]) for claim in claims.values()}
    assert 0 < json.loads(fresh)["lower"] <= min(lowers)
    assert f"  ≥ {number(json.loads(fresh)['lower'])}" in printed


def test_ctrl_c_in_the_first_run_prints_what_is_known(url, monkeypatch, capsys):
    monkeypatch.setattr(quick, "run", lambda *_, **__: print("a log") or 130)
    assert dispatch(["quick", url, "out=look"]) == 130
    printed = capsys.readouterr()
    assert printed.out.startswith(f"serves:   {url}")
    assert "a log" not in printed.out + printed.err
    monkeypatch.setattr(quick, "_closed_loops", lambda out: iter([{"concurrency": 1, "outcome": "ok"}]))
    assert quick._throughput("look") == "not measured"
    with pytest.raises(ConfigError, match="dry_run=true: expected no setting"):
        dispatch(["quick", url, "dry_run=true"])


@pytest.mark.slow
def test_a_quick_look_at_a_server_that_it_finds_itself(url, monkeypatch, capsys):
    monkeypatch.setattr(endpoint_model, "USUAL_PORTS", (1, int(url.rsplit(":")[-1])))
    monkeypatch.setattr(quick, "BUDGET", "12s")
    for _ in range(3):  # a busy machine may limit the client
        assert dispatch(["quick", "--slo", f"ttft={BOUND}s", *SHORT, "out=look"]) in (0, 1)
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["serves", "alone", "full", "capacity", "limit"]
        if not any("client_limited" in line for line in lines):
            break
    assert f"{url}: POST /v1/completions, model simulated" in lines[0]
    latency = re.search(r"first token after (\S+) ms, then one in (\S+) ms, (\S+) ms in total \(16 tokens in", lines[1])
    assert [float(number) for number in latency.groups()] == pytest.approx([100, 10, 200], rel=0.3)
    assert float(re.search(r", (\S+) requests/s, with", lines[2])[1]) == pytest.approx(SLOTS / SERVICE, rel=0.3)
    assert f"at ttft={BOUND}s" in lines[3]
    assert f"sweep capacity {url} --slo ttft={BOUND}s workload.input_tokens=16" in lines[4]
    monkeypatch.setattr(endpoint_model, "USUAL_PORTS", (1,))
    with pytest.raises(ConfigError, match="no server at 127.0.0.1, ports 1;"):
        dispatch(["quick"])


@pytest.mark.slow
@pytest.mark.parametrize("busy", [1, 9])
def test_a_quick_look_from_a_busy_client_retries_and_says_why_nothing_was_measured(busy, url, monkeypatch, capsys):
    verdicts = iter(["the client was busy"] * busy)
    monkeypatch.setattr(verdict, "limited", lambda *_: next(verdicts, None))
    monkeypatch.setattr(quick, "BUDGET", "1s")
    assert dispatch(["quick", url, *SHORT, "out=look"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["serves", "alone", "full", "capacity", "limit"]
    reason = "not measured (client_limited: the client was busy)"
    assert (reason in lines[1], "first token after" in lines[1]) == (busy > 1, busy == 1)
    assert busy == 1 or lines[3].startswith("capacity: unknown, ")


@pytest.mark.parametrize(
    ("ttft", "tpot", "slo"),
    [(0.1, 0.01, "ttft=1s,tpot=50ms"), (0.7, 0.2, "ttft=2s,tpot=500ms"), (9, None, "ttft=20s,tpot=50ms")],
)
def test_the_usual_slo_leaves_room_above_a_single_request(ttft, tpot, slo):
    assert quick._sensible_slo({"ttft_p50": ttft, "tpot_p50": tpot}) == slo


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "tpop=1s"], "tpop: expected ttft"),
        (["--slo", "ttft=1s", "--budget", "soon"], "capacity.budget='soon'"),
        (["--slo", "ttft=1s", "load=batch"], "load=batch: expected closed, trace, or a load with a rate"),
        (["--slo", "ttft=1s", "workload=conversations"], "workload=conversations: its sessions have turns"),
        (["--slo", "ttft=1s", "load=trace", "load.path=x", "load.speed=2"], "load.speed: expected no setting"),
        (["--slo", "ttft=1s", "load=closed", "load.concurrency=4"], "load.concurrency: expected no setting"),
        (["--slo", "ttft=1s", "load.rate=1,2"], "load.rate: expected no setting"),
        (["--slo", "ttft=1s", "load.duration=9"], "load.duration=9: expected null"),
        (["--slo", "ttft=1s", "replicates=3"], "replicates=3: expected 1"),
        (["--slo", "ttft=1s", "slo=tpot=1s"], "slo: expected --slo"),
        (["--slo", "ttft=1s", "--format", "json"], "--format json: expected no dry_run"),
        (["--slo", "ttft=1s", "loud"], "loud: expected KEY=VALUE"),
        (["--slo", "ttft=1s", "out=s3://b/x"], "expected a folder"),
        (["--slo", "ttft.p0=1s"], "ttft.p0: expected ttft"),
        (["--slo", "ttft.p85=1s", "percentiles=[50,90]"], "slo=ttft.p85: expected one of p50, p90"),
        (["--slo", "tpot=1s", "workload.output_tokens=1"], "has no tpot"),
    ],
)
def test_bad_input_is_refused_at_the_door(arguments, message, url):
    with pytest.raises(ConfigError, match=message):
        dispatch(["capacity", url, *arguments, "dry_run=true"])
