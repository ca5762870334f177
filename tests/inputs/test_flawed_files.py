"""Files of prompts and traces as people have them, flaws and all: through the whole command, up to its plan.

Each is refused in one line that says where the fault is, or planned as the same file without the flaw is.
docs/cases.md names the public report of a case.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sweep.__main__ import main
from tests.inputs.test_prompts import QUICK, write

COUNTED = [{"prompt": "a b c", "output_tokens": 4}, {"prompt": "d e f g", "output_tokens": 5}]
MESSAGES = [[{"role": "user", "content": "Why is the sky blue?"}], [{"role": "user", "content": "Name a colour."}]]
CHATS = [{"messages": turns, "output_tokens": 4} for turns in MESSAGES]
JSON_CELLS = [{"messages": json.dumps(turns), "output_tokens": 4} for turns in MESSAGES]
PYTHON_CELLS = [{"messages": str(turns), "output_tokens": 4} for turns in MESSAGES]
BURST = "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45,ChatGPT,1087,0\n118,GPT-4,417,276\n"
SHAREGPT = [
    [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It is"}],
    [],
    [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Hi"}],
    [{"from": "system", "value": "Be brief."}, {"from": "gpt", "value": "Hello"}],
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "red green blue"}],
    [{"from": "human", "value": ""}, {"from": "gpt", "value": "x"}],
    [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}],
    [{"from": "human", "value": "half \ud83d"}, {"from": "gpt", "value": "x"}],
    [{"from": "human", "value": "Only a question"}],
    [{"from": "human", "value": "What?"}, {"from": "gpt", "value": ""}],
]
CONVERSATIONS = [{"id": index, "conversations": turns} for index, turns in enumerate(SHAREGPT)]
NULLS = [{"messages": turns, "prompt": None, "output_tokens": 4} for turns in (None, MESSAGES[0])]
JSONL = "".join(f"{json.dumps(row)}\n" for row in COUNTED)
X = [{"prompt": "x", "output_tokens": 4}]
USABLE = [CONVERSATIONS[0], CONVERSATIONS[4]]
ANSWERED = "6 of 10 rows skipped: conversations: no question before the first answer (4), conversations: no question (1"


def trace(*times: object, **cells: object) -> list[dict[str, Any]]:
    return [{"timestamp": time, "input_length": 48, "output_length": 8, **cells} for time in times]


def plan(folder: Path, capsys: Any, name: str, content: Any, typed: str) -> tuple[int, str, str]:
    """Plan 2 requests of a file; return the status, what is printed, and what the plan says of the requests."""
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        write(file, content)
    option = "" if "workload=" in typed else f"workload=prompts workload.file={file}"
    line = [*QUICK, "workload.num_requests=2", *option.split(), *typed.replace("FILE", str(file)).split()]
    status = main([*line, "dry_run=true", "details=true", f"out={folder / 'out'}"])
    printed = capsys.readouterr()
    requests = re.findall(r"(?:the last request|input) .*?(?=; \d replicate)", printed.out)
    return status, printed.out + printed.err, "".join(requests)


RECORDED = "workload=recorded load=recorded workload.file=FILE"
SKIPPING, SENDABLE = f"{RECORDED} workload.skip_unsendable=true", BURST.replace("45,ChatGPT,1087,0\n", "")
ARRIVALS = "workload=synthetic workload.input_tokens=9 workload.output_tokens=3 load=trace load.path=FILE"
TALKS = "workload=recorded load=closed load.concurrency=1 workload.file=FILE"
HALF_SECOND = json.dumps([{"timestamp": time, "input_tokens": 48, "output_tokens": 8} for time in (0, 0.5)])
SESSION = [
    {"chat_id": chat, "parent_chat_id": parent, **row, "input_length": 16, "hash_ids": [1]}
    for chat, parent, row in zip((7, 8), (-1, 7), trace(0, 0.5), strict=True)
]
TABLE: list[tuple[str, Any, str, Any]] = [  # file, content, keys; the clean file that it is planned as
    ("float.jsonl", [{**row, "output_tokens": float(row["output_tokens"])} for row in COUNTED], "", COUNTED),
    ("float.csv", "prompt,output_tokens\na b c,4.0\nd e f g,5.0\n", "", COUNTED),
    ("hole.csv", "prompt,output_tokens\na b c,4.5\nd e f g,\n", "workload.output_tokens=6", COUNTED),
    ("hole.csv", "prompt,output_tokens\na b c,4.0\nd e f g,\n", "workload.skip_unsendable=true", COUNTED[:1]),
    ("nan.jsonl", '{"prompt": "a b c", "output_tokens": NaN}\n', "workload.output_tokens=4", COUNTED[:1]),
    ("bom.csv", "\ufeffprompt,output_tokens\na b c,4\nd e f g,5\n", "", COUNTED),
    ("joined.jsonl", JSONL.replace("{", "\ufeff{"), "", COUNTED),
    ("utf16.jsonl", JSONL.encode("utf-16"), "", COUNTED),
    ("lines.ndjson", JSONL.replace("\n", "\r\n\r\n"), "", COUNTED),
    ("UPPER.CSV", b"prompt,output_tokens\na b c,4\nd e f g,5\n", "", COUNTED),
    ("semicolons.csv", "prompt;output_tokens\na b c;4\nd e f g;5\n", "", COUNTED),
    ("json.csv", JSON_CELLS, "", CHATS),
    ("json.parquet", JSON_CELLS, "", CHATS),
    ("python.csv", PYTHON_CELLS, "", CHATS),
    ("named.csv", [{"q": cell["messages"], "output_tokens": 4} for cell in JSON_CELLS], "workload.column=q", CHATS),
    ("twice.csv", [{**cell, "messages": json.dumps(cell["messages"])} for cell in JSON_CELLS], "", CHATS),
    ("object.csv", [{"prompt": json.dumps({"messages": turns}), "output_tokens": 4} for turns in MESSAGES], "", CHATS),
    ("turn.jsonl", [{"messages": turns[0], "output_tokens": 4} for turns in MESSAGES], "", CHATS),
    ("nulls.parquet", NULLS, "", CHATS[:1]),
    ("late.jsonl", [{"id": 1}, {"q": "x", "output_tokens": 4}], "workload.column=q workload.skip_unsendable=true", X),
    ("heads.csv", "prompt , output_tokens,\na b c,4,\nd e f g,5,\n", "", COUNTED),
    ("list.jsonl", [{"prompt": "[1, 2, 3]"}], "workload.output_tokens=4", [{"text": "[1, 2, 3]"}]),
    ("sharegpt.jsonl", CONVERSATIONS, "", USABLE),
    ("upper.jsonl", [{"messages": [{"role": " USER ", "content": None, "value": "x"}], "output_tokens": 4.0}], "", X),
    ("sharegpt.json", "\ufeff" + json.dumps(CONVERSATIONS), "", USABLE),
    ("lmsys.jsonl", [{"conversation": row["conversations"]} for row in CONVERSATIONS], "", USABLE),
    ("burst.csv", BURST, SKIPPING, SENDABLE),
    ("untimed.csv", BURST.replace("45,ChatGPT,1087,0", ",ChatGPT,1087,9"), SKIPPING, SENDABLE),
    ("whole.csv", BURST.replace(",0", ",9.0"), RECORDED, BURST.replace(",0", ",9")),
    ("capitals.csv", "Prompt,Output_Tokens\na b c,4\nd e f g,5\n", "", COUNTED),
    ("capitals.jsonl", [{"Prompt": r["prompt"], "outputTokens": r["output_tokens"]} for r in COUNTED], "", COUNTED),
    ("named.jsonl", [{"Q": "x", "output_tokens": 4}, *X], "workload.column=Q workload.skip_unsendable=true", X),
    ("styles.jsonl", [{"Messages": [{"Role": "User", "Content": "x"}], "output tokens": 4}], "", X),
    ("speaker.jsonl", [{"messages": [{"speaker": "user", "text": "x"}], "output_tokens": 4}], "", X),
    ("data.json", {"version": 1, "data": COUNTED, "tags": ["a"]}, "", COUNTED),
    ("one.json", {"id": 1, **CHATS[0]}, "", CHATS[:1]),
    ("turns.json", MESSAGES, "workload.output_tokens=4", CHATS),
    ("texts.json", [row["prompt"] for row in COUNTED], "workload.output_tokens=4", COUNTED),
    ("list.jsonl", json.dumps(COUNTED, indent=1), "", COUNTED),
    ("lines.json", JSONL, "", COUNTED),
    ("utf32.jsonl", JSONL.encode("utf-32"), "", COUNTED),
    ("tabs.csv", "prompt\toutput_tokens\na b c\t4\nd e f g\t5\n", "", COUNTED),
    ("commas.tsv", "\n\nprompt,output_tokens\na b c,4\nd e f g,5\n", "", COUNTED),
    ("marked.csv", [{**cell, "messages": f"\ufeff{cell['messages']}"} for cell in JSON_CELLS], "", CHATS),
    ("json.txt", JSONL, "workload.output_tokens=4", COUNTED),
    ("cells.csv", [{"prompt": json.dumps(row), "output_tokens": row["output_tokens"]} for row in COUNTED], "", COUNTED),
    ("none.csv", "messages,prompt,output_tokens\nnull,x,4\n", "", X),
    ("nan.csv", "prompt,output_tokens\nx,4\nNaN,4\n", "workload.skip_unsendable=true", X),
    ("capitals.csv", BURST.replace("Timestamp", "TIMESTAMP").replace(",0", ",9"), RECORDED, BURST.replace(",0", ",9")),
    ("unit.csv", "timestamp_ms,input_tokens,output_tokens\n0,48,8\n500,48,8\n", RECORDED, HALF_SECOND),
    ("unit.csv", "timestampMillis,input_tokens,output_tokens\n0,48,8\n500,48,8\n", RECORDED, HALF_SECOND),
    ("unit.csv", "timestamp (seconds),input_tokens,output_tokens\n0,48,8\n.5,48,8\n", RECORDED, HALF_SECOND),
    ("l.jsonl", [{"version": 1}, *json.loads(HALF_SECOND)], f"{RECORDED} workload.skip_unsendable=true", HALF_SECOND),
    (
        "holes.csv",
        "chat_id,parent_chat_id,timestamp,input_length,output_length,hash_ids\n7,,0,16,8,[1]\n8,7.0,0.5,16,8,[1]\n",
        RECORDED,
        "".join(f"{json.dumps(row)}\n" for row in SESSION),
    ),
]


@pytest.mark.parametrize(("name", "content", "typed", "clean"), TABLE, ids=[f"{row[0]} {row[2][:40]}" for row in TABLE])
def test_a_flawed_file_is_planned_as_the_clean_one(
    tmp_path: Path, capsys: Any, name: str, content: Any, typed: str, clean: Any
) -> None:
    status, _, requests = plan(tmp_path, capsys, name, content, typed)
    kind = ".json" if clean == HALF_SECOND else ".csv" if isinstance(clean, str) and clean[0] != "{" else ".jsonl"
    clean_name = f"clean{kind}"
    typed = re.sub("workload.column=.", "", typed).replace("workload.skip_unsendable=true", "")
    assert (status, requests) == (0, plan(tmp_path, capsys, clean_name, clean, typed)[2])


@pytest.mark.parametrize(
    ("name", "content", "typed", "message"),
    [
        ("sharegpt.jsonl", CONVERSATIONS, "", "8 of 10 rows skipped: conversations: no question before the first ans"),
        ("sharegpt.jsonl", CONVERSATIONS, "workload.output_tokens=3", ANSWERED),
        ("chats.json", {"data": [{"id": 0}, *USABLE]}, TALKS, "1 of 3 rows skipped: no conversation (1)"),
        ("burst.csv", BURST, f"{RECORDED} workload.skip_unsendable=true", "1 of 3 rows skipped: Response tokens='0'"),
        ("bailian.jsonl", trace(0.0, 0.5, 9.5, parent_chat_id=-1), f"{ARRIVALS} workload.num_requests=3", "after 9.5"),
        ("bailian.jsonl", trace(0, 1, 9, chat_id=4), f"{ARRIVALS} workload.num_requests=3", "due after 9 s"),
        ("mooncake.jsonl", trace(27000, 27000.0, 36500), f"{ARRIVALS} workload.num_requests=3", "due after 9.5 s"),
        ("other.jsonl", trace(0.0, 0.5), f"{ARRIVALS} load.unit=s", "due after 0.5 s"),
        ("epoch.txt", "1700000000000\n1700000000500\n", f"{ARRIVALS} load.unit=ms", "due after 0.5 s"),
        ("epoch.txt", "1700000000\n1700000040\n", ARRIVALS, "due after 40 s"),
        ("shared.txt", "0\n0\n1\n2\n", f"{ARRIVALS} workload.num_requests=4", "due after 2 s"),
        ("burst.csv", BURST, f"{ARRIVALS} load.skip_unsendable=true", "1 of 3 rows skipped: Response tokens='0'"),
        ("t.parquet", trace(1000, 1500), ARRIVALS, "due after 0.5 s"),
        ("turns.jsonl", trace(0, 1, turn=1), ARRIVALS, "due after 1 s"),
        ("named.csv", "arrival_ms\n0\n500\n", f"{ARRIVALS} load.column=arrival_ms", "due after 0.5 s"),
    ],
)
def test_a_plan_says_what_it_made_of_a_file(
    tmp_path: Path, capsys: Any, name: str, content: Any, typed: str, message: str
) -> None:
    status, printed, _ = plan(tmp_path, capsys, name, content, typed)
    assert (status, message in printed) == (0, True), printed


PICTURE = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:image/png,"}}]
ONE = '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "typed", "message"),
    [
        ("none.jsonl", None, "", "no such file; expected a file ending in .txt, .jsonl, .ndjson, .json, .csv, .tsv"),
        ("p.docx", "x", "", "the ending .docx is unknown; expected a file ending in .txt, .jsonl"),
        ("p.txt", "a\n", "", "none of 1 rows can be sent: row 1: no output_tokens and no turn with an answer; set"),
        ("p.csv", COUNTED, "workload.column=body", "has no such column; expected: prompt, output_tokens"),
        ("p.jsonl", "\n", "", "has no rows; expected at least one"),
        ("p.jsonl", [{**COUNTED[0], "output_tokens": 0}, COUNTED[1]], "", "row 1: output_tokens=0; expected a whole n"),
        ("p.csv", "prompt,output_tokens\na,4.5\nb,4\n", "", "row 1: output_tokens='4.5'; expected a whole number of"),
        ("p.csv", "prompt,output_tokens\na,4\nb,\n", "", "row 2: no output_tokens and no turn with an answer; set w"),
        ("p.csv", "prompt,output_tokens\na,4\n,5\n,6\n", "", "2 of 3 rows cannot be sent; workload.skip_unsendable=tr"),
        ("p.jsonl", [{"prompt": "half \ud83d", "output_tokens": 1}], "", "row 1: prompt: a lone surrogate in the"),
        ("p.csv", [{"messages": "[1", "output_tokens": 1}], "", "row 1: messages is not a list of turns; expected"),
        ("p.jsonl", ONE + "nonsense\n", "", "line 2 is not a JSON object"),
        ("p.jsonl", ONE + '{"prompt": ""}\n', "workload.output_tokens=1", "row 2: prompt=''; expected text in prompt,"),
        ("p.jsonl", '{"prompt": "caf\u00e9"}\n'.encode("latin-1"), "", "at byte 15; expected UTF-8"),
        ("p.json", {"prompt": "a"}, "", "0 lists of mappings in an object with the keys prompt; expected a list"),
        ("p.json", "[", "", "not JSON"),
        ("p.parquet", "no parquet", "", "arquet"),
        ("p.jsonl", [{"prompt": "a", "output_tokens": 10**30}], "", "row 1: output_tokens=1000"),
        ("p.jsonl", ONE + "[" * 100_000, "", "line 2 is not a JSON object"),
        ("p.jsonl", ONE + '{"n": ' + "9" * 5000 + "}", "", "line 2 is not a JSON object"),
        ("p.json", "[" * 100_000, "", "is nested too deeply; expected a list of mappings"),
        ("p.csv", "prompt\nYes\nWhy, oh why?\n", "workload.output_tokens=4", "row 2: more cells than columns; exp"),
        ("p.csv", 'prompt,id\nYes,1\n"No,2\nWhy,3\n', "workload.output_tokens=4", "row 2: unexpected end of data; "),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', "workload.output_tokens=4", "line 1: key prompt occurs twice"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', "workload.output_tokens=4", "key prompt occurs twice in an"),
        ("p.csv", "prompt,Output Tokens,outputTokens\na,4,5\n", "", "columns Output Tokens, outputTokens have the sa"),
        ("p.csv", "prompt,prompt\na,b\n", "workload.output_tokens=4", "column prompt occurs twice; expected different"),
        ("m.jsonl", [{"messages": [{"role": "user", "content": PICTURE}]}], "", "row 1: messages: a part of type imag"),
        ("l.csv", "timestamp,input_tokens,output_tokens\n0,99999999999999,5\n", RECORDED, "row 1: input_tokens='99999"),
        ("m.jsonl", [{"messages": [{"role": "tool", "content": "x"}]}], "", "row 1: messages: a turn of tool; expec"),
        ("m.jsonl", [{"messages": ["x"]}], "", "row 1: messages: a turn is not a mapping; expected {role"),
        ("s.json", CONVERSATIONS[1:3], "", "none of 2 rows can be sent: row 1: conversations: no que"),
        ("p.jsonl", COUNTED, "workload.name=qa", "qa is the name of a bundled task; use workload=prompts workload.fil"),
        ("l.jsonl", [{"input_tokens": 3}], RECORDED, "no columns with lengths or conversations among input_t"),
        ("burst.csv", BURST, RECORDED, "row 2: Response tokens='0'; expected a whole number of at least 1; 1 of 3 row"),
        ("half.csv", BURST.replace(",0", ",2.5"), RECORDED, "row 2: Response tokens='2.5'; expected a whole number"),
        ("burst.csv", BURST, f"{RECORDED} workload.skip_unsendable=true load.skip_unsendable=false", "expected True,"),
        ("bailian.jsonl", trace(0.0, 0.5), ARRIVALS, "row 2: timestamp=0.5; its unit is uncertain; set load.unit to s"),
        ("whole.jsonl", trace(0, 1), ARRIVALS, "times are 1 apart on average; their unit is uncertain; set load.unit"),
        ("dense.csv", "timestamp\n0\n3\n5\n9\n", ARRIVALS, "times are 3 apart on average; their unit is uncertain"),
        ("clock.txt", "0.25\n103.5\n250.75\n", ARRIVALS, "times are 125.25 apart on average; their unit is uncertain"),
        ("whole.txt", "0\n500\n", ARRIVALS, "times are 500 apart on average; their unit is uncertain; set load.unit"),
        ("p.csv", b"prompt,output_tokens\n" + b"a b c,4\n" * 2000 + b"caf\xe9,4\n", "", "line 2002: invalid contin"),
        ("epoch.txt", "1700000000000\n1700000000500\n", ARRIVALS, "its unit is uncertain; set load.unit"),
        ("t.txt", "# nothing\n", ARRIVALS, "contains no arrival times"),
        ("t.txt", "2\n1\n", ARRIVALS, "row 2: time: expected times in ascending order"),
        ("t.txt", "1\nnan\n", ARRIVALS, "row 2: time='nan'; expected finite times"),
        ("t.txt", "1\nsoon\n", ARRIVALS, "row 2: time='soon'; expected a number or an ISO 8601 time"),
        ("t.csv", "timestamp,x\n1.0,a\n,b\n", ARRIVALS, "row 2: timestamp=''; expected a number or an ISO 8601 time"),
        ("t.csv", "x,timestamp\na,1.0\nb\n", ARRIVALS, "row 2: timestamp=None; expected a number"),
        ("t.csv", "timestamp\n1\n2\n", f"{ARRIVALS} load.column=at", "load.column=at: no such column in"),
        ("t.csv", "timestamp\n1\n2\n", f"{ARRIVALS} workload.num_requests=3", "may be at most 2"),
        ("t.jsonl", '{"timestamp": 1}\n[2.0]\n', ARRIVALS, "line 2 is not a JSON object"),
        ("p.csv", "body,id\na,4\n", "", "row 1: no prompt among body, id; expected text in prompt, text,"),
        ("p.csv", ",body\n0,a\n", "workload.output_tokens=4", "row 1: no prompt among , body; expected text"),
        ("p.jsonl", '{"\\ud83d": 1}', "", "row 1: no prompt among \\ud83d; expected text"),
        ("p.jsonl", [{"prompt": 5, "output_tokens": 4}], "", "row 1: prompt=5; expected text in prompt, text,"),
        ("p.json", {"a": COUNTED, "b": COUNTED}, "", "2 lists of mappings in an object with the keys a, b; expected"),
        ("p.csv", "prompt,output_tokens\na,4\n".encode("utf-16-le"), "", "UTF-16 without a byte order mark; expected"),
        ("p.json", "7", "", "not a list; expected a list of mappings"),
        ("m.jsonl", [{"messages": [{"who": "user"}]}], "", "row 1: messages: a turn has the keys who; expected role"),
        ("l.csv", "at,in,out\n0,5,6\n", RECORDED, "no columns with lengths or conversations among at, in, out; exp"),
        ("none.txt", None, ARRIVALS, "no such file"),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_in_one_line(
    tmp_path: Path, capsys: Any, name: str, content: Any, typed: str, message: str
) -> None:
    status, printed, _ = plan(tmp_path, capsys, name, content, typed)
    assert (status, printed.count("\n")) == (2, 1), printed
    assert message in printed
    assert printed.startswith(("error: workload.", "error: load."))


LARGE = [{**row, "note": f"{row}" * 6} for row in trace(*range(0, 200_000, 500))]  # about 250 kB


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "list.jsonl", "t.csv", "t.tsv", "t.parquet", "chats.json"])
def test_only_the_first_part_of_a_large_trace_is_read(tmp_path: Path, capsys: Any, monkeypatch: Any, name: str) -> None:
    """The rest of the file has an end in mid-row, which would be refused."""
    rows = [{"messages": [*turns, {"role": "assistant", "content": "x" * 600}]} for turns in MESSAGES] * 200
    file = write(tmp_path / name, rows if name == "chats.json" else LARGE)
    if name == "list.jsonl":
        file.write_text(json.dumps(LARGE))
    elif name != "t.parquet":
        file.write_text(file.read_text()[: file.stat().st_size // 2])
    monkeypatch.setattr("sweep.inputs.rows.LARGEST_PART", file.stat().st_size // 3)
    load = "load=closed" if name == "chats.json" else "load=recorded"
    line = [*QUICK, "workload=recorded", f"workload.file={file}", load, "dry_run=true", f"out={tmp_path / 'out'}"]
    assert main([*line, "workload.num_requests=40"]) == 0
    assert re.search(r": only its first [\d,]+ of [\d,]+ bytes are read", capsys.readouterr().out)
    assert main([*line, "workload.num_requests=300"]) == 2
    assert re.search(r"(contains|has) \d+ (arrivals|turns)", capsys.readouterr().err)
