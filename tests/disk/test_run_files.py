"""What a run leaves on disk: round trips, types, and files that appear whole or not at all."""

import os
import pickle
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweep.base.records import Record, Records, Sample
from sweep.disk import run_files
from sweep.disk.run_files import DamagedFile, RunPaths
from sweep.disk.tables import FOOTER_SEAL, read_table


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def test_every_path_of_the_design(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "abc")
    names = {paths.plan: "plan.jsonl", paths.trials: "trials.parquet", paths.summary: "summary.csv"}
    names |= {paths.report: "report.html", paths.figures: "figures"}
    names |= {paths.engine_log("dep", "1"): "deployments/dep/1/engine.log"}
    assert {path: path.relative_to(paths.out).as_posix() for path in names} == names
    assert trial.requests == paths.out / "deployments/dep/1/abc/requests.parquet"
    assert trial.telemetry == paths.out / "deployments/dep/1/abc/telemetry.parquet"
    assert trial.trial == paths.out / "deployments/dep/1/abc/trial.parquet"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(paths: RunPaths) -> None:
    run_files.write_whole(paths, paths.summary, "old")

    def half(staged: Path) -> None:
        assert staged.suffix != ".parquet"  # a glob for *.parquet must not see it
        assert paths.deployments not in staged.parents
        staged.write_text("ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run_files.write_whole(paths, paths.summary, half)
    assert paths.summary.read_text() == "old"
    assert [path.name for path in paths.out.iterdir()] == ["summary.csv"]


def test_staging_of_dead_processes_is_cleared_and_of_living_ones_kept(paths: RunPaths) -> None:
    living = paths.staging()
    dead = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))  # beyond Linux's largest id
    elsewhere = dead.with_name(dead.name.replace(f"-{os.stat('/proc/self/ns/pid').st_ino}-", "-7-"))
    for folder in (living, dead, elsewhere):
        folder.mkdir(parents=True)
        (folder / "trial.parquet.partial").write_text("half")
    paths.clear_staging()
    assert not dead.exists()
    assert living.exists()
    assert elsewhere.exists(), "a node in a container of the same host name may be writing it"


def row(**values: Any) -> dict[str, Any]:
    return {"trial_id": "a", "backend": "vllm", "outcome": "ok", **values}


def test_trials_have_the_fixed_columns_then_the_axes(paths: RunPaths) -> None:
    run_files.write_trials(
        paths, [row(**{"load.batch_size": 8, "batch_size": 8}), row(trial_id="b", ladder="256/auto")]
    )
    table = pq.read_table(paths.trials)
    fixed = list(run_files.trial_schema((50, 90, 99)))
    assert table.column_names == [*fixed, "load.batch_size", "ladder"]
    assert [table.schema.field(name).type for name in fixed] == list(run_files.trial_schema((50, 90, 99)).values())
    assert table["load.batch_size"].to_pylist() == [8, None]
    assert table["ladder"].to_pylist() == [None, "256/auto"]
    assert table["ttft_p50"].to_pylist() == [None, None]  # unknown is null, not zero


