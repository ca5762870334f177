"""The circuit under a real engine: long text without cycles, wide margins, and every part of the context counts."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sweep.inputs.model import RandomModel
from sweep.inputs.tokenizer import load_tokenizer, ordinary_tokens
from sweep.inputs.workload import DATA
from tests.engines.circuit import Circuit, lookbacks
from tests.engines.conftest import configured

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

COUNT = 64
NARROW = 8  # leads of fewer bf16 steps could be decided by rounding


def prompts() -> list[str]:
    """Of all lengths, down to none; some end alike."""
    passage, question, story = (
        json.loads((DATA / "prompts" / f"{task}.jsonl").read_text().splitlines()[0])["prompt"]
        for task in ("summarization", "qa", "stories")
    )
    two, three = ("One two. End\nAnswer:", "One three. End\nAnswer:")
    return [passage, question, story, "", " the", two, three, passage * 2 + question]


@pytest.fixture(scope="module")
def random_model() -> RandomModel:
    return configured("model", "tiny-llama")


@pytest.fixture(scope="module")
def answer(model: Path, environments: Any) -> Any:
    python = environments(configured("backend", "transformers")).python
    script = Path(__file__).with_name("greedy.py")
    done = subprocess.run(
        [python, str(script), str(model), str(COUNT)],
        input=json.dumps(prompts()),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cycles(tokens: list[int]) -> bool:
    return any(tokens[-period:] == tokens[-2 * period : -period] for period in range(1, len(tokens) // 2 + 1))


def narrowest(continuation: dict[str, Any]) -> float:
    """The smallest lead of the best logit, in steps of bf16 (8 bits of significand) at its size."""
    steps = [2.0 ** (math.floor(math.log2(abs(top))) - 7) for top in continuation["top"]]
    return min(lead / step for lead, step in zip(continuation["lead"], steps, strict=True))


def test_text_does_not_cycle_and_margins_are_wide(answer: Any) -> None:
    for continuation in answer["single"] + answer["batch"]:
        assert not cycles(continuation["tokens"])
        assert len(set(continuation["tokens"])) > COUNT * 0.8
        assert narrowest(continuation) > NARROW


def test_plain_random_weights_have_neither(answer: Any) -> None:
    """Else the two measures above would prove nothing. (Which prompts end in a cycle depends on the machine.)"""
    assert any(cycles(continuation["tokens"]) for continuation in answer["plain"])
    assert all(narrowest(continuation) < NARROW for continuation in answer["plain"])


def test_a_left_padded_batch_says_what_each_prompt_alone_does(answer: Any) -> None:
    assert [one["tokens"] for one in answer["batch"]] == [one["tokens"] for one in answer["single"]]


def test_tokens_are_those_of_the_formula(answer: Any, model: Path, random_model: RandomModel) -> None:
    """next = P(xor of the ids at the lookbacks): computed without any arithmetic of a transformer."""
    tokenizer = load_tokenizer(model)
    circuit = Circuit(random_model.architecture, ordinary_tokens(tokenizer), random_model.seed)
    for prompt, continuation in zip(prompts(), answer["single"], strict=True):
        ids = tokenizer.encode(prompt).ids
        for token in continuation["tokens"]:
            state = 0
            for distance in [0, *lookbacks(random_model.architecture.num_hidden_layers)]:
                state ^= int(circuit.ids[ids[-1 - distance]]) if distance < len(ids) else 0
            assert token == circuit.outputs[state]
            ids.append(token)


def test_only_ordinary_text_is_generated(answer: Any, model: Path) -> None:
    ordinary = set(ordinary_tokens(load_tokenizer(model)))
    assert all(set(continuation["tokens"]) <= ordinary for continuation in answer["single"])


def test_the_context_decides(answer: Any) -> None:
    texts = [tuple(continuation["tokens"]) for continuation in answer["single"]]
    assert len(set(texts)) == len(texts)
    for one, other in ((5, 6), (1, 7)):  # prompts that end alike
        assert texts[one][-8:] != texts[other][-8:]


def test_a_wrong_layer_or_cache_shows(answer: Any) -> None:
    right = answer["single"][0]["tokens"]
    assert answer["sound_cache"] == right
    assert len(answer["no_attention"]) == len(answer["spoilt_cache"]) == 4  # layers
    for wrong in [*answer["no_attention"], *answer["spoilt_cache"]]:
        assert right[-8:] != wrong[-8:]
        assert sum(a == b for a, b in zip(right, wrong, strict=True)) < COUNT / 2
