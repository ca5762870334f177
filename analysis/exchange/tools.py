"""Reads result files as rows: of `vllm bench serve`, SGLang's bench_serving, GuideLLM, AIPerf, and reports of others.

A row holds only values from its file. These tools measure latencies from the time of sending, so `ttft` and `e2el` are
filled only for a closed loop, where sweep measures from the same time. A tool's TPOT or ITL gets sweep's name for the
quantity (docs/metrics.md). Quantities without a counterpart are omitted. Times are in seconds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.exchange import statistics_reports
from analysis.exchange.statistics_reports import Report, first_of
from analysis.load import ASKED_MODELS, REQUESTS_BY_MODEL
from sweep.base.config import PERCENTILES, ConfigError, first_line, shortened
from sweep.base.records import LOAD_COLUMNS, Outcome
from sweep.base.whole_file import parsed_size, read_bounded
from sweep.numbers.quantity import columns

ImportedRow = dict[str, Any]
TOOLS = (
    "a JSON result of vllm bench serve (--save-result), SGLang bench_serving, GuideLLM, AIPerf, GenAI-Perf, "
    "inference-perf or InferenceX, or a report of llm-d-benchmark"
)
CLOSED = "closed"
NAMED_PARTS = ("backend", "model", "workload", "load")
WHOLE_COLUMNS = ("num_requests", "num_failed", "input_tokens", "output_tokens")
NAME_COLUMNS = (*NAMED_PARTS, "client_stamp_source")  # a row's names; its other columns are numbers
EXPORTED = "sweep."  # prefix for keys of an export that vLLM's results lack
CLOSED_LOOPS = ("synchronous", "concurrent", "throughput", "concurrency")  # GuideLLM's and AIPerf's names
OUR_LOADS = {"fixed_schedule": "trace"} | dict.fromkeys(CLOSED_LOOPS, CLOSED)  # loads that sweep names differently
LARGEST_IMPORT, LARGEST_PARSED = 128 << 20, 768 << 20  # maximum bytes of a file, and of its content once it is parsed
LARGEST_YAML = 1 << 20  # characters
LARGEST_FIGURE = 1e18
MOST_FAILED = 0.05  # maximum share of a result's requests; sweep's own trials are invalid beyond it (max_failed)
OF_A_SCHEDULE = ("ttft", "e2el", "tpot_e2e")  # sweep counts from a schedule if any, these tools from the send
STATISTICS = {"mean": "mean", "avg": "mean", "median": "p50", "max": "max"} | {
    name: name for name in ("p50", "p90", "p95", "p99")
}
"""The tools' names of statistics -> sweep's names."""


def rows_of(file: Path) -> list[ImportedRow]:
    """Return the results in a file, one row per result."""
    try:
        document = read_bounded(file, LARGEST_IMPORT)
        if parsed_size(document) > LARGEST_PARSED:
            raise ValueError("has too many objects and lists for a file of results")
        content = _parsed_documents(document.decode("utf-8-sig"), file.suffix.lower() in (".yaml", ".yml"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); expected {TOOLS}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read ({first_line(error)})") from None
    try:
        rows = _rows(content)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{file}: incomplete, or from another version of its tool ({problem})") from None
    if not rows:
        raise ConfigError(f"{file}: not {TOOLS}")
    return [_with_failures(row) for row in rows]


def _parsed_documents(text: str, is_yaml: bool) -> Any:
    """Return the JSON of a file, or of its lines: `--append-result` and SGLang's benchmark write a result per line.

    Raises ValueError, e.g. for a large YAML file: llm-d's reports are short.
    """
    if is_yaml:
        if len(text) > LARGEST_YAML:
            raise ValueError(f"is over {LARGEST_YAML:,} characters long")
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"not YAML: {first_line(error)}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _with_failures(row: ImportedRow) -> ImportedRow:
    """Return the row without the quantiles that fall on failed requests, which the tools ignore. Above MOST_FAILED, or
    without requests, the row is invalid and has no values, since zeros or a few answers are not a measurement.
    """
    failed, requests = row.get("num_failed") or 0, row.get("num_requests") or 0
    if "outcome" in row or "num_requests" not in row:  # it has a verdict, or does not count its requests
        return row
    if failed > MOST_FAILED * requests or not requests:
        kept = (*NAME_COLUMNS, *LOAD_COLUMNS, "num_requests", "num_failed")
        names = {key: cell for key, cell in row.items() if key in kept or "." in key}
        return names | {"outcome": "invalid", "reason": f"{failed} of {requests} requests failed"}
    lost = {f"p{percentile:g}" for percentile in PERCENTILES if 100 * failed > (100 - percentile) * requests}
    return {key: cell for key, cell in row.items() if key.rpartition("_")[2] not in lost}


def _plausible(row: ImportedRow) -> ImportedRow:
    """Return the row. Raises ValueError unless every name is a string and every value a number of at least 0."""
    for column, cell in row.items():
        is_name = isinstance(cell, str) and not any("\ud800" <= letter <= "\udfff" for letter in cell)
        if cell is not None and not (is_name if column in NAME_COLUMNS else _is_figure(cell)):
            raise ValueError(f"{column}={cell!r}: expected {'a string' if column in NAME_COLUMNS else 'a number >= 0'}")
    if row.get("num_failed", 0) > row.get("num_requests", math.inf):
        raise ValueError(f"num_requests={row['num_requests']}: expected at least num_failed={row['num_failed']}")
    if row.get("duration") == 0 < row.get("num_requests", 0) - row.get("num_failed", 0):
        raise ValueError("duration=0: expected a number > 0")
    return row | {column: _whole(row[column]) for column in WHOLE_COLUMNS if row.get(column) is not None}


def _is_figure(cell: Any) -> bool:
    return type(cell) in (int, float) and 0 <= cell < LARGEST_FIGURE


def _exported(row: ImportedRow) -> ImportedRow:
    """Return an export's row, with sweep's outcome and figures. Raises ValueError for a value sweep never writes."""
    if row["outcome"] not in list(Outcome):
        raise ValueError(f"{EXPORTED}outcome={row['outcome']!r}: expected {', '.join(Outcome)}")
    declared = columns(PERCENTILES).items()
    texts = {*NAME_COLUMNS, "outcome", "reason", ASKED_MODELS}
    texts |= {name for name, each in declared if each.quantity.type is str}
    for column, cell in row.items():
        if column == "warnings":
            is_expected = isinstance(cell, list) and all(isinstance(code, str) for code in cell)
        elif column in texts or "." in column or cell is None:
            is_expected = cell is None or isinstance(cell, str) or column not in texts
        else:
            is_expected = type(cell) in (int, float, bool) and abs(cell) < LARGEST_FIGURE
        if not is_expected:
            raise ValueError(f"{EXPORTED}{column}={cell!r}: expected what sweep export writes")
    return row


def _requests_by_model(columns_: Any) -> str:
    """Return an export's requests by model as JSON. Raises ValueError for requests that sweep never writes."""
    requests = columns_ if isinstance(columns_, dict) and columns_.keys() == {*REQUESTS_BY_MODEL} else {}
    cells = {name: cells for name, cells in requests.items() if isinstance(cells, list)}
    kinds = {"model": str, "failed": bool}
    are_whole = all(
        isinstance(cell, kinds[name]) if name in kinds else cell is None or _is_figure(cell)
        for name in cells
        for cell in cells[name]
    )
    if len(cells) < len(REQUESTS_BY_MODEL) or len({*map(len, cells.values())}) != 1 or not are_whole:
        raise ValueError(f"{EXPORTED}{ASKED_MODELS}={shortened(repr(columns_))}: expected what sweep export writes")
    return json.dumps(requests)


