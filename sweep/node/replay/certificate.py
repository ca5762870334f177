"""The certificate of a replay: whether the requests that were sent are what the file recorded.

The trace is read again here, without the code that makes its requests, so that a fault in that code shows.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from sweep.base.exits import Cause, Exit
from sweep.base.records import UNKNOWN, Message, Outcome, Records, Request, live_answer
from sweep.disk.row import Verdict
from sweep.inputs import rows as files
from sweep.inputs.load import Trace
from sweep.inputs.prompts import turns_of
from sweep.inputs.sessions.prefix_hits import CACHE_BLOCK, blocks_of_ids, blocks_of_pieces, ideal_hits, sent_ids
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.turns import MESSAGE_TOKENS, ContextFit, Piece, PieceTexts, SessionWorkload, Turn, under_way
from sweep.node.work import Work
from sweep.numbers.quantities.sessions import ReplayHits, ReplayProof
from sweep.numbers.selection import measured, succeeded, was_sent
from sweep.plan.plan import Trial

UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)  # errors of a file that has changed
SAME_GAP = 1e-6  # s
UNRECORDED = Turn(UNKNOWN, messages=(Message("", ""),))  # stands for a request that the file does not have


def replay_inputs(
    work: Work, trial: Trial, requests: Sequence[Request], records: Records, salt: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the certificate of a trial that replays prompts, as an input of the quantities; if the file has become
    unreadable, why it is `uncertified`; otherwise nothing. `facts` describe the engine. The records get what an
    infinite cache would have of each prompt.
    """
    workload = trial.workload.fetched(work.cache)
    if not isinstance(workload, SessionWorkload) or not workload.replays:
        return {}
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    arrivals: list[float] = []
    try:
        if isinstance(workload, Recorded) and workload.needs_token_ids:
            turns = recorded_turns(workload, trial.num_requests, trial.seed)
        else:
            turns = workload.begun(trial.num_requests, trial.seed, tokenizer).turns
        if isinstance(workload, Recorded) and turns[0].messages and not turns[0].has_history:
            turns = _in_file(turns, files.read_rows(workload.path, f"workload.file={workload.file}", part=True))
        if workload.live:
            turns = [t._replace(answer=Message("assistant", live_answer(n))) for n, t in enumerate(turns)]
        if isinstance(workload, Recorded) and isinstance(trial.load, Trace) and trial.load.path == workload.file:
            arrivals = recorded_arrivals(workload, len(requests), trial.load)
    except UNREADABLE as error:
        return {"uncertified": f"{type(error).__name__} {error}".strip()}
    header = PieceTexts(tokenizer, trial.seed, "measured", salt).header
    primed = workload.priming(tokenizer, len(requests), trial.seed, salt)
    before = workload.begun(len(requests), trial.seed, tokenizer).before if primed else []
    primed_ids = [sent_ids(request.prompt, tokenizer, request.tools) for request in primed]
    is_exact = workload.needs_token_ids and work.deployment.backend.replicas == 1  # a template's tokens are unknown
    room = _stated(facts, "kv_cache_tokens") if is_exact else None
    cache = InfiniteCache(_stated(facts, "prefix_block", "page_size") or CACHE_BLOCK, before, primed_ids, room)
    live, fit = workload.live, workload.fit
    return {"certificate": certificate(turns, requests, records, tokenizer, header, cache, fit, live, arrivals)}


def _in_file(turns: Sequence[Turn], rows: Sequence[files.FileRow]) -> list[Turn]:
    """Return the turns, with UNRECORDED in place of conversations that the rows do not have in this order.

    Conversations with tools are not looked for, since files have their calls in many forms.
    """
    checked, pending, talks = list(turns), iter(rows), list[list[int]]()
    for number, turn in enumerate(turns):
        talks += [[]] * (turn.parent == UNKNOWN)
        talks[-1] = [*talks[-1], number]
    for before, talk in zip([talks[0], *talks], talks, strict=False):
        if turns[talk[0]].repetition > turns[before[0]].repetition:
            pending = iter(rows)
        messages = [each for number in talk for each in (*turns[number].messages, turns[number].answer)]
        has_tools = any(each.calls or each.answers for each in messages) or turns[talk[0]].tools
        texts = [each.content for each in messages]
        if not has_tools and not any(_texts(row)[: len(texts)] == texts for row in pending):
            checked[talk[0] : talk[-1] + 1] = [UNRECORDED._replace(parent=turns[number].parent) for number in talk]
    return checked


