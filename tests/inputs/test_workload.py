"""Workloads: exact lengths, no shared beginnings, the same for the same seed, and the distributions they claim."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sweep.base.config import CONF, ConfigError, build
from sweep.base.options import load_option
from sweep.base.records import UNKNOWN
from sweep.inputs.prompts import Prompts
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.inputs.workload import DATA, Draw, Serving, Synthetic, Workload, exact_prompts

TASKS = ("qa", "reasoning", "sentiment", "stories", "summarization")
WORDS = (DATA / "words.txt").read_text().split()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(SHIPPED_TOKENIZER)


def shipped(name: str, **changed: Any) -> Any:
    return build({**load_option("workload", name), **changed}, "workload")


def output_lengths(workload: Serving, count: int = 20_000) -> list[int]:
    return [output for _, output in workload.lengths(Draw(1, "measured", count))]


def lengths(tokenizer: Tokenizer, requests: list[Any]) -> list[int]:
    prompts = (request.prompt for request in requests)
    return [len(prompt if isinstance(prompt, tuple) else tokenizer.encode(prompt).ids) for prompt in prompts]


@pytest.mark.parametrize("task", TASKS)
def test_tasks_have_prompts_enough_and_none_twice(task: str) -> None:
    prompts = [json.loads(line)["prompt"] for line in (DATA / "prompts" / f"{task}.jsonl").read_text().splitlines()]
    assert len(prompts) >= 64
    assert len(set(prompts)) == len(prompts)
    # No template filler: apart from the instruction that all share, no two prompts have most of their words in common.
    words = [set(prompt.split()) for prompt in prompts]
    own = [each - set.intersection(*words) for each in words]
    assert all(len(a & b) < 0.7 * len(a | b) for i, a in enumerate(own) for b in own[:i])


NEEDS_DATA = {"recorded", "prompts", "dataset", "tinystories"}
COMPLETE = sorted({path.stem for path in (CONF / "workload").glob("*.yaml")} - NEEDS_DATA)


@pytest.mark.parametrize("name", COMPLETE)
def test_every_shipped_configuration_is_a_workload(name: str, tokenizer: Tokenizer) -> None:
    workload = shipped(name)
    workload.check()
    assert workload.name == name
    requests = workload.requests(tokenizer, 5, seed=1)
    assert [request.input_tokens for request in requests] == lengths(tokenizer, requests)
    assert all(request.output_tokens > 0 for request in requests)


@pytest.mark.parametrize("name", [*TASKS, "synthetic", "serving"])
def test_requests_are_the_same_for_the_same_seed_only(name: str, tokenizer: Tokenizer) -> None:
    workload = shipped(name)
    first = workload.requests(tokenizer, 20, seed=1)
    assert first == workload.requests(tokenizer, 20, seed=1)
    others = workload.requests(tokenizer, 20, seed=2) + workload.requests(tokenizer, 20, seed=1, phase="warmup")
    assert not {r.prompt for r in first} & {r.prompt for r in others}
    assert len({r.request_id for r in first + others}) == 60
    assert {r.phase for r in others} == {"measured", "warmup"}


@pytest.mark.parametrize("name", ["qa", "synthetic", "serving"])
def test_no_cache_can_answer(name: str, tokenizer: Tokenizer) -> None:
    """No two requests of a trial share their first two words, nor, until all words are used up, their first."""
    short = {} if name == "qa" else {"input_tokens": 20}
    requests = shipped(name, **short).requests(tokenizer, 2500, seed=3)
    starts = [tuple(str(request.prompt).split()[:2]) for request in requests]
    assert len(set(starts)) == 2500
    assert len({start[0] for start in starts[:900]}) == 900


def test_a_shared_prefix_may_be_asked_for(tokenizer: Tokenizer) -> None:
    requests = shipped("qa", unique_header=False).requests(tokenizer, 80, seed=1)
    assert all(str(request.prompt).startswith("Answer the question") for request in requests)


def test_every_prompt_is_used_before_one_is_used_again(tokenizer: Tokenizer) -> None:
    count = len((DATA / "prompts" / "qa.jsonl").read_text().splitlines())
    bodies = [str(r.prompt).split("\n\n", 1)[1] for r in shipped("qa").requests(tokenizer, 2 * count, seed=1)]
    assert len(set(bodies[:count])) == count
    assert sorted(bodies[:count]) == sorted(bodies[count:])
    assert bodies[:count] != bodies[count:]


def sentencepiece() -> Tokenizer:
    """A tokenizer of the other family (as Llama 2's): no pre-tokenizer, and a space is put before the text."""
    vocabulary: dict[str, int] = {"<unk>": 0, "<s>": 1}
    merges: list[tuple[str, str]] = []
    for word in ["▁", *(f"▁{word}" for word in WORDS[::3])]:
        for letter in word:
            vocabulary.setdefault(letter, len(vocabulary))
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def bytes_only() -> Tokenizer:
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 600), min_size=1, max_size=20), st.integers(0, 2**32))
def test_prompts_have_exactly_the_length_asked_for(wanted: list[int], seed: int) -> None:
    for tokenizer in (load_tokenizer(SHIPPED_TOKENIZER), SENTENCEPIECE):
        prompts = exact_prompts(wanted, Draw(seed, "measured", len(wanted)), tokenizer, unique=True)
        assert [len(tokenizer.encode(prompt.text).ids) for prompt in prompts] == wanted
        assert [prompt.ids for prompt in prompts] == [tokenizer.encode(prompt.text).ids for prompt in prompts]


