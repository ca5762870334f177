"""Sessions from files, through the whole command: what was recorded is what is sent, and a fault does not pass."""

import json
import re
import shutil
from array import array
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import analysis
from benchmarks.replay import FAULTS, alarms, caught_by, held, hit_rate, replay, trace
from sweep.__main__ import main
from sweep.base.config import ROOT
from sweep.base.records import Record, Records
from sweep.cli.selfcheck import plan_load
from sweep.inputs.load import Poisson, Trace
from sweep.inputs.sessions import conversations
from sweep.inputs.sessions.conversations import ConversationRows
from sweep.inputs.sessions.generated import Conversations
from sweep.inputs.sessions.recorded import Recorded
from sweep.inputs.sessions.turns import PieceTexts, Turn
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from sweep.node.replay.certificate import InfiniteCache, certificate, recorded_arrivals, recorded_turns
from tests.inputs.test_prompts import QUICK, measure, write

CACHED = [*QUICK, "backend.prefix_block=16", "backend.ttft.mean=0.05"]
CHAT_API = "backend.api=chat backend.batch_form=streams"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red, as far as I can see."},
    {"role": "user", "content": "And another one?"},
    {"role": "assistant", "content": "Blue."},
]
CALL = {"role": "assistant", "tool_calls": [{"id": "c1", "name": "find", "arguments": {}}]}
FOUND = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def check_plan(printed: str, sessions: int, requests: Any, row: Any) -> None:
    """Check how a plan describes messages, up to the words of a trial's header (of one or two tokens) and the order."""
    inputs, outputs = (requests[f"asked_{side}put_tokens"].sum() for side in ("in", "out"))
    counts = f"{sessions} sessions, {len(requests)} turns, ([0-9,]+) input and {outputs} output tokens"
    (stated,) = re.findall(f"{counts}, an infinite prefix cache supplies ([0-9.]+)% of the input; gaps of", printed)
    assert int(stated[0].replace(",", "")) == pytest.approx(inputs, abs=4 * len(requests))
    assert float(stated[1]) == pytest.approx(100 * row["sent_prefix_hit_rate"], abs=8)


@pytest.mark.slow
@pytest.mark.figures
@pytest.mark.parametrize("load", ["closed load.concurrency=3", "recorded"])
def test_a_trace_is_replayed_with_its_sessions_prefixes_and_gaps(tmp_path: Path, load: str) -> None:
    rows = trace(20, 60, seconds=0.5, gap=0.05)
    line = ["workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}", "workload.num_requests=60"]
    row = measure(*CACHED, *line, *f"load={load}".split(), f"out={tmp_path / 'out'}")
    assert row["recorded_prefix_hit_rate"] == pytest.approx(hit_rate(rows))
    assert row["cached_share"] == pytest.approx(hit_rate(rows), abs=0.005)
    assert row["cache_hit_difference"] == pytest.approx(0, abs=0.005)
    exact = ("replay_exact_lengths", "replay_exact_turns", "replay_hit_error", "sessions_cut")
    assert [row[column] for column in exact] == [1, 1, 0, 0]
    assert row["earliest_turn"] >= -1e-6
    assert not alarms(row.dropna().to_dict())
    assert row["later_turn_cached_share"] > row["cached_share"]
    assert (tmp_path / "out" / "figures" / "session_hits.svg").is_file()
    assert row["session_duration_p50"] > 0
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    requests = requests.assign(number=requests["request_id"].str.split("-").str[2].astype(int)).set_index("number")
    assert requests["ideal_cached_tokens"].sum() / requests["input_tokens"].sum() == pytest.approx(hit_rate(rows))
    begun, ended = (requests.groupby("session")[name] for name in ("sent", "ended"))
    if load != "recorded":  # a user keeps its session until the tree has drained
        under_way = [((begun.min() <= time) & (ended.max() > time)).sum() for time in begun.min()]
        assert max(under_way) == 3
    for number, cells in enumerate(rows):
        sent = requests.loc[number]
        assert (sent["input_tokens"], sent["output_tokens"]) == (cells["input_length"], cells["output_length"])
        if cells["parent_chat_id"] >= 0:
            before = requests.loc[cells["parent_chat_id"]]
            assert (sent["parent"], sent["session"]) == (before["request_id"], before["session"])
            gap = cells["timestamp"] - rows[cells["parent_chat_id"]]["timestamp"]
            assert sent["gap"] == pytest.approx(gap)
            assert sent["sent"] >= before["ended"] + gap - 1e-6
        elif load == "recorded":
            assert sent["scheduled"] == pytest.approx(cells["timestamp"] - rows[0]["timestamp"])


