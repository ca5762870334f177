"""Models: what is refused at the door, what a digest depends on, what is built, and what is fetched from a hub."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import close_session
from safetensors import safe_open
from tokenizers import Tokenizer

from backends.prepare import checkpoints
from scripts import train_tokenizer
from sweep.base.config import CONF, ConfigError, build
from sweep.base.options import load_option
from sweep.inputs import hub as hub_module
from sweep.inputs.model import HubModel, Model, PathModel, RandomModel, ServedModel
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer, ordinary_tokens
from sweep.inputs.weights.random_weights import Architecture, encode, shapes, tensor, write_weights
from tests.support.http_stub import running
from tests.support.hub_stub import COMMITS, Hub

ABSENT = "not on this machine, and the hub cannot be reached"
NUMBERS: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 128,
}
TINY = RandomModel(name="test", dtype="float32", architecture=Architecture(**NUMBERS))
ORDINARY = ordinary_tokens(load_tokenizer(SHIPPED_TOKENIZER))
FORMS = ("hub", "path")  # to be filled in by the command line
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in FORMS)


def silent(text: str) -> None:
    """Progress for nobody."""


def tensors(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found.update({name: file.get_tensor(name) for name in file.offset_keys()})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY.prepare(tmp_path_factory.mktemp("cache"), silent)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_configuration_is_a_model(name: str) -> None:
    configured: Any = build(load_option("model", name), "model")
    configured.check()
    assert configured.name == name


def test_parameters_are_counted() -> None:
    numbers = load_option("model", "random-llama-2-7b")["architecture"]
    assert Architecture(**numbers).parameters == 6_738_415_616  # as Meta's own file has


def test_a_built_folder_has_hugging_face_layout(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not config["tie_word_embeddings"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.id_to_token(config[key]) for key in ("bos_token_id", "eos_token_id", "pad_token_id")] == [
        "<s>",
        "</s>",
        "<pad>",
    ]
    assert {name: found.shape for name, found in tensors(folder).items()} == dict(shapes(TINY.architecture))
    assert all(np.isfinite(found).all() for found in tensors(folder).values())


def test_weights_are_the_same_bits_on_any_machine(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    tensors_at = 8 + int.from_bytes(content[:8], "little")
    found = hashlib.sha256(content[tensors_at:]).hexdigest()
    assert found == "c4e4dc8a597f3834bb589b34d1ec625b12da2fc70762448a97252c7b8c118f6b"


def test_only_printable_tokens_can_be_the_best(folder: Path) -> None:
    head = tensors(folder)["lm_head.weight"]
    others = np.setdiff1d(np.arange(len(head)), ORDINARY)
    assert len(others) > 0
    assert not head[others].any()
    assert head[ORDINARY].any(axis=1).all()
    assert head[ORDINARY].std() == pytest.approx(0.02, rel=0.01)


def test_dtypes_round_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159], np.float32)
    assert encode(values, "bfloat16").tolist() == [0x3F80, 0x3F80, 0x3F82, 0xC049]
    assert encode(values, "float16").dtype.itemsize == 2
    assert np.array_equal(encode(values, "float32"), values)


def test_shards_hold_what_one_file_would(folder: Path, tmp_path: Path) -> None:
    make = partial(tensor, seed=TINY.seed, ordinary=ORDINARY)
    write_weights(tmp_path, TINY.architecture, make, "float32", shard_bytes=3_000_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    whole, parts = tensors(folder), tensors(tmp_path)
    assert index["metadata"]["total_size"] == sum(found.nbytes for found in whole.values())
    assert len(set(index["weight_map"].values())) == len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_a_model_is_built_once(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert TINY.prepare(folder.parents[1], silent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not list(folder.parent.glob(".*.partial"))


BUILD = """
import sys, time
from pathlib import Path
from backends.prepare.build_once import build_once
def build(folder):
    folder.mkdir()
    (folder / "half").write_text("")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "whole").write_text("")
