"""The share of prompts that a prefix cache could supply, in whole blocks, as engines keep them."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import cast

from tokenizers import Tokenizer

from sweep.base.records import Prompt, prompt_text

CACHE_BLOCK = 16  # tokens in a block of a prefix cache, if the engine does not state it: vLLM's default on a GPU
TEXT_BLOCK = 64  # characters


def ideal_hits(prompts: Iterable[tuple[int, Iterable[Hashable]]], size: int = CACHE_BLOCK) -> list[int]:
    """Return how many tokens of each prompt an infinite prefix cache would hold, from its tokens and whole blocks.

    `size` is a block's number of tokens. Like an engine, it computes at least the last token of a prompt.
    """
    cached_blocks: set[int] = set()
    hits = []
    for tokens, blocks in prompts:
        start, cached, unbroken = 0, 0, True
        for number, block in enumerate(blocks, 1):
            start = hash((start, block))
            unbroken = unbroken and start in cached_blocks and number * size < tokens
            cached += unbroken * size
            cached_blocks.add(start)
        hits.append(cached)
    return hits


def blocks_of_pieces(pieces: Iterable[tuple[Hashable, int]], size: int = CACHE_BLOCK) -> Iterator[Hashable]:
    """Yield the whole blocks of a prompt; each block lists the pieces it covers and their tokens."""
    block: list[tuple[Hashable, int, int]] = []
    room = size
    for key, tokens in pieces:
        begin = 0
        while begin < tokens:
            taken = min(room, tokens - begin)
            block.append((key, begin, taken))
            begin, room = begin + taken, room - taken
            if not room:
                yield tuple(block)
                block, room = [], size


def blocks_of_ids(ids: Sequence[object], size: int = CACHE_BLOCK) -> Iterator[Hashable]:
    """Yield the whole blocks of a prompt as it is sent."""
    return (tuple(ids[end - size : end]) for end in range(size, len(ids) + 1, size))


def sent_ids(prompt: Prompt, tokenizer: Tokenizer | None, tools: str = "") -> Sequence[int]:
    """Return the token ids of a prompt, behind its tools as in most templates; without a tokenizer, of its words."""
    text = prompt_text(prompt)
    if text is None:
        return cast(tuple[int, ...], prompt)
    text = f"{tools}\n\n{text}" if tools else text
    return [hash(word) for word in text.split()] if tokenizer is None else list(tokenizer.encode(text).ids)


def shared_prefix_share(prompts: Iterable[str]) -> float | None:
    """Return the share of text that repeats the start of an earlier prompt, in whole blocks; None if there is no text.
    Engines cache whole blocks: vLLM's 16 tokens are about as long.
    """
    texts = list(prompts)
    hits = ideal_hits(((len(text) + 1, blocks_of_ids(text, TEXT_BLOCK)) for text in texts), TEXT_BLOCK)
    return sum(hits) / characters if (characters := sum(map(len, texts))) else None
