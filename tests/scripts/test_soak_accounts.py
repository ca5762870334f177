"""The accounts of the soak can fail: a doubled, a lost and a left-over trial are counted, and idle time is."""

import json
from types import SimpleNamespace

import pytest

from tests.cluster import soak
from tests.cluster.soak import LedgerWatch, Soak


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=lambda: time.now, sleep=lambda seconds: None))
    return time


@pytest.fixture
def storm(tmp_path, clock):
    """A storm of two nodes and two trials, of which nothing has happened yet."""
    (tmp_path / "ledger.jsonl").touch()
    sweep = SimpleNamespace(out=tmp_path, running=lambda: False, process=None, check_rows=lambda: None)
    sweep.committed = lambda: [{"trial_id": trial, "outcome": outcome} for _, _, trial, outcome in storm.watch.rows]
    on = SimpleNamespace(sweep=sweep, size=2, leftovers=list)
    storm = Soak(on, seed=1, trials=2, every=5.0, log=tmp_path / "storm.jsonl")
    clock.now += 1
    return storm


def append(storm, event, trial=None, outcome="ok"):
    entry = {"deployment_id": "d", "attempt": "1", "node": "n", "end": "done"}
    row = entry | {"trial_id": trial, "outcome": outcome}
    with storm.watch.path.open("a") as file:
        file.write(json.dumps({"event": event, **({"row": row} if trial else entry)}) + "\n")
    storm.watch.look()


def test_a_good_end(storm, clock):
    append(storm, "attempt_placed")
    for trial, outcome in (("a", "ok"), ("b", "client_limited")):
        clock.now += 2
        append(storm, "trial", trial, outcome)
    clock.now += 4
    end = storm._end(commands=1, complete=True)
    assert (end.measured, end.lost, end.doubled, end.leaked, end.seconds) == (2, 0, 0, [], 9)
    assert (end.best_seconds, end.idle, end.best_idle) == (4, 1 - 4 / 18, 1 - 4 / 8)


def test_a_trial_without_a_good_row_is_lost(storm):
    append(storm, "trial", "a")
    append(storm, "trial", "b", "hung")
    assert storm._end(commands=1, complete=True).lost == 1


def test_the_last_row_of_a_trial_counts(storm):
    append(storm, "trial", "a")
    append(storm, "trial", "b", "client_limited")
    assert storm._measured()
    append(storm, "trial", "b", "engine_crashed")
    assert not storm._measured(), "the command is to be issued again"


@pytest.mark.parametrize("first", ["ok", "client_limited"])
def test_a_trial_with_two_good_rows_is_doubled(storm, first):
    append(storm, "trial", "a", first)
    append(storm, "trial", "a")
    assert storm.watch.doubled() == (first == "ok")


@pytest.mark.slow
def test_what_is_left_is_named(storm, monkeypatch):
    monkeypatch.setattr(soak, "LEFT_WITHIN", 0.1)
    storm.on.leftovers = lambda: ["process 7"]
    assert storm._end(commands=1, complete=False).leaked == ["process 7"]


def test_a_ledger_that_was_written_anew_repeats_nothing(storm):
    append(storm, "trial", "a")
    content = storm.watch.path.read_text()
    storm.watch.path.rename(storm.watch.path.with_name("old"))
    storm.watch.path.write_text(content)
    append(storm, "trial", "b")
    assert [trial for _, _, trial, _ in storm.watch.rows] == ["a", "b"]
    assert storm.watch.doubled() == 0


def test_a_last_line_that_is_not_complete_is_read_later(tmp_path):
    watch = LedgerWatch(tmp_path / "ledger.jsonl", lambda event, **detail: None)
    line = json.dumps({"event": "trial", "row": {"attempt": "1", "trial_id": "a", "outcome": "ok"}}) + "\n"
    for content in (line[:20], line):
        watch.path.write_text(content)
        watch.look()
    assert len(watch.rows) == 1


@pytest.mark.parametrize(("begin", "end"), [(0, 13), (6, 18), (9, 19), (20, 35)])
def test_a_launch_stands_still_while_its_node_is_away(begin, end):
    assert soak._ends_at(begin, 10, [(5, 8), (25, 30)]) == end
