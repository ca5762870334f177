"""Converts text to token ids and back, with `tokenizers`, or with transformers if there is no tokenizer.json."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

LONGEST_CHARACTER = 4  # maximum bytes of a character in UTF-8, and so its maximum byte tokens


class Tokenizer:
    """A model's tokenizer with its special tokens, plus the end tokens and context length from the model's config."""

    def __init__(self, model: Path) -> None:
        self.backend = _backend(model)
        config = _json(model / "config.json")
        config = config.get("text_config") or config
        ends = _json(model / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.context: int | None = config.get("max_position_embeddings")
        self.vocabulary: int = config.get("vocab_size") or self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Return the text of these tokens, with or without special tokens."""
        text: str = self.backend.decode(tokens, skip_special_tokens=not special)
        return text


class Detokenizer:
    """Decodes a sequence token by token at constant cost per token, and withholds an incomplete character."""

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self.decode = partial(tokenizer.decode, special=special)
        # Emitted tokens, as context (a token's text can depend on its predecessor), then withheld tokens.
        self.window: list[int] = []
        self.emitted = 0  # number of emitted tokens in the window
        self.emitted_text = ""

    def add(self, token: int) -> str:
        self.window.append(token)
        text = self.decode(self.window)
        if text.endswith("\ufffd") and len(self.window) - self.emitted < LONGEST_CHARACTER:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """Return the text still withheld at the end of the sequence."""
        return self._emit(self.decode(self.window)) if len(self.window) > self.emitted else ""

    def _emit(self, text: str) -> str:
        new = text[len(self.emitted_text) :]
        self.window = self.window[self.emitted :]
        self.emitted = len(self.window)
        self.emitted_text = self.decode(self.window)
        return new


def _backend(model: Path) -> Any:
    if (model / "tokenizer.json").exists():
        from tokenizers import Tokenizer as Backend

        return Backend.from_file(str(model / "tokenizer.json"))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False).backend_tokenizer


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
