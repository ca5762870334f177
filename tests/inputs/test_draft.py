"""Draft models of speculative decoding: fetched, digested and offered offline like the model itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.base import Backend, Launch
from sweep.base.config import ConfigError, build
from sweep.base.options import load_option
from sweep.inputs.draft import draft_model
from sweep.node import deployment
from tests.inputs.test_model import COMMITS, Hub, folder, hub  # noqa: F401 - fixtures
from tests.plan.test_plan import planned

# An engine's flags with a draft model, and how its command names the folder.
FORMS: dict[str, Any] = {
    "vllm": {"speculative-config": {"method": "eagle", "model": "org/draft", "revision": "v2"}},
    "sglang": {"speculative-draft-model-path": "org/draft", "speculative-draft-model-revision": "v2"},
    "lmdeploy": {"speculative-draft-model": "org/draft"},
}


def configured(name: str, **changes: Any) -> Backend:
    backend: Backend = build({**load_option("backend", name), **changes}, "backend")
    return backend


@pytest.mark.parametrize("name", FORMS)
def test_the_engine_is_given_the_folder_where_it_is(name: str, tmp_path: Path) -> None:
    backend = configured(name, flags=FORMS[name])
    assert backend.draft("cuda") == ("org/draft", None if name == "lmdeploy" else "v2")
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path, gpus=("0",), draft=tmp_path / "draft")
    line = " ".join(backend.command(launch))
    assert str(tmp_path / "draft") in line
    assert "org/draft" not in line, "it is offline, and must not look for it"
    assert "v2" not in line


def test_one_key_of_a_json_flag_is_the_same() -> None:
    backend = configured("vllm", flags={"speculative_config.model": "org/draft", "speculative-config.method": "eagle"})
    assert backend.draft("cuda") == ("org/draft", None)
    assert backend.draft("cpu") == ("org/draft", None)


def test_a_word_that_names_no_model_is_none() -> None:
    assert draft_model("ngram", None) is None
    assert configured("vllm", flags={"speculative-config": {"method": "ngram"}}).draft("cuda") is None
    assert not any(each.draft for each in planned("backend=vllm").deployments)


def with_draft(path: object) -> tuple[str, ...]:
    return "backend=vllm", f"backend.flags.speculative-config={{method: draft_model, model: {path}}}"


def test_a_plan_is_of_the_drafts_content(tmp_path: Path) -> None:
    drafts = tmp_path / "draft"
    drafts.mkdir()
    (drafts / "config.json").write_text("{}")  # and no tokenizer: it drafts in the model's tokens
    (first,) = planned(*with_draft(drafts)).deployments
    (drafts / "model.safetensors").write_bytes(b"weights")
    (second,) = planned(*with_draft(drafts)).deployments
    assert first.deployment_id != second.deployment_id
    assert first.content["draft"] != second.content["draft"]
    with pytest.raises(ConfigError, match=r"speculative-config\.model=/nowhere/x: .*no config\.json") as caught:
        planned(*with_draft("/nowhere/x"))
    assert "\n" not in str(caught.value)


def test_a_draft_of_the_hub_is_fetched_on_the_node(hub: Any, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setattr("sweep.plan.planning.cache_directory", lambda cache_dir: tmp_path / "cache")
    Hub.files = {name: content for name, content in Hub.files.items() if "token" not in name}
    (its,) = planned(*with_draft("org/draft")).deployments
    assert its.content["draft"] == f"org/draft@{COMMITS['main']}"
    settings = SimpleNamespace(cache_dir=str(tmp_path / "cache"))
    work: Any = SimpleNamespace(deployment=its, settings=settings, cache=tmp_path / "cache")
    deployment._check_models(work)
    found = its.draft.prepare(work.cache, lambda text: None)
    assert (found / "model.safetensors").exists()
    its.content["draft"] = f"org/draft@{COMMITS['v2']}"
    with pytest.raises(deployment.Contradiction, match="the content of the draft differs from the plan"):
        deployment._check_models(work)
