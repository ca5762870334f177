"""The way from one command line of an engine to another: what is read, and which combinations are measured."""

import itertools
import json
from typing import Any

import pytest

from sweep.__main__ import main
from sweep.cli.searches.ladder import Differences, compared, interacting, read_command
from tests.explain.test_explain import KNOBS, explained, factorial

NGRAM = {"method": "ngram", "num_speculative_tokens": 4}
SPECULATION = f"--speculative-config '{json.dumps(NGRAM)}'"


@pytest.mark.parametrize(
    ("command", "backend", "settings"),
    [
        (
            f"vllm serve org/m --max_num_seqs=64 --enforce-eager {SPECULATION} --port 80 --host 0.0.0.0",
            "vllm",
            {"max-num-seqs": 64, "enforce-eager": True, "speculative-config": NGRAM},
        ),
        (
            "VLLM_X=1 /opt/bin/python3.12 -m vllm.entrypoints.openai.api_server --model org/m --dtype half",
            "vllm",
            {"backend.environ.VLLM_X": "1", "backend.dtype": "half"},
        ),
        ("python -m sglang.launch_server --model-path org/m --tp-size 2", "sglang", {"backend.gpus": 2}),
        (
            "/usr/bin/llama-server --parallel 4 --flash-attn on --n-gpu-layers -1",
            "llamacpp",
            {"backend.slots": 4, "flash-attn": "on", "gpu-layers": -1},
        ),
    ],
)
def test_a_command_is_read_in_sweeps_terms(command: str, backend: str, settings: dict[str, Any]) -> None:
    read = read_command("--from", command, has_model=True)
    plain = {key.removeprefix("backend.flags."): setting for key, setting in read.settings.items()}
    assert (read.backend, plain) == (backend, settings)


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("vlm serve o/m", "vllm serve o/m", "--from: vlm serve: unknown engine; expected: llama-server,"),
        ("vllm serve o/m", "sglang serve --model-path o/m", "--to: sglang; expected vllm, the engine of --from"),
        ("vllm serve o/m", "vllm serve o/n", "--to: model.repo differs from --from; expected the same"),
        ("vllm serve o/m -tp 2", "vllm serve o/m", "--from: -tp: expected the long form of a flag"),
        ("vllm serve", "vllm serve", "--from: expected a model in the command line, or model=NAME"),
        ("vllm serve o/m", "vllm serve o/m --port 1", "--to: expected a command that differs from --from"),
        ("vllm serve o/m --trust-remote-code", "vllm serve o/m", "--from: flags.trust-remote-code: running code"),
        ("vllm serve o/m --api-key abc", "vllm serve o/m", "--from: --api-key: expected no key"),
        ("vllm serve 'o/m", "vllm serve o/m", "--from: No closing quotation"),
        ("llama-server --model m.gguf", "llama-server", "--from: m.gguf: expected a folder, a repository"),
        ("", "vllm serve o/m", "--from: empty: unknown engine"),
    ],
)
def test_what_cannot_be_compared_is_one_line(first: str, second: str, problem: str, capsys: Any) -> None:
    assert main(["ladder", "--from", first, "--to", second]) == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")


def test_each_change_is_measured_alone_and_left_out(tmp_path: Any, capsys: Any) -> None:
    """Eight combinations of three changes, and ten of four; the first command is the first point."""
    more = f"--enforce-eager --no-enable-prefix-caching {SPECULATION}"
    second = f"vllm serve org/m --max-num-seqs 8 {more}"
    for last, deployments in ((second, 10), (second.partition(" --spec")[0], 8)):
        line = ["--from", "vllm serve org/m --max-num-seqs 1", "--to", last, "model=small-llama", "dry_run=true"]
        assert main(["ladder", *line, f"out={tmp_path / 'out'}"]) == 0
        shown = capsys.readouterr().out
        assert "ladder: backend.flags.max-num-seqs: 1 → 8" in shown
        assert f"{deployments} deployments, {3 * deployments} launches" in shown
        assert "race=true" not in shown, "shares need every combination"
    plan = [text for text in shown.splitlines() if ": 3 launches" in text]
    assert plan[0].endswith("max-num-seqs=1: 3 launches, 3 trials, 3 to run")


def test_pairs_of_changes_that_depend_on_others_are_measured_next(tmp_path: Any) -> None:
    """Four knobs, one at a time and all but one: the planted shares, and the two that interact."""
    every = [frozenset(KNOBS), *(frozenset(KNOBS) - {key} for key in KNOBS)]
    single = [frozenset[str](), *(frozenset([key]) for key in KNOBS)]
    differences = Differences("vllm", {}, dict.fromkeys(KNOBS, (None, 1)))
    assert set(differences.one_at_a_time) == {*every, *single}
    bits = [tuple(int(key in each) for key in KNOBS) for each in differences.one_at_a_time]

    def omitted(*measured: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [bits for bits in itertools.product((0, 1), repeat=4) if bits not in measured]

    first = explained(factorial(tmp_path / "first", omit=omitted(*bits)))
    (pair,) = interacting([first], KNOBS)
    assert pair == frozenset(KNOBS[:2])
    assert not any("alone" in note for note in first.notes)
    second = explained(factorial(tmp_path / "second", omit=omitted(*bits, (1, 1, 0, 0))))
    ((label, change),) = second.interactions
    assert label == "batching × graphs"
    assert change.low < 1.1618 < change.high, "exp(0.15)"
    assert second.parts[1].share.value == pytest.approx(first.parts[1].share.value, abs=0.02)


def test_a_setting_that_only_one_command_names_has_its_default_in_the_other() -> None:
    first, second = (
        read_command("--from", f"vllm serve {end}", True) for end in ("--dtype half", "--tensor-parallel-size 2")
    )
    assert dict(compared(first, second).changed) == {"backend.dtype": ("half", "auto"), "backend.gpus": (1, 2)}
