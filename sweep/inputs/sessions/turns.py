"""Sessions as data: turns, their requests, and the share of their input that a prefix cache could supply.

A turn's prompt is a list of pieces or of messages. A piece has a key and a length: its tokens are a pseudo-random
function of seed and key, so two prompts share exactly what their leading pieces share. They are sent as token ids, so
that neither a tokenizer nor a template moves the boundary of a block. Messages add to the history of the turn before.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from sweep.base.config import ConfigError
from sweep.base.records import LIVE, UNKNOWN, Message, Phase, Prompt, Request, SessionPlaces, live_answer, most_at_once
from sweep.base.wording import count as counted
from sweep.inputs.sessions.prefix_hits import blocks_of_ids, blocks_of_pieces, ideal_hits, sent_ids
from sweep.inputs.workload import HEADER_WORDS, Draw, Workload, header_words

MOST_EXAMINED = 1000  # turns with messages that a plan examines
RECENT_PIECES = 20_000  # whose tokens are kept while requests are made
MOST_CONTEXT = 1 << 31  # tokens, if a context is unknown
MESSAGE_TOKENS = 8  # that a chat template adds to a message, at most


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
    has_history: bool = False  # whether the messages are the whole prompt, not only what is new
    tools: str = ""  # definitions of tools, as of a Request
    answer: Message = Message("assistant", "")  # the recorded one, which the turns that follow have in their history
    pinned: int = 0  # leading pieces that are never left out: a system prompt
    repetition: int = 0  # of the file, if it is repeated
    truncated: bool = False  # whether its oldest pieces were left out

    @property
    def input_tokens(self) -> int:
        """The tokens of the prompt; 0 if it consists of messages, which only a tokenizer can count."""
        return sum(piece.tokens for piece in self.pieces)


class PieceTexts:
    """The tokens of pieces: plain words, one token each, that depend on seed, phase, salt and key alone."""

    def __init__(self, tokenizer: Tokenizer | None, seed: int, phase: Phase, salt: str) -> None:
        lead, words = header_words(tokenizer)
        self._name, self.words = f"{seed}/{phase}/pieces{salt}", words
        self._ids: list[int] | None = None
        if tokenizer is not None:
            encodings = tokenizer.encode_batch_fast([lead + word for word in words], add_special_tokens=False)
            self._ids = [each.ids[-1] for each in encodings]
        self._of = lru_cache(RECENT_PIECES)(self._draw)

    def prompt(self, pieces: Iterable[Piece]) -> Prompt:
        """Return a prompt as token ids; without a tokenizer, as words."""
        indices = np.concatenate([self._of(piece.key, piece.tokens) for piece in pieces]).tolist()
        if self._ids is None:
            return " ".join(self.words[index % len(self.words)] for index in indices)
        return tuple(self._ids[index % len(self._ids)] for index in indices)

    def header(self, repetition: int = 0) -> str:
        """Return the words with which every conversation of the trial begins, or of a repetition of its file."""
        key = ("header", repetition) if repetition else "header"
        return " ".join(self.words[index % len(self.words)] for index in self._of(key, HEADER_WORDS).tolist())

    def _draw(self, key: Hashable, tokens: int) -> NDArray[np.uint32]:
        name = hashlib.sha256(f"{self._name}/{key}".encode()).digest()[:16]
        return (np.random.PCG64(int.from_bytes(name, "little")).random_raw(tokens) >> np.uint64(40)).astype(np.uint32)


def check_sendable(text: str) -> None:
    """Raise ValueError for a text that no request can hold, or with the mark of a live answer."""
    if LIVE in text:
        raise ValueError("the character U+FDD0 in a turn; expected text without it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate in a turn; expected valid Unicode") from None


def session_requests(
    turns: Sequence[Turn],
    tokenizer: Tokenizer | None,
    seed: int,
    phase: Phase,
    salt: str,
    models: Sequence[str | None],
    fit: "ContextFit | None" = None,
    live: bool = False,
) -> list[Request]:
    """Return the requests of these turns; parents come first, and all turns of a session go to its first model.

    If answers are `live`, those in the history are the engine's own, which the client fills in. Raises ValueError for a
    conversation that does not fit.
    """
    texts = PieceTexts(tokenizer, seed, phase, salt)
    histories: dict[int, tuple[Message, ...]] = {}
    requests: list[Request] = []
    for number, turn in enumerate(turns):
        truncated = turn.truncated
        if turn.pieces:
            prompt: Prompt = texts.prompt(turn.pieces)
        else:
            header = texts.header(turn.repetition)
            messages = (() if turn.has_history else histories.get(turn.parent, ())) + turn.messages
            histories[number] = (*messages, turn.answer)
            fitting = messages if fit is None else fit.messages(messages, turn, header, tokenizer)
            truncated = len(fitting) < len(messages)
            prompt = with_header(_with_live_answers(fitting, turns, number) if live else fitting, header)
        is_open = tokenizer is None or (live and turn.parent != UNKNOWN)
        tokens = UNKNOWN if is_open else len(sent_ids(prompt, tokenizer, turn.tools))
        model = models[number] if turn.parent == UNKNOWN else requests[turn.parent].model
        request_id = f"{phase}-{seed:x}-{number}"
        place = turn.parent, turn.gap, truncated, turn.tools
        requests.append(Request(request_id, prompt, turn.output_tokens, tokens, phase, model, *place))
    return requests


def _with_live_answers(messages: tuple[Message, ...], turns: Sequence[Turn], number: int) -> tuple[Message, ...]:
    """Return the messages of a turn's whole conversation, with marks for the answers in its history."""
    sent, end = list(messages), len(messages)
    while (turn := turns[number]).parent != UNKNOWN:
        end, number = end - len(turn.messages) - 1, turn.parent
        sent[end] = Message("assistant", live_answer(number))
    return tuple(sent)


