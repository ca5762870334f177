"""Prompts that a cache has seen before: through the whole command, against a server that remembers every prompt."""

import json
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweep.__main__ import main
from sweep.base.records import Sample
from sweep.inputs.prompts import Prompts
from sweep.inputs.sessions.prefix_hits import shared_prefix_share
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.inputs.workload import HEADER_WORDS, Synthetic
from sweep.numbers.quantities.prompt_cache import prefix_hit_rate
from sweep.numbers.warnings import trial_warnings
from tests.support.http_stub import Stub, running

pytestmark = pytest.mark.slow

MISS, HIT = 0.5, 0.1  # s to the first token: long beside what the client takes from an answer to the next send


class RememberingServer(ThreadingHTTPServer):
    """Answers a prompt that it has had before at once, as an engine with a prompt cache does."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RememberingHandler)
        self.prompts: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class RememberingHandler(Stub):
    protocol_version = "HTTP/1.1"
    server: RememberingServer
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        cached = asked["prompt"] in self.server.prompts
        time.sleep(HIT if cached else MISS)
        if self.headers["x-request-id"] != "probe":
            self.server.prompts.append(asked["prompt"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(asked["max_tokens"]):
            last = number == asked["max_tokens"] - 1
            self.event({"choices": [{"index": 0, "text": "a", "finish_reason": "length" if last else None}]})
        count = {"prompt_tokens": 8, "completion_tokens": asked["max_tokens"], "total_tokens": 8 + asked["max_tokens"]}
        count |= {"prompt_tokens_details": {"cached_tokens": 6 if cached else 0}}
        self.event({"choices": [], "usage": count})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


@pytest.fixture
def server() -> Iterator[RememberingServer]:
    with running(remembering := RememberingServer()):
        yield remembering


def measured(server: RememberingServer, out: Path, *overrides: str) -> "pd.Series[Any]":
    """The row of one trial at the server, by the command that a user would give."""
    command = ["backend=openai", f"backend.url={server.url}", "model=served", "model.served_name=m", "cluster=inline"]
    command += ["tracking=none", "workload=synthetic", "workload.input_tokens=32", "workload.output_tokens=2"]
    command += ["load=closed", "load.concurrency=2", "workload.num_requests=8", "agreement=false", *overrides]
    before = list(server.prompts)
    for _ in range(3):  # a busy machine may limit the client; the server then forgets what it was asked
        server.prompts[:] = before
        if main([*command, f"out={out}", "fresh=true", "retry=none"]) == 0:
            break
    return pd.read_parquet(out / "trials.parquet").iloc[0]


def test_the_same_command_again_asks_nothing_that_a_cache_could_know(server, tmp_path):
    first = measured(server, tmp_path / "a")
    prompts = set(server.prompts)
    second = measured(server, tmp_path / "b")
    assert first["trial_id"] == second["trial_id"]
    assert first["ttft_p50"] > 0.9 * MISS
    assert second["ttft_p50"] > 0.9 * MISS
    assert len(set(server.prompts)) == len(server.prompts)
    assert len({first["prompt_salt"], second["prompt_salt"], None}) == 3
    assert second["input_tokens"] == first["input_tokens"]
    behind = {prompt.split(" ", HEADER_WORDS)[-1] for prompt in prompts}
    assert {prompt.split(" ", HEADER_WORDS)[-1] for prompt in server.prompts} == behind


def test_a_workload_without_headers_warns_and_says_how_much_it_repeats(server, tmp_path):
    measured(server, tmp_path / "a", "workload.unique_header=false")
    row = measured(server, tmp_path / "b", "workload.unique_header=false")
    assert row["ttft_p50"] < 0.5 * MISS  # the cache knows these prompts: no salt hides that it was asked for
    assert pd.isna(row["prompt_salt"])
    assert row["expected_prefix_hit_rate"] == 0.0  # within the trial
    assert "shared-prefixes" in row["warnings"]


def test_what_the_answers_usage_says_was_cached_is_a_column_of_requests_and_trials(server, tmp_path):
    first = measured(server, tmp_path / "a", "workload.unique_header=false")
    assert (first["cached_tokens"], first["cached_share"]) == (0, 0.0)
    assert "cached-input" not in first["warnings"]
    row = measured(server, tmp_path / "b", "workload.unique_header=false")
    assert (row["cached_tokens"], row["cached_share"]) == (8 * 6, 6 / 8)
    assert "cached-input" in row["warnings"]
    (path,) = (tmp_path / "b").rglob("requests.parquet")
    requests = pd.read_parquet(path)
    assert list(requests[requests["phase"] == "measured"]["cached_tokens"]) == [6] * 8


def test_the_salt_changes_the_headers_alone():
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    for each in (Synthetic(name="s", input_tokens=24, output_tokens=4), Prompts(name="p", file="qa", output_tokens=4)):
        plain = each.requests(tokenizer, 30, seed=1)
        salted = [each.requests(tokenizer, 30, seed=1, salt=salt) for salt in ("a", "b")]
        for other in salted:
            assert [request.input_tokens for request in other] == [request.input_tokens for request in plain]
            assert [request.request_id for request in other] == [request.request_id for request in plain]
            assert not {request.prompt for request in other} & {request.prompt for request in plain}
            for one, two in zip(plain, other, strict=True):
                assert str(one.prompt).split(maxsplit=4)[4] == str(two.prompt).split(maxsplit=4)[4]
            assert len({tuple(str(request.prompt).split()[:2]) for request in other}) == len(other)
        assert salted[0] != salted[1]
        assert each.requests(tokenizer, 30, seed=1, salt="a") == salted[0]


def test_the_share_of_shared_prefixes():
    stem = "s" * 640
    assert shared_prefix_share([stem + f"{i:064d}" for i in range(10)]) == pytest.approx(0.9 * 640 / 704)
    assert shared_prefix_share([f"{i:064d}" + stem for i in range(10)]) == 0.0
    assert shared_prefix_share([stem, stem]) == 0.5
    assert shared_prefix_share([]) is None


def test_the_engines_counters_say_what_its_cache_answered():
    samples = [Sample(time, "prefix_cache_hits_total", hits) for time, hits in ((-1, 5), (0.1, 6), (2, 65))]
    assert prefix_hit_rate(samples, 0.0, 120) == 0.5  # llama.cpp counts no queries: of all input
    samples += [Sample(time, "prefix_cache_queries_total", queries) for time, queries in ((-1, 50), (2, 350))]
    assert prefix_hit_rate(samples, 0.0, 120) == pytest.approx(0.2)
    assert prefix_hit_rate(samples[:1], 0.0, 120) is None
    row = {"outcome": "ok", "trial_id": "t"}
    assert [each.code for each in trial_warnings({**row, "prefix_hit_rate": 0.2})] == ["prompt-cache-hits"]
    assert not trial_warnings({**row, "prefix_hit_rate": 0.02, "caches_reset": True})
    assert [each.code for each in trial_warnings({**row, "caches_reset": False})] == ["caches-not-reset"]
