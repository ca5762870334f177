"""An index, a hub or a store that fails while a run is planned: waited for, then status 75; it replaces nothing."""

import json
import re

import pytest

from sweep.__main__ import main
from sweep.disk import heartbeat_lock, object_store
from sweep.disk.run_files import RunPaths, read_trials
from sweep.drive import policy
from sweep.inputs import package_model
from sweep.plan.compose import compose_run
from sweep.plan.planning import Surroundings, make_plan
from tests.drive.test_locks import command, index, measure  # noqa: F401 - a fixture
from tests.inputs.test_model import folder, hub  # noqa: F401 - fixtures
from tests.rerun.test_rerun import row, write_run
from tests.support.hub_stub import COMMITS, Hub
from tests.support.index_stub import serving_wheels

ONCE = ["backend=simulated", "load=batch", "load.batch_size=1", "workload.num_requests=2"]
ONCE += ["workload.warmup_requests=0", "cluster=inline", "tracking=none", "hardware=cpu"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Pauses of a machine that has no time; uv asks each question once, so that the outage is the run's to wait for."""
    monkeypatch.setattr(policy, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(policy, "FIRST_PATIENCE", 60.0)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")


@pytest.fixture
def online(index, tmp_path, monkeypatch):  # noqa: F811
    """The wheels of the two distributions behind a server, which the user's pip has for its index."""
    with serving_wheels(index) as server:
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {server.url}\n")
        for name in ("PIP_INDEX_URL", "PIP_NO_INDEX", "UV_NO_INDEX", "UV_DEFAULT_INDEX"):
            monkeypatch.delenv(name, raising=False)
        yield server


def rows(tmp_path):
    return read_trials(RunPaths(tmp_path / "out").trials)


@pytest.mark.slow
def test_an_index_that_fails_twice_costs_no_trial(online, tmp_path, capsys):
    """The deployment was `unavailable` for the night, and the status 0."""
    online.failures = 2
    measure(tmp_path)
    (row,) = rows(tmp_path)
    assert row["outcome"] == "ok"
    said = capsys.readouterr().err
    assert said.count("; retrying") == 2
    assert "planning: environment tiny cannot be resolved: " in said
    assert "503 Service Unavailable" in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["relock=true"]])
def test_an_index_that_stays_away_halts_the_run(online, tmp_path, capsys, more):
    online.failures = 10**9
    assert command(tmp_path, "patience=2", *more) == 75
    *told, last = capsys.readouterr().err.splitlines()
    assert told, "the first failure is always reported"
    assert all(line.endswith("; retrying") for line in told)
    assert last.startswith("stopped: planning: environment tiny cannot be resolved: ")
    assert last.endswith("(tried for 2 s); run the same command again to continue")
    assert not (tmp_path / "out").exists(), "no row, and nothing to explain"


@pytest.mark.slow
def test_an_answer_of_the_index_is_final(online, index, tmp_path, capsys):  # noqa: F811
    (index / "helper-2.0-py3-none-any.whl").unlink()
    assert command(tmp_path) == 0
    assert [row["outcome"] for row in rows(tmp_path)] == ["unavailable"]
    assert "retrying" not in capsys.readouterr().err


def experiment(tmp_path, text, **options):
    """The command line of an experiment of the user's own, with options of its groups."""
    files = {"experiment/night": f"# @package _global_\n{text}\nname: night\n", **options}
    for name, content in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    where = [f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}"]
    return ["run", "--config-dir", str(tmp_path / "conf"), "+experiment=night", *ONCE, *where]


STORIES = (
    "_target_: sweep.inputs.prompts.HubPrompts\nname: stories\ndataset: org/stories\ncolumn: text\ninstead: qa\n"
    "output_tokens: 4\n"
)


@pytest.fixture
def night(hub, tmp_path):  # noqa: F811
    """The command line of an experiment with a data set of the hub, which another may stand in for."""
    Hub.files = {"data/train.jsonl": b"".join(json.dumps({"text": f"story {n}"}).encode() + b"\n" for n in range(4))}
    chosen = "defaults: [{override /model: tiny-llama}, {override /workload: stories}]"
    return experiment(tmp_path, chosen, **{"workload/stories": STORIES})


@pytest.mark.slow
def test_a_hub_that_fails_a_few_times_costs_no_trial_and_replaces_no_data_set(night, tmp_path, capsys):
    Hub.hiccups = 3
    status = main(night)
    for _ in range(5):  # a busy machine may spoil one (client_limited)
        status = status and main(night)
    assert status == 0
    (row,) = rows(tmp_path)
    assert (row["outcome"], row["workload"]) == ("ok", "stories")
    assert COMMITS["main"] in row["digests"]
    assert "the hub cannot be reached" in capsys.readouterr().err


@pytest.mark.slow
def test_a_hub_that_stays_away_halts_the_run_and_replaces_nothing(night, tmp_path, capsys):
    Hub.hiccups = 10**9
    assert main([*night, "patience=0.3"]) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped: planning: workload.dataset=org/stories@main: not on this machine, and the hub ")
    assert "(workload=qa needs no download) (tried for 0 s); run the same command again" in last
    assert not (tmp_path / "out").exists()
    assert main([*night, "dry_run=true"]) == 0, "which is printed for someone who reads it"
    assert "workload: qa instead of stories: " in capsys.readouterr().out


def test_a_data_set_that_the_hub_refuses_is_replaced_as_before(night, tmp_path, capsys):
    Hub.closed = {"stories"}
    assert main([*night, "dry_run=true"]) == 0
    assert "workload: qa instead of stories: " in capsys.readouterr().out
    assert main([*night, "workload=stories"]) == 2, "asked for by name"