def with_header(messages: tuple[Message, ...], header: str) -> tuple[Message, ...]:
    """Return the messages of a conversation behind a header, in the first of them."""
    first = messages[0]
    return (first._replace(content=f"{header}\n\n{first.content}"), *messages[1:])


class ContextFit(NamedTuple):
    """How turns are made to fit a model's context."""

    context: int  # tokens of a prompt and its answer together
    truncate: Literal["oldest"] | None

    def pieces(self, turn: Turn) -> Turn:
        """Return a turn without the oldest pieces that exceed the context; pinned pieces and the newest always stay."""
        pieces, excess = list(turn.pieces), turn.input_tokens + turn.output_tokens - self.context
        if self.truncate is None or excess <= 0 or not pieces:
            return turn
        end = turn.pinned
        while excess > 0 and end < len(pieces) - 1:
            excess -= pieces[end].tokens
            end += 1
        return turn._replace(pieces=(*pieces[: turn.pinned], *pieces[end:]), truncated=True)

    def too_long(self, messages: Sequence[Message], turn: Turn, header: str, tokenizer: Tokenizer) -> bool:
        """Return whether a conversation and its answer, with what a template may add, do not fit."""
        tokens = len(sent_ids(with_header(tuple(messages), header), tokenizer, turn.tools))
        return tokens + MESSAGE_TOKENS * len(messages) + turn.output_tokens > self.context

    def messages(
        self, messages: tuple[Message, ...], turn: Turn, header: str, tokenizer: Tokenizer | None
    ) -> tuple[Message, ...]:
        """Return the messages without the oldest exchanges that exceed the context; a system message stays.

        Raises ConfigError if the newest exchange alone is too long, or `truncate` is not set.
        """
        system_messages = sum(message.role == "system" for message in messages[:1])
        while tokenizer is not None and self.too_long(messages, turn, header, tokenizer):
            asked = [index for index, message in enumerate(messages) if message.role == "user"]
            if self.truncate is None or len(asked) < 2:
                remedy = "" if self.truncate else "; workload.truncate=oldest leaves out the oldest messages"
                raise ConfigError(f"a conversation exceeds the context of {self.context} tokens{remedy}")
            messages = (*messages[:system_messages], *messages[asked[1] :])
        return messages


