"""Makes turns of traces with `hash_ids`: Mooncake's, and Qwen-Bailian's, whose rows name their parent turns."""

import json
from collections.abc import Hashable
from contextlib import suppress
from decimal import Decimal
from statistics import median
from typing import Any

from sweep.base.config import ConfigError, shortened
from sweep.base.records import UNKNOWN
from sweep.inputs.rows import (
    CHAT,
    PARENT,
    UNIT_IN_NAME,
    FileRow,
    TraceColumns,
    TraceRows,
    names_sessions,
    parse_time,
    seconds_of,
)
from sweep.inputs.sessions.turns import Piece, Turn

HASHES = "hash_ids"
ROOTS = ("-1", "", "nan")  # the parents of turns that begin a session
LARGEST_EXACT = 2**53  # a float holds every whole number below
LONGEST_GAPS = 1000  # s, their median, from which the unit of numbers is uncertain
LENGTHS_ALONE = "workload.prefixes=false replays only the lengths"
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16  # tokens that one hash stands for


def trace_turns(trace: TraceRows, block: int | None, tpot: float, key: str) -> list[Turn]:
    """Return a turn for each row of a trace whose hashes stand for `block` tokens (None: by its columns).

    The recorded engine took `tpot` s per output token. Raises ConfigError for hashes or parents that it cannot replay.
    """
    columns, rows = trace.columns, list(trace.rows.items())
    turns: list[Turn] = []
    is_certain = UNIT_IN_NAME.search(columns.time) is not None  # the unit
    indices: dict[Any, int] = {}  # of a chat's turn
    for number, row in rows:
        if odd := next((name for name in (CHAT, PARENT) if not isinstance(row.get(name), Hashable)), None):
            raise ConfigError(f"{key}: row {number}: {odd}={shortened(repr(row[odd]))}; expected a number or text")
    if 0 < len(unnamed := [number for number, row in rows if not names_sessions(row)]) < len(rows):
        problem = f"row {unnamed[0]}: no {CHAT}, {PARENT} or turn, unlike other rows; its unit is uncertain"
        raise ConfigError(f"{key}: {problem}; expected them in all rows or in none")
    chats = {_identifier(row[CHAT]) for _, row in rows if CHAT in row} - {None}
    for index, (number, row) in enumerate(rows):
        where = f"{key}: row {number}"
        chat, parent = _identifier(row.get(CHAT)), _identifier(row.get(PARENT))
        before = indices.get(parent, UNKNOWN)
        if before == UNKNOWN and parent in chats:
            raise ConfigError(f"{where}: {PARENT}={parent}: that turn comes later; expected an earlier one")
        if chat is not None and indices.setdefault(chat, index) != index:
            raise ConfigError(f"{where}: {CHAT}={chat} appears twice; expected one row for each turn")
        gap = 0.0
        if before != UNKNOWN:
            seconds = _time(row, columns, where) - _time(rows[before][1], columns, where)
            if seconds < 0:
                problem = f"{columns.time}={row[columns.time]!r} is before that of the turn it follows"
                raise ConfigError(f"{where}: {problem}; expected a later time")
            is_certain = is_certain or parse_time(row[columns.time])[1]
            gap = max(0.0, float(seconds) - tpot * turns[before].output_tokens)
        inputs, outputs = trace.lengths[index]
        size = block or (BAILIAN_BLOCK if names_sessions(row) else MOONCAKE_BLOCK)
        turns.append(Turn(outputs, before, gap, _pieces(row, inputs, size, where)))
    gaps = [turn.gap for turn in turns if turn.parent != UNKNOWN]
    if gaps and median(gaps) >= LONGEST_GAPS and not is_certain:
        problem = f"the median gap is {median(gaps):g} s; the unit of {columns.time} is uncertain"
        raise ConfigError(f"{key}: {problem}; expected the unit in its name: {columns.time}_s, {columns.time}_ms")
    return turns


def orphans(trace: TraceRows) -> int:
    """Return how many turns lack their parent (missing or skipped); each of them begins a session."""
    chats = {None, *(_identifier(row[CHAT]) for row in trace.rows.values() if CHAT in row)}
    return sum(_identifier(row.get(PARENT)) not in chats for row in trace.rows.values())


def _identifier(cell: Any) -> str | None:
    """Return the name of a turn: "7" for 7, 7.0 and "7.0", since tables turn numbers beside holes into floats.

    Return None for the parent of a turn that begins a session.
    """
    text = "" if cell is None or cell != cell else str(cell).strip()
    with suppress(ValueError, OverflowError):
        text = str(int(float(text))) if float(text).is_integer() and abs(float(text)) < LARGEST_EXACT else text
    return None if text in ROOTS else text


def _pieces(row: FileRow, tokens: int, block: int, where: str) -> tuple[Piece, ...]:
    """Return a prompt's blocks; the last block may be shorter."""
    hashes = row.get(HASHES)
    with suppress(ValueError, RecursionError):
        hashes = json.loads(hashes) if isinstance(hashes, str) else hashes  # in a table's cell
    if not isinstance(hashes, list) or not all(type(each) in (int, str) for each in hashes):
        problem = f"{HASHES}={shortened(repr(hashes))}; expected a list of hashes"
        raise ConfigError(f"{where}: {problem}; {LENGTHS_ALONE}")
    needed = -(-tokens // block)
    if len(hashes) != needed:
        problem = f"{len(hashes)} {HASHES} for {tokens} tokens; expected {needed} blocks of {block}"
        raise ConfigError(f"{where}: {problem}; set workload.block_tokens; {LENGTHS_ALONE}")
    keys = [each if isinstance(each, int) else (each,) for each in hashes]  # "1" is not 1, and may be no valid Unicode
    return tuple(Piece(key, min(block, tokens - index * block)) for index, key in enumerate(keys))


def _time(row: FileRow, columns: TraceColumns, where: str) -> Decimal:
    time = row.get(columns.time)
    try:
        return seconds_of(time, columns.unit)
    except ValueError:
        raise ConfigError(f"{where}: {columns.time}={time!r}; expected a number or an ISO 8601 time") from None
