"""Prompts that people wrote, from every format they are kept in, data sets and traces; through the whole command."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import analysis
from sweep.__main__ import main
from sweep.base.config import ConfigError, build
from sweep.base.options import load_option
from sweep.inputs.load import Batch
from sweep.inputs.tokenizer import SHIPPED_TOKENIZER, load_tokenizer
from tests.inputs.test_model import COMMITS, Hub, folder, hub  # noqa: F401  fixtures
from tests.plan.test_compose import composed

QUICK = [
    "backend=simulated",
    "backend.ttft.mean=0.3",
    "backend.itl.mean=0.002",
    "model=tiny-llama",
    "cluster=inline",
    "tracking=none",
    "hardware=cpu",
    "workload.warmup_requests=1",
]
TEXTS, OUTPUTS = ["Why is the sky blue?", "Name a colour,\nand why."], [3, 5]
CHAT = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXTS[0]}],
    [{"role": "user", "content": [{"type": "text", "text": TEXTS[1]}]}, {"role": "assistant", "content": "Red. It is"}],
]
SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": TEXTS[0]}, {"from": "gpt", "value": "It is"}]},
    {"id": "b", "conversations": []},
    {"id": "c", "conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Hi"}]},
    {"id": "d", "conversations": [{"from": "human", "value": TEXTS[1]}, {"from": "gpt", "value": "a b c d e f g"}]},
]


def measure(*line: str) -> "pd.Series[Any]":
    """Run a line on the simulated engine and return its row; that the machine is busy is no matter here."""
    (out,) = [each.removeprefix("out=") for each in line if each.startswith("out=")]
    assert main(list(line)) in (0, 1)
    row = analysis.load(out).iloc[0]
    assert row["outcome"] in ("ok", "client_limited")
    return row


def write(path: Path, content: Any) -> Path:
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    else:
        pd.DataFrame(content).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def workload(option: str, **fields: Any) -> Any:
    built: Any = build({**load_option("workload", option), **fields}, "workload")
    built.check()
    return built


ROWS = [{"prompt": text, "output_tokens": tokens, "id": 1} for text, tokens in zip(TEXTS, OUTPUTS, strict=True)]


@pytest.mark.parametrize(
    ("name", "content", "fields", "outputs"),
    [
        ("p.jsonl", ROWS, {}, OUTPUTS),
        ("p.csv", ROWS, {}, OUTPUTS),
        ("p.tsv", ROWS, {}, OUTPUTS),
        ("p.parquet", ROWS, {}, OUTPUTS),
        ("p.jsonl", ROWS, {"output_tokens": 9}, [9, 9]),
        ("p.csv", [{"body": text} for text in TEXTS], {"column": "body", "output_tokens": 2}, [2, 2]),
        ("p.txt", "Why is the sky blue?\n\nName a colour, and why.\n", {"output_tokens": 4}, [4, 4]),
        ("sharegpt.json", SHAREGPT, {}, [2, 7]),
        ("sharegpt.jsonl", SHAREGPT, {}, [2, 7]),
        ("m.jsonl", [{"messages": turns} for turns in CHAT], {"output_tokens": 1}, [1, 1]),
        ("m.parquet", [{"messages": CHAT[1][:1], "output_tokens": 6}] * 2, {}, [6, 6]),
    ],
)
def test_every_format_gives_its_prompts(
    tmp_path: Path, name: str, content: Any, fields: dict[str, Any], outputs: list[int]
) -> None:
    file = write(tmp_path / name, content)
    requests = workload("prompts", file=str(file), unique_header=False, **fields).requests(None, 2, seed=1)
    by_output = sorted((request.output_tokens, str(request.prompt)) for request in requests)
    assert [tokens for tokens, _ in by_output] == outputs
    assert all(any(text.split()[-1] in prompt for text in TEXTS) for _, prompt in by_output)
    if name != "m.parquet":
        assert len({prompt for _, prompt in by_output}) == 2


def test_an_answer_is_as_long_as_its_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    answer = "Because short waves of light are scattered more than long ones."
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]}
    file = write(tmp_path / "m.jsonl", [row])
    request = workload("prompts", file=str(file)).requests(tokenizer, 1, seed=1)[0]
    assert request.output_tokens == len(tokenizer.encode(answer, add_special_tokens=False).ids) > len(answer.split())


def test_a_line_ends_where_the_file_says_so(tmp_path: Path) -> None:
    """At no other character that Unicode calls a line's end: JSON may have it in a text as it is."""
    text = "one\u2028and\x85the same"
    for name, content in (("p.txt", text), ("p.jsonl", json.dumps({"prompt": text}, ensure_ascii=False))):
        (tmp_path / name).write_text(content + "\r\n", encoding="utf-8", newline="")
        prompts = workload("prompts", file=str(tmp_path / name), output_tokens=1, unique_header=False)
        assert {str(request.prompt) for request in prompts.requests(None, 3, 1)} == {text}


