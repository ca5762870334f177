"""The files exchanged between the client and its measuring process: the job, and the resulting rows and chunks.

Results are written as they arrive: one fixed-size row per request, and its chunks. So memory use does not grow.
"""

import json
import os
import pickle
import re
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from sweep.base.records import LIVE, UNKNOWN, Timeouts
from sweep.client import wire
from sweep.client.modes import Dispatch, Mode

ROW = struct.Struct("<IiqqqqqqIiiiqiiiiiiii?")
NO_REASONING = -2  # a row's `answer_us` if the answer has no reasoning
SPILL = 1 << 16  # chunks kept in memory before they go to the files
TEXTS = 64  # answers per trial whose text is stored to check the server's token count
_MARK = re.escape(json.dumps(LIVE)[1:-1].encode())
LIVE_ANSWER = re.compile(_MARK + rb"(\d+)" + _MARK)


class PackedRow(NamedTuple):
    """A request's results as `ROW` packs them. Times are in ns, UNKNOWN if the request was never sent.

    Chunks and texts are in separate files, in the order of the rows. A text index of -1 means no text.
    """

    record: int
    batch: int
    scheduled: int  # UNKNOWN if there is no schedule
    released: int
    sent: int
    ended: int
    connecting: int  # this and the next stamp: UNKNOWN for a reused connection
    connected: int
    chunks: int
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    answer_us: int  # UNKNOWN if no text followed the reasoning
    text_bytes: int  # UNKNOWN if the text was not stored
    token_source: int  # this and the next three: indices of the text table
    finish_reason: int
    error: int
    served_model: int
    cached_tokens: int
    characters: int
    text_hash: int
    closed: bool