SENTENCEPIECE = sentencepiece()


def test_joined_words_are_mended() -> None:
    """A tokenizer that makes one token of two words in a row still gives exact prompts."""
    base = load_tokenizer(SHIPPED_TOKENIZER)
    content = json.loads(base.to_str())
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content["pre_tokenizer"]["use_regex"] = False
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    for word in WORDS[:200]:
        if f"Ġ{word}" in vocabulary and "Ġthe" in vocabulary:
            merges.append([f"Ġ{word}", "Ġthe"])
            vocabulary[f"Ġ{word}Ġthe"] = len(vocabulary)
            merges.append([f"Ġ{word}", f"Ġ{word}"])
            vocabulary[f"Ġ{word}Ġ{word}"] = len(vocabulary)
    joining = Tokenizer.from_str(json.dumps(content))
    requests = Synthetic(name="x", input_tokens=2000, output_tokens=1).requests(joining, 20, seed=1)
    assert lengths(joining, requests) == [2000] * 20
    assert any(len(str(request.prompt).split()) != 1999 for request in requests)  # some were joined


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model.tokenizer: only 0 of 1024 plain words"):
        shipped("synthetic").requests(bytes_only(), 1, seed=1)


def test_no_prompt_is_shorter_than_its_special_tokens(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^workload.input_tokens=1: expected at least 2, since the tokenizer adds 1$"):
        shipped("synthetic", input_tokens=1).requests(tokenizer, 1, seed=1)


def test_the_input_tokens_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    for name in ("qa", "synthetic"):
        requests = shipped(name).requests(tokenizer, 5, seed=1)
        assert [r.input_tokens for r in requests] == [len(tokenizer.encode(str(r.prompt)).ids) for r in requests]


@pytest.mark.parametrize("name", ["qa", "synthetic", "serving"])
def test_without_a_tokenizer_a_word_stands_for_a_token(name: str) -> None:
    requests = shipped(name).requests(None, 50, seed=1)
    assert {request.input_tokens for request in requests} == {UNKNOWN}
    if name == "synthetic":
        assert {len(str(request.prompt).split()) for request in requests} == {128}


def test_a_thousand_long_prompts_take_a_second(tokenizer: Tokenizer) -> None:
    before = time.process_time()
    requests = Synthetic(name="x", input_tokens=365, output_tokens=1).requests(tokenizer, 1000, seed=1)
    assert time.process_time() - before < 4  # CPU time of all threads, on a busy machine; 0.4 s in all on a quiet one
    assert {request.input_tokens for request in requests} == {365}


def test_uniform_lengths_fill_their_interval() -> None:
    outputs = output_lengths(shipped("serving"))
    assert (min(outputs), max(outputs)) == (219, 511)
    assert stats.chisquare(np.bincount(np.array(outputs) - 219, minlength=293)).pvalue > 1e-3


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
def test_drawn_lengths_have_the_mean_and_spread_stated(distribution: str) -> None:
    workload = shipped("serving", distribution=distribution, spread=0.2, output_tokens=1000)
    outputs = np.array(output_lengths(workload))
    assert outputs.mean() == pytest.approx(1000, rel=0.01)
    assert outputs.std() == pytest.approx(200, rel=0.03)
    drawn = np.log(outputs) if distribution == "lognormal" else outputs
    assert abs(stats.skew(drawn)) < 0.06


@pytest.mark.parametrize("distribution", ["uniform", "normal", "lognormal"])
def test_a_longest_length_truncates_and_does_not_clip(distribution: str) -> None:
    workload = shipped("serving", distribution=distribution, longest=400)
    outputs = output_lengths(workload)
    assert max(outputs) == 400
    assert outputs.count(400) < 3 * outputs.count(390)


def test_input_and_output_lengths_are_independent() -> None:
    workload = shipped("serving")
    inputs = [len(str(r.prompt).split()) for r in workload.requests(None, 2000, seed=1)]
    outputs = [r.output_tokens for r in workload.requests(None, 2000, seed=1)]
    assert abs(stats.pearsonr(inputs, outputs).statistic) < 0.08
    longer = shipped("serving", output_tokens=700).requests(None, 2000, seed=1)
    assert [len(str(r.prompt).split()) for r in longer] == inputs  # one dimension moves alone


def test_recorded_lengths_are_replayed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    pairs = [(10, 3), (200, 40), (35, 7)]
    file.write_text("".join(json.dumps({"input_tokens": i, "output_tokens": o}) + "\n" for i, o in pairs))
    workload = shipped("recorded", file=str(file))
    workload.check()
    requests = workload.requests(tokenizer, 6, seed=1)
    assert [(r.input_tokens, r.output_tokens) for r in requests] == pairs * 2
    assert lengths(tokenizer, requests) == [r.input_tokens for r in requests]
    shuffled = shipped("recorded", file=str(file), order="random").requests(tokenizer, 30, seed=1)
    assert sorted((r.input_tokens, r.output_tokens) for r in shuffled) == sorted(pairs * 10)
    assert [(r.input_tokens, r.output_tokens) for r in shuffled] != pairs * 10


def test_a_digest_covers_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "one"}\n')
    workload = Prompts(name="p", file=str(file), output_tokens=3)
    before = workload.digest(Path())
    assert workload.digest(Path()) == before
    file.write_text('{"prompt": "two"}\n')
    assert workload.digest(Path()) != before
    assert shipped("qa").digest(Path()) != shipped("reasoning").digest(Path())
    assert shipped("synthetic").digest(Path()) == shipped("serving").digest(Path())


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("synthetic", {"input_tokens": -1}, "workload.input_tokens=-1: input should be greater than 0"),
        ("synthetic", {"output_tokens": 0}, "workload.output_tokens=0: input should be greater than 0"),
        ("qa", {"num_requests": 0}, "workload.num_requests=0: input should be greater than 0"),
        ("qa", {"input_tokens": 5}, "workload.input_tokens=5: unknown key"),
        ("serving", {"spread": 1.5}, "workload.spread=1.5: input should be less than or equal to 1"),
        ("serving", {"distribution": "zipf"}, "workload.distribution='zipf': input should be 'uniform', 'normal'"),
        ("serving", {"warmup_requests": -2}, "workload.warmup_requests=-2"),
    ],
)
def test_bad_values_are_refused_in_one_line(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shipped(name, **changed)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_longest_length_below_the_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^workload.longest=300: expected at least input_tokens, 365$"):
        shipped("serving", longest=300).check()


def test_lengths_can_be_overridden(tokenizer: Tokenizer) -> None:
    assert {r.output_tokens for r in shipped("qa", output_tokens=5).requests(tokenizer, 3, seed=1)} == {5}
    found = shipped("synthetic", input_tokens=33, output_tokens=6).requests(tokenizer, 3, seed=1)
    assert {(r.input_tokens, r.output_tokens) for r in found} == {(33, 6)}


def test_no_requests_are_no_requests(tokenizer: Tokenizer) -> None:
    workload: Workload = shipped("synthetic")
    assert workload.requests(tokenizer, 0, seed=1, phase="warmup") == []
    assert isinstance(shipped("serving"), Serving)
