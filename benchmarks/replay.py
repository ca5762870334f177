"""Replays a generated trace through the whole command, and plants faults that its certificate must catch.

    python -m benchmarks.replay --write docs/measurements/replay.md
    python -m benchmarks.replay --held 10000 --write docs/measurements/replay.md

The trace has Qwen-Bailian's columns: sessions with branches behind shared system prompts, in blocks of 16 tokens. The
simulated engine has a prefix cache of the same blocks and counts its hits. Figures come from trials.parquet and
requests.parquet; the trace's own hit rate is counted here, from the hashes alone. A fault is planted in this process,
in the code that reads the trace, or makes or sends its requests. `--held` measures the client with many sessions
instead: each request's published latencies are compared with the times in the simulated engine's own log.
"""

import argparse
import contextlib
import io
import json
import pickle
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

import analysis
from backends.simulated_server.truth import read_log
from benchmarks import client
from benchmarks.documents import markdown_table, publish
from sweep.__main__ import main as sweep
from sweep.base.records import Request
from sweep.client.job import Job
from sweep.disk.run_files import RunPaths, read_trials
from sweep.inputs.load import Trace
from sweep.inputs.sessions import recorded, turns
from sweep.inputs.sessions.traces import trace_turns
from sweep.node.replay import certificate
from sweep.numbers.warnings import trial_warnings

BLOCK = 16
SYSTEM = 8  # blocks of a system prompt
ALARMS = {"other-prefixes", "unrecorded-hits", "other-recorded-lengths", "other-turns", "other-schedule"}
ALARMS |= {"early-turns", "cut-sessions", "missed-hits"}
COMMAND = (
    "backend=simulated backend.prefix_block=16 backend.kv_cache_tokens=8000000 backend.ttft.mean=0.02 "
    "backend.itl.mean=0.002 model=tiny-llama cluster=inline tracking=none hardware=cpu workload=recorded "
    "workload.warmup_requests=1"
)
Row = dict[str, Any]


