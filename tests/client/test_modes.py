"""Modes: each says what is sent when, and may be split; a new one is one class, and a load that builds it."""

import pickle
from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweep.base.records import Request
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop, Lockstep, Mode, OpenLoop
from sweep.client.wire import Target
from sweep.inputs.load import Load
from tests.support.simulated_engine import simulated

TURNS = 3


# A new mode, whole ---------------------------------------------------------------------------------------------------


@dataclass
class SessionTurns(Mode):
    """Sessions of TURNS requests that stand in a row: each is sent `gap` s after the answer to the one before it."""

    one_process = True

    starts: "array[float]"  # s from the start, one a session
    gap: float
    senders: int = field(default=0, init=False)  # state of a phase

    def most_in_flight(self) -> int:
        return len(self.starts)

    def begin(self, sender: Any) -> None:
        self.senders += 1
        for session, offset in enumerate(self.starts):
            sender.at(sender.start + int(offset * 1e9), session * TURNS)

    def due(self, sender: Any, instant: int, index: int) -> None:
        assert self.senders == 1, "every phase has a copy of its own"
        sender.send(index, instant)

    def ended(self, sender: Any, dispatch: Any, instant: int) -> None:
        if (dispatch.index + 1) % TURNS:
            sender.at(instant + int(self.gap * 1e9), dispatch.index + 1)


class Sessions(Load):
    """The load from which a plan builds the mode."""

    name: str = "sessions"
    sessions: int
    gap: float

    def mode(self, count: int, seed: int, starts: Any = None) -> Mode:
        return SessionTurns(array("d", [0.02 * session for session in range(self.sessions)]), self.gap)


@pytest.mark.slow
def test_a_new_mode_is_one_class_and_a_load(tmp_path: Path) -> None:
    requests = [Request(f"r{index}", "x", 4) for index in range(2 * TURNS)]
    warmup = [Request(f"w{index}", "x", 1, phase="warmup") for index in range(2 * TURNS)]
    mode = Sessions(sessions=2, gap=0.1).mode(len(requests), seed=1)
    with simulated() as (url, _):
        measurement = measure(Target(url, "m"), warmup, requests, mode, folder=tmp_path, processes=2)
    assert measurement.report.processes == 1
    records = list(measurement.records)[len(warmup) :]
    assert [record.error for record in measurement.records] == [None] * 4 * TURNS
    assert [records[session * TURNS].released for session in range(2)] == pytest.approx([0, 0.02], abs=1e-6)
    for before, after in [pair for session in (records[:TURNS], records[TURNS:]) for pair in pairwise(session)]:
        end = before.sent + before.chunk_us[-1] / 1e6
        assert after.released - end == pytest.approx(0.1, abs=0.01)  # from the end mark, behind the last token
        assert 0 <= after.sent - after.released < 0.05


# Each mode with a sender that takes notes ----------------------------------------------------------------------------


class Log:
    """A sender that notes what it is asked to do."""

    def __init__(self, count: int, part: int = 0, parts: int = 1) -> None:
        self.start, self.indices = 1000, range(part, count, parts)
        self.in_flight: set[int] = set()
        self.timeline: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int, int]] = []

    def at(self, instant: int, index: int) -> None:
        self.timeline.append((instant, index))

    def send(self, index: int, instant: int, batch: int = -1) -> int:
        self.sent.append((index, instant, batch))
        return 1

    def send_next(self, instant: int, batch: int = -1) -> int:
        return self.send(self.indices[len(self.sent)], instant, batch) if len(self.sent) < len(self.indices) else 0


def ended(index: int, batch: int = -1) -> Any:
    return SimpleNamespace(index=index, batch=batch)


def test_a_batch_begins_with_the_latest_end_of_the_one_before() -> None:
    mode, sender = Lockstep(2), Log(3)
    mode.begin(sender)
    mode.due(sender, 1000, 0)
    assert sender.sent == [(0, 1000, 0), (1, 1000, 0)]
    sender.in_flight = {1}
    mode.ended(sender, ended(0, 0), 1700)
    assert len(sender.sent) == 2
    sender.in_flight = set()
    mode.ended(sender, ended(1, 0), 1600)  # an earlier end that was read later
    assert sender.sent[2:] == [(2, 1700, 1)]


def test_a_process_keeps_its_own_users_arrivals_and_share_of_the_cap() -> None:
    users = ClosedLoop(5, offsets=array("d", [0, 1, 2, 3, 4])).split(1, 2)
    sender = Log(10, part=1, parts=2)
    users.begin(sender)
    assert sender.timeline == [(1000 + 1_000_000_000, 0), (1000 + 3_000_000_000, 1)]
    assert [ClosedLoop(5).split(part, 3).concurrency for part in range(3)] == [2, 2, 1]
    arrivals = OpenLoop(array("d", [0, 1, 2, 3]), cap=3)
    assert [arrivals.split(part, 2).most_in_flight() for part in range(2)] == [2, 1]
    share, sender = arrivals.split(1, 2), Log(6, part=1, parts=2)  # of a warm-up that repeats the arrivals
    share.begin(sender)
    for index in (1, 3, 5):
        share.due(sender, 0, index)
    assert [(instant - 1000) / 1e9 for instant, _ in sender.timeline] == [1, 3, 3 + 1]
    assert OpenLoop(array("d", [0])).split(1, 2).most_in_flight() is None


def test_thinking_is_indexed_by_the_request_that_ended() -> None:
    mode, sender = ClosedLoop(1, think=array("d", [0.0, 2.0])), Log(4)
    mode.ended(sender, ended(2), 5000)
    assert (sender.sent, sender.timeline) == ([(0, 5000, -1)], [])
    mode.ended(sender, ended(3), 6000)
    assert sender.timeline == [(6000 + 2_000_000_000, 3)]


@pytest.mark.parametrize("mode", [Lockstep(2), ClosedLoop(3, array("d", [1.0])), OpenLoop(array("d", [0, 1]), 2)])
def test_a_mode_survives_the_way_to_its_process(mode: Mode) -> None:
    again = pickle.loads(pickle.dumps(mode))
    assert again == mode
    assert type(again) is type(mode)
