"""An endpoint is asked for its model, and has a price of its own."""

import base64
import json
import os
import re
import resource
import shlex
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import urlsplit

import httpx
import pytest

import analysis
from backends.openai import OpenAI
from backends.simulated import Simulated
from backends.simulated_server.answers import Dialect
from backends.simulated_server.engine import _prompts
from backends.simulated_server.typed_answers import TYPED_ANSWERS
from sweep.__main__ import main
from sweep.base.config import ROOT, ConfigError, Hardware
from sweep.base.exits import Outage
from sweep.base.options import ConfigPath
from sweep.base.records import proxy_of
from sweep.client import wire
from sweep.drive.endpoint_model import with_dialect, with_model
from sweep.node.rows import _cost
from sweep.plan.command_line import parse_command_line
from sweep.plan.plan import hourly_price
from tests.plan.test_compose import composed
from tests.plan.test_plan import ids, planned
from tests.support.http_stub import Stub, page, running, serving
from tests.support.simulated_engine import _pump, behind_tls, simulated

OF_PARENT = methodcaller("partition", " of ")
KEY = "a key that nobody else has"
BEARER = f"Bearer {KEY}"


@pytest.fixture
def endpoint():
    """The URL of an endpoint with a key, and the list of what it says that it serves."""
    served = ["org/model-7b"]

    class Handler(Stub):
        def do_GET(self):
            keys = self.headers["Authorization"], f"Bearer {self.headers['x-key']}"
            allowed = f"Bearer {KEY}" in keys and self.path == "/base/v1/models"
            models = {"data": [{"id": name, "parent": parent} for name, _, parent in map(OF_PARENT, served)]}
            self.reply(200 if allowed else 401, json.dumps(models).encode())

    with serving(Handler) as address:
        yield f"{address}/base", served


@pytest.mark.parametrize("suffix", ["", "/v1", "/"])
def test_an_endpoint_is_asked_for_its_model_with_its_key(endpoint, monkeypatch, suffix):
    monkeypatch.setenv("SOME_KEY", KEY)
    endpoint[1].extend(["adapter of org/model-7b", "org/model-7b"])
    command = ["backend=openai", f"backend.url={endpoint[0]}{suffix}", "backend.api_key_env=SOME_KEY"]
    asked = with_model(command, ConfigPath())
    assert asked == [*command, "model='org/model-7b'"]
    (point,) = composed(*asked, "workload=qa").points
    assert point["model"]["name"] == "org/model-7b"
    assert KEY not in repr(point)
    for named in ("model=served", "model=a,b", "+experiment=batch_size"):
        assert with_model([*command, named], ConfigPath()) == [*command, named]
    assert with_model(["backend=vllm"], ConfigPath()) == ["backend=vllm"]


def test_an_endpoint_is_asked_with_the_headers_that_are_typed(endpoint):
    command = ["backend=openai", f"backend.url={endpoint[0]}", f"backend.headers.x-key='{KEY}'"]
    assert with_model(command, ConfigPath()) == [*command, "model='org/model-7b'"]


def test_an_endpoint_that_cannot_say_it_is_an_error_that_says_what_to_do(endpoint, monkeypatch):
    url, served = endpoint
    with pytest.raises(ConfigError, match=r"401 .*; start it, or add model=NAME$"):
        with_model(["backend=openai", f"backend.url={url}"], ConfigPath())
    with pytest.raises(ConfigError, match=r"401 .*; backend.api_key_env=SOME_KEY is not set or empty: export it$"):
        with_model(["backend=openai", f"backend.url={url}", "backend.api_key_env=SOME_KEY"], ConfigPath())
    monkeypatch.setenv("SOME_KEY", KEY)
    served.append("another")
    with pytest.raises(ConfigError, match=r"serves org/model-7b, another; add model=NAME$"):
        with_model(["backend=openai", f"backend.url={url}", "backend.api_key_env=SOME_KEY"], ConfigPath())
    served[:] = ["O'Neil"]
    named = with_model(["backend=openai", f"backend.url={url}", "backend.api_key_env=SOME_KEY"], ConfigPath())[-1]
    read = [parse_command_line([each]).scalars["model"] for each in (named, "model=O'Neil (x)")]
    assert read == ["O'Neil", "O'Neil (x)"]
    # No name may be an interpolation.
    for name in ("${oc.env:SOME_KEY}", "'\"", "a\\", "a\nb", "\x1b]0;x", "x" * 300, "half \ud83d", " "):
        served[:] = [name]
        with pytest.raises(ConfigError, match="it serves .*; add model=NAME$") as caught:
            with_model(["backend=openai", f"backend.url={url}", "backend.api_key_env=SOME_KEY"], ConfigPath())
        assert str(caught.value).isprintable()
    monkeypatch.setattr("backends.launch.control_client.ControlClient.largest", 9)
    with pytest.raises(ConfigError, match=r"its response exceeds 9 bytes or \d+ s; start it, or add model=NAME$"):
        with_model(["backend=openai", f"backend.url={url}", "backend.api_key_env=SOME_KEY"], ConfigPath())
    with pytest.raises(ConfigError, match=r"^backend.url=http://256.1.1.1: Invalid IPv4 address"):
        dialect_of("http://256.1.1.1")
    with pytest.raises(Outage, match=r"no model=NAME is given: .*[Cc]onnect.*add model=NAME$"):
        with_model(["backend=openai", "backend.url=http://127.0.0.1:1"], ConfigPath())


