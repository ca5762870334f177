"""Makes turns of conversations: each answered user message is a turn; the messages before it are its history."""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN, Message
from sweep.inputs.prompts import ANSWERING, ASKING, INSTRUCTING, Unusable, speaker_of, text_of_turn, turns_of
from sweep.inputs.rows import CONVERSATIONS, FileRow, check_faults, read_rows
from sweep.inputs.sessions.turns import Turn, check_sendable


def conversation_column(row: FileRow) -> str | None:
    """Return the column that holds a row's conversation; None if no column does."""
    return next((name for name in CONVERSATIONS if name in row), None)


class ConversationRows(NamedTuple):
    """The questions and answers in each row of a file, and why other rows cannot be sent, by row number."""

    conversations: list[list[tuple[tuple[Message, ...], str]]]
    faults: dict[int, str]


def read_conversations(path: Path, key: str) -> ConversationRows:
    """Return the conversations in a file. Raises ConfigError if none can be sent."""
    rows, read = read_rows(path, key), ConversationRows([], {})
    for number, row in enumerate(rows, 1):
        try:
            read.conversations.append(exchanges(row))
        except Unusable as error:
            read.faults[number] = str(error)
    check_faults(read.faults, len(rows), key, skip=True)
    return read


def conversation_turns(read: ConversationRows, tokenizer: Tokenizer | None) -> list[Turn]:
    """Return the turns of the conversations, one conversation after another."""
    turns: list[Turn] = []
    for conversation in read.conversations:
        parent = UNKNOWN
        for messages, answer in conversation:
            tokens = answer.split() if tokenizer is None else tokenizer.encode(answer, add_special_tokens=False).ids
            turns.append(Turn(max(1, len(tokens)), parent, messages=messages, answer=answer))
            parent = len(turns) - 1
    return turns


def exchanges(row: FileRow) -> list[tuple[tuple[Message, ...], str]]:
    """Return the question and the answer of each turn of a row's conversation.

    An unanswered question at the end is left out. Raises Unusable, e.g. for roles in an order that templates forbid.
    """
    column = conversation_column(row)
    if column is None:
        raise Unusable("no conversation")
    content: Any = row[column]
    content = turns_of(content) if isinstance(content, str) else content
    if not isinstance(content, list):
        raise Unusable(f"{column} is not a list of turns; expected {{role, content}} or {{from, value}}")

    def unusable(reason: str) -> Unusable:
        return Unusable(f"{column}: {reason}", of_conversation=True)

    pairs: list[tuple[tuple[Message, ...], str]] = []
    new: list[Message] = []
    for turn in content:
        speaker, text = speaker_of(turn, column), text_of_turn(turn, column)
        try:
            check_sendable(text)
        except ValueError as error:
            raise unusable(str(error)) from None
        if speaker in ANSWERING:
            if not new or new[-1].role != "user":
                raise unusable("an answer without a question before it")
            if not text:
                raise unusable("an answer without text")
            pairs.append((tuple(new), text))
            new = []
        elif not text:
            raise unusable(f"a message from {speaker} without text")
        elif speaker in ASKING:
            if new and new[-1].role == "user":
                raise unusable("two user messages in a row")
            new.append(Message("user", text))
        else:
            assert speaker in INSTRUCTING
            if pairs or new:
                raise unusable("a system message that is not the first message")
            new.append(Message("system", text))
    if not pairs:
        raise unusable("no answered question")
    return pairs
