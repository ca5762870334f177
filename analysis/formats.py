"""In which number format each engine computed and kept its weights: a speed means little without it."""

import json
from typing import Any

from analysis.load import Run
from analysis.plotting.layout import Layout

UNKNOWN = "unknown"


def number_formats(run: Run, layout: Layout) -> dict[str, list[str]]:
    """Format, e.g. `bfloat16, bitsandbytes nf4` -> the lines that were measured in it."""
    ok = layout.placed(run.ok)[["line", "dtype", "engine_facts"]].drop_duplicates()
    found: dict[str, list[str]] = {}
    for line, dtype, facts in ok.astype(object).itertuples(index=False, name=None):
        lines = found.setdefault(_format(dtype, json.loads(facts) if isinstance(facts, str) else {}), [])
        if line not in lines:
            lines.append(line)
    return found


def _format(dtype: Any, facts: dict[str, Any]) -> str:
    """What it computes in, how its weights are quantised, and by what method if that is known."""
    quantisation = facts.get("quantization")
    method = facts.get("quantization_method")
    if quantisation and method:
        quantisation = f"{quantisation} (made by {method})"
    parts = [str(part) for part in (dtype, quantisation) if isinstance(part, str) and part]
    return ", ".join(dict.fromkeys(parts)) or UNKNOWN
