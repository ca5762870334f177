"""scripts/gpu-check: its sections, with and without a GPU, and what it reports. Engines are tested by its rehearsal."""

import json
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest

from backends import installed
from backends.base import EnvironmentSpec, Host
from backends.launch import gpus, host_facts
from backends.launch.gpus import Gpu
from backends.prepare import environments, locks
from backends.tables import check
from scripts import gpu_check
from sweep.__main__ import main
from sweep.base import code_version
from sweep.base.config import cache_directory
from sweep.node import agreement
from tests.engines.test_gpu_memory import BY_BATCH, TOO_LARGE, too_large
from tests.support.index_stub import make_wheel

EVERY = ("install", "conformance", "memory", "reset", "power", "two_gpus", "bound")
SHORT_LIMIT = 8.0  # s: a section that only prints ends within it on a busy machine, one that sleeps costs it


@pytest.fixture
def two_l4s(monkeypatch):
    present = tuple(Gpu(f"GPU-{number}", number, "NVIDIA L4", "8.9") for number in range(2))
    for function in (gpus.present, gpus.visible):
        monkeypatch.setattr(gpus, function.__name__, lambda: present)
    monkeypatch.setattr(gpus, "driver", lambda: "580.65")
    monkeypatch.setattr(host_facts.task, "cuda_release", lambda compiler: None)


def names(folder: Path) -> list[str]:
    return [section.name for section in gpu_check.sections(folder)]


def test_the_sections_of_a_machine_without_a_gpu_are_a_rehearsal(tmp_path):
    listed = {section.name: section for section in gpu_check.sections(tmp_path)}
    assert {name.partition(":")[0] for name in listed} == set(EVERY)
    assert listed["two_gpus"].obstacle() == "0 GPUs here, no part of one (MIG)"
    assert "conformance:sglang" not in listed


def test_the_sections_of_a_machine_with_gpus_are_every_engine_that_installs(two_l4s, tmp_path):
    listed = {section.name: section for section in gpu_check.sections(tmp_path)}
    installable = {name.partition(":")[2] for name in listed if name.startswith("install:")}
    assert {"vllm", "sglang", "lmdeploy", "transformers", "ctranslate2", "llamacpp", "exllama"} <= installable
    only = "vllm and not vllm_gptq and not vllm_offline"
    assert listed["conformance:vllm"].command[-1] == f"{only} and not forgets_prompts"
    assert listed["reset:vllm"].command[-1] == f"{only} and forgets_prompts"
    assert listed["memory:vllm"].command[-2:] == ("-k", only)
    assert "reset:llamacpp" not in listed, "its cache is off, so there is nothing to reset"
    assert listed["two_gpus"].obstacle() is None
    assert "backend.gpus=2" in listed["two_gpus"].command
    assert "model=random-llama-2-7b" in listed["bound:vllm"].command
    assert gpu_check.environ(None)["SWEEP_TEST_ON"] == "cuda"