def repetitions(turns: list[Turn], times: int, speed: float) -> list[Turn]:
    """Return the turns `times` over, with shorter gaps at a higher speed.

    Each repetition has its own text, so it shares nothing with the others, and as much within itself as the first.
    """
    if (times, speed) == (1, 1):
        return turns
    return [
        turn._replace(
            parent=turn.parent if turn.parent == UNKNOWN else turn.parent + repetition * len(turns),
            gap=turn.gap / speed,
            pieces=tuple(Piece((repetition, key), n) for key, n in turn.pieces) if repetition else turn.pieces,
            repetition=repetition,
        )
        for repetition in range(times)
        for turn in turns
    ]


class UnderWay(NamedTuple):
    """Turns of which the first sessions have begun before: what is left of them, and what was sent last of each."""

    turns: list[Turn]
    before: list[Turn]


def under_way(turns: Sequence[Turn], sessions: int, seed: int) -> UnderWay:
    """Leave out the turns of the first `sessions` before one drawn at random; a turn without its parent begins anew."""
    places = SessionPlaces.of([Request("", "", 0, parent=turn.parent) for turn in turns])
    shares, passed = Draw(seed, "measured", sessions).fractions("under_way"), Counter[int]()
    numbers, before = dict[int, int](), dict[int, Turn]()
    complete = list(turns)  # with the history of conversations
    remaining: list[Turn] = []
    for index, (turn, session) in enumerate(zip(turns, places.session, strict=True)):
        passed[session] += 1
        if turn.parent != UNKNOWN and turn.messages and not turn.has_history:
            said = (*complete[turn.parent].messages, turns[turn.parent].answer)
            complete[index] = turn._replace(messages=(*said, *turn.messages))
        if session < sessions and passed[session] <= int(shares[session] * places.turns[session]):
            continue
        numbers[index] = len(remaining)
        if turn.parent in numbers or turn.parent == UNKNOWN:
            remaining.append(turn._replace(parent=numbers.get(turn.parent, UNKNOWN)))
        else:
            before[turn.parent] = complete[turn.parent]
            remaining.append(complete[index]._replace(parent=UNKNOWN, gap=0.0))
    return UnderWay(remaining, [turn._replace(parent=UNKNOWN, gap=0.0, output_tokens=1) for turn in before.values()])


