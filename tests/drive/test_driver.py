"""The driver's decisions, with an executor that does as it is told: who runs, who is retried, what is committed."""

import errno
import json
import time
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from backends.declarations import Traits
from sweep.base.config import ISSUE_AGAIN, Halted
from sweep.base.exits import Blame, Exit
from sweep.cli.run import exit_status
from sweep.disk.ledger import Ledger, Misplaced
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import row_writer
from sweep.drive.driver import Driver
from sweep.drive.launch_state import Stage
from sweep.drive.monitor.progress import Display
from sweep.node.events import Completed, Finished, Lost, NotStarted, Placed
from sweep.plan.estimate import History
from sweep.plan.packing import Node
from sweep.plan.pending import find_pending
from sweep.plan.plan import Deployment, Plan, Trial
from tests.support.settings import run_settings

QUIET = Console(quiet=True)
SHORT_WAIT = {"name": "ray", "kind": "ray", "wait_for_nodes": 0.2}


class Load(SimpleNamespace):
    duration = None

    @property
    def size(self):
        return self.batch_size

    def columns(self):
        return {"batch_size": self.batch_size, "concurrency": None, "rate": None}

    def notes(self):
        return []

    def describe(self):
        return f"batches of {self.batch_size}"

    def count(self, num_requests):
        return num_requests


def no_notes(*arguments):
    return []


def trial(trial_id):
    workload = SimpleNamespace(name="qa", num_requests=1, notes=no_notes, replays=False)
    return Trial(trial_id, workload, Load(name="batch", batch_size=1), 0, 1, {}, {})


def deployment(name, trials, unavailable=None):
    more = {"api": "completions", "gpu_keys": (), "price_per_million_tokens": None}
    backend = SimpleNamespace(name=name, launches=True, traits=Traits(), url=None, replicas=1, **more)
    model = SimpleNamespace(name="tiny")
    return Deployment(name, backend, model, 0, None, [trial(t) for t in trials], unavailable)


def make_plan(*deployments, **settings):
    settings = {"retry": "next_run", **settings}  # tests of the tail set it
    return Plan(run_settings(**settings), list(deployments), [], [])


class Scripted:
    """Answers each submitted deployment with what the script says: outcomes in order, or a Lost."""

    def __init__(self, script, nodes=1):
        self.schedulable_nodes = [Node(f"n{i}", 0, 8, (), f"n{i}") for i in range(nodes)]
        self.script = {name: deque(runs) for name, runs in script.items()}
        self.pending = deque()
        self.submitted = []
        self.in_flight_max = 0

    def clean_up(self, marker):
        self.cleaned = marker

    def has_nodes_besides(self, node_ids):
        return bool({node.node_id for node in self.schedulable_nodes} - node_ids)

    def export_metrics(self, row):
        pass

    def request_capacity(self, needs, left):
        self.requested = needs

    def drain(self):
        pass

    def submit(self, work, node_id, partners=()):
        self.pending.append(work)
        self.submitted.append((work.deployment.deployment_id, [t.trial_id for t in work.deployment.trials]))
        self.in_flight_max = max(self.in_flight_max, len(self.pending))

    def events(self):
        work = self.pending.popleft()
        outcomes = self.script[work.deployment.deployment_id].popleft()
        for trial, outcome in zip(work.deployment.trials, outcomes, strict=False):
            if isinstance(outcome, Lost | NotStarted):
                yield work, outcome
                return
            row = {"trial_id": trial.trial_id, "deployment_id": work.deployment.deployment_id, "attempt": work.attempt}
            yield work, Finished(trial, row | {"outcome": outcome})
        yield work, Completed()

    def cancel(self):
        self.pending.clear()


def drive(plan, tmp_path, executor, race=None):
    paths = RunPaths(tmp_path)
    ledger = Ledger(paths.ledger)
    executor.driver = new_driver(plan, paths, ledger, executor, race)
    executor.result = executor.driver.run()
    return paths, ledger


def new_driver(plan, paths, ledger, executor, race=None):
    pending = find_pending(plan, ledger, History([]), executor.schedulable_nodes)
    return Driver(plan, pending, paths, ledger, executor, Display(len(plan.trials), 0, None, QUIET), None, race)


