"""What a deployment checks on its node before it launches anything."""

import contextlib
import sys
import threading
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.base import Backend, EnvironmentSpec
from backends.launch.gpus import Gpu
from backends.prepare import environments
from backends.prepare.build_once import exclusive
from sweep.base.config import Hardware, build
from sweep.base.exits import Exit
from sweep.base.options import load_option
from sweep.base.records import Outcome
from sweep.inputs.load import Batch
from sweep.inputs.model import ServedModel
from sweep.inputs.prompts import Prompts
from sweep.inputs.workload import Workload
from sweep.node import deployment
from sweep.node.machine import cores as node_cores
from sweep.node.spread.partners import NodeBusy
from sweep.node.work import Work
from sweep.plan.plan import Deployment, Trial
from tests.support.http_stub import Stub, serving
from tests.support.settings import run_settings

L4 = Hardware(name="l4", platform="cuda", accelerator="L4", matches=("NVIDIA L4",))
ANY = Hardware(name="gpu", platform="cuda")


@pytest.mark.parametrize(
    ("hardware", "gpus", "said"),
    [
        (L4, ("0",), None),
        (L4, ("0", "1"), "hardware=l4 means NVIDIA L4, but this node has NVIDIA A100"),
        (ANY, ("1",), None),
        (L4, (), None),
    ],
)
def test_a_node_with_other_gpus_than_asked_for_is_no_place_for_a_result(monkeypatch, hardware, gpus, said):
    present = {"0": Gpu("GPU-a", 0, "NVIDIA L4", "8.9"), "1": Gpu("GPU-b", 1, "NVIDIA A100", "8.0")}
    monkeypatch.setattr(deployment, "find_gpu", present.get)
    assert deployment.other_gpus(gpus, hardware) == said


def test_a_model_that_cannot_be_had_is_noticed_before_an_environment_is_built(monkeypatch, tmp_path):
    def reach(cache):
        raise ValueError("model.repo=org/model@main: not on this machine, and the hub cannot be reached")

    built = []
    monkeypatch.setattr(deployment.environments, "resolve", lambda *arguments: built.append(arguments))
    settings = SimpleNamespace(hardware=L4)
    backend, model = SimpleNamespace(launches=True, env=None), SimpleNamespace(reach=reach)
    its = SimpleNamespace(backend=backend, model=model, draft=None, content={})
    work = SimpleNamespace(deployment=its, settings=settings, cache=tmp_path)
    with pytest.raises(ValueError, match=r"model\.repo=org/model@main"):
        deployment.prepare_node(work, (), lambda event: None)
    assert not built


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (SimpleNamespace(launches=True, url=None, replicas=1), "launching the engine"),
        (SimpleNamespace(launches=False, url="http://h:1", replicas=1), "connecting to http://h:1"),
    ],
)
def test_only_what_is_launched_is_said_to_be(monkeypatch, backend, said):
    def fail(*arguments, **more):
        raise deployment.server.LaunchError(Outcome.LAUNCH_FAILED, "not there", Exit())

    monkeypatch.setattr(deployment.agreement, "reference", lambda *arguments: "none")
    monkeypatch.setattr(deployment.server, "running_together", fail)
    place = SimpleNamespace(environment=SimpleNamespace(versions={}), launch=SimpleNamespace(gpus=()))
    run, events = SimpleNamespace(deployment=SimpleNamespace(backend=backend), marker="marker", patience=0.0), []
    failure = deployment._one_launch(run, place, None, events.append)
    assert failure.reason == "not there"
    assert [event.text for event in events if isinstance(event, deployment.State)] == [said]


def test_an_engine_that_its_gpus_do_not_show_is_no_measurement_of_them(monkeypatch):
    engine = SimpleNamespace(shows_on_gpus=lambda: False, log_tail=lambda: "loaded on the CPU")
    monkeypatch.setattr(deployment.agreement, "reference", lambda *arguments: "none")
    monkeypatch.setattr(deployment.gpu_memory, "wait_until_free", lambda gpus: None)
    monkeypatch.setattr(deployment.server, "running_together", lambda *arguments, **more: nullcontext((engine,)))
    monkeypatch.setattr(deployment, "replica_launches", lambda launch, *_: [launch])
    monkeypatch.setattr(deployment, "_first_facts", lambda *arguments: {})
    place = SimpleNamespace(environment=SimpleNamespace(versions={}), launch=SimpleNamespace(gpus=("GPU-a",)))
    backend = SimpleNamespace(launches=True, url=None, replicas=1)
    run = SimpleNamespace(deployment=SimpleNamespace(backend=backend), marker="marker", patience=0.0)
    failure = deployment._one_launch(run, place, None, lambda event: None)
    assert (failure.outcome, failure.log_tail) == (Outcome.INVALID, "loaded on the CPU")
    assert not deployment.policy.launches_again([failure], attempts=3)


