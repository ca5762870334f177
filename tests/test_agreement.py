"""Agreement of an engine with the reference: on answers whose likeness is known, and by real engines."""

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from backends.base import Backend, Launch
from backends.launch.server import running
from backends.openai import OpenAI
from backends.prepare import environments, locks
from backends.simulated import Simulated
from sweep.inputs.model import PathModel
from sweep.node import agreement
from sweep.node.agreement import Reference, matching_prefix
from tests.engines import circuit
from tests.engines.conftest import CACHE, configured, make_launch

VOCABULARY = {f"t{index}": index for index in range(100)}
EXPECTED = Reference([[1, 2]] * 4, [[10, 11, 12, 13]] * 4, [13], "transformers 9.9 float32")


@pytest.mark.parametrize(
    ("said", "expected", "length"),
    [
        ([], [], 0),
        ([1], [], 0),
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 9, 3], [1, 2, 3], 1),
        ([1, 2, 3], [1, 2], 2),
    ],
)
def test_matching_prefix(said, expected, length):
    assert matching_prefix(said, expected) == length


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


@pytest.fixture
def serve():
    """serve(answer) -> URL; `answer(path, body)` gives (status, JSON object)."""
    servers = []

    def start(answer: Callable[[str, dict], tuple[int, dict]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, found = answer(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *arguments: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run_of(backend: Backend, tokenizer: Tokenizer | None = None, **settings: object) -> SimpleNamespace:
    """As much of a Work as agreement looks at."""
    model = SimpleNamespace(
        name="tiny",
        comparable=True,
        tokenizer=None,
        digest=lambda *cache: "abc",
        load_tokenizer=lambda cache: tokenizer,
        prepare=lambda cache, progress: Path("/models/tiny"),
    )
    known = {"agreement": True, "cache_dir": "/nonexistent", **settings}
    return SimpleNamespace(
        deployment=SimpleNamespace(backend=backend, model=model),
        settings=SimpleNamespace(**known),
        cache=Path(str(known["cache_dir"])),
    )


def compared(serve, tokenizer, answer, expected: Reference = EXPECTED, **fields: object) -> dict:
    backend = Backend(name="x", **fields)
    engine = SimpleNamespace(backend=backend, url=serve(answer), launch=SimpleNamespace(served_name="tiny"))
    return agreement.compare(run_of(backend, tokenizer), engine, expected)


def test_token_ids_are_compared_where_the_engine_returns_them(serve, tokenizer):
    seen = []

    def answer(path: str, body: dict) -> tuple[int, dict]:
        seen.append((path, body))
        ids = [10, 11, 12, 13] if len(seen) != 2 else [10, 99, 12, 13]
        return 200, {"choices": [{"text": "never looked at", "token_ids": ids}]}

    found = compared(serve, tokenizer, answer, extra_body={"top_k": 1})
    assert found == {"agreement": (1 + 0.25 + 1 + 1) / 4, "agreement_reference": "transformers 9.9 float32"}
    path, body = seen[0]
    assert path == "/v1/completions"
    assert body["prompt"] == [1, 2]
    assert (body["max_tokens"], body["temperature"], body["ignore_eos"], body["top_k"]) == (4, 0, True, 1)


def test_text_is_tokenised_where_it_does_not_and_unknown_keys_are_left_out(serve, tokenizer):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        if "return_token_ids" in body:
            return 400, {"error": {"message": "extra inputs are not permitted"}}
        assert body["prompt"] in agreement.PROMPTS
        return 200, {"choices": [{"text": "t10 t11 t12 t99"}]}

    found = compared(serve, tokenizer, answer, token_ids=False)
    assert found["agreement"] == 0.75


def test_an_engine_that_cannot_ignore_eos_is_compared_up_to_it(serve, tokenizer):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        assert "ignore_eos" not in body
        assert body["max_tokens"] == 3
        return 200, {"choices": [{"token_ids": [10, 11, 12]}]}

    assert compared(serve, tokenizer, answer, ignores_eos=False)["agreement"] == 1.0


def test_an_answer_that_ends_at_once_is_not_asked_for(serve, tokenizer):
    """max_tokens=0 is an error to many engines, and nothing said is no agreement."""
    asked = []

    def answer(path: str, body: dict) -> tuple[int, dict]:
        asked.append(body["max_tokens"])
        return 200, {"choices": [{"token_ids": [10, 99]}]}

    ended, said = [13, 10, 11, 12], [10, 11, 13, 12]
    expected = Reference([[1, 2]] * 4, [ended, said, ended, said], [13], "transformers 9.9 float32")
    assert compared(serve, tokenizer, answer, expected, ignores_eos=False)["agreement"] == 0.5
    assert asked == [2, 2]
    nothing = Reference([[1, 2]] * 4, [ended] * 4, [13], "transformers 9.9 float32")
    assert compared(serve, tokenizer, answer, nothing, ignores_eos=False) == {
        "agreement": None,
        "agreement_reference": "none: the model ends every answer at once",
    }


def test_tgis_own_route(serve, tokenizer):
    def answer(path: str, body: dict) -> tuple[int, dict]:
        assert path == "/generate"
        assert body["parameters"] == {"max_new_tokens": 3, "do_sample": False, "details": True}
        return 200, {"details": {"tokens": [{"id": 10}, {"id": 11}, {"id": 7}]}}

    found = compared(serve, tokenizer, answer, api="tgi", token_ids=False, ignores_eos=False)
    assert found["agreement"] == pytest.approx(2 / 3)


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
    backend = Backend(name="x")
    engine = SimpleNamespace(backend=backend, url="http://127.0.0.1:9", launch=SimpleNamespace(served_name="tiny"))
    found = agreement.compare(run_of(backend, tokenizer), engine, EXPECTED)
    assert found["agreement_reference"].startswith("none: the engine's answer: ConnectError")


def launch(tmp_path: Path) -> Launch:
    return Launch(model=tmp_path, served_name="tiny", workdir=tmp_path)


@pytest.mark.parametrize(
    ("backend", "settings", "words"),
    [
        (Backend(name="x"), {"agreement": False}, "none: agreement=false"),
        (Simulated(name="simulated"), {}, "none: this engine computes no model"),
        (OpenAI(name="openai", url="http://127.0.0.1:1"), {}, "none: the weights of a running endpoint are not known"),
    ],
)
def test_why_there_is_no_reference(backend, settings, words, tmp_path):
    found = agreement.reference(run_of(backend, **settings), launch(tmp_path), print)
    assert found == words
    assert agreement.compare(run_of(backend), None, found) == {"agreement": None, "agreement_reference": words}


def test_a_reference_that_cannot_be_made_is_said(monkeypatch, tmp_path):
    def fail(spec: object, cache: Path, progress: Callable[[str], None]) -> None:
        progress("environment cpu: building")
        raise environments.EnvironmentFailed("environment cpu cannot be built: no network\nand more")

    monkeypatch.setattr(agreement.environments, "prepare", fail)
    told: list[str] = []
    found = agreement.reference(run_of(Backend(name="x"), cache_dir=str(tmp_path)), launch(tmp_path), told.append)
    assert found == "none: EnvironmentFailed: environment cpu cannot be built: no network"
    (text,) = told  # why it is built, to somebody whose engine needs no Python
    assert text.startswith("environment cpu: building (for transformers")
    assert "agreement=false" in text


def test_a_reference_is_made_once(monkeypatch, tmp_path, tokenizer):
    made = []

    def compute(*arguments: object) -> dict:
        made.append(1)
        return {"prompts": [[1]], "tokens": [[2]], "ends": [], "made_by": "somebody"}

    monkeypatch.setattr(agreement, "_compute", compute)
    its = run_of(Backend(name="x"), tokenizer, cache_dir=str(tmp_path))
    threads = [threading.Thread(target=agreement.reference, args=(its, launch(tmp_path), print)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agreement.reference(its, launch(tmp_path), print) == Reference([[1]], [[2]], [], "somebody")
    assert made == [1]


def test_secrets_do_not_go_to_the_process_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    assert "hf_secret_value" not in agreement._reference_environ(launch(tmp_path)).values()


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
    assert [len(tokens) for tokens in expected.tokens] == [agreement.TOKENS] * len(agreement.PROMPTS)
    with running(backend, its, marker=f"agreement/{os.getpid()}") as engine:
        assert agreement.compare(run, engine, expected)["agreement"] == 1.0
        expected.tokens[0][16] += 1
        assert agreement.compare(run, engine, expected)["agreement"] == 1 - 0.5 / 4