class Metered(Scripted):
    """Nodes with GPUs, of which a trial takes a while; keeps what the display shows while it runs."""

    def __init__(self, script, seconds):
        super().__init__(script)
        self.schedulable_nodes = [Node("n0", 4, 8, (), "n0"), Node("n1", 4, 8, (), "n1")]
        self.seconds = seconds
        self.usages = []

    def events(self):
        time.sleep(self.seconds)
        self.driver._meter()
        self.usages.append((self.driver.display.usage, self.driver.metered))
        yield from super().events()


def test_gpus_busy_and_money_spent_are_of_the_launches_that_run(tmp_path):
    """Two launches at once of two GPUs each, at $36 per GPU and hour: $0.04 a second while both run."""
    engines = [replace(deployment(name, [f"{name}1"]), gpu_count=2) for name in ("a", "b")]
    hardware = {"name": "cloud", "platform": "cuda", "price_per_hour": 36.0}
    executor, begin = Metered({"a": [["ok"]], "b": [["ok"]]}, seconds=0.2), time.monotonic()
    drive(make_plan(*engines, hardware=hardware), tmp_path, executor)
    (both, at), (one, later) = executor.usages
    assert (both.busy, both.capacity, both.unit) == (4, 8, "GPU")
    assert (one.busy, one.capacity) == (2, 8)
    assert 0.2 * 0.04 <= both.spent <= (at - begin) * 0.04
    assert 0.2 * 0.02 <= one.spent - both.spent <= (later - at) * 0.04


def outcomes(ledger):
    return {trial_id: row["outcome"] for trial_id, row in ledger.rows.items()}


def test_nothing_is_committed_once_the_folder_is_another_drivers(tmp_path):
    def taken() -> None:
        raise Misplaced("another driver has taken over")

    plan = make_plan(deployment("a", ["1"]))
    paths = RunPaths(tmp_path)
    ledger = Ledger(paths.ledger)
    driver = new_driver(plan, paths, ledger, Scripted({"a": [["ok"]]}))
    ledger.guard = taken
    with pytest.raises(Misplaced):
        driver.run()
    assert not Ledger(paths.ledger, write=False).rows
    assert not paths.trials.exists()


def test_every_trial_gets_its_row_in_the_order_of_the_plan(tmp_path):
    plan = make_plan(deployment("a", ["1", "2"]), deployment("b", ["3"]))
    first = Scripted({"b": [["ok"]], "a": [["ok", "oom_run"]]})
    paths, ledger = drive(plan, tmp_path, first)
    assert first.result.table_changed
    assert [row["trial_id"] for row in read_trials(paths.trials)] == ["1", "2", "3"]
    assert exit_status(plan, ledger, interrupted=False) == 0
    again = Scripted({})
    drive(plan, tmp_path, again)
    assert not again.result.table_changed, "nothing was left to do"


def test_a_loss_runs_again_what_has_no_row_and_only_that(tmp_path):
    executor = Scripted({"a": [["ok", Lost("node died")], ["invalid"]]})
    plan = make_plan(deployment("a", ["1", "2"]))
    _, ledger = drive(plan, tmp_path, executor)
    assert executor.submitted == [("a", ["1", "2"]), ("a", ["2"])]
    assert outcomes(ledger) == {"1": "ok", "2": "invalid"}
    assert ledger.rows["2"]["attempt"] == "2"
    assert exit_status(plan, ledger, interrupted=False) == 1


@pytest.mark.parametrize("first", [Lost("node died"), "invalid"])
def test_trials_of_a_launch_that_is_given_up_count_as_done(tmp_path, first):
    """None of them is retried any more, whether it failed before the launch was lost again and again, or with it."""
    executor = Scripted({"a": [[first, Lost("node died")]] + [[Lost("node died")]] * 20})
    _, ledger = drive(make_plan(deployment("a", ["1", "2"]), retry="in_run"), tmp_path, executor)
    assert executor.driver.states["a"].stage is Stage.GIVEN_UP
    assert set(outcomes(ledger).values()) == {"invalid"}
    assert executor.driver.display.counts() == "2/2"


def test_what_a_loss_quotes_of_secrets_is_in_no_file(tmp_path):
    url = "http://me:s3cr3t-passw0rd@proxy"
    executor = Scripted({"a": [[Lost(f"ProxyError: {url}", f"Traceback: {url}")]] * 2 + [["ok"]]})
    drive(make_plan(deployment("a", ["1"])), tmp_path, executor)
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".jsonl", ".json", ".txt")}
    assert {name for name, text in texts.items() if "***@proxy" in text} >= {"ledger.jsonl", "task-error.txt"}
    assert not {name for name, text in texts.items() if "s3cr3t" in text}


