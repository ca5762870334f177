"""The columns of a run's files that are not quantities: their units and meanings, for docs/columns.md.

A column's meaning is the comment after its field: in `sweep.disk.row` for trials.parquet, in
`sweep.base.records.Record` for requests.parquet. Quantities declare their meanings themselves.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from functools import cache

from sweep.base.records import REQUEST_COLUMNS, Record
from sweep.disk import row
from sweep.numbers.quantity import Quantity, declared

Meaning = tuple[str, str]  # unit ("" if it has none), meaning

ROW_PARTS = (row.Identity, row.Verdict, row.EngineFacts, row.Observation)

_FIELD = re.compile(r"^    (?P<name>\w+): [^#\n]*?(?:  # (?P<meaning>.*))?$", re.MULTILINE)
_UNITS = {"price_per_hour": "USD/h", "rate": "requests/s"}

TELEMETRY_FIELDS: Mapping[str, Meaning] = {
    "time": ("s", "time of the reading, from the trial's start"),
    "series": ("", "name of the series: kv_cache_usage, requests_running, gpu_memory_bytes, …"),
    "device": ("", "the GPU, the core (for cpu_thermal_limits) or the position in a draft; empty if only one exists"),
    "value": ("", "the reading: a share (0 to 1), bytes, watts or a count"),
}


def trial_columns() -> dict[str, Meaning]:
    """Return the columns of trials.parquet that are not quantities."""
    fields = [field for part in ROW_PARTS for field in _commented_fields(part)]
    meanings = {name: (_UNITS.get(name, ""), meaning) for name, meaning in fields}
    meanings["warnings"] = ("", "codes of the warnings about the result (docs/warnings.md)")
    meanings["in_plan"] = ("", "whether the trial is in the folder's current plan")
    return meanings


def request_columns() -> dict[str, Meaning]:
    """Return the columns of requests.parquet: timestamps, counts, and the series derived from them."""
    meanings = {name: (_unit(name), meaning) for name, meaning in _commented_fields(Record)}
    return {**meanings, **{series.name: (series.unit, series.formula) for series in derived_series()}}


@cache  # readers ask for each trial, and reading the source takes as long as reading the trial's requests
def _commented_fields(kind: type) -> list[tuple[str, str]]:
    return [(field["name"], field["meaning"] or "") for field in _FIELD.finditer(inspect.getsource(kind))]


def _unit(name: str) -> str:
    if name == "chunk_us":
        return "µs"
    return "tokens" if name.endswith("_tokens") else "s" if REQUEST_COLUMNS.get(name) == "d" else ""


def derived_series() -> list[Quantity]:
    """Return the per-request series with a column in requests.parquet; other series are recorded as counts."""
    return [quantity for quantity in declared() if quantity.per == "request" and not quantity.recorded_as]


def written_columns(names: Iterable[str]) -> list[str]:
    """Return the requests.parquet columns that a reader needs, without duplicates.

    Raises KeyError for a column that is never written, because no file would ever have all the columns needed.
    """
    if never := sorted(set(names) - request_columns().keys()):
        raise KeyError(f"requests.parquet: no column {', '.join(never)} is ever written")
    return list(dict.fromkeys(names))
