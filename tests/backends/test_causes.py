"""Why engines failed: real logs from public issues, each with the outcome, fault, cause and remedy that are right.

A new log is a line of engine_logs.jsonl, a new cause a line of backends/tables/causes.yaml.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.installed import configured
from backends.launch import server
from backends.tables.causes import cause_table, told
from sweep.base.records import Outcome
from sweep.drive import policy

CASES = [json.loads(line) for line in Path(__file__).with_name("engine_logs.jsonl").read_text().splitlines()]


class EndedEngine(server.Engine):
    """An engine of a kind that has ended with this status, and this log; `alive` for one that serves nevertheless."""

    def __init__(self, name, text, status, *, alive=False):
        self.backend, self.launch, self.log = configured(name), SimpleNamespace(replica="", gpus=("0",)), Path()
        self.exit_status, self.text, self.living = status, text, alive

    def log_tail(self, lines=40, since=0):
        return self.text

    def alive(self):
        return self.living


def launch_error(engine) -> server.LaunchError:
    start = object.__new__(server._Start)
    start.engine, start.oom_kills = engine, server._oom_kills()
    if engine.living:
        return start._failure(engine.backend.gpus_unused(engine.text))
    return start._failure()


def cases(*phases):
    return pytest.mark.parametrize(
        "case", [case for case in CASES if case["phase"] in phases], ids=lambda case: case["source"]
    )


@cases("launch", "run")
def test_a_log_tells_outcome_fault_cause_and_remedy(case):
    log = "\n".join(case["lines"])
    engine = EndedEngine(case["engine"], log, case["exit_status"], alive="server is listening" in log)
    if case["phase"] == "run":
        outcome = Outcome.OOM_RUN if engine.ran_out_of_memory() else Outcome.ENGINE_CRASHED
        reason, exit = engine.exit_reason(), engine.exit()
    else:
        error = launch_error(engine)
        outcome, reason, exit = error.outcome, error.reason, error.exit
    again = case["right_outcome"] == "launched again"
    assert outcome == ("launch_failed" if again else case["right_outcome"])
    assert again == bool(server.PORT_TAKEN.search(log))
    cause, _, remedy = reason.rpartition("; ")
    assert re.search(case["right_cause"], cause)
    assert re.search(case["right_remedy_hint"], reason)
    assert remedy in {known.remedy for known in cause_table().causes}
    if "right_fault" in case:
        assert policy.fault_of(outcome, exit) == case["right_fault"]


@cases("prepare")
def test_a_registrys_limit_is_an_outage(case):
    (line,) = case["lines"]
    assert policy.is_outage(told(line))
    assert re.search(case["right_cause"], line)
    assert re.search(case["right_remedy_hint"], cause_table().find_remedy(line))
