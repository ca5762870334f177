"""Number formats in which each engine computed and stored its weights: a speed means little without them."""

import json
from typing import Any

from analysis.load import Run
from analysis.points import Layout


def number_formats(run: Run, layout: Layout) -> dict[str, list[str]]:
    """The lines measured in each format, e.g. `bfloat16, bitsandbytes nf4`."""
    ok = layout.placed(run.ok)[["line", "dtype", "engine_facts"]].drop_duplicates()
    formats: dict[str, list[str]] = {}
    for line, dtype, facts in ok.astype(object).itertuples(index=False, name=None):
        lines = formats.setdefault(_format(dtype, json.loads(facts) if isinstance(facts, str) else {}), [])
        if line not in lines:
            lines.append(line)
    return formats


def _format(dtype: Any, facts: dict[str, Any]) -> str:
    """The data type of the computation, the quantisation of the weights, and its method if known."""
    quantisation, method = facts.get("quantization"), facts.get("quantization_method")
    if quantisation and method:
        quantisation = f"{quantisation} (made by {method})"
    parts = [part for part in (dtype, quantisation) if isinstance(part, str) and part]
    return ", ".join(dict.fromkeys(parts)) or "unknown"
