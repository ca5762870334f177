"""The table of docs/backends.md: the features of each backend in conf/backend, most of them read from the code.

`python -m tests.backends_table` makes the document's table anew.
"""

from collections.abc import Sequence

from backends.base import Backend
from backends.installed import configured, names
from sweep.config import ROOT

DOCUMENT = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- table: python -m tests.backends_table -->", "<!-- end of table -->"
# By the backend's module: continuous batching, beam search, and the quantisations of weights and of the KV cache.
VLLM = ("yes", "yes", "GPTQ, AWQ, compressed-tensors, int8, fp8 (GPU), bitsandbytes (GPU); KV: fp8")
FEATURES = {
    "ctranslate2": ("no", "yes", "int8, int16, float16, bfloat16"),
    "exllama": ("yes", "no", "V3: EXL3; V2: GPTQ, EXL2"),
    "llamacpp": ("yes", "no", "GGUF: Q8_0, Q4_K_M, ...; KV: q8_0, q4_0"),
    "lmdeploy": ("yes", "no", "AWQ, GPTQ, SmoothQuant W8A8, fp8; KV: int8, int4"),
    "sglang": ("yes", "no", "GPTQ, AWQ, compressed-tensors, fp8, bitsandbytes, GGUF; KV: fp8"),
    "simulated": ("yes", "no", "none"),
    "tensorrt_llm": ("yes", "yes", "ModelOpt fp8, NVFP4, W4A16 AWQ, W4A8; KV: fp8, NVFP4"),
    "tgi": ("yes", "no", "GPTQ, AWQ, EXL2, Marlin, bitsandbytes, EETQ, fp8; KV: fp8"),
    "transformers": ("no", "yes", "bitsandbytes int8, nf4, fp4"),
    "transformers_cb": ("yes", "no", "bitsandbytes int8, nf4, fp4"),
    "vllm": VLLM,
    "vllm_offline": VLLM,
}
HEADINGS = (
    "backend",
    "file",
    "streaming",
    "native batching",
    "continuous batching",
    "beam search",
    "KV metric",
    "quantisations",
    "GPU needed",
)


def cells(name: str) -> tuple[str, ...]:
    """One row of the table."""
    backend = configured(name)
    if not backend.launches:
        return name, _file(backend), *("as the endpoint" for _ in HEADINGS[2:-1]), "no"
    continuous, beam, quantisations = FEATURES[type(backend).__module__.removeprefix("backends.")]
    return (
        name,
        _file(backend),
        "engine's own stamps" if backend.timed_inside else "yes",
        "list of prompts" if backend.batch_form == "list" else "simultaneous streams",
        continuous,
        beam,
        _metric(backend),
        quantisations,
        _yes(backend.needs_gpu or not _runs_on_cpu(backend)),
    )


def _runs_on_cpu(backend: Backend) -> bool:
    return bool(backend.env.cpu or backend.env.python or backend.env.binary)


def _file(backend: Backend) -> str:
    return f"`{type(backend).__module__.replace('.', '/')}.py`"


def _metric(backend: Backend) -> str:
    """The KV cache's metric: its use, its size, or only the device's memory."""
    if "kv_cache_usage" in backend.metric_names:
        return "usage"
    return "bytes" if "kv_cache_bytes" in backend.metric_names else "memory only"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def table() -> str:
    """The table in Markdown, one row a backend."""
    rows: list[Sequence[str]] = [HEADINGS, ["---"] * len(HEADINGS), *(cells(name) for name in names())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(text: str) -> str:
    """A document with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
