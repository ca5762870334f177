"""Makes turns of conversations: each answered user message is a turn; the messages before it are its history."""

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN, Message
from sweep.inputs import prompts
from sweep.inputs.rows import CONVERSATIONS, FileRow, check_faults, read_rows
from sweep.inputs.sessions.messages import Talk, list_of, tool_definitions
from sweep.inputs.sessions.turns import Turn

TOOL_COLUMNS = ("tools", "functions")  # columns
TAGGED_CALL, TAGGED_RESULT = (  # how models that were trained on Hermes' conversations write them
    re.compile(rf"<{name}>\s*(.*?)\s*</{name}>", re.DOTALL) for name in ("tool_call", "tool_response")
)


def conversation_column(row: FileRow) -> str | None:
    """Return the column that holds a row's conversation; None if no column does."""
    return next((name for name in CONVERSATIONS if name in row), None)


class Answered(NamedTuple):
    """One turn of a conversation: what is new, the recorded answer, and the definitions of tools, as of a Request."""

    new: tuple[Message, ...]
    answer: Message
    tools: str


class ConversationRows(NamedTuple):
    """The turns in each row of a file, and why other rows cannot be sent, by row number."""

    conversations: list[list[Answered]]
    faults: dict[int, str]


@lru_cache(maxsize=4)
def read_conversations(path: Path, key: str, changed: int) -> ConversationRows:
    """Return the conversations in a file that `changed` at this time, in ns. Raises ConfigError if none can be sent."""
    rows, read = read_rows(path, key, part=True), ConversationRows([], {})
    for number, row in enumerate(rows, 1):
        try:
            read.conversations.append(exchanges(row))
        except prompts.Unusable as error:
            read.faults[number] = str(error)
    check_faults(read.faults, len(rows), key, skip=True)
    return read


def conversation_turns(read: ConversationRows, tokenizer: Tokenizer | None, count: int | None) -> list[Turn]:
    """Return the turns of the conversations, one conversation after another, until `count` are reached (None: all)."""
    turns: list[Turn] = []
    for conversation in read.conversations:
        parent = UNKNOWN
        for new, answer, tools in conversation if count is None or len(turns) < count else ():
            text = answer.text
            tokens = text.split() if tokenizer is None else tokenizer.encode(text, add_special_tokens=False).ids
            turns.append(Turn(max(1, len(tokens)), parent, messages=new, answer=answer, tools=tools))
            parent = len(turns) - 1
    return turns


def exchanges(row: FileRow) -> list[Answered]:
    """Return a row's turns, without an unanswered question at the end. Raises Unusable, e.g. for an order of roles."""
    column = conversation_column(row)
    if column is None:
        raise prompts.Unusable("no conversation")
    content: Any = row[column]
    content = prompts.turns_of(content) if isinstance(content, str) else content
    if not isinstance(content, list):
        raise prompts.Unusable(f"{column} is not a list of turns; expected {{role, content}} or {{from, value}}")
    speakers = [prompts.speaker_of(turn, column, (*prompts.CALLING, *prompts.RETURNING)) for turn in content]
    system = prompts.text_of_turn({"content": row.get("system")}, "system")
    if system and prompts.text_of_turn((content or [{}])[0], column) != system:
        speakers, content = ["system", *speakers], [{"content": system}, *content]
    has_tools = not {*prompts.RETURNING}.isdisjoint(speakers)
    talk, pairs, begin = Talk(), list[Answered](), 0
    try:
        tools = next((tool_definitions(list_of(row, name)) for name in TOOL_COLUMNS if row.get(name)), "")
        for speaker, turn in zip(speakers, content, strict=True):
            _say(talk, speaker, turn, column, has_tools)
    except ValueError as error:
        raise prompts.Unusable(f"{column}: {error}", of_conversation=True) from None
    for end, message in enumerate(talk.messages):
        if message.role == "assistant":
            pairs.append(Answered(tuple(talk.messages[begin:end]), message, tools))
            begin = end + 1
    if not pairs:
        raise prompts.Unusable(f"{column}: no answered question", of_conversation=True)
    return pairs


def _say(talk: Talk, speaker: str, turn: Any, column: str, has_tools: bool) -> None:
    """Add what a turn says, which may be several results of tools. Raises ValueError, and Unusable for no text."""
    content, answers = prompts.keyed(turn, prompts.CONTENT), speaker in prompts.ANSWERING or speaker in prompts.CALLING
    parts, kind = content if isinstance(content, list) else [], "tool_use" if answers else "tool_result"
    of_tools = [part for part in parts if isinstance(part, Mapping) and part.get("type") == kind]
    said = {"content": [part for part in parts if part not in of_tools]} if of_tools else turn
    text = prompts.text_of_turn(said, column)
    if speaker in prompts.RETURNING:
        for result in TAGGED_RESULT.findall(text) or [content if isinstance(content, Mapping) else text]:
            talk.result(result, prompts.keyed(turn, ("toolcallid",)))
    elif answers:
        calls = prompts.keyed(turn, ("toolcalls", "functioncall")) or of_tools
        if not calls and speaker in prompts.CALLING:
            calls, text = text, ""
        elif not calls and has_tools and (tagged := TAGGED_CALL.findall(text)):
            calls, text = [call for each in tagged for call in _parsed_calls(each)], TAGGED_CALL.sub("", text).strip()
        if not text and not calls:
            raise ValueError("an answer without text")
        talk.say("assistant", text, _parsed_calls(calls))
    else:
        for result in of_tools:
            talk.result(prompts.text_of_turn(result, column), result.get("tool_use_id"))
        if text:
            talk.say("user" if speaker in prompts.ASKING else "system", text)
        elif not of_tools:
            raise ValueError(f"a message from {speaker} without text")


def _parsed_calls(calls: Any) -> list[Any]:
    """Return a list of calls, or of one; they may be text, in JSON or as Python's literals."""
    for parse in (json.loads, ast.literal_eval) if isinstance(calls, str) else ():
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            calls = parse(calls.strip())
            break
    return calls if isinstance(calls, list) else [calls]
