"""The columns of a run's files that are no quantity: their units and meanings, for docs/columns.md.

Those of trials.parquet stand beside the fields of `sweep.disk.row`; quantities say their own.
"""

import inspect
import re
from collections.abc import Iterable, Mapping

from sweep.disk import row
from sweep.numbers.quantity import Quantity, declared

Meaning = tuple[str, str]  # unit, "" of none; what it is

ROW_PARTS = (row.Identity, row.Verdict, row.EngineFacts, row.Observation)

_FIELD = re.compile(r"^    (?P<name>\w+): [^#\n]*?(?:  # (?P<meaning>.*))?$", re.MULTILINE)
_UNITS = {"price_per_hour": "USD/h", "rate": "requests/s"}

REQUEST_FIELDS: Mapping[str, Meaning] = {
    "request_id": ("", "the request, as the engine's log may have it"),
    "phase": ("", "warmup or measured"),
    "batch": ("", "number of its lockstep batch; null in other loads"),
    "scheduled": ("s", "when the load said to send it; null without a schedule"),
    "released": ("s", "when a slot was free for it, or its user's answer before was over"),
    "sent": ("s", "when its first byte was written to the socket"),
    "ended": ("s", "when its answer was complete, or it was given up"),
    "asked_input_tokens": ("tokens", "of the prompt, by the workload"),
    "input_tokens": ("tokens", "of the prompt, as counted by `token_source`"),
    "cached_tokens": ("tokens", "of the prompt that the engine says it had cached"),
    "gateway_answer": ("", "whether the gateway gave the answer, from its cache or from an equal request under way"),
    "asked_output_tokens": ("tokens", "of the answer, as asked for"),
    "output_tokens": ("tokens", "of the answer, hidden ones included, as counted by `token_source`"),
    "token_source": ("", "who counted the tokens"),
    "streamed_tokens": ("tokens", "of the answer that were sent"),
    "hidden_tokens": ("tokens", "of the answer that were counted and never sent"),
    "recounted_tokens": ("tokens", "of the answer by the model's own tokenizer, where it was recounted"),
    "first_answer": ("s", "when the first chunk after visible reasoning arrived"),
    "chunk_us": ("µs", "list: each chunk's arrival, since `sent`"),
    "chunk_tokens": ("tokens", "list: tokens of each chunk"),
    "finish_reason": ("", "as the engine says it"),
    "error": ("", "why it failed; null where it succeeded"),
}
"""Of requests.parquet; stamps are in seconds from the start of the trial's load."""

TELEMETRY_FIELDS: Mapping[str, Meaning] = {
    "time": ("s", "of the reading, from the trial's start"),
    "series": ("", "what was read: kv_cache_usage, requests_running, gpu_memory_bytes, …"),
    "device": ("", "the GPU, the core (of cpu_thermal_limits) or the position in a draft; empty for the whole"),
    "value": ("", "the reading: shares of one, bytes, watts, counts"),
}


def trial_columns() -> dict[str, Meaning]:
    """The columns of trials.parquet that are no quantity."""
    meanings: dict[str, Meaning] = {}
    for part in ROW_PARTS:
        for field in _FIELD.finditer(inspect.getsource(part)):
            meanings[field["name"]] = (_UNITS.get(field["name"], ""), field["meaning"] or "")
    meanings["warnings"] = ("", "codes of what makes the result doubtful (docs/warnings.md)")
    meanings["in_plan"] = ("", "whether the present plan of the folder has it")
    return meanings


def request_columns() -> dict[str, Meaning]:
    """The columns of requests.parquet: stamps and counts, and the series derived from them."""
    return {**REQUEST_FIELDS, **{series.name: (series.unit, series.formula) for series in derived_series()}}


def derived_series() -> list[Quantity]:
    """The series per request with a column of their own in requests.parquet; the others are recorded as counts."""
    return [quantity for quantity in declared() if quantity.per == "request" and not quantity.recorded_as]


def written_columns(names: Iterable[str]) -> list[str]:
    """Return the names, without repetition, of columns that a reader needs of requests.parquet.

    Raises:
        KeyError: for a column that is never written. A reader that asks for it would find every file incomplete.
    """
    if never := sorted(set(names) - request_columns().keys()):
        raise KeyError(f"requests.parquet: no column {', '.join(never)} is ever written")
    return list(dict.fromkeys(names))