def _whole(number: float) -> int:
    """Return a whole number, which may be a rounded sum such as 5.00000001. Raises ValueError for anything else."""
    if type(number) not in (int, float) or abs(number - round(number)) > 1e-6:
        raise ValueError(f"{number!r}: expected a whole number")
    return round(number)


def _rows(content: Any) -> list[ImportedRow]:
    """Return the results in a file's JSON; empty if no known tool wrote it."""
    results = content if isinstance(content, list) else [content]  # a summary.json of `vllm bench sweep` has several
    if not all(isinstance(report, dict) for report in results):
        return []
    if all("median_ttft_ms" in report for report in results):
        return [_vllm_row(result) for result in results]
    metadata = results[0].get("metadata")
    if isinstance(metadata, dict) and "guidellm_version" in metadata:
        return [_guidellm_row(report, metadata["guidellm_version"]) for report in results[0]["benchmarks"]]
    if any("aiperf_version" in result for result in results):
        return [_aiperf_row(result, result["aiperf_version"]) for result in results if "aiperf_version" in result]
    kinds = list(map(statistics_reports.report_kind, results))
    if None in kinds and any(kinds):
        raise ValueError(f"entry {kinds.index(None) + 1} of {len(kinds)} is of no known tool")
    return [_reported_row(kind, report) for kind, report in zip(kinds, results, strict=True) if kind]


