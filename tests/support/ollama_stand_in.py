"""A stand-in for Ollama's program and its API: no model, but models by name, a context length, and streams of words.

    ollama_stand_in.py serve | list | create NAME -f Modelfile

As there, OLLAMA_HOST is the server's address, `create` sends it the model, and a model is loaded by its first request.
An answer is w1 w2 w3 …; STAND_IN_EOS is the number of words after which it ends, whatever was asked for, and
STAND_IN_DELAY the seconds before each event.
"""

import json
import os
import re
import sys
import time
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.support.http_stub import Stub

DONE = "data: [DONE]\n\n"
ADDRESS = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")


class Ollama(Stub):
    protocol_version = "HTTP/1.1"
    models: dict[str, int] = {}  # context length by name  # noqa: RUF012 - the server's
    loaded: set[str] = set()  # noqa: RUF012
    bodies: list[dict[str, object]] = []  # of completions  # noqa: RUF012

    def answer(self, content: object, status: int = 200) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def do_GET(self) -> None:
        if self.path == "/api/version":
            self.answer({"version": "0.12.3"})
        elif self.path in ("/v1/models", "/api/tags"):
            self.answer({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        elif self.path == "/api/ps":
            entries = [{"name": name, "context_length": self.models[name]} for name in sorted(self.loaded)]
            self.answer({"models": [{**entry, "details": {"quantization_level": "Q4_K_M"}} for entry in entries]})
        elif self.path.removeprefix("/v1/models/") in self.models:
            self.answer({"id": self.path.removeprefix("/v1/models/"), "object": "model"})
        else:
            self.answer({"error": {"message": "model not found"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/create":
            self.models[f"{body['model']}"] = int(body["parameters"]["num_ctx"])
            self.answer({"status": "success"})
        elif self.path != "/v1/completions" or body["model"] not in self.models:
            self.answer({"error": {"message": f"model {body['model']!r} not found"}}, 404)
        else:
            self.loaded.add(body["model"])
            self.bodies.append(body)
            self.complete(body)

    def complete(self, body: dict[str, object]) -> None:
        wanted = int(str(body.get("max_tokens", 16)))
        count = min(wanted, int(os.environ.get("STAND_IN_EOS", wanted)))
        prompt_tokens = len(str(body["prompt"]).split())
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        head = {"id": "cmpl-1", "object": "text_completion", "model": body["model"]}
        reasons = [None] * (count - 1) + ["length" if count == wanted else "stop"]
        chunks = [
            {**head, "choices": [{"text": f" w{number}", "index": 0, "finish_reason": reason}]}
            for number, reason in enumerate(reasons, 1)
        ]
        chunks.append({**head, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len("".join([*lines, DONE]))))
        self.end_headers()
        for line in [*lines, DONE]:
            time.sleep(float(os.environ.get("STAND_IN_DELAY", 0)))
            self.wfile.write(line.encode())


def main() -> None:
    match sys.argv[1:]:
        case ["serve"]:
            host, _, port = ADDRESS.partition(":")
            Path(os.environ["OLLAMA_MODELS"]).mkdir(exist_ok=True)
            ThreadingHTTPServer((host, int(port)), Ollama).serve_forever()
        case ["list"]:
            urllib.request.urlopen(f"http://{ADDRESS}/api/tags").close()
        case ["create", name, "-f", file]:
            content = Path(file).read_text()
            parameters = dict(re.findall(r"^PARAMETER (\S+) (.+)$", content, re.MULTILINE))
            (weights,) = re.findall(r"^FROM (.+)$", content, re.MULTILINE)
            Path(weights).stat()
            sent = json.dumps({"model": name, "parameters": parameters}).encode()
            urllib.request.urlopen(urllib.request.Request(f"http://{ADDRESS}/api/create", sent)).close()


if __name__ == "__main__":
    main()