@pytest.mark.slow
def test_a_conversation_is_sent_turn_by_turn_with_its_roles(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "chats.jsonl", [{"messages": CHAT}, {"messages": CHAT[1:]}])
    line = ["workload=recorded", f"workload.file={file}", "workload.num_requests=4", *CHAT_API.split()]
    row = measure(*CACHED, *line, "load=closed", f"out={tmp_path / 'out'}")
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    check_plan(capsys.readouterr().out, 2, requests, row)
    assert not alarms(row.dropna().to_dict())
    assert requests["turn"].tolist() == [0, 1, 0, 1]
    assert requests["prompt_words"].diff().iloc[1] == 10  # the answer, and what is asked next


@pytest.mark.slow
@pytest.mark.parametrize("api", [CHAT_API, "backend.api=completions"])
def test_live_answers_stand_in_the_history(tmp_path: Path, capsys: Any, api: str) -> None:
    """The simulated engine answers with words of its own, as many as tokens, and reports what it was sent."""
    longer = [*CHAT, {"role": "user", "content": "Any more?"}, {"role": "assistant", "content": "Green and yellow."}]
    file = write(tmp_path / "chats.jsonl", [{"messages": longer}, {"messages": longer[1:]}])
    line = [*QUICK, "workload=recorded", f"workload.file={file}", "workload.num_requests=6", *api.split()]
    rows = {}
    for answers in ("live", "recorded"):
        out = tmp_path / answers
        row = measure(*line, "load=closed", "load.concurrency=2", f"workload.answers={answers}", f"out={out}")
        assert not alarms(row.dropna().to_dict())
        assert (row["replay_exact_turns"], row["replay_exact_lengths"], row["sessions_cut"]) == (1, 1, 0)
        assert row["earliest_turn"] >= -1e-6
        rows[answers] = row, analysis.requests(str(out), row["trial_id"]).query("phase == 'measured'")
    row, sent = rows["live"]
    assert row["replay_unchecked"].startswith("prefix hits and prompts' lengths")
    assert row[["sent_prefix_hit_rate", "recorded_prefix_hit_rate", "replay_hit_error"]].isna().all()
    asked = [len(turn["content"].split()) for turn in longer if turn["role"] == "user"]
    for session in (0, 1):
        inputs, outputs = (
            sent.query(f"session == {session}")[f"{what}_tokens"].tolist() for what in ("input", "output")
        )
        assert inputs[1] - inputs[0] == outputs[0] + asked[1]  # in words, which are the simulated engine's tokens
        assert inputs[2] - inputs[1] == outputs[1] + asked[2]
        of_recorded = rows["recorded"][1].query(f"session == {session}")["input_tokens"].iloc[1]
        assert of_recorded - inputs[0] == len(CHAT[2]["content"].split()) + asked[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "load"),
    [
        ([{"timestamp": None}] * 2, "load=closed"),
        ([{"timestamp": f"2026-01-02T03:04:05.{n}00"} for n in (1, 3)], "load=recorded"),
        ([{"timestamp": 0.0}, {"timestamp": 0.3}], "load=trace load.path=FILE load.unit=ms"),
    ],
)
def test_a_certificate_reads_only_the_times_that_a_replay_needs(tmp_path: Path, cells: Any, load: str) -> None:
    rows = [
        row | more for row, more in zip(pair(parent_chat_id=-1 if load == "load=closed" else 1), cells, strict=True)
    ]
    times = write(tmp_path / "times.txt", "0\n900\n")
    line = ["workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}", "workload.num_requests=2"]
    row = measure(*CACHED, *line, *load.replace("FILE", str(times)).split(), f"out={tmp_path / 'out'}")
    assert row["replay_exact_turns"] == 1
    assert not alarms(row.dropna().to_dict())


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["prefix", "round_robin"])
def test_a_router_by_prefix_keeps_a_session_on_its_replica(tmp_path: Path, routing: str) -> None:
    line = ["workload=conversations", "workload.num_requests=40", "workload.prefix_tokens=0", "load=closed"]
    line += ["load.concurrency=4", "backend.replicas=2", "gateway=router", f"gateway.routing={routing}"]
    row = measure(*CACHED, *line, f"out={tmp_path / 'out'}")
    cached, ideal = row["later_turn_cached_share"], row["later_turn_sent_hit_rate"]
    assert (cached == pytest.approx(ideal, abs=0.005)) == (routing == "prefix")
    assert ideal > 0.5
    assert "missed_prefix_hits" not in row.dropna()  # of two caches
    assert not alarms(row.dropna().to_dict())