def test_a_trial_comes_back_as_it_went(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    run_files.write_trial(
        trial,
        row(
            ttft_p50=np.float64(0.25),
            tpot_p50=float("nan"),
            num_requests=np.int32(64),
            rate=4,
            config={"load": {"batch_size": 8}},
            attempt=3,
        ),
    )
    (back,) = run_files.read_trials(trial.trial)
    assert (back["ttft_p50"], back["tpot_p50"], back["num_requests"], back["rate"]) == (0.25, None, 64, 4.0)
    assert back["config"] == '{"load": {"batch_size": 8}}'
    assert back["attempt"] == "3"


@pytest.mark.parametrize(
    ("column", "value"), [("num_requests", "many"), ("ttft_p50", "fast"), ("batch_size", 1.5), ("seed", 2**70)]
)
def test_a_value_of_the_wrong_type_is_named(paths: RunPaths, column: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{column}={value!r}"):
        run_files.write_trials(paths, [row(), row(**{column: value})])
    assert not paths.trials.exists()


def test_axis_columns_keep_numbers_and_mixed_ones_are_text(paths: RunPaths) -> None:
    rows = [row(ints=1, mixed=1, numbers=1, flags=True), row(ints=2, mixed="auto", numbers=0.5, flags=False)]
    table = run_files.trials_table(rows)
    assert table["ints"].to_pylist() == [1, 2]
    assert table["numbers"].to_pylist() == [1.0, 0.5]
    assert table["mixed"].to_pylist() == ["1", "auto"]
    assert table["flags"].to_pylist() == [True, False]


def test_unknown_columns_of_a_newer_version_are_kept_on_reading(paths: RunPaths) -> None:
    run_files.write_trials(paths, [row(invented_later=1.5)])
    assert run_files.read_trials(paths.trials)[0]["invented_later"] == 1.5


def test_a_truncated_file_is_named(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    run_files.write_trial(trial, row())
    whole = trial.trial.read_bytes()
    trial.trial.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFile, match=r"trial\.parquet") as caught:
        run_files.read_trials(trial.trial)
    assert pickle.loads(pickle.dumps(caught.value)).path == trial.trial
    with pytest.raises(FileNotFoundError):
        run_files.read_trials(paths.trials)


def test_any_changed_bit_of_a_footer_is_noticed(paths: RunPaths) -> None:
    """It is Parquet's own metadata: a changed count or offset may read as another table."""
    run_files.write_telemetry(paths.trial("d", "1", "t"), [Sample(1.0, "power", 70.0)])
    path = paths.trial("d", "1", "t").telemetry
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert content[begin - 8 : begin - 4] == FOOTER_SEAL
    for position in range(begin, len(content) - 8):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DamagedFile, match="the checksum of its footer does not match"):
            read_table(path)


def some_records() -> Records:
    records = Records()
    good = Record("a", "measured", 0.0, 0.1, 0.2, array("I", [50_000, 70_000, 2**32 - 1]), array("H", [1, 3, 1]), 7, 5)
    records.append(replace(good, batch=2, finish_reason="length", ended=0.5))
    records.append(Record("b", "warmup", 1.0, 1.0, 1.0, error="http: 500"))  # nothing came back
    records.append(replace(good, request_id="c", gateway_answer=True))
    return records


@pytest.mark.parametrize("records", [some_records(), Records()], ids=["some", "none"])
def test_requests_come_back_as_they_were_measured(paths: RunPaths, records: Records) -> None:
    trial = paths.trial("dep", "1", "a")
    run_files.write_requests(trial, records)
    assert list(run_files.read_requests(trial.requests)) == list(records)


def test_requests_of_an_older_version_are_read(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    trial.folder.mkdir(parents=True)
    table = run_files.requests_table(some_records()).drop_columns(["ended"])
    for name, type_ in (("chunk_us", pa.uint32()), ("chunk_tokens", pa.uint16())):
        index = table.schema.get_field_index(name)
        assert table[name].type == pa.large_list(type_)  # int64 offsets; once they were int32
        table = table.set_column(index, name, table[name].cast(pa.list_(type_)))
    pq.write_table(table, trial.requests)
    assert list(run_files.read_requests(trial.requests)) == [replace(record, ended=None) for record in some_records()]


def test_requests_have_their_latencies_and_null_where_there_is_none(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    run_files.write_requests(trial, some_records())
    columns = read_table(trial.requests).to_pydict()
    assert columns["ttft"] == [
        pytest.approx(0.25),
        None,
        pytest.approx(0.25),
    ]  # 0.05 s after a send that was 0.2 s late
    assert columns["service_ttft"][0] == pytest.approx(0.05)
    assert columns["lag"] == [pytest.approx(0.1), 0.0, pytest.approx(0.1)]
    assert columns["input_tokens"] == [7, None, 7]
    assert columns["batch"] == [2, None, None]
    assert columns["chunk_us"] == [[50_000, 70_000, 2**32 - 1], [], [50_000, 70_000, 2**32 - 1]]


def test_stamps_are_stored_small(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    run_files.write_requests(trial, some_records())
    with pq.ParquetFile(trial.requests) as file:
        assert file.schema_arrow.field("chunk_us").type.value_type == pa.uint32()
        assert file.schema_arrow.field("chunk_tokens").type.value_type == pa.uint16()
        group = file.metadata.row_group(0)
        columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    stamps = columns["chunk_us.list.element"]
    assert stamps.compression == "ZSTD"
    assert "RLE_DICTIONARY" not in stamps.encodings


def test_telemetry_round_trip(paths: RunPaths) -> None:
    trial = paths.trial("dep", "1", "a")
    samples = [Sample(0.0, "kv_cache_usage", 0.5), Sample(0.5, "gpu_memory_bytes", 2.0**34, "0")]
    run_files.write_telemetry(trial, samples)
    assert run_files.read_telemetry(trial.telemetry) == samples
    run_files.write_telemetry(trial, [])
    assert run_files.read_telemetry(trial.telemetry) == []


def test_plan_round_trip(paths: RunPaths) -> None:
    entries = [{"kind": "experiment", "name": "x", "baseline": None}, {"trial_id": "a", "config": {"a": [1, 2]}}]
    run_files.write_plan(paths, entries)
    assert run_files.read_plan(paths.plan) == entries
    paths.plan.write_text('{"cut')
    with pytest.raises(DamagedFile, match=r"plan\.jsonl"):
        run_files.read_plan(paths.plan)


def test_a_table_in_parts_is_the_whole_table(tmp_path, monkeypatch):
    rows = [row(trial_id=f"t{n}", **axes) for n, axes in enumerate([{}, {"a": 1}, {"a": 2.5}, {"b": "x"}, {}])]
    whole = run_files.trials_table(rows)
    monkeypatch.setattr(run_files, "PART_ROWS", 2)
    paths = RunPaths(tmp_path)
    assert run_files.write_trials(paths, rows)
    assert run_files.read_table(paths.trials).equals(whole)
    assert whole["a"].to_pylist() == [None, 1.0, 2.5, None, None]
    assert not run_files.write_trials(paths, rows), "it has them already"
    assert run_files.write_trials(paths, rows[:3])
    assert run_files.write_trials(paths, [])
    assert run_files.read_trials(paths.trials) == []
