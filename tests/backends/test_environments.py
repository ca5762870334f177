"""Environments: what is asked, what uv is told, and real builds from wheels made on the spot."""

import contextlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.base import EnvironmentChoice, EnvironmentSpec, Host
from backends.launch import task
from backends.prepare import environments, fit, locks, pip_settings, uv
from sweep.__main__ import main
from sweep.base.options import ConfigPath
from tests.support.index_stub import make_wheel, serving_wheels


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A machine whose pip knows nothing but a folder of wheels, and an index that is not there."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "demo", "1.0", ("unwanted", "helper>=2"))
    make_wheel(folder, "helper", "2.5")
    make_wheel(folder, "unwanted", "1.0")
    told = {":env:.find-links": str(folder), ":env:.no-index": "1", "global.extra-index-url": "file:///no/such/index"}
    listing = "".join(f"{key}={value!r}\n" for key, value in told.items())
    real = pip_settings.subprocess.run

    def run(command, **options):
        answer = real([sys.executable, "-c", f"print({listing!r})"], **options) if "pip" in command else None
        return answer or real(command, **options)

    monkeypatch.setattr(pip_settings.subprocess, "run", run)
    monkeypatch.setenv("HOME", str(tmp_path / "empty-home"))
    return folder


def prepare(spec: EnvironmentSpec, cache: Path, progress) -> environments.Environment:
    return environments.prepare(locks.locked(spec, cache, progress), cache, progress)


SPEC = EnvironmentSpec(name="demo", requirements=("demo==1.0",), exclude=("unwanted",))


def test_builds_once_with_exact_versions_and_without_what_is_excluded(wheels, tmp_path):
    lines: list[str] = []
    first = prepare(SPEC, tmp_path / "cache", lines.append)
    assert first.versions["demo"] == "1.0"
    assert first.versions["helper"] == "2.5"
    assert "unwanted" not in first.versions
    assert environments.fingerprint(locks.locked(SPEC, tmp_path / "cache", lines.append)) in first.python
    assert any("building" in line for line in lines)
    assert any("ready" in line for line in lines)
    probe = [first.python, "-c", "import demo; print(demo.__cached__)"]
    compiled = environments.subprocess.run(probe, capture_output=True, text=True).stdout.strip()
    assert Path(compiled).exists(), "no bytecode: every start of the engine would compile it again"
    lines.clear()
    assert prepare(SPEC, tmp_path / "cache", lines.append) == first
    assert lines == []


def test_what_compiles_itself_when_imported_is_kept_with_the_environment(wheels, tmp_path):
    environment = prepare(SPEC.model_copy(update={"imports": ("demo",)}), tmp_path / "cache", lambda line: None)
    extensions = Path(environment.python).parents[1] / task.EXTENSIONS
    assert extensions.is_dir()
    assert task.activated(environment.python)["TORCH_EXTENSIONS_DIR"] == str(extensions)


def test_a_build_that_was_killed_is_repeated(wheels, tmp_path):
    environment = prepare(SPEC, tmp_path / "cache", lambda line: None)
    folder = Path(environment.python).parents[1]
    (folder / environments.COMPLETE).unlink()
    (folder / "bin" / "python").unlink()
    again = prepare(SPEC, tmp_path / "cache", lambda line: None)
    assert again == environment
    assert environments.installed(again.python)["demo"] == "1.0"


def test_two_builders_build_once(wheels, tmp_path):
    lines: list[str] = []
    spec = locks.locked(SPEC, tmp_path, lines.append)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: environments.prepare(spec, tmp_path, lines.append), range(3)))
    assert sum("building" in line for line in lines) == 1
    assert sum("ready" in line for line in lines) == 1


def test_what_cannot_be_built_is_one_line_that_names_the_log(wheels, tmp_path):
    spec = EnvironmentSpec(name="broken", requirements=("demo==9.9",))
    with pytest.raises(environments.EnvironmentFailed) as caught:
        prepare(spec, tmp_path, lambda line: None)
    message = str(caught.value)
    assert message.startswith("environment broken cannot be resolved: ")
    assert "demo==9.9" in message
    assert "\n" not in message
    log = Path(message.rpartition("log: ")[2])
    assert "demo==9.9" in log.read_text()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(environments.EnvironmentFailed, match="environment demo cannot be resolved: .*Not a directory"):
        prepare(SPEC, tmp_path / "file", lambda line: None)


