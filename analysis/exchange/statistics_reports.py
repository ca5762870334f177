"""Reads reports that hold only statistics: of inference-perf, llm-d-benchmark, GenAI-Perf and InferenceX.

A report is declared as a table: the keys that only it has, and where it keeps each of sweep's quantities whose
definition is the same. Quantities that a tool defines otherwise are not in its table, so they are null. Paths are keys
joined by slashes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sweep.base.config import shortened

UNITS = {"s": 1.0, "sec": 1.0, "s/token": 1.0, "ms": 1e-3, "ms/token": 1e-3}
Figures = dict[str, Any]


class Report(NamedTuple):
    """A kind of report: the paths that tell it from others, and the paths of names, series and totals."""

    tool: str
    marks: tuple[str, ...]
    model: tuple[str, ...]  # the first that is present counts, as in `users` and `rate`
    users: tuple[str, ...]
    rate: tuple[str, ...]
    series: Mapping[str, str]  # latency -> path of its statistics; {} in a path is the name of a statistic
    figures: Mapping[str, str]  # other column -> path


LLM_D_LATENCY = "results/request_performance/aggregate/latency"
LLM_D_TOTALS = "results/request_performance/aggregate/requests"
LLM_D_RATES = "results/request_performance/aggregate/throughput"
LLM_D_LOAD = "scenario/load/standardized"
# The names that llm-d's report has for a quantity, by the tool that measured: their definitions differ.
LLM_D_NAMES: dict[str, dict[str, str]] = {
    "vllm-benchmark": {"tpot": "time_per_output_token", "itl": "inter_token_latency"},
    "inferencemax": {"tpot": "time_per_output_token", "itl": "inter_token_latency"},
    "guidellm": {"tpot": "inter_token_latency", "tpot_e2e": "time_per_output_token"},
    "inference-perf": {"tpot": "time_per_output_token", "tpot_e2e": "normalized_time_per_output_token"},
}
AVERAGED_OVER_TIME = ("guidellm",)  # tools whose rates are not totals divided by the duration
# How tools send requests at a rate, unless told otherwise. A tool that reports no distribution is not in the table.
ARRIVALS_OF_TOOLS = {"GenAI-Perf": "constant"} | dict.fromkeys(
    ("inference-perf", "vllm-benchmark", "inferencemax"), "poisson"
)
# inference-perf's counts of tokens: TPOT counts events before 0.5. In 0.5 and 0.6 an event may count as two tokens.
OF_TOKENS = ("tpot", "tpot_e2e", "output_throughput", "total_throughput")
REPORT_KINDS = (
    Report(  # its gaps between tokens are 0 within a chunk, so it has no ITL
        "inference-perf",
        marks=("load_summary/count", "successes/count", "failures/count"),
        model=(),
        users=("load_summary/concurrency",),
        rate=("load_summary/requested_rate",),
        series={
            "ttft": "successes/latency/time_to_first_token",
            "tpot": "successes/latency/time_per_output_token",
            "tpot_e2e": "successes/latency/normalized_time_per_output_token",
            "e2el": "successes/latency/request_latency",
        },
        figures={
            "num_requests": "load_summary/count",
            "num_failed": "failures/count",
            "duration": "benchmark_time_seconds",
            "output_throughput": "successes/throughput/output_tokens_per_sec",
            "total_throughput": "successes/throughput/total_tokens_per_sec",
            "request_throughput": "successes/throughput/requests_per_sec",
        },
    ),
    Report(
        "llm-d-benchmark",
        marks=(f"{LLM_D_TOTALS}/total", f"{LLM_D_LOAD}/tool"),
        model=("scenario/stack/0/standardized/model/name", "scenario/load/native/config/server/model_name"),
        users=(f"{LLM_D_LOAD}/concurrency",),
        rate=(f"{LLM_D_LOAD}/rate_qps",),
        series={"ttft": f"{LLM_D_LATENCY}/time_to_first_token", "e2el": f"{LLM_D_LATENCY}/request_latency"},
        figures={
            "num_requests": f"{LLM_D_TOTALS}/total",
            "num_failed": f"{LLM_D_TOTALS}/failures",
            "output_throughput": f"{LLM_D_RATES}/output_token_rate/mean",
            "total_throughput": f"{LLM_D_RATES}/total_token_rate/mean",
            "request_throughput": f"{LLM_D_RATES}/request_rate/mean",
        },
    ),
    Report(
        "GenAI-Perf",
        marks=("input_config", "request_throughput/avg", "request_latency/avg", "output_token_throughput/avg"),
        model=("input_config/model_names/0", "input_config/model/0", "input_config/model"),
        users=("input_config/perf_analyzer/stimulus/concurrency", "input_config/concurrency"),
        rate=("input_config/perf_analyzer/stimulus/request_rate", "input_config/request_rate"),
        series={"ttft": "time_to_first_token", "tpot": "inter_token_latency", "e2el": "request_latency"},
        figures={
            "num_requests": "request_count/avg",
            "output_throughput": "output_token_throughput/avg",
            "request_throughput": "request_throughput/avg",
        },
    ),
    Report(  # vLLM's benchmark in seconds, with throughputs divided by the number of GPUs
        "InferenceX",
        marks=("conc", "framework", "tput_per_gpu", "output_tput_per_gpu"),
        model=("model",),
        users=("conc",),
        rate=(),
        series={name: f"{{}}_{name}" for name in ("ttft", "tpot", "itl", "e2el")},
        figures={
            "num_requests": "benchmark_outcome/requested",
            "num_failed": "benchmark_outcome/failed",
            "output_throughput": "output_throughput",
            "total_throughput": "total_throughput",
        },
    ),
)


def at(content: Any, path: str) -> Any:
    """Return what is at a path; None if a key is missing."""
    for key in path.split("/"):
        if isinstance(content, list):
            content = content[int(key)] if key.isdecimal() and int(key) < len(content) else None
        else:
            content = content.get(key) if isinstance(content, Mapping) else None
    return content


def report_kind(content: Any) -> Report | None:
    """Return the kind of a report; None if it is of no kind."""
    return next((each for each in REPORT_KINDS if all(at(content, mark) is not None for mark in each.marks)), None)


def first_of(content: Any, paths: tuple[str, ...]) -> Any:
    """Return what is at the first of these paths; None for an unlimited number, and if all are missing."""
    found = next((cell for path in paths if (cell := at(content, path)) is not None), None)
    return None if found == math.inf else found


def series_of(report: Report, content: Any) -> dict[str, str]:
    """Return the paths of the series by sweep's names for their definitions."""
    series = dict(report.series)
    if report.tool == "llm-d-benchmark":
        names = LLM_D_NAMES.get(str(at(content, f"{LLM_D_LOAD}/tool")), {})
        series |= {latency: f"{LLM_D_LATENCY}/{name}" for latency, name in names.items()}
    streams = first_of(content, ("input_config/endpoint/streaming", "input_config/streaming"))
    if report.tool == "GenAI-Perf" and not streams:  # its first token is then the end of the answer
        del series["ttft"]
    return {latency: path for latency, path in series.items() if latency not in _miscounted(report, content)}


