"""Agreement of an engine with the reference: on answers whose likeness is known, and by real engines."""

import contextlib
import errno
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from backends.base import Backend, Launch
from backends.declarations import Wire
from backends.launch.server import running
from backends.openai import OpenAI
from backends.prepare import environments, locks
from backends.simulated import Simulated
from scripts import agreement_study
from scripts.agreement_study import CASES
from sweep.__main__ import main
from sweep.base import code_version
from sweep.inputs.model import PathModel
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.node import agreement, deployment
from sweep.node.agreement import Reference
from tests.engines import circuit
from tests.engines.conftest import CACHE, configured, make_launch
from tests.support.http_stub import Stub, serving

VOCABULARY = {f"t{index}": index for index in range(100)} | {"two words": 100}
PROMPTS, TOKENS = [[1, 2], [3, 4]], [[10, 11, 12, 14], [20, 21, 22, 23]]
TEXTS, LOGS = [[1, 2, 3], [4, 5]], [[-1.0, -2.0], [-3.0]]
EXPECTED = Reference(PROMPTS, TOKENS, TEXTS, LOGS, [13], "transformers 9.9 float32")


class Oracle:
    """An engine's next token after any prefix: the reference's, except at the positions given other ones."""

    def __init__(self, other: dict[tuple[int, ...], int] | None = None) -> None:
        self.other, self.asked = other or {}, list[tuple[tuple[int, ...], int]]()

    def next(self, prefix: list[int]) -> int:
        if tuple(prefix) in self.other:
            return self.other[tuple(prefix)]
        for prompt, tokens in zip(PROMPTS, TOKENS, strict=True):
            whole = prompt + tokens
            if prefix == whole[: len(prefix)] and len(prefix) < len(whole):
                return whole[len(prefix)]
        return 99  # after anything that is not the reference's own text

    def answer(self, prompt: list[int], tokens: int) -> list[int]:
        self.asked.append((tuple(prompt), tokens))
        text = list(prompt)
        for _ in range(tokens):
            text.append(self.next(text))
        return text[len(prompt) :]

    def __call__(self, path: str, body: dict) -> tuple[int, dict]:
        if path == "/log_probabilities":
            return 200, {"log_probabilities": LOGS}
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        answers = [self.answer(prompt, body["max_tokens"]) for prompt in prompts]
        choices = [{"index": index, "text": "", "token_ids": ids} for index, ids in enumerate(answers)]
        return 200, {"choices": choices[::-1]}  # in no particular order


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


@pytest.fixture
def serve():
    """serve(answer) -> URL; `answer(path, body)` gives (status, JSON object)."""
    servers = contextlib.ExitStack()

    def start(answer: Callable[[str, dict], tuple[int, dict]]) -> str:
        class Handler(Stub):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, found = answer(self.path, body)
                self.reply(status, json.dumps(found).encode())

        return servers.enter_context(serving(Handler))

    with servers:
        yield start


def run_of(backend: Backend, tokenizer: Tokenizer | None = None, **settings: object) -> SimpleNamespace:
    model = SimpleNamespace(
        name="tiny",
        comparable=True,
        tokenizer=None,
        digest=lambda *cache: "abc",
        load_tokenizer=lambda cache: tokenizer,
        prepare=lambda cache, progress: Path("/models/tiny"),
    )
    known = {"agreement": True, "comparison_limit": 300.0, "gate": None, "seed": 0, "cache_dir": "/nonexistent"}
    return SimpleNamespace(
        deployment=SimpleNamespace(backend=backend, model=model, trials=[]),
        settings=SimpleNamespace(**(known | settings)),
        cache=Path(str(settings.get("cache_dir", known["cache_dir"]))),
    )


def compared_by(backend: Backend, url: str, tokenizer, expected: Reference = EXPECTED, **settings) -> dict:
    engine = SimpleNamespace(backend=backend, url=url, launch=Launch(model=Path(), served_name="tiny", workdir=Path()))
    return agreement.compare(run_of(backend, tokenizer, **settings), engine, expected)


