"""Resume is by content: what a change touches is run again, with the reason, and nothing else."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from backends import base
from sweep.base.config import ConfigError
from sweep.base.exits import Outage
from sweep.disk.ledger import Ledger
from sweep.inputs import hub
from sweep.plan.compose import compose_run
from sweep.plan.estimate import History
from sweep.plan.packing import Node
from sweep.plan.pending import check_resolved, content_digests, find_pending, pending_launches, reasons, unresolved
from sweep.plan.planning import Surroundings, make_plan


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {index}"}) + "\n" for index in range(8)))
    return path


@pytest.fixture
def planned(prompts):
    """planned(*arguments, environment=...) -> the plan of two engines, two loads and a data set of the user's."""

    def plan(*arguments, environment="engine 1.0"):
        base = [
            "backend=simulated,transformers",
            "model=tiny-llama",
            "workload=prompts",
            f"workload.file={prompts}",
            "workload.output_tokens=64",
        ]
        line = [*base, "load.batch_size=1,2", "cluster=inline", "tracking=none", *arguments]
        here = Surroundings(lambda backend, _: f"{backend.name} in {environment}", lambda backend, _: None)
        return make_plan(compose_run(line, lambda cluster: "cpu"), here)

    return plan


def row(deployment, trial, outcome="ok", reason=None):
    return {
        "trial_id": trial.trial_id,
        "deployment_id": deployment.deployment_id,
        "attempt": "1",
        "outcome": outcome,
        "reason": reason,
        "backend": deployment.backend.name,
        "model": deployment.model.name,
        "workload": trial.workload.name,
        "load": trial.load.name,
        "replicate": trial.replicate,
        **trial.load_columns(),
        "config": json.dumps(trial.config, default=str),
        "digests": json.dumps(content_digests(deployment, trial)),
        **trial.coordinates,
    }


@pytest.fixture
def ledger(planned, tmp_path):
    ledger = Ledger(tmp_path / "out" / "ledger.jsonl")
    for deployment in planned().deployments:
        for trial in deployment.trials:
            ledger.commit(row(deployment, trial))
    return ledger


def why(plan, ledger):
    return Counter(reasons(plan, pending_launches(plan, ledger), ledger).values())


def test_pending_work_is_found_with_its_reasons_and_its_estimate(planned, ledger):
    plan = planned("load.batch_size=1,2,4")
    first, *rest = plan.deployments
    plan = replace(plan, deployments=[replace(first, unavailable="no GPU here"), *rest])
    pending = find_pending(plan, ledger, History([]), [Node("n", 0, 8, (), "n")])
    assert pending.finished_trials == 4
    assert [len(deployment.trials) for deployment in pending.launches] == [1, 1]
    (runnable,) = pending.runnable
    assert pending.reasons == {runnable.trials[0].trial_id: "new"}, "unavailable trials are not run"
    assert [need.key for need in pending.estimate.expected.needs] == [runnable.deployment_id]
    assert pending.estimate.seconds is None


def test_the_same_command_has_nothing_to_do(planned, ledger):
    assert not pending_launches(planned(), ledger)


def test_one_engine_flag(planned, ledger):
    again = why(planned("backend.flags={attn_implementation: eager}"), ledger)
    assert again == {
        "changed: backend.flags.attn_implementation sdpa -> eager": 2,  # in transformers' YAML
        "changed: backend.flags.attn_implementation None -> eager": 2,
    }


def test_the_revision_of_the_weights(planned, ledger):
    assert why(planned("model.seed=1"), ledger) == {"changed: model.seed None -> 1": 4}


def test_the_version_of_the_engine(planned, ledger):
    again = why(planned(environment="engine 1.1"), ledger)
    assert again == {"changed: its engine's environment, the accelerator or the protocol": 4}


def test_the_host_of_a_library(planned, ledger, monkeypatch, tmp_path):
    """What of an engine is our own is in its id: the host of this library, not of another."""
    host = shutil.copytree(base.HOST, tmp_path / "host")
    monkeypatch.setattr(base, "HOST", host)
    (host / "libraries" / "exllama_library.py").write_text("# another library's\n")
    assert not pending_launches(planned(), ledger)
    (host / "batches.py").write_text((host / "batches.py").read_text() + "# slower\n")
    assert why(planned(), ledger) == {"changed: the content of its backend": 2}


def test_the_content_of_the_data_set(planned, ledger, prompts):
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": "one more"}) + "\n")
    assert why(planned(), ledger) == {"changed: the content of its workload": 4}