@pytest.mark.parametrize("gpu", [False, True])
def test_every_sweep_of_a_section_is_a_plan(gpu, tmp_path, request, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if gpu:
        request.getfixturevalue("two_l4s")
    for section in gpu_check.sections(tmp_path):
        if section.out and not section.obstacle():
            assert main([*section.command[3:], "dry_run=true"]) == 0
            assert "unavailable" not in capsys.readouterr().out


@pytest.mark.parametrize("name", [*TOO_LARGE, *BY_BATCH])
def test_what_asks_for_too_much_memory_is_made_of_the_engines_flags(name):
    backend = too_large(name) if name in TOO_LARGE else installed.configured(name)
    assert check.refused(backend, None) is None


def test_every_engine_is_asked_for_too_much_memory():
    backends = [installed.configured(name) for name in installed.names()]
    launched = {backend.name for backend in backends if backend.launches and backend.traits.computes_model}
    assert {*TOO_LARGE, *BY_BATCH} == launched


def python(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", text


@pytest.fixture
def ran(tmp_path, monkeypatch, capsys):
    """ran(sections, *arguments): what the command prints of these sections."""
    monkeypatch.setattr(gpu_check, "engines", lambda: {"vllm": "environment vllm: vllm 0.32.0"})

    def printed(sections: list[gpu_check.Section], *arguments: str) -> str:
        monkeypatch.setattr(gpu_check, "sections", lambda folder: sections)
        gpu_check.main(["--folder", str(tmp_path), *arguments])
        return capsys.readouterr().out

    return printed


def test_results_are_kept_and_reported(ran, tmp_path):
    made = [
        gpu_check.Section("good", python("print('12 passed')")),
        gpu_check.Section("bad", python("raise SystemExit('a | b')")),
        gpu_check.Section("home", python(f"print({str(Path.home() / '.cache')!r})")),
        gpu_check.Section("none", (), obstacle=lambda: "1 GPUs here"),
    ]
    days = [code_version.now()[:10]]
    ran(made)
    days.append(code_version.now()[:10])  # another one after midnight
    text = (tmp_path / "report.md").read_text()
    for line in (
        r"\| good \| ok \| \d+ s \| 12 passed \|",
        r"\| bad \| failed \| \d+ s \| a \\\| b \|",
        r"\| home \| ok \| \d+ s \| ~/\.cache \|",
        r"\| none \| skipped \| 0 s \| 1 GPUs",
        r"- vllm: environment vllm: vllm 0\.32\.0",
        rf"at commit {re.escape(str(code_version.commit()))}, from ({'|'.join(days)}) ",
    ):
        assert re.search(line, text), text
    assert ran(made, "good").startswith("good: ok")


@pytest.mark.slow
def test_only_what_is_ok_is_done_and_the_untried_goes_first(ran, tmp_path, monkeypatch):
    """A section that fails, is cut off or cannot be made yet is retried, but keeps none from its turn."""
    monkeypatch.setattr(gpu_check, "LIMIT", SHORT_LIMIT)
    there = tmp_path / "compiled"
    compiles = f"import os, time; os.path.exists({str(there)!r}) or time.sleep(600)"
    made = [
        gpu_check.Section("install", python(compiles)),
        gpu_check.Section("conformance", python("print('ok')"), obstacle=lambda: None if there.exists() else "first"),
        gpu_check.Section("fails", python("raise SystemExit(1)")),
    ]
    assert outcomes(ran(made)) == {"install": "timeout", "conformance": "skipped", "fails": "failed"}
    there.touch()
    made.append(gpu_check.Section("new", python("print('ok')")))
    again = outcomes(ran(made))
    assert next(iter(again.items())) == ("new", "ok")
    assert again == {"new": "ok", "install": "ok", "conformance": "ok", "fails": "failed"}
    assert outcomes(ran(made)) == {"fails": "failed"}


def outcomes(printed: str) -> dict[str, str]:
    return {line.split(": ")[0]: line.split(": ")[1].split()[0] for line in printed.splitlines()}


def test_what_makes_a_section_possible_is_asked_when_its_turn_comes(ran, tmp_path):
    there = tmp_path / "there"
    made = [
        gpu_check.Section("install", python(f"open({str(there)!r}, 'w')")),
        gpu_check.Section("conformance", python("print('ok')"), obstacle=lambda: None if there.exists() else "first"),
    ]
    assert outcomes(ran(made)) == {"install": "ok", "conformance": "ok"}


@pytest.mark.slow
def test_a_section_is_ended_within_ten_minutes_even_if_it_does_not_want_to(tmp_path, monkeypatch):
    assert gpu_check.LIMIT + gpu_check.GRACE < 600
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    section = gpu_check.Section("deaf", python(f"{deaf}; time.sleep(600)"))
    result = gpu_check.run(section, tmp_path, None, limit=SHORT_LIMIT)
    assert (result.outcome, result.detail) == ("timeout", "deaf")
    assert result.seconds < 60


@pytest.mark.parametrize(("before", "afresh"), [("failed", True), ("ok", True), ("timeout", False)])
def test_a_sweep_that_is_asked_for_again_starts_afresh_unless_it_was_cut_off(before, afresh, tmp_path):
    section = gpu_check.Section("x", python("import sys; print(sys.argv[1:])"), out=str(tmp_path / "none"))
    result = gpu_check.Result("x", before, 1.0, "", code_version.now(), None)
    assert ("fresh=true" in gpu_check.run(section, tmp_path, None, result).detail) == afresh


def test_an_engine_that_is_not_installed_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = {section.name: section for section in gpu_check.sections(tmp_path)}
    assert listed["conformance:vllm"].obstacle() == "environment cpu has not been installed yet; run install:vllm first"


def test_without_network_only_the_folder_of_wheels_is_used(tmp_path):
    section = gpu_check.Section("x", (sys.executable, "-m", "pip", "config", "list"))
    assert gpu_check.run(section, tmp_path, tmp_path / "wheels").outcome == "ok"
    text = (tmp_path / "x.log").read_text()
    assert f":env:.find-links='{tmp_path / 'wheels'}'" in text
    assert ":env:.no-index='1'" in text
    assert json.loads(json.dumps(gpu_check.environ(tmp_path)))["HF_HUB_OFFLINE"] == "1"


@pytest.mark.slow
def test_wheels_are_fetched_with_their_locks(tmp_path, monkeypatch):
    """What is resolved where there is a network is a lock on the machine without."""
    (tmp_path / "offered").mkdir()
    make_wheel(tmp_path / "offered", "demo", "1.0")
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "offered")}
    for name, value in {**settings, "XDG_CACHE_HOME": str(tmp_path / "here")}.items():
        monkeypatch.setenv(name, value)
    spec, wheels = EnvironmentSpec(name="own", requirements=("demo==1.0",)), tmp_path / "wheels"
    wheels.mkdir()
    gpu_check._fetch(spec, wheels)
    assert [file.name for file in wheels.glob("*.whl")] == ["demo-1.0-py3-none-any.whl"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    there = locks.remembered(cache_directory(None))
    assert locks.needed(locks.with_lock(spec, there))
    gpu_check.remember(wheels)
    assert locks.with_lock(spec, there).lock.pins == ("demo==1.0",)


def test_wheels_travel_in_parts(tmp_path, monkeypatch, capsys):
    """A part that is missing or damaged is named, and nothing is unpacked."""
    monkeypatch.setattr(gpu_check, "PART", 4096)
    wheels, parts, there = tmp_path / "wheels", tmp_path / "parts", tmp_path / "there"
    (wheels / "locks").mkdir(parents=True)
    (wheels / "a.whl").write_bytes(bytes(range(256)) * 30)
    (wheels / "locks" / "cpu.txt").write_text("a==1")
    assert gpu_check.main(["--wheels", str(wheels), "--pack", str(parts)]) == 0
    files = sorted(parts.iterdir())
    assert all(file.stat().st_size <= 4096 for file in files)
    last = files[-1].read_bytes()
    for damage, message in ((b"x", "damaged or incomplete"), (None, f"part {len(files)} of {len(files)} is missing")):
        files[-1].unlink()
        if damage:
            files[-1].write_bytes(damage)
        with pytest.raises(SystemExit):
            gpu_check.main(["--wheels", str(there), "--unpack", str(parts)])
        assert message in capsys.readouterr().err
        assert not there.exists()
        files[-1].touch()
    files[-1].write_bytes(last)
    assert gpu_check.unpack(there, parts) is None
    assert (there / "a.whl").read_bytes() == (wheels / "a.whl").read_bytes()
    assert (there / "locks" / "cpu.txt").read_text() == "a==1"


def test_two_files_come_back_in_time(ran, tmp_path):
    """The report, and an archive of everything; a section that has no time any more is left for the next command."""
    out = tmp_path / "out"
    made = [gpu_check.Section("good", python("print('12 passed')")), gpu_check.Section("slow", python("input()"))]
    assert outcomes(ran(made, "--out", str(out), "--within", "600", "good")) == {"good": "ok"}
    assert sorted(path.name for path in out.iterdir()) == ["report.md", "results.tar.gz"]
    with tarfile.open(out / "results.tar.gz") as archive:
        assert {"gpu-check/good.log", "gpu-check/good.json", "gpu-check/report.md"} <= set(archive.getnames())
    assert ran(made, "--within", "40") == ""


def test_the_interpreter_that_is_there_runs_transformers_and_the_reference(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_CONFIG_DIR", "")  # so that it is taken back
    monkeypatch.setattr(gpu_check.environments, "installed", lambda program: dict.fromkeys(("torch", "transformers")))
    assert gpu_check.use_python(sys.executable, tmp_path) == f"--python={sys.executable}: has no accelerate"
    versions = dict.fromkeys(("torch", "transformers", "accelerate"), "1.0")
    monkeypatch.setattr(gpu_check.environments, "installed", lambda program: versions)
    ran([gpu_check.Section("x", python("print('ok')"))], "--python", sys.executable)
    for choice in (installed.configured("transformers").env, agreement.ENVIRONMENT):
        spec = environments.resolve(choice, "cpu")
        assert environments.prepare(locks.locked(spec, tmp_path, print), tmp_path, print).python == sys.executable
    assert installed.planned(installed.configured("transformers"), Host(), tmp_path)[0].endswith(sys.executable)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fetch", "vllm"], "need --wheels DIR"),
        (["--python", "/nope"], "--python=/nope: not an executable file"),
        (["--fetch", "--wheels", "x", "--on", "drivers=5"], "--on=drivers"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