def test_a_launch_waits_as_long_as_a_partners_gpus_are_leased(monkeypatch):
    """Without a limit, and without its own lease: the other sweep may wait for that."""
    trials, ends, held = [SimpleNamespace(trial_id="1")], [NodeBusy("leased"), NodeBusy("leased"), None], []
    work = SimpleNamespace(
        deployment=SimpleNamespace(
            backend=SimpleNamespace(launches=True, traits=SimpleNamespace(timed_inside=True)),
            trials=trials,
            searched={},
            describe=lambda: "d",
        ),
        patience=0.0,
        deadline=None,
        expected={},
        settings=SimpleNamespace(attempts=1),
    )

    @contextlib.contextmanager
    def one_lease(*arguments):
        held.append("leased")
        try:
            yield True
        finally:
            held.append("released")

    def launch(work, node, pending, emit, spread):
        held.append("launch")
        if (end := ends.pop(0)) is not None:
            raise end
        pending.trials.clear()

    monkeypatch.setattr(deployment, "_lease", one_lease)
    monkeypatch.setattr(deployment, "prepare_node", lambda *arguments: "node")
    monkeypatch.setattr(deployment, "_end_contradicted", lambda *arguments: None)
    monkeypatch.setattr(deployment, "_one_launch", launch)
    deployment.run_deployment(work, ("0",), lambda event: None, threading.Event(), threading.Event())
    assert held == ["leased", "launch", "released"] * 3


def test_the_references_memory_is_free_before_the_engines_baseline_is_read(monkeypatch):
    """The launch's baseline would else hold it, and what the engine leaves behind would pass as given back."""
    order = []

    def launch(*arguments, **more):
        order.append("launch")
        raise deployment.server.LaunchError(Outcome.LAUNCH_FAILED, "not there", Exit())

    monkeypatch.setattr(deployment.agreement, "reference", lambda *arguments: order.append("reference"))
    monkeypatch.setattr(deployment.gpu_memory, "wait_until_free", lambda gpus: order.append(gpus))
    monkeypatch.setattr(deployment.server, "running_together", launch)
    place = SimpleNamespace(environment=SimpleNamespace(versions={}), launch=SimpleNamespace(gpus=("GPU-a",)))
    backend = SimpleNamespace(launches=True, url=None, replicas=1)
    run = SimpleNamespace(deployment=SimpleNamespace(backend=backend), marker="marker", patience=0.0)
    deployment._one_launch(run, place, None, lambda event: None)
    assert order == [("GPU-a",), "reference", ("GPU-a",), "launch"]


