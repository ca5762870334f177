"""The resources that one point needs: peak memory in bytes, and the minimum duration by the roofline model.

The roofline follows S. Williams et al. (2009). Each step reads the weights and the running sequences' KV cache once, at
the memory's bandwidth. It computes two operations per weight and token, at the peak rate of its number format. No
engine is faster. Speculation may yield several tokens per step, which the bound takes into account.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sweep.base.config import Hardware
from sweep.base.records import Request, prompt_text
from sweep.base.wording import duration_text
from sweep.plan.capacity.footprint import GIBIBYTE, RUNTIME, STEP_TOKENS, Sizes
from sweep.plan.plan import Trial

CHARACTERS = 3.9  # characters of English text per token, with a vocabulary of 32,000
SAMPLE = 200  # requests whose lengths are examined


class Lengths(NamedTuple):
    """The token counts of a trial's requests."""

    mean_input: float
    longest_input: float
    mean_output: float
    longest: float  # input plus output


class Demand(NamedTuple):
    """The demand of a point, in bytes and seconds."""

    sizes: Sizes
    sequences: int  # in flight at once
    cache: float  # peak bytes, or bytes reserved
    activations: float  # bytes
    seconds: float  # minimum duration of the whole trial
    request_seconds: float  # minimum duration of one request in that load

    @property
    def total(self) -> float:
        """The peak memory in bytes."""
        return self.sizes.weights + RUNTIME + self.cache + self.activations

    @property
    def fits(self) -> bool:
        """Return whether the point fits in memory. With a fixed-size cache it always does: excess requests wait."""
        return self.sizes.launches and self.total <= self.sizes.memory

    def describe(self) -> str:
        """Describe weights, cache and activations as parts of the memory, and the minimum duration."""
        sizes = self.sizes
        parts = f"{sizes.weights / GIBIBYTE:.1f} GiB weights + {self.cache / GIBIBYTE:.1f} KV cache"
        if sizes.room is not None:
            parts += f" (reserved: {sizes.room:,.0f} tokens)"
        parts += f" + {(self.activations + RUNTIME) / GIBIBYTE:.1f} activations and runtime"
        verdict = "" if self.fits else ": does not fit"
        least = f"{self.seconds:.1f} s" if self.seconds < 10 else duration_text(self.seconds)
        return f"{parts} of {sizes.memory / GIBIBYTE:.1f} GiB{verdict}; at least {least}"


def lengths_of(trial: Trial, tokenizer: Any, cache_dir: Path) -> Lengths:
    """Return the token counts of a trial's first requests, estimated if there is no tokenizer."""
    requests = trial.workload.fetched(cache_dir).requests(tokenizer, min(trial.num_requests, SAMPLE), trial.seed)
    inputs, outputs = input_lengths(trial.workload, requests), [request.output_tokens for request in requests]
    longest = max(a + b for a, b in zip(inputs, outputs, strict=True))
    return Lengths(sum(inputs) / len(inputs), max(inputs), sum(outputs) / len(outputs), longest)


def input_lengths(workload: Any, requests: Sequence[Request]) -> list[int]:
    """Return the input tokens of requests. If they were not counted, tokens are estimated: from words for workloads
    with exact lengths (one word per token), else from the number of characters.
    """
    if all(request.input_tokens >= 0 for request in requests):
        return [request.input_tokens for request in requests]
    texts = [prompt_text(request.prompt) or "" for request in requests]
    if hasattr(workload, "input_tokens"):
        return [len(text.split()) for text in texts]
    return [round(len(text) / CHARACTERS) for text in texts]


def measure(trial: Trial, lengths: Lengths, sizes: Sizes, hardware: Hardware, flags: Mapping[str, Any]) -> Demand:
    """Return the demand of a trial on a deployment of these sizes; `hardware` needs bandwidth and FLOP/s."""
    load, mode = trial.load, trial.mode()
    sequences = min(mode.most_in_flight() or trial.num_requests, trial.num_requests)
    sequences = -(-sequences // sizes.replicas)
    if load.size is None:  # all requests of a lockstep batch arrive at once
        sequences = min(sequences, sizes.streams_at_once or sequences)
    prompt_tokens = sequences * lengths.longest_input
    step_tokens = prompt_tokens if sizes.room is None else min(prompt_tokens, STEP_TOKENS)
    cache = (sizes.room if sizes.room is not None else sequences * lengths.longest) * sizes.per_token
    activations = step_tokens * sizes.activation
    if sizes.room is None:  # during prefill, answers have no KV cache yet
        full = sequences * (lengths.longest - lengths.longest_input) * sizes.per_token
        activations = max(0.0, activations - full)
    mean_tokens = lengths.mean_input + lengths.mean_output
    running = sequences if sizes.room is None else max(1.0, min(sequences, sizes.room / max(1.0, mean_tokens)))
    request = _seconds_of_batch(running, lengths, sizes, hardware, _tokens_per_step(flags))
    seconds = max(request * trial.num_requests / (running * sizes.replicas), mode.last_arrival() or 0.0)
    if load.duration is not None:  # nothing is sent after that time
        seconds = min(seconds, load.duration)
    return Demand(sizes, sequences, cache, activations, seconds, request)


def _seconds_of_batch(
    running: float, lengths: Lengths, sizes: Sizes, hardware: Hardware, tokens_per_step: float
) -> float:
    gpus = sizes.memory / ((hardware.gpu_memory or 1.0) * GIBIBYTE)
    bandwidth = (hardware.bandwidth or 0.0) * 1e9 * gpus
    peak = max(hardware.flops.values())  # the peak of narrower formats, which quantized weights may use
    if sizes.computes_in == "float32":
        peak = hardware.flops.get("float32", peak)
    operations = 2 * sizes.parameters / (peak * 1e12 * gpus)
    prefill = max(sizes.weights / bandwidth, running * lengths.mean_input * operations)
    context = lengths.mean_input + lengths.mean_output / 2
    step = max((sizes.weights + running * context * sizes.per_token) / bandwidth, running * operations)
    return prefill + max(0.0, lengths.mean_output - 1) / tokens_per_step * step


def _tokens_per_step(flags: Mapping[str, Any]) -> float:
    config = next((value for name, value in flags.items() if name.replace("_", "-") == "speculative-config"), None)
    return 1.0 + (config.get("num_speculative_tokens", 0) if isinstance(config, Mapping) else 0)