def trace(sessions: int, requests: int, seconds: float, gap: float = 1.0, seed: int = 1) -> list[Row]:
    """Make a trace: sessions begin within `seconds`; a turn follows its parent after at most `gap` s.

    One turn in ten does not follow the latest of its session, so a session is a tree.
    """
    chance, hashes = random.Random(seed), count(10_000)
    trees: list[list[Row]] = []
    for number in range(requests):
        if number < sessions:
            system, time = min(int(chance.paretovariate(1)), 8), chance.uniform(0, seconds)
            blocks = [100 * system + block for block in range(SYSTEM)]
            parent, tree = dict[str, Any](), list[Row]()
            trees.append(tree)
        else:
            tree = chance.choice(trees)
            parent = chance.choice(tree) if chance.random() < 0.1 else tree[-1]
            blocks, time = parent["hash_ids"][: parent["input_length"] // BLOCK], parent["timestamp"]
            time += chance.uniform(0.1, 1) * gap
        length = len(blocks) * BLOCK + chance.randint(BLOCK, 6 * BLOCK)
        blocks = [*blocks, *(next(hashes) for _ in range(-(-length // BLOCK) - len(blocks)))]
        row: Row = {"parent": parent, "timestamp": round(time, 6), "input_length": length, "hash_ids": blocks}
        tree.append(row | {"output_length": chance.randint(2, 12), "type": "text", "turn": len(tree) + 1})
    rows = sorted((row for tree in trees for row in tree), key=lambda row: row["timestamp"])
    chats = {row["hash_ids"][-1]: chat for chat, row in enumerate(rows)}  # the last block of each prompt is its own
    for row in rows:
        parent = row.pop("parent")
        row["chat_id"] = chats[row["hash_ids"][-1]]
        row["parent_chat_id"] = chats[parent["hash_ids"][-1]] if parent else -1
    return rows


def without_sharing(rows: list[Row]) -> list[Row]:
    """Return the trace with a hash of its own for each block: the control."""
    hashes = count()
    return [row | {"hash_ids": [next(hashes) for _ in row["hash_ids"]]} for row in rows]


def hit_rate(rows: list[Row]) -> float:
    """Return the share of the input, in whole blocks, with which an earlier row began."""
    earlier, hits = set[tuple[int, ...]](), 0
    for row in rows:
        blocks = row["hash_ids"][: row["input_length"] // BLOCK]
        prefixes = [tuple(blocks[:end]) for end in range(1, len(blocks) + 1)]
        hits += BLOCK * sum(prefix in earlier and BLOCK * len(prefix) < row["input_length"] for prefix in prefixes)
        earlier.update(prefixes)
    return float(hits / sum(row["input_length"] for row in rows))


def replay(rows: list[Row], out: Path, *line: str) -> tuple[list[Row], str]:
    """Run the command on a trace; return the rows of its trials, and what it printed."""
    file, typed = out.with_suffix(".jsonl"), {each.partition("=")[0] for each in line}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [each for each in COMMAND.split() if each.partition("=")[0] not in typed]
    command = [*command, f"workload.file={file}", f"workload.num_requests={len(rows)}", f"out={out}", *line]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        status = sweep(command)
    return ([] if status == 2 else read_trials(RunPaths(out).trials)), printed.getvalue()


def alarms(trial: Row) -> set[str]:
    """Return the warnings of a trial that its certificate raises, also where a busy machine limited the client."""
    return ALARMS & {warning.code for warning in trial_warnings({**trial, "outcome": "ok"})}


# Planted faults -------------------------------------------------------------------------------------------------------

Change = Callable[[list[Request]], list[Request]]


@contextlib.contextmanager
def changed_requests(change: Change) -> Iterator[None]:
    """Change the measured requests of a replay after they are made."""
    make = turns.session_requests

    def faulty(*arguments: Any) -> list[Request]:
        requests = make(*arguments)
        return change(requests) if requests[0].phase == "measured" else requests

    with patch.object(turns, "session_requests", faulty):
        yield


@contextlib.contextmanager
def seconds_read_as_ms() -> Iterator[None]:
    """Read the times of a trace a thousand times too short."""
    read, times = trace_turns, Trace.times
    short = lambda *arguments: [turn._replace(gap=turn.gap / 1000) for turn in read(*arguments)]  # noqa: E731
    with patch.object(recorded, "trace_turns", short), patch.object(Trace, "times", lambda load: times(load) / 1000):
        yield


@contextlib.contextmanager
def forgetful_cache() -> Iterator[None]:
    """Let the engine say that its cache holds more tokens than it does."""
    make = certificate.InfiniteCache
    with patch.object(certificate, "InfiniteCache", lambda *arguments: make(*arguments)._replace(room=10**9)):
        yield


@contextlib.contextmanager
def doubled_gaps() -> Iterator[None]:
    """Let the client wait twice as long for each later turn."""
    write = pickle.dumps

    def doubled(content: Any) -> bytes:
        if isinstance(content, Job):
            turns_after = content.followers.items()
            content.followers = {call: [(turn, 2 * gap) for turn, gap in after] for call, after in turns_after}
        return write(content)

    with patch.object(pickle, "dumps", doubled):
        yield


def one(change: Callable[[Request, list[Request]], Request]) -> Change:
    """Return a change of a single request: the last turn that follows another."""

    def apply(requests: list[Request]) -> list[Request]:
        number = max(index for index, request in enumerate(requests) if request.parent >= 0)
        return [*requests[:number], change(requests[number], requests), *requests[number + 1 :]]

    return apply


def swapped(requests: list[Request]) -> list[Request]:
    """Exchange the prompts of the first turns of two sessions."""
    first, second = [index for index, request in enumerate(requests) if request.parent < 0][1:3]
    prompts = {first: requests[second].prompt, second: requests[first].prompt}
    return [replace(request, prompt=prompts.get(index, request.prompt)) for index, request in enumerate(requests)]


def salted(requests: list[Request]) -> list[Request]:
    """Begin each prompt with a token of its own."""
    return [replace(request, prompt=(100 + n, *request.prompt[1:])) for n, request in enumerate(requests)]


def each_with(**fields: Callable[[Request], Any]) -> Change:
    """Return a change of these fields in each request."""

    return lambda requests: [replace(r, **{name: make(r) for name, make in fields.items()}) for r in requests]


CHANGES: dict[str, Change] = {
    "truncated history": one(lambda request, _: replace(request, prompt=request.prompt[BLOCK:])),
    "swapped sessions": swapped,
    "dropped gaps": each_with(gap=lambda _: 0.0),
    "a template that moves a boundary": each_with(prompt=lambda request: (7, 8, 9, *request.prompt)),
    "a lost system prompt": each_with(prompt=lambda request: request.prompt[BLOCK * SYSTEM :]),
    "a doubled turn": one(lambda request, requests: replace(request, prompt=requests[request.parent].prompt)),
    "a wrong parent": one(lambda request, _: replace(request, parent=0 if request.parent else 1)),
    "a salted prefix": salted,
    "a lost turn": lambda requests: requests[:-1],
    "a turn too many": lambda requests: [*requests, replace(requests[-1], request_id="measured-more")],
}
CLIENTS = {"seconds read as ms": seconds_read_as_ms, "gaps doubled by the client": doubled_gaps}
CLIENTS |= {"a cache that forgets": forgetful_cache}
SETTINGS = {"block 512 for 16": "workload.block_tokens=512", "a cache that forgets": "backend.kv_cache_tokens=512"}
FAULTS = {  # what must catch each: a warning of its trial, or the words of a refusal
    "block 512 for 16": "expected 1 blocks of 512",
    "seconds read as ms": "`other-schedule`",
    "truncated history": "`other-recorded-lengths`",
    "swapped sessions": "`other-turns`",
    "dropped gaps": "`other-turns`",
    "a template that moves a boundary": "`other-recorded-lengths`",
    "a lost system prompt": "`other-prefixes`",
    "a doubled turn": "`other-recorded-lengths`",
    "a wrong parent": "`other-turns`",
    "a salted prefix": "`other-prefixes`",
    "a lost turn": "`other-turns`",
    "a turn too many": "`other-turns`",
    "gaps doubled by the client": "`other-schedule`",
    "a cache that forgets": "`missed-hits`",
}


def caught_by(name: str, rows: list[Row], out: Path) -> str:
    """Return the warnings that a planted fault raises, or the line that refuses it; "" if it is missed."""
    line = [SETTINGS[name]] if name in SETTINGS else []
    with CLIENTS[name]() if name in CLIENTS else changed_requests(CHANGES.get(name, list)):
        trials, printed = replay(rows, out, "load=recorded", *line)
    if not trials:
        return f"refused: {printed.strip().splitlines()[-1].rpartition('.jsonl: ')[2]}"
    return ", ".join(f"`{code}`" for code in sorted(alarms(trials[0])))


# The tables -----------------------------------------------------------------------------------------------------------


def arrival_error(rows: list[Row], trial: Row, out: Path) -> float:
    """Return the p99 of |sent − recorded time| over the first turns of a replay with recorded times, in ms."""
    requests = analysis.requests(str(out), trial["trial_id"]).query("phase == 'measured'")
    sent = dict(zip(requests["request_id"].str.rpartition("-")[2], requests["sent"], strict=True))
    begin = rows[0]["timestamp"]
    errors = [
        abs(sent[str(index)] - (row["timestamp"] - begin))
        for index, row in enumerate(rows)
        if row["parent_chat_id"] < 0
    ]
    return float(np.quantile(errors, 0.99)) * 1e3


def true_replays(rows: list[Row], folder: Path) -> Iterator[list[object]]:
    """Yield a row of the table for each replay of the trace: at recorded times, by 32 users, and the control."""
    plans = {
        "recorded times": (rows, "load=recorded"),
        "32 users": (rows, "load=closed load.concurrency=32"),
        "no sharing": (without_sharing(rows), "load=recorded"),
    }
    for index, (name, (replayed, line)) in enumerate(plans.items()):
        out = folder / f"true{index}"
        (trial,), _ = replay(replayed, out, *line.split())
        ideal, sent, cached = hit_rate(replayed), trial["sent_prefix_hit_rate"], trial["prefix_hit_rate"]
        late = f"{arrival_error(replayed, trial, out):.2f}" if "recorded" in line else "–"
        yield [
            *(name, trial["outcome"], trial["num_sessions"], trial["num_requests"], trial["num_failed"]),
            *(f"{share:.2%}" for share in (ideal, sent, cached)),
            *(f"{100 * abs(difference):.3f}" for difference in (sent - ideal, cached - sent)),
            *(f"{trial['replay_exact_lengths']:.2%}", f"{1e3 * trial['earliest_turn']:.3f}", late),
            ", ".join(sorted(alarms(trial))) or "none",
        ]


def tables(sessions: int, requests: int, replicates: int) -> Iterator[str]:
    """Yield the lines of the document's tables."""
    headings = (
        "replay | outcome | sessions of several turns | requests | failed | trace's hits | hits as sent (a) | "
        "engine's hits (b) | a − trace, points | b − a, points | exact lengths | earliest turn, ms | "
        "arrival error p99, ms | alarms"
    )
    small = trace(12, 72, seconds=1, gap=0.2)
    with tempfile.TemporaryDirectory() as folder:
        rows = true_replays(trace(sessions, requests, seconds=20), Path(folder))
        yield from markdown_table(headings, rows)
        caught = {name: caught_by(name, small, Path(folder) / f"fault{n}") for n, name in enumerate(FAULTS)}
        faults = [[name, caught[name] if message in caught[name] else "**missed**"] for name, message in FAULTS.items()]
        yield from ["", *markdown_table("planted fault | caught by", faults)]
        trials, _ = replay(small, Path(folder) / "true", "load=recorded", f"replicates={replicates}")
        false = sum(bool(alarms(trial)) for trial in trials)
        outcomes = {
            outcome: sum(trial["outcome"] == outcome for trial in trials) for outcome in ("ok", "client_limited")
        }
        yield f"\n{len(trials)} true replays of a small trace raised {false} alarms; outcomes: {outcomes}."


# Many sessions --------------------------------------------------------------------------------------------------------

ANSWER, ITL = 100, 0.05  # tokens of an answer, and s between two of them: each takes 5 s
HELD_MARKS = ("<!-- held: begin -->", "<!-- held: end -->")


def long_sessions(sessions: int, turns: int, gap: float) -> list[Row]:
    """Make sessions of equal turns that follow each other after `gap` s, within a third of it."""
    chance, rows = random.Random(1), list[Row]()
    for _ in range(sessions):
        blocks, time = list(range(2)), 0.0
        for turn in range(turns):
            number = len(rows)
            blocks = [*blocks, 10 + number]
            row: Row = {"chat_id": number, "parent_chat_id": number - 1 if turn else -1, "timestamp": round(time, 6)}
            row |= {"input_length": BLOCK * len(blocks), "output_length": ANSWER, "hash_ids": blocks}
            rows.append(row)
            time += gap * chance.uniform(2 / 3, 4 / 3)
    return rows


def most_at_once(begins: Iterable[float], ends: Iterable[float]) -> int:
    """Return the most intervals that overlap."""
    events = sorted([(begin, 1) for begin in begins] + [(end, -1) for end in ends])
    return max(accumulate(step for _, step in events))


def held(sessions: int, out: Path, turns: int = 3, gap: float = 9 * ANSWER * ITL, itl: float = ITL) -> Row:
    """Replay as many sessions as users, and compare what is published of each request with the engine's log.

    The row has the trial's columns, and `held`, `flying` (the most sessions and requests at once), and `compared`.
    """
    load = ["load=closed", f"load.concurrency={sessions}", f"load.stagger={gap}"]
    rows = long_sessions(sessions, turns, gap)
    (trial,), _ = replay(rows, out, *load, "backend.truth_log=true", f"backend.itl.mean={itl}")
    files = RunPaths(out).trial(trial["deployment_id"], trial["attempt"], trial["trial_id"])
    sent = [each for each in pq.read_table(files.requests).to_pylist() if each["phase"] == "measured"]
    answers = {
        each["request_id"]: client.Answer(
            each["ttft"], each["tpot"], each["e2el"], [(b - a) / 1e6 for a, b in pairwise(each["chunk_us"])]
        )
        for each in sent
        if each["error"] is None
    }
    result = client.Result(
        answers, trial["num_failed"], trial["output_tokens"], 0.0, 0, trial["duration"], [0.0] * len(sent)
    )
    client.compare(client.Row("held", len(sent), sessions), result, read_log(next(out.rglob("truth.log"))))
    ends = dict[int, float]()
    for each in sent:
        ends[each["session"]] = max(ends.get(each["session"], 0.0), each["ended"])
    begins = {each["session"]: each["sent"] for each in sent if each["turn"] == 0}
    flying = most_at_once((each["sent"] for each in sent), (each["ended"] for each in sent))
    return trial | {"held": most_at_once(begins.values(), ends.values()), "flying": flying, "compared": result}


def held_table(sessions: int) -> Iterator[str]:
    """Yield the lines of the table of many sessions."""
    headings = (
        "sessions held | most in flight | requests | failed | outcome | TTFT p50 / p99 published (true), ms | "
        "TTFT error p50 / p99, ms | ITL error, ms | TPOT error, ms | E2E error, ms | earliest turn, ms | "
        "largest due error, ms | turnaround share | client CPU s / 1,000 tokens | tokens/s | alarms"
    )
    other = client.other_load()
    with tempfile.TemporaryDirectory() as folder:
        row = held(sessions, Path(folder) / "held")
    compared, seconds = row["compared"], row["duration"]
    published = client.milliseconds((row["ttft_p50"], row["ttft_p99"]))
    cells = [
        *(row["held"], row["flying"], row["num_requests"], row["num_failed"], row["outcome"]),
        f"{published} ({client.milliseconds(compared.true)})",
        *(client.quantiles(compared.errors[name]) for name in ("ttft", "itl", "tpot", "e2e")),
        *(f"{1e3 * row[name]:.3f}" for name in ("earliest_turn", "replay_schedule_error")),
        f"{row['turnaround_share']:.2%}",
        f"{row['client_cpu_seconds'] / row['output_tokens'] * 1e3:.4f}",
        f"{row['output_tokens'] / seconds:,.0f}",
        ", ".join(sorted(alarms(row))) or "none",
    ]
    yield from markdown_table(headings, [cells])
    yield f"\nOther load before the run: {other:.0f}% of the machine's cores."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=50)
    parser.add_argument("--held", type=int, help="measure only this many sessions at once")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.held:
        publish(["", *held_table(options.held), ""], options.write, HELD_MARKS)
        return
    publish(["", *tables(options.sessions, options.requests, options.replicates), ""], options.write)


if __name__ == "__main__":
    main()
