"""What a plan will take and cost: known answers from a made-up history, and honest words where there is none."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from backends.launch import host_facts
from sweep.base.config import FoundHardware, Hardware
from sweep.disk import run_files
from sweep.disk.run_files import RunPaths
from sweep.plan.estimate import Assumed, History, estimate_run, kind_of
from sweep.plan.packing import Node
from sweep.plan.plan import Deployment, Plan, Trial, config_text
from tests.support.settings import run_settings

NO_PRICE = {"price_per_hour": None, "price_per_million_tokens": None}
HARDWARE = Hardware(name="l4", platform="cuda", accelerator="L4", price_per_hour=3.6)
ONE_NODE = [Node("a", 2, 16, ("L4",), "a")]


def trial(trial_id, size, **workload):
    config = {"workload": {"num_requests": 100, **workload}, "load": {"batch_size": size}}
    return Trial(trial_id, SimpleNamespace(name="qa"), SimpleNamespace(), 0, 1, {}, config)


def deployment(name, *trials, gpus=1, **flags):
    backend = SimpleNamespace(name=name, launches=True, url=None, replicas=1, gpu_keys=())
    trials = [replace(one, config={"backend": {"name": name, **flags}, "model": {}, **one.config}) for one in trials]
    return Deployment(f"{name}{flags or ''}", backend, SimpleNamespace(name="m"), gpus, "L4", trials)


def plan(*deployments):
    return Plan(run_settings(hardware=HARDWARE), list(deployments), [], [])


def row(of, one, seconds, startup=100.0, outcome="ok", accelerator="L4"):
    """The columns that are looked at, as a finished trial leaves them."""
    begin = "2026-11-21T10:00:00.000+00:00"
    end = f"2026-11-21T10:{int(seconds // 60):02}:{seconds % 60:06.3f}+00:00"
    return {
        "trial_id": one.trial_id,
        "deployment_id": of.deployment_id,
        "outcome": outcome,
        "config": config_text(one.config),
        "accelerator": accelerator,
        "gpu_count": of.gpu_count,
        "wall_seconds": seconds - 1,
        "started_at": begin,
        "ended_at": end,
        "startup_seconds": startup,
    }


def took(history, of, hardware=HARDWARE):
    return history.trial(kind_of(of, of.trials[0], hardware))


def words(the_plan, history, assumed=None):
    return "\n".join(estimate_run(the_plan, the_plan.deployments, history, ONE_NODE, assumed).messages)


def test_known_answer():
    """Two GPUs: 100 + 800 s on one, 100 + 300 s on the other; 1,300 GPU-seconds at $3.6/h are $1.30."""
    long, short = deployment("long", trial("1", 8)), deployment("short", trial("2", 1))
    history = History([row(long, long.trials[0], 800), row(short, short.trials[0], 300)])
    result = words(plan(long, short), history)
    assert "15 min on 1 node with 2 GPUs, 72% busy, 0.36 GPU-hours, $1.30 ($1.80 for the whole cluster)" in result
    assert "durations: from earlier runs of the same kind" in result
    assert "critical path: long m [long] (15 min); more GPUs would not shorten it" in result


def test_the_range_is_from_the_quickest_to_the_slowest_trials_of_each_kind():
    one = deployment("a", trial("1", 8))
    history = History([row(one, one.trials[0], seconds) for seconds in (500, 600, 900)])
    assert "about 12 min (10 min to 18 min) on 1 node" in words(plan(one), history)


def test_each_launch_counts_with_its_own_start():
    """Three replicates of 60 s: one launch of 100 s for all, or one for each; two GPUs share those."""
    one = deployment("a", *(replace(trial(str(index), 8), replicate=index) for index in range(3)))
    the_plan, history = plan(one), History([row(one, each, 60) for each in one.trials])
    together = estimate_run(the_plan, one.launches(per_replicate=False), history, ONE_NODE)
    apart = estimate_run(the_plan, one.launches(per_replicate=True), history, ONE_NODE)
    assert (together.seconds, apart.seconds) == (100 + 180, 2 * 160)
    assert apart.simulated.gpu_seconds == 3 * 160
    assert "3 launches, 1.33 times the shortest possible" in "\n".join(apart.messages)
    assert "a m replicate 2 [a-2]" in apart.messages[-1]


def test_the_median_of_the_same_trial_before_that_of_its_kind():
    one, another = deployment("a", trial("1", 8)), deployment("a", trial("another replicate", 8))
    rows = [row(one, another.trials[0], seconds) for seconds in (10.0, 30.0, 20.0)]
    assert took(History(rows), one) == 20.0
    rows.append(row(one, one.trials[0], 7.0))
    assert took(History(rows), one) == 7.0


@pytest.mark.parametrize(
    "other",
    [
        deployment("a", trial("2", 8, num_requests=6000)),
        deployment("a", trial("2", 8, output_tokens=1024)),
        deployment("a", trial("2", 4)),
        deployment("a", trial("2", 8), enforce_eager=True),
    ],
    ids=["more requests", "longer answers", "another load", "another flag"],
)
def test_a_trial_of_other_settings_is_of_another_kind(other):
    one = deployment("a", trial("1", 8))
    assert took(History([row(one, one.trials[0], 2.0)]), other) is None


def test_the_runs_beside_are_read_but_for_those_that_cannot_be(tmp_path):
    one = deployment("a", trial("1", 8))
    run_files.write_trials(RunPaths(tmp_path / "earlier"), [row(one, one.trials[0], 7.0)])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.parquet").write_bytes(b"PAR1")
    history = History.beside(tmp_path / "out")
    assert took(history, deployment("a", trial("another replicate", 8))) == 7.0
    assert history.launch(one) == 100.0


def test_what_went_wrong_teaches_nothing():
    """A crash after 2 s does not say how long a trial takes."""
    one = deployment("a", trial("1", 8))
    history = History([row(one, one.trials[0], 2.0, outcome="engine_crashed")])
    assert took(history, one) is None
    assert history.launch(one) is None


def test_a_row_that_says_no_model_is_of_another_kind():
    one = deployment("vllm", trial("a", 1))
    imported = {**row(one, one.trials[0], 2.0, startup=100.0), "config": config_text({"backend": {"name": "vllm"}})}
    assert History([imported]).launch(one) is None


def test_launches_are_of_the_same_flags_and_the_same_kind_of_device():
    one = deployment("a", trial("1", 8))
    history = History([row(one, one.trials[0], 2.0, startup=100.0)])
    assert history.launch(deployment("a", trial("2", 4, output_tokens=1024))) == 100.0
    assert history.launch(deployment("a", trial("2", 8), enforce_eager=True)) is None
    assert history.launch(deployment("a", trial("2", 8), gpus=0)) is None


@pytest.mark.parametrize(
    ("hardware", "gpus", "launches", "named"),
    [
        (HARDWARE, 1, True, "L4"),
        (Hardware(name="gpu", platform="cuda"), 1, True, "NVIDIA H200"),
        (Hardware(name="cpu", platform="cpu"), 0, True, "cpu"),
        (FoundHardware(name="cpu", platform="cpu"), 0, False, None),
    ],
    ids=["profile", "NVML", "CPU", "endpoint"],
)
def test_accelerators_have_the_names_that_rows_give_them(monkeypatch, hardware, gpus, launches, named):
    """As `trial` writes them: a GPU by the profile's name or by its own, nothing of an endpoint somewhere else."""
    monkeypatch.setattr(host_facts, "gpu_names", lambda: ("NVIDIA H200",))
    one = deployment("a", trial("1", 8), gpus=gpus)
    one.backend.launches = launches
    other = deployment("a", trial("another replicate", 8))
    assert took(History([row(one, other.trials[0], 7.0, accelerator=named)]), one, hardware) == 7.0
    assert took(History([row(one, other.trials[0], 7.0, accelerator="L40S")]), one, hardware) is None


