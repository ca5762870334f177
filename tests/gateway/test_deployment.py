"""The gateway as a part of a deployment: through the whole command, from `gateway=…` to the row's columns."""

import contextlib
import json
import socket
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.base import Launch
from backends.launch.server import LaunchError
from sweep.__main__ import main
from sweep.base.records import Record, Records, Request
from sweep.client.wire import Target
from sweep.disk.run_files import RunPaths, read_requests, read_trials, write_requests
from sweep.gateway.process import GatewaySilent, RunningGateway, running_gateway
from sweep.gateway.served import served_equal
from sweep.gateway.settings import Cache, Clip, Gateway
from sweep.inputs.prompts import Paraphrases
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.numbers.quantities import gateway as quantities
from sweep.numbers.selection import measured
from sweep.numbers.summarise import summarise
from sweep.numbers.warnings import trial_warnings
from tests.support.gateway_stand import engine
from tests.support.simulated_engine import behind_tls, simulated

pytestmark = pytest.mark.slow

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
    assert row["outcome"] != "ok" or row["cache_latency_saved"] > 0
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
    of_a_cache = ("cache_hit_rate", "shared_answer_rate", "false_hit_rate", "cache_tokens_saved", "cache_cost_saved")
    assert [clip[name] for name in of_a_cache] == [None] * 5
    assert None not in [cache[name] for name in of_a_cache[:4]]
    assert cache["clipped_tokens"] == 0


@pytest.mark.figures
def test_the_threshold_is_an_axis_with_a_figure_of_hits_against_false_hits(tmp_path):
    rows = rows_of(tmp_path, "gateway=cache", "gateway.cache.threshold=0.5,0.97", "workload.num_requests=30")
    by_threshold = {json.loads(row["config"])["gateway"]["cache"]["threshold"]: row for row in rows}
    low, high = by_threshold[0.5], by_threshold[0.97]
    assert low["cache_hit_rate"] > high["cache_hit_rate"]
    assert low["false_hit_rate"] >= high["false_hit_rate"]
    if {row["outcome"] for row in rows} == {"ok"}:
        figure = (tmp_path / "out" / "figures" / "cache_hits.svg").read_text()
        assert "threshold" in figure


def test_requests_that_a_duration_left_unsent_are_in_no_share(tmp_path):
    timed = ["load.duration=0.3", "workload.num_requests=2000", "workload.first=4"]
    (row,) = rows_of(tmp_path, "gateway=cache", "gateway.cache.mode=exact", *timed)
    decisions = decisions_of(tmp_path, row)
    assert 4 < len(decisions) < 2000
    hits = [each for each in decisions if each["cache"] == "exact"]
    assert row["cache_hit_rate"] == pytest.approx(len(hits) / len(decisions))


def test_the_gateway_of_an_engine_in_a_container_runs_beside_it(tmp_path, monkeypatch):
    launched = []

    @contextlib.contextmanager
    def running(process, launch, marker):
        launched.append((process.command(launch), launch))
        yield SimpleNamespace(url="http://127.0.0.1:1", launch=launch)

    monkeypatch.setattr("sweep.gateway.process.server.running", running)
    launch = Launch(model=tmp_path, served_name="m", workdir=tmp_path, image="i@sha256:0", gpus=("0",), cpus=(3,))
    backend = SimpleNamespace(url=None, launches=True, verify_tls=True, proxy="none")
    behind: Any = SimpleNamespace(url="http://127.0.0.1:2", headers={}, launch=launch, backend=backend)
    clip = Gateway(clip=Clip(input_tokens=5))
    with running_gateway(clip, [behind], tmp_path, lambda: SHIPPED_TOKENIZER, "marker"):
        ((command, own),) = launched
    assert own.image is None
    assert own.gpus == ()
    assert own.cpus == (3,)
    assert command[-2:] == ["--tokenizer", str(SHIPPED_TOKENIZER)], "the model's, whatever the engine was launched with"
    with (
        pytest.raises(LaunchError, match="tokenizer is unknown; set model.tokenizer"),
        running_gateway(clip, [behind], tmp_path, lambda: None, "marker"),
    ):
        pass


def test_an_engine_that_does_not_answer_is_compared_once():
    def silent(connection, request):
        connection.shutdown(socket.SHUT_RDWR)

    requests = [Request(f"measured-{number}", "x", 1) for number in range(8)]
    decisions = {each.request_id: {"cache": "semantic"} for each in requests}
    with engine(silent) as behind:
        equal = served_equal(
            decisions, requests, Target(behind.url, "m"), behind.url, load_tokenizer(SHIPPED_TOKENIZER)
        )
        assert (equal, len(behind.received)) == (None, 1)


def test_a_gateway_that_cannot_be_reset_is_named(tmp_path):
    process: Any = SimpleNamespace(url="http://127.0.0.1:9", launch=SimpleNamespace(workdir=tmp_path))
    with pytest.raises(GatewaySilent, match="cache was not emptied before the trial"):
        RunningGateway(process).reset()