def compared(serve, tokenizer, answer, expected: Reference = EXPECTED, gate: dict | None = None, **fields) -> dict:
    return compared_by(Backend(name="x", **fields), serve(answer), tokenizer, expected, gate=gate)


def test_every_position_is_judged_after_the_references_own_tokens(serve, tokenizer):
    """One difference does not count for what follows it: the engine is asked again from there on."""
    oracle = Oracle({(1, 2, 10): 99})
    found = compared(serve, tokenizer, oracle)
    assert found["agreement"] == 7 / 8
    assert found["agreement_positions"] == 8
    assert found["agreement_low"] < 7 / 8 < found["agreement_high"]
    assert found["agreement_reference"] == "transformers 9.9 float32"
    assert oracle.asked == [((1, 2), 4), ((3, 4), 4), ((1, 2, 10, 11), 2)]


def test_what_an_engine_is_asked(serve, tokenizer):
    bodies = []

    def answer(path: str, body: dict) -> tuple[int, dict]:
        bodies.append((path, body))
        return Oracle()(path, body)

    compared(serve, tokenizer, answer, extra_body={"top_k": 1})
    ((path, body),) = bodies
    assert path == "/v1/completions"
    assert body["prompt"] == PROMPTS
    assert (body["max_tokens"], body["temperature"], body["ignore_eos"], body["top_k"]) == (4, 0, True, 1)
    assert body["return_token_ids"]


@pytest.mark.slow
def test_a_position_at_which_the_engine_ends_is_left_out(serve, tokenizer):
    ended = compared(serve, tokenizer, Oracle({(1, 2, 10): 13}))
    assert (ended["agreement"], ended["agreement_positions"]) == (1.0, 7)

    def short(path: str, body: dict) -> tuple[int, dict]:
        status, found = Oracle()(path, body)
        for choice in found["choices"]:
            choice["token_ids"] = choice["token_ids"][:2]
        return status, found

    assert compared(serve, tokenizer, short)["agreement"] == 1.0


def test_an_engine_that_is_wrong_everywhere_is_asked_for_little_at_a_time(serve, tokenizer):
    oracle = Oracle({tuple(p + t[:n]): 99 for p, t in zip(PROMPTS, TOKENS, strict=True) for n in range(4)})
    found = compared(serve, tokenizer, oracle)
    assert found["agreement"] == 0.0
    assert max(tokens for _, tokens in oracle.asked[2:]) == 2
    assert len(oracle.asked) == 8


def test_text_is_tokenised_where_there_are_no_ids_and_unknown_keys_are_left_out(serve, tokenizer):
    oracle = Oracle({(1, 2, 10): 77})

    def answer(path: str, body: dict) -> tuple[int, dict]:
        if "return_token_ids" in body:
            return 400, {"error": {"message": "extra inputs are not permitted"}}
        ids = oracle.answer(tokenizer.encode(body["prompt"]).ids, body["max_tokens"])
        return 200, {"choices": [{"text": tokenizer.decode(ids)}]}

    assert compared(serve, tokenizer, answer, token_ids=False)["agreement"] == 7 / 8


@pytest.mark.slow
def test_a_prefix_without_a_text_of_its_own_is_left_out_where_only_text_is_taken(serve, tokenizer):
    """Token 100 is read as two unknown words: after a difference behind it the engine cannot be asked to go on."""
    expected = Reference([[1, 2]], [[10, 100, 12]], TEXTS, LOGS, [], "transformers 9.9 float32")

    def answer(path: str, body: dict) -> tuple[int, dict]:
        return 200, {"choices": [{"token_ids": [10, 100, 12][: body["max_tokens"]]}]}

    found = compared(serve, tokenizer, answer, expected, token_ids=False)
    assert found["agreement_positions"] == 3

    def differs(path: str, body: dict) -> tuple[int, dict]:
        return 200, {"choices": [{"token_ids": [10, 55, 12][: body["max_tokens"]]}]}

    assert compared(serve, tokenizer, differs, expected, token_ids=False)["agreement_positions"] == 2


