"""The view of a run while it goes on: requests within a trial, what is in use and spent, and the time that is left."""

import io
import json
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from sweep.__main__ import main
from sweep.base.records import Outcome, TrialProgress
from sweep.drive.launch_state import LaunchState, Stage
from sweep.drive.monitor.forecast import Forecast
from sweep.drive.monitor.progress import Display, Usage, progress_text
from sweep.drive.monitor.status import StatusWriter
from sweep.node.events import Placed
from sweep.plan.estimate import Expected
from sweep.plan.packing import Need, Node
from tests.cli.test_line import SIMULATED

NODES = [Node("10.0.0.1", 0, 8, (), "n1"), Node("10.0.0.2", 0, 8, (), "n2")]


def test_the_time_left_has_the_searches_of_running_and_of_waiting_launches():
    forecast = Forecast(Expected([Need("k", 0, None, 100.0)], {}, {}, 0, 0))
    state = LaunchState(SimpleNamespace(launch_key="k", trials=[], searched={"probe": "search"}))
    state.stage = Stage.RUNNING
    waiting = [Need("w", 0, None, 50.0)]
    left = [forecast.update([state], NODES[:1], {"k": 20.0}, {}, waiting)]
    forecast.searches["k"] = 30.0, time.monotonic() - 5
    left += [forecast.update([state], NODES[:1], {"k": 20.0}, {}, each) for each in (waiting, [])]
    assert left == pytest.approx([130, 75, 25], abs=1)


def display_of() -> tuple[Display, io.StringIO]:
    output = io.StringIO()
    return Display(36, 0, None, Console(file=output, width=200)), output


@pytest.mark.slow
def test_a_trial_shows_its_requests_while_it_runs(tmp_path, monkeypatch, capsys):
    """Through the whole command: 12 requests one after another of 0.3 s each, seen from the status that is written."""
    snapshots: list[dict[str, Any]] = []
    write = StatusWriter.write

    def observed(self: StatusWriter, *arguments: Any, **options: Any) -> None:
        self.write_after = 0.0
        write(self, *arguments, **options)
        if entries := [entry for entry in json.loads(self.paths.status.read_bytes())["running"] if entry["progress"]]:
            snapshots.append(entries[0]["progress"])
            main(["status", str(self.paths.out)]) if len(snapshots) == 1 else None

    monkeypatch.setattr(StatusWriter, "write", observed)
    overrides = ["backend.ttft.mean=0.2", "workload.num_requests=12", "load=closed", "load.concurrency=1"]
    assert main([*SIMULATED, *overrides, f"out={tmp_path / 'out'}"]) == 0
    assert snapshots[-1]["total"] == 12
    done = [each["done"] for each in snapshots]
    assert done == sorted(done)
    assert 0 < done[-1] <= 12
    assert all(each["sent"] == each["done"] + each["in_flight"] <= each["done"] + 1 for each in snapshots)
    assert {each["failed"] for each in snapshots} == {0}
    last = snapshots[-1]
    assert 6 * last["done"] <= last["tokens"] <= 6 * last["sent"]
    assert "of 12 requests done" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["trials"], state["outcomes"], state["alive"], state["failures"]) == (1, {"ok": 1}, False, [])
    assert state["driver"]["left"] == 0
    assert state["driver"]["usage"]["unit"] == "node"
    assert state["driver"]["usage"]["spent"] > 0


def test_requests_in_words():
    progress = TrialProgress(sent=128, done=120, failed=2, in_flight=8, tokens=2460, total=400, seconds=2.0)
    text = "120 of 400 requests done, 128 sent, 8 in flight, 2 failed, 1,230 tokens/s"
    assert progress_text(progress) == text
    assert Usage(3, 8, "GPU", 0.4213).text == "3 of 8 GPUs busy, $0.421 spent"
    assert Usage(1, 1, "node", 0.0003).text == ""


def test_what_cannot_run_is_one_line_and_figures_have_one_number_format():
    display, output = display_of()
    for index in range(12):
        display.finished({"outcome": "unavailable", "reason": "no docker: install it"}, f"tgi m qa replicate {index}")
    display.show_held_back()
    (line,) = output.getvalue().splitlines()
    assert line.endswith("✗ 12 trials, the first tgi m qa replicate 0: unavailable: no docker: install it")
    row = {"outcome": "ok", "output_throughput": 1234.56, "ttft_p50": 1.381, "cost_per_million_tokens": 0.08371}
    display.finished(row, "vllm")
    assert "vllm: 1,235 tokens/s, TTFT p50 1,381 ms, $0.0837/M tokens" in output.getvalue()


