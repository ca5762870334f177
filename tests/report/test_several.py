"""One report of several runs: whose points are in which task, how they are named, and where the links lead."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest

import analysis
from analysis.report.page_data import page_data
from analysis.report.several import html_of_several
from analysis.results import RunResults, open_results
from sweep.__main__ import main
from sweep.disk.compaction import compact
from tests.answers.test_answers import CONFIG, engines
from tests.support.results import rows_of, run_of, trial
from tests.support.synthetic_run import make_run


def page_of(folder: Path, *runs: str) -> dict[str, Any]:
    return page_data([open_results(run) for run in runs], folder)


def places(page: dict[str, Any]) -> set[tuple[str, str, str]]:
    points = page["points"]
    return {
        (page["tasks"][task], page["lines"][line], load)
        for task, line, load in zip(points["task"], points["line"], points["load"], strict=True)
    }


def test_runs_that_were_asked_the_same_share_a_task_and_a_shared_name_gets_the_runs(tmp_path):
    one = engines(tmp_path / "monday", {"vllm": 110, "tgi": 100})
    two = engines(tmp_path / "tuesday", {"vllm": 120})
    page = page_of(tmp_path / "both", one, two)
    assert page["tasks"] == ["qa"]
    assert set(page["lines"]) == {"vllm (monday)", "tgi", "vllm (tuesday)"}
    assert page["axis"] == "Batch size"
    assert places(page) == {("qa", line, f"batch size {size}") for line in page["lines"] for size in (1, 8)}
    names = page["points"]["name"]
    assert len(names) == len(set(names)) == 6
    speeds = dict(zip(names, page["quantities"][0]["value"], strict=True))
    assert speeds["vllm (tuesday), qa, batch size 8"] == pytest.approx(960, rel=0.01)
    assert page["points"]["launches"] == [4] * 6


@pytest.mark.slow
def test_points_that_were_not_asked_the_same_never_share_a_task(tmp_path):
    """Two lengths of answers, other files of the same names, another machine, and another model."""
    longer = {**CONFIG, "workload": {"name": "qa", "output_tokens": 512}}
    model = {**CONFIG, "model": {"name": "large"}}
    runs = [
        engines(tmp_path / "a", {"vllm": 110}),
        engines(tmp_path / "b", {"tgi": 50}, config=json.dumps(longer)),
        engines(tmp_path / "c", {"tgi": 60}, accelerator="NVIDIA L4"),
        engines(tmp_path / "d", {"tgi": 70}, config=json.dumps(model)),
    ]
    page = page_of(tmp_path / "all", *runs)
    assert {(task, line) for task, line, _ in places(page)} == {
        ("qa, m", "vllm"),
        ("qa, m, output_tokens=512", "tgi (b)"),
        ("qa, m, NVIDIA L4", "tgi (c)"),
        ("qa, large", "tgi (d)"),
    }
    files = [engines(tmp_path / name, {name: 10}, digests=json.dumps({"workload": name})) for name in ("e", "f")]
    page = page_of(tmp_path / "files", *files)
    assert page["tasks"] == ["qa, files of workload=e", "qa, files of workload=f"]


@pytest.mark.slow
def test_settings_that_read_alike_are_two_tasks_still(tmp_path):
    """Of an imported row a number may be a text."""
    configs = [json.dumps({**CONFIG, "workload": {"name": "qa", "output_tokens": tokens}}) for tokens in (64, "64")]
    runs = [engines(tmp_path / name, {"vllm": 10}, config=text) for name, text in zip("ab", configs, strict=True)]
    page = page_of(tmp_path / "both", *runs)
    assert page["tasks"] == ["qa, output_tokens=64", "qa, output_tokens=64 (2)"]


def test_the_axis_of_a_run_that_is_no_load_is_in_the_name_of_the_line_or_of_the_task(tmp_path):
    def configured(folder: str, key: str, values: tuple[int, ...]) -> RunResults:
        part, name = key.split(".")
        config = lambda value: json.dumps({**CONFIG, part: {**CONFIG.get(part, {}), name: value}})  # noqa: E731
        rows = [trial("vllm", 8, 0, 10.0 * value, config=config(value), **{key: value}) for value in values]
        return RunResults(run_of(tmp_path / folder, rows))

    seqs = configured("seqs", "backend.max_num_seqs", (64, 128))
    tokens = configured("tokens", "workload.output_tokens", (16, 32))
    page = page_data([seqs, tokens], tmp_path)
    assert {(task, line) for task, line, _ in places(page)} == {
        ("qa", "vllm, max num seqs 64"),
        ("qa", "vllm, max num seqs 128"),
        ("qa, output tokens 16", "vllm"),
        ("qa, output tokens 32", "vllm"),
    }
    assert page["axis"] == "", "all batches are of one size"
    assert page["points"]["size"] == [None] * 4


def test_a_point_without_a_result_is_in_the_task_of_its_run(tmp_path):
    rows = [trial("vllm", 1, 0, 10.0), trial("vllm", 8, 0, None), {**trial("vllm", 1, 1, None), "workload": "chat"}]
    runs = [RunResults(run_of(tmp_path / "a", rows)), RunResults(run_of(tmp_path / "b", [trial("tgi", 1, 0, 20.0)]))]
    page = page_data(runs, tmp_path)
    assert places(page) == {
        ("qa", "vllm", "batch size 1"),
        ("qa", "vllm", "batch size 8"),
        ("qa", "tgi", "batch size 1"),
        ("chat, no result in a", "vllm", "batch size 1"),
    }
    assert sorted(page["points"]["outcomes"]) == ["", "", "hung 1", "hung 1"]


@pytest.mark.slow
def test_a_machine_of_two_prices_is_one_for_each(tmp_path):
    """A price that is set on the page replaces one of them: costs of both would follow the higher."""
    card = {"accelerator": "NVIDIA L4", "gpu_count": 1}
    runs = [
        engines(tmp_path / name, {"vllm": 100}, price_per_hour=price, cost_per_million_tokens=price, **card)
        for name, price in (("a", 0.5), ("b", 2.0))
    ]
    page = page_of(tmp_path / "both", *runs)
    assert dict(zip(page["machines"], page["prices"], strict=True)) == {
        "NVIDIA L4 at $0.5/h": 0.5,
        "NVIDIA L4 at $2/h": 2.0,
    }
    assert page["points"]["machine"] == [0, 0, 1, 1]
    same = engines(tmp_path / "c", {"vllm": 100}, price_per_hour=0.5, cost_per_million_tokens=0.5, **card)
    assert page_of(tmp_path / "both", runs[0], same)["machines"] == ["NVIDIA L4"]


@pytest.mark.slow
def test_the_command_writes_one_page_whose_links_lead_to_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("monday", "tues day"):
        make_run(tmp_path / "results" / name, replicates=2, batches=(1, 8), workloads=("qa",))
    compact(open_results("results/tues day").run.paths, fewest=1)
    assert main(["report", "results/monday"]) == 0
    capsys.readouterr()
    assert main(["report", "monday", "results/tues day", "--output", "week/both"]) == 0
    assert capsys.readouterr().out == "report: week/both/report.html\n"
    folder = tmp_path / "week" / "both"
    assert {path.name for path in folder.iterdir()} == {"report.html", "summary.csv"}
    text = (folder / "report.html").read_text()
    assert "<h1>monday, tues day</h1>" in text
    links = [unquote(unescape(link)) for link in re.findall(r'href="([^"#]+)"', text)]
    assert links == ["../../results/monday/report.html", "summary.csv"], "the second run has no report"
    assert all((folder / link).is_file() for link in links)
    page = json.loads(re.findall(r'id="page-data">(.*?)</script>', text)[0])
    assert all((folder / path).is_file() for _, path in page["files"])
    assert {Path(path).parts[3] for _, path in page["files"]} == {"monday", "tues day"}
    again = dict(zip(page["points"]["name"], page["points"]["again"], strict=True))
    assert again["vllm (monday), qa, batch size 8"].startswith("sweep rerun results/monday#")
    assert again["vllm (tues day), qa, batch size 8"].startswith("sweep rerun 'results/tues day'#")
    reads = dict(zip(page["points"]["name"], page["points"]["reads"], strict=True))
    assert reads["vllm (monday), qa, batch size 8"] == "", "each trial has its own files"
    assert "analysis.requests('results/tues day'" in reads["vllm (tues day), qa, batch size 8"]
    table = pd.read_csv(folder / "summary.csv")
    assert table["run"].value_counts().to_dict() == {"monday": 6, "tues day": 6}


@pytest.mark.slow
def test_the_page_has_answer_verdicts_warnings_and_provenance_of_each_run(tmp_path):
    one = engines(tmp_path / "a", {"vllm": 100, "tgi": 90}, engine_version="1.0", attempt="1")
    two = engines(tmp_path / "b", {"vllm": 200, "tgi": 90}, engine_version="2.0", attempt="1", num_failed=5)
    text = html_of_several([open_results(run) for run in (one, two)], tmp_path / "both")
    assert "vllm (b) is the fastest at 2 of 2 tasks" in text
    tally = "throughput: b against a: faster in 2, equal within 3% in 2 of 4"
    assert tally in text
    rows = [row for row in rows_of(text.partition(tally)[2].partition("</table>")[0]) if row]
    assert [(row[0], row[-1]) for row in rows if "vllm" in row[0]] == [
        ("vllm batch_size=1", "faster"),
        ("vllm batch_size=8", "faster"),
    ]
    assert "engine_version 1.0 → 2.0" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    warnings = text.partition("<h2>What to doubt</h2>")[2].partition("</section>")[0]
    assert re.search(r"<code>failed-requests</code>: b: ", warnings)
    assert "a: " not in warnings.partition("<code>failed-requests</code>")[2].partition("</li>")[0]
    provenance = text.partition("<h2>Provenance</h2>")[2]
    assert [engine for engine in ("vllm 1.0, tgi 1.0", "vllm 2.0, tgi 2.0") if engine in provenance] == [
        "vllm 1.0, tgi 1.0",
        "vllm 2.0, tgi 2.0",
    ]
    assert str(tmp_path / "a") in provenance
    assert [title for _, title in re.findall(r'<a href="#(\w+)">(.*?)</a>', text.partition("<main>")[0])] == [
        *("Answer", "Explore", "Verdicts", "What to doubt", "Provenance"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("failed", ["a", "b"])
def test_a_run_without_a_result_is_shown_and_is_no_side_of_a_verdict(tmp_path, failed):
    speeds = {name: None if name == failed else 10.0 for name in "ab"}
    runs = [RunResults(run_of(tmp_path / name, [trial("vllm", 1, 0, speed)])) for name, speed in speeds.items()]
    text = html_of_several(runs, tmp_path / "both")
    assert "0 of 1 trials" in text
    assert "<h2>Verdicts</h2>" not in text
    both = [RunResults(run_of(tmp_path / name, [trial("vllm", 1, 0, None)])) for name in "cd"]
    assert "No trial has a result" in html_of_several(both, tmp_path / "both")


@pytest.mark.slow
def test_what_an_engine_wrote_is_text_on_the_page_of_several(tmp_path):
    hostile = "</script><img src=x>"
    runs = [RunResults(run_of(tmp_path / name, [trial(hostile, 1, 0, 10.0)])) for name in "ab"]
    text = html_of_several(runs, tmp_path)
    assert "<img" not in text
    assert text.count("</script") == 2, "the data and the script"


@pytest.mark.slow
def test_all_rows_are_of_each_run(tmp_path, capsys):
    runs = []
    for name in "ab":
        rows = [trial("vllm", 1, 0, 10.0, in_plan=True), trial("vllm", 8, 0, 10.0, in_plan=False)]
        runs.append(str(run_of(tmp_path / name, rows).paths.out))
    output = tmp_path / "both"
    assert main(["report", *runs, "--output", str(output)]) == 0
    assert capsys.readouterr().err.count("1 row of other plans not shown; add all=true to show them") == 2
    assert len(pd.read_csv(output / "summary.csv")) == 2
    assert main(["report", *runs, "all=true", "--output", str(output)]) == 0
    assert "not shown" not in capsys.readouterr().err
    assert len(pd.read_csv(output / "summary.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN: the report of several runs needs a new folder; add --output FOLDER"),
        (["--output", "a"], "contains a run with a report"),
        (["--output", "/proc/none"], "--output /proc/none"),
        (["--output", "new", "--metrics", "vllm"], "--metrics vllm"),
        (["./a", "--output", "new"], "a run is named twice"),
        (["nowhere", "--output", "new"], "no run here"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        run_of(Path(name), [trial("vllm", 1, 0, 10.0)])
    assert main(["report", "a", "b", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("report.html"))


@pytest.mark.slow
def test_the_library_writes_it_too(tmp_path):
    runs = [analysis.open_results(engines(tmp_path / name, {"vllm": 100})) for name in "ab"]
    analysis.write_several(runs, tmp_path / "both")
    assert (tmp_path / "both" / "report.html").read_text().startswith("<!doctype html>")
