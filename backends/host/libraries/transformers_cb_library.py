"""transformers' continuous batching: a manager schedules in its own thread, and its queue delivers the tokens."""

import contextlib
import gc
import queue
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from backends.host.libraries.transformers_library import load_model
from backends.host.library import LibrarySettings, PromptRow, Step

WAIT = 1.0  # seconds that one step waits for tokens
# With these settings a module's hooks see every forward pass, and every token of a prompt is computed.
HOOKED: dict[str, Any] = {
    "use_cuda_graph": False,
    "varlen_compile_config": None,
    "decode_compile_config": None,
    "default_compile_level": 0,
    "allow_block_sharing": False,
}


def load(settings: LibrarySettings) -> "TransformersCB":
    flags = dict(settings.flags)
    memory, scheduler = flags.pop("kv_cache"), flags.pop("scheduler")
    model = load_model(settings, flags)
    if "num_blocks" not in scheduler:
        scheduler["num_blocks"] = num_blocks(model, memory, scheduler.get("page_size", 256))
    return TransformersCB(model, scheduler)


def num_blocks(model: Any, memory: Mapping[str, float], page_size: int) -> int:
    """Return how many blocks (a page of tokens per layer) fit into `kv_cache_gib` or `memory_share` of free memory."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    block = page_size * config.num_hidden_layers * 2 * heads * head * model.dtype.itemsize
    if "memory_share" in memory:
        cache_bytes = memory["memory_share"] * torch.cuda.mem_get_info(model.device)[0]
    else:
        cache_bytes = memory["kv_cache_gib"] * 2**30
    blocks = int(cache_bytes // block)
    if blocks < 1:
        raise ValueError(f"the KV cache is too small for one block of {block} bytes; raise its memory")
    print(f"host: KV cache of {blocks} blocks of {block} bytes", file=sys.stderr)
    return blocks


class TransformersCB:
    """A loaded model and its manager."""

    version = transformers.__version__
    adds_any_time = True  # the manager's queues are thread-safe

    def __init__(self, model: Any, scheduler: Mapping[str, Any]) -> None:
        self.model = model
        self.scheduler = scheduler
        self.rows: dict[str, PromptRow] = {}
        self.hits = 0
        self.begin()

    def begin(self, **settings: Any) -> None:
        """Start a manager with the model's EOS disabled, since the server decides where rows end."""
        config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1)
        self.manager = self.model.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(**{**self.scheduler, **settings}),
        )
        self.manager.warmup()
        self._count_hits(self.manager.batch_processor.cache)
        self.manager.start()

    def _count_hits(self, cache: Any) -> None:
        """Count the prompt tokens found in the cache, which transformers only logs."""
        search = cache.search_prefix_match

        def counted(request_id: str, prompt_ids: list[int]) -> int:
            length: int = search(request_id, prompt_ids)
            self.hits += length
            return length

        cache.search_prefix_match = counted

    @property
    def _outputs(self) -> "queue.Queue[Any]":
        outputs: queue.Queue[Any] = self.manager.output_router.output_queue
        return outputs

    def add(self, row: PromptRow) -> None:
        name = f"row-{id(row)}"
        self.rows[name] = row
        ends = sorted(row.ends) or -1
        self.manager.add_request(
            list(row.prompt), name, max_new_tokens=row.max_tokens, streaming=True, eos_token_id=ends
        )

    def step(self) -> Sequence[Step]:
        if self.manager.background_thread_status.fatal_error is not None and self._outputs.empty():
            # All outputs of this manager have been read. Rows added after it ended go to the next manager.
            unfinished = list(self.rows.values())
            self.clear()
            for row in unfinished:
                self.add(row)
        outputs = []
        try:
            outputs.append(self._outputs.get(timeout=WAIT))
            while True:
                outputs.append(self._outputs.get_nowait())
        except queue.Empty:
            pass  # no more results for now
        return self._steps(outputs)

    def _steps(self, outputs: Sequence[Any]) -> list[Step]:
        """Return each result's new tokens. A result holds all tokens of its row so far; a row may have many results."""
        steps: list[Step] = []
        counts: dict[str, int] = {}  # tokens in the steps so far; the host adds them to the rows afterwards
        for output in outputs:
            row = self.rows.get(output.request_id)
            if row is None:
                continue
            count = counts.get(output.request_id, len(row.tokens))
            tokens = output.generated_tokens[count:]
            counts[output.request_id] = count + len(tokens)
            if output.is_finished():
                del self.rows[output.request_id]
            steps.append(Step(row, tokens, output.error))
        return steps

    def drop(self, row: PromptRow) -> None:
        if self.rows.pop(f"row-{id(row)}", None):
            self.manager.cancel_request(f"row-{id(row)}")

    def memory(self) -> Mapping[str, float]:
        processor = self.manager.batch_processor
        readings = {"prefix_cache_hits_total": float(self.hits)}
        if processor is not None:
            readings["kv_cache_usage"] = 1.0 - float(processor.cache.compute_free_capacity(relative=True))
        if self.model.device.type == "cuda":
            readings["allocated_memory_bytes"] = torch.cuda.memory_allocated()
            readings["reserved_memory_bytes"] = torch.cuda.memory_reserved()
        return readings

    def reset_caches(self) -> bool:
        """Free the blocks cached from earlier prompts. Return whether the whole cache is free."""
        cache = self.manager.batch_processor.cache
        cache.evict_cached_blocks()
        return bool(cache.compute_free_capacity(relative=True) == 1.0)

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return each text's log-probabilities, without its first token's, from a temporary manager and its cache."""
        self.clear(**HOOKED)
        try:
            return [self._log_probabilities(text) for text in texts]
        finally:
            self.clear()

    def _log_probabilities(self, text: Sequence[int]) -> list[float]:
        row = PromptRow(text, 1, frozenset())
        with logits_of_all_tokens(self.model) as parts:
            self.add(row)
            while self.rows:
                for step in self.step():
                    if step.error:
                        raise RuntimeError(step.error)
        following = torch.tensor([*text[1:]], device=self.model.device)
        chosen = torch.log_softmax(torch.cat(parts)[: len(following)], -1).gather(1, following[:, None])
        return [float(value) for value in chosen[:, 0]]

    def clear(self, **settings: Any) -> None:
        """Replace the manager, since it does not survive an error in its loop."""
        self.rows.clear()
        self.manager.destroy()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self.begin(**settings)


@contextlib.contextmanager
def logits_of_all_tokens(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect every forward pass's logits in float32, even for tokens whose logits the manager does not request."""
    parts: list[torch.Tensor] = []

    def before(model: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {key: value for key, value in keywords.items() if key != "logits_to_keep"}

    def after(model: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        parts.append(output.logits[0].float())
        output.logits = output.logits[:, keywords["logits_indices"]]
        return output

    hooks = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()