def replicated(name, sizes, replicates=3):
    """A deployment with a trial for each batch size and replicate: `a8r0`."""
    trials = [
        replace(trial(f"{name}{size}r{index}"), replicate=index, load=Load(name="batch", batch_size=size, size=size))
        for index in range(replicates)
        for size in sizes
    ]
    return replace(deployment(name, []), trials=trials)


def test_each_replicate_is_a_launch_and_blocks_hold_each_deployment_once(tmp_path):
    plan = make_plan(replicated("a", [1, 2]), replicated("b", [1, 2]), replicated("c", [1, 2]))
    executor = ByNode(lambda deployment, node: "ok", nodes=1)
    _, ledger = drive(plan, tmp_path, executor)
    started = [name for name, _ in executor.placed]
    assert [sorted(started[i : i + 3]) for i in (0, 3, 6)] == [["a", "b", "c"]] * 3
    assert {ledger.rows[f"a2r{index}"]["attempt"] for index in range(3)} == {"1", "2", "3"}, "each its own attempt"
    assert len(outcomes(ledger)) == 18


def test_a_launch_that_is_lost_runs_again_and_no_other(tmp_path):
    executor = Scripted({"a": [["ok"], [Lost("node died")], ["ok"], ["ok"]]})
    plan = make_plan(replicated("a", [1]), relaunch="per_replicate")
    _, ledger = drive(plan, tmp_path, executor)
    (lost,) = {trials[0] for _, trials in executor.submitted if sum(trials == t for _, t in executor.submitted) == 2}
    assert len(executor.submitted) == 4
    assert outcomes(ledger) == dict.fromkeys(("a1r0", "a1r1", "a1r2"), "ok")
    assert ledger.rows[lost]["attempt"] == "3"


@pytest.mark.parametrize("outcome", ["launch_failed", "launch_timeout", "oom_load"])
def test_a_deployment_that_cannot_be_launched_is_not_launched_for_each_replicate(tmp_path, outcome):
    executor = ByNode(lambda deployment, node: outcome if deployment == "a" else "ok", nodes=1)
    _, ledger = drive(make_plan(replicated("a", [1, 2]), replicated("b", [1])), tmp_path, executor)
    assert [name for name, _ in executor.placed].count("a") == 1
    assert {t: o for t, o in outcomes(ledger).items() if t[0] == "a"} == dict.fromkeys(
        [f"a{size}r{index}" for index in range(3) for size in (1, 2)], outcome
    )
    assert {row["attempt"] for t, row in ledger.rows.items() if t[0] == "a"} == {"1"}, "whose log says why"
    assert outcomes(ledger)["b1r2"] == "ok"
    assert executor.result.unfinished == 0
    assert executor.driver.display.done == 9


def test_launches_given_up_for_a_bad_node_are_retried_elsewhere(tmp_path):
    """Two deployments fail at launch on the first node: what was not even tried runs on the other."""
    executor = ByNode(lambda deployment, node: "launch_failed" if node == "n0" else "ok", nodes=2)
    _, ledger = drive(make_plan(*(replicated(name, [1]) for name in "abcdef")), tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"ok"}
    assert executor.driver.display.done == 18


def test_larger_batches_are_not_tried_in_later_launches_either(tmp_path):
    plan = make_plan(replicated("a", [8, 4, 16], 2), relaunch="per_replicate")
    executor = Scripted({"a": [["oom_run", "ok", "censored"], ["oom_run", "ok"]]})
    _, ledger = drive(plan, tmp_path, executor)
    first, second = executor.submitted
    assert (len(first[1]), len(second[1])) == (3, 2)
    (censored,) = {trial.trial_id for trial in plan.trials} - set(first[1]) - set(second[1])
    assert censored.startswith("a16")
    assert ledger.rows[censored]["outcome"] == "censored"
    assert "batches of 8 already ran out of memory" in ledger.rows[censored]["reason"]


