"""Hugging Face transformers: runs `model.generate` on left-padded static batches, with one event per step and row."""

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from backends.host.library import EmitTokens, LibrarySettings, PromptRow


def load(settings: LibrarySettings) -> "Transformers":
    return Transformers(load_model(settings, settings.flags))


def load_model(settings: LibrarySettings, flags: Mapping[str, Any]) -> Any:
    """Load the model onto its device. `flags` are keyword arguments of `from_pretrained`."""
    torch.manual_seed(settings.seed)
    # bitsandbytes logs a cast of its input at every matrix product, which would fill the log.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(lambda record: "will be cast" not in record.msg)
    model = AutoModelForCausalLM.from_pretrained(
        settings.model,
        dtype=settings.dtype,
        local_files_only=True,
        trust_remote_code=False,
        **{"device_map": settings.device, **flags},
    )
    return model.eval()


class Steps(BaseStreamer):  # type: ignore[misc]
    """A streamer. `generate` calls it once with the prompts, of shape (batch, length), then with each step's tokens."""

    def __init__(self, emit: EmitTokens) -> None:
        self.emit = emit
        self.begun = False

    def put(self, value: Any) -> None:
        if self.begun:
            self.emit(list(enumerate(value.tolist())))
        self.begun = True

    def end(self) -> None:
        """Do nothing, since every step has been emitted."""


class RowsDone(StoppingCriteria):  # type: ignore[misc]
    """Ends each row where the server would end it, given the step's tokens, so that no further step is computed."""

    def __init__(self, batch: Sequence[PromptRow], longest: int) -> None:
        self.batch, self.longest = batch, longest

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        count, tokens = input_ids.shape[1] - self.longest, input_ids[:, -1].tolist()
        over = [
            row.done or count >= row.max_tokens or token in row.ends
            for row, token in zip(self.batch, tokens, strict=True)
        ]
        return torch.tensor(over, device=input_ids.device)


class Transformers:
    version = transformers.__version__

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None
        # A model's defaults (sampling, EOS) must not affect a benchmark, and the host decides where rows end.
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def generate(self, batch: Sequence[PromptRow], emit: EmitTokens) -> None:
        longest = max(len(row.prompt) for row in batch)
        padded = [[0] * (longest - len(row.prompt)) + list(row.prompt) for row in batch]
        mask = [[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in batch]
        self.cache = DynamicCache(config=self.model.config)
        try:
            with torch.inference_mode():
                self.model.generate(
                    torch.tensor(padded, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device),
                    max_new_tokens=max(row.max_tokens for row in batch),
                    past_key_values=self.cache,
                    streamer=Steps(emit),
                    stopping_criteria=StoppingCriteriaList([RowsDone(batch, longest)]),
                )
        finally:
            self.cache = None

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return each text's log-probabilities: for every token but the first, given the tokens before it."""
        values = []
        with torch.inference_mode():
            for text in texts:
                ids = torch.tensor([text], device=self.model.device)
                logits = self.model(ids, use_cache=False).logits[0, :-1].float()
                chosen = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])
                values.append(chosen[:, 0].tolist())
        return values

    def memory(self) -> Mapping[str, float]:
        layers = self.cache.layers if self.cache is not None else []
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        readings = {"kv_cache_bytes": float(sum(tensor.nbytes for tensor in tensors))}
        if self.model.device.type == "cuda":
            readings["allocated_memory_bytes"] = torch.cuda.memory_allocated()
            readings["reserved_memory_bytes"] = torch.cuda.memory_reserved()
        return readings

    def clear(self) -> None:
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
