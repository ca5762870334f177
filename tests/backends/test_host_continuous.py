"""The host with a library that is stepped, and a trial measured inside it: a fake whose tokens and order are known."""

import threading
import time
from collections.abc import Mapping, Sequence

import httpx
import pytest

from backends.host.library import ContinuousLibrary, PromptRow, Step
from tests.backends.test_host import VOCABULARY, hosted, model  # noqa: F401 - a fixture
from tests.support.waiting import wait_until


class Stepper:
    """Each token is the one after the last; at most `slots` rows run at once; every step is kept."""

    version = "9.9"
    fails, fails_alone, refused = 310, 311, 312

    def __init__(self, slots: int = 4, adds_any_time: bool = False) -> None:
        self.slots = slots
        self.adds_any_time = adds_any_time
        self.rows: list[PromptRow] = []
        self.last: dict[int, int] = {}
        self.steps: list[int] = []
        self.dropped = self.cleared = 0
        self.step_seconds = 0.0

    def add(self, row: PromptRow) -> None:
        if self.refused in row.prompt:
            raise ValueError("larger than the cache")
        self.rows.append(row)
        self.last[id(row)] = row.prompt[-1]

    def step(self) -> Sequence[Step]:
        time.sleep(self.step_seconds)
        running = self.rows[: self.slots]
        self.steps.append(len(running))
        if any(self.fails in row.prompt for row in running):
            raise RuntimeError("CUDA out of memory")
        found = []
        for row in running:
            token = self.last[id(row)] = (self.last[id(row)] + 1) % VOCABULARY
            failed = "this row only" if self.fails_alone in row.prompt else None
            if failed or token in row.ends or len(row.tokens) + 1 >= row.max_tokens:
                self.rows.remove(row)
            found.append(Step(row, [token], failed))
        return found

    def drop(self, row: PromptRow) -> None:
        if row in self.rows:
            self.rows.remove(row)
            self.dropped += 1

    def memory(self) -> Mapping[str, float]:
        return {"kv_cache_usage": 0.25}

    def clear(self) -> None:
        self.cleared += 1
        self.rows.clear()


@pytest.fixture(params=[False, True], ids=["own thread", "any time"])
def library(request) -> Stepper:
    return Stepper(adds_any_time=request.param)


@pytest.fixture
def client(model, library):  # noqa: F811
    with hosted(library, model) as client:
        yield client


def complete(client: httpx.Client, prompt: object, wanted: int) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": wanted, "ignore_eos": True, "return_token_ids": True}
    return client.post("/v1/completions", json=body)


def test_the_fake_is_such_a_library():
    assert isinstance(Stepper(), ContinuousLibrary)


def test_one_prompt_and_a_list_of_prompts(client):
    answer = complete(client, [10], 3).json()
    assert answer["choices"][0]["token_ids"] == [11, 12, 13]
    answer = complete(client, [[10], [20, 30], [40]], 2).json()
    assert [choice["token_ids"] for choice in answer["choices"]] == [[11, 12], [31, 32], [41, 42]]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


def test_a_request_joins_those_that_run(client, library):
    library.step_seconds = 0.01
    first = threading.Thread(target=complete, args=(client, [10], 40))
    first.start()
    wait_until(lambda: library.steps, poll=0.001)
    assert complete(client, [100], 5).json()["usage"]["completion_tokens"] == 5
    first.join()
    assert 2 in library.steps  # both in one step
    assert library.steps[0] == library.steps[-1] == 1
    assert len(library.steps) == 40  # the long one was not held up


def test_a_failed_step_fails_what_runs_and_the_library_begins_anew(client, library):
    answer = complete(client, [Stepper.fails], 3)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "out_of_memory"
    assert library.cleared == 1
    assert complete(client, [10], 2).status_code == 200


@pytest.mark.parametrize(
    ("token", "words"), [(Stepper.fails_alone, "this row only"), (Stepper.refused, "larger than the cache")]
)
def test_a_row_that_fails_or_is_refused_fails_its_call_alone(client, token, words):
    answer = complete(client, [[10], [token]], 5)
    assert answer.status_code == 500
    assert words in answer.text
    assert complete(client, [10], 2).json()["choices"][0]["token_ids"] == [11, 12]


