"""Answers that are none, or differ, through the whole command: what an endpoint does to look better than it is."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from tests.client.test_tokens import BUSY, sweep
from tests.support.token_server import Script

pytestmark = [BUSY, pytest.mark.slow]
SEVERAL = ("workload.num_requests=24", "load.concurrency=12", "workload.output_tokens=16")
ANY_LENGTH = (*SEVERAL, "workload.ignore_eos=false")
SUSPICIONS = {"odd-answers", "other-model", "padded-first-token", "buffered-stream", "prompt-tokens-differ"}
CHAT = "backend.api=chat"


@pytest.mark.parametrize(
    ("script", "codes", "overrides"),
    [
        pytest.param(Script(text="own"), set(), SEVERAL, id="honest"),
        pytest.param(Script(tokens=1, finish="stop"), set(), ANY_LENGTH, id="honest, one token"),
        pytest.param(Script(lengths=(3, 16, 9, 2), text="own"), set(), ANY_LENGTH, id="honest, of any length"),
        pytest.param(Script(model=("org/SERVED",)), set(), SEVERAL, id="honest, one word again and again"),
        pytest.param(Script(text="own", odd_every=4), {"odd-answers"}, SEVERAL, id="errors as answers"),
        pytest.param(Script(text="canned"), {"odd-answers"}, SEVERAL, id="one answer to all"),
        pytest.param(Script(model=("served-fallback",)), {"other-model"}, SEVERAL, id="another model"),
        pytest.param(Script(model=("served", "served-0613")), {"other-model"}, SEVERAL, id="two models"),
        pytest.param(Script(early={"text": "(one moment)"}), {"padded-first-token"}, SEVERAL, id="placeholder"),
        pytest.param(Script(replay=0.0003), {"buffered-stream"}, SEVERAL, id="held back, then event by event"),
        pytest.param(Script(replay=0.0003, burst=4), {"buffered-stream"}, SEVERAL, id="held back in bursts"),
        pytest.param(Script(prompt_tokens=4), {"prompt-tokens-differ"}, SEVERAL, id="prompts cut"),
        pytest.param(Script(prompt_tokens=64), {"prompt-tokens-differ"}, SEVERAL, id="prompts counted fourfold"),
    ],
)
def test_what_is_odd_is_named_and_what_is_honest_is_not(
    script: Script, codes: set[str], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    script = Script(**{**vars_of(script), "ttft": 0.1})
    row = sweep(tmp_path, script, overrides=overrides)
    assert row.outcome == "ok"
    assert SUSPICIONS & set(row.warnings) == codes
    assert "unverified-tokens" in row.warnings
    assert row.served_model == (", ".join(sorted(set(script.model))) or None) or pd.isna(row.served_model)
    requests = analysis.requests(tmp_path / "out")
    assert (requests.characters > 0).all()
    assert requests.text_hash.notna().any() == (script.text != "same")
    if "prompt-tokens-differ" in codes:
        assert pd.isna(row.total_throughput)
        assert pd.isna(pd.read_csv(tmp_path / "out" / "summary.csv").total_throughput[0])
    if "buffered-stream" in codes:
        assert pd.isna(row.tpot_p50)


def vars_of(script: Script) -> dict[str, Any]:
    return {name: getattr(script, name) for name in Script.__dataclass_fields__}


@pytest.mark.parametrize(
    ("early", "overrides"),
    [
        ({"text": " "}, []),
        ({"text": "\u200b\n"}, []),
        ({"text": ""}, []),
        ({"delta": {"role": "assistant", "content": ""}}, [CHAT]),
        ({"delta": {"reasoning_content": "…"}}, [CHAT]),
    ],
    ids=["space", "zero width", "empty", "role", "placeholder reasoning"],
)
@pytest.mark.parametrize("usage", ["final", "running"])
def test_a_chunk_without_visible_text_is_no_first_token(
    early: Any, overrides: list[str], usage: Any, tmp_path: Path
) -> None:
    row = sweep(tmp_path, Script(ttft=0.2, early=early, usage=usage), overrides=overrides)
    assert row.ttft_p50 == pytest.approx(0.2, rel=0.1)
    assert row.tpot_p50 == pytest.approx(0.02, rel=0.1)
    assert row.output_tokens == 6 * 32


def test_lengths_that_are_right_on_average_only_are_invalid(tmp_path: Path) -> None:
    row = sweep(tmp_path, Script(lengths=(24, 8)), overrides=SEVERAL, status=1)
    assert row.outcome == "invalid"
    assert "100% of the answers (8 to 24 tokens) are over 10 % longer or shorter" in row.reason


@pytest.mark.parametrize("script", [Script(tokens=4, hidden=12, details=False), Script(tokens_per_event=4)])
def test_hidden_or_merged_tokens_of_a_final_usage_give_no_time_per_token(script: Script, tmp_path: Path) -> None:
    row = sweep(tmp_path, script, overrides=[*SEVERAL, "slo={tpot: 50ms}"])
    assert pd.isna(row.tpot_p50)
    assert pd.isna(row.goodput)
    assert "unstamped-tokens" in row.warnings
    assert analysis.requests(tmp_path / "out").tpot.isna().all()


def test_a_count_that_does_not_grow_with_the_prompts_is_told(tmp_path: Path) -> None:
    lengths = ["workload=serving", "workload.input_tokens=20", "workload.spread=0.5"]
    row = sweep(tmp_path, Script(prompt_tokens=20), overrides=[*SEVERAL, *lengths])
    assert row.input_growth == pytest.approx(0, abs=0.01)
    assert "prompt-tokens-differ" in row.warnings


def test_a_server_that_counts_double_is_seen_by_its_characters(tmp_path: Path) -> None:
    sweep(tmp_path, Script(usage="running"), Script(usage="running", tokens=8, overcount=2.0), overrides=SEVERAL)
    points = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert points["warnings"].str.contains("unequal-characters").all()