def test_what_cannot_run_here_has_rows_without_being_submitted(tmp_path):
    executor = Scripted({"a": [["ok"]]})
    plan = make_plan(deployment("gpu", ["1"], unavailable="no docker: install it"), deployment("a", ["2"]))
    _, ledger = drive(plan, tmp_path, executor)
    assert executor.submitted == [("a", ["2"])]
    assert ledger.rows["1"]["outcome"] == "unavailable"
    assert ledger.rows["1"]["reason"] == "no docker: install it"
    assert exit_status(plan, ledger, interrupted=False) == 0


@pytest.mark.slow
def test_a_deadline_that_leaves_trials_is_no_interruption(tmp_path):
    """Nothing more is started once it has come; what cannot run here at all is not among what is left."""
    soon = (datetime.now() + timedelta(seconds=1)).isoformat()
    plan = make_plan(
        deployment("gpu", ["1"], unavailable="no docker"), deployment("a", ["2"]), deployment("b", ["3"]), deadline=soon
    )
    executor = UntilLate({"a": [["ok"]]})
    _, ledger = drive(plan, tmp_path, executor)
    assert outcomes(ledger) == {"1": "unavailable", "2": "ok"}
    result = executor.result
    assert (result.interrupted, result.unfinished) == (False, 1)
    assert exit_status(plan, ledger, result.interrupted, result.unfinished) == ISSUE_AGAIN


@pytest.mark.slow
def test_a_time_of_day_that_has_come_is_not_the_next_days_for_a_while(tmp_path, monkeypatch):
    """A loop that issues the command until it ends well must end in the morning."""
    plan = make_plan(deployment("a", ["1"]), deployment("b", ["2"]), deadline="08:00")
    monkeypatch.setattr("sweep.drive.stop_control.next_time", lambda text, now: now + timedelta(seconds=1))
    drive(plan, tmp_path, UntilLate({"a": [["ok"]]}))
    monkeypatch.setattr("sweep.drive.stop_control.next_time", lambda text, now: now + timedelta(days=1))
    for _ in range(2):
        again = Scripted({})
        drive(plan, tmp_path, again)
        assert again.submitted == []
    paths = RunPaths(tmp_path)
    words = json.loads(paths.status.read_text())
    words["deadline"]["at"] -= 13 * 3600
    words.pop("crc")
    paths.status.write_text(json.dumps(words))
    _, ledger = drive(plan, tmp_path, Scripted({"b": [["ok"]]}))
    assert outcomes(ledger) == {"1": "ok", "2": "ok"}, "in the evening it is the next morning's"


class UntilLate(Scripted):
    """Its first deployment lasts until the deadline has come."""

    def events(self):
        time.sleep(1.1)
        yield from super().events()


@pytest.mark.parametrize(("interrupts", "calls", "trials"), [(1, ["drain"], {"1": "ok"}), (2, ["drain", "cancel"], {})])
def test_an_interrupt_lets_running_trials_end_and_a_second_does_not(tmp_path, interrupts, calls, trials):
    class Interrupted(Scripted):
        def events(self):
            if not executor.driver.stop.interrupts:
                executor.driver.stop.interrupts = interrupts
            else:
                yield from super().events()

        def drain(self):
            called.append("drain")

        def cancel(self):
            called.append("cancel")

    called = []
    executor = Interrupted({"a": [["ok"]]})
    plan = make_plan(deployment("a", ["1"]), deployment("b", ["2"]))
    _, ledger = drive(plan, tmp_path, executor)
    assert called == calls
    assert outcomes(ledger) == trials
    assert executor.submitted == [("a", ["1"])], "nothing else is started"
    assert executor.result[:2] == (True, 2 - len(trials))
    assert exit_status(plan, ledger, *executor.result[:2]) == 130


def test_a_loss_while_the_run_drains_is_left_for_the_next_run(tmp_path):
    class Interrupted(Scripted):
        def events(self):
            executor.driver.stop.interrupts = 1
            yield from super().events()

    executor = Interrupted({"a": [[Lost("cancelled")]]})
    drive(make_plan(deployment("a", ["1"])), tmp_path, executor)
    assert executor.driver.states["a"].stage is Stage.POSTPONED
    assert executor.result.unfinished == 1


