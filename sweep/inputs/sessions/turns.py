"""Sessions as data: turns, their requests, and the share of their input that a prefix cache could supply.

A turn's prompt is a list of pieces or of messages. A piece has a key and a length: its tokens are a pseudo-random
function of seed and key, so two prompts share exactly what their leading pieces share. They are sent as token ids, so
that neither a tokenizer nor a template moves the boundary of a block. Messages add to the history of the turn before.
"""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN, Message, Phase, Prompt, Request, most_at_once, prompt_text
from sweep.base.wording import count as counted
from sweep.inputs.workload import HEADER_WORDS, Draw, Workload, header_words

CACHE_BLOCK = 16  # tokens in a block of a prefix cache, if the engine does not state it: vLLM's default on a GPU
RECENT_PIECES = 20_000  # whose tokens are kept while requests are made


class Piece(NamedTuple):
    """The first tokens of the text that belongs to a key."""

    key: Hashable
    tokens: int


class Turn(NamedTuple):
    """One request of a session: its prompt, the tokens of its answer, and when it is due."""

    output_tokens: int
    parent: int = UNKNOWN  # index of the turn whose answer it follows; UNKNOWN: it begins a session
    gap: float = 0.0  # s from the last byte of that answer, until this turn is due
    pieces: tuple[Piece, ...] = ()  # of the whole prompt
    messages: tuple[Message, ...] = ()  # the new ones, instead of pieces
    answer: str = ""  # the recorded one, which the turns that follow have in their history

    @property
    def input_tokens(self) -> int:
        """The tokens of the prompt; 0 if it consists of messages, which only a tokenizer can count."""
        return sum(piece.tokens for piece in self.pieces)


class PieceTexts:
    """The tokens of pieces: plain words, one token each, that depend on seed, phase, salt and key alone."""

    def __init__(self, tokenizer: Tokenizer | None, seed: int, phase: Phase, salt: str) -> None:
        lead, words = header_words(tokenizer)
        self._name, self.words = f"{seed}/{phase}/pieces{salt}", words
        self._ids = None if tokenizer is None else _single_tokens(tokenizer, lead, words)
        self._of = lru_cache(RECENT_PIECES)(self._draw)

    def prompt(self, pieces: Iterable[Piece]) -> Prompt:
        """Return a prompt as token ids; without a tokenizer, as words."""
        indices = np.concatenate([self._of(piece.key, piece.tokens) for piece in pieces]).tolist()
        if self._ids is None:
            return " ".join(self.words[index % len(self.words)] for index in indices)
        return tuple(self._ids[index % len(self._ids)] for index in indices)

    def header(self) -> str:
        """Return the words with which every conversation of the trial begins."""
        return " ".join(self.words[index % len(self.words)] for index in self._of("header", HEADER_WORDS).tolist())

    def _draw(self, key: Hashable, tokens: int) -> NDArray[np.uint32]:
        name = hashlib.sha256(f"{self._name}/{key}".encode()).digest()[:16]
        return (np.random.PCG64(int.from_bytes(name, "little")).random_raw(tokens) >> np.uint64(40)).astype(np.uint32)


def _single_tokens(tokenizer: Tokenizer, lead: str, words: Sequence[str]) -> list[int]:
    """Return the token id that each word has inside a text."""
    encodings = tokenizer.encode_batch_fast([lead + word for word in words], add_special_tokens=False)
    return [encoding.ids[-1] for encoding in encodings]


def session_requests(
    turns: Sequence[Turn], tokenizer: Tokenizer | None, seed: int, phase: Phase, salt: str, models: Sequence[str | None]
) -> list[Request]:
    """Return the requests of these turns; parents come first, and all turns of a session go to its first model."""
    texts = PieceTexts(tokenizer, seed, phase, salt)
    histories: dict[int, tuple[Message, ...]] = {}
    requests: list[Request] = []
    for number, turn in enumerate(turns):
        if turn.pieces:
            prompt: Prompt = texts.prompt(turn.pieces)
        else:
            prompt = histories.get(turn.parent, ()) + turn.messages
            if turn.parent == UNKNOWN:
                first = turn.messages[0]
                prompt = (first._replace(content=f"{texts.header()}\n\n{first.content}"), *turn.messages[1:])
            histories[number] = (*prompt, Message("assistant", turn.answer))
        tokens = UNKNOWN if tokenizer is None else len(sent_ids(prompt, tokenizer))
        model = models[number] if turn.parent == UNKNOWN else requests[turn.parent].model
        request_id = f"{phase}-{seed:x}-{number}"
        requests.append(Request(request_id, prompt, turn.output_tokens, tokens, phase, model, turn.parent, turn.gap))
    return requests


