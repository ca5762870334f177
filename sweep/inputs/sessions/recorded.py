"""Recorded requests: a trace's lengths, with its prefixes and sessions if it has any, or whole conversations."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from tokenizers import Tokenizer

from sweep.base.config import ConfigError
from sweep.base.records import Request, SessionPlaces
from sweep.base.wording import count as counted
from sweep.inputs import rows as files
from sweep.inputs.prompts import turns_of
from sweep.inputs.sessions import conversations
from sweep.inputs.sessions.spans import BRANCH, span_turns
from sweep.inputs.sessions.traces import HASHES, LENGTHS_ALONE, orphans, trace_turns
from sweep.inputs.sessions.turns import SessionWorkload, Turn, repetitions, replay_note
from sweep.inputs.workload import Draw, ExactLengths, content_digest


class Recorded(SessionWorkload, ExactLengths):
    """The recorded requests of a file: conversations, sessions, prompts that share blocks, or only lengths.

    A trace's prompts are random words of exactly the recorded length; they share prefixes as the recorded prompts do.
    """

    file: str  # path of a trace or of conversations: docs/experiments.md has the formats
    order: Literal["file", "random"] = "file"
    skip_unsendable: bool = False  # leave out rows without lengths, e.g. failed requests; false: reject the file
    prefixes: bool = True  # a trace's hash_ids are replayed; false: only its lengths
    block_tokens: PositiveInt | None = None  # tokens that one of hash_ids stands for; null: 512, or Bailian's 16
    answers: Literal["recorded", "live"] = "recorded"  # of conversations, in the history of later turns; live: the
    # engine's own, so each engine gets other prompts
    recorded_tpot: NonNegativeFloat = 0.0  # s per output token that the recorded engine took. It is taken off the times
    # between two turns of a trace, which include the answer, to get their gaps
    speed: PositiveFloat = 1.0  # at 2, times and gaps are half as long
    repeat: PositiveInt = 1  # times that the file is sent; each repetition has its own text

    @property
    def replays(self) -> bool:
        if not self.prefixes or self._is_conversation():
            return self._is_conversation()
        return any(not row.keys().isdisjoint((HASHES, files.PARENT, BRANCH)) for row in self._rows())

    @property
    def needs_token_ids(self) -> bool:
        return self.replays and not (self._is_conversation() or self.is_timed)

    @property
    def is_timed(self) -> bool:
        """Whether the file has conversations with their times."""
        return BRANCH in self._rows()[0]

    @property
    def live(self) -> bool:
        return self.answers == "live"

    def check(self) -> None:
        if self.live:
            problem = (
                f"{self.file} has no conversations turn by turn" * (not self._is_conversation())
                or "workload.started: earlier answers are unknown" * (self.started > 0)
                or "workload.truncate: an answer's length is unknown" * (self.truncate is not None)
                or "answers call tools, whose results are recorded" * any(t.answer.calls for t in self._all_turns(None))
            )
            if problem:
                raise ConfigError(f"workload.answers=live: {problem}; expected recorded")
        columns, rows = files.trace_columns(self._rows()), self._rows()[: files.FIRST_ROWS]
        talks = (turns_of(row[name]) for row in rows if (name := conversations.conversation_column(row)))
        if self.prefixes and columns and any(isinstance(talk, list) for talk in talks):
            problem = f"has both conversations and columns of lengths ({columns.input_tokens})"
            raise ConfigError(f"workload.file={self.file}: {problem}; expected one of them; {LENGTHS_ALONE}")
        if not self.replays:
            self._trace()
            return
        if self.order != "file":
            raise ConfigError(f"workload.order={self.order}: a replay has its file's order; expected file")
        self._all_turns(None)

    def check_count(self, count: int) -> None:
        """Raise ConfigError if a replay needs more turns than the file has; nothing is repeated."""
        if not self.replays:
            return
        turns = self._all_turns(None)
        begun = SessionPlaces.of([Request("", "", 0, parent=turn.parent) for turn in turns]).turns[: self.started]
        left = len(turns) - sum(begun) + len(begun)
        if count > left:
            under_way = f" after what its sessions under way may have sent ({self.started})" if self.started else ""
            problem = f"has {counted(left, 'turn')}{under_way}, and {count} are needed"
            most = f"workload.num_requests may be at most {left}, or raise workload.repeat"
            raise ConfigError(f"workload.file={self.file}: {problem}; {most}")

    def notes(self, cache_dir: Path, tokenizer: Tokenizer | None = None) -> list[str]:
        read = self._conversations() if self._is_conversation() else self._trace()
        rows, faults, *_ = read
        lines = files.omissions(self.file, len(rows) + len(faults), faults, self.path.stat().st_size)
        if not self.replays:
            pairs = self._trace().lengths
            rounds, others = divmod(self.num_requests - 1, len(pairs))
            last = self.lengths(Draw(0, "measured", others + 1))
            inputs, outputs = (rounds * sum(p[i] for p in pairs) + sum(p[i] for p in last) for i in (0, 1))
            sizes = f"of one turn, {inputs:,} input and {outputs:,} output tokens"
            alike = "; no prompt begins like another" * self.unique_header
            return [*lines, f"{self.file}: {counted(self.num_requests, 'session')} {sizes}{alike}"]
        if isinstance(read, files.TraceRows) and (number := orphans(read)):
            problem = f"the parent of {counted(number, 'turn')} is missing or skipped"
            lines.append(f"{self.file}: {problem}; each begins a session")
        return [*lines, f"{self.file}: {replay_note(self, tokenizer)}"]

    def digest(self, cache_dir: Path) -> str:
        return content_digest(self.path)

    def longest_request(self, seed: int = 0) -> tuple[int, int]:
        if self.replays:
            return super().longest_request(seed)
        return max(self._trace().lengths[: None if self.order == "random" else self.num_requests], key=sum)

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        return self._all_turns(tokenizer, count)[:count]

    def most_begun(self) -> int:
        return len(self._all_turns(None))

    @property
    def path(self) -> Path:
        return Path(self.file).expanduser()

    def _rows(self) -> list[files.FileRow]:
        return files.read_rows(self.path, f"workload.file={self.file}", part=True)

    def _is_conversation(self) -> bool:
        rows = self._rows()[: files.FIRST_ROWS]
        return files.trace_columns(rows) is None and any(map(conversations.conversation_column, rows))

    def _conversations(self) -> conversations.ConversationRows:
        return conversations.read_conversations(self.path, f"workload.file={self.file}", self.path.stat().st_mtime_ns)

    def _all_turns(self, tokenizer: Tokenizer | None, count: int | None = None) -> list[Turn]:
        if self._is_conversation():
            turns = conversations.conversation_turns(self._conversations(), tokenizer, count)
            return repetitions(turns, self.repeat, self.speed)
        options = self.skip_unsendable, self.block_tokens, self.recorded_tpot
        turns = _turns_of_trace(self.path, f"workload.file={self.file}", self.path.stat().st_mtime_ns, *options)
        return repetitions(turns, self.repeat, self.speed)

    def _trace(self) -> files.TraceRows:
        return files.read_trace(self.path, f"workload.file={self.file}", self.skip_unsendable)

    def lengths(self, draw: Draw) -> list[tuple[int, int]]:
        pairs = self._trace().lengths
        if self.order == "random":
            return [pairs[i] for i in draw.cycle(len(pairs), "lengths")]
        return [pairs[i % len(pairs)] for i in range(draw.count)]


@lru_cache(maxsize=4)
def _turns_of_trace(path: Path, key: str, changed: int, skip: bool, block: int | None, tpot: float) -> list[Turn]:
    trace = files.read_trace(path, key, skip)
    if trace.columns == files.OTEL:
        return span_turns(trace.rows, trace.lengths, key)
    return trace_turns(trace, block, tpot, key)