def test_the_best_so_far_is_never_across_tasks_or_loads():
    display, _ = display_of()
    for workload, engine, throughput in (
        ("qa", "a", 900.0),
        ("qa", "b", 100.0),
        ("long", "a", 10.0),
        ("long", "b", 20.0),
    ):
        row = {"outcome": "ok", "workload": workload, "load": "batch", "batch_size": 8, "output_throughput": throughput}
        display.finished(row, f"{engine} {workload} replicate 0", engine)
    assert display.leaders.best(20) == ["at qa batch 8: a 900 tokens/s", "at long batch 8: b 20.0 tokens/s"]
    alone = {"outcome": "ok", "workload": "x", "load": "batch", "batch_size": 8, "output_throughput": 1.0}
    display.finished(alone, "a x replicate 0", "a")
    assert len(display.leaders.best(20)) == 2
    assert display.leaders.best(1) == [display.leaders.latest()] == ["at long batch 8: b 20.0 tokens/s"]


def test_a_launch_that_reports_again_what_it_waits_for_has_waited_since_the_first_report(monkeypatch):
    """The defect: a lease that blocks for hours is reported each minute, and the status showed less than one."""
    display, output = display_of()
    display.update("launch", "vllm", "waiting for process 7")
    display.show_held_back()
    assert not output.getvalue(), "without a terminal only a state that lasts gets a line"
    begin = display.running["launch"][2]
    monkeypatch.setattr("sweep.drive.monitor.progress.SLOW_STATE", 0.0)
    for _ in range(2):
        display.update("launch", "vllm", "waiting for process 7")
        display.show_held_back()
    assert display.running["launch"][2] == begin
    assert output.getvalue().count("waiting for process 7") == 1
    display.update("launch", "vllm", "launching the engine")
    assert display.running["launch"][2] > begin


@pytest.mark.slow
def test_without_a_terminal_a_trial_is_one_line(tmp_path, capsys):
    """From the plan's estimate to the summary; equal failures are folded, and a retry is not done before it ends."""
    faults = ["+backend.faults={hang: 1.0}", "stall_timeout=1", "replicates=2", "attempts=4"]
    assert main([*SIMULATED, *faults, f"out={tmp_path / 'out'}"]) == 1
    after = capsys.readouterr().out.partition("expected: ")[2].splitlines()[1:]
    lines = after[: next(index for index, line in enumerate(after) if "of 2 trials ok" in line)]
    counts = [
        re.search(r"\[(\d)/2(?:, (\d) to retry)?, .*\] ✗ .*: hung(: | for the same reason)", line) for line in lines
    ]
    assert [found.groups() for found in counts if found] == [
        ("0", "1", ": "),
        ("0", "2", " for the same reason"),
        ("1", None, " for the same reason"),
        ("2", None, " for the same reason"),
    ]
    assert not [line for line in lines if "launching the engine" in line or "trial 1 of" in line]
    main(["status", str(tmp_path / "out")])
    assert "  2 trials, the first simulated tiny-llama synthetic " in capsys.readouterr().out