def test_what_is_not_known_is_said_and_never_guessed():
    one = deployment("a", trial("1", 8), trial("2", 4))
    history = History([row(one, one.trials[0], 60)])
    result = estimate_run(plan(one), [one], history, ONE_NODE)
    assert result.messages == ["duration and cost unknown (no earlier successful run of 1 trial to estimate from)"]
    assert result.seconds is None


def test_an_assumption_is_stated():
    one = deployment("a", trial("1", 8), trial("2", 4))
    result = words(plan(one), History([]), Assumed(90, 60))
    assert "4 min on 1 node" in result
    assert "90 s assumed for each of 2 trials; 60 s assumed for each of 1 launches" in result
    assert "earlier runs" not in result


@pytest.mark.parametrize("nodes", [[], [Node("b", 0, 4, (), "b")]])
def test_without_a_node_there_is_no_duration(nodes):
    one = deployment("a", trial("1", 8))
    result = estimate_run(plan(one), [one], History([row(one, one.trials[0], 60)]), nodes)
    assert result.messages == ["duration unknown: no node can run the plan now"]
    assert result.seconds is None


def test_what_ran_out_of_memory_tells_of_itself_only():
    """Else a sweep whose largest batch does not fit could never say how long it takes again."""
    one = deployment("a", trial("1", 8))
    history = History([row(one, one.trials[0], 5.0, outcome="oom_run")])
    assert took(history, one) == 5.0
    assert took(history, deployment("a", trial("2", 8))) is None


def test_an_endpoint_does_not_cost_what_this_machine_does():
    one = deployment("openai", trial("1", 8))
    attached = SimpleNamespace(name="openai", launches=False, url="http://h:1", gpu_keys=(), replicas=1, **NO_PRICE)
    endpoint = replace(one, backend=attached)
    the_plan = plan(endpoint)
    settings = the_plan.settings
    assumed = settings.model_copy(update={"hardware": FoundHardware(**settings.hardware.model_dump())})
    assert "$" in words(the_plan, History([]), Assumed(90, 60))  # a profile that the user named
    result = words(replace(the_plan, settings=assumed), History([]), Assumed(90, 60))
    assert "no price set" in result
    assert "$" not in result