def test_a_list_of_models_that_is_long_or_deep_takes_seconds():
    """Of 50,000 adapters each was compared with all others, and a deep list ended in a traceback."""
    adapters = [{"id": f"adapter-{number}", "parent": "base"} for number in range(50_000)]
    with serving(page("/v1/models", json.dumps({"data": [{"id": "base"}, *adapters]}))) as url:
        assert with_model(["backend=openai", f"backend.url={url}"], ConfigPath())[-1] == "model='base'"
    with serving(page("/v1/models", "[" * 100_000)) as url, pytest.raises(ConfigError, match="no list of models"):
        with_model(["backend=openai", f"backend.url={url}"], ConfigPath())


@pytest.mark.slow
def test_planning_waits_for_an_endpoint_that_is_starting(tmp_path, capsys):
    """It answers 503 to the query for its model, as it does until its weights are loaded; a dry run asks once."""

    class Starting(Endpoint):
        loading: ClassVar = [1] * 5  # of its list two addresses are asked

        def do_GET(self):
            if self.loading:
                self.loading.pop()
                return self.reply(503, "loading")
            return super().do_GET()

    short = "workload.num_requests=4 workload.output_tokens=4 backend.api=completions"
    with serving(Starting) as url:
        command = ["run", url, *short.split(), f"out={tmp_path}"]
        assert main([*command, "dry_run=true"]) == 2
        assert "503 Service Unavailable" in capsys.readouterr().err
        assert main(command) in (0, 1), "a busy machine may spoil the trial (client_limited)"
    assert "planning: " in capsys.readouterr().err
    assert set(analysis.load(tmp_path)["model"]) == {"a/b"}
    assert main([*command, "patience=1"]) == 75
    assert "Connection refused; start it, or add model=NAME (tried for" in capsys.readouterr().err


def test_an_endpoint_has_its_own_price_and_never_this_machines():
    machine = Hardware(name="l4", platform="cuda", price_per_hour=2.93)
    row = {"gpu_count": 0, "output_throughput": 100.0, "input_tokens": 3000, "output_tokens": 1000}
    by_hour = OpenAI(name="openai", url="http://h", price_per_hour=3.6)
    assert hourly_price(by_hour, machine) == 3.6
    assert _cost(by_hour, row, 3.6) == pytest.approx(10.0)  # $0.001 a second, 10,000 s
    by_token = OpenAI(name="openai", url="http://h", price_per_million_tokens={"input": 0.5, "output": 2})
    assert hourly_price(by_token, machine) is None
    assert _cost(by_token, row, None) == pytest.approx(2 + 3 * 0.5)
    assert _cost(by_token, {**row, "output_tokens": None}, None) is None
    with pytest.raises(ValueError, match="expected at most one of the two"):
        OpenAI(name="openai", url="http://h", price_per_hour=1, price_per_million_tokens={"input": 1, "output": 1})
    with pytest.raises(ValueError, match=r"hardware\.price_per_hour"):
        Simulated(name="simulated", price_per_hour=1)


def test_a_price_is_no_part_of_a_trials_id():
    command = ["backend=openai", "model=served", "workload=qa"]
    assert ids(planned(*command)) == ids(planned(*command, "backend.price_per_hour=2"))


@pytest.mark.slow
def test_the_documents_example_with_key_chat_and_price_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text()
    (block,) = (each for each in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE) if "ENDPOINT_KEY" in each)
    assert len(block.splitlines()) <= 10
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    export, *commands = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    assert export[0] == "export"
    with simulated() as (url, _):
        shorter = {"https://llm.example.com/v1": url, "num_requests=64": "num_requests=8"}
        for _, *arguments in commands:
            for longer, replacement in shorter.items():
                arguments = [argument.replace(longer, replacement) for argument in arguments]
            assert main(arguments) == 0, capsys.readouterr()
    (row,) = analysis.load("results/endpoint").to_dict("records")
    assert (row["outcome"], row["num_requests"], row["num_failed"]) == ("ok", 8, 0)
    assert row["cost_per_million_tokens"] > 0
    assert KEY not in (tmp_path / "results/endpoint/report.html").read_text()


