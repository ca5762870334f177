"""The certificate of a replay: whether the requests that were sent are what the file recorded.

The trace is read again here, without the code that makes its requests, so that a fault in that code shows.
"""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sweep.base.exits import Cause, Exit
from sweep.base.records import UNKNOWN, Outcome, Records, Request, prompt_text
from sweep.disk.row import Verdict
from sweep.inputs.load import Trace
from sweep.inputs.rows import FileRow, TraceColumns, faults_of, read_rows, seconds_of, trace_columns
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.turns import (
    CACHE_BLOCK,
    Piece,
    PieceTexts,
    SessionWorkload,
    Turn,
    blocks_of_ids,
    blocks_of_turn,
    ideal_hits,
    recorded_texts,
    sent_ids,
)
from sweep.node.work import Work
from sweep.numbers.quantities.sessions import ReplayProof
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
            turns = recorded_turns(workload, len(requests))
            if isinstance(trial.load, Trace) and trial.load.path == workload.file:
                arrivals = recorded_arrivals(workload, len(requests), trial.load)
        else:
            turns = workload.session_turns(len(requests), trial.seed, tokenizer)
    except UNREADABLE as error:
        return {"uncertified": f"{type(error).__name__} {error}".strip()}
    header = PieceTexts(tokenizer, trial.seed, "measured", salt).header()
    proof = certificate(turns, requests, records, tokenizer, header, cache_block(facts))
    if arrivals:
        proof = proof._replace(schedule_error=_schedule_error(arrivals, requests, records))
    return {"certificate": proof}


def cache_block(facts: Mapping[str, Any]) -> int:
    """Return the block size of the engine's prefix cache, in tokens, from the engine's facts; else CACHE_BLOCK."""
    stated = str(facts.get("prefix_block") or (facts.get("chosen") or {}).get("page_size"))
    return max(1, int(stated)) if stated.isdecimal() else CACHE_BLOCK


def or_uncertified(verdict: Verdict, trial: Trial, columns: Mapping[str, Any], inputs: Mapping[str, Any]) -> Verdict:
    """Return the verdict, or `invalid` for a replay without a certificate."""
    certified = columns.get("recorded_prefix_hit_rate") is not None
    if verdict.outcome is not Outcome.OK or not trial.workload.replays or certified:
        return verdict
    problem = inputs.get("uncertified", "nothing to replay")
    reason = f"the replay has no certificate: reading its file again gave {problem}"
    return replace(verdict, outcome=Outcome.INVALID, reason=reason, exit=Exit(Cause.NO_CERTIFICATE))


def _first_rows(workload: Recorded, count: int) -> tuple[list[FileRow], TraceColumns]:
    rows = read_rows(workload.path, f"workload.file={workload.file}")
    columns = trace_columns(rows[0])
    if columns is None:
        raise ValueError("no columns with lengths")
    faults = faults_of(rows, columns)
    return [row for number, row in enumerate(rows, 1) if number not in faults][:count], columns


def recorded_arrivals(workload: Recorded, count: int, load: Trace) -> list[float]:
    """Return the times of a trace's first turns since the first of all, in s, as its load reads them."""
    rows, columns = _first_rows(workload, count)
    column, unit = (load.column, "s") if load.column else (columns.time, columns.unit)
    times = [seconds_of(row[column], load.unit or unit) for row in rows]
    return [float(time - times[0]) for time in times]


def recorded_turns(workload: Recorded, count: int) -> list[Turn]:
    """Return the first turns of a trace."""
    rows, columns = _first_rows(workload, count)
    turns, chats = list[Turn](), dict[Any, int]()
    for number, row in enumerate(rows):
        parent = chats.get(row.get("parent_chat_id"), UNKNOWN)
        chats[row.get("chat_id", (number,))] = number
        inputs, outputs = int(float(row[columns.input_tokens])), int(float(row[columns.output_tokens]))
        hashes = row["hash_ids"]
        hashes = json.loads(hashes) if isinstance(hashes, str) else hashes
        block = workload.block_tokens or (512 if "chat_id" not in row and "parent_chat_id" not in row else 16)
        pieces = tuple(Piece(key, min(block, inputs - block * i)) for i, key in enumerate(hashes))
        gap = 0.0
        if parent != UNKNOWN:
            time, before = (seconds_of(turn[columns.time], columns.unit) for turn in (row, rows[parent]))
            gap = max(0.0, float(time - before) - workload.recorded_tpot * turns[parent].output_tokens)
        turns.append(Turn(outputs, parent, gap, pieces))
    return turns


def certificate(
    turns: Sequence[Turn],
    requests: Sequence[Request],
    records: Records,
    tokenizer: Tokenizer | None,
    header: str,
    block: int = CACHE_BLOCK,
) -> ReplayProof:
    """Compare the prompts, in the order of sending, with the file's turns, both in an infinite cache of such blocks."""
    numbers = {request.request_id: number for number, request in enumerate(requests)}
    rows = np.flatnonzero(measured(records) & was_sent(records))
    rows = rows[np.argsort(np.asarray(records.sent)[rows], kind="stable")]
    order = [numbers[records.request_id[row]] for row in rows]
    sent = [sent_ids(requests[number].prompt, tokenizer) for number in order]
    if any(turn.messages for turn in turns):
        texts = recorded_texts(turns, header)
        alike = [prompt_text(requests[number].prompt) == texts[number] for number in order]
        recorded = [
            ids if same else sent_ids(texts[number], tokenizer)
            for ids, same, number in zip(sent, alike, order, strict=True)
        ]
        lengths = [len(ids) for ids in recorded]
        recorded_hits = ideal_hits(((len(ids), blocks_of_ids(ids, block)) for ids in recorded), block)
    else:
        lengths = [turns[number].input_tokens for number in order]
        blocks = ((turns[number].input_tokens, blocks_of_turn(turns[number], block)) for number in order)
        recorded_hits = ideal_hits(blocks, block)
        alike = _same_pieces([turns[number] for number in order], sent)
    sent_hits = ideal_hits(((len(ids), blocks_of_ids(ids, block)) for ids in sent), block)
    answered = succeeded(records)[rows]
    exact = [
        records.output_tokens[row] == turns[number].output_tokens
        and length == len(ids)
        and (bool(turns[number].messages) or records.input_tokens[row] in (UNKNOWN, length))
        for row, number, length, ids in zip(rows, order, lengths, sent, strict=True)
    ]
    recorded_turn = [
        same and requests[i].parent == turns[i].parent and abs(requests[i].gap - turns[i].gap) < SAME_GAP
        for same, i in zip(alike, order, strict=True)
    ]
    return ReplayProof(
        sessions=sum(turn.parent == UNKNOWN for turn in turns),
        recorded_tokens=sum(lengths),
        recorded_hits=sum(recorded_hits),
        sent_tokens=sum(map(len, sent)),
        sent_hits=sum(sent_hits),
        misplaced=sum(abs(a - b) for a, b in zip(sent_hits, recorded_hits, strict=True)),
        exact_turns=float(np.mean(recorded_turn)) if order else None,
        exact_lengths=float(np.mean(np.asarray(exact)[answered])) if answered.any() else None,
        earliest=_earliest(turns, {number: int(row) for row, number in zip(rows, order, strict=True)}, records),
    )


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