@pytest.mark.parametrize("width", range(60, 201, 20))
def test_the_live_view_fits_the_terminal(width):
    """A line per launch, what is best so far, and what is left, each in one line of the terminal from 80 columns."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    display = Display(27, 0, 190.0, console)
    for engine, throughput in (("transformers", 17.0), ("vllm", 87.3)):
        question = {"workload": "mixed", "load": "batch", "batch_size": 8}
        row = {"outcome": "ok", "output_throughput": throughput, **question}
        display.finished(row, f"{engine} smollm2 mixed batches of 8 replicate 0", engine)
    display.finished({"trial_id": "t", "outcome": "hung"}, "ctranslate2", retried=True)
    display.update("a", "transformers smollm2", "trial 2 of 9: mixed batches of 8 replicate 0")
    display.measuring("a", TrialProgress(8, 5, 0, 3, 40, 8, 4.0))
    with console.capture() as capture:
        console.print(display._render())
    lines = Text.from_ansi(capture.get()).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert re.search(r"^▸ transformers smollm2: .* 5/8, 10\.0 tok/s +0 s", lines[0])
    assert lines[1].rstrip() == "1 failure; best so far at mixed batch 8: vllm 87.3 tokens/s"
    assert re.search(r"^trials .* 2/27, 1 to retry, 3 min left", lines[2])


# The time that is left -----------------------------------------------------------------------------------------------


def launch(name: str, trials: int) -> Any:
    parts = [
        SimpleNamespace(trial_id=f"{name}{index}", describe_point=lambda index=index: f"qa batch {index}")
        for index in range(trials)
    ]
    return SimpleNamespace(launch_key=name, deployment_id=name, trials=parts, searched={})


def forecast_of(launches: list[Any], **known: Any) -> tuple[Forecast, list[LaunchState]]:
    needs = [Need(each.launch_key, 0, None, 60.0) for each in launches]
    expected = Expected(needs, known.get("trials", {}), known.get("starts", {}), 0, 0)
    return Forecast(expected), [LaunchState(each) for each in launches]


def row(seconds: float, outcome: str = "ok") -> dict[str, Any]:
    return {"outcome": outcome, "wall_seconds": seconds, "startup_seconds": 20.0}


def test_unavailable_trials_are_no_pace():
    """The defect: 12 of 36 trials unavailable in 0 s made of a rest of 359 s one of 9 s."""
    forecast, states = forecast_of([launch("a", 4), launch("b", 4)])
    for trial in states[0].launch.trials[:3]:
        forecast.finished(states[0].launch, trial, {"outcome": "unavailable", "wall_seconds": None})
    assert forecast.update(states, NODES[:1], {}, {}) is None
    forecast.finished(states[0].launch, states[0].launch.trials[3], row(10.0))
    assert forecast.update(states, NODES[:1], {}, {}) == pytest.approx(2 * (20 + 4 * 10))
    assert forecast.update(states, NODES, {}, {}) == pytest.approx(20 + 4 * 10), "two nodes work at once"


def test_what_this_run_took_counts_before_what_earlier_ones_did():
    forecast, states = forecast_of([launch("a", 2)], trials={"a0": 100.0, "a1": 50.0}, starts={"a": 30.0})
    assert forecast.update(states, NODES, {}, {}) == pytest.approx(180)
    state = states[0]
    state.submitted("1")
    state.started(Placed("n1", "10.0.0.1"))
    assert forecast.update(states, NODES, {"a": 12.0}, {}) == pytest.approx(168)
    assert forecast.update(states, NODES, {"a": 900.0}, {}) == pytest.approx(150), "a launch that is late is over soon"
    progress = TrialProgress(10, 10, 0, 1, 100, 40, 20.0)
    assert forecast.update(states, NODES, {"a": 20.0}, {"a": progress}) == pytest.approx(60 + 50)
    forecast.finished(state.launch, state.launch.trials[0], row(80.0))
    state.finish("a0", Outcome.OK)
    assert forecast.update(states, NODES, {"a": 0.0}, {}) == pytest.approx(50)
    state.finish("a1", Outcome.OK)
    assert forecast.update(states, NODES, {}, {}) == 0


def test_what_has_not_run_takes_as_long_as_its_engines_trials_or_as_all():
    forecast, states = forecast_of([launch("a", 2), launch("b", 2), launch("c", 1)])
    for state, seconds in zip(states[:2], (10.0, 40.0), strict=True):
        forecast.finished(state.launch, state.launch.trials[0], row(seconds))
        state.finish(state.launch.trials[0].trial_id, Outcome.OK)
    assert forecast.update(states[1:2], NODES, {}, {}) == pytest.approx(20 + 40)
    assert forecast.update(states[2:], NODES, {}, {}) == pytest.approx(20 + 25)


def test_an_estimate_for_a_large_plan_does_not_keep_nodes_waiting():
    """The defect: 10,000 trials, of which a third had ended, held the driver up for 4.6 s; now 0.02 s."""
    forecast, states = forecast_of([launch(str(number), 10) for number in range(1000)])
    for state in states[:333]:
        for trial in state.launch.trials:
            forecast.finished(state.launch, trial, row(10.0))
            state.finish(trial.trial_id, Outcome.OK)
    begin = time.process_time()
    forecast.update(states[333:], NODES, {}, {})
    assert time.process_time() - begin < 1
