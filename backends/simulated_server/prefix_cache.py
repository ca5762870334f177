"""The simulated engine's prefix cache: whole blocks of prompts; the least recently used blocks are dropped."""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks of `block` tokens, each identified by its own tokens and all tokens before it, as in vLLM."""

    def __init__(self, block: int, tokens: int) -> None:
        self._block, self._most = block, tokens // block
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.queries = self.hits = 0  # tokens

    def look_up(self, prompt: Sequence[object]) -> int:
        """Return how many of a prompt's tokens are cached, and keep its blocks; the last token is always computed."""
        start, cached, unbroken = 0, 0, True
        for end in range(self._block, len(prompt) + 1, self._block):
            start = hash((start, tuple(prompt[end - self._block : end])))
            unbroken = unbroken and start in self._blocks and end < len(prompt)
            cached += unbroken * self._block
            self._blocks[start] = None
            self._blocks.move_to_end(start)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        self.queries += len(prompt)
        self.hits += cached
        return cached

    def clear(self) -> None:
        """Forget every block, but keep the counters."""
        self._blocks.clear()
