"""What makes a backend done: the same questions to every real engine that runs on this machine.

A new backend is tested by its YAML alone. Each engine is launched twice: once for all questions, once to be killed.
"""

import contextlib
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from backends.launch import server
from sweep.base.records import Outcome, Request
from sweep.client.measurement import measure
from sweep.client.modes import ClosedLoop
from sweep.client.wire import Target
from sweep.node import answers
from sweep.node.deployment import _reset_caches
from sweep.node.telemetry import EngineMetrics
from tests.engines.conftest import CONTEXT, DTYPE, left_behind, stream
from tests.support.gateway_stand import bodies, gateway, tee
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROMPTS = [
    "The river rose in the night, and by morning",
    "A",
    "Seven boats lay in the harbour, each with a lamp; the oldest had none. Why did nobody",
]


def test_facts_say_what_was_measured(engine, backend):
    facts = engine.facts()
    assert re.match(r"\d+\.\d+", facts["engine_version"])
    # What its weights were converted to, where they are; else what it was told.
    assert facts["dtype"] == backend.facts(engine.launch).get("dtype", DTYPE)
    assert facts["max_model_len"] == CONTEXT
    assert facts["flags"].items() >= backend.flags.items()
    assert str(engine.launch.port) in facts["command"]
    assert 0 < facts["startup_seconds"] < backend.launch_timeout
    assert engine.processes()


@pytest.mark.parametrize("wanted", [1, 2, 33])
def test_streams_exactly_the_tokens_wanted(engine, wanted):
    (completion,), total = stream(engine, PROMPTS[0], wanted)
    assert total["completion_tokens"] == wanted
    assert completion.finish_reason == "length"
    assert 1 <= completion.events <= wanted + 1  # a chunk is not a token, but more chunks than tokens are odd
    if completion.token_ids:
        assert len(completion.token_ids) == wanted
    if engine.backend.continuous_usage:
        assert completion.usage["completion_tokens"] == wanted


def needs_token_ids(engine):
    """Leave the test out where an engine takes text alone, by which no prompt has an exact length."""
    if not engine.backend.token_ids:
        pytest.skip(f"{engine.backend.name} takes no prompts as token ids")


def test_counts_agree_with_usage(engine):
    needs_token_ids(engine)
    (completion,), total = stream(engine, list(range(100, 140)), 8)
    assert total["prompt_tokens"] == 40
    assert total["completion_tokens"] == 8
    assert total["total_tokens"] == 48
    assert completion.text


def test_its_answers_pass_a_gateway_byte_for_byte(engine):
    """Streams and others, with the cache on: the first answer to a question is the engine's own, as it was sent."""
    ask = {"model": engine.launch.served_name, "temperature": 0, "max_tokens": 12, **engine.backend.extra_body}
    asks = [ask | {"prompt": PROMPTS[0], "stream": True, "stream_options": {"include_usage": True}}]
    asks += [ask | {"prompt": PROMPTS[2], "stream": False}]
    with tee(engine.url) as (wire, sent), gateway(wire, cache={}, health_interval=1000) as url:
        for body in asks:
            before = len(b"".join(sent))
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120, trust_env=False)
            assert len(b"".join(sent)) > before
            assert bodies(sent)[-1] == answer.content
        assert b"[DONE]" in bodies(sent)[-2]
        again = httpx.post(f"{url}/v1/completions", json=asks[0], timeout=120, trust_env=False)
    assert again.headers["x-gateway-cache"] == "exact"
    assert again.text.count("data: ") == bodies(sent)[-2].count(b"data: ")


def test_each_dialect_counts_as_chat_does(engine, tmp_path):
    """A prompt and its answer have as many tokens in Responses and Messages as in chat."""
    if engine.backend.name not in ("llamacpp", "vllm"):
        pytest.skip(f"{engine.backend.name} speaks completions only")
    prompts = []
    for api in ("chat", "responses", "messages"):
        target = Target(engine.url, engine.launch.served_name, api=api, token_ids=False)
        request = Request("a", PROMPTS[0], 12)
        (record,) = measure(target, [], [request], ClosedLoop(1), folder=tmp_path / api).records
        assert (record.error, record.token_source, record.output_tokens) == (None, "final usage", 12)
        assert 1 <= len(record.chunk_us) <= 12
        prompts.append(record.input_tokens)
    assert max(prompts) - min(prompts) <= 1  # a template may begin with one more token


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_batch_answers_as_its_prompts_alone_do(engine, size):
    """Prompts of unequal length: padding must not change what is said."""
    prompts = [PROMPTS[i % 3] + " again" * i for i in range(size)]
    if engine.backend.batch_form == "list":
        together, total = stream(engine, prompts, 6)
        assert total["completion_tokens"] == 6 * size
    else:
        together = simultaneous(engine, prompts, 6)
    for prompt, completion in zip(prompts[:3], together, strict=False):
        (alone,), _ = stream(engine, prompt, 6)
        assert completion.text == alone.text
        assert completion.token_ids == alone.token_ids
        if engine.backend.continuous_usage:
            assert completion.usage == alone.usage


def simultaneous(engine, prompts, wanted):
    with ThreadPoolExecutor(len(prompts)) as pool:
        return [alone for (alone,), _ in pool.map(lambda prompt: stream(engine, prompt, wanted), prompts)]


@pytest.mark.parametrize("prompt", ["Größe 你好 😀 — naïve café", "x", "\n"])
def test_unusual_prompts(engine, prompt):
    (completion,), total = stream(engine, prompt, 5)
    assert total["completion_tokens"] == 5
    completion.text.encode()  # whole characters: half a surrogate would fail


