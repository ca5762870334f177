"""Secrets stay out of configuration, out of an engine's environment and out of what is quoted of its log."""

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backends.base import Launch
from backends.launch.engine_environment import engine_environment
from sweep.__main__ import main
from sweep.base.config import ROOT, ConfigError, build
from sweep.base.masking import SHAPES, is_secret, masked, masked_message
from sweep.base.options import load_option
from sweep.disk.run_files import read_trials
from sweep.node.machine.sharing import VARIABLE
from tests.support.http_stub import Stub, serving

BACKENDS = ROOT / "docs" / "backends.md"
# Put together here, so that no file holds what looks like a key.
KEYS = ["hf_" + "a1B2" * 8, "sk-" + "proj-" + "x9" * 12, "ghp_" + "Z" * 36, "AKIA" + "ABCDEFGHIJKLMNOP"]
LONG = "x9" * 20
PARTS = {"long": LONG, "hex": "0f" * 8, "capitals": "A1" * 8, "private": "PRIVATE", "newline": "\n"}
LINES = Path(__file__).with_name("secret_samples.txt").read_text().splitlines()
LOGGED = {kind: samples for kind, *samples in (line.split("\t") for line in LINES if not line.startswith("#"))}


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "GITHUB_PAT", "DB_DSN", "SSH_PRIVATE_KEY", "X-Api-Key", "api-key", "AUTH"]
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["max-num-batched-tokens", "PATH", "COMPAT", "tokenizer", "author", "OMP_NUM_THREADS"])
def test_names_of_others(name):
    assert not is_secret(name, "4096")


@pytest.mark.parametrize("issuer", SHAPES)
def test_each_shape_of_the_table_is_masked(issuer):
    for sample in LOGGED[issuer]:
        before, key, after = re.split("[<>]", sample if "<" in sample else f"login with <{sample}> failed")
        line, key = f"{before}*{after}", key.format(**PARTS)
        assert is_secret("x", line.replace("*", key)), key
        assert masked(line.replace("*", key)) == line.replace("*", "***")
        for escape in ("\\x1b[36m", "\\n", "\\u0022", "%3D"):
            assert masked(f"x{escape}{line.replace('*', key)}") == f"x{escape}{line.replace('*', '***')}"
    assert f"| {issuer} |" in BACKENDS.read_text()


def test_a_key_is_masked_in_a_coloured_log():
    coloured = "\x1b[36mapi_key\x1b[0m=\x1b[35mhunter2-and-more\x1b[0m \x1b[1;31m"
    assert masked(coloured + KEYS[0]) == "api_key=*** ***"


@pytest.mark.parametrize("line", LOGGED["values of names"])
def test_the_value_of_a_secrets_name_is_masked_in_a_log(line):
    assert masked(line.replace("*", "hunter2-and-more")) == line.replace("*", "***")


def test_a_password_need_have_no_digit():
    assert masked("password=correcthorsebattery") == "password=***"
    assert masked("passphrase: 'open sesame', x") == "passphrase: '***', x"


@pytest.mark.parametrize("line", LOGGED["harmless"])
def test_what_engines_log_is_not_masked(line):
    assert masked(line) == line


def test_a_long_key_in_a_sentence_is_masked():
    assert masked(f"the API key {LONG} is invalid; password {LONG}") == "the API key *** is invalid; password ***"


def test_long_words_and_open_keys_cost_no_time():
    assert masked("token" * 200_000 + "-----BEGIN " + "PRIVATE KEY-----" * 2).endswith("***")
    assert masked("token=" * 43_000)
    for hostile in ("eyJ-" * 20_000, "?key=" * 20_000, ";" * 40_000):
        assert masked(hostile) == hostile
    assert masked_message("x" * 100_000, set())


