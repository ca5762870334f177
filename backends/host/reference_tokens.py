"""`python -m backends.host.reference_tokens`: a model's greedy tokens by transformers, prompt by prompt.

Reads {"model", "device", "prompts": token ids, "tokens"} from stdin and prints one JSON line: the tokens of each prompt
(EOS or not), what ends a sequence, and the dtype: float32, or the model's own where that does not fit into memory.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from backends.host.libraries import transformers_library
from backends.host.library import LibrarySettings, PromptRow
from backends.host.text import Tokenizer

SPARE = 2 * 2**30  # bytes for everything but the weights: libraries, activations and a short KV cache


def dtype_that_fits(model: Path, device: str) -> str:
    """Return float32 if four bytes per parameter fit into free memory, else auto: the checkpoint's own dtype."""
    config = json.loads((model / "config.json").read_text())
    config = {**config, **(config.get("text_config") or {})}
    stored = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "bfloat16").itemsize
    weights = [path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in model.glob(pattern)]
    if device == "cuda":
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    else:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return "float32" if sum(weights) * 4 / stored + SPARE < free else "auto"


def continuations(
    settings: LibrarySettings, prompts: Sequence[Sequence[int]], tokens: int
) -> tuple[str, list[list[int]]]:
    """The dtype of the computation, and `tokens` greedy tokens after each prompt."""
    library = transformers_library.load(settings)
    rows = [PromptRow(prompt, tokens, frozenset()) for prompt in prompts]
    for row in rows:

        def emit(step: Sequence[tuple[int, int]], row: PromptRow = row) -> None:
            for _, token in step:
                if not row.done:
                    row.take(token)

        library.generate([row], emit)
    return str(library.model.dtype).removeprefix("torch."), [row.tokens for row in rows]


def main() -> None:
    job = json.load(sys.stdin)
    model = Path(job["model"])
    dtype = dtype_that_fits(model, job["device"])
    # On GPUs: spread over as many as needed.
    placement = {"device_map": "auto"} if job["device"] == "cuda" else {}
    settings = LibrarySettings(model, job["device"], dtype, 0, {"attn_implementation": "eager", **placement})
    computed, tokens = continuations(settings, job["prompts"], job["tokens"])
    ends = sorted(Tokenizer(model).ends)
    version = transformers_library.Transformers.version
    print(json.dumps({"reference": f"transformers {version} {computed}", "tokens": tokens, "ends": ends}))


if __name__ == "__main__":
    main()
