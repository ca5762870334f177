"""The certificate of a replay: whether the requests that were sent are what the file recorded.

The trace is read again here, without the code that makes its requests, so that a fault in that code shows.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from sweep.base.exits import Cause, Exit
from sweep.base.records import UNKNOWN, Outcome, Prompt, Records, Request, live_answer, prompt_text
from sweep.disk.row import Verdict
from sweep.inputs.load import Trace
from sweep.inputs.rows import FileRow, TraceColumns, faults_of, read_rows, seconds_of, time_unit, trace_columns
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.turns import (
    CACHE_BLOCK,
    MESSAGE_TOKENS,
    ContextFit,
    Piece,
    PieceTexts,
    SessionWorkload,
    Turn,
    blocks_of_ids,
    blocks_of_turn,
    ideal_hits,
    recorded_texts,
    sent_ids,
    under_way,
)
from sweep.node.work import Work
from sweep.numbers.quantities.sessions import ReplayHits, ReplayProof
from sweep.numbers.selection import measured, succeeded, was_sent
from sweep.plan.plan import Trial

UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)  # errors of a file that has changed
SAME_GAP = 1e-6  # s


def replay_inputs(
    work: Work, trial: Trial, requests: Sequence[Request], records: Records, salt: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the certificate of a trial that replays prompts, as an input of the quantities; if the file has become
    unreadable, why it is `uncertified`; otherwise nothing. `facts` describe the engine.
    """
    workload = trial.workload.fetched(work.cache)
    if not isinstance(workload, SessionWorkload) or not workload.replays:
        return {}
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    arrivals: list[float] = []
    try:
        if isinstance(workload, Recorded) and workload.needs_token_ids:
            turns = recorded_turns(workload, len(requests), trial.seed)
        else:
            turns = workload.begun(len(requests), trial.seed, tokenizer).turns
        if workload.live:
            turns = [turn._replace(answer=live_answer(number)) for number, turn in enumerate(turns)]
        if isinstance(workload, Recorded) and isinstance(trial.load, Trace) and trial.load.path == workload.file:
            arrivals = recorded_arrivals(workload, len(requests), trial.load)
    except UNREADABLE as error:
        return {"uncertified": f"{type(error).__name__} {error}".strip()}
    header = PieceTexts(tokenizer, trial.seed, "measured", salt).header
    primed = [each.prompt for each in workload.priming(tokenizer, len(requests), trial.seed, salt)]
    before = workload.begun(len(requests), trial.seed, tokenizer).before if primed else []
    cache = InfiniteCache(cache_block(facts), before, [sent_ids(prompt, tokenizer) for prompt in primed])
    proof = certificate(turns, requests, records, tokenizer, header, cache, workload.fit, workload.live)
    if arrivals:
        proof = proof._replace(schedule_error=_schedule_error(arrivals, requests, records))
    return {"certificate": proof}


class InfiniteCache(NamedTuple):
    """An infinite prefix cache: its blocks, and what the warm-up put into it, as turns and as token ids."""

    block: int = CACHE_BLOCK
    turns: Sequence[Turn] = ()
    ids: Sequence[Sequence[int]] = ()

    def hits(self, prompts: Iterable[tuple[int, Iterable[Hashable]]], recorded: bool) -> list[int]:
        """Return how many tokens of each prompt, given its tokens and blocks, it has."""
        if recorded:
            before = [(turn.input_tokens, blocks_of_turn(turn, self.block)) for turn in self.turns]
        else:
            before = [(len(ids), blocks_of_ids(ids, self.block)) for ids in self.ids]
        return ideal_hits([*before, *prompts], self.block)[len(before) :]


def cache_block(facts: Mapping[str, Any]) -> int:
    """Return the block size of the engine's prefix cache, in tokens, from the engine's facts; else CACHE_BLOCK."""
    stated = str(facts.get("prefix_block") or (facts.get("chosen") or {}).get("page_size"))
    return max(1, int(stated)) if stated.isdecimal() else CACHE_BLOCK


def or_uncertified(verdict: Verdict, trial: Trial, columns: Mapping[str, Any], inputs: Mapping[str, Any]) -> Verdict:
    """Return the verdict, or `invalid` for a replay without a certificate."""
    certified = columns.get("sessions_not_begun") is not None
    if verdict.outcome is not Outcome.OK or not trial.workload.replays or certified:
        return verdict
    problem = inputs.get("uncertified", "nothing to replay")
    reason = f"the replay has no certificate: reading its file again gave {problem}"
    return replace(verdict, outcome=Outcome.INVALID, reason=reason, exit=Exit(Cause.NO_CERTIFICATE))


def _sendable_rows(workload: Recorded) -> tuple[list[FileRow], TraceColumns]:
    rows = read_rows(workload.path, f"workload.file={workload.file}")
    columns = trace_columns(rows)
    if columns is None:
        raise ValueError("no columns with lengths")
    faults = faults_of(rows, columns)
    return [row for number, row in enumerate(rows, 1) if number not in faults], columns