@pytest.mark.parametrize(
    ("driver", "index"), [("550.54", "cu126"), ("579.9", "cu126"), ("580", "cu130"), (None, "auto")]
)
def test_pytorchs_index_for_gpus_is_that_of_the_driver(wheels, tmp_path, monkeypatch, driver, index):
    make_wheel(wheels, "torch", "2.0+cpu")  # no build for GPUs among pip's
    calls: list[str | None] = []
    real = uv.Uv.run

    def run(self, *arguments, **more):
        calls.append(more.pop("UV_TORCH_BACKEND", None))
        real(self, *arguments, **more)

    monkeypatch.setattr(uv.Uv, "run", run)
    spec = EnvironmentSpec(name="mine", requirements=("torch",), torch="cuda")
    locks.resolve_lock(fit.for_driver(spec, Host(gpus=("NVIDIA L4",), driver=driver)), tmp_path / "cache", print)
    assert calls == [None, index]


@pytest.mark.parametrize(("builds", "asked"), [(("2.0", "2.0+cpu"), False), (("2.0",), True)])
def test_pytorchs_index_is_asked_only_where_pip_finds_no_cpu_build(wheels, tmp_path, monkeypatch, builds, asked):
    for version in builds:
        make_wheel(wheels, "torch", version)
    calls: list[dict[str, str]] = []
    real = uv.Uv.run

    def run(self, *arguments, **more):
        calls.append(more)
        # The real index is not for a test: uv resolves again from what is here.
        real(self, *arguments, **{k: v for k, v in more.items() if k != "UV_TORCH_BACKEND"})

    monkeypatch.setattr(uv.Uv, "run", run)
    spec = EnvironmentSpec(name="torch", requirements=("torch==2.0",), torch="cpu")
    versions = prepare(spec, tmp_path / "cache", lambda line: None).versions
    assert versions["torch"] == builds[-1]
    assert [call.get("UV_TORCH_BACKEND") for call in calls] == ([None, "cpu", None, None] if asked else [None] * 3)


def test_the_users_own_programs_are_used_as_they_are(tmp_path):
    environment = prepare(environments.resolve(EnvironmentChoice(python=sys.executable), "cpu"), tmp_path, print)
    assert environment.python == sys.executable
    assert "pytest" in environment.versions
    environment = prepare(environments.resolve(EnvironmentChoice(binary="sh"), "cpu"), tmp_path, print)
    assert str(environment.binary).endswith("/sh")
    assert list(tmp_path.iterdir()) == []
    for key in ("python", "binary"):
        spec, problem = environments.resolve(EnvironmentChoice(**{key: "/no/file"}), "cpu"), "not an executable file"
        with pytest.raises(environments.EnvironmentFailed, match=f"backend.env.{key}=/no/file: {problem}"):
            prepare(spec, tmp_path, print)


def test_shipped_environments_resolve():
    for name in ConfigPath().choices("environment"):
        spec = environments.resolve(EnvironmentChoice(cpu=name), "cpu")
        assert spec.requirements or spec.image


def test_unknown_names_are_told_with_what_is_known(capsys):
    with pytest.raises(ValueError, match=r"backend.env.cpu=nope: no such environment; expected: .*cpu"):
        environments.resolve(EnvironmentChoice(cpu="nope"), "cpu")
    with pytest.raises(ValueError, match=r"backend.env.cuda names no environment"):
        environments.resolve(EnvironmentChoice(cpu="cpu"), "cuda")
    assert main(["backend=vllm", "backend.env.cpu=nope", "model=tiny-llama", "workload=qa", "dry_run=true"]) == 2
    assert capsys.readouterr().err.startswith("error: backend.env.cpu=nope: no such environment; expected: ")


def test_the_fingerprint_knows_all_that_decides_what_is_installed():
    changed = [
        SPEC.model_copy(update={"requirements": ("demo==1.1",)}),
        SPEC.model_copy(update={"exclude": ()}),
        SPEC.model_copy(update={"python_version": "3.12"}),
        SPEC.model_copy(update={"torch": "cpu"}),
        SPEC.model_copy(update={"python": "/usr/bin/python3"}),
    ]
    prints = {environments.fingerprint(spec) for spec in [SPEC, *changed]}
    assert len(prints) == len(changed) + 1
    assert environments.fingerprint(SPEC) == environments.fingerprint(
        EnvironmentSpec(**json.loads(SPEC.model_dump_json()))
    )


