"""Sessions on the client's one path: a turn is due at its parent's last byte plus its gap, never before."""

import json
import math
from array import array
from pathlib import Path
from typing import Any

import pytest

from sweep.base.records import Message, Record, Request, SessionPlaces, Timeouts, live_answer, most_at_once
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop, Mode, OpenLoop
from sweep.client.sender import LARGEST_LIVE_ANSWER
from sweep.client.wire import Target, call
from tests.support.http_stub import Stub, serving
from tests.support.simulated_engine import simulated

GAP = 0.06
PARENTS = [-1, 0, 1, -1, 3, 3, 4, -1, 2]  # a chain of four, a tree with two branches, and a single turn


def turns(parents: list[int] = PARENTS, gap: float = GAP) -> list[Request]:
    return [Request(f"t{i}", f"turn {i}", 4, parent=parent, gap=gap) for i, parent in enumerate(parents)]


def send(url: str, folder: Path, mode: Mode, requests: list[Request], **more: Any) -> list[Record]:
    return list(measure(Target(url, "m"), [], requests, mode, folder=folder, **more).records)


def due(records: list[Record], record: Record) -> float:
    ended, gap = next(each.ended for each in records if each.request_id == record.parent), record.gap
    assert ended is not None
    assert gap is not None
    return ended + gap


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("open_loop", [False, True])
def test_a_turn_is_sent_at_its_parents_last_byte_plus_its_gap(open_loop: bool, processes: int, tmp_path: Path) -> None:
    mode: Mode = OpenLoop(array("d", [0.0, 0.02, 0.03])) if open_loop else ClosedLoop(2, branches=2)
    with simulated() as (url, _):
        records = send(url, tmp_path, mode, turns(), processes=processes)
    assert [record.error for record in records] == [None] * len(PARENTS)
    assert [record.session for record in records] == [0, 0, 0, 1, 1, 1, 1, 2, 0]
    assert [record.turn for record in records] == [0, 1, 2, 0, 1, 1, 2, 0, 3]
    assert [record.parent for record in records] == [f"t{parent}" if parent >= 0 else None for parent in PARENTS]
    assert [record.session_turns for record in records] == [4, 4, 4, 4, 4, 4, 4, 1, 4]
    for record in records:
        if record.parent is not None:
            assert record.released == pytest.approx(due(records, record), abs=1e-6)
            assert -1e-6 <= record.sent - due(records, record) < 0.05
            assert (record.scheduled == record.released) if open_loop else record.scheduled is None
        elif open_loop:
            assert record.scheduled == pytest.approx([0.0, 0.02, 0.03][record.session])


def test_a_user_takes_the_next_session_once_its_tree_has_drained(tmp_path: Path) -> None:
    with simulated() as (url, _):
        records = send(url, tmp_path, ClosedLoop(1, branches=2), turns())
    for session in (1, 2):
        before = [record.ended or 0 for record in records if record.session == session - 1]
        begun = min(record.sent for record in records if record.session == session)
        assert 0 <= begun - max(before) < 0.05
    assert most_at_once(turns()) == 2


def test_turns_after_a_failed_one_are_recorded_and_not_sent(tmp_path: Path) -> None:
    limits = Timeouts(first_token=0.3)
    with simulated(faults={"hang": 1.0}) as (url, _):
        measured = measure(Target(url, "m"), [], turns([-1, 0, 1, -1]), ClosedLoop(3), folder=tmp_path, timeouts=limits)
    records, report = list(measured.records), measured.report
    assert (report.offered, report.sent) == (4, 2)
    failures = ["timeout_first_token", "unsent", "unsent", "timeout_first_token"]
    assert [str(record.error).partition(":")[0] for record in records] == failures
    assert [math.isnan(record.sent) for record in records] == [False, True, True, False]


def test_nothing_follows_after_the_duration(tmp_path: Path) -> None:
    with simulated() as (url, _):
        records = send(url, tmp_path, ClosedLoop(1, duration=0.5), turns([-1, 0, 1, 2], gap=0.3))
    assert 1 <= len(records) < 4
    assert all(record.error is None and record.sent < 0.6 for record in records)


def test_a_turn_before_its_parent_is_refused(tmp_path: Path) -> None:
    for parent in (1, 2):
        with pytest.raises(ValueError, match=r"t1: follows request \d, which comes later"):
            SessionPlaces.of(turns([-1, parent, 0]))


@pytest.mark.parametrize("api", ["chat", "messages", "responses", "completions", "tgi"])
def test_history_is_sent_with_its_roles(api: Any, tmp_path: Path) -> None:
    prompt = (Message("system", "be kind"), Message("user", "a b c"), Message("assistant", "d"), Message("user", "e"))
    with simulated() as (url, _):
        target = Target(url, "m", api=api)
        request = Request("r", prompt, 3)
        (record,) = measure(target, [], [request], ClosedLoop(1), folder=tmp_path).records
    assert (record.error, record.prompt_words) == (None, 7)
    body = json.loads(call(target, [request]).partition(b"\r\n\r\n")[2])
    listed = body.get("input") if api == "responses" else body.get("messages")
    if api in ("completions", "tgi"):  # which know no roles
        assert "be kind\n\na b c\n\nd\n\ne" in body.values()
    else:
        system = ["system"] * (body.get("system") == "be kind")  # of Anthropic's Messages
        assert [*system, *(each["role"] for each in listed)] == [message.role for message in prompt]


@pytest.mark.parametrize("answer", ['say "é\\n" ', "long " * (LARGEST_LIVE_ANSWER // 9)])
def test_a_live_answer_is_sent_as_it_came_unless_it_is_too_long(answer: str, tmp_path: Path) -> None:
    bodies = list[dict[str, Any]]()

    class Engine(Stub):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            choices = [{"index": 0, "text": answer, "finish_reason": reason} for reason in (None, "length")]
            events = [json.dumps({"choices": [choice]}, ensure_ascii=False) for choice in choices]
            stream = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
            self.reply(200, stream.encode(), {"Content-Type": "text/event-stream"})

    prompts = ("one", f"one {live_answer(0)} two", f"one {live_answer(0)} two {live_answer(1)} three")
    asked = [Request(f"r{i}", prompt, 2, parent=i - 1) for i, prompt in enumerate(prompts)]
    with serving(Engine) as url:
        errors = [record.error for record in send(url, tmp_path, ClosedLoop(1), asked)]
    came = answer * 2
    if len(came) > LARGEST_LIVE_ANSWER:
        assert len(bodies) == 1
        assert errors == [None, *[f"unsent: the answer before it is longer than {LARGEST_LIVE_ANSWER} bytes"] * 2]
    else:
        assert errors == [None] * 3
        assert [body["prompt"] for body in bodies] == ["one", f"one {came} two", f"one {came} two {came} three"]