def recorded_arrivals(workload: Recorded, count: int, load: Trace) -> list[float]:
    """Return the times of a trace's first turns since the first of all, in s, as its load reads them."""
    rows, columns = _sendable_rows(workload)
    column, unit = (load.column, time_unit(load.column, "s")) if load.column else (columns.time, columns.unit)
    times = [seconds_of(row[column], load.unit or unit) for row in rows]
    again = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
    rounds = (times[i % len(times)] - times[0] + again * (i // len(times)) for i in range(count))
    return [float(time) / workload.speed for time in rounds]


def recorded_turns(workload: Recorded, count: int, seed: int = 0) -> list[Turn]:
    """Return the first turns of a trace, or of what is left of it after the turns of sessions under way."""
    rows, columns = _sendable_rows(workload)
    turns = [turn for number in range(workload.repeat) for turn in _turns_of(rows, columns, workload, number)]
    return (under_way(turns, workload.started, seed).turns if workload.started else turns)[:count]


def _turns_of(rows: list[FileRow], columns: TraceColumns, workload: Recorded, repetition: int) -> list[Turn]:
    turns, chats, first = list[Turn](), dict[Any, int](), repetition * len(rows)
    for number, row in enumerate(rows):
        parent = chats.get(str(row.get("parent_chat_id")).removesuffix(".0"), UNKNOWN)  # floats beside an empty cell
        chats[str(row.get("chat_id", (number,))).removesuffix(".0")] = number
        inputs, outputs = int(float(row[columns.input_tokens])), int(float(row[columns.output_tokens]))
        hashes = row["hash_ids"]
        hashes = json.loads(hashes) if isinstance(hashes, str) else hashes
        block = workload.block_tokens or (512 if "chat_id" not in row and "parent_chat_id" not in row else 16)
        keys = [(repetition, key) for key in hashes] if repetition else hashes
        pieces = tuple(Piece(key, min(block, inputs - block * i)) for i, key in enumerate(keys))
        gap = 0.0
        if parent != UNKNOWN:
            time, before = (seconds_of(turn[columns.time], columns.unit) for turn in (row, rows[parent]))
            gap = max(0.0, float(time - before) - workload.recorded_tpot * turns[parent].output_tokens)
            gap, parent = gap / workload.speed, parent + first
        turns.append(Turn(outputs, parent, gap, pieces))
    return turns


class _Recorded(NamedTuple):
    """The file's prompts of the turns that were sent, in that order. Each list has shape (turns sent,)."""

    lengths: list[int]  # tokens
    hits: list[int]  # tokens that the infinite cache holds
    alike: list[bool]  # whether the prompt as sent is that of the file
    cut: list[bool]  # whether it does not fit


def certificate(
    turns: Sequence[Turn],
    requests: Sequence[Request],
    records: Records,
    tokenizer: Tokenizer | None,
    header: Callable[[int], str],
    cache: InfiniteCache,
    fit: ContextFit | None = None,
    live: bool = False,
) -> ReplayProof:
    """Compare the prompts, in the order of sending, with the file's turns, both in an infinite cache of such blocks.

    Turns that did not fit, and were cut, are compared as cut, and their lengths and content are not judged. If answers
    are `live`, what a prompt has in the cache is unknown.
    """
    numbers = {request.request_id: number for number, request in enumerate(requests)}
    rows = np.flatnonzero(measured(records) & was_sent(records))
    rows = rows[np.argsort(np.asarray(records.sent)[rows], kind="stable")]
    order = [numbers[records.request_id[row]] for row in rows]
    sent = [sent_ids(requests[number].prompt, tokenizer) for number in order]
    if any(turn.messages for turn in turns):
        recorded = _recorded_messages(
            turns, [(n, requests[n].prompt) for n in order], sent, tokenizer, header, cache, fit
        )
    else:
        recorded = _recorded_blocks([turns[number] for number in order], sent, cache, fit)
    cut = [short and requests[number].truncated for short, number in zip(recorded.cut, order, strict=True)]
    judged, answered = ~np.asarray(cut, np.bool_), succeeded(records)[rows]
    answered &= judged
    exact = [
        records.output_tokens[row] == turns[number].output_tokens
        and length == len(ids)
        and (bool(turns[number].messages) or records.input_tokens[row] in (UNKNOWN, length))
        for row, number, length, ids in zip(rows, order, recorded.lengths, sent, strict=True)
    ]
    recorded_turn = [
        same and requests[i].parent == turns[i].parent and abs(requests[i].gap - turns[i].gap) < SAME_GAP
        for same, i in zip(recorded.alike, order, strict=True)
    ]
    return ReplayProof(
        sessions=sum(turn.parent == UNKNOWN for turn in turns),
        hits=None if live else _hits(recorded, sent, cache, [turns[number].parent != UNKNOWN for number in order]),
        exact_turns=float(np.mean(np.asarray(recorded_turn)[judged])) if judged.any() else None,
        exact_lengths=float(np.mean(np.asarray(exact)[answered])) if answered.any() else None,
        truncated=None if fit is None or fit.truncate is None else sum(cut),
        earliest=_earliest(turns, {number: int(row) for row, number in zip(rows, order, strict=True)}, records),
    )


def _hits(
    recorded: _Recorded, sent: Sequence[Sequence[int]], cache: InfiniteCache, is_later: Sequence[bool]
) -> ReplayHits:
    """Compare what the cache has of the prompts, as recorded and as sent; `is_later` is false for first turns."""
    lengths = [len(ids) for ids in sent]
    hits = cache.hits(((len(ids), blocks_of_ids(ids, cache.block)) for ids in sent), recorded=False)
    later_tokens = sum(compress(lengths, is_later))
    return ReplayHits(
        recorded_tokens=sum(recorded.lengths),
        recorded=sum(recorded.hits),
        sent_tokens=sum(lengths),
        sent=sum(hits),
        misplaced=sum(abs(a - b) for a, b in zip(hits, recorded.hits, strict=True)),
        later=sum(compress(hits, is_later)) / later_tokens if later_tokens else None,
    )


def _recorded_messages(
    turns: Sequence[Turn],
    prompts: Sequence[tuple[int, Prompt]],
    sent: Sequence[Sequence[int]],
    tokenizer: Tokenizer | None,
    header: Callable[[int], str],
    cache: InfiniteCache,
    fit: ContextFit | None,
) -> _Recorded:
    """Return the file's conversations for prompts with the numbers of their turns; `sent` has the prompts' tokens."""
    texts = recorded_texts(turns, header)
    alike = [prompt_text(prompt) == texts[number] for number, prompt in prompts]
    whole = [
        ids if same else sent_ids(texts[number], tokenizer)
        for ids, same, (number, _) in zip(sent, alike, prompts, strict=True)
    ]
    margins = list[int]()  # tokens that a template may add to each turn's messages
    for turn in turns:
        before = 0 if turn.has_history or turn.parent == UNKNOWN else margins[turn.parent] + MESSAGE_TOKENS
        margins.append(before + MESSAGE_TOKENS * len(turn.messages))
    cut = [
        fit is not None and len(ids) + turns[number].output_tokens + margins[number] > fit.context
        for ids, (number, _) in zip(whole, prompts, strict=True)
    ]
    recorded = [ids if short else full for ids, full, short in zip(sent, whole, cut, strict=True)]
    hits = cache.hits(((len(ids), blocks_of_ids(ids, cache.block)) for ids in recorded), recorded=False)
    return _Recorded([len(ids) for ids in recorded], hits, alike, cut)


def _recorded_blocks(
    turns: Sequence[Turn], sent: Sequence[Sequence[int]], cache: InfiniteCache, fit: ContextFit | None
) -> _Recorded:
    """Return the file's blocks for these turns, as far as they fit."""
    fitting = list(turns) if fit is None else [fit.pieces(turn) for turn in turns]
    hits = cache.hits(((turn.input_tokens, blocks_of_turn(turn, cache.block)) for turn in fitting), recorded=True)
    lengths, cut = [turn.input_tokens for turn in fitting], [turn.truncated for turn in fitting]
    return _Recorded(lengths, hits, _same_pieces(fitting, sent), cut)


def _same_pieces(turns: Sequence[Turn], prompts: Sequence[Sequence[int]]) -> list[bool]:
    """Return for each prompt whether equal keys have equal tokens in all prompts, and other keys other tokens."""
    tokens_of: dict[Hashable, Sequence[int]] = {}
    keys: dict[Hashable, Hashable] = {}  # by the first tokens
    alike = []
    for turn, prompt in zip(turns, prompts, strict=True):
        begin, same = 0, True
        for key, length in turn.pieces:
            tokens = prompt[begin : begin + length]
            earlier, begin = tokens_of.get(key, ()), begin + length
            common = min(len(earlier), len(tokens))
            same &= earlier[:common] == tokens[:common] if common else True
            if len(tokens) > len(earlier):
                tokens_of[key] = tokens
            if length >= CACHE_BLOCK:
                same &= keys.setdefault(tuple(tokens[:CACHE_BLOCK]), key) == key
        alike.append(same)
    return alike


def _earliest(turns: Sequence[Turn], rows: Mapping[int, int], records: Records) -> float | None:
    """Return the smallest sent − (end of the parent's answer + gap) among the later turns that were sent."""
    waits = [
        records.sent[row] - records.ended[rows[turns[number].parent]] - turns[number].gap
        for number, row in rows.items()
        if turns[number].parent in rows
    ]
    return float(min(waits)) if waits else None


def _schedule_error(arrivals: Sequence[float], requests: Sequence[Request], records: Records) -> float | None:
    """Return the largest difference between the scheduled and the recorded beginning of a session."""
    scheduled = dict(zip(records.request_id, records.scheduled, strict=True))
    due = [scheduled.get(request.request_id, np.nan) for request in requests]
    begin = [i for i, request in enumerate(requests) if request.parent == UNKNOWN and not np.isnan(due[i])]
    errors = [abs(due[i] - arrivals[i]) for i in begin]
    return float(max(errors)) if errors else None