@pytest.mark.slow
def test_a_package_that_the_index_does_not_answer_for_is_not_replaced(online, tmp_path, capsys):
    package = f"_target_: sweep.inputs.package_model.PackageModel\nname: m\npackage: m==1.0\nsha256: '{'0' * 64}'\n"
    line = experiment(
        tmp_path,
        "defaults: [{override /model: m}, {override /workload: synthetic}]",
        **{"model/m": f"{package}instead: small-llama\n"},
    )
    online.failures = 10**9
    assert main([*line, "patience=0.3"]) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped: planning: model.package=m==1.0: cannot be fetched: ")
    assert "(model=small-llama needs no download)" in last
    online.failures = 0
    package_model._not_in_index.cache_clear()
    assert main([*line, "dry_run=true"]) == 0
    assert "model: small-llama (random weights) instead of m: cannot be fetched: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_gated_model_ends_the_plan_and_the_same_command_runs_with_its_token(hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The hub shows a gated repository to everybody and refuses its files: 288 launches failed for good."""
    command = [*ONCE, "model=org/gated", "workload=qa", "agreement=false", f"cache_dir={tmp_path / 'cache'}"]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for more in (["dry_run=true"], []):
        assert main([*command, *more, f"out={tmp_path / 'out'}"]) == 2
        said = capsys.readouterr().err
        assert re.fullmatch(
            r"error: .*: the model is gated, and HF_TOKEN is not set; accept its licence at http\S+ .*\n", said
        )
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main([*command, f"out={tmp_path / 'out'}"]) == 0
    assert [each["outcome"] for each in rows(tmp_path)] == ["ok"]


@pytest.mark.slow
def test_a_commit_that_is_not_known_halts_the_run(hub, tmp_path, capsys):  # noqa: F811
    """Rows would get an id of `main`, under which no later command finds them."""
    line = [
        *ONCE,
        "model=org/model",
        "workload=synthetic",
        f"out={tmp_path / 'out'}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    Hub.hiccups = 10**9
    assert main([*line, "patience=0.3"]) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped: planning: the hub cannot be reached to resolve org/model@main to a commit (")
    assert main([*line, "dry_run=true"]) == 0


STORE = "s3://bucket/run?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:1"  # nothing listens there


@pytest.fixture
def lost(monkeypatch):
    """lost(*names): from now on the store does not answer about these objects and folders; all others it has not."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def lose(*names):
        def answer(empty, name=""):
            if name in names:
                raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 7, Could not connect to server")
            return empty

        monkeypatch.setattr(object_store.ObjectStore, "list", lambda store, name="": answer({}, name))
        monkeypatch.setattr(object_store.ObjectStore, "read", lambda store, name: answer(None, name))

    return lose


@pytest.fixture
def commands(tmp_path):
    point = [*ONCE, "model=tiny-llama", "workload=synthetic"]
    anywhere = Surroundings(lambda backend, platform: "", lambda backend, platform: None)
    (trial,) = make_plan(compose_run(point, lambda cluster: "cpu"), anywhere).trials
    run = write_run(tmp_path / "run", [row(config=json.dumps(trial.config, default=str), digests="{}")])
    where = [f"out='{STORE}'", f"cache_dir={tmp_path / 'cache'}"]
    return {"run": ["run", *point, *where], "rerun": ["rerun", f"{run}#{row()['trial_id']}", *where, "--trust"]}


@pytest.mark.parametrize("name", ["run", "rerun"])
@pytest.mark.parametrize("where", ["locks", "ledger"])
def test_a_store_that_does_not_answer_refuses_a_dry_run(commands, lost, capsys, name, where):
    """It was a traceback where the ledger is read."""
    lost(where)
    status = main([*commands[name], "dry_run=true"])
    printed = capsys.readouterr().err
    if (name, where) == ("rerun", "locks"):  # which a row has of its own
        assert status == 0
    else:
        assert (status, printed.count("\n")) == (2, 1)
        assert printed.startswith("error: ")
        assert STORE in printed


@pytest.mark.parametrize("name", ["run", "rerun"])
def test_a_store_that_does_not_answer_at_the_start_is_no_bad_input(commands, lost, capsys, name):
    lost(heartbeat_lock.Lock.NAME)
    assert main(commands[name]) == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"stopped: out={STORE}: AWS Error NETWORK_CONNECTION")
    assert last.endswith("; run the same command again")


def test_a_store_that_does_not_answer_is_waited_for(commands, lost, capsys):
    lost("locks")
    assert main([*commands["run"], "patience=0.3"]) == 75
    *told, last = capsys.readouterr().err.splitlines()
    assert told
    assert last.startswith(f"stopped: planning: out={STORE}: AWS Error NETWORK_CONNECTION")


def test_a_store_that_refuses_is_bad_input(commands, monkeypatch, lost, capsys):
    def refuse(store, name):
        raise OSError("AWS Error ACCESS_DENIED during ListObjectsV2 operation: Access Denied.")

    lost()
    monkeypatch.setattr(object_store.ObjectStore, "list", refuse)
    assert main(commands["run"]) == 2
    assert f"error: out={STORE}: AWS Error ACCESS_DENIED" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["summary", STORE], ["status", STORE], ["copy", STORE, "copy"]])
def test_a_store_that_does_not_answer_a_reader_is_no_bad_input(lost, capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    lost("ledger")
    assert main(arguments) == 75
    assert capsys.readouterr().err.startswith(f"stopped: {STORE}: AWS Error NETWORK_CONNECTION")
    assert not list(tmp_path.iterdir())