def test_what_is_expected_to_end_after_the_deadline_is_not_started(tmp_path):
    soon = (datetime.now() + timedelta(seconds=30)).isoformat()
    plan = make_plan(deployment("long", ["1", "2"]), deployment("short", ["3", "4"]), deadline=soon)
    executor, ledger = Slow({"short": [["ok", "ok"]]}), Ledger(tmp_path / "ledger.jsonl")
    driver = new_driver(plan, RunPaths(tmp_path), ledger, executor)
    driver.expected.launches.update(long=20.0, short=20.0)
    driver.expected.trials.update({"1": 15.0, "2": 60.0, "3": 5.0, "4": 60.0})
    assert driver.run().unfinished == 2
    assert outcomes(ledger) == {"3": "ok", "4": "ok"}


def test_a_trial_that_awaits_its_second_try_at_the_deadline_is_not_left(tmp_path):
    """It has a row of this run: what is left are those that have none."""

    class Late(ByNode):
        def events(self):
            if not driver.nodes.quarantined:
                yield from super().events()
            else:  # a node was quarantined: no retry ends in time
                driver.stop.deadline = time.time() - 1

    paths, ledger = RunPaths(tmp_path), Ledger(RunPaths(tmp_path).ledger)
    executor = Late(lambda deployment, node: "launch_failed" if node == "n0" else "ok", nodes=2)
    plan = make_plan(*(deployment(name, [name]) for name in "abcdef"))
    driver = new_driver(plan, paths, ledger, executor)
    result = driver.run()
    failed = {name for name, outcome in outcomes(ledger).items() if outcome == "launch_failed"}
    assert len(failed) == 2, "neither had its second try"
    assert failed == set().union(*(state.reopened for state in driver.states.values()))
    assert result.unfinished == 6 - len(ledger.rows) > 0


def test_trials_parquet_holds_the_present_plan_first(tmp_path):
    drive(make_plan(deployment("a", ["1", "2"])), tmp_path, Scripted({"a": [["ok", "ok"]]}))
    paths, ledger = drive(make_plan(deployment("a", ["2", "3"])), tmp_path, Scripted({"a": [["ok"]]}))
    rows = [(row["trial_id"], row["in_plan"]) for row in read_trials(paths.trials)]
    assert rows == [("2", True), ("3", True), ("1", False)]
    assert set(ledger.rows) == {"1", "2", "3"}


def test_rows_are_recomputed_when_nothing_runs_any_more(tmp_path, monkeypatch):
    """It may take minutes, in which no node would get its next deployment."""
    plan = make_plan(deployment("a", ["1"]), deployment("b", ["2", "3"]))
    executor, rows = Scripted({"a": [["ok"]], "b": [["ok", "ok"]]}), []
    monkeypatch.setattr(row_writer, "WRITE_INTERVAL", -1.0)
    monkeypatch.setattr(row_writer, "WRITE_SHARE", float("inf"))
    monkeypatch.setattr(row_writer, "recomputed_row", lambda *_: rows.append(len(executor.driver.ledger.rows)))
    paths, _ = drive(plan, tmp_path, executor)
    assert rows == [3, 3, 3]
    assert len(read_trials(paths.trials)) == 3


def test_no_more_is_in_flight_than_the_cluster_has_room_for(tmp_path):
    executor = Scripted({name: [["ok"]] for name in "abcd"}, nodes=2)
    drive(make_plan(*(deployment(name, [name]) for name in "abcd")), tmp_path, executor)
    assert executor.in_flight_max == 2


def test_what_no_node_can_hold_is_given_up_after_the_wait(tmp_path):
    """It waits in case a node comes; then it is `unavailable`, with the reason, and the rest has run meanwhile."""
    wide = replace(deployment("wide", ["1"]), gpu_count=8)
    executor = Slow({"a": [["ok"]]})
    _, ledger = drive(make_plan(wide, deployment("a", ["2"]), cluster=SHORT_WAIT), tmp_path, executor)
    assert outcomes(ledger) == {"1": "unavailable", "2": "ok"}
    assert "no node has more than 0" in ledger.rows["1"]["reason"]
    assert [need.key for need in executor.first_request] == ["wide"], "an autoscaler was told"


class Slow(Scripted):
    """Has nothing to say now and then, as a cluster does that waits for nodes."""

    first_request = ()

    def events(self):
        self.first_request = self.first_request or self.requested
        if self.pending:
            yield from super().events()
        else:
            time.sleep(0.05)