def _texts(row: files.FileRow) -> list[str]:
    """Return the texts of a row's conversation, read without the code that makes its turns."""
    content = next((row[name] for name in files.CONVERSATIONS if row.get(name)), ())
    content, texts = turns_of(content) if isinstance(content, str) else content, list[str]()
    for turn in [{"content": row.get("system")}, *(content if isinstance(content, list) else ())]:
        cells = {files.simplified(key): cell for key, cell in turn.items()} if isinstance(turn, dict) else {}
        cell = next((cells[key] for key in ("content", "value", "text") if cells.get(key)), "")
        if isinstance(cell, list):
            cell = "\n".join(str(part["text"]) for part in cell if isinstance(part, dict) and part.get("text"))
        texts += [cell] if isinstance(cell, str) and cell else []
    return texts[1:] if texts[:1] == texts[1:2] == [row.get("system")] else texts


class InfiniteCache(NamedTuple):
    """An infinite prefix cache: its blocks, and what the warm-up put into it, as turns and as token ids."""

    block: int = CACHE_BLOCK
    turns: Sequence[Turn] = ()
    ids: Sequence[Sequence[int]] = ()
    room: int | None = None  # tokens that the engine's own cache holds; None: unknown

    def hits(self, prompts: Iterable[tuple[int, Iterable[Hashable]]], recorded: bool) -> list[int]:
        """Return how many tokens of each prompt, given its tokens and blocks, it has."""
        if recorded:
            before = [(turn.input_tokens, blocks_of_pieces(turn.pieces, self.block)) for turn in self.turns]
        else:
            before = [(len(ids), blocks_of_ids(ids, self.block)) for ids in self.ids]
        return ideal_hits([*before, *prompts], self.block)[len(before) :]

    def has_room(self, new_tokens: Iterable[int]) -> bool:
        """Return whether the engine's own cache has room for all requests, given the tokens that each adds."""
        added = (-(-tokens // self.block) for tokens in (*map(len, self.ids), *new_tokens))
        return self.room is not None and sum(added) * self.block <= self.room


def _stated(facts: Mapping[str, Any], *names: str) -> int | None:
    """Return the number, above 0, that an engine's facts state under one of these names; None if they do not."""
    cells = (str(facts.get(name) or (facts.get("chosen") or {}).get(name)).replace(",", "") for name in names)
    return next((int(cell) for cell in cells if cell.isdecimal()), None) or None


def or_uncertified(verdict: Verdict, trial: Trial, columns: Mapping[str, Any], inputs: Mapping[str, Any]) -> Verdict:
    """Return the verdict, or `invalid` for a replay without a certificate."""
    certified = columns.get("sessions_not_begun") is not None
    if verdict.outcome is not Outcome.OK or not trial.workload.replays or certified:
        return verdict
    problem = inputs.get("uncertified", "nothing to replay")
    reason = f"the replay has no certificate: reading its file again gave {problem}"
    return replace(verdict, outcome=Outcome.INVALID, reason=reason, exit=Exit(Cause.NO_CERTIFICATE))


def _sendable_rows(workload: Recorded) -> tuple[list[files.FileRow], files.TraceColumns]:
    rows = files.read_rows(workload.path, f"workload.file={workload.file}", part=True)
    columns = files.trace_columns(rows)
    if columns is None:
        raise ValueError("no columns with lengths")
    faults = files.faults_of(rows, columns)
    return [row for number, row in enumerate(rows, 1) if number not in faults], columns


def recorded_arrivals(workload: Recorded, count: int, load: Trace) -> list[float]:
    """Return when a trace's first `count` turns arrive, in s after the first, by the load's column, unit and speed."""
    rows, columns = _sendable_rows(workload)
    column, unit = (load.column, files.time_unit(load.column, "s")) if load.column else (columns.time, columns.unit)
    times = [files.seconds_of(row[column], load.unit or unit) for row in rows]
    again = (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
    rounds = (times[i % len(times)] - times[0] + again * (i // len(times)) for i in range(count))
    return [float(time) / load.speed for time in rounds]


def recorded_turns(workload: Recorded, count: int, seed: int = 0) -> list[Turn]:
    """Return the first turns of a trace, or of what is left of it after the turns of sessions under way."""
    rows, columns = _sendable_rows(workload)
    turns = [turn for number in range(workload.repeat) for turn in _turns_of(rows, columns, workload, number)]
    return (under_way(turns, workload.started, seed).turns if workload.started else turns)[:count]


def _turns_of(rows: list[files.FileRow], columns: files.TraceColumns, workload: Recorded, again: int) -> list[Turn]:
    turns, chats, first = list[Turn](), dict[Any, int](), again * len(rows)
    for number, row in enumerate(rows):
        parent = chats.get(_chat(row.get("parent_chat_id")), UNKNOWN)
        chats[_chat(row.get("chat_id"))] = number
        chats.pop(None, None)
        inputs, outputs = int(float(row[columns.input_tokens])), int(float(row[columns.output_tokens]))
        hashes = row["hash_ids"]
        hashes = json.loads(hashes) if isinstance(hashes, str) else hashes
        hashes = [key if isinstance(key, int) else (key,) for key in hashes]  # as the workload's, which primes caches
        block = workload.block_tokens or (512 if row.keys().isdisjoint(("chat_id", "parent_chat_id", "turn")) else 16)
        keys = [(again, key) for key in hashes] if again else hashes
        pieces = tuple(Piece(key, min(block, inputs - block * i)) for i, key in enumerate(keys))
        gap = 0.0
        if parent != UNKNOWN:
            time, before = (files.seconds_of(turn[columns.time], columns.unit) for turn in (row, rows[parent]))
            gap = max(0.0, float(time - before) - workload.recorded_tpot * turns[parent].output_tokens)
            gap, parent = gap / workload.speed, parent + first
        turns.append(Turn(outputs, parent, gap, pieces))
    return turns


def _chat(cell: Any) -> Decimal | str | None:
    """Return a turn's name, equal for 7, 7.0 and " 7"; None for the parent of a turn that begins a session."""
    text = str(cell).strip()
    with suppress(InvalidOperation):
        number = Decimal(text)
        return None if number.is_nan() or number == -1 else number
    return None if text in ("", "None") else text


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
    arrivals: Sequence[float] = (),
) -> ReplayProof:
    """Compare the prompts, in the order of sending, with the file's turns, both in an infinite cache of such blocks.

    Turns that did not fit, and were cut, are compared as cut, and their lengths and content are not judged. If answers
    are `live`, what a prompt has in the cache is unknown. `arrivals`: the recorded times of the turns, if the load has
    them, s.
    """
    lost, turns = max(0, len(turns) - len(requests)), [*turns, *[UNRECORDED] * (len(requests) - len(turns))]
    numbers = {request.request_id: number for number, request in enumerate(requests)}
    rows = np.flatnonzero(measured(records) & was_sent(records))
    rows = rows[np.argsort(np.asarray(records.sent)[rows], kind="stable")]
    order = [numbers[records.request_id[row]] for row in rows]
    sent = [sent_ids(requests[number].prompt, tokenizer, requests[number].tools) for number in order]
    if turns and turns[0].messages:
        recorded = _recorded_messages(turns, [(n, requests[n]) for n in order], sent, tokenizer, header, cache, fit)
    else:
        recorded = _recorded_blocks([turns[number] for number in order], sent, cache, fit)
    cut = [short and requests[number].truncated for short, number in zip(recorded.cut, order, strict=True)]
    judged, answered = ~np.asarray(cut, np.bool_), succeeded(records)[rows]
    answered &= judged
    row_of = {number: int(row) for number, row in zip(order, rows, strict=True)}
    counted = {number: records.input_tokens[row] for number, row in row_of.items()}
    exact = [
        records.output_tokens[row] == turns[number].output_tokens
        and length == len(ids)
        and _arrived(number, turns[number], length, requests, counted)
        for row, number, length, ids in zip(rows, order, recorded.lengths, sent, strict=True)
    ]
    recorded_turn = [
        same and requests[i].parent == turns[i].parent and abs(requests[i].gap - turns[i].gap) < SAME_GAP
        for same, i in zip(recorded.alike, order, strict=True)
    ]
    hits = cache.hits(((len(ids), blocks_of_ids(ids, cache.block)) for ids in sent), recorded=False)
    for row, tokens in zip(rows, hits, strict=True):
        records.ideal_cached_tokens[row] = UNKNOWN if live else tokens
    lengths, is_later = [len(ids) for ids in sent], [turns[number].parent != UNKNOWN for number in order]
    stream = ReplayHits(
        recorded_tokens=sum(recorded.lengths),
        recorded=sum(recorded.hits),
        sent_tokens=sum(lengths),
        sent=sum(hits),
        misplaced=sum(abs(a - b) for a, b in zip(hits, recorded.hits, strict=True)),
        later=sum(compress(hits, is_later)) / sum(compress(lengths, is_later)) if any(is_later) else None,
        fits=cache.has_room(n - hit + turns[i].output_tokens for n, hit, i in zip(lengths, hits, order, strict=True)),
    )
    is_recorded = [*np.asarray(recorded_turn)[judged], *[False] * lost]
    return ReplayProof(
        sessions=sum(turn.parent == UNKNOWN for turn in turns),
        hits=None if live else stream,
        exact_turns=float(np.mean(is_recorded)) if is_recorded else None,
        exact_lengths=float(np.mean(np.asarray(exact)[answered])) if answered.any() else None,
        truncated=None if fit is None or fit.truncate is None else sum(cut),
        earliest=_earliest(turns, row_of, records),
        schedule_error=_schedule_error(arrivals, turns, row_of, records),
    )


def _arrived(number: int, turn: Turn, length: int, requests: Sequence[Request], counted: Mapping[int, int]) -> bool:
    """Return whether an engine counted a prompt's tokens; `counted` has its counts by the number of the request.

    Of messages, to which a template adds tokens, it must count at least one for each word since the turn before.
    """
    tokens, before = counted[number], UNKNOWN if turn.has_history else turn.parent
    if not turn.messages:
        return tokens in (UNKNOWN, length)
    known, words = (counted[before], _words(requests[before])) if before in counted else (0, 0)
    return UNKNOWN in (tokens, known) or tokens - known >= _words(requests[number]) - words


def _words(request: Request) -> int:
    return sum(len(part.content.split()) for part in request.prompt if isinstance(part, Message))


def _recorded_messages(
    turns: Sequence[Turn],
    requests: Sequence[tuple[int, Request]],
    sent: Sequence[Sequence[int]],
    tokenizer: Tokenizer | None,
    header: Callable[[int], str],
    cache: InfiniteCache,
    fit: ContextFit | None,
) -> _Recorded:
    """Return the file's conversations for requests with the numbers of their turns; `sent` has the prompts' tokens."""
    prompts = list[tuple[Message, ...]]()
    for turn in turns:
        if turn.has_history or turn.parent == UNKNOWN:
            content = f"{header(turn.repetition)}\n\n{turn.messages[0].content}"
            prompts.append((turn.messages[0]._replace(content=content), *turn.messages[1:]))
        else:
            prompts.append((*prompts[turn.parent], turns[turn.parent].answer, *turn.messages))
    alike = [(each.prompt, each.tools) == (prompts[number], turns[number].tools) for number, each in requests]
    whole = [
        ids if same else sent_ids(prompts[number], tokenizer, turns[number].tools)
        for ids, same, (number, _) in zip(sent, alike, requests, strict=True)
    ]
    margins = list[int]()  # tokens that a template may add to each turn's messages
    for turn in turns:
        before = 0 if turn.has_history or turn.parent == UNKNOWN else margins[turn.parent] + MESSAGE_TOKENS
        margins.append(before + MESSAGE_TOKENS * len(turn.messages))
    cut = [
        fit is not None and len(ids) + turns[number].output_tokens + margins[number] > fit.context
        for ids, (number, _) in zip(whole, requests, strict=True)
    ]
    recorded = [ids if short else full for ids, full, short in zip(sent, whole, cut, strict=True)]
    hits = cache.hits(((len(ids), blocks_of_ids(ids, cache.block)) for ids in recorded), recorded=False)
    return _Recorded([len(ids) for ids in recorded], hits, alike, cut)


def _recorded_blocks(
    turns: Sequence[Turn], sent: Sequence[Sequence[int]], cache: InfiniteCache, fit: ContextFit | None
) -> _Recorded:
    """Return the file's blocks for these turns, as far as they fit."""
    fitting = list(turns) if fit is None else [fit.pieces(turn) for turn in turns]
    hits = cache.hits(((t.input_tokens, blocks_of_pieces(t.pieces, cache.block)) for t in fitting), recorded=True)
    lengths, cut = [turn.input_tokens for turn in fitting], [turn.truncated for turn in fitting]
    return _Recorded(lengths, hits, _same_pieces(fitting, sent), cut)


def _same_pieces(turns: Sequence[Turn], prompts: Sequence[Sequence[int]]) -> list[bool]:
    """Return for each prompt whether equal keys have equal tokens in all prompts, and other keys other tokens."""
    tokens_of: dict[Hashable, Sequence[int]] = {}
    keys: dict[Hashable, Hashable] = {}  # by the first tokens
    alike = []
    for turn, prompt in zip(turns, prompts, strict=True):
        begin, same = 0, turn.input_tokens == len(prompt)
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


def _schedule_error(
    arrivals: Sequence[float], turns: Sequence[Turn], rows: Mapping[int, int], records: Records
) -> float | None:
    """Return the largest difference between when a turn was due and when it should have been: a session at its arrival,
    a later turn at the end of its parent's answer plus its gap.
    """
    errors = list[float]()
    for number, row in rows.items():
        turn, due = turns[number], records.scheduled[row]
        due = records.released[row] if np.isnan(due) else due
        if turn.parent in rows:
            errors.append(abs(due - records.ended[rows[turn.parent]] - turn.gap))
        elif turn.parent == UNKNOWN and number < len(arrivals):
            errors.append(abs(due - arrivals[number]))
    return float(max(errors)) if errors else None
