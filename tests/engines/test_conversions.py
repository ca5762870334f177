"""Conversions made for real in the engines' environments, read back with code of the test's own."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends.base import Launch
from backends.llamacpp import CONVERTER
from backends.prepare import checkpoints, environments, locks
from tests.engines.conftest import CACHE, configured

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LAYER = "model.layers.1.mlp.down_proj"
GROUP = 128


def read(folder: Path, file: str = "model.safetensors") -> dict[str, np.ndarray]:
    data = (folder / file).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    kinds = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "BF16": "<u2"}
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in about["data_offsets"])
            values = np.frombuffer(data[begin:end], kinds[about["dtype"]]).reshape(about["shape"])
            if about["dtype"] == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            found[name] = values
    return found


def nibbles(packed: np.ndarray, axis: int) -> np.ndarray:
    parts = [(packed.view(np.uint32) >> np.uint32(4 * place)) & 15 for place in range(8)]
    stacked = np.stack(parts, axis=axis + 1).astype(np.float64)
    shape = list(packed.shape)
    shape[axis] *= 8
    return stacked.reshape(shape)


def gptq(part) -> np.ndarray:
    groups = part("g_idx")
    zeros = nibbles(part("qzeros"), 1) + 1
    return ((nibbles(part("qweight"), 0) - zeros[groups]) * part("scales").astype(np.float64)[groups]).T


def ct_int8(part) -> np.ndarray:
    return part("weight").astype(np.float64) * part("weight_scale")


@pytest.fixture(scope="module")
def python(environments) -> str:
    return environments(configured("backend", "vllm_gptq")).python


@pytest.mark.parametrize(("kind", "dequantise", "steps"), [("gptq", gptq, 14), ("ct-int8", ct_int8, 254)])
def test_quantised_weights_are_the_nearest_steps(model, python, kind, dequantise, steps):
    backend = configured("backend", "vllm_gptq").model_copy(update={"checkpoint": kind})
    folder = backend.weights(model, python, CACHE, print)
    before, after = read(model), read(folder)
    original = before[f"{LAYER}.weight"].astype(np.float64)
    found = dequantise(lambda name: after[f"{LAYER}.{name}"])
    width = original.shape[1] if kind == "ct-int8" else GROUP
    grouped = original.reshape(len(original), -1, width)
    step = 2 * np.abs(grouped).max(2) / steps
    # Half a step by rounding. Scales are float16: 2^-11 of as many as half the steps.
    allowed = (0.5 + steps * 2**-11) * step
    error = np.abs(found - original).reshape(grouped.shape)
    assert (error <= allowed[:, :, None] + 1e-9).all()
    assert error.max() > 0
    half = kind == "gptq"
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert np.array_equal(after[name].astype(np.float32), before[name].astype(np.float16 if half else np.float32))
    assert (
        sum(
            name.startswith("model.layers.") and ("qweight" in name or "weight_scale" in name or "scales" in name)
            for name in after
        )
        >= 4 * 7
    )
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] in (
        "gptq",
        "compressed-tensors",
    )
    assert (
        backend.facts(Launch(model=folder, served_name="tiny", workdir=folder))["quantization_method"]
        == "round to nearest"
    )


def test_a_model_that_is_quantised_already_is_taken_as_it_is(model, python):
    backend = configured("backend", "vllm_gptq")
    folder = backend.weights(model, python, CACHE, print)
    assert backend.weights(folder, python, CACHE, print) == folder


def test_a_model_in_several_files_becomes_the_same_in_as_many(model, python, tmp_path):
    backend = configured("backend", "vllm_gptq")
    whole = read(backend.weights(model, python, CACHE, print))
    parts = tmp_path / "parts"
    shutil.copytree(model, parts)
    (parts / "model.safetensors").unlink()
    tensors = read(model)
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file({"x": np.zeros(1)}, parts / "consolidated.safetensors")  # as some repositories have it: not to be read
    folder = backend.weights(parts, python, tmp_path / "cache", print)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted(set(places.values()))
    found = {name: values for file in set(index.values()) for name, values in read(folder, file).items()}
    assert set(index) == set(found) == set(whole)
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


def test_groups_that_do_not_fit_are_told_with_the_layer(model, python, tmp_path):
    backend = configured("backend", "vllm_gptq").model_copy(update={"group_size": 100})
    refused = r"model\.layers\.0\..*cannot be divided into groups of 100 inputs"
    with pytest.raises(checkpoints.ConversionFailed, match=refused):
        backend.weights(model, python, tmp_path, print)


READ_GGUF = """
import json, sys
from gguf import GGUFReader
reader = GGUFReader(sys.argv[1])
tensors = {tensor.name: tensor for tensor in reader.tensors}
wanted = {name: tensors[name].data.astype("f4").tolist() for name in sys.argv[2:]}
fields = {name: field.contents() for name, field in reader.fields.items()}
print(json.dumps({"fields": fields, "tensors": wanted, "types": {n: t.tensor_type.name for n, t in tensors.items()}}))
"""


def read_gguf(folder: Path, *tensors: str) -> dict:
    python = environments.prepare(
        locks.locked(environments.resolve(CONVERTER, "cpu"), CACHE, print), CACHE, print
    ).python
    share = Path(python).parent.parent / "share" / "gguf-py"
    command = [python, "-c", READ_GGUF, str(folder / "model.gguf"), *tensors]
    answer = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(share)}, check=True)
    return json.loads(answer.stdout)


def test_gguf_has_the_models_numbers_tokens_and_turned_heads(model, environments):
    backend = configured("backend", "llamacpp")
    folder = backend.weights(model, environments(backend).python, CACHE, print)
    found = read_gguf(folder, "blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight")
    config, fields = json.loads((model / "config.json").read_text()), found["fields"]
    assert fields["general.architecture"] == "llama"
    assert fields["llama.block_count"] == config["num_hidden_layers"]
    assert fields["llama.context_length"] == config["max_position_embeddings"]
    assert fields["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(fields["tokenizer.ggml.tokens"][id] == token for token, id in vocabulary.items())
    assert found["types"]["blk.1.attn_q.weight"] == "F16"
    before = read(model)
    size = config["head_dim"]
    for ours, theirs, heads in (("q", "attn_q", 4), ("k", "attn_k", 2)):
        # Hugging Face turns dimension i with i + size/2, ggml turns neighbours: rows 0, 32, 1, 33, ... of each head.
        order = np.concatenate([head * size + np.arange(size).reshape(2, -1).T.ravel() for head in range(heads)])
        original = before[f"model.layers.1.self_attn.{ours}_proj.weight"][order].astype(np.float16)
        assert np.array_equal(np.array(found["tensors"][f"blk.1.{theirs}.weight"], np.float16), original)
    values = np.array(found["tensors"]["blk.1.attn_v.weight"], np.float16)
    assert np.array_equal(values, before["model.layers.1.self_attn.v_proj.weight"].astype(np.float16))


@pytest.mark.parametrize(("quantization", "type"), [("Q8_0", "Q8_0"), ("Q4_K_M", "Q4_K")])
def test_gguf_is_quantised_by_llama_quantize(model, environments, quantization, type):
    backend = configured("backend", "llamacpp").model_copy(update={"quantization": quantization})
    folder = backend.weights(model, environments(backend).python, CACHE, print)
    assert read_gguf(folder)["types"]["blk.0.ffn_up.weight"] == type


def test_ctranslate2_has_the_same_tokens_and_stores_what_it_was_asked_to(model, environments):
    backend = configured("backend", "ctranslate2")
    python = environments(backend).python
    sizes = {}
    for quantization in ("float32", "int8"):
        chosen = backend.model_copy(update={"quantization": quantization})
        folder = chosen.weights(model, python, CACHE, print)
        sizes[quantization] = (folder / "ctranslate2" / "model.bin").stat().st_size
        tokens = json.loads((folder / "ctranslate2" / "vocabulary.json").read_text())
        vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        assert all(tokens[id] == token for token, id in vocabulary.items())
    assert 3.5 < sizes["float32"] / sizes["int8"] < 4.1