AZURE = "/openai/deployments/d/chat/completions?api-version=1"
VARIED = "backend.api=chat workload=serving workload.input_tokens=9 workload.output_tokens=9 workload.num_requests=64"


class Endpoint(BaseHTTPRequestHandler):
    """Answers requests for its path with its name of the limit, and notes path, key and model of all."""

    protocol_version, expected, limit, asked = "HTTP/1.1", "/v1/completions", "max_tokens", Counter()
    delays: ClassVar = {}
    kind = "text/event-stream"

    def do_GET(self):
        self.reply(200, json.dumps({"data": [{"id": "a/b"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked[self.path, self.headers["api-key"] or self.headers["authorization"], body.get("model")] += 1
        time.sleep(self.delays.get(body.get("model"), 0))
        if self.path != self.expected:
            return self.reply(404, "no such path")
        if self.limit not in body:
            return self.reply(400, "use max_completion_tokens")
        text = {"delta": {"content": "a"}} if "messages" in body else {"text": "a"}
        events = [{"choices": [{"index": 0, **text, "finish_reason": "length"}]}] * body[self.limit]
        events += [{"choices": [], "usage": {"prompt_tokens": 128, "completion_tokens": body[self.limit]}}]
        stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return self.reply(200, f"{stream}data: [DONE]\n\n")

    def reply(self, status, content):
        self.send_response(status)
        self.send_header("content-type", self.kind if "data: " in content else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.write(content.encode())

    def write(self, content):
        self.wfile.write(content)

    def log_message(self, *arguments):
        return


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expected", "limit", "base", "typed", "key"),
    [
        ("/api/v4/chat/completions", "max_tokens", "/api/v4", "backend.api=chat", None),
        ("/chat/completions", "max_tokens", "", "backend.api=chat backend.path=/chat/completions", None),
        ("/api/v4/chat/completions", "max_tokens", "/api/v4", "backend.api=chat gateway=cache", None),
        ("/ask", "max_tokens", "", "backend.api=chat backend.path=/ask gateway=cache", None),
        ("/v1/ask", "max_tokens", "/v1", "backend.api=chat backend.path=/ask gateway=cache", None),
        ("/v1/ask", "max_tokens", "/v1", "backend.api=chat backend.path=/v1/ask gateway=cache", None),
        ("/v1/chat/completions", "max_completion_tokens", "", "", None),
        ("/chat/completions", "max_tokens", "", "", None),
        (AZURE, "max_tokens", "/openai/deployments/d?api-version=1", "backend.auth_header=api-key", KEY),
        ("/v1/completions", "max_tokens", "/v1", "backend.auth_scheme=Token", f"Token {KEY}"),
        ("/v1/completions", "max_tokens", "", "backend.proxy=environment", None),
        ("/v1/completions", "max_completion_tokens", "", "backend.max_tokens_field=max_completion_tokens", BEARER),
        ("/v3/chat/completions", "max_tokens", "/v3", "", None),
        ("/@cf/v1/completions", "max_tokens", "/@cf/v1", "", None),
        ("/v1/chat/completions", "max_completion_tokens", "", VARIED, None),
    ],
)
def test_an_endpoint_is_asked_as_the_settings_say(tmp_path, monkeypatch, expected, limit, base, typed, key):
    """By its URL alone otherwise: with an alias that conf/model knows, through no proxy, with enough open files."""
    monkeypatch.setattr(Endpoint, "expected", expected)
    monkeypatch.setattr(Endpoint, "limit", limit)
    monkeypatch.setattr(Endpoint, "asked", asked := Counter())
    monkeypatch.setattr(Endpoint, "kind", "text/plain" if base == "/api/v4" else "text/event-stream")
    for name, value in {
        "SOME_KEY": KEY,
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "socks5h://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    typed += " backend.api_key_env=SOME_KEY" if key else ""
    typed += " backend.api=chat backend.path=/chat/completions" if expected == AZURE else ""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(Endpoint) as url:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 120), hard))
        try:
            common = ["model=phi-4-mini", "load.concurrency=16", f"out={tmp_path}"]
            main(["run", f"{url.upper()}{base}", *common, *typed.split()])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    row = analysis.load(tmp_path).iloc[0]  # a busy client is no matter
    assert (row["num_requests"], row["num_failed"]) == (64, 0), row["reason"]
    assert (expected, key, "phi-4-mini") in asked
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert len(asked) == 1 or not typed, "no guess beside what is typed"
    assert (analysis.requests(tmp_path)["output_tokens"].nunique() > 1) == (typed == VARIED)


@pytest.mark.slow
@pytest.mark.parametrize("load", ["load=closed load.concurrency=400", "load=poisson load.rate=1000"])
def test_a_hard_limit_on_open_files_is_named_before_anything_is_sent(tmp_path, monkeypatch, load):
    monkeypatch.setattr(Endpoint, "asked", asked := Counter())
    with serving(Endpoint) as url:
        command = f"-m sweep run {url} model=m {load} workload.num_requests=800 backend.api=completions out={tmp_path}"
        limited = ["bash", "-c", 'ulimit -n 200; exec "$0" "$@"', sys.executable, *command.split()]
        run = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    (row,) = analysis.load(tmp_path).to_dict("records")
    needed = "464" if "closed" in load else "864"
    expected = f"{needed} open files are needed, but this machine allows only 200; set ulimit -n {needed}"
    assert (row["outcome"], row["reason"]) == ("unavailable", expected), run.stdout + run.stderr
    assert expected in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert not [path for path, _, _ in asked if asked[path, None, "m"] > 2], "the probe alone"


class ForwardProxy(Stub):
    """The only way to engine.test. It notes what it forwards, and with which key."""

    protocol_version, upstream, forwarded = "HTTP/1.1", "", Counter()

    def do_GET(self):
        self.note()
        content = self.rfile.read(int(self.headers["content-length"] or 0))
        path = self.path.removeprefix("http://engine.test:8000")
        answer = httpx.request(self.command, self.upstream + path, content=content, trust_env=False)
        self.reply(answer.status_code, answer.content, {"Content-Type": answer.headers["content-type"]})

    do_POST = do_GET

    def do_CONNECT(self):
        self.note()
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", urlsplit(self.upstream).port)) as back:
            threading.Thread(target=_pump, args=(back, self.connection), daemon=True).start()
            _pump(self.connection, back)
        self.close_connection = True

    def note(self):
        self.forwarded[self.command, self.path, self.headers["proxy-authorization"]] += 1


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("gateway", ["none", "cache"])
def test_requests_go_through_the_environments_proxy_on_request(tmp_path, monkeypatch, capsys, tls, gateway):
    """The model query, the probe, the client and the gateway: nothing else reaches this endpoint. Its key is secret."""
    monkeypatch.setattr(ForwardProxy, "forwarded", forwarded := Counter())
    monkeypatch.setattr(Endpoint, "expected", "/v1/chat/completions")
    monkeypatch.setattr(Endpoint, "limit", "max_tokens")
    address = f"http{'s' * tls}://engine.test:8000"
    command = f"run {address} workload.num_requests=8 gateway={gateway} agreement=false out={tmp_path / 'out'}"
    command += " backend.verify_tls=false"
    with serving(Endpoint) as plain, serving(ForwardProxy) as proxy, behind_tls(plain, tmp_path) as secure:
        monkeypatch.setattr(ForwardProxy, "upstream", secure if tls else plain)
        monkeypatch.setenv(f"http{'s' * tls}_proxy", proxy.replace("//", "//me:pr0xy-passw0rd@"))
        assert main(command.split()) == 2
        assert not forwarded, "not without being requested"
        main([*command.split(), "backend.proxy=environment"])
        monkeypatch.setenv("no_proxy", "engine.test")
        assert main([*command.split(), "backend.proxy=environment"]) == 2
    (row,) = analysis.load(tmp_path / "out").to_dict("records")
    assert (row["num_requests"], row["num_failed"]) == (8, 0), row["reason"]
    assert json.loads(row["engine_facts"])["proxy"] == proxy.removeprefix("http://")
    key = "Basic " + base64.b64encode(b"me:pr0xy-passw0rd").decode()
    post = ("CONNECT", "engine.test:8000", key) if tls else ("POST", f"{address}/v1/chat/completions", key)
    assert forwarded[post] >= (3 if tls else 9)  # the probe and the requests
    assert {sent for _, _, sent in forwarded} == {key}
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in text for secret in (key, "pr0xy-passw0rd") for text in texts)


@pytest.mark.parametrize("proxy", ["socks5h://me:pr0xy-passw0rd@127.0.0.1:1", "http://me:pr0xy#passw0rd@127.0.0.1:1"])
def test_a_proxy_that_speaks_no_http_is_refused(proxy, monkeypatch, capsys):
    monkeypatch.setenv("all_proxy", proxy)
    line = ".proxy=environment: the environment's proxy for http:// addresses: expected http://HOST:PORT\n"
    for command in ("run http://engine.test model=m backend", "gateway --to http://engine.test gateway"):
        assert main(f"{command}.proxy=environment".split()) == 2
        assert capsys.readouterr().err.endswith(command.split()[-1] + line)


class OneDialect(Endpoint):
    """Answers requests of one API, as the simulated engine writes them, and 404 for any other path."""

    api = "completions"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != wire.PATHS[self.api]:
            return self.reply(404, "no such path")
        (prompt,), limit = _prompts(self.api, body)
        dialect = TYPED_ANSWERS.get(self.api, Dialect)(self.api, "a/b", "r", 0, include_usage=True)
        sequence = SimpleNamespace(index=0, input_tokens=len(prompt), max_tokens=limit, made=0)
        sequence.cached_tokens, stream = None, dialect.opening()
        for sequence.made in range(1, limit + 1):
            stream += dialect.token(sequence, 1)
        return self.reply(200, (stream + dialect.closing([sequence])).decode())


@pytest.mark.slow
@pytest.mark.parametrize("api", wire.PATHS)
def test_the_address_alone_gives_an_answer_in_every_dialect(tmp_path, monkeypatch, capsys, api):
    monkeypatch.setattr("sweep.node.verdict.limited", lambda report, records: None)  # a busy client is no matter
    monkeypatch.setattr(OneDialect, "api", api)
    monkeypatch.chdir(tmp_path)
    with serving(OneDialect) as url:
        assert main(["run", url]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"POST {wire.PATHS[api]}, model a/b, api {api}, .*tokens by", out)
    assert re.search(r"1 of 1 trials ok.*was measured alone", out, re.DOTALL), out
    (row,) = analysis.load(next((tmp_path / "results").iterdir())).to_dict("records")
    assert (row["num_requests"], row["num_failed"], row["output_tokens"]) == (64, 0, 64 * 32)
    assert json.loads(row["engine_facts"])["proxy"] == "none"


EVENTS = [json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}}]}) for _ in range(3)]
WHOLE = '{"choices": [{"message": {"content": "a a"}}], "usage": {"completion_tokens": 2}}'
REFUSED = '{"error": {"message": "out of credit", "code": 402}}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, WHOLE, "protocol: not an event stream; the server ignored stream=true: {"),
        (
            200,
            "".join(f"data: {event}\n" for event in EVENTS),
            "protocol: an event is not JSON (its lines have no blank ",
        ),
        (200, f"data: {EVENTS[0]}\n\ndata: {REFUSED}\n\n", "engine: 402 out of credit"),
        (401, '{"error": {"message": "bad key"}}', "status: 401 bad key"),
        (400, '{"error": {"message": "no such model"}}', "status: 400 no such model"),
    ],
)
def test_a_server_of_another_dialect_is_quoted_in_its_own(tmp_path, monkeypatch, status, body, reason):
    """The error of the dialect that came closest, not the 404 of the first one."""

    def answer(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(*((status, body) if self.path == "/v1/chat/completions" else (404, "no such path")))

    monkeypatch.setattr(Endpoint, "do_POST", answer)
    with serving(Endpoint) as url:
        assert main(["run", url, "workload.num_requests=2", f"out={tmp_path}"]) == 1
    assert f"2 times, e.g. '{reason}" in analysis.load(tmp_path).iloc[0]["reason"]


def test_a_redirect_of_the_models_names_the_address_to_set(capsys):
    class Moved(Stub):
        def do_GET(self):
            self.send_response(307)
            self.send_header("location", f"/real{self.path}")
            self.end_headers()

    with serving(Moved) as url:
        assert main(["run", url]) == 2
    assert "redirects to /real/v1/models; set the path of backend.url to /real" in capsys.readouterr().err


@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_that_nobody_signed_ends_the_command_before_the_requests(tmp_path, monkeypatch, capsys, trusted):
    monkeypatch.setattr(Endpoint, "asked", asked := Counter())
    with serving(Endpoint) as plain, behind_tls(plain, tmp_path) as url:
        for model in ([], ["model=m"]):  # the list of models is asked first, or a short request is
            began, command = time.monotonic(), ["run", url, *model, f"out={tmp_path / 'out'}"]
            assert main(command) == 2
            message = capsys.readouterr().err
            assert "backend.verify_tls=false" in message, message
            assert "SSL_CERT_FILE" in message
            assert time.monotonic() - began < 20
        assert not asked
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        _, line = dialect_of(url, *([] if trusted else ["backend.verify_tls=false"]))
        assert "streams 16 events" in line


@pytest.mark.parametrize("model", ["", "model=m"])
@pytest.mark.parametrize(
    ("newest", "address", "words"),
    [
        (None, "http://SECURE", "the server expects TLS: set backend.url=https://SECURE\n"),
        (None, "http://REFUSING", "the server expects TLS: set backend.url=https://REFUSING\n"),
        (None, "https://PLAIN", "it does not expect TLS: use an http:// address\n"),
        (ssl.TLSVersion.TLSv1_2, "https://SECURE", "it requires a client's certificate: put a proxy in front"),
        (ssl.TLSVersion.TLSv1_3, "https://SECURE", "it requires a client's certificate: put a proxy in front"),
    ],
)
def test_a_wrong_scheme_or_a_missing_client_certificate_is_refused(tmp_path, capsys, model, newest, address, words):
    """Before the plan, which would wait for minutes. Some servers close the connection, others refuse in plain HTTP."""

    class Refusing(socketserver.StreamRequestHandler):
        def handle(self):
            if self.request.recv(1, socket.MSG_PEEK) == b"\x16":  # a TLS handshake
                return secure_context.wrap_socket(self.request, server_side=True).close()
            while self.rfile.readline().strip():
                pass
            return self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.")

    secure_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    refusing = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing)
    with serving(Endpoint) as plain, behind_tls(plain, tmp_path, newest) as secure, running(refusing):
        secure_context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
        places = {"SECURE": urlsplit(secure).netloc, "PLAIN": urlsplit(plain).netloc}
        for name, place in (places | {"REFUSING": "{}:{}".format(*refusing.server_address)}).items():
            address, words = address.replace(name, place), words.replace(name, place)
        assert main(["run", address, *model.split(), "backend.verify_tls=false", f"out={tmp_path / 'out'}"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["http://SECURE", "https://PLAIN"])
def test_a_wrong_scheme_is_refused_for_an_experiment_too(tmp_path, capsys, address):
    """An experiment, or a list of addresses, has no first request that asks for settings."""
    with serving(Endpoint) as plain, behind_tls(plain, tmp_path, None) as secure:
        for name, place in (("SECURE", secure), ("PLAIN", plain)):
            address = address.replace(name, urlsplit(place).netloc)
        experiment = ["+experiment=serving", "backend=openai", "model=tiny-llama", "cluster=inline", "tracking=none"]
        tail = ["backend.verify_tls=false", f"out={tmp_path / 'out'}"]
        assert main(["run", *experiment, f"backend.url={address}", *tail]) == 2
        assert main(["run", *experiment[1:], "load=closed", f"backend.url={address},{address}/v1", *tail]) == 2
    errors = capsys.readouterr().err
    expected = (
        "it does not expect TLS" if address.startswith("https") else "the server expects TLS: set backend.url=https"
    )
    assert errors.count(expected) == 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("trials.parquet"))


