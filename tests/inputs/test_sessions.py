"""Sessions from files, through the whole command: what was recorded is what is sent, and a fault does not pass."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis
from sweep.__main__ import main
from sweep.base.records import Message, Record, Records, Request
from sweep.inputs.sessions.generated import Conversations
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.turns import PieceTexts
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.node.replay.certificate import certificate
from sweep.numbers.summarise import figures
from sweep.numbers.warnings import trial_warnings
from tests.inputs.test_prompts import QUICK, measure, write

CACHED = [*QUICK, "backend.prefix_block=16", "backend.ttft.mean=0.05"]
CHAT_API = "backend.api=chat backend.batch_form=streams"
ALARMS = {"other-prefixes", "unrecorded-hits", "other-recorded-lengths", "early-turns", "cut-sessions"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red, as far as I can see."},
    {"role": "user", "content": "And another one?"},
    {"role": "assistant", "content": "Blue."},
]


def bailian(turns: int, seed: int = 1, block: int = 16) -> list[dict[str, Any]]:
    """A trace of conversations behind one of two system prompts, whose turns repeat what was said before."""
    rng, rows, time = random.Random(seed), list[dict[str, Any]](), 0.0
    ends: list[tuple[int, list[int], int]] = []  # of each conversation: its last chat, hashes and tokens
    for chat in range(turns):
        old = ends and rng.random() < 0.6
        system = -3 if rng.random() < 0.5 else -9
        parent, hashes, tokens = ends.pop(rng.randrange(len(ends))) if old else (-1, [system, system + 1], 2 * block)
        tokens += rng.randint(block, 4 * block)
        whole = hashes[: len(hashes) - bool(old)]  # the last block of a turn may be a part of one
        hashes = [*whole, *(100 * chat + 1000 + i for i in range(-(-tokens // block) - len(whole)))]
        time += rng.uniform(0, 0.04)
        rows.append({"chat_id": chat, "parent_chat_id": parent, "timestamp": round(time, 3), "turn": 1})
        rows[-1] |= {"input_length": tokens, "output_length": rng.randint(2, 6), "hash_ids": hashes}
        ends.append((chat, hashes, tokens))
    return rows


def hit_rate(rows: list[dict[str, Any]]) -> float:
    """The share of the input in whole blocks with which an earlier row began."""
    known: set[tuple[int, ...]] = set()
    hits = 0
    for row in rows:
        whole = row["hash_ids"][: row["input_length"] // 16]
        prefixes = [tuple(whole[:end]) for end in range(1, len(whole) + 1)]
        hits += 16 * sum(prefix in known for prefix in prefixes if 16 * len(prefix) < row["input_length"])
        known.update(prefixes)
    return hits / sum(row["input_length"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("load", ["closed", "recorded"])
def test_a_trace_is_replayed_with_its_sessions_prefixes_and_gaps(tmp_path: Path, load: str) -> None:
    rows = bailian(60)
    line = ["workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}", "workload.num_requests=60"]
    row = measure(*CACHED, *line, f"load={load}", f"out={tmp_path / 'out'}")
    assert row["recorded_prefix_hit_rate"] == pytest.approx(hit_rate(rows))
    assert row["cached_share"] == pytest.approx(hit_rate(rows), abs=0.005)
    assert row["cache_hit_difference"] == pytest.approx(0, abs=0.005)
    assert (row["replay_hit_error"], row["replay_exact_lengths"], row["sessions_cut"]) == (0, 1, 0)
    assert row["earliest_turn"] >= -1e-6
    assert not ALARMS & set(row["warnings"])
    assert row["later_turn_cached_share"] > row["cached_share"]
    assert row["session_duration_p50"] > 0
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    requests = requests.assign(number=requests["request_id"].str.split("-").str[2].astype(int)).set_index("number")
    for number, trace in enumerate(rows):
        sent = requests.loc[number]
        assert (sent["input_tokens"], sent["output_tokens"]) == (trace["input_length"], trace["output_length"])
        if trace["parent_chat_id"] >= 0:
            before = requests.loc[trace["parent_chat_id"]]
            assert (sent["parent"], sent["session"]) == (before["request_id"], before["session"])
            gap = trace["timestamp"] - rows[trace["parent_chat_id"]]["timestamp"]
            assert sent["gap"] == pytest.approx(gap)
            assert sent["sent"] >= before["ended"] + gap - 1e-6
        elif load == "recorded":
            assert sent["scheduled"] == pytest.approx(trace["timestamp"] - rows[0]["timestamp"])


@pytest.mark.slow
def test_a_conversation_is_sent_turn_by_turn_with_its_roles(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "chats.jsonl", [{"messages": CHAT}, {"messages": CHAT[1:]}])
    line = ["workload=recorded", f"workload.file={file}", "workload.num_requests=4", *CHAT_API.split()]
    row = measure(*CACHED, *line, "load=closed", f"out={tmp_path / 'out'}")
    assert "2 sessions, 4 turns" in capsys.readouterr().out
    assert not ALARMS & set(row["warnings"])
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    assert requests["turn"].tolist() == [0, 1, 0, 1]
    assert requests["prompt_words"].diff().iloc[1] == 10  # the answer, and what is asked next


@pytest.mark.slow
def test_nothing_is_shared_in_the_control(tmp_path: Path) -> None:
    line = ["workload=conversations", "workload.num_requests=40", "workload.prefix_tokens=48", "load=closed"]
    for shared, low, high in (("true", 0.5, 1), ("false", 0, 0.01)):
        row = measure(*CACHED, *line, f"workload.shared={shared}", f"out={tmp_path / shared}")
        assert low <= row["recorded_prefix_hit_rate"] <= high
        assert row["cached_share"] == pytest.approx(row["recorded_prefix_hit_rate"], abs=0.005)
        assert not ALARMS & set(row["warnings"])


def trace(**cells: Any) -> list[dict[str, Any]]:
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 20, "output_length": 2}
    return [{**row, "hash_ids": [1, 2]}, {**row, "chat_id": 2, "timestamp": 0.5, "hash_ids": [1, 3], **cells}]


@pytest.mark.parametrize(
    ("rows", "typed", "message"),
    [
        ([trace()[0] | {"parent_chat_id": 2}, trace()[1]], "", "row 1: parent_chat_id=2: that turn comes later"),
        (trace(parent_chat_id=2), "", "row 2: parent_chat_id=2: that turn comes later"),
        (trace(chat_id=1), "", "row 2: chat_id=1 appears twice"),
        (trace(), "workload.block_tokens=512", "row 1: 2 hash_ids for 20 tokens; expected 1 blocks of 512"),
        (trace(hash_ids=7), "", "row 2: hash_ids=7; expected a list of hashes"),
        (trace(), CHAT_API, "hash_ids are sent as token ids, which simulated (chat) does not take"),
        (trace(), "workload.order=random", "workload.order=random: a replay has its file's order"),
        (trace(), "workload.num_requests=3", "has 2 turns, and 3 are needed; workload.num_requests may be at most 2"),
        (trace(parent_chat_id=1), "load=batch", "its sessions have turns that follow each other; expected load=closed"),
        (
            [{"messages": CHAT, "timestamp": 0.0}] * 2,
            "load=recorded",
            "conversations have no recorded times; expected load=closed",
        ),
        ([{"messages": CHAT[1:2] * 2 + CHAT[2:]}], "", "two messages of a user in a row"),
        ([{"messages": CHAT[1:3] + CHAT[:1]}], "", "a system message after the first"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_one_line(
    tmp_path: Path, capsys: Any, rows: Any, typed: str, message: str
) -> None:
    file = write(tmp_path / "t.jsonl", rows)
    line = [*QUICK, "workload=recorded", f"workload.file={file}", "workload.num_requests=2", "load=closed"]
    assert main([*line, *typed.split(), "dry_run=true", f"out={tmp_path / 'out'}"]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1


# Planted faults -------------------------------------------------------------------------------------------------------


def ids(requests: list[Request], number: int) -> tuple[Any, ...]:
    return tuple(requests[number].prompt)


def changed(requests: list[Request], number: int, **fields: Any) -> list[Request]:
    names = Request.__dataclass_fields__
    cells = {name: getattr(requests[number], name) for name in names} | fields
    return [*requests[:number], Request(**cells), *requests[number + 1 :]]


def swapped(requests: list[Request]) -> list[Request]:
    exchanged = changed(requests, 0, prompt=ids(requests, 5))
    return changed(exchanged, 5, prompt=ids(requests, 0))


FAULTS: dict[str, Callable[[list[Request]], list[Request]]] = {
    "truncated history": lambda sent: changed(sent, 4, prompt=ids(sent, 4)[32:]),
    "swapped sessions": swapped,
    "a doubled turn": lambda sent: changed(sent, 3, prompt=ids(sent, 2)),
    "a lost system prompt": lambda sent: [changed(sent, n, prompt=ids(sent, n)[32:])[n] for n in range(len(sent))],
    "a salted prefix": lambda sent: [changed(sent, n, prompt=(n, *ids(sent, n)[1:]))[n] for n in range(len(sent))],
    "a boundary moved": lambda sent: changed(sent, 4, prompt=(7, *ids(sent, 4)[:-1])),
    "a dropped gap": lambda sent: sent,
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_certificate_catches_a_planted_fault_and_passes_a_true_replay(fault: str | None) -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    for seed in range(1 if fault else 50):
        workload = Conversations(name="c", turns=4, spread=0.5, gap=0.1, prefix_tokens=40, num_requests=12)
        turns = workload.session_turns(12, seed)
        true = workload.requests(tokenizer, 12, seed)
        sent = FAULTS[fault](list(true)) if fault else true
        records, clock = Records(), 0.0
        for number, request in enumerate(sent):
            parent = true[request.parent].request_id if request.parent >= 0 else None
            clock += 0.0 if fault == "a dropped gap" else request.gap
            cells = {"session": 0, "turn": number, "session_turns": 12, "parent": parent, "gap": request.gap}
            counts = {"input_tokens": len(request.prompt), "output_tokens": request.output_tokens}
            ended = clock + 0.5
            record = Record(request.request_id, "measured", None, clock, clock, ended=ended, **counts)
            for name, cell in cells.items():
                setattr(record, name, cell if parent or name not in ("parent", "gap") else None)
            records.append(record)
            clock = ended
        header = PieceTexts(tokenizer, seed, "measured", "").header()
        proof = certificate(turns, sent, records, tokenizer, header)
        mask = np.ones(len(records), np.bool_)
        row: dict[str, Any] = {"outcome": "ok", "trial_id": "t"}
        row |= figures({"certificate": proof, "records": records, "mask": mask, "prefix_hit_rate": None})
        alarms = ALARMS & {warning.code for warning in trial_warnings(row)} - {"cut-sessions"}
        assert bool(alarms) == bool(fault), (fault, seed, proof)


def test_texts_depend_on_seed_and_hash_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    workload = Recorded(name="r", file=str(write(tmp_path / "t.jsonl", bailian(8))), num_requests=8)
    first, again, salted, other = (
        [request.prompt for request in workload.requests(tokenizer, 8, seed, salt=salt)]
        for seed, salt in ((1, ""), (1, ""), (1, "x"), (2, ""))
    )
    assert first == again
    assert all(a[:16] != b[:16] for a, b in ((first[0], salted[0]), (first[0], other[0])))
    assert [len(prompt) for prompt in first] == [len(prompt) for prompt in other]
    assert all(isinstance(token, int) for prompt in first for token in prompt)


def test_a_conversation_keeps_its_history(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [{"messages": CHAT}])
    one, two = Recorded(name="r", file=str(file), num_requests=2).requests(None, 2, 1)
    assert [part.role for part in two.prompt if isinstance(part, Message)] == [turn["role"] for turn in CHAT[:-1]]
    assert two.prompt[:2] == one.prompt
    assert two.parent == 0
    assert all(a != b for a, b in pairwise(two.prompt))