@dataclass
class Job:
    """The calls of one trial, numbered: warm-up calls, then measured calls. `open` reads one process's part.

    A call that follows the answer to another call is a turn of the same session; every other call begins a session.
    """

    target: wire.Target
    timeouts: Timeouts
    mode: Mode
    parts: int
    cpus: set[int] | None
    keeps_texts: bool = False  # whether to store the text of all answers, because the server does not count tokens
    progress_every: float | None = None  # s between two reports of the progress to the parent; None: no reports
    warmup_calls: int = 0
    offsets: "array[int]" = field(default_factory=lambda: array("Q", [0]))  # positions in the file of requests
    prompts: "array[int]" = field(default_factory=lambda: array("I"))  # prompts of each call
    limits: "array[int]" = field(default_factory=lambda: array("I"))  # requested output tokens per prompt of each call
    heads: "array[int]" = field(default_factory=lambda: array("I"))  # the calls that begin a session
    followers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # call -> the calls that follow its
    # answer, each with its gap in ns
    live: bool = False  # whether the answers of earlier turns are filled into the requests of later turns
    folder: Path = field(init=False)
    part: int = field(init=False)
    counted: bool = field(init=False, default=False)  # whether the server counted the latest answer's tokens
    first: "array[int]" = field(init=False)  # index of the Record for each call's first prompt
    _requests: int = field(init=False)
    _head: bytes = field(init=False)

    @staticmethod
    def open(folder: Path, part: int) -> "Job":
        """Open one process's part of the job that the parent wrote to a folder."""
        job: Job = pickle.loads((folder / "job").read_bytes())
        job.folder, job.part = folder, part
        job.mode = job.mode.split(part, job.parts)
        job.first = array("I", accumulate(job.prompts, initial=0))
        job._requests = os.open(folder / "requests", os.O_RDONLY)
        key = os.environ[job.target.api_key_env] if job.target.api_key_env else None
        job._head = wire.head(job.target, key)
        return job

    @property
    def calls(self) -> int:
        return len(self.prompts)

    def request(self, call: int, answers: Mapping[int, bytes] | None = None) -> bytes:
        """Return the bytes of one call, with these live answers (by call, as escaped in JSON) where they are marked.

        They are read only when needed, so they take no memory in this process.
        """
        begin, end = self.offsets[call], self.offsets[call + 1]
        request = os.pread(self._requests, end - begin, begin)
        return self._head + (self._filled(request, answers) if answers else request)

    def _filled(self, request: bytes, answers: Mapping[int, bytes]) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        body = LIVE_ANSWER.sub(lambda mark: answers[self.warmup_calls + int(mark[1])], body)
        return wire.with_length(head.partition(b"\r\n")[0], body)

    def patient_until(self, call: int) -> int:
        """Return the number of tokens before which a call's answer cannot end; until then, reads may be late."""
        return self.limits[call] - 1 if self.target.ignore_eos and self.prompts[call] == 1 else 0

    def answer(self, call: int) -> wire.Answer:
        """Return an empty answer for one call."""
        keeps_text = (self.live and call in self.followers) or (
            self.keeps_texts and (not self.counted or call % (1 + self.calls // TEXTS) == 0)
        )
        times, least = wire.ENDLESS
        limit = self.prompts[call] * max(times * self.limits[call], least)
        return wire.Answer(self.target.api, self.prompts[call], self.patient_until(call), keeps_text, limit)


class ResultFiles:
    """Rows and chunks, written to files of the job folder as they arrive."""

    def __init__(self, folder: Path, part: int) -> None:
        self._rows = (folder / f"rows.{part}").open("wb")
        self._us = (folder / f"chunk_us.{part}").open("wb")
        self._tokens = (folder / f"chunk_tokens.{part}").open("wb")
        self._answers = (folder / f"answers.{part}").open("wb")
        self._row_bytes = bytearray()
        self._chunk_us, self._chunk_tokens = array("I"), array("H")
        self._texts: dict[str, int] = {}
        self.warm_up = [0, 0, 0]  # answers counted by the server, their tokens, and the requested tokens
        self.warm_up_durations: list[float] = []  # s, of the warm-up's requests that succeeded
        self._texts_path = folder / f"texts.{part}.json"

    def count_warm_up(self, answer: wire.Answer, limit: int) -> None:
        """Add a warm-up call, with answers of at most `limit` tokens, to the counts."""
        if answer.error is None and answer.completed:
            self.warm_up_durations.append((answer.completed - answer.sent) / 1e9)
        if answer.error is None and answer.counted:
            for stream in answer.streams:
                hidden = stream.reasoning_tokens if stream.answer_us is None else 0
                more = (1, stream.total - hidden, limit)
                self.warm_up = [total + number for total, number in zip(self.warm_up, more, strict=True)]

    def add(self, dispatch: Dispatch, answer: wire.Answer, first_record: int) -> None:
        """Write the results of a call that has ended."""
        for number, stream in enumerate(answer.streams):
            row = PackedRow(
                record=first_record + number,
                batch=dispatch.batch,
                scheduled=dispatch.scheduled,
                released=dispatch.released,
                sent=answer.sent or dispatch.given_up,
                ended=answer.completed or dispatch.given_up,
                connecting=answer.connecting,
                connected=answer.connected,
                chunks=len(stream.chunk_us),
                input_tokens=stream.input_tokens,
                output_tokens=stream.total,
                reasoning_tokens=stream.reasoning_tokens,
                answer_us=NO_REASONING if stream.answer_us is None else stream.answer_us,
                text_bytes=UNKNOWN if stream.text is None else self._answers.write(stream.text),
                token_source=self._text(stream.source),
                finish_reason=self._text(stream.finish_reason),
                error=self._text(answer.error_of(stream)),
                served_model=self._text(", ".join(answer.models) or None),
                cached_tokens=stream.cached_tokens,
                characters=stream.written.characters,
                text_hash=stream.written.digest(),
                closed=answer.closed,
            )
            self._row_bytes += ROW.pack(*row)
            self._chunk_us.extend(stream.chunk_us)
            self._chunk_tokens.extend(stream.chunk_tokens)
        if len(self._chunk_us) > SPILL or len(self._row_bytes) > SPILL * 8:
            self._spill()

    def _text(self, text: str | None) -> int:
        return -1 if text is None else self._texts.setdefault(text, len(self._texts))

    def _spill(self) -> None:
        self._rows.write(self._row_bytes)
        self._chunk_us.tofile(self._us)
        self._chunk_tokens.tofile(self._tokens)
        self._row_bytes.clear()
        del self._chunk_us[:], self._chunk_tokens[:]

    def close(self) -> None:
        self._spill()
        for file in (self._rows, self._us, self._tokens, self._answers):
            file.close()
        self._texts_path.write_text(json.dumps(list(self._texts)))
