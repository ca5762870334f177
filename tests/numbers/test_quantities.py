"""A quantity is declared in one place, and everything that is made of it follows."""

from base64 import b64encode
from hashlib import md5

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.load import open_run
from analysis.quantities import labelled_column as labelled
from scripts import metrics_tables
from sweep.__main__ import main
from sweep.base.config import PERCENTILES
from sweep.disk import row, run_files
from sweep.disk.run_files import RunPaths
from sweep.numbers import quantity
from sweep.numbers.quantity import Quantity, columns, declare, declared
from tests.cli.test_line import SIMULATED
from tests.tracking.test_tracking import of_type, records

SLOW = [*SIMULATED, "backend.ttft.mean=0.3", "backend.itl.mean=0.05"]  # so that a busy machine spoils no trial
TOYS = {"queueing_mean", "queueing_p50", "queueing_p95", "queueing_max", "tokens_per_joule"}


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setattr(quantity, "_DECLARED", {one.name: one for one in declared()})

    @quantity.quantity(unit="s", kind="latency", better="lower", per="request", event="sent")
    def queueing(records):
        """sent − released, for the second time. Shape (requests,), s."""
        return next(one for one in declared() if one.name == "turnaround").function(records)

    @quantity.quantity(unit="tokens/J", kind="energy", better="higher")
    def tokens_per_joule(output_tokens):
        """output tokens / an energy of 2 J."""
        return None if output_tokens is None else output_tokens / 2.0


def run_wandb(monkeypatch, tmp_path, *overrides):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    line = [part for part in SLOW if part != "tracking=none"]
    return main([*line, "tracking=wandb", *overrides, f"out={tmp_path / 'out'}"])


def tracked_summary(folder):
    found = [records(file) for file in folder.glob("offline-run-*/*.wandb")]
    summaries = [
        {key: value for part in of_type(one, "summary") for key, value in part["update"].items()} for one in found
    ]
    return {summary["outcome"]: summary for summary in summaries if "outcome" in summary}  # else the run of the sweep


def tracked_digests(folder):
    (file,) = folder.glob("offline-run-*/*sweep.wandb")
    (results,) = (one for one in of_type(records(file), "artifact") if one["type"] == "results")
    return {entry["path"]: entry["digest"] for entry in results["manifest"]["contents"]}


@pytest.mark.slow
def test_a_toy_quantity_is_everywhere(toys, monkeypatch, tmp_path, caplog):
    """In trials.parquet with its type, in summary.csv, in the report and in W&B's artifact."""
    assert 0 in (run_wandb(monkeypatch, tmp_path) for _ in range(3))  # a busy machine may limit the client
    paths = RunPaths(tmp_path / "out")
    schema = pq.read_schema(paths.trials)
    assert {name: schema.field(name).type for name in TOYS} == dict.fromkeys(TOYS, pa.float64())
    (trial,) = run_files.read_trials(paths.trials)
    assert trial["tokens_per_joule"] == trial["output_tokens"] / 2
    assert trial["queueing_p95"] == trial["turnaround_p95"] is not None
    summary = pd.read_csv(paths.summary)
    assert summary["tokens_per_joule"].tolist() == [trial["tokens_per_joule"]]
    assert set(summary.columns) >= TOYS
    report = paths.report.read_text()
    assert "queueing" in report
    assert "output tokens / an energy of 2 J." in report
    tracked = tracked_summary(paths.tracking)["ok"]
    assert "output_throughput" in tracked
    assert not TOYS & tracked.keys(), "a trial's run on W&B has what decides; the artifact has all"
    digest = b64encode(md5(paths.trials.read_bytes()).digest()).decode()
    assert tracked_digests(paths.tracking)["trials.parquet"] == digest
    requests = pq.read_table(paths.trial(trial["deployment_id"], trial["attempt"], trial["trial_id"]).requests)
    assert "queueing" in requests.column_names
    label = labelled("queueing_p50")
    assert (label.label, label.unit, label.scale) == ("Queueing p50", "ms", 1e3)
    assert "| `tokens_per_joule` | tokens/J | energy | higher |" in metrics_tables.tables()