class SessionWorkload(Workload):
    """The base of workloads of sessions."""

    truncate: Literal["oldest"] | None = None  # what a turn above the context leaves out; null: it is refused
    context: PositiveInt | None = None  # tokens of a prompt and its answer together; null: the model's context
    started: NonNegativeInt = 0  # sessions under way when a trial begins: each continues at a turn drawn at random
    primed: bool = False  # true: the warm-up sends the latest prompts of those sessions, so that caches have them

    @property
    def replays(self) -> bool:
        return True

    @property
    def needs_token_ids(self) -> bool:
        return self.replays

    @property
    def live(self) -> bool:
        """Whether the engine's own answers stand in the history."""
        return False

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return the first turns, at most `count`; each turn's parent precedes it."""
        raise NotImplementedError

    @property
    def fit(self) -> ContextFit | None:
        return None if self.context is None else ContextFit(self.context, self.truncate)

    def begun(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> UnderWay:
        """Return the first turns to send, at most `count`, and what was sent before."""
        if not self.started:
            return UnderWay(self.session_turns(count, seed, tokenizer), [])
        begun = under_way(self.session_turns(count + self.most_begun(), seed, tokenizer), self.started, seed)
        return begun._replace(turns=begun.turns[:count])

    def most_begun(self) -> int:
        """Return how many further turns the sessions under way have at most."""
        raise NotImplementedError

    def turns_to_send(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return the first turns as they are sent: of sessions under way the rest, and within the context."""
        turns, fit = self.begun(count, seed, tokenizer).turns, self.fit
        return turns if fit is None else [fit.pieces(turn) for turn in turns]

    def starts(self, count: int, seed: int = 0) -> Sequence[int]:
        if not self.replays:
            return super().starts(count)
        return [number for number, turn in enumerate(self.begun(count, seed).turns) if turn.parent == UNKNOWN]

    def longest_gaps(self, count: int, seed: int = 0) -> Sequence[float]:
        return longest_gaps(self.begun(count, seed).turns) if self.replays else super().longest_gaps(count, seed)

    def branches(self, count: int, seed: int) -> int:
        turns = self.begun(count, seed).turns if self.replays else ()
        return most_at_once([Request("", "", 0, parent=turn.parent) for turn in turns])

    def longest_request(self, seed: int = 0) -> tuple[int, int]:
        lengths = ((turn.input_tokens, turn.output_tokens) for turn in self.turns_to_send(self.num_requests, seed))
        return max(lengths, key=sum) if self.needs_token_ids else (0, 0)

    def requests(
        self, tokenizer: Tokenizer | None, count: int, seed: int, phase: Phase = "measured", salt: str = ""
    ) -> list[Request]:
        if not self.replays or not count:
            return super().requests(tokenizer, count, seed, phase, salt)
        turns = self.turns_to_send(count, seed, tokenizer)
        if phase == "warmup":  # nobody waits for its gaps
            turns = [turns[i % len(turns)]._replace(parent=UNKNOWN, gap=0.0) for i in range(count)]
        models = self._models(Draw(seed, phase, len(turns)))
        return session_requests(turns, tokenizer, seed, phase, salt, models, self.fit, self.live)

    def priming(self, tokenizer: Tokenizer | None, count: int, seed: int, salt: str = "") -> list[Request]:
        if not (self.primed and self.replays):
            return []
        fit = self.fit or ContextFit(MOST_CONTEXT, None)
        turns = [fit.pieces(turn) for turn in self.begun(count, seed, tokenizer).before]
        requests = session_requests(turns, tokenizer, seed, "measured", salt, [None] * len(turns), fit)
        return [replace(r, request_id=f"warmup-{seed:x}-primed-{n}", phase="warmup") for n, r in enumerate(requests)]


def longest_gaps(turns: Sequence[Turn]) -> list[float]:
    """Return for each session the longest sum of gaps along a branch, in s."""
    waits, of_session = list[float](), list[float]()
    places = SessionPlaces.of([Request("", "", 0, parent=turn.parent) for turn in turns])
    for turn, session in zip(turns, places.session, strict=True):
        waits.append(turn.gap + (0.0 if turn.parent == UNKNOWN else waits[turn.parent]))
        of_session += [0.0] * (session == len(of_session))
        of_session[session] = max(of_session[session], waits[-1])
    return of_session


def orders_of_roles(workload: SessionWorkload) -> set[tuple[str, ...]]:
    """Return the roles in the first conversations, except those with tools, whose messages have more than a role."""
    requests = workload.requests(None, min(workload.num_requests, MOST_EXAMINED), 0)
    orders = {tuple(each.role for each in request.prompt if isinstance(each, Message)) for request in requests}
    return {roles for roles in orders if "tool" not in roles}


def replay_note(workload: SessionWorkload, tokenizer: Tokenizer | None = None) -> str:
    """Describe a replay: its size, the share of input that a prefix cache could supply, and the longest gaps.

    Messages are counted without a chat template. Raises ConfigError if one of the first conversations does not fit.
    """
    turns, unit = workload.turns_to_send(workload.num_requests), ""
    answers: Sequence[Turn | Request] = turns
    prompts = [(turn.input_tokens, blocks_of_pieces(turn.pieces)) for turn in turns]
    parts = [counted(sum(turn.parent == UNKNOWN for turn in turns), "session"), counted(len(turns), "turn")]
    if not turns[0].pieces:
        answers = requests = workload.requests(tokenizer, min(len(turns), MOST_EXAMINED), 0)
        ids = [sent_ids(request.prompt, tokenizer, request.tools) for request in requests]
        prompts, unit = [(len(each), blocks_of_ids(each)) for each in ids], " words" if tokenizer is None else ""
        parts += [f"of which the first {MOST_EXAMINED:,} have"] * (len(ids) < len(turns))
    if not workload.live:  # otherwise prompts contain the engine's own answers
        tokens, outputs = sum(each for each, _ in prompts), sum(each.output_tokens for each in answers)
        parts.append(f"{tokens:,} input{unit} and {outputs:,} output tokens")
        parts.append(f"an infinite prefix cache supplies {sum(ideal_hits(prompts)) / tokens:.1%} of the input")
    return f"{', '.join(parts)}; gaps of {max(longest_gaps(turns)):.3g} s in the longest session"