def test_llama_cpps_ids_are_among_its_log_probabilities(serve, tokenizer):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        status, found = Oracle()(path, body)
        for choice in found["choices"]:
            choice["logprobs"] = {"content": [{"id": token} for token in choice.pop("token_ids")]}
        return status, found

    assert compared(serve, tokenizer, answer)["agreement"] == 1.0


def test_an_engine_that_cannot_ignore_eos_is_not_asked_to(serve, tokenizer):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        assert "ignore_eos" not in body
        return Oracle()(path, body)

    assert compared(serve, tokenizer, answer, ignores_eos=False)["agreement"] == 1.0


def test_tgis_own_route(serve, tokenizer):
    oracle = Oracle({(3, 4): 7})

    def answer(path: str, body: dict) -> tuple[int, dict]:
        assert path == "/generate"
        assert body["parameters"]["do_sample"] is False
        ids = oracle.answer(tokenizer.encode(body["inputs"]).ids, body["parameters"]["max_new_tokens"])
        return 200, {"details": {"tokens": [{"id": token} for token in ids]}}

    assert compared(serve, tokenizer, answer, api="tgi", token_ids=False, ignores_eos=False)["agreement"] == 7 / 8


class Scored(Backend):
    """A backend that gives log-probabilities as vLLM does."""

    wire = Wire(log_probabilities="prompt_logprobs")


def scored(serve, tokenizer, loss: float, gate: dict | None = None, **fields) -> dict:
    """What is said of an engine under which every token has a log-probability lower by `loss`."""

    def answer(path: str, body: dict) -> tuple[int, dict]:
        if "prompt_logprobs" not in body:
            return Oracle()(path, body)
        text = body["prompt"]
        values = LOGS[TEXTS.index(text)]
        pairs = zip(text[1:], values, strict=True)
        entries = [{str(token): {"logprob": value - loss}, "0": {"logprob": 0.0}} for token, value in pairs]
        return 200, {"choices": [{"index": 0, "text": "", "prompt_logprobs": [None, *entries]}]}

    return compared_by(Scored(name="x", **fields), serve(answer), tokenizer, gate=gate)


class Hosted(Backend):
    """A backend that gives log-probabilities as our host does."""

    wire = Wire(log_probabilities="host")


@pytest.mark.slow
def test_after_the_limit_nothing_more_is_asked(serve, tokenizer, monkeypatch):
    monkeypatch.setattr("sweep.node.answers.IN_FLIGHT", 2)
    twice = Reference(PROMPTS * 2, TOKENS * 2, TEXTS * 2, LOGS * 2, [13], "transformers 9.9 float32")

    def slow(path: str, body: dict) -> tuple[int, dict]:
        time.sleep(0.3)
        if path != "/log_probabilities":
            return Oracle()(path, body)
        return 200, {"log_probabilities": [LOGS[TEXTS.index(text)] for text in body["texts"]]}

    url, sizes = serve(slow), {}
    for limit in (0.25, 300.0):
        found = compared_by(Hosted(name="x"), url, tokenizer, twice, comparison_limit=limit)
        sizes[limit] = found["agreement_positions"], found["quality_tokens"]
    assert sizes == {0.25: (8, 3), 300.0: (16, 6)}


@pytest.mark.slow
def test_quality_is_paired_by_token(serve, tokenizer):
    found = scored(serve, tokenizer, 0.1)
    assert found["quality"] == pytest.approx(math.exp(-0.1))
    assert found["quality_low"] == pytest.approx(found["quality_high"]), "the same loss at every token"
    assert (found["quality_tokens"], found["quality_reference"]) == (3, "transformers 9.9 float32")
    assert scored(serve, tokenizer, 0.0)["quality"] == 1.0


