"""The wheel: what it holds, and a trial with it outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sweep.base.config import ROOT

FOLDERS = ("sweep", "backends", "analysis", "conf")
TRIAL = (
    "backend=simulated model=tiny-llama workload=synthetic workload.num_requests=4 workload.input_tokens=16 "
    "workload.output_tokens=8 load=closed load.concurrency=2 tracking=none out=results/once"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def run(*command, cwd, **environment):
    """A command as in a shell where nothing points to the checkout."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )


def test_it_holds_one_package_with_the_four_folders(wheel):
    expected = {
        f"llm_sweep/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected | {"llm_sweep/__init__.py"}


@pytest.mark.ray
def test_a_trial_outside_the_checkout(wheel, tmp_path):
    """In a fresh environment that has the dependencies of this one, on the default cluster: a Ray of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, sweep = tmp_path / "venv/bin/python", tmp_path / "venv/bin/sweep"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": tmp_path / "venv"}))
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    assert run(*install, cwd=tmp_path).returncode == 0
    empty = tmp_path / "empty"
    empty.mkdir()

    finished = run(sweep, *TRIAL.split(), cwd=empty)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    outcome = "from llm_sweep import analysis; print(analysis.__file__, *analysis.load('results/once').outcome)"
    printed = run(python, "-c", outcome, cwd=empty).stdout.split()
    assert printed == [str(purelib / "llm_sweep" / "analysis" / "__init__.py"), "ok"]


def other_analysis(folder):
    (folder / "analysis").mkdir()
    (folder / "analysis" / "__init__.py").write_text("")
    return folder


def test_another_package_of_that_name_that_is_loaded_is_an_error_of_one_line(tmp_path):
    program = f"import analysis, sys; sys.path.insert(0, {str(ROOT)!r}); import llm_sweep"
    error = run(sys.executable, "-c", program, cwd=other_analysis(tmp_path)).stderr.splitlines()[-1]
    assert error.startswith("ImportError: llm_sweep: another package named 'analysis' is already imported")
    assert str(tmp_path / "analysis") in error


def test_a_folder_that_holds_a_package_of_that_name_is_refused(tmp_path):
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; import llm_sweep; sys.exit(llm_sweep.main())"
    finished = run(sys.executable, "-c", program, cwd=other_analysis(tmp_path))
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {tmp_path / 'analysis'}: ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_names_are_the_same_modules():
    program = (
        "import llm_sweep, analysis; from llm_sweep import analysis as other;"
        "assert other is analysis and llm_sweep.analysis is analysis and analysis.__spec__.name == 'analysis'"
    )
    assert run(sys.executable, "-c", program, cwd=ROOT).stderr == ""
    error = run(sys.executable, "-c", "import llm_sweep.analysis.load", cwd=ROOT).stderr.splitlines()[-1]
    assert error == "ModuleNotFoundError: No module named 'llm_sweep.analysis'"  # never a second copy