@pytest.mark.parametrize("option", ["path=/tmp/answers", "eviction=fifo", "embedder=all-MiniLM-L6-v2"])
def test_a_removed_key_of_the_cache_says_so(tmp_path, capsys, option):
    key, _, value = option.partition("=")
    line = f"gateway.cache.{key}={value!r}: this key was removed in 0.2.0; {Cache.removed[key]}\n"
    assert main([*QUICK, "gateway=cache", f"gateway.cache.{option}", f"out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.endswith(line)
    assert main(["gateway", "--to", "http://x", "gateway=cache", f"gateway.cache.{option}"]) == 2
    assert capsys.readouterr().err.endswith(line)


def test_an_endpoint_with_a_certificate_of_its_own_is_reached_through_the_gateway(tmp_path):
    endpoint = ["backend=openai", "model=served", "workload=paraphrases", "workload.num_requests=8"]
    endpoint += ["workload.first=2", "workload.output_tokens=6", "load=closed", "load.concurrency=2"]
    endpoint += ["cluster=inline", "tracking=none"]
    endpoint += ["gateway=cache", "gateway.cache.threshold=0.5", "agreement=false", f"out={tmp_path / 'out'}"]
    with simulated() as (plain, _), behind_tls(plain, tmp_path) as url:
        main([*endpoint, f"backend.url={url}", "backend.verify_tls=false"])
    (row,) = read_trials(RunPaths(tmp_path / "out").trials)
    assert row["outcome"] in ("ok", "client_limited"), row["reason"]
    assert row["cache_hit_rate"] > 0


def test_an_engine_that_speaks_no_completions_gets_no_gateway(tmp_path, capsys):
    assert (
        main([*QUICK, "backend.api=tgi", "backend.batch_form=streams", "gateway=cache", f"out={tmp_path / 'out'}"]) == 2
    )
    assert "gateway=cache: supports completions and chat, but simulated speaks tgi" in capsys.readouterr().err


def test_the_quantities_of_known_decisions():
    tokens = {"cached_input_tokens": 3, "cached_output_tokens": 5}
    exact = {"request_id": "b", "cache": "exact", "origin": "a", **tokens}
    semantic = {"request_id": "c", "cache": "semantic", "origin": "a", **tokens}
    cut = {"request_id": "a", "cache": "miss", "input_before": 9, "input_after": 7, "output_before": 4}
    decisions = [cut, exact, semantic, {"request_id": "d", "cache": "shared"}]
    meanings = {"a": "x", "b": "x", "c": "y"}
    assert quantities.clipped_share(decisions) == 0.25
    assert quantities.clipped_tokens(decisions) == 6
    assert quantities.cache_hit_rate(decisions) == 0.5
    assert quantities.shared_answer_rate(decisions) == 0.25
    assert quantities.false_hit_rate(decisions, meanings) == 0.25
    assert quantities.false_hit_share(decisions, meanings) == 0.5
    assert quantities.false_hit_rate(decisions, {}) is None
    assert quantities.cache_tokens_saved(decisions) == 16
    # Two GPUs at 1.8 USD an hour for 10 s cost 0.01 USD; the cache gave 10 of 30 output tokens, half of what was made.
    assert quantities.cache_cost_saved(decisions, 1.8, 2, 10.0, 30) == pytest.approx(0.005)
    assert quantities.cache_cost_saved(decisions, 1.8, 2, 10.0, 10) is None


def test_the_latency_that_a_cache_saves_is_the_difference_of_medians():
    records = Records()
    for name, seconds in (("a", 0.9), ("b", 1.1), ("c", 0.1), ("d", 0.1), ("shared", 5.0), ("failed", 9.0)):
        record = Record(name, "measured", 0.0, 0.0, 0.0, input_tokens=4, output_tokens=1)
        record.chunk_us, record.chunk_tokens = array("I", [round(seconds * 1e6)]), array("H", [1])
        record.error = "closed" if name == "failed" else None
        records.append(record)
    results = {"a": "miss", "b": "uncacheable", "c": "exact", "d": "semantic", "shared": "shared", "failed": "miss"}
    decisions = [{"request_id": name, "cache": result} for name, result in results.items()]
    mask = measured(records)
    assert quantities.cache_latency_saved(decisions, records, mask) == pytest.approx(0.9)
    assert quantities.cache_latency_saved(decisions[:2], records, mask) is None


def test_answers_of_the_gateway_make_no_buffered_stream(tmp_path):
    """They come as fast as the client reads; the engine's answers beside them come event by event."""
    events = {"engine": [10_000, 20_000, 30_000], "hit": [500, 510, 520], "shared": [900, 905, 10_000]}
    records = Records()
    for name, arrivals in events.items():
        record = Record(name, "measured", 0.0, 0.0, 0.0, input_tokens=4, output_tokens=3)
        record.chunk_us, record.chunk_tokens = array("I", arrivals), array("H", [1, 1, 1])
        records.append(record)
    assert summarise(records)["buffered_share"] == pytest.approx(5 / 9)
    results = {"engine": "miss", "hit": "exact", "shared": "shared"}
    decisions = [{"request_id": name, "cache": result} for name, result in results.items()]
    quantities.mark_gateway_answers(records, decisions)
    path = RunPaths(tmp_path).trial("d", "1", "t")
    write_requests(path, records)
    for each in (records, read_requests(path.requests)):
        row = summarise(each)
        assert row["buffered_share"] == 0
        assert row["tpot_p50"] is not None


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