def test_a_node_with_other_content_than_planned_is_no_place_for_a_result(tmp_path):
    """A file of prompts that is another there, or is not there: the trials that need it are invalid, the others run."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}')
    its = Prompts(name="its", file=str(path), output_tokens=1)
    trials = deque(
        Trial(name, workload, Batch(name="batch", batch_size=1), 0, 1, {}, {}, {"workload": workload.digest(Path())})
        for name, workload in (("t1", its), ("t2", Workload(name="fixed")), ("t3", its))
    )
    path.write_text('{"prompt": "two"}')
    ended = []
    settings = run_settings(hardware=L4)
    work = Work(Deployment("d1", Backend(name="x"), ServedModel(name="m"), 0, None), settings, "", "1", ())
    deployment._end_contradicted(work, trials, ended.append)
    assert [trial.trial_id for trial in trials] == ["t2"]
    assert [(event.row["trial_id"], event.row["outcome"]) for event in ended] == [("t1", "invalid"), ("t3", "invalid")]
    assert ended[0].row["reason"].startswith("the content of the workload differs from the plan: ")
    path.unlink()
    assert "No such file" in deployment.other_content({"workload": "abc"}, {"workload": lambda: its.digest(tmp_path)})
    assert deployment.other_content({"workload": "abc"}, {"workload": lambda: "abc"}) is None


def test_a_node_with_another_model_builds_nothing(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(deployment.environments, "resolve", lambda *arguments: built.append(arguments))
    model = SimpleNamespace(reach=lambda cache: None, digest=lambda cache: "other")
    its = SimpleNamespace(backend=Backend(name="x"), model=model, draft=None, content={"model": "planned"})
    work = SimpleNamespace(deployment=its, settings=SimpleNamespace(hardware=L4), cache=tmp_path)
    with pytest.raises(deployment.Contradiction, match="the model differs from the plan: other, not planned"):
        deployment.prepare_node(work, (), lambda event: None)
    assert not built


def test_a_node_says_what_cannot_be_made_for_an_image_where_the_plan_could_not_know(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    model = SimpleNamespace(prepare=lambda cache, progress: tmp_path)
    backend = build(load_option("backend", "vllm_gptq"), "backend")
    work = SimpleNamespace(deployment=SimpleNamespace(backend=backend, model=model), cache=tmp_path)
    image = environments.Environment("python3", image="a/b@sha256:c")
    with pytest.raises(environments.EnvironmentFailed, match=r"^backend\.checkpoint=gptq: not made"):
        deployment._weights(work, image, lambda text: None)
    (tmp_path / "config.json").write_text('{"quantization_config": {}}')
    assert deployment._weights(work, image, lambda text: None) == tmp_path


def test_closing_the_stream_gives_up_what_is_prepared(monkeypatch, tmp_path):
    """A second signal means now, also where this is one process and what it waits for takes an hour."""

    def run(work, gpus, emit, stop, draining, spread):
        emit(deployment.State("building"))
        with exclusive(tmp_path / "lock", lambda: None):
            raise AssertionError("the lock is another's")

    monkeypatch.setattr(deployment, "run_deployment", run)
    work = Work(Deployment("d1", Backend(name="x"), ServedModel(name="m"), 0, None), None, "", "1", ())
    stream = deployment.stream_deployment(work, (), threading.Event(), 1.0)
    with exclusive(tmp_path / "lock", lambda: None):
        assert next(stream) == deployment.State("building")
        begin = time.monotonic()
        stream.close()
        assert time.monotonic() - begin < 5.0


class Caches(Stub):
    """Answers a POST with the next of `answers`: the last one again and again."""

    answers: list[tuple[int, str]]

    def do_POST(self):
        status, text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.reply(status, text.encode())


@pytest.mark.parametrize(
    ("answers", "done", "said"),
    [
        ([(200, "")], True, None),
        ([(200, '{"success": false}'), (200, '{"success": true}')], True, None),
        ([(200, '{"success":false}')], False, '/forget: status 200: {"success":false}'),
        ([(400, "requests are running"), (200, "")], True, None),
        ([(404, "Not Found")], False, "/forget: status 404: Not Found"),
    ],
)
def test_a_cache_that_is_not_reset_is_said_and_logged(tmp_path, monkeypatch, answers, done, said):
    monkeypatch.setattr(deployment, "RESET_PAUSE", 0.0)
    Caches.answers, events, log = answers, [], tmp_path / "engine.log"
    backend = SimpleNamespace(resets=("/forget",), launches=True)
    with serving(Caches) as url:
        engine = SimpleNamespace(backend=backend, url=url, headers={}, log=log)
        assert deployment._reset_caches([engine], events.append) is done
    expected = [f"caches not reset before the trial: {said}"] if said else []
    assert [event.text for event in events] == expected
    assert (log.read_text().splitlines() if log.exists() else []) == [f"sweep: {text}" for text in expected]


def test_an_engine_that_is_gone_or_has_no_such_path_resets_nothing(tmp_path):
    gone = SimpleNamespace(resets=("/forget",), launches=True), "http://127.0.0.1:9", tmp_path / "engine.log"
    engine = SimpleNamespace(backend=gone[0], url=gone[1], headers={}, log=gone[2])
    assert deployment._reset_caches([engine], lambda event: None) is False
    assert "ConnectError" in gone[2].read_text()
    engine.backend.launches = False  # somebody else's: they may be using its cache
    assert deployment._reset_caches([engine], lambda event: None) is None
    engine.backend.launches, engine.backend.resets = True, ()
    assert deployment._reset_caches([engine], lambda event: None) is None


@pytest.mark.parametrize(("fresh", "resets"), [(True, 2), (False, 3)])
def test_caches_are_reset_before_each_try_of_a_trial(monkeypatch, fresh, resets):
    """A second try asks the prompts of the first: it must not find them in the cache."""
    happened, salts, answers = [], [], iter([True, True, False][-resets:])

    def reset(engines, emit):
        happened.append("reset")
        return next(answers)

    def run_trial(*arguments, caches_reset, salt, **_):
        happened.append("trial")
        salts.append(salt)
        if happened.count("trial") < 3:
            raise deployment.ClientDied("killed by SIGKILL")
        return {"outcome": "ok", "caches_reset": caches_reset}

    monkeypatch.setattr(deployment, "_reset_caches", reset)
    monkeypatch.setattr(deployment, "run_trial", run_trial)
    run = SimpleNamespace(settings=SimpleNamespace(attempts=3))
    engine = SimpleNamespace(backend=SimpleNamespace(launches=True))
    place = SimpleNamespace(engine=engine, engines=(engine,))
    row = deployment._measure(run, place, None, SimpleNamespace(stop=None), lambda event: None, fresh=fresh)
    assert row == {"outcome": "ok", "caches_reset": False}, "the answer before the try that counts"
    assert happened == [*([] if fresh else ["reset"]), "trial", "reset", "trial", "reset", "trial"]
    assert salts[:2] == [None, None], "empty or reset caches need no other headers"
    assert salts[2], "caches that were not reset do"


@pytest.mark.parametrize(
    ("cores", "processes", "engine", "client"),
    [(1, "auto", 1, 1), (2, "auto", 1, 1), (2, 4, 1, 1), (12, "auto", 11, 1), (16, "auto", 14, 2), (16, 4, 12, 4)],
)
def test_the_client_has_a_core_for_each_of_its_processes(monkeypatch, cores, processes, engine, client):
    monkeypatch.setattr(node_cores.os, "sched_getaffinity", lambda pid: set(range(cores)))
    engines, clients = node_cores.split_cores((), processes)
    assert (len(engines), len(clients)) == (engine, client)
    assert cores == 1 or not set(engines) & clients


class FoundModel(ServedModel):
    def reach(self, cache):
        pass

    def prepare(self, cache, progress):
        return cache


def test_weights_for_an_image_are_converted_by_our_own_interpreter(monkeypatch, tmp_path):
    """The interpreter in an image is none of this machine's."""
    image = environments.Environment("python3", image="engine@sha256:0", runtime="docker")
    monkeypatch.setattr(deployment.environments, "prepare_or_plain", lambda *arguments: image)
    monkeypatch.setattr(deployment.fit, "problem", lambda *arguments: None)
    converters = []

    class Converted(Backend):
        def weights(self, model, python, cache_dir, progress):
            converters.append(python)
            return model

    its = Deployment("d", Converted(name="x"), FoundModel(name="m"), 0, None, environment=EnvironmentSpec(name="x"))
    settings = SimpleNamespace(hardware=ANY, cache_dir=str(tmp_path), client=SimpleNamespace(processes=1))
    node = deployment.prepare_node(Work(its, settings, str(tmp_path / "out"), "1", ()), (), lambda event: None)
    assert converters == [sys.executable]
    assert node.launch.python == "python3", "the engine runs with the image's"