def test_pips_settings_are_handed_to_uv(monkeypatch, tmp_path):
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE", "UV_HTTP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    pip = {
        "index-url": "https://user:secret@example.invalid/simple",
        "extra-index-url": f"https://example.invalid/more\nfile://{tmp_path} file:///no/such/index",
        "find-links": f"{tmp_path} /no/such/folder",
        "cert": "/etc/cert.pem",
        "default-timeout": "180",
    }
    settings = pip_settings.uv_settings(pip)
    assert settings["UV_DEFAULT_INDEX"] == "https://user:secret@example.invalid/simple"
    assert settings["UV_INDEX"] == f"https://example.invalid/more file://{tmp_path}"
    assert settings["UV_FIND_LINKS"] == str(tmp_path)
    assert settings["SSL_CERT_FILE"] == "/etc/cert.pem"
    assert settings["UV_HTTP_TIMEOUT"] == "180"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    monkeypatch.setenv("UV_INDEX", "https://example.invalid/mine")
    assert "UV_INDEX" not in pip_settings.uv_settings(pip)


def test_an_environments_own_index_is_asked_before_the_users(monkeypatch):
    """TensorRT-LLM's wheels are in NVIDIA's index alone; the public one has a stub under the same name."""
    spec = environments.resolve(EnvironmentChoice(cuda="tensorrt_llm"), "cuda")
    (own,) = spec.index
    monkeypatch.delenv("UV_INDEX", raising=False)
    pip = {"extra-index-url": "https://example.invalid/mine"}
    assert uv.uv_settings(pip, spec.index)["UV_INDEX"] == f"{own} https://example.invalid/mine"
    monkeypatch.setenv("UV_INDEX", "https://example.invalid/uv")
    assert uv.uv_settings(pip, spec.index)["UV_INDEX"] == f"{own} https://example.invalid/uv"


@pytest.fixture
def served(tmp_path):
    """served(name, version, requires) -> URL of a package index that has this one wheel."""
    with contextlib.ExitStack() as indexes:

        def url(name: str, version: str, requires: tuple[str, ...] = ()) -> str:
            folder = tmp_path / f"index-of-{name}"
            folder.mkdir()
            make_wheel(folder, name, version, requires)
            return indexes.enter_context(serving_wheels(folder)).url

        yield url


@pytest.mark.slow
def test_what_only_an_environments_own_index_has_is_resolved_with_the_users(served, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", served("helper", "2.0"))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    spec = EnvironmentSpec(name="own", requirements=("demo==1.0",), index=(served("demo", "1.0", ("helper>=2",)),))
    locked = locks.resolve_lock(spec, tmp_path / "cache", print)
    assert locked.lock.pins == ("demo==1.0", "helper==2.0")
    with pytest.raises(environments.EnvironmentFailed, match="demo"):
        locks.resolve_lock(spec.model_copy(update={"index": ()}), tmp_path / "cache", print)


def test_pips_files_and_variables_are_read(monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /a\n    /b\n[install]\nno-index = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_CERT", "/etc/cert.pem")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    settings = pip_settings.pip_settings()
    assert settings["find-links"].split() == ["/a", "/b"]
    assert settings["no-index"] == "true"
    assert settings["cert"] == "/etc/cert.pem"


def test_settings_that_pip_cannot_read_are_an_error_of_one_line(monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(environments.EnvironmentFailed, match=r"^pip's settings cannot be read: .*; see `.*` *$"):
        uv.Uv("demo", tmp_path, tmp_path / "log", print)


def test_small_downloads_are_reported_together(monkeypatch, tmp_path):
    lines = [
        "Resolved 4 packages in 9ms",
        "Downloading a (2.5MiB)",
        "Downloading b (1.5GiB)",
        "Downloading c (512.0KiB)",
    ]
    lines += ["Prepared 4 packages in 15.35s", " + a==1.0", "Installed 4 packages in 233ms"]
    monkeypatch.setattr(uv, "find_uv_bin", lambda: "printf")
    reported = []
    uv.Uv("demo", tmp_path, tmp_path / "log", reported.append).run("%s\\n", *lines)
    assert reported == [
        "environment demo: Resolved 4 packages in 9ms",
        "environment demo: Downloading b (1.5GiB)",
        "environment demo: Prepared 4 packages in 15.35s, 3 downloads, 1,539 MiB in total",
        "environment demo: Installed 4 packages in 233ms",
    ]
    assert (tmp_path / "log").read_text().splitlines()[-len(lines) :] == lines  # the log has all of them