UNNAMED = "import pwd, sys; pwd.getpwuid = {}.__getitem__; from sweep.__main__ import main; main(sys.argv[1:])"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["gemma4:e4b", "a/b", "@cf/meta/llama-3.1-8b-instruct", "phi-4-mini", "Meta Llama 3, 8B", "1e5"]
)
@pytest.mark.parametrize("home", [None, "/proc"])
def test_a_models_name_is_sent_as_it_is_from_an_odd_place(tmp_path, monkeypatch, model, home):
    """A folder with a blank and letters beyond ASCII, a narrow umask, no HOME and no user, or one nobody can write."""
    monkeypatch.setattr(Endpoint, "asked", asked := Counter())
    folder = tmp_path / "Läufe von heute"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": home or ""}
    environment = {name: setting for name, setting in environment.items() if setting and name != "XDG_CACHE_HOME"}
    with serving(Endpoint) as url:
        typed = f"model='{model}'" if "," in model else f"model={model}"
        program = ["-m", "sweep"] if home else ["-c", UNNAMED]
        command = [sys.executable, *program, "run", url, typed, "workload.num_requests=4"]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, umask=0o077)
    assert "Traceback" not in run.stdout + run.stderr
    (out,) = (folder / "results").iterdir()
    row = analysis.load(out).iloc[0]
    assert (row["model"], row["num_failed"]) == (model, 0), run.stdout + run.stderr
    assert {sent for _, _, sent in asked} == {model}
    assert not [path for path in folder.rglob("*") if path.stat().st_mode & 0o077]


