"""Quantiles of any number of requests, against those of numpy over the same requests."""

import math
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import analysis
from sweep.base.records import Record, Records
from sweep.disk import run_files
from sweep.disk.request_figures import SERIES, RequestFigures, read_figures
from sweep.disk.run_files import RunPaths
from sweep.numbers.gap_histogram import GAPS_AT_ONCE, LARGEST_ERROR, count_gaps, quantile_of_counts
from sweep.numbers.quantities.latency import itl
from sweep.numbers.quantity import declared
from sweep.numbers.selection import measured
from sweep.numbers.summarise import gaps, request_values
from tests.support.results import trial

ROOT = Path(__file__).resolve().parents[2]


def records_of(seed: int, requests: int = 300, empty_chunks: bool = False) -> Records:
    """Requests of 0 to 40 chunks: five of the warm-up, some that failed, and stamps that go back."""
    chance, records = np.random.default_rng(seed), Records()
    for index in range(requests):
        count = int(chance.integers(0, 40))
        stamps = np.cumsum(chance.lognormal(9, 0.7, count)).astype(np.uint32)
        if count > 10:
            stamps[5] = stamps[4] - 3
        tokens = np.ones(count, np.uint16)
        if empty_chunks:
            tokens[::4] = 0
        records.append(
            Record(
                f"r{index}",
                "warmup" if index < 5 else "measured",
                float(index),
                float(index),
                float(index) + 0.001,
                array("I", stamps.tolist()),
                array("H", tokens.tolist()),
                output_tokens=int(tokens.sum()),
                error="reset" if index % 150 == 7 or not count else None,
            )
        )
    return records


def run_with(folder, *records: Records) -> RunPaths:
    rows = [trial("vllm", 8, index, 100.0, attempt="a", trial_id=f"t{index}") for index in range(len(records))]
    paths = RunPaths(folder)
    run_files.write_trials(paths, rows)
    for row, each in zip(rows, records, strict=True):
        run_files.write_requests(paths.trial(row["deployment_id"], "a", row["trial_id"]), each)
    return paths


@pytest.mark.parametrize("empty_chunks", [False, True])
def test_quantiles_are_those_of_all_requests_and_of_gaps_within_half_a_per_cent(tmp_path, empty_chunks):
    several = [records_of(seed, empty_chunks=empty_chunks) for seed in range(2)]
    run_with(tmp_path, *several)
    result = analysis.quantiles(tmp_path, threads=2)
    exact = [gaps(itl, records, measured(records)) / 1e6 for records in several]
    functions = {quantity.name: quantity for quantity in declared()}
    for row, records, itls in zip(result.table.to_dict("records"), several, exact, strict=True):
        assert row["gaps"] == len(itls)
        for share in (50, 99):
            expected = np.quantile(itls, share / 100)
            assert row[f"itl_p{share}"] == pytest.approx(expected, rel=0.02)  # also a rank between two of few gaps
            for name in SERIES:
                values = request_values(functions[name], records)[measured(records)]
                assert row[f"{name}_p50"] == pytest.approx(np.nanquantile(values, 0.5))
                assert row["e2el_p99"] is None or math.isnan(row["e2el_p99"]), "more than 1 % failed"
    assert result.gaps == sum(map(len, exact))
    assert not result.damaged


def test_a_quantile_of_a_histogram_is_at_most_its_largest_error_off():
    values = np.random.default_rng(0).lognormal(9, 1.5, 300_000).astype(np.uint32)
    stamps = np.cumsum(values).astype(np.uint64)
    pieces = np.flatnonzero(np.diff((stamps >> 31).astype(np.int64)) > 0) + 1
    assert pieces.size > 1, "the stamps must need several requests"
    offsets = np.concatenate([[0], pieces, [stamps.size]])
    counts = count_gaps((stamps & np.uint64(0x7FFFFFFF)).astype(np.uint32), offsets)
    kept_gaps = np.delete(values[1:], pieces - 1)
    assert counts.sum() == kept_gaps.size
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        expected = float(np.quantile(kept_gaps, share, method="inverted_cdf")) / 1e6
        assert quantile_of_counts(counts, share) == pytest.approx(expected, rel=LARGEST_ERROR + 1e-3)
    assert LARGEST_ERROR < 0.005


def test_gaps_across_pieces_are_counted_once_and_long_ones_are_right():
    stamps = np.arange(0, 3 * GAPS_AT_ONCE, dtype=np.uint32)
    assert count_gaps(stamps, np.array([0, stamps.size])).sum() == stamps.size - 1
    late = np.array([0, 3_000_000_000], np.uint32)
    assert quantile_of_counts(count_gaps(late, np.array([0, 2])), 0.5) == pytest.approx(3000, rel=0.004)


def test_a_damaged_file_is_named_and_skipped_and_an_older_one_read(tmp_path):
    paths = run_with(tmp_path, records_of(0), records_of(1), records_of(2))
    damaged = paths.trial("vllm", "a", "t1").requests
    damaged.write_bytes(damaged.read_bytes()[:-200])
    older = paths.trial("vllm", "a", "t2").requests
    pq.write_table(pq.read_table(older).drop_columns(["tpot"]), older)
    result = analysis.quantiles(tmp_path, threads=1)
    assert list(result.table["trial_id"]) == ["t0", "t2"]
    assert [str(damaged) in text for text in result.damaged] == [True]
    assert result.table["tpot_p50"].isna().tolist() == [False, True]


@pytest.mark.slow
def test_a_plain_script_reads_them_without_a_guard_around_its_lines(tmp_path):
    run_with(tmp_path / "night", records_of(0), records_of(1))
    script = tmp_path / "plain.py"
    lines = ["from llm_sweep import analysis", 'print(len(analysis.quantiles("night", threads=2).table))']
    script.write_text("\n".join(lines))
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "2\n"), ended.stderr


def test_a_missing_file_is_named(tmp_path):
    assert "the file is missing" in str(read_figures(tmp_path / "requests.parquet"))
    assert not isinstance(read_figures(tmp_path / "requests.parquet"), RequestFigures)
