"""vLLM's LLMEngine, driven by `step` as in vLLM's offline `LLM.generate`, but reporting the tokens of each step."""

import sys
from collections.abc import Mapping, Sequence

import vllm
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from backends.host.library import LibrarySettings, PromptRow, Step


def load(settings: LibrarySettings) -> "VLLMOffline":
    arguments = {
        "model": str(settings.model),
        "dtype": settings.dtype,
        "seed": settings.seed,
        # KV-cache use comes from vLLM's statistics, which cost as much as in vLLM's server.
        "disable_log_stats": False,
        **settings.flags,
    }
    detokenize = bool(arguments.pop("detokenize"))
    arguments = {name: value for name, value in arguments.items() if value is not None}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    return VLLMOffline(engine, detokenize)


class VLLMOffline:
    version = vllm.__version__
    adds_any_time = False

    def __init__(self, engine: LLMEngine, detokenize: bool) -> None:
        self.engine = engine
        self.detokenize = detokenize
        self.rows: dict[str, PromptRow] = {}  # rows by request name

    def add(self, row: PromptRow) -> None:
        name = f"row-{id(row)}"
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=row.max_tokens,
            # The server decides where rows end; `row.ends` includes the model's EOS unless it is ignored.
            ignore_eos=True,
            stop_token_ids=sorted(row.ends) or None,
            detokenize=self.detokenize,
            output_kind=RequestOutputKind.DELTA,
        )
        self.rows[name] = row
        self.engine.add_request(name, TokensPrompt(prompt_token_ids=list(row.prompt)), parameters)

    def step(self) -> Sequence[Step]:
        steps = []
        for output in self.engine.step():
            row = self.rows.get(output.request_id)
            if row is not None:
                if output.finished:
                    del self.rows[output.request_id]
                steps.append(Step(row, output.outputs[0].token_ids))
        return steps

    def drop(self, row: PromptRow) -> None:
        if self.rows.pop(f"row-{id(row)}", None):
            self.engine.abort_request([f"row-{id(row)}"])

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token after a text's first token. Call only while no row is running."""
        scored: dict[str, list[float]] = {}
        for number, text in enumerate(texts):
            parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
            parameters.output_kind = RequestOutputKind.FINAL_ONLY
            self.engine.add_request(f"text-{number}", TokensPrompt(prompt_token_ids=list(text)), parameters)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                entries = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
                scored[output.request_id] = [entry[token].logprob for token, entry in entries]
        return [scored[f"text-{number}"] for number in range(len(texts))]

    def memory(self) -> Mapping[str, float]:
        """Return the engine's statistics under the names that vLLM's server uses, without the prefix."""
        values: dict[str, float] = {}
        for metric in self.engine.get_metrics():
            for position, count in enumerate(getattr(metric, "values", [])):  # a counter with one value per position
                values[f'{metric.name.removeprefix("vllm:")}_total{{position="{position}"}}'] = count
            value = getattr(metric, "value", None)
            if value is not None and metric.name.startswith("vllm:"):
                # The Python interface omits the suffix of the server's counters.
                name = metric.name.removeprefix("vllm:") + ("_total" if type(metric).__name__ == "Counter" else "")
                values[name] = values.get(name, 0.0) + value
        renamed = {"num_requests_running": "requests_running", "num_requests_waiting": "requests_waiting"}
        return values | {ours: values[theirs] for theirs, ours in renamed.items() if theirs in values}

    def clear(self) -> None:
        for row in list(self.rows.values()):
            self.drop(row)
        print("host: dropping the engine's requests", file=sys.stderr)

    def reset_caches(self) -> bool:
        return bool(self.engine.reset_prefix_cache(reset_connector=True))