@pytest.mark.slow
@pytest.mark.parametrize("duration", ["null", "0.6"])
def test_sessions_of_clients_arrive_by_a_process_and_a_duration_cuts_them(tmp_path: Path, duration: str) -> None:
    line = ["workload=conversations", "workload.num_requests=40", "workload.clients=3", "workload.gap=0.1"]
    line += ["load=poisson", "load.rate=20", f"load.duration={duration}", f"out={tmp_path / 'out'}"]
    row = measure(*CACHED, *line)
    assert (row["replay_exact_turns"], row["earliest_turn"] >= -1e-6) == (1, True)
    assert row["cached_share"] == pytest.approx(row["sent_prefix_hit_rate"], abs=0.005)
    assert alarms(row.dropna().to_dict()) == (set() if duration == "null" else {"cut-sessions"})
    assert (row["sessions_cut"] > 0) == (duration != "null")
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    begun = requests[requests["parent"].isna()]["scheduled"].tolist()
    assert begun == pytest.approx(Poisson(rate=20).arrivals(len(begun), int(row["seed"])))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 48])
def test_ideal_hits_are_those_of_the_engines_own_blocks(tmp_path: Path, block: int) -> None:
    line = ["workload=conversations", "workload.num_requests=20", "workload.prefix_tokens=60", "load=closed"]
    row = measure(*CACHED, f"backend.prefix_block={block}", *line, f"out={tmp_path / 'out'}")
    assert (row["cache_hit_difference"], row["missed_prefix_hits"]) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.slow
def test_hits_that_a_small_cache_cannot_have_are_not_missed(tmp_path: Path) -> None:
    line = ["workload=conversations", "workload.num_requests=40", "load=closed", "load.concurrency=4"]
    row = measure(*CACHED, *line, "backend.kv_cache_tokens=1024", f"out={tmp_path / 'out'}")
    assert row["cache_hit_difference"] < -0.1
    assert "missed_prefix_hits" not in row.dropna()
    assert not alarms(row.dropna().to_dict())


@pytest.mark.slow
def test_a_history_that_does_not_arrive_is_noticed(tmp_path: Path) -> None:
    """A gateway clips the messages, so the engine counts fewer tokens than the words that were sent."""
    file = write(tmp_path / "t.jsonl", [{"messages": CHAT}])
    line = ["workload=recorded", "load=closed", f"workload.file={file}", "workload.num_requests=2", *CHAT_API.split()]
    for most, others in ((1000, set()), (9, {"other-recorded-lengths"})):
        clip = ["gateway=clip", f"gateway.clip.input_tokens={most}", f"out={tmp_path / str(most)}"]
        assert alarms(measure(*CACHED, *line, *clip).dropna().to_dict()) == others


@pytest.mark.slow
def test_nothing_is_shared_in_the_control(tmp_path: Path) -> None:
    line = ["workload=conversations", "workload.num_requests=40", "workload.prefix_tokens=48", "load=closed"]
    for shared, low, high in (("true", 0.5, 1), ("false", 0, 0.01)):
        row = measure(*CACHED, *line, f"workload.shared={shared}", f"out={tmp_path / shared}")
        assert low <= row["recorded_prefix_hit_rate"] <= high
        assert row["cached_share"] == pytest.approx(row["recorded_prefix_hit_rate"], abs=0.005)
        assert not alarms(row.dropna().to_dict())


@pytest.mark.slow
def test_agents_wait_for_their_tools_and_sub_agents(tmp_path: Path) -> None:
    line = ["+experiment=agents", *QUICK, "grid={backend.prefix_block: [null, 16]}", "replicates=1", "agreement=false"]
    line += ["baseline={backend.prefix_block: null}", "workload.num_requests=40", "workload.delegating=0.5"]
    assert main(
        [*line, "backend.ttft.mean=0.05", "load.concurrency=3", "workload.gap=0.05", f"out={tmp_path / 'out'}"]
    ) in (0, 1)
    plain, cached = (row.dropna().to_dict() for _, row in analysis.load(str(tmp_path / "out")).iterrows())
    assert cached["recorded_prefix_hit_rate"] == plain["recorded_prefix_hit_rate"] > 0.5
    assert cached["cached_share"] == pytest.approx(cached["recorded_prefix_hit_rate"], abs=0.005)
    assert alarms(plain) == alarms(cached) == set()
    assert plain["replay_unchecked"] == "the engine's hits: it counts none"
    assert "replay_unchecked" not in cached
    requests = analysis.requests(str(tmp_path / "out"), cached["trial_id"]).query("phase == 'measured'")
    turns, followed = requests.set_index("request_id"), requests.dropna(subset="parent").groupby("parent")
    delegating = [parent for parent, group in followed if len(group) > 1]
    assert delegating
    for parent, later in followed:
        assert (later["sent"] >= turns.loc[parent, "ended"] + later["gap"] - 1e-6).all()
        if parent in delegating:  # sub-agents start at once, and with another system prompt
            assert later["gap"].tolist() == [0, 0]
            assert later["cached_tokens"].max() < turns.loc[parent, "input_tokens"]