class Generating(Backend):
    """A backend that generates the text that it is to score, as llama.cpp does."""

    wire = Wire(log_probabilities="token_grammar")


@pytest.mark.parametrize("extra", [0, 1], ids=["the text", "another token"])
def test_llama_cpp_generates_the_text_that_its_quality_is_of(serve, tokenizer, extra):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        if path != "/completion":
            return Oracle()(path, body)
        following = [int(token) for token in re.findall(r"<\[(\d+)\]>", body["grammar"])]
        assert body["n_predict"] == len(following)
        values = LOGS[TEXTS.index([*body["prompt"], *following])]
        entries = [{"id": token + extra, "logprob": value} for token, value in zip(following, values, strict=True)]
        return 200, {"completion_probabilities": entries}

    check_quality(Generating(name="x"), serve(answer), tokenizer, extra)


def check_quality(backend, url, tokenizer, extra):
    """The quality of an engine that scores the text is 1; that of one that scores other tokens is unknown."""
    found = compared_by(backend, url, tokenizer)
    if extra:
        assert found["quality"] is None
        assert "tokens that are not in the text" in found["quality_reference"]
    else:
        assert (found["quality"], found["quality_tokens"]) == (1.0, 3)


@pytest.mark.parametrize("extra", [0, 1], ids=["the text", "another token"])
def test_sglang_scores_the_tokens_of_its_input(serve, tokenizer, extra):
    """Its own route, as its documents have it: of each token of the prompt, null before the first."""

    def answer(path: str, body: dict) -> tuple[int, dict]:
        if path != "/generate":
            return Oracle()(path, body)
        assert (body["return_logprob"], body["logprob_start_len"]) == (True, 0)
        text = body["input_ids"]
        values = [None, *LOGS[TEXTS.index(text)]]
        entries = [[value, token + extra, None] for value, token in zip(values, text, strict=True)]
        return 200, {"text": "", "meta_info": {"input_token_logprobs": entries}}

    check_quality(configured("backend", "sglang"), serve(answer), tokenizer, extra)


def test_an_engine_without_log_probabilities_has_no_quality(serve, tokenizer):
    found = compared(serve, tokenizer, Oracle())
    assert (found["quality"], found["quality_reference"]) == (None, "none: x returns no log-probabilities of a text")


@pytest.mark.slow
def test_a_figure_below_the_gate_with_its_interval_is_said_and_no_other(serve, tokenizer):
    gate = {"quality": 0.98, "agreement": 0.95}
    below = scored(serve, tokenizer, 0.1, gate)["below_gate"]
    assert below == (
        "quality 0.905 (95% interval 0.905 to 0.905) with transformers 9.9 float32 is below gate.quality=0.98"
    )
    assert scored(serve, tokenizer, 0.1)["below_gate"] is None, "off by default"
    assert scored(serve, tokenizer, 0.01, gate)["below_gate"] is None
    assert scored(serve, tokenizer, 0.1, gate, flags={"quantization": "fp8"})["below_gate"] is None, "declared coarser"
    # 7 of 8 positions: below 0.95, but nobody knows by how much.
    assert compared(serve, tokenizer, Oracle({(1, 2, 10): 99}), gate=gate)["below_gate"] is None


@pytest.mark.parametrize(
    "answer",
    [
        lambda path, body: (500, {"error": {"message": "boom"}}),
        lambda path, body: (200, {"choices": []}),
        lambda path, body: (200, {}),
    ],
    ids=["status", "no choice", "not an answer"],
)
def test_no_failure_is_raised(serve, tokenizer, answer):
    found = compared(serve, tokenizer, answer)
    assert found["agreement"] is None
    assert found["agreement_reference"].startswith("none: the engine's answer: ")


def test_an_engine_that_is_gone_is_said(tokenizer):
    found = compared_by(Backend(name="x"), "http://127.0.0.1:9", tokenizer)
    assert found["agreement_reference"].startswith("none: the engine's answer: ConnectError")