def test_paraphrases_have_their_questions_in_any_column_of_prompts(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "cluster": "why"}, {"question": "How come?", "cluster": "why"}]
    file = write(tmp_path / "q.csv", rows)
    assert workload("paraphrases", name="mine", file=str(file)).meanings() == {"Why?": "why", "How come?": "why"}


def test_only_the_first_prompts_may_be_used(tmp_path: Path) -> None:
    file = write(tmp_path / "p.txt", "one\ntwo\nthree\n")
    prompts = workload("prompts", file=str(file), first=2, output_tokens=1, unique_header=False).requests(None, 9, 1)
    assert {str(request.prompt) for request in prompts} == {"one", "two"}


@pytest.mark.slow
def test_a_file_of_people_is_a_workload_of_its_own_name(tmp_path: Path) -> None:
    """`workload=FILE`: through the whole command, every answer as long as the one that was recorded."""
    file = write(tmp_path / "asked.json", SHAREGPT)
    out = tmp_path / "out"
    row = measure(*QUICK, f"workload={file}", "load.batch_size=4", "workload.num_requests=4", f"out={out}")
    assert row["workload"] == "asked"
    requests = analysis.requests(str(out), row["trial_id"]).query("phase == 'measured'")
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    recorded = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("It is", "a b c d e f g")]
    assert sorted(requests["output_tokens"]) == sorted(recorded * 2)


# Data sets of the hub -------------------------------------------------------------------------------------------------