build_once(Path(sys.argv[1]), build, "m", lambda text: print(text, flush=True))
"""


def builder(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILD, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_build_is_redone_by_the_process_that_waits_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    with builder(folder, 60) as first:
        assert line(first) == "building"
        with builder(folder, 0) as second:
            assert line(second) == "m: waiting for the process that builds it"
            assert not folder.exists()
            first.send_signal(signal.SIGKILL)
            assert line(second) == "building"
            assert second.wait(20) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["half", "whole"]
    with builder(folder, 60) as third:  # finds it there and builds nothing
        assert third.wait(20) == 0
        assert line(third) == ""


def test_a_digest_is_of_the_content() -> None:
    def changed(**fields: Any) -> str:
        return TINY.model_copy(update=fields).digest(Path())

    assert changed(name="other", served_name="x") == TINY.digest(Path())
    numbers = Architecture(**NUMBERS | {"num_hidden_layers": 3})
    others = [changed(seed=1), changed(dtype="float16"), changed(architecture=numbers)]
    assert len({TINY.digest(Path()), *others}) == 4


def test_another_tokenizer_is_another_model(tmp_path: Path) -> None:
    for path in SHIPPED_TOKENIZER.iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace('"add_bos_token": true', '"add_bos_token":  true'))
    assert TINY.model_copy(update={"tokenizer": str(tmp_path)}).digest(tmp_path) != TINY.digest(Path())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_dim": 31}, "head_dim=31: expected an even number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: expected a divisor of 4 heads"),
        ({"intermediate_size": 0}, "intermediate_size=0: input should be greater than 0"),
        ({"num_hidden_layers": 0}, "model.architecture.num_hidden_layers=0: input should be greater than 0"),
        ({"hidden": 3}, "model.architecture.hidden=3: unknown key"),
    ],
)
def test_impossible_architectures_are_refused(changed: dict[str, int], message: str) -> None:
    mapping = {"_target_": "sweep.inputs.model.RandomModel", "name": "x", "architecture": {**NUMBERS, **changed}}
    with pytest.raises(ConfigError) as caught:
        build(mapping, "model")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_or_a_vocabulary_smaller_than_its_own_is_refused() -> None:
    small = TINY.model_copy(update={"architecture": Architecture(**NUMBERS | {"vocab_size": 4000})})
    with pytest.raises(ValueError, match=r"^model.architecture.vocab_size=4000: expected at least the 4096 tokens"):
        small.check()
    with pytest.raises(ValueError, match=r"^model.tokenizer=/no/such: no such folder"):
        TINY.model_copy(update={"tokenizer": "/no/such"}).check()


def test_ordinary_tokens_are_printable_and_not_special() -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    texts = [tokenizer.decode([token]) for token in ORDINARY]
    assert len(texts) > 3500
    assert all(text.isprintable() and text.isascii() and text.strip() for text in texts)
    assert not {0, 1, 2} & set(ORDINARY)


def test_the_shipped_tokenizer_is_what_the_script_trains(tmp_path: Path) -> None:
    train_tokenizer.save(tmp_path)
    for path in [*SHIPPED_TOKENIZER.iterdir(), SHIPPED_TOKENIZER.parent / "words.txt"]:
        trained = tmp_path / path.relative_to(SHIPPED_TOKENIZER.parent)
        assert trained.read_bytes() == path.read_bytes(), f"{path.name}: run scripts/train_tokenizer.py"


def test_the_shipped_tokenizer_loses_nothing() -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    text = "Naïve café – 東京 😀\n\tx = 10 ** 2"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("").ids == [0]


def test_a_vocabulary_and_its_merges_are_a_tokenizer_too(tmp_path: Path) -> None:
    whole = load_tokenizer(SHIPPED_TOKENIZER)
    whole.model.save(str(tmp_path))
    settings = {"bos_token": {"content": "<s>"}, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "The kettle boils; nobody minds."
    assert load_tokenizer(tmp_path).encode(text).ids == whole.encode(text).ids


def test_a_folder_without_a_readable_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model.tokenizer=.*: no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^model.tokenizer=.*: its tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused_at_the_door(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    refused: tuple[Model, ...] = (
        ServedModel(name="x", tokenizer=str(bare)),
        HubModel(name="x", repo="org/model", tokenizer=str(bare)),
        PathModel(name="x", path=str(folder), tokenizer=str(bare)),
        PathModel(name="x", path=str(bare)),
    )
    for model in refused:
        with pytest.raises(ValueError, match=r"^model.tokenizer=.*/bare: no tokenizer.json; expected"):
            model.check()
    PathModel(name="x", path=str(bare), tokenizer=str(SHIPPED_TOKENIZER)).check()


def test_the_context_is_what_engines_are_told_or_the_architectures() -> None:
    assert TINY.context == NUMBERS["max_position_embeddings"]
    assert TINY.model_copy(update={"max_model_len": 64}).context == 64
    assert ServedModel(name="x").context is None


def test_a_folder_is_served_as_it_is(folder: Path, tmp_path: Path) -> None:
    configured = PathModel(name="mine", path=str(folder))
    configured.check()
    assert configured.prepare(tmp_path, silent) == folder
    tokenizer = configured.load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.get_vocab_size() == 4096


def test_a_folder_may_be_served_with_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "tokenizer"
    own.mkdir()
    (own / "tokenizer.json").write_text((SHIPPED_TOKENIZER / "tokenizer.json").read_text())
    configured = PathModel(name="mine", path=str(folder), tokenizer=str(own))
    found = configured.prepare(tmp_path / "cache", silent)
    assert (found / "model.safetensors").samefile(folder / "model.safetensors")
    assert not (found / "tokenizer_config.json").exists()
    assert (found / "config.json").read_text() == (folder / "config.json").read_text()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model.path=/no/such: no such folder"):
        PathModel(name="x", path="/no/such").check()
    with pytest.raises(ValueError, match=r"^model.path=.*: no config.json"):
        PathModel(name="x", path=str(tmp_path)).check()


def test_a_folder_is_hashed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    read: list[str] = []
    hash_file = checkpoints.file_digest
    monkeypatch.setattr(checkpoints, "file_digest", lambda path: read.append(path.name) or hash_file(path))
    configured = PathModel(name="mine", path=str(copy))
    first = configured.digest(tmp_path / "cache")
    assert len(read) == len(list(copy.iterdir()))
    read.clear()
    assert configured.digest(tmp_path / "cache") == first
    assert read == []
    (copy / "config.json").write_text("{}")
    assert configured.digest(tmp_path / "cache") != first
    assert read == ["config.json"]


def test_a_served_model_has_only_a_name(tmp_path: Path) -> None:
    served = ServedModel(name="somebody/else")
    served.check()
    assert served.load_tokenizer(tmp_path) is None
    counted = ServedModel(name="x", tokenizer=str(SHIPPED_TOKENIZER)).load_tokenizer(tmp_path)
    assert counted is not None
    with pytest.raises(ValueError, match=r"^model=somebody/else: only an endpoint's name"):
        served.prepare(tmp_path, silent)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on the loopback that HF_ENDPOINT names, in an environment that says nothing else of hubs."""
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"pickle", "modeling_custom.py": b"raise SystemExit", "onnx/model.onnx": b"x"}
    Hub.requests, Hub.closed, Hub.hiccups, Hub.down_until = [], {"nowhere"}, 0, 0.0
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    hub_module.resolve_commit.cache_clear()
    hub_module._pauses.cache_clear()
    monkeypatch.setattr(hub_module, "RESOLVE_PAUSES", (0.01, 0.01))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with running(server):
        yield server
    close_session()  # it keeps the proxies that a test set


