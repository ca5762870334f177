"""Loads tokenizers from model folders the way engines do. The bundled tokenizer is in data/tokenizer."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SHIPPED_TOKENIZER = Path(__file__).resolve().parent / "data" / "tokenizer"
TOKENIZER_FILES: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER_FILES += ("added_tokens.json", "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return a model folder's tokenizer, which adds special tokens as engines do. Raises ValueError if it has none."""
    stamp = tuple(path.stat().st_mtime_ns for path in tokenizer_files(folder))
    return _load_tokenizer(folder, stamp)


@lru_cache(maxsize=8)
def _load_tokenizer(folder: Path, stamp: tuple[int, ...]) -> Tokenizer:
    tokenizer_json, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if tokenizer_json.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise ValueError(f"model.tokenizer={folder}: its tokenizer.json cannot be read ({error})") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    if not (vocabulary.is_file() and merges.is_file()):
        allowed = "a folder or repository with this file"
        raise ValueError(f"model.tokenizer={folder}: no tokenizer.json; expected {allowed}")
    # GPT-2 and OPT repositories have these two files instead of a tokenizer.json.
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = _configuration(folder)
    if config.get("add_bos_token"):
        bos = _text(config["bos_token"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def ordinary_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of tokens that are printable ASCII text on their own, not special or part of a character."""
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [id for id in sorted(tokenizer.get_vocab().values()) if id not in special]
    texts = tokenizer.decode_batch([[id] for id in ids])
    return [id for id, text in zip(ids, texts, strict=True) if text.strip() and text.isascii() and text.isprintable()]


def special_ids(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Return bos_token_id and, if the tokenizer has them, eos_token_id and pad_token_id."""
    config = _configuration(folder)
    kinds = ("bos_token", "eos_token", "pad_token")
    numbers = {f"{kind}_id": tokenizer.token_to_id(_text(config.get(kind))) for kind in kinds}
    ids = {key: number for key, number in numbers.items() if number is not None}
    if "bos_token_id" not in ids:
        raise ValueError(f"model.tokenizer={folder}: the tokenizer has no bos_token; random weights need one")
    return ids


def template_objection(folder: Path, roles: Sequence[str]) -> str | None:
    """Return why a model's chat template refuses messages with these roles; None if it does not, or is unknown here."""
    file, objections = folder / "chat_template.jinja", list[str]()
    template = file.read_text() if file.is_file() else _configuration(folder).get("chat_template")
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    jinja.globals |= {"raise_exception": objections.append, "add_generation_prompt": True}  # as in transformers
    with suppress(Exception):  # a template may need more than roles
        made = jinja.from_string(template if isinstance(template, str) else "")
        made.render(messages=[{"role": role, "content": "x"} for role in roles], bos_token="", eos_token="")
    return str(objections[0]) if objections else None


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _text(token: Any) -> str:
    """Return the text of a special token, which a tokenizer config holds as a string or a mapping."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