def with_digest(plan, part, digest):
    """The plan with another digest of a deployment's part, or of a trial's."""
    if part == "workload":
        trials = [[replace(t, content=t.content | {part: digest}) for t in d.trials] for d in plan.deployments]
        changed = [replace(d, trials=others) for d, others in zip(plan.deployments, trials, strict=True)]
    else:
        changed = [replace(d, content=d.content | {part: digest}) for d in plan.deployments]
    return replace(plan, deployments=changed)


@pytest.mark.parametrize("part", ["model", "draft", "workload"])
def test_a_commit_that_no_hub_tells_is_not_taken_for_another(planned, ledger, part):
    """Else a minute without the hub measures everything again."""
    digests = {"digests": json.dumps({part: f"org/name@{'a' * 40}"})}
    ledger.rows = {trial_id: {**row, **digests} for trial_id, row in ledger.rows.items()}
    assert pending_launches(with_digest(planned(), part, "org/other@main"), ledger) == []
    refused = rf"^{part}: the hub cannot be reached to resolve org/name@main to a commit, and the results"
    with pytest.raises(ConfigError, match=refused):
        pending_launches(with_digest(planned(), part, "org/name@main"), ledger)


@pytest.mark.parametrize(("part", "kind"), [("model", "model"), ("draft", "model"), ("workload", "dataset")])
def test_an_outage_of_the_hub_is_that_of_a_model_or_of_a_data_set(planned, monkeypatch, part, kind):
    """Two repositories may have one name."""
    plan = with_digest(planned(), part, "org/name@main")
    monkeypatch.setattr(hub, "_unanswered", {("org/name", "main", kind): "503"})
    with pytest.raises(Outage, match=r"to resolve org/name@main to a commit \(503\)"):
        check_resolved(plan)
    other = {"model": "dataset", "dataset": "model"}[kind]
    monkeypatch.setattr(hub, "_unanswered", {("org/name", "main", other): "503"})
    check_resolved(plan)


def test_a_value_more_on_an_axis_is_new(planned, ledger):
    assert why(planned("load.batch_size=1,2,4"), ledger) == {"new": 2}


def test_a_failure_is_run_again_with_its_reason(planned, ledger):
    deployment = planned().deployments[0]
    ledger.commit(row(deployment, deployment.trials[0], "engine_crashed", "killed by signal 9"))
    assert why(planned(), ledger) == {"was engine_crashed: killed by signal 9": 1}


def test_raw_data_cut_short_are_measured_again(planned, ledger, tmp_path):
    deployment = planned().deployments[0]
    trial_id = deployment.trials[0].trial_id
    folder = tmp_path / "out" / "deployments" / deployment.deployment_id / "1" / trial_id
    folder.mkdir(parents=True)
    (folder / "requests.parquet").write_bytes(b"PAR1 and then nothing")
    reopened = Ledger(tmp_path / "out" / "ledger.jsonl", write=False)
    assert why(planned(), reopened) == {"its requests.parquet is cut short": 1}


def test_a_revision_that_stayed_a_name_is_no_commit():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert unresolved(f"org/model@{commit} tokenizer org/words@main") == [("org/words", "main")]
    assert unresolved(f"org/model@{commit}") == unresolved("3f9a") == []


def test_a_launch_for_each_replicate_reruns_what_shared_one(planned, tmp_path):
    """The first replicate is measured on a new engine either way, so its results stand."""
    ledger = Ledger(tmp_path / "shared" / "ledger.jsonl")
    for deployment in planned("replicates=3", "relaunch=once").deployments:
        for trial in deployment.trials:
            ledger.commit(row(deployment, trial))
    assert not pending_launches(planned("replicates=3", "relaunch=once"), ledger)
    again = pending_launches(planned("replicates=3"), ledger)
    assert [launch.replicate for launch in again] == [1, 2, 1, 2]
    assert all(trial.replicate == launch.replicate for launch in again for trial in launch.trials)


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("max_failed=0.5", 4),
        ("client.timeouts.between_tokens=7", 4),
        ("relaunch=once", 0),
        ("slo={ttft: 500ms}", 0),
        ("out=elsewhere", 0),
    ],
)
def test_what_judges_a_trial_reruns_it_and_a_slo_does_not(planned, ledger, changed, again):
    assert len(ledger.rows) == 4
    assert sum(len(deployment.trials) for deployment in pending_launches(planned(changed), ledger)) == again