def _vllm_row(result: Mapping[str, Any]) -> ImportedRow:
    rate = _positive(result.get("request_rate"))
    burstiness = float(result.get("burstiness") or 1.0) if rate else 1.0
    load = CLOSED if not rate else "poisson" if burstiness == 1 else "gamma"
    of_sglang = "median_e2e_latency_ms" in result
    tool = "SGLang bench_serving" if of_sglang else "vllm bench serve"
    row = _row(tool, result.get("model_id"), load, rate, result.get("max_concurrency"))
    row["load.burstiness"] = None if burstiness == 1 else burstiness
    for series in ("ttft", "tpot", "itl", "e2el"):
        suffix = "e2e_latency" if of_sglang and series == "e2el" else series
        _add_series(row, series, {key: result.get(f"{key}_{suffix}_ms") for key in STATISTICS}, 1e-3)
    answered = _whole(result["completed"])
    unanswered = max(_whole(result.get("num_prompts") or 0) - answered, 0)  # old versions lack `failed`
    failed = unanswered if result.get("failed") is None else _whole(result["failed"])
    ours = {key.removeprefix(EXPORTED): figure for key, figure in result.items() if key.startswith(EXPORTED)}
    if ours:
        ours["client_stamp_source"] = "sweep export"
    _plausible({key: cell for key, cell in ours.items() if key in (*NAME_COLUMNS, *LOAD_COLUMNS)})
    if not all(isinstance(cell, str | int | float) or key in ("warnings", ASKED_MODELS) for key, cell in ours.items()):
        raise ValueError(f"{EXPORTED}*: expected strings and numbers")
    if ASKED_MODELS in ours:
        ours[ASKED_MODELS] = _requests_by_model(ours[ASKED_MODELS])
    if "outcome" in ours:  # with all figures by our definitions
        names = (*NAME_COLUMNS, *LOAD_COLUMNS, "load.burstiness")
        return _exported({name: row[name] for name in names if name in row} | ours)
    figures = {
        "duration": result.get("duration"),
        "num_requests": answered + failed,
        "num_failed": failed,
        "input_tokens": result.get("total_input_tokens"),
        "output_tokens": result.get("total_output_tokens"),
        "output_throughput": result.get("output_throughput"),
        "total_throughput": result.get("total_token_throughput"),
        "request_throughput": result.get("request_throughput"),
    }
    return _plausible(row | figures) | ours


def _guidellm_row(benchmark: Mapping[str, Any], version: str) -> ImportedRow:
    """Return a row from a GuideLLM benchmark. Its ITL, a request's mean gap after the first token, is sweep's TPOT.

    Its TPOT includes the first token. Its throughputs are averages over time, so sweep's are computed from totals. The
    file has no gaps between chunks. For an open loop it also has the latency from the scheduled arrival, which is
    sweep's E2EL.
    """
    metrics, times, strategy = benchmark["metrics"], benchmark["scheduler_metrics"], benchmark["config"]["strategy"]
    rate, profile = _positive(strategy.get("rate")), str(strategy["type_"])
    users = {"synchronous": 1, "concurrent": strategy.get("streams")}.get(profile, strategy.get("max_concurrency"))
    model = (benchmark["config"].get("backend") or {}).get("model")
    row = _row(f"GuideLLM {version}", model, OUR_LOADS.get(profile, profile), rate, users)
    series = {
        "ttft": ("time_to_first_token_ms", 1e-3),
        "tpot": ("inter_token_latency_ms", 1e-3),
        "tpot_e2e": ("time_per_output_token_ms", 1e-3),
        "e2el": ("request_latency", 1.0),
    }
    for latency, (key, seconds) in series.items():
        _add_series(row, latency, _of_guidellm(metrics[key]), seconds)
    scheduled = _of_guidellm(metrics.get("request_scheduled_latency"))  # null in a closed loop
    row |= {f"e2el_{statistic}": figure for statistic, figure in _statistics(scheduled, 1.0).items()}
    tokens = [_whole(metrics[key]["successful"]["total_sum"]) for key in ("prompt_token_count", "output_token_count")]
    requests = metrics["request_totals"]
    duration = times["request_end_time"] - times["request_start_time"]
    return _plausible(row | _totals(duration, _whole(requests["successful"]), _whole(requests["errored"]), tokens))