def test_a_prompt_of_one_token(engine):
    needs_token_ids(engine)
    _, total = stream(engine, [100], 5)
    assert (total["prompt_tokens"], total["completion_tokens"]) == (1, 5)


def test_a_prompt_that_nearly_fills_the_context(engine):
    needs_token_ids(engine)
    _, total = stream(engine, [100 + i % 1000 for i in range(CONTEXT - 4)], 4)
    assert (total["prompt_tokens"], total["completion_tokens"]) == (CONTEXT - 4, 4)


def test_a_prompt_over_the_context_is_an_error_and_the_engine_lives_on(engine):
    needs_token_ids(engine)
    body = {"model": "tiny", "prompt": [100] * (CONTEXT + 10), "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{engine.url}/v1/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 400
    assert str(CONTEXT) in answer.text
    assert engine.alive()
    assert not engine.ran_out_of_memory()
    _, total = stream(engine, PROMPTS[0], 3)
    assert total["completion_tokens"] == 3


def test_log_probabilities_of_a_text_are_those_of_its_tokens(engine, backend):
    """Every token after the first has one, and the engine's own greedy answer is likelier than another text."""
    if backend.wire.log_probabilities is None:
        pytest.skip("gives no log-probabilities of a text")
    prompt = [5, 6, 7, 8]
    with httpx.Client(base_url=engine.url, timeout=60, trust_env=False) as http:
        (answer,) = answers.completions(http, engine, [prompt], 6)
    other = [token + 1 for token in answer]
    own, others = answers.log_probabilities(engine, [[*prompt, *answer], [*prompt, *other]])
    assert [len(own), len(others)] == [len(prompt) + 5] * 2
    assert all(value <= 0 for value in own)
    assert sum(own[-6:]) > sum(others[-6:])


def test_metrics_move_under_load(engine):
    if not engine.backend.metrics_path:
        pytest.skip("this engine has no metrics")
    worker = threading.Thread(target=stream, args=(engine, PROMPTS[0], 400))
    worker.start()
    url, name = engine.url + engine.backend.metrics_path, engine.backend.metric_names["requests_running"]
    seen = 0.0
    while worker.is_alive():
        text = httpx.get(url, timeout=10, trust_env=False).text
        values = [float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{re.escape(name)}\b", line)]
        seen = max([seen, *values])
        time.sleep(0.02)
    assert seen >= 1
    optional = ("spec_decode_", "allocated_", "reserved_")  # only where the feature or the device is there
    for ours, theirs in engine.backend.metric_names.items():
        if not ours.startswith(optional):
            assert theirs in text, f"{ours}: no {theirs}"


def test_says_what_the_engine_chose(engine):
    """The engine's own choices that it logs on a CPU."""
    on_cpu = {
        "vllm": {"model_runner", "kv_cache_layout", "kv_cache_tokens", "enforce_eager", "chunked_prefill"},
        "llamacpp": {"slots", "kv_unified"},
    }
    facts = engine.facts()
    assert set(facts["chosen"]) >= on_cpu.get(engine.backend.name, set())
    assert facts["prefix_block"] == {"vllm": 128, "vllm_gptq": 128, "llamacpp": 1}.get(engine.backend.name)


def test_forgets_prompts_between_trials(engine):
    """A prompt that is asked again is answered from the prefix cache, and after the reset is not."""
    if not engine.backend.resets:
        pytest.skip("this engine has no cache reset")
    name = engine.backend.metric_names.get("prefix_cache_hits_total")
    if name is None:
        pytest.skip("this engine does not count what its cache answered")
    needs_token_ids(engine)
    source = EngineMetrics([engine.url + engine.backend.metrics_path], {"hits": name})

    def hits() -> float:
        before = sum(value for _, _, value in source.read())
        stream(engine, [200 + i % 1000 for i in range(300)], 4)
        return sum(value for _, _, value in source.read()) - before

    hits()
    assert hits() > 0, "the cache is on, so there is something to forget"
    said: list[object] = []
    assert _reset_caches([engine], said.append) is True, said
    assert hits() == 0


def test_ends_within_its_grace_while_it_works(engine):
    """The last question to the shared engine: requests in flight must not hold it."""
    for _ in range(3):
        threading.Thread(target=stream_until_cut, args=(engine,), daemon=True).start()
    time.sleep(0.5)
    begin = time.monotonic()
    engine.stop()
    assert time.monotonic() - begin < engine.backend.stop_grace + 5
    assert left_behind(engine.marker) == []


def stream_until_cut(engine):
    """One request after the other until the engine has gone: a quick one answers several before that."""
    with contextlib.suppress(httpx.TransportError, AssertionError, IndexError):
        while True:
            stream(engine, PROMPTS[2], 450)


def test_a_wrong_flag_is_told_in_the_engines_own_words(backend, launch_for):
    wrong = backend.model_copy(update={"flags": {**backend.flags, "no-such-flag": 1}})
    marker = f"test/{os.getpid()}/wrong"
    with pytest.raises(server.LaunchError) as caught, server.running(wrong, launch_for(backend), marker=marker):
        pytest.fail("it must not become ready")
    assert caught.value.outcome is Outcome.LAUNCH_FAILED
    assert re.search(r"no.such.flag", caught.value.reason)
    assert left_behind(marker) == []


def test_the_death_of_its_main_process_under_load_is_noticed(backend, launch_for):
    marker = f"test/{os.getpid()}/killed"
    with server.running(backend, launch_for(backend), marker=marker) as engine:
        threading.Thread(target=stream_until_cut, args=(engine,), daemon=True).start()
        time.sleep(0.5)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: not engine.alive(), 2)
        assert engine.exit_status == -signal.SIGKILL
        assert "killed by signal 9" in engine.exit_reason()
    assert left_behind(marker) == []