class SessionWorkload(Workload):
    """The base of workloads of sessions."""

    @property
    def replays(self) -> bool:
        return True

    @property
    def needs_token_ids(self) -> bool:
        return self.replays

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return the first turns, at most `count`; each turn's parent precedes it."""
        raise NotImplementedError

    def starts(self, count: int, seed: int = 0) -> Sequence[int]:
        if not self.replays:
            return super().starts(count)
        return [number for number, turn in enumerate(self.session_turns(count, seed)) if turn.parent == UNKNOWN]

    def branches(self, count: int, seed: int) -> int:
        turns = self.session_turns(count, seed) if self.replays else ()
        return most_at_once([Request("", "", 0, parent=turn.parent) for turn in turns])

    def longest_request(self, seed: int = 0) -> tuple[int, int]:
        lengths = ((turn.input_tokens, turn.output_tokens) for turn in self.session_turns(self.num_requests, seed))
        return max(lengths, key=sum) if self.needs_token_ids else (0, 0)

    def requests(
        self, tokenizer: Tokenizer | None, count: int, seed: int, phase: Phase = "measured", salt: str = ""
    ) -> list[Request]:
        if not self.replays or not count:
            return super().requests(tokenizer, count, seed, phase, salt)
        turns = self.session_turns(count, seed, tokenizer)
        if phase == "warmup":  # nobody waits for its gaps
            turns = [turns[i % len(turns)]._replace(parent=UNKNOWN, gap=0.0) for i in range(count)]
        return session_requests(turns, tokenizer, seed, phase, salt, self._models(Draw(seed, phase, len(turns))))


# What a prefix cache could answer -------------------------------------------------------------------------------------


def ideal_hits(prompts: Iterable[tuple[int, Iterable[Hashable]]], size: int = CACHE_BLOCK) -> list[int]:
    """Return how many tokens of each prompt an infinite prefix cache would hold, from its tokens and whole blocks.

    `size` is a block's number of tokens.

    Like an engine, it computes at least the last token of a prompt.
    """
    known: set[int] = set()
    hits = []
    for tokens, blocks in prompts:
        start, cached, unbroken = 0, 0, True
        for number, block in enumerate(blocks, 1):
            start = hash((start, block))
            unbroken = unbroken and start in known and number * size < tokens
            cached += unbroken * size
            known.add(start)
        hits.append(cached)
    return hits


def recorded_texts(turns: Sequence[Turn], header: str) -> list[str]:
    """Return each turn's recorded conversation as one text, after the trial's header."""
    texts: list[str] = []
    for turn in turns:
        before = header if turn.parent == UNKNOWN else f"{texts[turn.parent]}\n\n{turns[turn.parent].answer}"
        texts.append("\n\n".join([before, *(message.content for message in turn.messages)]))
    return texts


def blocks_of_turn(turn: Turn, size: int = CACHE_BLOCK) -> Iterator[Hashable]:
    """Yield the whole blocks of a prompt; each block lists the pieces it covers and their tokens."""
    block: list[tuple[Hashable, int, int]] = []
    room = size
    for key, tokens in turn.pieces:
        begin = 0
        while begin < tokens:
            taken = min(room, tokens - begin)
            block.append((key, begin, taken))
            begin, room = begin + taken, room - taken
            if not room:
                yield tuple(block)
                block, room = [], size


def blocks_of_ids(ids: Sequence[int], size: int = CACHE_BLOCK) -> Iterator[Hashable]:
    """Yield the whole blocks of a prompt as it is sent."""
    return (tuple(ids[end - size : end]) for end in range(size, len(ids) + 1, size))


def sent_ids(prompt: Prompt, tokenizer: Tokenizer | None) -> Sequence[int]:
    """Return the token ids of a prompt; a text is encoded or, without a tokenizer, cut into words."""
    text = prompt_text(prompt)
    if text is None:
        return cast(tuple[int, ...], prompt)
    return [hash(word) for word in text.split()] if tokenizer is None else list(tokenizer.encode(text).ids)


def replay_note(turns: Sequence[Turn]) -> str:
    """Describe the replay: its size, the share of input that a prefix cache could supply, and the longest gaps."""
    waits: list[float] = []
    for turn in turns:
        waits.append(turn.gap + (0.0 if turn.parent == UNKNOWN else waits[turn.parent]))
    sessions = sum(turn.parent == UNKNOWN for turn in turns)
    tokens = sum(turn.input_tokens for turn in turns)
    parts = [counted(sessions, "session"), counted(len(turns), "turn")]
    if tokens:
        rate = sum(ideal_hits((turn.input_tokens, blocks_of_turn(turn)) for turn in turns)) / tokens
        parts.append(f"{tokens:,} input and {sum(turn.output_tokens for turn in turns):,} output tokens")
        parts.append(f"an infinite prefix cache supplies {rate:.1%} of the input")
    return f"{', '.join(parts)}; gaps of {max(waits):.3g} s in the longest session"
