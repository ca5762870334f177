"""Speculation in real vLLM, through the whole command: what it accepts depends on the content."""

import json
from pathlib import Path

import pandas as pd
import pytest

from sweep.__main__ import main

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

STORIES = (
    "A little fox lived by the sea.",
    "The old clock in the hall had stopped.",
    "Nobody had seen the cat since noon.",
)
COLOURS = "red green blue yellow " * 12
NGRAM = "{method: ngram, num_speculative_tokens: 4, prompt_lookup_max: 4, prompt_lookup_min: 2}"


def prompts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def test_acceptance_differs_by_content(tmp_path):
    """Prompt lookup on a trained model: of a list that goes round nearly all drafts are accepted, of a story few."""
    story = prompts(tmp_path / "story.jsonl", [f"{opening} One day" for opening in STORIES])
    going_round = prompts(tmp_path / "list.jsonl", [COLOURS, COLOURS.replace("blue", "black"), f"Colours: {COLOURS}"])
    command = ["backend=vllm", "model=smollm2", "model.max_model_len=512", "workload=prompts", "load=batch"]
    command += [f"workload.file={story},{going_round}", "workload.output_tokens=32", "workload.num_requests=3"]
    command += ["workload.unique_header=false", "workload.warmup_requests=1", "agreement=false", "tracking=none"]
    command += [f"backend.flags.speculative-config={NGRAM}", "cluster=inline", f"out={tmp_path / 'run'}"]
    assert main(command) == 0
    rows = pd.read_parquet(tmp_path / "run" / "trials.parquet").set_index("workload.file")
    accepted = rows["acceptance_rate"].astype(float).fillna(0.0)
    assert accepted[going_round] > 0.7
    assert accepted[going_round] - accepted[story] > 0.3
    assert rows["acceptance_length"][going_round] > 3
    by_position = json.loads(rows["acceptance_by_position"][going_round])
    assert len(by_position) == 4
    assert by_position == sorted(by_position, reverse=True)