def launch(tmp_path: Path) -> Launch:
    return Launch(model=tmp_path, served_name="tiny", workdir=tmp_path)


@pytest.mark.parametrize(
    ("backend", "settings", "words"),
    [
        (Backend(name="x"), {"agreement": False}, "none: agreement=false"),
        (Simulated(name="simulated"), {}, "none: this engine does not compute a model"),
        (OpenAI(name="openai", url="http://127.0.0.1:1"), {}, "none: the weights of a running endpoint are unknown"),
    ],
)
def test_why_there_is_no_reference(backend, settings, words, tmp_path):
    found = agreement.reference(run_of(backend, **settings), launch(tmp_path), print)
    assert found == words
    columns = {"agreement": None, "agreement_reference": words, "quality": None, "quality_reference": words}
    assert agreement.compare(run_of(backend), None, found) == columns


def test_a_reference_that_cannot_be_made_is_said(monkeypatch, tmp_path, tokenizer):
    def fail(spec: object, cache: Path, progress: Callable[[str], None]) -> None:
        progress("environment cpu: building")
        raise environments.EnvironmentFailed("environment cpu cannot be built: no network\nand more")

    monkeypatch.setattr(agreement.environments, "prepare", fail)
    told: list[str] = []
    its = run_of(Backend(name="x"), tokenizer, cache_dir=str(tmp_path))
    found = agreement.reference(its, launch(tmp_path), told.append)
    assert found == "none: EnvironmentFailed: environment cpu cannot be built: no network"
    (text,) = told  # why it is built, to somebody whose engine needs no Python
    assert text.startswith("environment cpu: building (for transformers")
    assert "agreement=false" in text


def test_an_outage_of_the_reference_is_waited_for(monkeypatch, tmp_path, tokenizer):
    """As of all that is prepared: one reset connection left a deployment without agreement for good."""
    resets = [errno.ECONNRESET] * 2

    def compute(*arguments: object) -> dict:
        if resets:
            raise OSError(resets.pop(), "Connection reset by peer")
        return vars(EXPECTED)

    monkeypatch.setattr(agreement, "_compute", compute)
    monkeypatch.setattr("sweep.drive.policy.FIRST_PAUSE", 0.01)
    its = run_of(Backend(name="x"), tokenizer, cache_dir=str(tmp_path))
    its.patience = 60.0
    states: list[object] = []
    assert deployment._reference(its, SimpleNamespace(launch=launch(tmp_path)), states.append) == EXPECTED
    assert not resets
    reasons = [state.reason for state in states if isinstance(state, deployment.Stalled)]
    assert reasons == [f"[Errno {errno.ECONNRESET}] Connection reset by peer"] * 2


def test_a_reference_is_made_once(monkeypatch, tmp_path, tokenizer):
    made = []

    def compute(*arguments: object) -> dict:
        made.append(1)
        return vars(EXPECTED)

    monkeypatch.setattr(agreement, "_compute", compute)
    its = run_of(Backend(name="x"), tokenizer, cache_dir=str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: agreement.reference(its, launch(tmp_path), print), range(4)))
    assert found == [EXPECTED] * 4
    assert made == [1]


def test_secrets_do_not_go_to_the_process_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    assert "hf_secret_value" not in agreement._reference_environ(launch(tmp_path)).values()


@pytest.mark.slow
def test_an_engine_below_the_gate_is_invalid_and_not_measured(monkeypatch, tmp_path):
    """Through the whole command."""
    columns = {"agreement": 0.4, "agreement_low": 0.3, "agreement_high": 0.5, "agreement_positions": 1400}
    reason = "agreement 0.400 (95% interval 0.300 to 0.500) with transformers is below gate.agreement=0.95"
    monkeypatch.setattr(agreement, "compare", lambda *arguments: {**columns, "below_gate": reason})
    command = ["backend=simulated", "model=tiny-llama", "workload=qa", "workload.num_requests=4", "load=closed"]
    command += ["load.concurrency=2", "gate={agreement: 0.95}", "cluster=inline", "tracking=none", f"out={tmp_path}"]
    assert main(command) == 1
    (row,) = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert (row["outcome"], row["reason"]) == ("invalid", reason)
    assert (row["agreement"], row["agreement_high"], row["agreement_positions"]) == (0.4, 0.5, 1400)
    assert row.get("output_throughput") is None