def _of_guidellm(metric: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the statistics of successful requests; empty if all failed."""
    summary = (metric or {}).get("successful") or {}
    if not summary.get("count"):
        return {}
    return {**summary["percentiles"], **{statistic: summary[statistic] for statistic in ("mean", "median", "max")}}


def _aiperf_row(content: Mapping[str, Any], version: str) -> ImportedRow:
    """Return a row from an AIPerf result. Its inter-token latency is TPOT, its inter-chunk latency ITL."""
    phases = [phase for phase in content["input_config"]["phases"] if phase.get("kind") != "warmup"]
    phase = phases[-1]
    rate = _positive(phase.get("rate"))
    models = content["input_config"]["models"]["items"]
    load = OUR_LOADS.get(phase["type"], phase["type"])
    row = _row(f"AIPerf {version}", models[0]["name"], load, rate, phase.get("concurrency"))
    row["load.burstiness"] = phase.get("smoothness")
    series = {
        "ttft": "time_to_first_token",
        "tpot": "inter_token_latency",
        "itl": "inter_chunk_latency",
        "e2el": "request_latency",
    }
    for latency, key in series.items():
        if key in content:
            _add_series(row, latency, content[key], {"ms": 1e-3, "sec": 1.0}[content[key]["unit"]])
    failed = _whole((content.get("error_request_count") or {}).get("avg") or 0)
    missing = {"avg": 0} if failed and not content.get("request_count") else None  # nothing was completed
    answered, duration, *tokens = (
        (missing or content[key])["avg"] for key in ("request_count", "benchmark_duration", "total_isl", "total_osl")
    )
    totals = _totals(duration, _whole(answered), failed, [_whole(number) for number in tokens])
    return _plausible(row | totals)


def _reported_row(kind: Report, content: Mapping[str, Any]) -> ImportedRow:
    """Return a row from a report that may lack the load, and the numbers of requests and of failures."""
    model, (users, rate, arrivals) = first_of(content, kind.model), statistics_reports.load_of(kind, content)
    load = arrivals if _positive(rate) else "unknown" if users is None else CLOSED
    row = _row(kind.tool, model, load, _positive(rate), users)
    for latency, path in statistics_reports.series_of(kind, content).items():
        _add_series(row, latency, *statistics_reports.statistics_of(content, path, STATISTICS))
    row = _plausible(row | statistics_reports.figures_of(kind, content))
    if not any(column.startswith("service_") for column in row) and not row.get("num_failed"):
        return row | {"outcome": "invalid", "reason": "the file has no latencies: nothing was completed"}
    return row


def _row(tool: str, model: Any, load: str, rate: float | None, users: Any) -> ImportedRow:
    return {
        "backend": "openai",
        "model": model or "unknown",
        "workload": "imported",
        "load": load,
        "concurrency": None if users is None or load != CLOSED else _whole(users),
        "rate": rate,
        "client_stamp_source": tool,
    }


def _totals(duration: float, answered: int, failed: int, tokens: Sequence[int]) -> ImportedRow:
    """Return a file's totals, and the throughputs that follow from them by sweep's definitions."""
    if failed and not answered:
        return {"num_requests": failed, "num_failed": failed}
    input_tokens, output_tokens = tokens
    return {
        "duration": duration,
        "num_requests": answered + failed,
        "num_failed": failed,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "output_throughput": output_tokens / duration,
        "total_throughput": (input_tokens + output_tokens) / duration,
        "request_throughput": answered / duration,
    }


def _add_series(row: ImportedRow, latency: str, of_tool: Mapping[str, Any], seconds: float) -> None:
    """Add a latency's statistics, in seconds. In a closed loop, sweep also measures from sending."""
    for statistic, figure in _statistics(of_tool, seconds).items():
        if latency in ("ttft", "e2el"):
            row[f"service_{latency}_{statistic}"] = figure
        if row["load"] == CLOSED or latency not in OF_A_SCHEDULE:
            row[f"{latency}_{statistic}"] = figure


def _statistics(of_tool: Mapping[str, Any], seconds: float) -> dict[str, float]:
    figures = {statistic: float(of_tool[key]) for key, statistic in STATISTICS.items() if of_tool.get(key) is not None}
    if wrong := next((key for key in STATISTICS if isinstance(of_tool.get(key), bool)), None):
        raise ValueError(f"{wrong}={of_tool[wrong]}: expected a number")
    measured = {statistic: figure for statistic, figure in figures.items() if figure and not math.isnan(figure)}
    return {statistic: figure * seconds for statistic, figure in measured.items()}  # 0: vLLM's TPOT of single tokens


def _positive(rate: Any) -> float | None:
    """Return a rate; None if it is missing, zero or infinite."""
    number = math.inf if rate is None else float(rate)
    if isinstance(rate, bool) or not number >= 0 or (isinstance(rate, str) and number < math.inf):
        raise ValueError(f"rate={rate!r}: expected a number >= 0")
    return number if 0 < number < math.inf else None
