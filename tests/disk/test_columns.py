"""docs/columns.md names every column that a run's files have, and the sample of docs/results.md is right."""

import re

import pandas as pd
import psutil
import pyarrow as pa

import analysis
from analysis.answers.output import ANSWER_COLUMNS
from analysis.compare.output import comparison_columns
from analysis.explain.output import PART_COLUMNS
from analysis.report import html
from analysis.statistics.request_quantiles import QUANTILE_COLUMNS
from analysis.studies.printed import JUDGED
from analysis.summary import SUMMARY_COLUMNS, key_columns
from analysis.table import meanings
from scripts import metrics_tables
from sweep.base.config import ROOT
from sweep.base.records import Records
from sweep.disk import row, run_files
from sweep.disk.columns import TELEMETRY_FIELDS, request_columns, trial_columns
from sweep.node.telemetry import Processes
from sweep.numbers.quantity import columns
from tests.support.synthetic_run import make_run


def test_no_column_is_without_a_meaning():
    assert [name for name in row.schema() if name not in columns()] == list(trial_columns())
    assert set(run_files.requests_table(Records()).column_names) == set(request_columns())
    assert run_files.TELEMETRY_SCHEMA.names == list(TELEMETRY_FIELDS)
    exported = [meanings(columns) for columns in (ANSWER_COLUMNS, comparison_columns(0.03), PART_COLUMNS, JUDGED)]
    for declared in (trial_columns(), request_columns(), TELEMETRY_FIELDS, SUMMARY_COLUMNS, *exported):
        assert [name for name, (_, meaning) in declared.items() if not meaning] == []


def test_the_document_is_up_to_date_and_has_every_column():
    text = metrics_tables.COLUMNS_DOCUMENT.read_text()
    assert text == metrics_tables.with_tables(text, metrics_tables.column_tables()), "run scripts/metrics_tables.py"
    for name in (*row.schema(), *request_columns(), *TELEMETRY_FIELDS):
        assert f"| `{name}` |" in text, name


def test_the_meanings_of_telemetry_are_those_of_what_writes_it():
    code = "".join(path.read_text() for name in ("sweep", "backends") for path in (ROOT / name).rglob("*.py"))
    series = re.findall(r"\w+_\w+", TELEMETRY_FIELDS["series"][1])
    assert [name for name in series if f'"{name}"' not in code] == []
    readings = [*Processes(lambda: [psutil.Process()]).read()]
    assert {device for _, device, _ in readings} == {""}
    assert "process" not in TELEMETRY_FIELDS["device"][1]


def test_every_column_of_a_summary_is_declared(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "draw_all", lambda run, layout, target: [])  # which takes seconds
    results = analysis.open_results(make_run(tmp_path, batches=(1, 8), workloads=("qa",)).out)
    html.write_all(results)
    written = pd.read_csv(results.run.paths.summary, nrows=0)
    patterns = []
    for names in SUMMARY_COLUMNS:
        for name in names.split(", "):
            figures = "|".join(map(re.escape, columns()))
            patterns.append(re.escape(name).replace("COLUMN", f"({figures})").replace("…", "(baseline|parent)"))
    axes = set(key_columns(results.run))
    missing = [name for name in written if name not in axes and not any(re.fullmatch(p, name) for p in patterns)]
    assert missing == []


def test_every_column_of_an_export_is_declared(tmp_path):
    make_run(tmp_path / "run", batches=(1, 8), workloads=("qa",))
    quantiles = analysis.quantiles(tmp_path / "run").table
    patterns = [name.replace("pN", r"p\d+") for names in QUANTILE_COLUMNS for name in names.split(", ")]
    assert all(any(re.fullmatch(pattern, name) for pattern in patterns) for name in quantiles)


def test_the_sample_of_the_results_page_runs_and_averages_no_tasks(tmp_path):
    make_run(tmp_path / "results" / "throughput_bound", batches=(1, 8), workloads=("qa", "sentiment"))
    (sample,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), re.DOTALL)
    lines = [line for line in sample.splitlines() if line]
    assignment = "table = "
    sample = "\n".join(assignment + line if line.startswith("ok.groupby") else line for line in lines)
    sample = sample.replace("results/throughput_bound", str(tmp_path / "results" / "throughput_bound"))
    names: dict[str, object] = {}
    exec(sample, names)
    table, ok, requests = names["table"], names["ok"], names["requests"]
    mixed = ok.groupby(table.index.names).agg(lambda values: values.nunique(dropna=False))
    for asked in ("model", "workload", "load", "batch_size", "concurrency", "rate", "accelerator"):
        assert asked in table.index.names or (mixed[asked] == 1).all(), asked
    assert len(requests) > 0
    assert set(requests["trial_id"]) == {ok["trial_id"].iloc[0]}
    assert pa.Table.from_pandas(requests).num_columns >= len(request_columns())
