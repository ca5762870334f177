"""The metrics of a trial as defined by `vllm bench serve`, for comparison with published results."""

import math

import numpy as np

from sweep.base.records import Records
from sweep.numbers.chunks import Floats, as_floats, tokens_per_bin
from sweep.numbers.quantile import statistics
from sweep.numbers.quantities.latency import itl, service_e2el, service_ttft
from sweep.numbers.quantity import Value
from sweep.numbers.selection import divided, measured, per_second, succeeded, total_tokens
from sweep.numbers.summarise import gaps

VLLM_VERSION = "0.32.0"  # the vLLM release from which these definitions were taken


def vllm_flavour(records: Records) -> dict[str, Value]:
    """Return the metrics that `vllm bench serve` prints, with its definitions and names (a suffix `_ms` means ms).

    Latencies start when a request is sent; ITL covers every gap between chunks. The peaks are chunks (not tokens)
    received, and requests in flight at some time, in one of the whole seconds since the first request. The duration
    begins with the load (time 0), so it includes the gap before the first request. Where vLLM reports 0 for a missing
    value, the value is None.
    """
    mask = measured(records)
    answered = mask & succeeded(records) & ~np.isnan(service_ttft(records))
    sent, last = as_floats(records.sent)[answered], service_e2el(records)[answered]
    length = float(np.max(sent + last)) if sent.size else None
    output, input_ = total_tokens(records.output_tokens, answered), total_tokens(records.input_tokens, answered)
    row: dict[str, Value] = {
        "vllm_version": VLLM_VERSION,
        "completed": int(answered.sum()),
        "failed": int((mask & ~answered).sum()),
        "duration": length,
        "total_input_tokens": input_,
        "total_output_tokens": output,
        "request_throughput": per_second(sent.size, length),
        "output_throughput": per_second(output, length),
        "total_token_throughput": per_second(output + input_, length) if output and input_ is not None else None,
        "max_output_tokens_per_s": None,
        "max_concurrent_requests": None,
    }
    if sent.size:
        seconds = math.ceil(np.max(sent + last) - sent.min()) + 1
        row["max_output_tokens_per_s"] = float(
            tokens_per_bin(records, answered, float(sent.min()), 1.0, seconds, chunks=True).max()
        )
        started, ended = (sent - sent.min()).astype(int), (sent + last - sent.min()).astype(int)
        change = np.bincount(started, minlength=seconds + 1) - np.bincount(ended + 1, minlength=seconds + 1)
        row["max_concurrent_requests"] = int(np.cumsum(change).max())
    first = service_ttft(records)[answered]
    per_token = divided(last - first, np.asarray(records.output_tokens)[answered] - 1)  # 0 for an answer in one chunk
    series = {"ttft": first, "tpot": per_token, "e2el": last}
    for name, values in series.items():
        row |= _vllm_statistics(name, values * 1e3)
    return row | _vllm_statistics("itl", gaps(itl, records, answered) / 1e3)


def _vllm_statistics(name: str, values: Floats) -> dict[str, Value]:
    values = values[~np.isnan(values)]
    spread = float(values.std()) if values.size else None
    figures = statistics(values, (50, 99))
    return {
        f"mean_{name}_ms": figures["mean"],
        f"median_{name}_ms": figures["p50"],
        f"std_{name}_ms": spread,
        f"p99_{name}_ms": figures["p99"],
    }
