"""The two ways to stop a run early: signals, and a deadline."""

import os
import signal
import time
from datetime import datetime

import pytest

from sweep.disk.ledger_lines.checksums import sealed
from sweep.disk.run_files import RunPaths
from sweep.drive.monitor.status import STATUS_KEYS
from sweep.drive.stop_control import (
    JOB_END,
    JOB_END_MARGIN,
    StopControl,
    StopLevel,
    deadline_at,
    job_end,
    user_deadline,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_the_second_cancels(number):
    stop, before = StopControl(None), signal.getsignal(number)
    assert stop.level is StopLevel.NONE
    with stop.signals():
        for level in (StopLevel.DRAIN, StopLevel.CANCEL, StopLevel.CANCEL):
            os.kill(os.getpid(), number)
            assert stop.level is level
    assert signal.getsignal(number) is before


def test_a_deadline_cancels():
    assert StopControl(time.time() + 60).level is StopLevel.NONE
    assert StopControl(time.time() - 1).level is StopLevel.CANCEL


def test_a_deadline_of_the_run_before_holds_for_half_a_day():
    passed = time.time() - 3600
    last_status = {"deadline": {"text": "08:00", "at": passed}}
    assert deadline_at("08:00", last_status) == passed
    assert deadline_at("09:00", last_status) > time.time(), "another one"
    last_status["deadline"]["at"] -= 12 * 3600
    assert deadline_at("08:00", last_status) > time.time(), "the next day's"
    assert deadline_at("08:00", None) > time.time()
    assert deadline_at(None, last_status) is None


def test_the_end_of_a_batch_job_is_a_deadline_with_a_margin(monkeypatch):
    monkeypatch.delenv(JOB_END, raising=False)
    assert job_end() is None
    monkeypatch.setenv(JOB_END, "2000000000")
    assert job_end() == 2_000_000_000 - JOB_END_MARGIN
    for user, end, earlier in (
        (5.0, 3.0, 3.0),
        (3.0, 5.0, 3.0),
        (None, 3.0, 3.0),
        (3.0, None, 3.0),
        (None, None, None),
    ):
        assert StopControl(user, end).deadline == earlier


def test_a_damaged_status_says_what_the_deadline_means_then(tmp_path):
    """With deadline=08:00 a run issued at 08:05 went on until the next morning without a word."""
    paths, passed = RunPaths(tmp_path), time.time() - 300
    at = datetime.fromtimestamp(passed).strftime("%H:%M")
    content = dict.fromkeys(STATUS_KEYS) | {"deadline": {"text": at, "at": passed}}
    paths.status.write_bytes(sealed(content))
    messages: list[str] = []
    assert user_deadline(at, paths, messages.append) == passed
    assert messages == []
    paths.status.write_bytes(sealed(content).replace(b'"at": 1', b'"at": 2'))
    assert user_deadline(None, paths, messages.append) is None
    assert messages == [], "without a deadline nothing depends on it"
    meant = user_deadline(at, paths, messages.append)
    assert meant is not None
    assert meant > time.time()
    (message,) = messages
    assert message.startswith(
        f"{paths.status}: cannot be read (its checksum does not match); deadline={at} means the next"
    )