@pytest.mark.slow
def test_an_engine_is_compared_once_and_not_again_at_its_next_launch_on_the_same_node(monkeypatch, tmp_path):
    """Through the whole command: two engines, three launches of each."""
    asked = []

    def compare(work, engine, expected, progress):
        asked.append(work.deployment.deployment_id)
        return {"agreement": 0.99, "agreement_reference": "transformers", "quality": None, "below_gate": None}

    monkeypatch.setattr(agreement, "reference", lambda *arguments: EXPECTED)
    monkeypatch.setattr(agreement, "compare", compare)
    command = ["backend=simulated", "model=tiny-llama", "workload=qa", "workload.num_requests=2", "load=batch"]
    command += ["backend.itl.mean=0.001,0.002", "replicates=3", "cluster=inline", "tracking=none", f"out={tmp_path}"]
    main(command)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len({row["launch"] for row in rows}) == 6
    assert len(asked) == len(set(asked)) == 2
    assert {row["agreement"] for row in rows} == {0.99}
    references = Counter(row["agreement_reference"] for row in rows)
    assert references == {"transformers": 2, "transformers, compared at attempt 1": 4}


@pytest.mark.parametrize("change", [lambda text: text.replace("0.99", "0.19"), lambda text: "[]", lambda text: "{}"])
def test_columns_that_were_changed_are_not_believed(monkeypatch, tmp_path, change):
    columns = {"agreement": 0.99, "agreement_reference": "transformers", "quality": None, "below_gate": None}
    asked = []
    monkeypatch.setattr(agreement, "compare", lambda *arguments: asked.append(1) or dict(columns))
    engine = SimpleNamespace(launch=SimpleNamespace(gpus=()))
    for number, change_before in enumerate([None, None, change], start=1):
        work = SimpleNamespace(folder=tmp_path / str(number), settings=SimpleNamespace(gate=None))
        if change_before is not None:
            (file,) = tmp_path.glob("*/answers.json")
            file.write_text(change_before(file.read_text()))
        assert agreement.compare_once(work, engine, EXPECTED, print)["agreement"] == 0.99
    assert len(asked) == 2, "at the first attempt, and again at the third"


@pytest.mark.slow
def test_an_engine_surely_above_the_gate_is_not_asked_to_the_end(serve, tokenizer):
    prompts = [[1, number] for number in range(16)]
    expected = Reference(prompts, [[number + 20] * 48 for number in range(16)], TEXTS, LOGS, [13], "transformers")

    def answer(path: str, body: dict) -> tuple[int, dict]:
        return 200, {"choices": [{"token_ids": [number + 20] * 48} for _, number in body["prompt"]]}

    assert compared(serve, tokenizer, answer, expected, {"agreement": 0.95})["agreement_positions"] == 8 * 48
    assert compared(serve, tokenizer, answer, expected, {"agreement": 0.999})["agreement_positions"] == 16 * 48
    assert compared(serve, tokenizer, answer, expected)["agreement_positions"] == 16 * 48


