"""Ollama: launched on GGUF weights if the node has the program; otherwise sweep attaches to a running server."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from backends.base import EnvironmentChoice, Host, Launch
from backends.declarations import FlagRules, LogReading, Traits, Wire
from backends.llamacpp import CONVERTED, GGUF, LlamaCpp, model_context

# Its model is created once the server answers; before that, the engine is not ready.
START = """
"$0" serve & server=$!
trap 'kill $server; wait $server' TERM INT
until "$0" list >/dev/null 2>&1; do kill -0 $server || exit 1; sleep 0.2; done
printf '%s\\n' "$2" > Modelfile
"$0" create "$1" -f Modelfile || { kill $server; exit 1; }
wait $server
"""


class Ollama(LlamaCpp):
    """`flags` are parameters of a Modelfile; `slots` requests run together. Answers end at EOS; prompts are text."""

    flag_rules = FlagRules(
        tables=("ollama",),
        set_by={
            "num-ctx": "model.max_model_len",
            "num-predict": "workload.output_tokens",
            "num-thread": "hardware",
            "temperature": "workload.temperature",
        },
    )
    log = LogReading(
        prefix=r"^(time=\S+ )?(level=[A-Z]+ )?(source=\S+ )?(msg=)?(Error: 500 Internal Server Error: )?",
        out_of_memory=LlamaCpp.log.out_of_memory,
        gpus_unused=(r"no compatible GPUs were discovered",),
    )
    wire = Wire(ready_path="/v1/models/{model}", version_path="/api/version", show_ids={})
    traits = Traits(
        inherits=("OLLAMA_*", "GGML_*"),
        attachable=True,
        continuous_batching=True,
        beam_search=False,
        quantisations="attached: any GGUF; launched: F16, BF16, F32",
    )

    env: EnvironmentChoice = EnvironmentChoice(binary="ollama")
    quantization: Literal["F32", "F16", "BF16"] = "F16"  # parameters of a model that sweep creates at launch
    stop_grace: float = Field(default=5.0, gt=0)
    token_ids: bool = False
    ignores_eos: bool = False
    headers: dict[str, str] = Field(default_factory=dict)
    metrics_path: str | None = None
    metric_names: dict[str, str] = Field(default_factory=dict)

    def command(self, launch: Launch) -> list[str]:
        parameters = {"num_ctx": self._context(launch), "num_thread": launch.threads, **self.flags_on(launch)}
        lines = [f"FROM {launch.model / GGUF}", "TEMPLATE {{ .Prompt }}"]
        lines += [f"PARAMETER {name} {value}" for name, value in parameters.items() if value is not None]
        return ["sh", "-c", START, launch.binary or "ollama", launch.served_name, "\n".join(lines)]

    def environment(self, launch: Launch) -> dict[str, str]:
        ours = {
            "OLLAMA_HOST": f"{launch.host}:{launch.port}",
            "OLLAMA_MODELS": str(launch.model / "ollama"),  # Ollama's copy of the weights, which later launches reuse
            "OLLAMA_NOPRUNE": "1",  # otherwise it removes files that another server is writing to this folder
            "OLLAMA_NUM_PARALLEL": str(self.slots),
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_KEEP_ALIVE": "-1",  # otherwise it unloads the model after five minutes without requests
        }
        return {**ours, **super().environment(launch)}

    def unavailable(self, host: Host) -> str | None:
        missing = self.launches and self.env.binary == "ollama" and "ollama" not in host.executables
        reason = super().unavailable(host)
        if missing and reason is None:
            return (
                "no ollama on PATH: install it, set backend.env.binary=/path/to/ollama, or attach to a "
                "running server with backend.url=http://127.0.0.1:11434 model=NAME"
            )
        return reason

    def _context(self, launch: Launch) -> int:
        return launch.max_model_len or model_context(launch.model)

    def stated(self, get: Callable[[str], dict[str, Any]], model: str) -> dict[str, Any]:
        """Return the model's context length and format, from the list of loaded models."""
        loaded = get("/api/ps").get("models") or []
        names = (model, f"{model}:latest")
        entry: dict[str, Any] = next((entry for entry in loaded if entry["name"] in names), {})
        stored = (entry.get("details") or {}).get("quantization_level")
        return {"max_model_len": entry.get("context_length"), **({} if self.launches else {"quantization": stored})}

    def facts(self, launch: Launch) -> dict[str, Any]:
        if not self.launches:
            return {"prefix_cache": True}
        formats = {"dtype": CONVERTED[self.quantization], "quantization": self.quantization}
        return {**formats, "prefix_cache": True, "slots": self.slots, "max_model_len": self._context(launch)}
