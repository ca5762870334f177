"""A small, seeded part of the random input of benchmarks/fuzz.py, and the cases that it has found."""

import random
from itertools import islice
from pathlib import Path

import pytest

from sweep.__main__ import main
from tests.support.fuzz import Case, cases, check, command_line, complete, experiment

CASES = 60  # of each kind; about 5 s
INLINE = ["backend=simulated", "tracking=none", "cluster=inline", "dry_run=true"]


@pytest.mark.parametrize("make", [command_line, experiment])
def test_random_input_is_a_plan_or_one_line(make, tmp_path):
    findings = [check(case, tmp_path) for case in islice(cases(19, make), CASES)]
    wrong = [finding for finding in findings if finding.problem]
    assert not wrong, wrong[0]
    assert {finding.status for finding in findings} == {0, 2}


def test_a_seed_gives_the_same_cases():
    assert list(islice(cases(3, command_line), 20)) == list(islice(cases(3, command_line), 20))
    assert command_line(random.Random(1)) != command_line(random.Random(2))


def refusal(capsys, tmp_path, *arguments, file=None):
    """The one line with which a command line is refused."""
    case = Case("file" if file is not None else "line", list(arguments), "refused", file=file)
    assert main([*complete(case, tmp_path), *INLINE]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("load.batch_size=range(1,2,0)", "load.batch_size=range(1,2,0): expected a list (1,2), range()"),
        ("load.batch_size=range(1,nan)", "load.batch_size=range(1,nan): expected a list (1,2), range()"),
        ("load.batch_size=range(1,1e17)", "load.batch_size=range(1,1e17): too many values"),
        ("--config-dir=", "--config-dir=: expected a folder like conf/"),
        (f"--config-dir={'a' * 400}", "aaa...: no such folder; expected one like conf/"),
        (f"workload.input_tokens={'9' * 5000}", f"workload.input_tokens={'9' * 55}...: Exceeds the limit (4300"),
        ("trial_timeout=inf", "trial_timeout=inf: input should be a finite number"),
        ("hardware.price_per_hour=inf", "hardware.price_per_hour=inf: input should be a finite number"),
        ("backend.itl.mean=inf", "backend.itl.mean=inf: input should be a finite number"),
        ("client.timeouts.connect=true", "client.timeouts.connect=True: input should be a number"),
        ("patience=1e30", "patience=1e+30: expected numbers of at most 1,000,000,000"),
        ("workload.output_tokens=20000000000", "expected numbers of at most 1,000,000,000"),
        ("cluster.simulate={nodes: 1000000000, gpus: 1}", "cluster.simulate.nodes=1000000000"),
        ("cluster.address=h:6379", "address=h:6379 has no effect with cluster=inline"),
    ],
)
def test_what_the_fuzz_found_on_command_lines(capsys, tmp_path, argument, message):
    assert message in refusal(capsys, tmp_path, argument)


@pytest.mark.parametrize("address", ["", "::", ":", "127.0.0.1:-1", "127.0.0.1:99999", f"{'a' * 300}:6379", "h:0"])
def test_an_address_that_is_none_is_refused_without_asking_ray(capsys, tmp_path, address):
    assert "expected HOST:PORT of a Ray head, or auto" in refusal(
        capsys, tmp_path, "cluster=ray", f"cluster.address='{address}'"
    )


def bomb():
    lists = (f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12))
    return "# @package _global_\na0: &a0 [1]\n" + "".join(lists)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (bomb(), "its aliases expand to more than 100,000 values"),
        ("defaults: [{override /load: batch}, {override /load: nope}]\n", "override /load is listed twice"),
        ("cache_dir: ${nope.x}\n", "Interpolation key 'nope.x' not found"),
        ("hydra: {mode: RUN}\n", "hydra: unknown key in experiment/fuzz.yaml"),
        (f"cache_dir: {'x' * 5000}\n", "cache_dir="),
        (
            "grid: {load.batch_size: [true]}\nladder: [{step: a, set: {load.batch_size: 3}}]\n",
            "load.batch_size: the axis occurs in two of grid, zip and ladder",
        ),
        (
            "grid: {load.batch_size: [1, 2]}\nzip: {load.batch_size: [3, 4]}\n",
            "load.batch_size: the axis occurs in two of grid, zip and ladder",
        ),
        (f"baseline: {'[' * 3000}{']' * 3000}\n", "brackets are nested more than 100 deep"),
        (f"baseline: {'{a: ' * 101}1{'}' * 101}\n", "brackets are nested more than 100 deep"),
    ],
)
def test_what_the_fuzz_found_in_experiments(capsys, tmp_path, file, message):
    error = refusal(capsys, tmp_path, "+experiment=fuzz", file=f"# @package _global_\n{file}")
    assert message in error
    assert len(error) < 500


@pytest.mark.parametrize("command", ["status", "report", "studies", "wandb"])
def test_a_run_whose_name_no_folder_can_have_is_refused(capsys, command):
    assert main([command, "a" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_bad_option_of_any_command_is_one_line(capsys):
    assert main(["wandb", "run", "--nope"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nope; see sweep wandb --help\n"


@pytest.mark.parametrize("writable", [True, False])
def test_an_error_of_ours_while_planning_is_no_bad_input(capsys, tmp_path, monkeypatch, writable):
    planned = []

    def fail(settings):
        planned.append(settings.attempts)
        raise ZeroDivisionError("of a check that nobody foresaw")

    cache = tmp_path / "cache" if writable else tmp_path / "file"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t-of-mine")
    monkeypatch.setattr("sweep.cli.run.results_folder", fail)
    assert main([*INLINE, "attempts=7", "name=s3cr3t-of-mine"]) == 70
    error = capsys.readouterr().err
    said = "error: internal error of sweep: ZeroDivisionError: of a check that nobody foresaw; traceback: "
    assert error.startswith(said)
    assert error.count("\n") == 1
    text = Path(error.removeprefix(said).strip()).read_text()
    assert "attempts=7" in text.splitlines()[0]
    assert "in fail\n" in text, "the line that raised it"
    assert "s3cr3t" not in text
    assert planned == [7], "planned once"


@pytest.mark.parametrize(
    "argument", [f"load.batch_size={'x' * 5000}", f"workload.nme={'x' * 5000}", f"model={'x' * 5000}"]
)
def test_a_long_value_is_echoed_to_80_characters(capsys, tmp_path, argument):
    error = refusal(capsys, tmp_path, argument)
    assert argument.partition("=")[0] in error
    assert "x" * 70 in error
    assert "x" * 81 not in error


def test_a_refusal_does_not_echo_a_secret(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "a-word-of-my-own")
    error = refusal(capsys, tmp_path, "backend.flags={api-key: hunter2, model: 3}")
    assert "hunter2" not in error
    assert "api-key looks like a secret" in error
    assert "a-word-of-my-own" not in refusal(capsys, tmp_path, "retry=a-word-of-my-own")
    assert "sk-abc" not in refusal(capsys, tmp_path, "nope=sk-abcdefghijklmnopqrstuvwxyz")
