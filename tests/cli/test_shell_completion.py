"""What can be set, with its meaning, and what a shell completes."""

import shutil
import subprocess
import sys

import pytest

from sweep.__main__ import main
from sweep.base.config import GROUPS, ROOT
from sweep.base.options import ConfigPath
from sweep.base.wording import flow
from sweep.cli.commands import COMMANDS
from sweep.cli.keys import keys_of
from sweep.cli.shell_completion import SCRIPTS, candidates

OPTIONS = [(group, option) for group in GROUPS for option in ConfigPath().choices(group)]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_has_keys_that_a_command_line_takes(group, option):
    for key in keys_of(ConfigPath(), group, option):
        assert key.name.startswith(f"{group}.")
        assert "\n" not in flow(key.value)


@pytest.mark.parametrize(("group", "option"), [("", "config"), ("backend", "vllm"), ("backend", "simulated")])
def test_every_key_says_what_it_means(group, option):
    assert not [key.name for key in keys_of(ConfigPath(), group, option) if not key.meaning]


def test_a_key_has_the_value_and_the_meaning_of_its_yaml_else_of_its_class():
    keys = {key.name: key for key in keys_of(ConfigPath(), "backend", "vllm")}
    assert keys["backend.cpu_flags"].value == {"enforce-eager": True}
    assert keys["backend.group_size"][1:3] == (128, "number of weights that share a scale in a 4-bit checkpoint")
    assert keys["backend.batch_form"].allowed == ("list", "streams")
    assert keys["backend.verify_tls"].allowed == ("true", "false")
    runs = {key.name: key for key in keys_of(ConfigPath())}
    assert runs["retry"].allowed == ("in_run", "next_run", "none")
    assert runs["client.processes"].value == "auto"


@pytest.mark.parametrize("arguments", [["backends", "llamacpp"], ["run", "backend=llamacpp", "--help"]])
def test_help_of_a_backend_lists_its_keys(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "200")  # no wrapping
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "backend.launch_timeout" in printed
    assert "s within which the engine must be ready" in printed


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("stat", ["status"]),
        ("backend=llama", ["backend=llamacpp"]),
        ("run backend=llamacpp,tg", ["backend=llamacpp,tgi"]),
        ("+exp", ["+experiment="]),
        ("run +experiment=servi", ["+experiment=serving", "+experiment=serving_ladder"]),
        ("load=closed load.thi", ["load.think_time=", "load.think_distribution="]),
        ("load=closed load.think_distribution=", [f"load.think_distribution={v}" for v in ("constant", "exponential")]),
        ("load.batch_s", ["load.batch_size="]),
        ("run dry_run=", ["dry_run=true", "dry_run=false"]),
        ("backends inst", ["install"]),
        ("backends install llama", ["llamacpp"]),
        ("completion z", ["zsh"]),
        ("copy s3:", []),
    ],
)
def test_what_a_word_may_become(line, completed):
    assert candidates(COMMANDS, line.split(), ConfigPath()) == completed


@pytest.mark.parametrize("command", ["status", "report", "compare", "rerun", "studies", "wandb"])
def test_a_run_is_completed_by_the_folders_that_hold_one(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "night").mkdir(parents=True)
    (tmp_path / "results" / "night" / "plan.jsonl").write_text("")
    assert candidates(COMMANDS, [command, ""], ConfigPath()) == ["results/night"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_shell_has_a_script(capsys, shell):
    assert main(["completion", shell]) == 0
    assert "sweep completion --words" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [("sweep run backend=llama", ["llamacpp"]), ("sweep sel", ["selfcheck"]), ("sweep run load=clo", ["closed"])],
)
def test_bash_replaces_what_stands_after_the_last_equals_sign(line, completed):
    script = f"""
sweep() {{ {sys.executable} -m sweep "$@"; }}
{SCRIPTS["bash"]}
COMP_LINE={line!r} COMP_POINT={len(line)}
_sweep 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    finished = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.split() == completed