@pytest.mark.slow
def test_a_trace_is_repeated_at_twice_its_speed_and_shares_nothing_between_repetitions(tmp_path: Path) -> None:
    rows = trace(8, 30, seconds=0.6, gap=0.1)
    line = ["workload=recorded", "load=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}"]
    line += ["workload.repeat=2", "workload.speed=2", "workload.num_requests=60", f"out={tmp_path / 'out'}"]
    row = measure(*CACHED, *line)
    assert row["recorded_prefix_hit_rate"] == pytest.approx(hit_rate(rows))
    assert row["cached_share"] == pytest.approx(hit_rate(rows), abs=0.005)
    assert not alarms(row.dropna().to_dict())
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    requests = requests.assign(number=requests["request_id"].str.split("-").str[2].astype(int)).set_index("number")
    again = rows[-1]["timestamp"] - rows[0]["timestamp"]
    for number, cells in enumerate(rows):
        first, second = requests.loc[number], requests.loc[number + len(rows)]
        if cells["parent_chat_id"] < 0:
            assert first["scheduled"] == pytest.approx((cells["timestamp"] - rows[0]["timestamp"]) / 2)
            assert second["scheduled"] - first["scheduled"] == pytest.approx(again * len(rows) / (len(rows) - 1) / 2)
        else:
            gap = (cells["timestamp"] - rows[cells["parent_chat_id"]]["timestamp"]) / 2
            assert (first["gap"], second["gap"]) == (pytest.approx(gap), pytest.approx(gap))
    assert main([*QUICK, *line, "load.speed=1", "dry_run=true"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_turns_beyond_the_context_lose_their_oldest_part_and_the_row_counts_them(tmp_path: Path, chat: bool) -> None:
    talk = [*CHAT, {"role": "user", "content": "A third one, please?"}, {"role": "assistant", "content": "Green."}]
    file = write(tmp_path / "t.jsonl", [{"messages": talk}] if chat else trace(6, 24, seconds=0.3, gap=0.05))
    line = ["workload=recorded", "load=closed", f"workload.file={file}", "workload.truncate=oldest"]
    line += [f"workload.context={70 if chat else 250}", f"workload.num_requests={3 if chat else 24}"]
    row = measure(*CACHED, *line, *(CHAT_API.split() if chat else ()), f"out={tmp_path / 'out'}")
    assert row["truncated_turns"] > 0
    assert not alarms(row.dropna().to_dict())
    assert "truncated-history" in row["warnings"]
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    assert (requests["asked_input_tokens"] + requests["asked_output_tokens"]).max() <= (70 if chat else 250)


@pytest.mark.slow
def test_a_conversation_beyond_the_context_is_refused_and_one_that_the_plan_did_not_count_invalid(
    tmp_path: Path, capsys: Any
) -> None:
    file = write(tmp_path / "t.jsonl", [{"messages": CHAT}])
    line = [*CACHED, "workload=recorded", "load=closed", f"workload.file={file}", "workload.context=20"]
    line += [*CHAT_API.split(), "workload.num_requests=2", f"out={tmp_path / 'out'}"]
    assert main(line) == 2
    assert "exceeds the context of 20 tokens; workload.truncate=oldest" in capsys.readouterr().err
    with patch.object(Recorded, "notes", return_value=[]):
        assert main(line) == 1
    row = analysis.load(str(tmp_path / "out"), all_rows=True).iloc[0]
    assert (row["outcome"], "exceeds the context of 20 tokens" in row["reason"]) == ("invalid", True)


@pytest.mark.slow
@pytest.mark.parametrize("primed", ["true", "false"])
def test_sessions_under_way_go_on_with_their_history_in_primed_or_cold_caches(tmp_path: Path, primed: str) -> None:
    line = ["workload=conversations", "workload.num_requests=30", "workload.prefix_tokens=48", "load=closed"]
    line += ["load.concurrency=4", "workload.started=4", f"workload.primed={primed}", f"out={tmp_path / 'out'}"]
    row = measure(*CACHED, *line)
    assert not alarms(row.dropna().to_dict())
    assert row["cached_share"] == pytest.approx(row["sent_prefix_hit_rate"], abs=0.005)
    assert row["later_turn_cached_share"] == pytest.approx(row["later_turn_sent_hit_rate"], abs=0.005)
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"])
    begun = requests.query("phase == 'measured' and session < 4 and turn == 0")
    history = begun[begun["input_tokens"] > 48 + 90]  # more than a system prompt and a first question
    assert len(history)
    assert (history["cached_tokens"].max() > 48) == (primed == "true")
    assert (requests["request_id"].str.contains("primed").sum() > 0) == (primed == "true")


def pair(**cells: Any) -> list[dict[str, Any]]:
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 20, "output_length": 2}
    return [{**row, "hash_ids": [1, 2]}, {**row, "chat_id": 2, "timestamp": 0.5, "hash_ids": [1, 3], **cells}]


@pytest.mark.parametrize(
    ("rows", "typed", "message"),
    [
        ([pair()[0] | {"parent_chat_id": 2}, pair()[1]], "", "row 1: parent_chat_id=2: that turn comes later"),
        (pair(parent_chat_id=2), "", "row 2: parent_chat_id=2: that turn comes later"),
        (pair(chat_id=1), "", "row 2: chat_id=1 appears twice"),
        (pair(), "workload.block_tokens=512", "row 1: 2 hash_ids for 20 tokens; expected 1 blocks of 512"),
        (pair(hash_ids=[True, 2]), "", "row 2: hash_ids=[True, 2]; expected a list of hashes"),
        (pair(hash_ids=7), "", "row 2: hash_ids=7; expected a list of hashes"),
        (pair(hash_ids="[" * 100_000), "", "row 2: hash_ids='[[[["),
        (pair(chat_id=[2]), "", "row 2: chat_id=[2]; expected a number or text"),
        (pair(parent_chat_id={"id": 1}), "", "row 2: parent_chat_id={'id': 1}; expected a number or text"),
        ([{"messages": CHAT}, {"id": 2}], "workload.num_requests=3", "has 2 turns, and 3 are needed"),
        (pair(parent_chat_id=1, timestamp=float("inf")), "", "row 2: timestamp=inf; expected a number or an ISO 8601"),
        (pair(parent_chat_id=1, timestamp=1e300), "", "row 2: timestamp=1e+300; expected a number or an ISO 8601"),
        (pair(parent_chat_id=1, timestamp=-1), "", "row 2: timestamp=-1 is before that of the turn it follows"),
        ([{key: cell for key, cell in pair()[0].items() if key != "hash_ids"}], "", "hash_ids=None"),
        (pair(), "workload.truncate=oldest", "workload.truncate=oldest: the context of tiny-llama is unknown"),
        (pair(), "workload.started=1 load=recorded", "workload.started=1: sessions begin at the times in"),
        (pair(parent_chat_id=1), "workload.started=1", "has 1 turn after what its sessions under way may have sent (1"),
        (pair(), CHAT_API, "hash_ids are sent as token ids, which simulated (chat) does not take"),
        (pair(), "workload.order=random", "workload.order=random: a replay has its file's order"),
        (pair(), "workload.num_requests=3", "has 2 turns, and 3 are needed; workload.num_requests may be at most 2"),
        (pair(parent_chat_id=1), "load=batch", "its sessions have turns that follow each other; expected load=closed"),
        (pair(parent_chat_id=1), "load=recorded load.unit=ms", "are in s; expected s"),
        ([{"messages": CHAT, "timestamp": 0.0}] * 2, "load=recorded", "conversations have no recorded times; expected"),
        (pair(), "workload.answers=live", "t.jsonl has no conversations turn by turn; expected recorded"),
        ([{"messages": CHAT}], "workload.answers=live workload.started=1", "earlier answers are unknown"),
        ([{"messages": [*CHAT[:2], CHAT[2] | {"content": "\ufdd01\ufdd0"}]}], "", "the character U+FDD0 in a turn"),
        ([{"messages": CHAT[1:2] * 2 + CHAT[2:]}], "", "the role user after user; expected an order that chat temp"),
        ([{"messages": [*CHAT[:2], CALL]}], "workload.answers=live", "answers call tools, whose results are recorded"),
        ([{"messages": [*CHAT[:2], CALL, *CHAT[3:]]}], "", "the role user after a tool call without a result; "),
        ([{"messages": [*CHAT[:2], {**FOUND, "tool_call_id": 9}]}], "", "a tool result for '9'; expected"),
        ([{"messages": [*CHAT[:2], {**CALL, "tool_calls": [{"name": "f", "input": 7}]}]}], "", "expected a name and"),
        ([{"messages": CHAT, "tools": [{"type": "web_search"}]}], "", "expected functions with names"),
        ([{"messages": CHAT, "system": "Be long."}], "", "the role system after system"),
        (
            [{"messages": CHAT, "timestamp": 0, "input_tokens": 9, "output_tokens": 2}] * 2,
            "",
            "has both conversations and columns of lengths (input_tokens); expected one of them; workload.pref",
        ),
        (
            [pair()[0], {key: cell for key, cell in pair()[1].items() if "chat" not in key}],
            "",
            "row 2: no chat_id, parent_chat_id or turn, unlike other rows; its unit is uncertain",
        ),
        (pair(parent_chat_id=1, timestamp=30_000), "", "the median gap is 30000 s; the unit of timestamp is uncertain"),
        ([{"messages": CHAT[1:3] + CHAT[:1]}], "", "the role system after assistant"),
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


def test_a_turn_longer_than_the_context_is_refused(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "t.jsonl", [pair()[0] | {"input_length": 5000, "hash_ids": list(range(313))}])
    line = ["backend=vllm", "model=tiny-llama", "hardware=cpu", "load=closed", "workload=recorded"]
    more = [f"workload.file={file}", "workload.num_requests=1", "dry_run=true", f"out={tmp_path / 'out'}"]
    assert main([*line, *more]) == 2
    message = "a turn of 5000 input and 2 output tokens exceeds the context of tiny-llama; expected at most 2048 to"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("system", "api", "status"), [(0, "chat", 2), (1, "chat", 0), (0, "completions", 0)])
def test_roles_that_the_models_chat_template_refuses_are_refused(
    tmp_path: Path, capsys: Any, system: int, api: str, status: int
) -> None:
    folder = shutil.copytree(SHIPPED_TOKENIZER, tmp_path / "tokenizer")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(template + "{{ tools.unknown }}")
    line = [*QUICK, "workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', [{'messages': CHAT[system:]}])}"]
    line += [f"model.tokenizer={folder}", f"backend.api={api}", "backend.batch_form=streams", "workload.num_requests=2"]
    assert main([*line, "load=closed", "dry_run=true", f"out={tmp_path / 'out'}"]) == status
    problem = "the chat template of tiny-llama refuses the roles system, user"
    assert (problem in capsys.readouterr().err) == (status == 2)


def test_a_plan_counts_sessions_and_their_branches(tmp_path: Path, capsys: Any) -> None:
    rows = [*pair(parent_chat_id=1), pair(parent_chat_id=1, chat_id=3)[1], pair(parent_chat_id=7, chat_id=4)[1]]
    line = ["workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}", "workload.num_requests=3"]
    line = [*QUICK, *line, "load=closed"]
    assert main([*line, "load.concurrency=3", "dry_run=true", f"out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "1 session for 3 users" in printed
    tokens = "60 input and 6 output tokens, an infinite prefix cache supplies 53.3% of the input"
    assert f"1 session, 3 turns, {tokens}; gaps of 0.5 s" in printed
    assert "the parent of 1 turn is missing or skipped; each begins a session" in printed
    assert plan_load([*line, "load.concurrency=1"], ()) == 2


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("load=recorded", 30),  # the second session begins at 10 s and waits 20 s
        ("load=recorded load.duration=12", 12),
        ("load=closed load.concurrency=1", 25 + 20),
        ("load=closed load.concurrency=2", 25),
    ],
)
def test_a_plan_states_the_least_duration_of_a_replay(tmp_path: Path, capsys: Any, typed: str, seconds: int) -> None:
    cells = {"input_length": 9, "output_length": 2, "hash_ids": [1]}
    places = ((1, -1, 0.0), (2, 1, 5.0), (3, -1, 10.0), (4, 2, 20.5), (5, 1, 25.0), (6, 3, 30.0))
    rows = [cells | {"chat_id": chat, "parent_chat_id": parent, "timestamp": at} for chat, parent, at in places]
    line = ["workload=recorded", f"workload.file={write(tmp_path / 't.jsonl', rows)}", "workload.num_requests=6"]
    assert main([*QUICK, *line, *typed.split(), "dry_run=true", f"out={tmp_path / 'out'}"]) == 0
    assert f": at least {seconds} s of gaps and arrivals in its first trial" in capsys.readouterr().out


def test_a_plan_refuses_the_longest_turn_of_any_seed(tmp_path: Path, capsys: Any) -> None:
    """The context fits the turns that seed 0 draws, but not those of the trials' seeds."""
    longest = sum(Conversations(name="c").longest_request())
    line = ["backend=vllm", "model=tiny-llama", "hardware=cpu", "load=closed", "workload=conversations"]
    line += ["replicates=12", f"model.max_model_len={longest}"]
    assert main([*line, "dry_run=true", f"out={tmp_path / 'out'}"]) == 2
    assert f"exceeds the context of tiny-llama; expected at most {longest} together" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path) -> None:
    assert FAULTS[fault] in caught_by(fault, trace(8, 40, seconds=0.3, gap=0.1), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "system", "doubled", "swapped"])
