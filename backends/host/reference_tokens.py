"""`python -m backends.host.reference_tokens`: greedy tokens and log-probabilities from transformers, as a reference.

Reads {"model", "device", "prompts": token ids, "tokens", "texts": token ids} from stdin and prints one JSON line. It
has the tokens (never an end token), the log-probabilities of each text's tokens but the first, the end tokens, and the
dtype. That is float32, or the model's dtype if float32 does not fit into memory.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from backends.host.libraries import transformers_library
from backends.host.library import LibrarySettings, PromptRow
from backends.host.text import Tokenizer

SPARE = 2 * 2**30  # bytes reserved for everything but the weights: libraries, activations and a short KV cache
AT_ONCE = 32  # maximum prompts per batch; batching changes no answer in float32
TOKENS_AT_ONCE = 8192  # tokens per batch, including padding and answers: 4 GiB of KV cache for Llama-2-7B in two bytes


def dtype_that_fits(model: Path, device: str) -> str:
    """Return "float32" if four bytes per parameter fit into free memory, else "auto" (the checkpoint's dtype)."""
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


def fitting_batches(rows: Iterable[PromptRow]) -> Iterator[list[PromptRow]]:
    """Yield batches that fit in memory with the weights. A batch's rows have similar lengths, for little padding."""
    batch: list[PromptRow] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        padded = (len(batch) + 1) * (len(row.prompt) + row.max_tokens)
        if batch and (len(batch) == AT_ONCE or padded > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def continuations(
    library: transformers_library.Transformers, prompts: Sequence[Sequence[int]], tokens: int
) -> list[list[int]]:
    """Return `tokens` greedily decoded tokens for each prompt."""
    rows = [PromptRow(prompt, tokens, frozenset()) for prompt in prompts]
    for batch in fitting_batches(rows):

        def emit(step: Sequence[tuple[int, int]], batch: Sequence[PromptRow] = batch) -> None:
            for place, token in step:
                if not batch[place].done:
                    batch[place].take(token)

        library.generate(batch, emit)
    return [row.tokens for row in rows]


def main() -> None:
    job = json.load(sys.stdin)
    model = Path(job["model"])
    dtype = dtype_that_fits(model, job["device"])
    # On GPUs, spread the model over as many as it needs.
    placement = {"device_map": "auto"} if job["device"] == "cuda" else {}
    settings = LibrarySettings(model, job["device"], dtype, 0, {"attn_implementation": "eager", **placement})
    library = transformers_library.load(settings)
    ends = sorted(Tokenizer(model).ends)
    library.model.generation_config.suppress_tokens = ends or None
    computed = str(library.model.dtype).removeprefix("torch.")
    answer = {
        "made_by": f"transformers {library.version} {computed}",
        "tokens": continuations(library, job["prompts"], job["tokens"]),
        "log_probabilities": library.log_probabilities(job["texts"]),
        "ends": ends,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
