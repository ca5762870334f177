"""What a newcomer reads first: README's size, links that resolve, a tutorial and examples that run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis import load
from sweep.base.config import ROOT
from sweep.node.machine.sharing import VARIABLE

PAGES = [path for path in ROOT.rglob("*.md") if not {".venv", "node_modules", ".git"} & set(path.parts)]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_short_page() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_no_file_names_a_folder_of_one_machine() -> None:
    """As pictures and logs do that were made by hand."""
    found = subprocess.run(["git", "grep", "-nI", "[/]root/"], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("", "")


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name}" not in index] == ["README.md"]


def sweep(arguments: list[str], folder: Path) -> str:
    """What the command prints in a folder; it must end with status 0. A busy machine may limit it twice."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder), VARIABLE: "tests"}
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-m", "sweep", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        if run.returncode == 0:
            return run.stdout
    raise AssertionError(run.stdout + run.stderr)


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 8
    printed = [sweep(arguments, tmp_path) for program, *arguments in commands if program == "sweep"]
    assert all(printed)
    assert len(load(tmp_path / "results" / "first")) == 1
    assert len(load(tmp_path / "results" / "grid")) == 12


@pytest.mark.slow
def test_the_experiment_and_the_script_of_the_examples_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    folder = tmp_path / "examples" / "experiment"
    sweep(["run", "+experiment=chunked", "cluster=inline", "tracking=none"], folder)
    script = [sys.executable, "../read_results.py", "results/chunked"]
    run = subprocess.run(script, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert "12 of 12 trials have a result" in run.stdout
    assert "synthetic, 16 users: chunked_prefill=True" in run.stdout


@pytest.mark.slow
def test_the_workload_of_the_examples_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "workload", tmp_path / "workload")
    (words,) = re.findall(r"`sweep (run .*?workload=support.*?)`", (ROOT / "examples" / "README.md").read_text())
    sweep(words.split(), tmp_path / "workload")
    (trial,) = load(tmp_path / "workload" / "results" / "support").to_dict("records")
    assert (trial["outcome"], trial["num_requests"]) == ("ok", 8)
    assert trial["output_tokens"] == 48 + 40 + 24 + 56 + 40 + 16 + 64 + 16


def test_the_backend_of_the_examples_is_the_documents() -> None:
    files = {path for path in (ROOT / "examples" / "backend").rglob("*") if path.is_file()}
    document = (ROOT / "docs" / "backends.md").read_text()
    assert len(files) == 3
    assert [path for path in files if path.read_text() not in document] == []


def test_the_issue_forms_are_forms_and_ask_for_a_capsule() -> None:
    forms = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert all({"name", "description", "body"} <= form.keys() for form in forms.values())
    assert sum("sweep rerun RUN#TRIAL --capsule" in str(form) for form in forms.values()) >= 2