@pytest.mark.slow
def test_a_failed_row_has_no_toy_quantity(toys, monkeypatch, tmp_path):
    """Half of the requests fail, the others are measured: their speed must not look like a result."""
    assert run_wandb(monkeypatch, tmp_path, "max_failed=0.01", "+backend.faults={error_event: 0.5}") == 1
    paths = RunPaths(tmp_path / "out")
    (trial,) = run_files.read_trials(paths.trials)
    assert trial["outcome"] == "invalid"
    assert 0 < trial["num_failed"] < trial["num_requests"]
    assert trial["output_tokens"] > 0
    assert {trial[name] for name in TOYS} == {None}
    assert not TOYS & tracked_summary(paths.tracking)["invalid"].keys()
    performance = {name for name, one in columns().items() if one.quantity.kind in quantity.PERFORMANCE}
    assert {trial[name] for name in performance} == {None}
    assert trial["warnings"] is None, "it is no result, so an empty list would be praise"


def test_a_name_is_declared_once(toys):
    with pytest.raises(ValueError, match="ttft: declared twice"):
        declare(Quantity(name="ttft", unit="s", kind="latency", function=len, formula=""))


def test_the_tables_of_the_document_are_as_the_code_is():
    text = metrics_tables.METRICS_DOCUMENT.read_text()
    assert text == metrics_tables.with_tables(text), "run: python scripts/metrics_tables.py"
    assert all(f"| `{one.name}` |" in text for one in declared())
    assert all(one.formula for one in declared())


# Percentiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_percentiles_and_slo_are_recomputed_from_the_stamps(tmp_path):
    out = tmp_path / "out"
    assert 0 in (main([*SLOW, "percentiles=[75,99.9]", f"out={out}"]) for _ in range(3))
    (trial,) = run_files.read_trials(out / "trials.parquet")
    assert trial["ttft_mean"] <= trial["ttft_max"]
    assert trial["ttft_p75"] <= trial["ttft_p99_9"] <= trial["ttft_max"]
    assert "ttft_p50" not in trial
    assert open_run(out).axes == []
    assert "ttft_p75" in pd.read_csv(out / "summary.csv")
    assert main([*SLOW, "slo=ttft=10s", f"out={out}"]) == 0
    (again,) = run_files.read_trials(out / "trials.parquet")
    assert (again["trial_id"], again["started_at"]) == (trial["trial_id"], trial["started_at"])
    assert again["ttft_mean"] == pytest.approx(trial["ttft_mean"])
    assert again["ttft_p50"] <= trial["ttft_p75"] <= again["ttft_p90"]
    assert "ttft_p75" not in again
    assert (trial["goodput"], again["goodput"]) == (None, pytest.approx(again["request_throughput"]))
    assert again["cost_per_million_tokens"] == trial["cost_per_million_tokens"]


def test_rows_of_other_percentiles_share_a_table():
    rows = [{"trial_id": "a", "ttft_p50": 1.0}, {"trial_id": "b", "percentiles": "75", "ttft_p75": 2.0, "axis": 1}]
    table = run_files.trials_table(rows)
    assert table["ttft_p50"].to_pylist() == [1.0, None]
    assert table["ttft_p75"].to_pylist() == [None, 2.0]
    assert table.column_names[-1] == "axis"
    assert row.percentiles_of(rows) == (50, 75, 90, 99)
    assert row.percentiles_of([]) == PERCENTILES


def test_a_batch_s_latency_holds_with_the_engines_own_stamps_and_goes_with_a_failure():
    assert "batch_latency_p50" not in row.latency_columns((50,))
    assert "batch_latency_p50" in row.performance_columns((50,))
    assert "ttft_p50" in row.latency_columns((50,))
