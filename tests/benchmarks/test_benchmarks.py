"""The conditions under which benchmarks/ measure commands."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks import client, resume

CORES = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
PRINT_CACHE = [sys.executable, "-c", "import sys; print(sys.pycache_prefix, sys.dont_write_bytecode)"]
RUST_CLIENT = """
import json, re, urllib.request
def run_argv(argv):
    told = dict(re.findall("--(.+)=(.+)", chr(10).join(argv)))
    print("Running 4 requests", flush=True)
    body = json.dumps({"messages": [], "max_tokens": int(told["random-output-len"])}).encode()
    answers = [urllib.request.urlopen(told["base-url"] + "/v1/chat/completions", body).read() for _ in range(4)]
    texts = ["".join(re.findall('"content":"( .+?)"', answer.decode())) for answer in answers]
    columns = {"generated_texts": texts, "ttfts": [0, 1, 2, 3], "errors": [""] * 4, "output_lens": [8] * 4}
    columns = {name: column[::-1] for name, column in (columns | {"itls": [[0.02] * 7] * 4}).items()}
    open(told["output-file"], "w").write(json.dumps(columns | {"duration": 1.0}))
"""


@pytest.mark.slow
def test_the_first_command_compiles_where_the_measured_ones_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is started from a process of its own, which imports the module anew."""
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "elsewhere")  # and restored after the test
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "argv", ["resume"])
    printed: list[str] = []

    def both(*_: object) -> None:
        printed.append(resume.measure(PRINT_CACHE).output)
        printed.append(process_of_its_own(resume.measure, PRINT_CACHE).output)
        raise SystemExit

    process_of_its_own = resume.elsewhere
    monkeypatch.setattr(resume, "elsewhere", both)
    with pytest.raises(SystemExit):
        resume.main()
    assert printed[0].endswith("/compiled False\n")
    assert printed == [printed[0]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tls", "gateway"])
def test_the_clients_errors_are_known_behind_tls_and_a_gateway(path: str) -> None:
    """Each answer is matched with the server's true times."""
    row = client.Row(path, 4, 2, tokens=8, **{path: True})
    result, load_kept, _ = client.run_row(row, CORES)
    assert (result.failed, len(result.errors["ttft"]), len(result.errors["itl"])) == (0, 4, 4 * 7)
    assert load_kept


@pytest.mark.slow
def test_a_client_without_ids_is_matched_by_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one reports its last answer first, and as TTFT how many requests it had sent before."""
    folder = tmp_path / "sglang" / "srt" / "rust_extensions"
    folder.mkdir(parents=True)
    (folder / "_bench.py").write_text(RUST_CLIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result, load_kept, _ = client.run_row(client.Row("", 4, 1, tokens=8), CORES, "sglang", sys.executable)
    assert {name: answer.ttft for name, answer in result.answers.items()} == {"0": 0, "1": 1, "2": 2, "3": 3}
    assert (result.failed, result.tokens, len(result.errors["itl"])) == (0, 32, 4 * 7)
    assert load_kept
