"""The gateway as a part of a deployment: through the whole command, from `gateway=…` to the row's columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweep.__main__ import main
from sweep.disk.run_files import RunPaths, read_trials
from sweep.inputs.prompts import Paraphrases
from sweep.numbers.warnings import trial_warnings

QUICK = [
    *("cluster=inline", "tracking=none", "backend=simulated", "model=tiny-llama", "agreement=false"),
    *("workload=paraphrases", "workload.num_requests=40", "workload.output_tokens=6", "load=closed"),
    *("load.concurrency=2", "backend.ttft={mean: 0.005}", "backend.itl={mean: 0.01}"),
]


def rows_of(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    main([*QUICK, *arguments, f"out={tmp_path / 'out'}"])
    rows = read_trials(RunPaths(tmp_path / "out").trials)
    # A busy machine may delay the client; what the gateway did is the same.
    assert {row["outcome"] for row in rows} <= {"ok", "client_limited"}, [row["reason"] for row in rows]
    return rows


def decisions_of(tmp_path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The gateway's decisions on the measured requests, in the attempt that the row is of."""
    attempt = RunPaths(tmp_path / "out").attempt(row["deployment_id"], row["attempt"])
    lines = [json.loads(line) for line in (attempt / "gateway" / "decisions.jsonl").read_text().splitlines()]
    return [line for line in lines if line["request_id"].startswith("measured")]


def test_the_row_says_what_the_cache_bought_and_what_it_falsified(tmp_path):
    (row,) = rows_of(tmp_path, "gateway=cache", "gateway.cache.threshold=0.8", "workload.first=16")
    decisions = decisions_of(tmp_path, row)[:40]
    hits = [each for each in decisions if each["cache"] in ("exact", "semantic")]
    assert row["cache_hit_rate"] == pytest.approx(len(hits) / 40)
    assert row["cache_hit_rate"] > 0.5, "40 requests of 16 wordings"
    assert row["cache_tokens_saved"] == sum(each["cached_input_tokens"] + each["cached_output_tokens"] for each in hits)
    assert row["cache_tokens_saved"] > 6 * len(hits)
    # The false hits, counted anew from the prompts of the requests.
    seed, workload = row["seed"], Paraphrases(name="p", first=16, output_tokens=6)
    meanings = workload.meanings()
    meaning = {each.request_id: meanings[str(each.prompt)] for each in workload.requests(None, 40, seed)}
    false = [each for each in hits if meaning[each["request_id"]] != meaning[each["origin"]]]
    assert row["false_hit_rate"] == pytest.approx(len(false) / 40)
    assert row["false_hit_share"] == pytest.approx(len(false) / len(hits))
    assert row["outcome"] != "ok" or ("false-hits" in row["warnings"]) == bool(false)
    assert row["served_agreement"] in (None, 1.0), "the simulated engine says the same to all"
    assert row["outcome"] != "ok" or row["cache_cost_saved"] > 0
    assert json.loads(row["config"])["gateway"]["cache"]["threshold"] == 0.8
    texts = [path.read_text() for path in (tmp_path / "out").rglob("gateway/*")]
    assert not any("prime" in text for text in texts), "no prompt in the gateway's logs"


def test_the_first_requests_are_misses_though_the_warm_up_asked_them(tmp_path):
    rows_of(tmp_path, "gateway=cache", "workload.first=8", "workload.warmup_requests=30", "gateway.cache.mode=exact")
    seen = set()
    workload = Paraphrases(name="p", first=8, output_tokens=6)
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    prompts = {each.request_id: each.prompt for each in workload.requests(None, 40, row["seed"])}
    for each in decisions_of(tmp_path, row)[:40]:
        assert (prompts[each["request_id"]] in seen) == (each["cache"] != "miss")
        seen.add(prompts[each["request_id"]])


def test_thresholds_are_an_axis_and_clipping_an_option(tmp_path):
    rows = rows_of(
        tmp_path,
        *("gateway=none,clip,cache", "gateway.clip.output_tokens=3", "gateway.clip.input_tokens=8"),
        *("when={gateway.clip.output_tokens: {gateway: clip}, gateway.clip.input_tokens: {gateway: clip}}",),
        *("workload.num_requests=16",),
    )
    by_gateway = {row["gateway"]: row for row in rows}
    assert len({row["deployment_id"] for row in rows}) == 3
    plain, clip, cache = (by_gateway[name] for name in ("none", "clip", "cache"))
    assert plain["clipped_share"] is None
    assert plain["cache_hit_rate"] is None
    assert clip["clipped_share"] == 1.0
    assert clip["output_tokens"] == 16 * 3
    assert clip["input_tokens"] < plain["input_tokens"]
    assert clip["clipped_tokens"] >= 16 * 3
    assert clip["cache_hit_rate"] == 0
    assert cache["clipped_tokens"] == 0


def test_an_engine_that_speaks_no_completions_gets_no_gateway(tmp_path, capsys):
    assert (
        main([*QUICK, "backend.api=tgi", "backend.batch_form=streams", "gateway=cache", f"out={tmp_path / 'out'}"]) == 2
    )
    assert "gateway=cache: passes completions and chat, and simulated speaks tgi" in capsys.readouterr().err


def test_a_late_gateway_is_named():
    row = {"outcome": "ok", "trial_id": "t", "gateway_loop_lag_p99": 0.006}
    (warning,) = trial_warnings(row)
    assert warning.code == "late-gateway"
    assert "the gateway's loop was 6.0 ms late" in warning.message
    assert not trial_warnings(row | {"gateway_loop_lag_p99": 0.005})


def test_paraphrases_are_labelled_clusters_with_near_misses():
    workload = Paraphrases(name="p")
    clusters: dict[str, list[str]] = {}
    for prompt, cluster in workload.meanings().items():
        clusters.setdefault(cluster, []).append(prompt)
    assert len(clusters) >= 60
    assert min(map(len, clusters.values())) >= 4
    families = {cluster.partition("/")[0] for cluster in clusters}
    assert all(sum(cluster.startswith(f"{family}/") for cluster in clusters) >= 2 for family in families)
    assert not workload.unique_header