class ByNode(Scripted):
    """Every trial's row is what `outcome(deployment, node)` says: an outcome, perhaps with what is known of it."""

    def __init__(self, outcome, nodes, gpus=0):
        super().__init__({}, nodes)
        self.schedulable_nodes = [node._replace(gpus=gpus) for node in self.schedulable_nodes]
        self.outcome, self.placed, self.started = outcome, [], set()

    def submit(self, work, node_id, partners=()):
        self.pending.append((work, node_id))
        self.placed.append((work.deployment.deployment_id, node_id))

    def start(self, work, node_id):
        if work.marker not in self.started:
            self.started.add(work.marker)
            yield work, Placed(node_id, f"host of {node_id}")

    def events(self):
        work, node_id = self.pending.popleft()
        yield from self.start(work, node_id)
        for trial in work.deployment.trials:
            outcome = self.outcome(work.deployment.deployment_id, node_id)
            if isinstance(outcome, Lost):
                yield work, outcome
                return
            row = {"trial_id": trial.trial_id, "deployment_id": work.deployment.deployment_id, "attempt": work.attempt}
            yield work, Finished(trial, row | (outcome if isinstance(outcome, dict) else {"outcome": outcome}))
        yield work, Completed()


def test_a_node_that_an_engine_calls_broken_is_quarantined_at_once(tmp_path):
    broken = {"exit": Exit(status=1, words="uncorrectable ECC error", blames=Blame.NODE).stored()}
    executor = ByNode(lambda name, node: {"outcome": "launch_failed", **broken} if node == "n0" else "ok", nodes=2)
    _, ledger = drive(make_plan(*(deployment(name, [name]) for name in "abcd")), tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"ok"}
    assert [node for _, node in executor.placed].count("n0") <= 2, "the one that failed, and what was on its way"


def test_the_only_node_is_never_quarantined(tmp_path):
    executor = ByNode(lambda deployment, node: "launch_failed", nodes=1)
    _, ledger = drive(make_plan(*(deployment(name, [name]) for name in "abc")), tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"launch_failed"}
    assert len(executor.placed) == 3


def test_losses_are_not_blamed_on_a_node(tmp_path):
    """A worker that dies, or a job of another that kills it, says nothing about the node."""
    lost = []

    def outcome(deployment, node):
        if deployment in lost:
            return "ok"
        lost.append(deployment)
        return Lost("worker died")

    executor = ByNode(outcome, nodes=2, gpus=2)
    plan = make_plan(*(replace(deployment(name, [name]), gpu_count=1) for name in "abcd"))
    _, ledger = drive(plan, tmp_path, executor)
    assert set(outcomes(ledger).values()) == {"ok"}
    assert not executor.driver.nodes.failures


def test_what_still_runs_on_a_node_when_it_is_quarantined_is_moved_at_its_end(tmp_path):
    """Of two trials on the bad node the first has failed when others make the node bad: both count elsewhere."""

    class Slowest(ByNode):
        """The widest deployment ends last, after the node was quarantined."""

        def events(self):
            wide = [entry for entry in self.pending if entry[0].deployment.deployment_id == "wide"]
            others = [entry for entry in self.pending if entry[0].deployment.deployment_id != "wide"]
            if wide and others and not driver.nodes.quarantined:
                work, node_id = wide[0]
                if not driver.states["wide"].outcomes:
                    row = {"trial_id": "1", "deployment_id": "wide", "attempt": work.attempt}
                    outcome = self.outcome("wide", node_id)
                    yield from self.start(work, node_id)
                    yield work, Finished(work.deployment.trials[0], row | {"outcome": outcome})
            self.pending = deque([*others, *wide])
            yield from super().events()

    plan = make_plan(
        replace(deployment("wide", ["1", "2"]), gpu_count=2),
        *(replace(deployment(name, [name]), gpu_count=1) for name in "abcd"),
    )
    paths, ledger = RunPaths(tmp_path), Ledger(RunPaths(tmp_path).ledger)
    executor = Slowest(lambda deployment, node: "engine_crashed" if node == "n0" else "ok", nodes=2, gpus=4)
    driver = new_driver(plan, paths, ledger, executor)
    driver.run()
    assert driver.nodes.quarantined == {"n0"}
    assert set(outcomes(ledger).values()) == {"ok"}
    assert executor.placed.count(("wide", "n0")) == 1
    assert ("wide", "n1") in executor.placed