def test_a_conversation_that_is_read_wrongly_is_caught(fault: str, tmp_path: Path) -> None:
    """The fault is in the reader, whose turns the requests are made of."""
    chats = [[{**turn, "content": f"{turn['content']} {n}"} for turn in CHAT] for n in range(3)]
    rows = [{"messages": chats[0]}, {"messages": CHAT[:2]}, {"messages": json.dumps(chats[1][1:]), "system": "Be calm"}]
    file, read = write(tmp_path / "t.jsonl", [*rows, {"messages": chats[2][1:]}]), conversations.read_conversations

    def wrong(*arguments: Any) -> ConversationRows:
        talks, faults = read(*arguments)
        if fault == "system":
            talks = [[talk[0]._replace(new=talk[0].new[-1:]), *talk[1:]] for talk in talks]
        return ConversationRows({"doubled": [talks[0], *talks], "swapped": talks[::-1]}.get(fault, talks), faults)

    line = ["workload=recorded", f"workload.file={file}", "workload.num_requests=6", *CHAT_API.split(), "load=closed"]
    with patch.object(conversations, "read_conversations", wrong):
        row = measure(*CACHED, *line, "load.concurrency=3", f"out={tmp_path / 'out'}")
    assert ("other-turns" in alarms(row.dropna().to_dict())) == (fault != "")


