"""The llama.cpp backend without llama.cpp: command lines, limits, and its logs as it wrote them."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from backends import llamacpp
from backends.base import EnvironmentChoice, Launch
from backends.llamacpp import LlamaCpp


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


@pytest.mark.parametrize(
    ("layers", "log", "unused"),
    [
        (999, "load_tensors: offloaded 33/33 layers to GPU", None),
        (999, "load_tensors: offloaded 20/33 layers to GPU", "offloaded 20/33 layers to GPU, expected 33"),
        (10, "load_tensors: offloaded 10/33 layers to GPU", None),
        ("auto", "load_tensors: offloaded 20/33 layers to GPU", None),
        (999, "W warning: no usable GPU found, --gpu-layers option will be ignored", "no usable GPU found"),
    ],
)
def test_fewer_layers_on_the_gpu_than_asked_for_are_no_launch(layers, log, unused):
    line = LlamaCpp(name="l", flags={"n-gpu-layers": layers}).gpus_unused(f"loading\n{log}\nlistening")
    assert (line is None) == (unused is None)
    assert unused is None or unused in line


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