def test_a_client_that_leaves_is_dropped(client, library):
    library.step_seconds = 0.1  # long enough for a busy machine to notice
    body = {"model": "tiny", "prompt": [10], "max_tokens": 50, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: library.dropped, 5)
    assert len(library.steps) < 40


def test_metrics_have_the_librarys_own_readings(client):
    assert "host_kv_cache_usage 0.25" in client.get("/metrics").text


def body(*prompts: list, tokens: int = 3, **more: object) -> dict:
    requests = [{"prompt": prompt, "max_tokens": tokens} for prompt in prompts]
    return {"warmup": [], "requests": requests, "batch_size": 2, "ignore_eos": True} | more


def test_a_trial_in_one_call(client, library):
    before = time.monotonic_ns()
    warmup = [{"prompt": [5], "max_tokens": 1}]
    answer = client.post("/measure", json=body([10], [20, 30], [40], warmup=warmup)).json()
    (warm,), records = answer["warmup"], answer["records"]
    assert before < warm["released"] < records[0]["released"] < time.monotonic_ns()
    assert [record["input_tokens"] for record in records] == [1, 2, 1]
    assert all([tokens for _, tokens in record["stamps"]] == [1, 1, 1] for record in records)
    assert all(record["output_tokens"] == 3 and record["finish_reason"] == "length" for record in records)
    assert library.steps == [1, 2, 2, 2, 1, 1, 1]  # the warm-up, then batches that do not overlap
    assert records[0]["released"] == records[1]["released"]
    assert records[2]["released"] >= records[1]["stamps"][-1][0]
    assert client.get("/progress").json()["counts"].items() >= {"sent": 3, "done": 3, "tokens": 9}.items()


@pytest.mark.parametrize(
    ("prompt", "status", "kind", "message"),
    [
        ([1] * 100, 400, "BadRequestError", "64"),
        ([Stepper.fails], 500, "out_of_memory", "out of memory"),
        ([Stepper.refused], 500, "internal_error", "larger than the cache"),
        ([Stepper.fails_alone], 500, "internal_error", "the library rejected or aborted a row"),
    ],
)
def test_a_trial_that_fails_is_no_result(client, prompt, status, kind, message):
    answer = client.post("/measure", json=body([10], prompt))
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert message in answer.text
    assert complete(client, [10], 2).status_code == 200


def test_a_trial_whose_client_leaves_is_stopped(client, library):
    library.step_seconds = 0.1
    with pytest.raises(httpx.ReadTimeout):
        client.post("/measure", json=body([10], tokens=60), timeout=0.1)
    wait_until(lambda: library.dropped, 5)
    library.step_seconds = 0
    assert complete(client, [10], 2).status_code == 200


def test_a_duration_begins_no_further_batch_and_drains(client, library):
    library.step_seconds = 0.01
    answer = client.post("/measure", json=body(*[[10]] * 100, duration=0.1)).json()
    assert 4 <= len(answer["records"]) <= 8  # two a batch of 30 ms
    assert all(record["output_tokens"] == 3 for record in answer["records"])


def lost_pages() -> bool:
    raise RuntimeError("lost its pages")


@pytest.mark.parametrize(
    ("reset", "status", "said"),
    [
        (lambda: True, 200, '{"success": true}'),
        (lambda: False, 200, '{"success": false}'),
        (lost_pages, 500, "lost its pages"),
        (None, 404, "has no cache reset"),
    ],
)
def test_a_library_that_can_forgets_earlier_prompts_while_nothing_runs(client, library, reset, status, said):
    running = []
    library.reset_caches = reset and (lambda: running.append(list(library.rows)) or reset())
    complete(client, [10], 3)
    answer = client.post("/reset_caches")
    assert (answer.status_code, running) == (status, [[]] if reset else [])
    assert said in answer.text
    assert complete(client, [10], 3).json()["choices"][0]["token_ids"] == [11, 12, 13]