def test_requests_of_the_trials_workloads_are_among_the_prompts_but_none_that_is_measured():
    shipped = load_tokenizer(SHIPPED_TOKENIZER)
    workload = configured("workload", "qa")
    run = run_of(Backend(name="x"), shipped)
    fixed = agreement.prompts(run, shipped)
    assert len(fixed) == agreement.PROMPTS
    run.deployment.trials = [SimpleNamespace(workload=workload)] * 3
    both = agreement.prompts(run, shipped)
    sample = [prompt for prompt in both if prompt not in fixed]
    assert len(sample) == agreement.SAMPLED_REQUESTS
    assert len(both) == agreement.PROMPTS + agreement.SAMPLED_REQUESTS
    assert both[1] in sample, "in turns"
    texts = [shipped.decode(ids) for ids in sample]
    measured = [request.prompt for request in workload.requests(shipped, 8, run.settings.seed)]
    assert not set(texts) & set(measured)
    body = measured[0].split(maxsplit=4)[-1]
    assert any(body.split()[-1] in text for text in texts)


def test_the_shipped_text_has_tokens_enough():
    chosen = agreement.texts(load_tokenizer(SHIPPED_TOKENIZER))
    assert sum(len(ids) - 1 for ids in chosen) >= agreement.TEXT_TOKENS


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_engine_against_a_real_reference(tmp_path):
    """bfloat16 in the host against float32; and one wrong token is seen."""
    backend = configured("backend", "transformers")
    environment = environments.prepare(
        locks.locked(environments.resolve(backend.env, "cpu"), CACHE, print), CACHE, print
    )
    folder = circuit.prepared(configured("model", "tiny-llama"), CACHE)
    its_model = PathModel(name="circuit", path=str(folder))
    run = run_of(backend, cache_dir=str(CACHE))
    run.deployment.model = its_model
    its = make_launch(backend, folder, environment, tmp_path)
    expected = agreement.reference(run, its, print)
    assert isinstance(expected, Reference), expected
    assert expected.made_by.endswith("float32")
    assert [len(tokens) for tokens in expected.tokens] == [agreement.TOKENS] * agreement.PROMPTS
    with running(backend, its, marker=f"agreement/{os.getpid()}") as engine:
        found = agreement.compare(run, engine, expected)
        assert found["agreement"] == 1.0
        assert found["quality"] == pytest.approx(1, abs=0.05)
        assert found["quality_tokens"] >= agreement.TEXT_TOKENS
        expected.tokens[0][16] += 1
        positions = found["agreement_positions"]
        # The wrong token, and perhaps what depends on it.
        assert 1 - 0.02 < agreement.compare(run, engine, expected)["agreement"] <= 1 - 1 / positions


def test_a_series_goes_on_after_an_interrupt_and_says_what_has_no_figure(tmp_path, monkeypatch, capsys):
    firsts = []

    def compared(case, runs, folder, first):
        firsts.append(first)
        for run in range(first, runs):
            if run == 2 and len(firsts) == 1:
                raise KeyboardInterrupt
            agreement = {"agreement": None if run == 1 else 1 - run / 10, "agreement_low": 0.5, "agreement_high": 1.0}
            yield {**agreement, "agreement_positions": 9, "quality": None, "below_gate": None, "seconds": run}

    monkeypatch.setattr(agreement_study, "compared", compared)
    monkeypatch.setattr(agreement_study, "SERIES", tmp_path)
    name = CASES[2].name
    for runs in (4, 4, 4):
        agreement_study.main(runs, [name])
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"These rows: commit {code_version.commit()}; ") for line in printed) == 3
    lines = [line for line in printed if line.startswith(f"| {name}")]
    assert firsts == [0, 2]
    assert lines[0].startswith(f"| {name} | 2 | 0 | 1.000 (0.500 to 1.000); none in 1 | 9 | – | – |")
    assert lines[1:] == [f"| {name} | 4 | 0 | 0.833 (0.500 to 1.000); none in 1 | 9 | – | – | 2 s |"] * 2


def test_the_study_prints_the_head_of_its_page_and_its_cases_in_their_order():
    page = Path(__file__).resolve().parents[2] / "docs" / "measurements" / "agreement.md"
    assert page.read_text().startswith(agreement_study.head())
    rows = re.findall(r"^\| (.+?) \| \d", page.read_text(), re.MULTILINE)
    assert rows
    assert rows == [case.name for case in CASES if case.name in rows]
