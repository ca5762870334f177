"""Secrets stay out of configuration, out of an engine's environment and out of what is quoted of its log."""

from pathlib import Path

import pytest

from backends.base import Launch
from backends.launch import server
from sweep.config import ConfigError, build
from sweep.masking import is_secret, masked
from sweep.node.machine.sharing import VARIABLE
from sweep.options import load_option

# Put together here, so that no file holds what looks like a key.
KEYS = [
    "hf_" + "a1B2" * 8,
    "sk-" + "proj-" + "x9" * 12,
    "ghp_" + "Z" * 36,
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "glpat-" + "k" * 20,
]


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "GITHUB_PAT", "DB_DSN", "SSH_PRIVATE_KEY", "X-Api-Key", "api-key", "AUTH"]
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["max-num-batched-tokens", "PATH", "COMPAT", "tokenizer", "author", "OMP_NUM_THREADS"])
def test_names_of_others(name):
    assert not is_secret(name, "4096")


@pytest.mark.parametrize("key", KEYS)
def test_values_that_look_like_keys_are_masked(key):
    assert is_secret("x", key)
    assert masked(f"login with {key} failed") == "login with *** failed"


def test_a_urls_password_is_masked_and_the_rest_is_not():
    assert masked("proxy http://me:s3cret@proxy:8080/ refused") == "proxy http://***@proxy:8080/ refused"
    plain = "http://127.0.0.1:8000/v1 12:30:15 user@host sk-short hf_hub"
    assert masked(plain) == plain
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
    ],
)
def test_configuration_that_holds_a_secret_is_refused(key, settings):
    with pytest.raises(ConfigError, match="looks like a secret"):
        build({**load_option("backend", "simulated"), key: settings}, "backend")


def environment_of(monkeypatch, variables, **settings):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    backend = build({**load_option("backend", "vllm"), "env": settings}, "backend")
    return server._environ(backend, Launch(model=Path("m"), served_name="m", workdir=Path()), "marker")


def test_an_engine_inherits_what_it_needs_and_nothing_else(monkeypatch):
    secrets = {"GITHUB_PAT": "x", "DB_DSN": "y", "VLLM_API_KEY": "z", "VLLM_OTHER": KEYS[2]}
    others = {"https_proxy": "http://me:s3cret@proxy:8080", "HARMLESS": "1", "SGLANG_X": "1", "AZURE_STORAGE": "q"}
    needed = {"VLLM_USE_RUST_FRONTEND": "1", "LC_ALL": "C", "NCCL_DEBUG": "INFO", VARIABLE: "tests"}
    environ = environment_of(monkeypatch, secrets | others | needed)
    assert not (secrets | others).keys() & environ.keys()
    assert needed.items() <= environ.items()


def test_a_user_names_more_that_an_engine_inherits_and_a_secret_by_its_full_name(monkeypatch):
    variables = {"MY_SETTING": "1", "OWN_PLAIN": "2", "OWN_TOKEN": "3", "LICENCE_TOKEN": "4"}
    environ = environment_of(monkeypatch, variables, inherit=["MY_SETTING", "OWN_*", "LICENCE_TOKEN"])
    assert {name: environ.get(name) for name in variables} == {**variables, "OWN_TOKEN": None}
