"""Why engines failed: logs with the outcome, fault, cause and remedy that are right, real ones by their public issue.

A new log is a line of engine_logs.jsonl, a new cause a line of backends/tables/log_causes.yaml.
"""

import json
import re
from pathlib import Path

import pytest

from backends.installed import configured, names
from backends.launch import server
from backends.tables.log_causes import cause_table, reported_exit
from sweep.base.records import Outcome
from sweep.drive import policy
from tests.drive.test_policy import Ended, of_launch

CASES = [json.loads(line) for line in Path(__file__).with_name("engine_logs.jsonl").read_text().splitlines()]


def cases(*phases):
    return pytest.mark.parametrize(
        "case", [case for case in CASES if case["phase"] in phases], ids=lambda case: case["source"]
    )


@cases("launch", "run")
def test_a_log_tells_outcome_fault_cause_and_remedy(case):
    log = "\n".join(case["lines"])
    engine = Ended(case["exit_status"], log)
    engine.backend = configured(case["engine"])
    if case["phase"] == "run":
        outcome = Outcome.OOM_RUN if engine.ran_out_of_memory() else Outcome.ENGINE_CRASHED
        reason, exit = engine.exit_reason(), engine.exit()
    else:
        unused = engine.backend.gpus_unused(log) if "server is listening" in log else None
        error = of_launch(engine, "_failure", *filter(None, [unused]))
        outcome, reason, exit = error.outcome, error.reason, error.exit
    again = case["right_outcome"] == "launched again"
    assert outcome == ("launch_failed" if again else case["right_outcome"])
    assert again == bool(server.PORT_TAKEN.search(log))
    cause, _, remedy = reason.rpartition("; ") if case["right_remedy_hint"] else (reason, "", "")
    assert re.search(case["right_cause"], cause)
    assert re.search(case["right_remedy_hint"], reason)
    assert remedy in {"", *(known.remedy for known in cause_table().causes)}
    if "right_fault" in case:
        assert policy.fault_of(outcome, exit) == case["right_fault"]


@cases("prepare")
def test_a_registrys_limit_is_an_outage_and_its_refusal_is_the_users_to_mend(case):
    (line,) = case["lines"]
    outage = case["right_outcome"] == "outage"
    assert (policy.is_outage(exit := reported_exit(line)), exit.blames) == (outage, None if outage else "user")
    assert re.search(case["right_cause"], line)
    assert re.search(case["right_remedy_hint"], cause_table().find_remedy(line))


# The lines in which engines say that they ran out of memory, by the strings in their own sources.
LINES = [
    tuple(line.split(" | ", 1))
    for line in Path(__file__).with_name("out_of_memory.txt").read_text().splitlines()
    if not line.startswith("#")
]
EVERY, HARMLESS = ([line for name, line in LINES if name == kind] for kind in ("any", "harmless"))
OF_ENGINE = [(name, line) for name, line in LINES if name not in ("any", "harmless")]
ENGINES = sorted({name for name, _ in OF_ENGINE} | {"transformers", "transformers_cb", "vllm_offline"})


@pytest.mark.parametrize(("name", "line"), [*((name, line) for name in ENGINES for line in EVERY), *OF_ENGINE])
def test_out_of_memory_is_recognised(name, line):
    assert configured(name).log.ran_out_of_memory(f"loading\n{line}\n")


@pytest.mark.parametrize("name", [name for name in names() if configured(name).launches])
def test_every_pattern_of_an_engine_has_a_line(name):
    """Those for any engine too; a pattern is a message of the engine's sources: see test_engine_tables."""
    lines = EVERY + [line for _, line in OF_ENGINE]
    for pattern in (*cause_table().out_of_memory, *configured(name).log.out_of_memory):
        assert any(re.search(pattern, line, re.IGNORECASE) for line in lines), pattern


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("line", HARMLESS)
def test_other_lines_are_not(name, line):
    assert not configured(name).log.ran_out_of_memory(f"loading\n{line}\n")