class Serial(Endpoint):
    """One prefill at a time, of 20 ms; then 20 ms a token."""

    disable_nagle_algorithm, prefill = True, threading.Lock()

    def write(self, content):
        with self.prefill:
            time.sleep(0.02)
        for event in content.splitlines(keepends=True):
            self.wfile.write(event)
            time.sleep(0.02 if event == b"\n" else 0)


@pytest.mark.slow
def test_users_begin_over_one_requests_duration(tmp_path, monkeypatch, capsys):
    """Begun at once their prefills would queue, and that wave would be the tail of a server that is far from busy."""
    monkeypatch.setattr("sweep.node.verdict.limited", lambda report, records: None)  # a busy client is no matter
    words = "model=m workload.output_tokens=16 workload.num_requests=40 load.concurrency=8 backend.api=completions"
    rows = []
    with serving(Serial) as url:
        for stagger in ("", "load.stagger=0"):
            out = tmp_path / ("at_once" if stagger else "default")
            assert main(["run", url, *f"{words} {stagger} out={out}".split()]) == 0
            rows.append(analysis.load(out).iloc[0])
    spread, at_once = rows
    assert at_once["client_start_spread"] == 0
    assert 0.3 < spread["client_start_spread"] < 2
    assert at_once["ttft_max"] > 0.14 > spread["ttft_p90"], (at_once["ttft_p90"], spread["ttft_max"])
    requests = analysis.requests(tmp_path / "default").query("phase == 'measured'")
    starts = requests["sent"].nsmallest(8)
    assert starts.max() - starts.min() == pytest.approx(spread["client_start_spread"], rel=0.3)


