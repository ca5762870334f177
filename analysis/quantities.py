"""What a column of measurements is called, its unit on a label, and which way is better: by its name.

Data are in seconds, bytes and shares; only labels are in ms, GiB and %.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

_WORDS = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2el": "E2EL",
    "lag": "client lag",
    "slot_wait": "slot wait",
    "service_ttft": "service TTFT",
    "service_e2el": "service E2EL",
    "batch_latency": "batch latency",
    "kv_cache_usage": "KV-cache use",
    "cost_per_million_tokens": "Cost per million output tokens",
    "price_per_hour": "Price per hour",
    "duration": "Duration",
    "goodput": "Goodput",
    "startup_seconds": "Engine start-up",
    "output_tokens": "Output tokens",
    "agreement": "Agreement",
}
_SHORT = {"cost_per_million_tokens": "Cost", "output_throughput": "Throughput", "kv_cache_usage": "KV use"}
_LATENCIES = ("ttft", "tpot", "itl", "e2el", "lag", "slot_wait", "service_ttft", "service_e2el", "batch_latency")
_STATISTICS = ("mean", "p50", "p90", "p99", "max", "idle", "peak")


@dataclass(frozen=True)
class Quantity:
    """A measured column as people read it: `label` in `unit`, which is the data times `scale`."""

    column: str
    label: str
    short: str
    unit: str
    scale: float
    better: Literal["higher", "lower"] | None

    @property
    def axis(self) -> str:
        return f"{self.short if len(self.label) > 20 else self.label} ({self.unit})"

    @property
    def in_sentence(self) -> str:
        """The short name within a sentence: acronyms stay as they are."""
        return self.short if self.short[1:2].isupper() else self.short[:1].lower() + self.short[1:]

    def shown(self, value: float) -> str:
        """A value with three significant digits, without its unit; an em dash if there is none."""
        return number(value * self.scale)


def number(value: float) -> str:
    """Three significant digits, thousands set apart: 0.0123, 4.56, 789, 12,300."""
    if value is None or not math.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def setting(value: Any) -> str:
    """A number that was asked for, as it was: 8, 0.5; an em dash where it was not."""
    return "—" if pd.isna(value) else f"{value:g}"


def quantity(column: str) -> Quantity | None:
    """The Quantity that a column of trials.parquet holds; None if it is not a measurement that people compare."""
    steady = column.startswith("steady_")
    name = column.removeprefix("steady_")
    unit = _unit(name)
    if unit is None:
        return None
    stem, statistic = _split(name)
    label = _WORDS.get(stem) or stem.removesuffix("_bytes").replace("_", " ").capitalize()
    short = _SHORT.get(stem, label)
    if statistic:
        label, short = f"{label} {statistic}", f"{short} {statistic}"
    if steady:
        label, short = f"{label}, steady state", f"{short} steady"
    return Quantity(column, label, short, *unit)


def _split(name: str) -> tuple[str, str]:
    """`ttft_p50` as ("ttft", "p50"), `memory_peak_bytes` as ("memory", "peak")."""
    stem, _, last = name.removesuffix("_bytes").rpartition("_")
    return (stem, last) if last in _STATISTICS else (name, "")


def _unit(name: str) -> tuple[str, float, Literal["higher", "lower"] | None] | None:
    stem, _ = _split(name)
    if stem == "request_throughput":
        return "requests/s", 1.0, "higher"
    if stem.endswith("throughput"):
        return "tokens/s", 1.0, "higher"
    if stem == "goodput":
        return "requests/s", 1.0, "higher"
    if stem in _LATENCIES:
        return "ms", 1e3, "lower"
    if stem in ("duration", "startup_seconds"):
        return "s", 1.0, "lower"
    if stem == "cost_per_million_tokens":
        return "$/M tok", 1.0, "lower"
    if stem == "kv_cache_usage":
        return "%", 100.0, None
    if stem == "output_tokens":
        return "per trial", 1.0, None
    if stem == "agreement":
        return "%", 100.0, None
    if name.endswith("_bytes"):
        return "GiB", 2.0**-30, "lower"
    return None
