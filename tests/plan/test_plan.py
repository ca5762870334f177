"""Ids and seeds: what makes a trial the same trial, and what must not."""

import json
import shutil

import pytest

from backends.base import EnvironmentSpec
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER
from sweep.plan.compose import compose_run
from sweep.plan.planning import Surroundings, make_plan

HERE = Surroundings(lambda backend, platform: "locked", lambda backend, platform: None)
BASE = ["backend=transformers", "model=tiny-llama", "workload=qa", "load.batch_size=1,2", "replicates=2"]


def planned(*arguments, surroundings=HERE, hardware="cpu"):
    line = [*BASE, "cluster=inline", "tracking=none", *arguments]
    return make_plan(compose_run(line, lambda cluster: hardware), surroundings)


def ids(plan):
    return {trial.trial_id for trial in plan.trials}


def test_the_same_command_is_the_same_plan_in_the_same_order():
    first, second = planned(), planned()
    assert [t.trial_id for t in first.trials] == [t.trial_id for t in second.trials]
    assert len(ids(first)) == 4


@pytest.mark.parametrize(
    "argument",
    [
        "out=/elsewhere",
        "tracking=wandb",
        "name=other",
        "hardware.price_per_hour=9.9",
        "backend.port=4321",
        "backend.launch_timeout=5",
        "attempts=7",
        "cluster=local",
    ],
)
def test_what_cannot_change_a_result_is_not_in_the_id(argument):
    assert ids(planned(argument)) == ids(planned())


@pytest.mark.parametrize(
    "argument",
    [
        "backend.flags.attn_implementation=eager",
        "backend.dtype=float32",
        "model.seed=1",
        "workload.output_tokens=9",
        "workload.num_requests=9",
        "load.discard_first=true",
        "seed=1",
    ],
)
def test_what_can_change_a_result_is_in_the_id(argument):
    assert not ids(planned(argument)) & ids(planned())


def test_the_locked_environment_and_the_accelerator_are_in_the_id():
    other = Surroundings(lambda backend, platform: "another", lambda backend, platform: None)
    assert not ids(planned(surroundings=other)) & ids(planned())
    assert not ids(planned("hardware=l4")) & ids(planned())


IN_IMAGE = HERE._replace(environment=lambda backend, platform: EnvironmentSpec(name="x", image="a/b:c", cuda=13))
Q4 = ("backend=llamacpp", "backend.quantization=Q4_0")


@pytest.mark.parametrize(
    ("words", "begins", "remedy"),
    [
        (("backend=vllm_gptq",), "backend.checkpoint=gptq: not made", "or a model that is already quantised"),
        (("backend=exllama",), "backend.checkpoint=exl3: not made", "or a model that is already quantised"),
        (Q4, "backend.quantization=Q4_0: not made", "an environment that is not an image, or one of F32, F16, BF16"),
        (("backend=ctranslate2",), "backend.quantization=float32: not made", "an environment that is not an image"),
    ],
)
def test_weights_that_cannot_be_made_for_an_image_are_said_by_the_plan(words, begins, remedy):
    for deployment in planned(*words, hardware="l4", surroundings=IN_IMAGE).deployments:
        assert deployment.unavailable.startswith(begins)
        assert deployment.unavailable.endswith(remedy)
        assert "\n" not in deployment.unavailable
    assert not any(each.unavailable for each in planned(*words, hardware="l4").deployments), "an environment of ours"


@pytest.mark.parametrize("words", [("backend=vllm",), ("backend=llamacpp",), (*Q4[:1], "backend.quantization=BF16")])
def test_weights_that_are_made_beside_an_image_can_run(words):
    assert not any(each.unavailable for each in planned(*words, hardware="l4", surroundings=IN_IMAGE).deployments)


@pytest.mark.parametrize("stored", [{}, {"quantization_config": {"quant_method": "gptq"}}])
def test_a_model_that_is_quantised_itself_runs_in_an_image(tmp_path, stored):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    shutil.copy(SHIPPED_TOKENIZER / "tokenizer.json", tmp_path)
    words = ("backend=vllm_gptq", "model=path", f"model.path={tmp_path}")
    (deployment,) = planned(*words, hardware="l4", surroundings=IN_IMAGE).deployments
    assert (deployment.unavailable is None) == bool(stored)


def test_adding_a_point_leaves_the_others_alone():
    assert ids(planned()) < ids(planned("load.batch_size=1,2,4"))


def test_every_backend_sees_the_same_prompts_and_no_two_trials_of_one_do():
    plan = planned("backend=transformers,vllm")
    seeds = {}
    for deployment in plan.deployments:
        seeds[deployment.backend.name] = {(t.load.batch_size, t.replicate): t.seed for t in deployment.trials}
    assert seeds["transformers"] == seeds["vllm"]
    assert len(set(seeds["vllm"].values())) == 4


def test_an_engine_is_launched_once_per_distinct_deployment():
    plan = planned("workload=qa,sentiment", "backend=transformers,vllm")
    assert len(plan.deployments) == 2
    assert [len(deployment.trials) for deployment in plan.deployments] == [8, 8]


@pytest.mark.parametrize(
    ("arguments", "launches"),
    [
        ((), [None]),
        (("backend=transformers,vllm",), [0, 1, 0, 1]),
        (("backend=transformers,vllm", "relaunch=once"), [None, None]),
        (("relaunch=per_replicate",), [0, 1]),
        (("backend=transformers,vllm", "replicates=1"), [None, None]),
        (("backend=transformers,openai", "backend.url=http://h:1"), [0, 1, 0, 1]),
    ],
)
def test_where_deployments_are_compared_a_replicate_is_a_launch(arguments, launches):
    """An engine that others run is never launched, but asked in blocks like the others."""
    condition = ["when={backend.url: {backend: openai}}"] if "backend.url=http://h:1" in arguments else []
    plan = planned(*arguments, *condition)
    assert [launch.replicate for launch in plan.launches] == launches
    assert sorted(t.trial_id for launch in plan.launches for t in launch.trials) == sorted(ids(plan))
    assert len({launch.launch_key for launch in plan.launches}) == len(launches)


def test_replicates_are_blocks_of_random_order():
    trials = planned("load.batch_size=range(1,9)").deployments[0].trials
    assert [trial.replicate for trial in trials] == [0] * 8 + [1] * 8
    orders = [[t.load.batch_size for t in trials if t.replicate == replicate] for replicate in (0, 1)]
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


def test_points_that_come_to_the_same_are_one_trial():
    assert len(planned("backend.dtype=auto,auto").trials) == 4


def test_the_plan_can_be_written_down():
    entries = list(planned().entries("python -m sweep"))
    assert [entry["kind"] for entry in entries] == ["experiment", "deployment"] + ["trial"] * 4
    assert entries[2]["config"]["workload"]["name"] == "qa"