def dialect_of(url, *typed, **answers):
    """What `sweep run URL` adds to a command line."""
    return with_dialect(with_model([url, "model=m", *typed], ConfigPath.of_user([])), ConfigPath.of_user([]))


def test_a_probe_meets_an_endless_answer_and_an_empty_one(monkeypatch):
    """Neither changes the plan, takes longer than its bound, or hides why."""

    class Odd(Endpoint):
        answer: ClassVar = (200, "")

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            return self.reply(*self.answer)

    ended = 'data: {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
    endless = 'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n' * 1000
    with serving(Odd) as url:
        for answer, words in (((200, ended), "empty"), ((200, endless), "does not end")):
            monkeypatch.setattr(Odd, "answer", answer)
            _, line = dialect_of(url, "backend.api=completions")
            assert words in line, line
            assert "None" not in line


@pytest.mark.slow
def test_a_trial_keeps_its_id_while_its_endpoint_is_away(tmp_path, capsys):
    """The endpoint needs a setting that only its answer to the probe shows, and is part of a trial's id."""

    class Slow(Endpoint):
        delays: ClassVar = {"a/b": 0.2}  # so that the client is not the bottleneck

    class Newer(Slow):
        limit = "max_completion_tokens"
        busy = 1

        def do_POST(self):
            if self.busy:
                type(self).busy -= 1
                self.rfile.read(int(self.headers["content-length"]))
                return self.reply(503, "loading")
            return super().do_POST()

    short = "model=a/b workload.num_requests=4 workload.output_tokens=4 patience=2"
    with serving(Newer) as url:
        command = ["run", url, *short.split(), "backend.api=completions", f"out={tmp_path}"]
        assert main(command) in (0, 1), "a busy machine may spoil the trial (client_limited)"
        assert "planning: " in capsys.readouterr().err, "waited for an endpoint that was busy"
    rows = analysis.load(tmp_path)
    assert set(rows["outcome"]) <= {"ok", "client_limited"}
    assert main(command) == 75, "its trials are unknown without its answer"
    assert "run the same command again" in capsys.readouterr().err
    assert analysis.load(tmp_path).equals(rows)
    with serving(Slow) as plain:
        command = ["run", plain, *short.split(), "backend.api=completions", f"out={tmp_path / 'plain'}"]
        assert main(command) in (0, 1)
    assert main(command) in (0, 1), "no row is missing, and none of them needed a setting"