class Impatient(ByNode):
    """Has nothing to say while nothing runs, and not forever."""

    def events(self):
        self.began = getattr(self, "began", None) or time.monotonic()
        assert time.monotonic() < self.began + 10, "it waits forever"
        if self.pending:
            yield from super().events()


def test_a_quarantined_node_gets_what_no_other_can_hold_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("sweep.drive.policy.QUARANTINE_WAIT", 0.2)
    executor = Impatient(lambda deployment, node: "launch_failed" if node == "n0" else "ok", nodes=2)
    executor.schedulable_nodes = [Node("n0", 4, 8, (), "n0"), Node("n1", 1, 8, (), "n1")]
    wide = [replace(deployment(name, [name]), gpu_count=4) for name in "abc"]
    narrow = [replace(deployment(name, [name]), gpu_count=1) for name in "uvwxyz"]
    cluster = SHORT_WAIT | {"wait_for_nodes": 5}
    _, ledger = drive(make_plan(*wide, *narrow, cluster=cluster), tmp_path, executor)
    assert executor.driver.nodes.quarantined == {"n0"}
    assert outcomes(ledger) == dict.fromkeys("abc", "launch_failed") | dict.fromkeys("uvwxyz", "ok")
    assert {name for name, node in executor.placed if node == "n0"} == set("abc")


def test_a_quarantined_node_takes_all_when_it_is_the_only_one_left(tmp_path):
    """The others died: what waits would wait forever."""

    class Dying(Impatient):
        def submit(self, work, node_id, partners=()):
            super().submit(work, node_id)
            if self.driver.nodes.quarantined:
                self.schedulable_nodes = self.schedulable_nodes[:1]

    executor = Dying(lambda deployment, node: "launch_failed" if node == "n0" else "ok", nodes=2)
    _, ledger = drive(make_plan(*(deployment(name, [name]) for name in "abcdef")), tmp_path, executor)
    assert len(ledger.rows) == 6
    assert executor.placed[-1][1] == "n0"


def test_a_trial_that_kills_its_worker_each_time_does_not_take_the_others_with_it(tmp_path):
    class Poisoned(Scripted):
        def events(self):
            work = self.pending.popleft()
            yield work, Placed("n0", "n0")
            for trial in work.deployment.trials:
                if trial.trial_id == "poison":
                    yield work, Lost("worker died")
                    return
                row = {"trial_id": trial.trial_id, "deployment_id": "a", "attempt": work.attempt, "outcome": "ok"}
                yield work, Finished(trial, row)
            yield work, Completed()

    plan = make_plan(deployment("a", ["poison", "2", "3"]))
    _, ledger = drive(plan, tmp_path, Poisoned({}))
    assert outcomes(ledger) == {"2": "ok", "3": "ok", "poison": "invalid"}


def test_a_node_that_other_jobs_keep_busy_costs_no_loss(tmp_path):
    """It does not start the deployment, again and again; in the end it does."""
    executor = Scripted({"a": [[NotStarted("n0 is busy")]] * 30 + [["ok"]]})
    _, ledger = drive(make_plan(deployment("a", ["1"])), tmp_path, executor)
    assert len(executor.submitted) == 31
    assert outcomes(ledger) == {"1": "ok"}


def test_unavailable_does_not_replace_what_was_tried_and_failed(tmp_path):
    drive(make_plan(deployment("a", ["1"])), tmp_path, Scripted({"a": [["engine_crashed"]]}))
    plan = make_plan(deployment("a", ["1", "2"], unavailable="no GPU here"))
    paths, ledger = drive(plan, tmp_path, Scripted({}))
    assert outcomes(ledger) == {"1": "engine_crashed", "2": "unavailable"}
    assert [row["outcome"] for row in read_trials(paths.trials)] == ["engine_crashed", "unavailable"]


def test_a_full_disk_ends_the_sweep_in_plain_words_and_costs_no_row(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    paths, _ = drive(make_plan(deployment("a", ["1"])), tmp_path, Scripted({"a": [["ok"]]}))
    monkeypatch.setattr("sweep.disk.ledger.os.fsync", full)
    with pytest.raises(Halted, match="No space left on device"):
        drive(make_plan(deployment("b", ["2"])), tmp_path, Scripted({"b": [["ok"]]}))
    monkeypatch.undo()
    assert set(Ledger(paths.ledger).rows) == {"1"}