def test_a_hub_model_is_fetched_without_what_engines_do_not_need(
    hub: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configured = HubModel(name="m", repo="org/model", revision="v2")
    said: list[str] = []
    found = configured.prepare(tmp_path / "cache", said.append)
    assert said[0] == "model m: fetching org/model@v2 unless it is cached"
    assert found.is_relative_to(tmp_path / "cache")
    assert {path.name for path in found.iterdir()} == {path.name for path in folder.iterdir()}
    assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert configured.digest(tmp_path / "cache") == f"org/model@{COMMITS['v2']}"
    assert {token for _, token in Hub.requests} == {None}
    assert capfd.readouterr() == ("", "")  # a bar would spoil the live view


def test_a_hub_behind_a_proxy_gives_pickled_weights(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del Hub.files["model.safetensors"]
    monkeypatch.setenv("HTTP_PROXY", os.environ["HF_ENDPOINT"])
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    close_session()  # a new one reads the environment's proxies
    found = HubModel(name="m", repo="org/model").prepare(tmp_path / "cache", silent)
    assert (found / "pytorch_model.bin").read_bytes() == b"pickle"


def test_counting_needs_only_the_tokenizer(hub: Any, tmp_path: Path) -> None:
    tokenizer = HubModel(name="m", repo="org/model").load_tokenizer(tmp_path / "cache")
    assert tokenizer is not None
    assert tokenizer.get_vocab_size() == 4096
    assert not [path for path, _ in Hub.requests if path.endswith(".safetensors")]


def test_without_the_hub_the_cache_answers(hub: Any, tmp_path: Path) -> None:
    configured = HubModel(name="m", repo="org/model")
    found, digest = configured.prepare(tmp_path / "cache", silent), configured.digest(tmp_path / "cache")
    hub_module.resolve_commit.cache_clear()
    hub.shutdown()
    hub.server_close()
    assert HubModel(name="m", repo="org/model").digest(tmp_path / "cache") == digest == f"org/model@{COMMITS['main']}"
    assert configured.prepare(tmp_path / "cache", silent) == found
    with pytest.raises(ValueError, match=rf"^model.repo=org/other@main: {ABSENT}") as caught:
        HubModel(name="m", repo="org/other").prepare(tmp_path / "cache", silent)
    assert "\n" not in str(caught.value)
    assert HubModel(name="m", repo="org/other").digest(tmp_path / "cache") == "org/other@main"


def test_a_repository_that_is_closed_keeps_the_commit_that_is_known(hub: Any, tmp_path: Path) -> None:
    """Planning a finished run again must not fail because its model was renamed or made private since."""
    digest = HubModel(name="m", repo="org/model").digest(tmp_path / "cache")
    HubModel(name="m", repo="org/model", revision="v2").digest(tmp_path / "cache")
    Hub.closed = {"model"}
    hub_module.resolve_commit.cache_clear()
    configured = HubModel(name="m", repo="org/model")
    configured.check()
    assert configured.digest(tmp_path / "cache") == digest == f"org/model@{COMMITS['main']}"
    with pytest.raises(ValueError, match=r"^model\.repo=org/model@main: 401"):
        configured.reach(tmp_path / "cache")  # what is still to run needs its files


def test_nothing_is_kept_beside_the_cache_that_was_named(hub: Any, folder: Path, tmp_path: Path) -> None:
    HubModel(name="m", repo="org/model").digest(tmp_path / "cache")
    PathModel(name="m", path=str(folder)).digest(tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 2
    assert not (tmp_path / "xdg").exists()


def test_a_hub_that_hiccups_is_asked_again(hub: Any, tmp_path: Path) -> None:
    Hub.hiccups = 2
    assert HubModel(name="m", repo="org/model").digest(tmp_path) == f"org/model@{COMMITS['main']}"
    hub_module.resolve_commit.cache_clear()
    Hub.hiccups = 1  # its patience is used up, but it has told before
    assert HubModel(name="m", repo="org/model").digest(tmp_path) == f"org/model@{COMMITS['main']}"
    Hub.hiccups = 1
    assert HubModel(name="m", repo="org/model", revision="v2").digest(tmp_path) == "org/model@v2"


def test_a_data_set_s_commit_is_no_answer_about_the_model_of_its_name(hub: Any, tmp_path: Path) -> None:
    Hub.hiccups = 3
    hub_module.resolve_commit("org/model", "main", tmp_path)
    assert hub_module.resolve_commit("org/model", "main", tmp_path, "dataset") == COMMITS["main"]
    assert hub_module.resolve_outage("org/model", "main") is not None
    assert hub_module.resolve_outage("org/model", "main", "dataset") is None


def test_without_the_hub_its_own_cache_says_the_commit(hub: Any, tmp_path: Path) -> None:
    found = HubModel(name="m", repo="org/model").prepare(tmp_path, silent)
    Hub.hiccups = 100
    assert not (tmp_path / "digests").exists()
    assert HubModel(name="m", repo="org/model").digest(tmp_path) == f"org/model@{COMMITS['main']}"
    assert HubModel(name="m", repo="org/model").pinned(tmp_path).prepare(tmp_path, silent) == found


def test_a_node_loads_the_commit_that_was_planned(hub: Any, tmp_path: Path) -> None:
    planned = HubModel(name="m", repo="org/model").pinned(tmp_path / "driver")
    assert planned.revision == COMMITS["main"]
    Hub.requests.clear()
    planned.prepare(tmp_path / "node", silent)
    assert Hub.requests
    assert not [path for path, _ in Hub.requests if "/main" in path]


def test_a_tokenizer_is_part_of_any_model(hub: Any, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "tokenizer"
    own.mkdir()
    (own / "tokenizer.json").write_text((SHIPPED_TOKENIZER / "tokenizer.json").read_text())
    for plain in (PathModel(name="m", path=str(folder)), HubModel(name="m", repo="org/model")):
        with_folder = plain.model_copy(update={"tokenizer": str(own)})
        first = with_folder.digest(tmp_path)
        (own / "tokenizer.json").write_text((own / "tokenizer.json").read_text() + " ")
        assert len({plain.digest(tmp_path), first, with_folder.digest(tmp_path)}) == 3
        with_hub = plain.model_copy(update={"tokenizer": "org/model", "tokenizer_revision": "v2"})
        assert with_hub.digest(tmp_path) == f"{plain.digest(tmp_path)} with tokenizer org/model@{COMMITS['v2']}"
        assert with_hub.pinned(tmp_path).tokenizer_revision == COMMITS["v2"]


def test_a_gated_model_needs_the_token_of_the_environment(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated = HubModel(name="m", repo="org/gated")
    with pytest.raises(ValueError, match=r"^model.repo=org/gated@main: .*\(a gated model needs HF_TOKEN\)$") as caught:
        gated.prepare(tmp_path / "cache", silent)
    assert "\n" not in str(caught.value)
    refused = r"^model\.repo=org/gated: the model is gated, and {}; accept its licence at http://\S+/org/gated and "
    with pytest.raises(ValueError, match=refused.format("HF_TOKEN is not set")):  # the hub shows all but its files
        gated.digest(tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(ValueError, match=refused.format("the account of HF_TOKEN has no access")):
        gated.digest(tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert gated.digest(tmp_path / "cache") == f"org/gated@{COMMITS['main']}"
    assert (gated.prepare(tmp_path / "cache", silent) / "config.json").is_file()


@pytest.mark.parametrize(
    ("repo", "revision", "said"),
    [
        ("org/model", "v3", r"^model\.revision=v3: not in org/model; expected one of its branches, tags or commits$"),
        ("org/nowhere", "main", r"^model\.repo=org/nowhere@main: 401 .*\(a gated model needs HF_TOKEN\)$"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_at_the_door(
    hub: Any, tmp_path: Path, repo: str, revision: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        HubModel(name="m", repo=repo, revision=revision).digest(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_node_is_asked_before_anything_is_built_there(hub: Any, tmp_path: Path, folder: Path) -> None:
    """With a hub, whether it gives anything; without, whether everything is here. Planning asks for no commit."""
    wrong = HubModel(name="m", repo="org/model", revision="c" * 40)
    wrong.check()
    with pytest.raises(ValueError, match=r"^model\.revision=c+: not in org/model"):
        wrong.reach(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"^model\.repo=org/gated@main: .*\(a gated model needs HF_TOKEN\)$"):
        HubModel(name="m", repo="org/gated").reach(tmp_path / "cache")
    right = HubModel(name="m", repo="org/model")
    right.reach(tmp_path / "cache")
    assert not [path for path, _ in Hub.requests if path.endswith(".safetensors")], "nothing large"
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ValueError, match=rf"^model.repo=org/model@main: {ABSENT}"):
        right.reach(tmp_path / "cache")
    with pytest.raises(ValueError, match="no such folder"):
        PathModel(name="m", path=str(tmp_path / "away")).reach(tmp_path / "cache")
    PathModel(name="m", path=str(folder)).reach(tmp_path / "cache")


@pytest.mark.slow
def test_planning_knows_whether_a_repository_is_quantised(hub: Any, tmp_path: Path) -> None:
    """Without its weights. What is not known is the node's to say."""
    plain, other = (HubModel(name="m", repo=f"org/{name}") for name in ("model", "other"))
    assert plain.is_quantised(tmp_path) is False
    assert not [path for path, _ in Hub.requests if path.endswith(".safetensors")]
    Hub.files["config.json"] = b'{"quantization_config": {"quant_method": "awq"}}'
    assert other.is_quantised(tmp_path) is True
    assert HubModel(name="m", repo="org/gated").is_quantised(tmp_path) is None
    hub.shutdown()
    hub.server_close()
    assert HubModel(name="m", repo="org/third").is_quantised(tmp_path) is None


def test_what_was_fetched_is_reached_without_the_hub(hub: Any, tmp_path: Path) -> None:
    fetched = HubModel(name="m", repo="org/model")
    fetched.prepare(tmp_path / "cache", silent)
    hub.shutdown()
    hub.server_close()
    fetched.reach(tmp_path / "cache")


def test_a_repository_has_two_names() -> None:
    with pytest.raises(ValueError, match=r"^model.repo=llama: expected organisation/name"):
        HubModel(name="m", repo="llama").check()
