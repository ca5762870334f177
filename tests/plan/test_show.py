"""The plan in words: it fits the terminal, and is whole where there is none."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from backends.declarations import Traits
from sweep.base.config import FoundHardware, Hardware
from sweep.disk.ledger import Ledger
from sweep.inputs.load import Poisson
from sweep.plan import show
from sweep.plan.estimate import History
from sweep.plan.packing import Node
from sweep.plan.pending import find_pending
from tests.drive.test_driver import deployment, make_plan

WHY = "the engine failed repeatedly, most recently: " + "cannot allocate what it needs " * 5


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    row = {"deployment_id": "0123456789ab", "attempt": "1"}
    ledger.commit({**row, "trial_id": "aaaaaaaaaaaa", "outcome": "ok"})
    ledger.commit({**row, "trial_id": "bbbbbbbbbbbb", "outcome": "hung", "reason": WHY})
    return ledger


def shown(ledger, *more, terminal=True, width=80):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, highlight=False, color_system=None)
    mixed = deployment("0123456789ab", ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"])
    nodes = [Node("this machine", 0, 8, ())]
    plan = make_plan(mixed, *more)
    show.print_plan(console, plan, find_pending(plan, ledger, History([]), nodes), nodes, details=True)
    return file.getvalue()


def rows(text):
    """The table: from below the headline to the last of its trials."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("0123456789ab"))
    return lines[first : first + 4]


def test_on_a_terminal_each_trial_is_one_line_with_its_state(ledger):
    head, done, failed, pending = rows(shown(ledger))
    assert head == "0123456789ab  0123456789ab tiny: 1 launch, 3 trials, 2 to run"
    assert done.split() == ["aaaaaaaaaaaa", "qa", "batches", "of", "1", "replicate", "0", "done"]
    assert failed.startswith("  bbbbbbbbbbbb  qa batches of 1 replicate 0  was hung: the engine")
    assert failed.endswith("…")
    assert len(failed) == 80
    assert pending.split()[:2] == ["cccccccccccc", "qa"]


def test_the_reason_that_a_terminal_has_no_room_for_is_said_below(ledger):
    assert f"to run: 1 trial: was hung: {WHY}".strip() in " ".join(shown(ledger).split())


def test_a_pipe_gets_everything_on_one_line(ledger):
    failed = rows(shown(ledger, terminal=False, width=show.PIPE_WIDTH))[2]
    assert WHY.strip() in failed


def test_requests_are_shown_where_they_fit(tmp_path):
    empty = Ledger(tmp_path / "ledger.jsonl")
    assert rows(shown(empty))[1].partition("to run  ")[2].startswith("1 request")
    narrow = rows(shown(empty, width=60))
    assert "request" not in narrow[1]
    assert narrow[1].endswith("to run")


def test_launches_are_listed_in_the_order_in_which_they_start(tmp_path):
    """By blocks: each deployment once in each, at random but in the last."""
    trials = [f"{name}{replicate}" for name in "abc" for replicate in range(3)]
    engines = [deployment(name, [t for t in trials if t[0] == name]) for name in "abc"]
    engines = [
        replace(each, trials=[replace(t, replicate=index) for index, t in enumerate(each.trials)]) for each in engines
    ]
    file = io.StringIO()
    plan, nodes = make_plan(*engines), [Node("this machine", 0, 8, ())]
    pending = find_pending(plan, Ledger(tmp_path / "ledger.jsonl"), History([]), nodes)
    show.print_plan(Console(file=file, width=200), plan, pending, nodes, details=True)
    text = file.getvalue()
    assert "3 deployments, 9 launches, 9 trials" in text
    assert "a tiny: 3 launches, 3 trials, 3 to run" in text
    starts = [line.split(": ", 2)[2] for line in text.splitlines() if line.startswith("start: replicate")]
    assert [sorted(line.split(" (")[0].split(", then ")) for line in starts] == [["a tiny", "b tiny", "c tiny"]] * 3
    assert [line.partition(" (")[2] for line in starts] == ["random order)", "random order)", "longest first)"]


