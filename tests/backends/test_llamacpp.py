"""The llama.cpp backend without llama.cpp: command lines, limits, and its logs as it wrote them."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from backends import llamacpp
from backends.base import EnvironmentChoice, Launch
from backends.llamacpp import LlamaCpp

NO_MEMORY = """
0.00.037.002 I srv    load_model: loading model 'model.gguf'
0.00.088.829 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 2055208960
0.00.088.855 E alloc_tensor_range: failed to allocate CPU buffer of size 2055208960
0.00.092.202 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
0.00.092.255 E cmn  common_init_: failed to create context with model 'model.gguf'
0.00.092.309 E srv    load_model: failed to create_context with model 'model.gguf'
0.00.092.337 I srv    operator(): operator(): cleaning up before exit...
0.00.105.865 E srv  llama_server: exiting due to model loading error
"""
NO_MODEL = """
0.00.010.406 E llama_model_load: error loading model: llama_model_loader: failed to load model from nope.gguf
0.00.010.406 E llama_model_load_from_file_impl: failed to load model
0.00.010.408 E cmn  common_init_: failed to load model 'nope.gguf'
0.00.010.409 E srv    load_model: failed to load model, 'nope.gguf'
0.00.010.411 I srv    operator(): operator(): cleaning up before exit...
0.00.011.027 E srv  llama_server: exiting due to model loading error
"""
OVER_CONTEXT = """
0.00.181.538 E srv    send_error: task id = 1, error: request (600 tokens) exceeds the available context size (512)
"""


@pytest.fixture
def launch(tmp_path) -> Launch:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    return Launch(
        model=tmp_path, served_name="tiny", port=8000, workdir=tmp_path, binary="/opt/llama-server", threads=3
    )


def options(backend: LlamaCpp, launch: Launch) -> dict[str, str]:
    words = backend.command(launch)[1:]
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_every_slot_has_room_for_a_whole_context(launch):
    found = options(LlamaCpp(name="l", slots=4), launch)
    assert (found["--parallel"], found["--ctx-size"], found["--threads"]) == ("4", "8192", "3")
    (launch.model / "config.json").write_text("{}")
    told = Launch(model=launch.model, served_name="tiny", workdir=launch.workdir, max_model_len=512)
    assert options(LlamaCpp(name="l", slots=3), told)["--ctx-size"] == "1536"


def test_flags_go_over_what_we_choose_and_follow_the_device(launch):
    backend = LlamaCpp(name="l", flags={"ctx-size": 100, "no-webui": True}, cuda_flags={"n-gpu-layers": 999})
    found = options(backend, launch)
    assert backend.command(launch).count("--ctx-size") == 1
    assert found["--ctx-size"] == "100"
    assert "--no-ui" in found, "as llama-server first calls it"
    assert "--gpu-layers" not in found


def test_an_unknown_quantization_is_refused_with_those_that_are_not():
    with pytest.raises(ValidationError, match=r"quantization\n  Input should be 'F32', 'F16', 'BF16', 'Q8_0'"):
        LlamaCpp(name="l", quantization="Q9")


def test_last_words_are_the_cause_and_not_what_follows_from_it():
    backend = LlamaCpp(name="l")
    assert backend.log.ran_out_of_memory(NO_MEMORY)
    assert backend.log.failure_line(NO_MEMORY).endswith("failed to allocate buffer for kv cache")
    assert not backend.log.ran_out_of_memory(NO_MODEL)
    assert "failed to load model from nope.gguf" in backend.log.failure_line(NO_MODEL)
    refused = "error: invalid argument: --no-such-flag"
    assert backend.log.failure_line(refused) == refused
    assert not backend.log.ran_out_of_memory(OVER_CONTEXT)
    assert backend.log.message(OVER_CONTEXT).startswith("send_error: task id = 1")


def test_its_version_is_the_binarys_own(launch, tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho 'version: 0.5.0-dev (build 7, commit abc1234)' >&2\necho 'built with GNU' >&2\n")
    binary.chmod(0o755)
    facts = LlamaCpp(name="l", quantization="Q4_K_M").facts(
        Launch(model=launch.model, served_name="tiny", workdir=tmp_path, binary=str(binary))
    )
    assert (facts["engine_version"], facts["engine_commit"]) == ("0.5.0-dev", "abc1234")
    assert (facts["quantization"], facts["dtype"], facts["max_model_len"]) == ("Q4_K_M", "Q4_K_M", 2048)


def test_a_binary_that_does_not_say_has_no_version(tmp_path):
    binary = tmp_path / "silent"
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    assert llamacpp._version(str(binary)) == (None, None)


def test_quantised_weights_need_the_tool_beside_the_server(launch, tmp_path):
    own = LlamaCpp(name="l", quantization="Q4_K_M", env=EnvironmentChoice(binary=str(tmp_path / "llama-server")))
    with pytest.raises(ValueError, match=r"backend\.quantization=Q4_K_M: needs .*llama-quantize; without it: F32"):
        own.weights(launch.model, "python", tmp_path / "cache", print)


@pytest.mark.parametrize(
    ("split", "known"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, True),
        ({"type": "ByteLevel", "add_prefix_space": False}, True),  # true is the default
        ({"type": "ByteLevel", "use_regex": False}, False),
        ({"type": "Sequence", "pretokenizers": []}, False),
        (None, False),
    ],
)
def test_only_gpt2s_own_splitting_of_text_is_called_that(tmp_path, split, known):
    from backends.prepare.conversions.to_gguf import gpt2_split

    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": split}))
    assert gpt2_split(tmp_path) is known
    assert gpt2_split(Path("/nowhere")) is False
