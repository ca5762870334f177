"""ExLlamaV2 or ExLlamaV3, whichever is installed. Its dynamic generator schedules; one `iterate` call is a step."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.host.library import LibrarySettings, PromptRow, Step

PAGE = 256  # tokens per cache page in both versions; a cache's size is a multiple of it


def load(settings: LibrarySettings) -> "ExLlama":
    flags = dict(settings.flags)
    pages = -(-int(flags.pop("cache_tokens")) // PAGE)
    if importlib.util.find_spec("exllamav2") is not None:
        return _load_v2(settings, pages * PAGE, flags)
    if importlib.util.find_spec("exllamav3") is not None:
        return _load_v3(settings, pages * PAGE, flags)
    raise ModuleNotFoundError("neither exllamav2 nor exllamav3 is in this environment")


def _load_v2(settings: LibrarySettings, cache_tokens: int, flags: Mapping[str, Any]) -> "ExLlama":
    import exllamav2
    from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

    config = exllamav2.ExLlamaV2Config(str(settings.model))
    config.arch_compat_overrides()
    model = exllamav2.ExLlamaV2(config)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=cache_tokens, lazy=True)
    model.load_autosplit(cache)
    tokenizer = exllamav2.ExLlamaV2Tokenizer(config)
    generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=tokenizer, **flags)
    greedy = ExLlamaV2Sampler.Settings.greedy()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = model.forward(ids)
        return scores

    def job(row: PromptRow) -> Any:
        return ExLlamaV2DynamicJob(gen_settings=greedy, **_job_arguments(row))

    def used() -> float:
        return float(len(generator.referenced_pages) / generator.max_pages)

    return ExLlama(f"{exllamav2.__version__}", generator, job, used, generator, logits)


def _load_v3(settings: LibrarySettings, cache_tokens: int, flags: Mapping[str, Any]) -> "ExLlama":
    import exllamav3
    from exllamav3.version import __version__

    config = exllamav3.Config.from_directory(str(settings.model))
    model = exllamav3.Model.from_config(config)
    cache = exllamav3.Cache(model, max_num_tokens=cache_tokens)
    model.load()
    tokenizer = exllamav3.Tokenizer.from_config(config)
    generator = exllamav3.Generator(model=model, cache=cache, tokenizer=tokenizer, **flags)
    greedy = exllamav3.GreedySampler()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        """Return logits without the cache and without the vocabulary's padding, as ExLlama's eval/ppl.py does."""
        scores: torch.Tensor = model.forward(ids, {"attn_mode": "flash_attn_nc"})
        return scores[..., : tokenizer.actual_vocab_size]

    def job(row: PromptRow) -> Any:
        return exllamav3.Job(sampler=greedy, **_job_arguments(row))

    def used() -> float:
        stats = generator.get_cache_stats()
        return float(stats["used_tokens"] / stats["max_tokens"])

    return ExLlama(__version__, generator, job, used, generator.pagetable, logits)


def _job_arguments(row: PromptRow) -> dict[str, Any]:
    """Return the job arguments that both versions share. Prompts have shape (1, tokens)."""
    return {
        "input_ids": torch.tensor([list(row.prompt)]),
        "max_new_tokens": row.max_tokens,
        "stop_conditions": sorted(row.ends),
        "decode_special_tokens": True,
    }


class ExLlama:
    """A loaded model and its generator."""

    adds_any_time = False

    def __init__(
        self,
        version: str,
        generator: Any,
        job: Callable[[PromptRow], Any],
        used: Callable[[], float],
        pages: Any,
        logits: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.version = version
        self.generator = generator
        self.job = job
        self.used = used  # returns the share of the cache in use
        self.pages = pages  # the object with the pages of earlier prompts: V2's generator or V3's page table
        self.logits = logits  # maps ids of shape (1, tokens) to shape (1, tokens, vocabulary)
        self.rows: dict[Any, PromptRow] = {}  # rows by job

    def add(self, row: PromptRow) -> None:
        job = self.job(row)
        self.rows[job] = row
        self.generator.enqueue(job)

    def step(self) -> Sequence[Step]:
        results = self.generator.iterate()
        return [step for result in results if (step := self._step(result)) is not None]

    def _step(self, result: Mapping[str, Any]) -> Step | None:
        """Convert a result to a step. "started" and "prefill" have no tokens; "error" (V3) ends only its job."""
        row = self.rows.get(result["job"])
        if row is None or result["stage"] not in ("streaming", "error"):
            return None
        if result["eos"]:
            del self.rows[result["job"]]
        if result["stage"] == "error":
            return Step(row, [], f"{type(result['error']).__name__}: {result['error']}")
        tokens = result["token_ids"].flatten().tolist() if "token_ids" in result else []
        if result.get("eos_reason") == "stop_token":  # the generator withholds this token
            tokens = [*tokens, result["eos_triggering_token_id"]]
        return Step(row, tokens)

    def drop(self, row: PromptRow) -> None:
        for job in [job for job, other_row in self.rows.items() if other_row is row]:
            self.generator.cancel(job)
            del self.rows[job]

    def memory(self) -> Mapping[str, float]:
        return {
            "kv_cache_usage": self.used(),
            "allocated_memory_bytes": torch.cuda.memory_allocated(),
            "reserved_memory_bytes": torch.cuda.memory_reserved(),
        }

    def reset_caches(self) -> bool:
        """Clear the cached pages of earlier prompts. Return False if V3 is configured to keep pages elsewhere too."""
        self.pages.reset_page_table()
        return not any(getattr(self.generator, name, None) for name in ("cpu_page_cache", "recurrent_cache"))

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return each text's log-probabilities: for every token but the first, given the tokens before it."""
        with torch.inference_mode():
            return [self._log_probabilities(text) for text in texts]

    def _log_probabilities(self, text: Sequence[int]) -> list[float]:
        scores = self.logits(torch.tensor([list(text)]))[0, :-1].float()
        following = torch.tensor([[token] for token in text[1:]], device=scores.device)
        chosen: list[float] = torch.log_softmax(scores, -1).gather(1, following)[:, 0].tolist()
        return chosen

    def clear(self) -> None:
        self.generator.clear_queue()
        self.rows.clear()
        torch.cuda.empty_cache()