def load_of(report: Report, content: Any) -> tuple[Any, Any, str]:
    """Return the users, the rate, and how requests at a rate arrive.

    inference-perf gives a closed loop the number of its requests as a rate.
    """
    users, rate, tools = first_of(content, report.users), first_of(content, report.rate), _tools(report, content)
    users, rate = users or None, None if users and "inference-perf" in tools else rate
    return users, rate, next((ARRIVALS_OF_TOOLS[tool] for tool in tools if tool in ARRIVALS_OF_TOOLS), "unknown")


def _tools(report: Report, content: Any) -> tuple[str, str]:
    """Return the tool that wrote a report, and in llm-d's reports the tool that measured."""
    return report.tool, str(at(content, f"{LLM_D_LOAD}/tool"))


def _miscounted(report: Report, content: Any) -> tuple[str, ...]:
    """Return those of OF_TOKENS that a report of inference-perf may count otherwise; later reports have more keys."""
    if "inference-perf" not in _tools(report, content) or at(content, "successes/output_tokens") is not None:
        return ()
    number = re.search(r"(\d+)\.(\d+)", str(at(content, f"{LLM_D_LOAD}/tool_version")))
    version = (int(number[1]), int(number[2])) if number else (0, 0)
    if version >= (0, 7):
        return ()
    return OF_TOKENS if version >= (0, 5) or at(content, "benchmark_time_seconds") is not None else OF_TOKENS[:1]


def statistics_of(content: Any, path: str, names: Mapping[str, str]) -> tuple[dict[str, Any], float]:
    """Return a series' statistics by the tool's names, and their unit in seconds, e.g. 0.001. Raises ValueError."""
    if "{}" in path:
        return {name: at(content, path.format(name)) for name in names}, 1.0
    statistics = at(content, path) or {}
    if not isinstance(statistics, Mapping):
        raise ValueError(f"{path}={shortened(repr(statistics))}: expected statistics and their unit")
    unit = statistics.get("units", statistics.get("unit", "s"))
    if unit not in UNITS:
        raise ValueError(f"{path}: unit {unit!r}; expected {', '.join(UNITS)}")
    return {name: statistics.get(name) for name in names}, UNITS[unit]


def figures_of(report: Report, content: Mapping[str, Any]) -> Figures:
    """Return the other columns that a report has."""
    if report.tool == "InferenceX":
        content = {**content, **_totals_of_gpus(content)}
    paths = {column: path for column, path in report.figures.items() if column not in _miscounted(report, content)}
    figures = {column: cell for column, path in paths.items() if (cell := at(content, path)) is not None}
    if at(content, f"{LLM_D_LOAD}/tool") in AVERAGED_OVER_TIME:
        figures = {column: cell for column, cell in figures.items() if not column.endswith("_throughput")}
    return figures


def _totals_of_gpus(content: Mapping[str, Any]) -> Figures:
    """Return the throughputs of all GPUs. If decode has GPUs of its own, output is divided by those, input by others.

    Otherwise both are divided by all GPUs. Expert and decode-context parallelism run on GPUs that are counted already.
    """
    prefill, decode = (content.get(f"num_{phase}_gpu") or 0 for phase in ("prefill", "decode"))
    if not prefill:
        sizes = content.get("tp") or 0, content.get("pp") or 1, content.get("pcp_size") or 1
        prefill, decode = math.prod(map(float, sizes)), 0  # a text times a number of GPUs could fill the memory
    if not prefill:
        return {}
    output, of_input = float(content["output_tput_per_gpu"]) * (decode or prefill), content.get("input_tput_per_gpu")
    of_all = float(content["tput_per_gpu"]) * (prefill + decode)
    total = of_all if of_input is None else output + float(of_input) * prefill
    return {"total_throughput": total, "output_throughput": output}