@pytest.mark.slow
def test_a_replay_without_a_certificate_is_invalid_also_after_a_resume(tmp_path: Path) -> None:
    rows, out = trace(8, 40, seconds=0.3, gap=0.1), tmp_path / "out"
    for _ in range(2):
        with patch("sweep.node.replay.certificate.recorded_turns", side_effect=TypeError("no time")):
            ((row,), _) = replay(rows, out, "load=recorded")
        assert row["outcome"] == "invalid"
        assert row["reason"].startswith("the replay has no certificate")
        assert row["reason"].endswith("gave TypeError no time")
    ((row,), _) = replay(rows, out, "load=recorded", "retry_failed=true")
    assert row["outcome"] in ("ok", "client_limited")
    assert row["replay_exact_turns"] == 1


def test_texts_depend_on_seed_and_hash_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    workload = Recorded(name="r", file=str(write(tmp_path / "t.jsonl", trace(3, 8, seconds=1))), num_requests=8)
    first, again, salted, other = (
        [request.prompt for request in workload.requests(tokenizer, 8, seed, salt=salt)]
        for seed, salt in ((1, ""), (1, ""), (1, "x"), (2, ""))
    )
    assert first == again
    assert all(a[:16] != b[:16] for a, b in ((first[0], salted[0]), (first[0], other[0])))
    assert [len(prompt) for prompt in first] == [len(prompt) for prompt in other]
    assert all(isinstance(token, int) for prompt in first for token in prompt)


