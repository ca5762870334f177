"""The certificate of a replay: whether the requests that were sent are what the file recorded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN, Records, Request
from sweep.inputs.sessions.turns import (
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


def replay_inputs(work: Work, trial: Trial, requests: Sequence[Request], records: Records, salt: str) -> dict[str, Any]:
    """Return the certificate of a trial that replays recorded prompts, as an input of the quantities; else nothing."""
    workload = trial.workload.fetched(work.cache)
    if not isinstance(workload, SessionWorkload) or not workload.replays:
        return {}
    tokenizer = work.deployment.model.load_tokenizer(work.cache)
    turns = workload.session_turns(len(requests), trial.seed, tokenizer)
    header = PieceTexts(tokenizer, trial.seed, "measured", salt).header()
    return {"certificate": certificate(turns, requests, records, tokenizer, header)}


def certificate(
    turns: Sequence[Turn], requests: Sequence[Request], records: Records, tokenizer: Tokenizer | None, header: str
) -> ReplayProof:
    """Compare what was sent, in its order, with the file's turns; both in an infinite prefix cache."""
    numbers = {request.request_id: number for number, request in enumerate(requests)}
    rows = np.flatnonzero(measured(records) & was_sent(records))
    rows = rows[np.argsort(np.asarray(records.sent)[rows], kind="stable")]
    order = [numbers[records.request_id[row]] for row in rows]
    sent = [sent_ids(requests[number].prompt, tokenizer) for number in order]
    if any(turn.messages for turn in turns):
        texts = recorded_texts(turns, header)
        recorded = [sent_ids(texts[number], tokenizer) for number in order]
        lengths = [len(ids) for ids in recorded]
        recorded_hits = ideal_hits((len(ids), blocks_of_ids(ids)) for ids in recorded)
    else:
        lengths = [turns[number].input_tokens for number in order]
        recorded_hits = ideal_hits((turns[number].input_tokens, blocks_of_turn(turns[number])) for number in order)
    sent_hits = ideal_hits((len(ids), blocks_of_ids(ids)) for ids in sent)
    answered = succeeded(records)[rows]
    exact = [
        records.output_tokens[row] == turns[number].output_tokens
        and length == len(ids)
        and (bool(turns[number].messages) or records.input_tokens[row] in (UNKNOWN, length))
        for row, number, length, ids in zip(rows, order, lengths, sent, strict=True)
    ]
    return ReplayProof(
        sessions=sum(turn.parent == UNKNOWN for turn in turns),
        recorded_tokens=sum(lengths),
        recorded_hits=sum(recorded_hits),
        sent_tokens=sum(map(len, sent)),
        sent_hits=sum(sent_hits),
        misplaced=sum(abs(a - b) for a, b in zip(sent_hits, recorded_hits, strict=True)),
        exact_lengths=float(np.mean(np.asarray(exact)[answered])) if answered.any() else None,
    )