def test_values_are_masked_wherever_they_stand():
    assert masked("the value hunter22 is", {"hunter22"}) == "the value *** is"
    long = "hunter22" * 4
    assert masked(f"the value {long} is", {long[:length] for length in range(8, 33)}) == "the value *** is"


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("headers", {"X-Auth": "abc"}),
        ("environ", {"DB_DSN": "postgres://db"}),
        ("environ", {"HARMLESS": KEYS[0]}),
        ("environ", {"http_proxy": "http://me:s3cret@proxy:8080"}),
        ("flags", {"api-key": "abc"}),
        ("flags", {"chat-template": KEYS[1]}),
        ("extra_body", {"user_token": "abc"}),
        ("flags", {"api-key": ["abc"]}),  # as vLLM takes it
        ("flags", {"kv-transfer-config": {"store": {"password": 12345678}}}),
        ("flags", {"override": '{"store": [{"db-dsn": "abc"}]}'}),
        ("flags", {"password": 12345678}),
        ("extra_body", {"user": {"api_key": KEYS[1]}}),
        ("extra_body", {"tools": [{"url": "x"}, {"headers": ["a", KEYS[2]]}]}),
        ("extra_body", {"credentials": {"name": "me"}}),
        ("headers", {"X-Storage": "AccountKey=" + "b3" * 20}),
        ("environ", {"AZURE_STORAGE_CONNECTION_STRING": "Endpoint=x"}),
    ],
)
def test_configuration_that_holds_a_secret_is_refused(key, settings):
    with pytest.raises(ConfigError, match="looks like a secret"):
        build({**load_option("backend", "simulated"), key: settings}, "backend")


def test_an_engines_file_of_options_holds_no_secret():
    options = {"kv_connector_config": {"store": {"access_key": "abc"}}}
    with pytest.raises(ConfigError, match=r"kv_connector_config\.store\.access_key looks like a secret"):
        build({**load_option("backend", "tensorrt_llm"), "options": options}, "backend")


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("flags", {"bucket-time-to-first-token": [0.1, 1.0], "max-experts-per-token": 2, "allow-credentials": True}),
        ("flags", {"speculative-config": {"model": "org/draft", "num_speculative_tokens": 3}}),
        ("extra_body", {"chat_template_kwargs": {"tokens": [1, 2]}, "messages": "[not json", "api_key": None}),
    ],
)
def test_configuration_without_a_secret_is_taken(key, settings):
    assert getattr(build({**load_option("backend", "simulated"), key: settings}, "backend"), key) == settings


def environment_of(monkeypatch, variables, **settings):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    backend = build({**load_option("backend", "vllm"), "env": settings}, "backend")
    return engine_environment(backend, Launch(model=Path("m"), served_name="m", workdir=Path()), "marker")


def test_an_engine_inherits_what_it_needs_and_nothing_else(monkeypatch):
    secrets = {"GITHUB_PAT": "x", "DB_DSN": "y", "VLLM_API_KEY": "z", "VLLM_OTHER": KEYS[2]}
    others = {"https_proxy": "http://me:s3cret@proxy:8080", "HARMLESS": "1", "SGLANG_X": "1", "AZURE_STORAGE": "q"}
    needed = {"VLLM_USE_RUST_FRONTEND": "1", "LC_ALL": "C", "CC": "gcc-12", "NCCL_DEBUG": "INFO", VARIABLE: "tests"}
    environ = environment_of(monkeypatch, secrets | others | needed)
    assert not (secrets | others).keys() & environ.keys()
    assert needed.items() <= environ.items()


def test_a_user_names_more_that_an_engine_inherits_and_a_secret_by_its_full_name(monkeypatch):
    variables = {"MY_SETTING": "1", "OWN_PLAIN": "2", "OWN_TOKEN": "3", "LICENCE_TOKEN": "4"}
    environ = environment_of(monkeypatch, variables, inherit=["MY_SETTING", "OWN_*", "LICENCE_TOKEN"])
    assert {name: environ.get(name) for name in variables} == {**variables, "OWN_TOKEN": None}