@pytest.mark.parametrize("tools", [[], [{"name": "find"}]])
def test_a_certificate_cuts_exactly_what_the_requests_cut(tmp_path: Path, tools: Any) -> None:
    talk = [*CHAT, *({"role": role, "content": f"A {n} and more."} for n in (2, 3) for role in ("user", "assistant"))]
    file = write(tmp_path / "t.jsonl", [{"messages": talk, "tools": tools}])
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    cut = set()
    for context in range(100, 200):
        workload = Recorded(name="r", file=str(file), num_requests=4, context=context, truncate="oldest")
        requests, records = workload.requests(tokenizer, 4, 1), Records()
        for number, each in enumerate(requests):
            tokens = each.input_tokens, each.output_tokens
            records.append(
                Record(each.request_id, "measured", None, number, number, array("I", [1]), array("H", [1]), *tokens)
            )
        header = PieceTexts(tokenizer, 1, "measured", "").header
        proof = certificate(
            workload.session_turns(4, 1, tokenizer), requests, records, tokenizer, header, InfiniteCache(), workload.fit
        )
        assert proof.truncated == sum(each.truncated for each in requests)
        assert proof.exact_turns in (None, 1)
        cut.add(proof.truncated)
    assert {0, 1, 2} <= cut


def test_equal_hashes_are_equal_numbers_or_texts(tmp_path: Path) -> None:
    rows = [{"input_length": 16, "output_length": 2, "hash_ids": [each]} for each in (1, "1", "\ud800", "1")]
    workload = Recorded(name="r", file=str(write(tmp_path / "t.jsonl", rows)), num_requests=4)
    prompts = [request.prompt for request in workload.requests(None, 4, 1)]
    assert [prompts.index(prompt) for prompt in prompts] == [0, 1, 2, 1]
    assert [turn.input_tokens for turn in recorded_turns(workload, 4)] == [16] * 4
    assert recorded_turns(workload, 4) == workload.session_turns(4)