def test_a_large_plan_is_shown_by_deployment(ledger):
    text = shown(ledger, deployment("ffffffffffff", [str(i) for i in range(show.MOST_TRIALS_LISTED)], "no GPU"))
    assert "ffffffffffff  ffffffffffff tiny: 1 launch, 200 trials, unavailable" in text
    assert "replicate" not in text


def test_what_cannot_run_here_is_not_to_run(ledger):
    text = shown(ledger, deployment("fedcba987654", ["dddddddddddd"], unavailable="needs a GPU"))
    assert "4 trials, 2 to run" in text
    assert "unavailable: fedcba987654 tiny: needs a GPU" in text


@pytest.mark.parametrize(
    ("requests", "duration", "expected"),
    [
        (64, 60, ["load.duration=60: Poisson 50/s: all 64 requests are due within 1.", "raise workload.num_requests"]),
        (4000, 60, []),
        (64, None, []),
    ],
)
def test_requests_that_end_before_the_duration_are_told(requests, duration, expected):
    load = Poisson(name="poisson", rate=50, duration=duration)
    trial = SimpleNamespace(load=load, num_requests=requests, workload=None, mode=lambda: load.mode(requests, 1))
    text = " ".join(show.few_requests_note(SimpleNamespace(trials=[trial, trial])))
    assert all(part in text for part in expected)
    assert bool(text) is bool(expected)
    assert text.count("to fill the time") == bool(expected), "once for all replicates and backends"


def workload(name, **tokens):
    longest = (tokens.get("input_tokens", 0), tokens.get("output_tokens", 0))
    return SimpleNamespace(workload=SimpleNamespace(name=name, longest_request=lambda: longest), replicate=0)


@pytest.mark.parametrize(
    ("context", "backend", "warned"),
    [
        (2048, {}, True),
        (6000, {}, False),
        (None, {}, False),
        (2048, {"traits": Traits(computes_model=False)}, False),
        (2048, {"launches": False}, False),
    ],
)
def test_what_is_beyond_a_context_is_told_once_for_a_model(context, backend, warned):
    trials = [
        workload("short", input_tokens=100, output_tokens=100),
        workload("long", input_tokens=4000, output_tokens=10),
        workload("longest", input_tokens=5000, output_tokens=64),
        workload("prompts of a file"),
    ]
    engine = SimpleNamespace(**{"launches": True, "traits": Traits(), **backend})
    model = SimpleNamespace(name="tiny", context=context)
    expected = show.beyond_context(
        SimpleNamespace(deployments=[SimpleNamespace(backend=engine, model=model, trials=trials, unavailable=None)] * 2)
    )
    assert len(expected) == warned
    if warned:
        assert expected[0].startswith("workload longest: 5000 input + 64 output tokens exceed the context of tiny,")
        assert "2048" in expected[0]


@pytest.mark.parametrize(
    ("launches", "assumed", "expected"),
    [
        ((False,), True, "to run, at an endpoint; results"),
        ((False, True), True, "on cpu ($0.5/h)"),
        ((False,), False, "on cpu ($0.5/h)"),
    ],
)
def test_the_hardware_of_an_endpoint_is_not_this_machines(launches, assumed, expected):
    hardware = (FoundHardware if assumed else Hardware)(name="cpu", platform="cpu", price_per_hour=0.5)
    engines = [replace(deployment("e", []), backend=SimpleNamespace(launches=launched)) for launched in launches]
    plan = make_plan(*engines, hardware=hardware)
    assert expected in show._headline(plan, [])


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        ("2020-01-01T08:00", ["deadline=2020-01-01T08:00 has passed: no trial will start"]),
        ("2999-01-01T08:00", []),
        ("08:00", []),
        (None, []),
    ],
)
def test_a_deadline_that_has_passed_is_told_and_no_error(deadline, expected):
    assert show.past_deadline(SimpleNamespace(settings=SimpleNamespace(deadline=deadline))) == expected