@pytest.mark.parametrize(
    ("base", "models", "rejected", "added"),
    [
        ("/v1/chat/completions", "/v1/models", "no such word", []),
        ("/beta/chat", "/beta/chat/models", "no such word", ['backend.path="/chat/completions"']),
        ("", "/v1/models", "max_tokens", ['backend.max_tokens_field="max_completion_tokens"']),
        ("", "/v1/models", "stream_options", ["backend.extra_body.stream_options=null"]),
        ("", "/v1/models", "temperature", ["backend.extra_body.temperature=null"]),
    ],
)
def test_an_endpoint_with_a_strict_body_or_other_paths_is_detected(base, models, rejected, added):
    class Strict(Endpoint):
        limit = "max_completion_tokens" if rejected == "max_tokens" else "max_tokens"
        expected = f"{base.removesuffix('/chat/completions') or '/v1'}/chat/completions"

        def do_GET(self):
            self.reply(*((200, '{"data": [{"id": "a/b"}]}') if self.path == models else (404, "no such path")))

        def do_POST(self):
            if self.path == self.expected and f'"{rejected}"' in self.rfile.peek().decode():
                self.rfile.read(int(self.headers["content-length"]))
                return self.reply(400, f"Unrecognized request argument: {rejected}")
            return super().do_POST()

    with serving(Strict) as url:
        command = with_model([f"{url}{base}"], ConfigPath.of_user([]))
        arguments, line = with_dialect(command, ConfigPath.of_user([]))
    assert "model='a/b'" in command
    assert "streams 16 events" in line, line
    assert set(arguments) - set(command) == {'backend.api="chat"', *added}


@pytest.mark.parametrize(
    ("host", "exceptions", "proxied"),
    [
        ("engine.test", "*.other.test, 10.0.0.0/8", True),
        ("a.engine.test", "*.engine.test", False),
        ("10.1.2.3", "10.0.0.0/8", False),
        ("[2001:db8::1]", "2001:db8::1", False),
        ("ip6-localhost", "", False),
        ("localhost.", "", False),
        ("127.1", "", False),
        ("10.1", "", True),
    ],
)
def test_exceptions_from_a_proxy_have_many_forms(monkeypatch, host, exceptions, proxied):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert bool(proxy_of(f"http://{host}:8000", "environment")) == proxied