def test_clients_have_rates_lengths_and_system_prompts_of_their_own() -> None:
    workload = Conversations(name="c", clients=3, client_spread=1, zipf=1, spread=0.2, gap=1, num_requests=2000)
    turns = workload.session_turns(2000, seed=1)
    of_client: dict[Any, list[Turn]] = {}
    for turn in turns:
        of_client.setdefault(turn.pieces[0], []).append(turn)
    begun = [sum(turn.parent < 0 for turn in of_client[each]) for each in sorted(of_client)]
    assert begun == sorted(begun, reverse=True)
    assert begun[0] / sum(begun) == pytest.approx(6 / 11, abs=0.1)
    answers = [[turn.output_tokens for turn in each] for each in of_client.values()]
    assert all(max(each) <= 1.6 * min(each) for each in answers)  # within 20% of a client's mean
    assert max(map(max, answers)) > 2 * min(map(max, answers))  # clients differ
    assert len({piece.tokens for piece in of_client}) == 3
    again = workload.session_turns(2000, seed=2)
    assert {turn.pieces[0] for turn in again} == set(of_client)
    assert again != turns


def test_each_session_talks_to_one_model() -> None:
    workload = Conversations(name="c", models={"base": 1, "adapter": 3})
    requests = workload.requests(None, 64, 1)
    begun = [request.model for request in requests if request.parent < 0]
    assert set(begun) == {"base", "adapter"}
    assert begun.count("adapter") > begun.count("base")
    assert all(request.model == requests[request.parent].model for request in requests if request.parent >= 0)


def test_the_documented_table_is_a_trace(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "experiments.md").read_text()
    table = document[document.index("    chat_id,") :].partition("\n\n")[0]
    file = write(tmp_path / "trace.csv", "\n".join(line.strip() for line in table.splitlines()))
    workload = Recorded(name="r", file=str(file), num_requests=4)
    requests = workload.requests(None, 4, 1)
    assert [(request.parent, round(request.gap, 3)) for request in requests] == [(-1, 0), (-1, 0), (0, 1.5), (0, 1.9)]
    assert recorded_turns(workload, 4) == workload.session_turns(4)
    slow = workload.model_copy(update={"recorded_tpot": 0.1})  # of the recorded engine, whose first answer has 8 tokens
    assert [round(turn.gap, 3) for turn in slow.session_turns(4)] == [0, 0, 0.7, 1.1]
    assert recorded_turns(slow, 4) == slow.session_turns(4)
    assert recorded_arrivals(workload, 4, Trace(path=str(file))) == [0, 0.4, 1.5, 1.9]
    assert recorded_arrivals(workload, 4, Trace(path=str(file), speed=2)) == [0, 0.2, 0.75, 0.95]  # a probe's load


@pytest.mark.parametrize(
    ("chats", "parents"),
    [
        (("7.0", " 8", "007.5", None), (-1, " 7", "8.0", None)),
        ((None, None, "a", ""), (None, None, "", " a")),
        ((2**70, -1, "", "x"), ("-1", -1, float("nan"), 2**70)),
    ],
)
def test_a_certificate_knows_turns_by_the_names_that_the_reader_knows(tmp_path: Path, chats: Any, parents: Any) -> None:
    row = {"input_length": 9, "output_length": 2}
    rows = [
        row | {"chat_id": chat, "parent_chat_id": parent, "timestamp": 0.5 * number, "hash_ids": [number]}
        for number, (chat, parent) in enumerate(zip(chats, parents, strict=True))
    ]
    workload = Recorded(name="r", file=str(write(tmp_path / "t.jsonl", rows)), num_requests=4)
    assert recorded_turns(workload, 4) == workload.session_turns(4)


def test_a_unit_in_a_columns_name_makes_long_gaps_certain(tmp_path: Path) -> None:
    rows = [{"timestamp_ms": 1000 * row.pop("timestamp"), **row} for row in pair(parent_chat_id=1, timestamp=2000)]
    workload = Recorded(name="r", file=str(write(tmp_path / "t.jsonl", rows)), num_requests=2)
    assert [turn.gap for turn in workload.session_turns(2)] == [0, 2000]


@pytest.mark.slow
def test_held_sessions_are_compared_with_the_engines_log(tmp_path: Path) -> None:
    row = held(12, tmp_path / "out", turns=2, gap=0.3, itl=0.001)
    assert 1 <= row["flying"] <= row["held"] <= 12
    assert [len(row["compared"].errors[name]) for name in ("ttft", "e2e")] == [24, 24]  # a busy machine has no TPOT