def test_a_step_that_needs_an_extra_is_unavailable_in_one_line_and_the_others_go_on(monkeypatch, tmp_path):
    """The suffix steps of a ladder where arctic-inference has no wheel; its first steps do without."""

    def prepare(spec, cache, progress):
        if "+" in spec.name:
            raise environments.EnvironmentFailed("environment cpu+suffix cannot be built: no wheel of arctic-inference")
        return environments.Environment(sys.executable)

    monkeypatch.setattr(environments, "prepare", prepare)
    settings = run_settings(cache_dir=str(tmp_path))
    suffix = EnvironmentSpec(name="cpu+suffix")
    plain = suffix.model_copy(update={"plain": EnvironmentSpec(name="cpu")})
    workload, events = Workload(name="fixed"), {"5 suffix 16": [], "4 seqs 256": []}
    for step, spec in zip(events, (suffix, plain), strict=True):
        trials = tuple(
            Trial(f"{step} {n}", workload, Batch(name="batch", batch_size=1), n, 1, {}, {}, {}) for n in (0, 1)
        )
        its = Deployment("d", Backend(name="x"), FoundModel(name="m"), 0, None, trials, environment=spec)
        work = Work(its, settings, str(tmp_path / "out"), "1", ())
        stop = threading.Event()
        monkeypatch.setattr(deployment, "Prepared", lambda stop=stop: stop.set() or "prepared")  # and no further
        deployment.run_deployment(work, ("0",), events[step].append, stop, threading.Event())
    rows = [event.row for event in events["5 suffix 16"] if isinstance(event, deployment.Finished)]
    assert [(row["trial_id"], row["outcome"]) for row in rows] == [(f"5 suffix 16 {n}", "unavailable") for n in (0, 1)]
    assert all("no wheel of arctic-inference" in row["reason"] and "\n" not in row["reason"] for row in rows)
    assert "prepared" not in events["5 suffix 16"]
    assert "prepared" in events["4 seqs 256"]
    assert not [event for event in events["4 seqs 256"] if isinstance(event, deployment.Finished)]