def test_a_value_without_a_character_of_the_grammar_needs_no_quotes():
    """A query and an equals sign, letters beyond ASCII, brackets; and the empty scheme of a bare key, in quotes."""
    typed = {"backend.url": "http://[::1]:80/d?api-version=1", "out": "/tmp/Läufe=1", "model": "Qwen/Qwen3(AWQ)"}
    arguments = [f"{key}={value}" for key, value in typed.items()]
    assert parse_command_line([*arguments, "backend.auth_scheme=''"]).scalars == typed | {"backend.auth_scheme": ""}


def test_a_models_name_that_looks_like_a_number_is_text():
    for names in ("1e5,true", "007,1_000", "nan,'x y'"):
        assert ",".join(parse_command_line([f"model={names}"]).axes["model"]) == names.replace("'", "")
    typed = ["model.served_name=1e5", "workload.models={1e5: 1, true: 2, a/b: 1}"]
    models = {"1e5": 1, "true": 2, "a/b": 1}
    assert parse_command_line(typed).scalars == {"model.served_name": "1e5", "workload.models": models}


def test_a_typed_api_keeps_the_path_and_the_header_that_answered(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k")

    class Messages(Endpoint):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/messages" or self.headers["x-api-key"] != "k" or not self.headers["anthropic-version"]:
                return self.reply(404, "no such path")
            delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}
            end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 16}}
            return self.reply(200, "".join(f"data: {json.dumps(event)}\n\n" for event in [delta] * 16 + [end]))

    with serving(Messages) as url:
        arguments, line = dialect_of(url, "backend.api_key_env=SOME_KEY")
    assert {'backend.api="messages"', 'backend.path="/messages"'} <= {*arguments}, line


def test_a_responses_api_may_reject_temperature_and_store():
    class Strict(Endpoint):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path != "/v1/responses":
                return self.reply(404, "no such path")
            if extra := next((key for key in ("temperature", "store") if key in body), None):
                return self.reply(400, f"Unrecognized request argument: {extra}")
            events = [{"type": "response.output_text.delta", "delta": "a"}] * 16
            events += [{"type": "response.completed", "response": {}}]
            return self.reply(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events))

    with serving(Strict) as url:
        arguments, line = dialect_of(url)
    assert {"backend.extra_body.temperature=null", "backend.extra_body.store=null"} <= {*arguments}, line


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "a\nhush-hush")
    with pytest.raises(ConfigError, match=r"api_key_env=SOME_KEY: .*cannot be sent in a header") as caught:
        dialect_of("http://127.0.0.1:9", "backend.api_key_env=SOME_KEY")
    assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_each_request_asks_for_a_model_drawn_by_weight(tmp_path, monkeypatch, capsys):
    """LoRA adapters: counted and compared, and drawn the same in a rerun; the slower one is seen to be slower."""
    monkeypatch.setattr("sweep.node.verdict.limited", lambda report, records: None)  # a busy client is no matter
    monkeypatch.setattr(Endpoint, "delays", {"base": 0.02, "adapter-a": 0.1})
    monkeypatch.setattr(Endpoint, "asked", asked := Counter())
    monkeypatch.setenv("COLUMNS", "160")  # all columns in one table, however long the values are
    out, again = tmp_path / "out", tmp_path / "again"
    words = f"model=m workload.num_requests=60 workload.output_tokens=4 backend.api=completions out={out}"
    with serving(Endpoint) as url:
        assert main(["run", url, *words.split(), "workload.models={base: 1, adapter-a: 2}"]) == 0
        sent = Counter({model: count for (_, _, model), count in asked.items() if model != "m"})
        assert main(["rerun", str(out), "--all", "--trust", "--out", str(again)]) == 3, "one launch cannot tell"
    requests = analysis.requests(out)
    assert sent == Counter(requests["model"])
    assert list(analysis.requests(again)["model"]) == list(requests["model"])
    counts = requests.loc[requests["phase"] == "measured", "model"].value_counts()
    assert 28 <= counts["adapter-a"] <= 52
    assert main(["export", str(out), str(tmp_path / "files")]) == 0
    assert main(["import", str(tmp_path / "files"), str(tmp_path / "back")]) == 0
    for run, flag in ((out, "--table"), (out, "--all"), (tmp_path / "back", "--all")):
        capsys.readouterr()
        assert main(["summary", str(run), flag]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        adapter, base = (next(row for row in rows if row[2:3] == [name]) for name in ("adapter-a", "base"))
        assert [int(row[3]) for row in (adapter, base)] == [counts["adapter-a"], counts["base"]]
        assert int(base[5]) == 4 * counts["base"]
        assert float(adapter[6]) > 100 > float(base[6]) > 20
        ratio = next(word for word in base if word.endswith("×"))
        assert 0.15 < float(ratio.rstrip("×")) < 0.6
    assert "adapter-a" in (out / "report.html").read_text()