class Leaky(Stub):
    """An endpoint that refuses every request with all that it should not say."""

    secrets = (KEYS[1], "correct-horse-battery", "s3cr3t-passw0rd")

    def do_POST(self):
        self.reply(401, f"no: {self.headers['authorization']} {KEYS[1]} postgres://me:s3cr3t-passw0rd@db/x".encode())

    do_GET = do_POST


@pytest.mark.slow
def test_no_file_of_a_run_holds_what_an_endpoint_says_of_secrets(tmp_path, monkeypatch, capsys):
    """Through the whole command: the row, its reason, the requests, the ledger, the report and the terminal."""
    monkeypatch.setenv("ENDPOINT_KEY", "correct-horse-battery")
    command = ["backend=openai", "backend.api_key_env=ENDPOINT_KEY", "model=served", "load=batch", "retry=none"]
    command += ["workload=synthetic", "workload.num_requests=2", "hardware=cpu", "cluster=inline", "tracking=none"]
    with serving(Leaky) as url:
        assert main([*command, "agreement=false", f"backend.url={url}", f"out={tmp_path / 'out'}"]) == 1
    (row,) = read_trials(tmp_path / "out" / "trials.parquet")
    assert "***" in row["reason"]
    texts = texts_of(tmp_path / "out") | {"terminal": capsys.readouterr().out}
    assert {"ledger.jsonl", "report.html", "requests.parquet", "trials.parquet", "status.json"} <= names_of(texts)
    leaks = {(name, secret) for name, text in texts.items() for secret in Leaky.secrets if secret in text}
    assert not leaks


def texts_of(folder):
    """All that a run's files hold, the cells of its tables too, by their paths in its folder."""
    texts = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        text = path.read_text(errors="replace")
        if path.suffix == ".parquet" and path.name != "telemetry.parquet":
            text += str(pq.read_table(path, partitioning=None).to_pylist())
        texts[str(path.relative_to(folder))] = text
    return texts


def names_of(texts):
    return {Path(path).name for path in texts}


PRINTED = {
    "GITHUB_PAT": "correct-horse-battery",
    "DB_DSN": "postgres://me:s3cr3t-passw0rd@db/x",
    "AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=x;AccountKey=" + "c4" * 20,
}
SECRETS = (PRINTED["GITHUB_PAT"], "s3cr3t-passw0rd", "c4" * 20, "pr0xy-passw0rd", KEYS[2])


@pytest.mark.slow
def test_no_file_of_a_run_but_the_engines_log_holds_what_an_engine_prints(tmp_path, monkeypatch, capsys):
    """Row, report and W&B's own files; the log is the engine's, and the docs say that it is as it was written."""
    for name, value in PRINTED.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = " ".join([*PRINTED.values(), "http://me:pr0xy-passw0rd@proxy:8080", KEYS[2]])
    engine = tmp_path / "python"
    leak = f'case "$*" in *simulated_server*) echo "fatal: {said}" >&2; exit 1;; esac'
    engine.write_text(f'#!/bin/bash\n{leak}\nexec {sys.executable} "$@"\n')
    engine.chmod(0o755)
    command = ["backend=simulated", f"backend.env.python={engine}", "model=tiny-llama", "workload=synthetic"]
    command += ["load=batch", "load.batch_size=1", "workload.num_requests=2", "retry=none", "attempts=1"]
    command += ["hardware=cpu", "cluster=inline", "tracking=wandb"]
    command += [f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}"]
    assert main(command) == 1
    texts = texts_of(tmp_path / "out") | {"terminal": capsys.readouterr().out}
    logs = [texts.pop(path) for path in [*texts] if path.endswith("/engine.log")]
    assert all(secret in "".join(logs) for secret in SECRETS)
    (row,) = read_trials(tmp_path / "out" / "trials.parquet")
    assert "***" in row["reason"]
    assert {"ledger.jsonl", "report.html", "trials.parquet"} <= names_of(texts)
    assert any(name.endswith(".wandb") for name in texts), sorted(texts)
    assert not {(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text}