STORIES = [{"text": f"Once there was a bear called number {number}."} for number in range(8)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    data = tmp_path / "TinyStories" / "data"
    data.mkdir(parents=True)
    write(data / "train-00000-of-00001-aaaa.parquet", [{"text": "of the other split"}])
    write(data / "validation-00000-of-00002-bbbb.parquet", STORIES[:5])
    write(data / "validation-00001-of-00002-cccc.parquet", STORIES[5:])
    (data.parent / "TinyStories-valid.txt").write_text("another form of it")
    return data.parent


def bears(requests: list[Any]) -> set[int]:
    return {int(str(request.prompt).split()[-1].strip(".")) for request in requests}


def test_a_split_of_a_local_copy_is_read_in_order(copy: Path, tmp_path: Path) -> None:
    chosen = workload("tinystories", dataset=str(copy), first=6)
    assert chosen.ignore_eos is False
    assert bears(chosen.requests(None, 60, seed=1)) == set(range(6))
    before = chosen.digest(tmp_path)
    write(copy / "data" / "validation-00001-of-00002-cccc.parquet", STORIES[4:])
    assert chosen.digest(tmp_path) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"split": "test"},
            "^workload.split=test: no such split in .*TinyStories, which has data/train-00000-of-00001-aaaa.par",
        ),
        ({"column": "story"}, "^workload.column=story: .* has no such column; expected: text$"),
        ({"output_tokens": None}, "set workload.output_tokens$"),
        ({"dataset": "nowhere/at/all"}, "^workload.dataset=nowhere/at/all: no such folder; expected organisation/"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_refused(
    copy: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        workload("tinystories", **{"dataset": str(copy), **fields}).digest(tmp_path)


def test_a_data_set_of_several_parts_wants_one_named(copy: Path, tmp_path: Path) -> None:
    (copy / "more").mkdir()
    write(copy / "more" / "validation-0.parquet", STORIES)
    with pytest.raises(ValueError, match=r"^workload.config=None: 2 parts have this split; expected one of: data, "):
        workload("tinystories", dataset=str(copy)).digest(tmp_path)
    assert workload("tinystories", dataset=str(copy), config="more").requests(None, 8, seed=1)


@pytest.mark.slow
def test_the_completion_study_has_the_first_6000_of_the_validation_split(
    hub: Any,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    """A dry run against a stub of the hub; stories after these, and those of the other split, are longer."""
    option = load_option("workload", "tinystories")
    assert (option["dataset"], option["split"], option["first"]) == ("roneneldan/TinyStories", "validation", 6000)
    short, long = {"text": "Once there was a bear."}, {"text": "Once there was a bear. " * 20}
    for split, rows in {"train": [long], "validation": [short] * 6000 + [long] * 6000}.items():
        file = write(tmp_path / f"{split}-00000-of-00001.parquet", rows)
        Hub.files[f"data/{file.name}"] = file.read_bytes()
    line = ["+experiment=completion_batches", "form=published", "workload.dataset=org/stories", "backend=transformers"]
    line += ["model=tiny-llama", "hardware=a100-80g", "dry_run=true", "details=true", "cluster=inline", "tracking=none"]
    assert main([*line, f"cache_dir={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr().out
    assert "instead of tinystories" not in output
    for size in (1, 4, 16, 64):
        (point,) = re.findall(f"  tinystories {Batch(batch_size=size).describe()}: .*", output)
        assert f"{6000 + size + -6000 % size} requests" in point
        assert all(int(tokens) < 30 for tokens in re.findall(r"input (\d+)(?: to (\d+))? tokens", point)[0] if tokens)
    fetched = {path.split("/")[-1] for path, _ in Hub.requests if "/resolve/" in path}
    assert fetched == {"validation-00000-of-00001.parquet"}


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_fetched_and_its_commit_is_the_plans(
    hub: Any,  # noqa: F811
    copy: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """Through the whole command, against a stub of the hub; then without it, from the cache."""
    Hub.files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    line = [*QUICK, "load.batch_size=6", "workload=tinystories", "workload.dataset=org/stories", "workload.first=6"]
    line += ["replicates=1"]
    line += ["workload.num_requests=6", "workload.output_tokens=2", f"cache_dir={tmp_path / 'cache'}"]
    row = measure(*line, f"out={tmp_path / 'out'}")
    assert (row["workload"], row["num_requests"]) == ("tinystories", 6)
    assert json.loads(row["digests"])["workload"].endswith(f"org/stories@{COMMITS['main']}")
    fetched = {path.split("/")[-1] for path, _ in Hub.requests if "/resolve/" in path}
    assert fetched == {"validation-00000-of-00002-bbbb.parquet", "validation-00001-of-00002-cccc.parquet"}
    gpu = ["backend=transformers", "model=random-llama-2-7b", "hardware=l4", "dry_run=true", "details=true"]
    assert main([*line[3:], *gpu, f"out={tmp_path / 'plan'}"]) == 0
    assert "GiB weights" in capsys.readouterr().out
    Hub.closed = {"stories"}
    assert main([*line, "workload.revision=v2", f"out={tmp_path / 'closed'}"]) == 2
    assert "error: workload.dataset=org/stories@v2: " in capsys.readouterr().err
    hub.shutdown()
    hub.server_close()
    assert measure(*line, f"out={tmp_path / 'out'}")["trial_id"] == row["trial_id"]


# Traces ---------------------------------------------------------------------------------------------------------------

TRIPLES = [(0.0, 12, 3), (0.05, 40, 2), (0.2, 9, 5), (0.25, 25, 1)]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{3 + due:010.7f},{inputs},{outputs}\n" for due, inputs, outputs in TRIPLES
)
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
    f"{5 + due},ChatGPT,{inputs},{outputs},{inputs + outputs},API log\n" for due, inputs, outputs in TRIPLES
)
MOONCAKE = (
    "".join(  # blocks of 512 tokens: each prompt shares one with all others, and two with the one before the last
        f'{{"timestamp": {27_000 + round(due * 1000)}, "input_length": {1024 + inputs}, "output_length": {outputs}, '
        f'"hash_ids": [1, {2 + (inputs > 20)}, {100 + inputs}]}}\n'
        for due, inputs, outputs in TRIPLES
    )
)
OF_LENGTHS = "4 sessions of one turn, 86 input and 11 output tokens; no prompt begins like another"
SHARING = "4 sessions, 4 turns, 4,182 input and 11 output tokens, an infinite prefix cache supplies 61.2% of the input"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("AzureLLMInferenceTrace_conv.csv", AZURE, OF_LENGTHS),
        ("BurstGPT_1.csv", BURSTGPT, OF_LENGTHS),
        ("mooncake_trace.jsonl", MOONCAKE, SHARING),
    ],
)
def test_a_trace_is_replayed_with_time_and_lengths_of_each_request(
    tmp_path: Path, capsys: Any, name: str, text: str, note: str
) -> None:
    file = write(tmp_path / name, text)
    line = [*QUICK, "workload=recorded", "load=recorded", f"workload.file={file}", "workload.num_requests=4"]
    row = measure(*line, "backend.prefix_block=16", f"out={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    assert note in printed
    assert "of gaps and arrivals in its first trial" in printed
    requests = analysis.requests(str(tmp_path / "out"), row["trial_id"]).query("phase == 'measured'")
    requests = requests.sort_values("scheduled")
    due = (requests["scheduled"] - requests["scheduled"].iloc[0]).round(3)
    # That engine does not count the token at the start of a text; a prompt of token ids has none.
    inputs = requests["input_tokens"] + (1 if name.endswith("csv") else -1024)
    assert list(zip(due, inputs, requests["output_tokens"], strict=True)) == TRIPLES
    assert row["prefix_hit_rate"] == pytest.approx(0 if name.endswith("csv") else 0.612, abs=0.001)


def test_a_traces_times_and_lengths_are_not_torn_apart(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "t.csv", AZURE)
    line = [*QUICK, "workload=recorded", "load=recorded", f"workload.file={file}", f"out={tmp_path / 'out'}"]
    assert main([*line, "workload.num_requests=4", "workload.order=random"]) == 2
    assert "workload.order=random: lengths and times in" in capsys.readouterr().err
    assert main(line) == 2
    assert "contains 4 arrivals; workload.num_requests may be at most 4" in capsys.readouterr().err
    assert main([*QUICK, "load=recorded", f"out={tmp_path / 'out'}"]) == 2
    assert "load.path: " in capsys.readouterr().err


def test_a_trace_beyond_the_context_is_said_beforehand(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path / "t.csv", AZURE.replace(",40,", ",40000,"))
    line = ["backend=transformers", *QUICK[3:], "workload=recorded", "load=recorded", f"workload.file={file}"]
    assert main([*line, "workload.num_requests=4", "dry_run=true", f"out={tmp_path / 'out'}"]) == 0
    assert "40000 input + 2 output tokens exceed the context of tiny-llama" in capsys.readouterr().out


# Story text, and models by their address ------------------------------------------------------------------------------


def test_shipped_story_text_has_the_lengths_of_the_study() -> None:
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    requests = workload("whole_stories").requests(tokenizer, 300, seed=1)
    lengths = pd.Series([request.input_tokens for request in requests])
    assert 200 < lengths.mean() < 240
    assert lengths.max() <= 800
    assert (lengths > 400).any()
    assert {request.output_tokens for request in requests} == {200}
    bodies = [str(request.prompt).split("\n\n", 1)[1][:60] for request in requests]
    assert len(set(bodies)) > 50


def test_a_model_is_given_by_its_repository_or_its_folder(tmp_path: Path) -> None:
    for typed, target, key in (("org/name", "HubModel", "repo"), ("./some/folder", "PathModel", "path")):
        (point,) = composed("backend=vllm", f"model={typed}", "workload=qa").points
        assert point["model"]["_target_"] == f"sweep.inputs.model.{target}"
        assert point["model"][key] == typed
        assert point["model"]["name"] == typed.rpartition("/")[2] if key == "path" else typed
    (point,) = composed("backend=openai", "model=org/name", "workload=qa").points
    assert point["model"]["_target_"] == "sweep.inputs.model.ServedModel"  # an endpoint has it already
    both = composed("backend=vllm", "model=org/name,tiny-llama", "model.max_model_len=512", "workload=qa").points
    assert [point["model"]["max_model_len"] for point in both] == [512, 512]


@pytest.mark.slow
def test_a_model_of_the_hub_runs_by_its_name_alone(
    hub: Any,  # noqa: F811
    folder: Path,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    line = [*QUICK, "load.batch_size=2", "workload=qa", "workload.output_tokens=2", "workload.num_requests=2"]
    line += [f"cache_dir={tmp_path / 'c'}"]
    assert measure(*line, "model=org/model", f"out={tmp_path / 'out'}")["model"] == "org/model"
    assert measure(*line, f"model={folder}", f"out={tmp_path / 'folder'}")["model"] == folder.name
    assert main([*line, "model=org/nowhere", f"out={tmp_path / 'out'}"]) == 2
    assert "error: model.repo=org/nowhere@main: " in capsys.readouterr().err


def test_a_workload_that_is_no_option_and_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="workload=nope: unknown"):
        composed("backend=vllm", "model=tiny-llama", "workload=nope")
