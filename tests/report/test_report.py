"""report.html: one file, and what it says of made-up runs."""

import contextlib
import io
import json
import re
import shlex
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.load import open_run
from analysis.report.page_data import page_data
from analysis.results import RunResults, open_results
from analysis.summary import summarise
from sweep.__main__ import main
from sweep.base.wording import printable
from sweep.disk.compaction import compact
from sweep.rerun.rows import capsules_of
from tests.support.results import printed, report_of, rows_of, run_of, trial
from tests.support.synthetic_run import make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "throughput_bound"
    make_run(folder, replicates=2, batches=(1, 8, 32), workloads=("qa", "reasoning"))
    return folder


@pytest.fixture(scope="module")
def output(run_folder: Path) -> str:
    """What the command says that builds the report and the figures of that run: they take seconds, so once."""
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        assert main(["report", str(run_folder)]) == 0
    return stream.getvalue()


class _Reader(HTMLParser):
    """Collects what would load from elsewhere, unclosed tags and duplicate ids."""

    VOID = frozenset({"meta", "input", "br", "path", "use", "rect", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for key, value in attrs if key == "id" and value]
        links = [values.get(key) for key in ("src", "href", "xlink:href")]
        self.outside += [link for link in links if link and not link.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.slow
def test_figures_are_written_twice_and_well_formed(run_folder: Path, output: str) -> None:
    names = ["pareto", "output_throughput", "ratio_forest", "ttft", "latency_distribution", "cost", "tpot"]
    names += ["kv_cache", "kv_cache_bytes", "memory", "throughput_timeline", "memory_timeline", "requests_timeline"]
    of_vllm = ("kv_cache", "requests_timeline")  # the other is the baseline, and reports bytes and no queue
    assert {path.stem for path in (run_folder / "figures").iterdir()} == set(names)
    report = (run_folder / "report.html").read_text()
    at = {name: report.index(f'id="{name}-figure_1"') for name in names if name != "pareto"}  # the script draws that
    telling = [name for name in at if at[name] < report.index('id="more"')]
    assert telling == ["output_throughput", "ratio_forest", "ttft", "tpot"], "the cost is the throughput upside down"
    assert sorted(telling, key=at.__getitem__) == telling
    assert 'aria-label="vllm has the highest throughput at ' in report
    for name in names:
        root = xml.etree.ElementTree.parse(run_folder / "figures" / f"{name}.svg").getroot()
        words = " ".join(root.itertext())
        assert ("vllm" in words) == (name != "kv_cache_bytes"), name
        assert ("transformers" in words) == (name not in of_vllm), name
        assert "reasoning" in words
        assert (run_folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "TTFT p50 (ms)" in (run_folder / "figures" / "ttft.svg").read_text()


@pytest.mark.slow
def test_report_is_one_file_that_says_what_it_must(run_folder: Path, output: str) -> None:
    text = (run_folder / "report.html").read_text()
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    beside = re.compile(r"figures/\w+\.(svg|png)|summary\.csv|trials\.parquet")
    assert not [link for link in reader.outside if not beside.fullmatch(link)], "nothing from the network"
    assert all((run_folder / link).is_file() for link in reader.outside)
    assert len(reader.ids) == len(set(reader.ids))
    words = " ".join(reader.text)
    for said in (
        *("throughput_bound", "vllm 0.32.0", "model: tiny-llama instead of llama-2-7b-chat", "2.93 USD per hour"),
        *("oom_run", "Tried to allocate 2 GiB", "needs docker", "c9dd7f2", "NVIDIA L4", "node-1"),
        *("python -m sweep +experiment=throughput_bound", "first token − scheduled", "settings replaced"),
    ):
        assert said in words, said
    assert "`" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL), "code is marked as such"
    assert len(text) < 2_000_000
    assert "14 trials without a result: tgi: unavailable (12 of them)" in output, "the largest group, all counted"
    output = printed(open_run(run_folder), 120)
    assert "oom_run x2 transformers" in output
    assert "dep-transformers/1/engine.log" in output.replace("\n", "")
    summary = pd.read_csv(run_folder / "summary.csv")
    trials = analysis.load(run_folder)
    vllm = trials[(trials["backend"] == "vllm") & (trials["workload"] == "qa") & (trials["batch_size"] == 8)]
    row = summary[(summary["backend"] == "vllm") & (summary["workload"] == "qa") & (summary["batch_size"] == 8)]
    assert row["output_throughput"].item() == pytest.approx(vllm["output_throughput"].mean(), rel=1e-3)  # pooled


def test_a_point_is_run_again_from_its_row_or_by_the_command_of_its_run(tmp_path: Path) -> None:
    config = json.dumps({"backend": {"name": "a"}})
    rows = [trial("a", 1, 0, 10.0, config=config, seed=1), trial("a", 2, 0, None, config=config)]
    rows.append(trial("a", 4, 0, 10.0))
    run = run_of(tmp_path / "one run", rows, command="sweep +experiment=x")
    row, *others = page_data([RunResults(run)])["points"]["again"]
    assert others == [f"sweep +experiment=x load.batch_size={size} out=results/again" for size in (2, 4)], "no row"
    assert shlex.split(row)[:2] == ["sweep", "rerun"]
    (capsule,) = capsules_of(shlex.split(row)[2])
    assert capsule.trial["trial_id"] == rows[0]["trial_id"]


def test_the_command_that_runs_a_row_again_is_short_where_the_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of(Path("results") / "night", [trial("a", 1, 0, 10.0, config="{}", trial_id="1a2b")])
    assert page_data([RunResults(run)])["points"]["again"] == ["sweep rerun results/night#1a2b"]


@pytest.mark.slow
def test_the_files_of_a_trial_are_linked_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each trial, then the same with an engine that others launched, then put together with other trials'."""
    monkeypatch.chdir(tmp_path)
    paths = make_run(Path("results") / "night", replicates=1, batches=(1, 8), workloads=("qa",))
    point = 0

    def titles() -> dict[str, str]:
        page = page_data([open_results(paths.out)])
        assert all((paths.out / path).is_file() for _, path in page["files"])
        *_, places = page["points"]["trials"][point][0]
        names = [page["files"][place][0] for place in places]
        assert bool(page["points"]["reads"][point]) == any(name.endswith(".parquet") for name in names)
        return dict(page["files"][place] for place in places)

    assert set(titles()) == {"engine log", "requests", "telemetry"}
    for log in paths.deployments.glob("*/*/engine.log"):
        log.unlink()
    assert set(titles()) == {"requests", "telemetry"}
    compact(paths, fewest=1)
    assert sorted(re.sub("-.*", "", title) for title in titles()) == ["requests", "telemetry"]
    assert all(path == f"deployments/compact/{title}" for title, path in titles().items())
    points = page_data([open_results(paths.out)])["points"]
    statement, _, expression = points["reads"][point].partition("; ")
    assert (statement, expression[:33]) == ("from llm_sweep import analysis", "analysis.requests('results/night'")
    assert set(eval(expression)["trial_id"]) == {points["trials"][point][0][0]}


def test_markup_in_a_log_or_a_name_is_text(tmp_path: Path) -> None:
    rows = [trial("[/x] [y]", 1, 0, 10.0)]
    rows.append(trial("a", 2, 0, None, log_tail="<script>alert(1)</script>\x1b[2J\u202e", reason="<b>x\x9b</b>"))
    text = report_of(run_of(tmp_path, rows))
    assert "[/x] [y]" in printed(open_run(tmp_path), 120)
    assert "<script>alert" not in text
    assert printable(text) == text
    assert text.count("<script") == text.count("</script") == 2, "the data and the script"
    assert "<b>x</b>" not in text


def test_a_run_without_any_result_says_so(tmp_path: Path) -> None:
    run_of(tmp_path, [trial("a", 1, 0, None, attempt="1")])
    analysis.write_all(open_results(tmp_path))
    assert "No trial has a result" in (tmp_path / "report.html").read_text()
    text = printed(open_run(tmp_path), 80)
    assert "no configuration has a result" in text
    assert "hung x1 a: not done in time" in text


@pytest.mark.slow
def test_the_steady_state_is_in_the_summary_and_the_report(tmp_path: Path) -> None:
    window = {"steady_begin": 1.0, "steady_output_throughput": 40.0, "steady_ttft_p50": 0.1, "steady_ttft_p99": 0.3}
    rows = [
        trial("a", 8, 0, 30.0, **window),
        trial("a", 8, 1, 30.0, **{**window, "steady_output_throughput": 44.0}),
        trial("a", 8, 2, 30.0, steady_method="none: too short"),
        trial("b", 8, 0, 30.0, steady_method="none: too short"),
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run).set_index("backend")
    assert points.loc["a", "steady_output_throughput"] == 42.0
    assert points["steady_share"].tolist() == [pytest.approx(2 / 3), 0.0]
    text = report_of(run)
    assert "<summary>Steady state</summary>" in text
    assert ["a", "qa", "67%", "42.0"] in [row[:4] for row in rows_of(text)], "the third has none"
    text = report_of(run_of(tmp_path, rows[3:]))
    assert "Steady state</summary>" not in text, "what has nothing to say is not printed"


@pytest.mark.slow
def test_a_warning_marks_the_cells_and_rows_that_it_concerns(tmp_path: Path) -> None:
    rows = [trial(name, 8, index, 10.0, ttft_p50=0.1) for name in "abc" for index in range(3)]
    for index in range(3):
        rows[index]["num_failed"] = 3  # a's latencies, and its p99s if it had any
        rows[3 + index]["agreement"] = 0.5  # all of b
        rows[6 + index]["agreement"] = 1.0
        rows[index]["agreement"] = 1.0
    text = report_of(run_of(tmp_path, rows))
    table = text.partition("<h2>Results</h2>")[2].partition("</table>")[0]
    marked = {
        cells[0]: [re.findall("#warning-([a-z-]+)", cell) for cell in cells]
        for cells in (re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table))
        if cells
    }
    codes = {name[0]: found for name, found in marked.items()}
    assert codes == {
        "a": [[], [], [], [], [], [], ["failed-requests"], []],
        "b": [["low-agreement"], [], [], [], [], [], [], []],
        "c": [[], [], [], [], [], [], [], []],
    }
    assert set(re.findall(r'href="#(warning-[a-z-]+)"', text)) <= set(re.findall(r'id="(warning-[a-z-]+)"', text))


@pytest.mark.slow
def test_what_a_mean_leaves_out_is_named(tmp_path: Path) -> None:
    rows = [trial("a", 8, 0, 10.0, batch_latency_mean=1.0, longest_gap_max=0.5)]
    names = ("Batch latency mean", "Longest gap max")
    assert not any(f"{name} of " in report_of(run_of(tmp_path, rows)) for name in names)
    text = report_of(run_of(tmp_path, [{**rows[0], "num_failed": 2}]))
    assert "atch latency mean of whole batches<" in text
    assert "Longest gap max of successes<" in text


def test_models_do_not_compete(tmp_path: Path) -> None:
    rows = [
        {**trial(name, 8, index, speed / size), "model": f"{size}b"}
        for index in (0, 1)
        for size in (1, 7)
        for name, speed in (("a", 100.0), ("b", 50.0))
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run)
    assert sorted(points.loc[points["output_throughput_standing"] == "best", "model"]) == ["1b", "7b"]


def test_a_load_that_a_point_does_not_have_is_a_dash(tmp_path: Path) -> None:
    open_loop = {**trial("a", 8, 1, 10.0), "load": "open", "batch_size": None, "load.batch_size": None}
    run = run_of(tmp_path, [trial("a", 8, 0, 10.0), trial("a", 16, 0, 10.0), open_loop])
    text = printed(open_run(tmp_path), 120)
    assert re.search(r"open\s+—\s+10.0", text), text
    assert "<NA>" not in text + report_of(run)


def test_each_step_of_a_ladder_is_compared_with_its_parent(tmp_path: Path) -> None:
    steps = [("plain", None, 10.0), ("seqs", "plain", 15.0), ("fp8", "seqs", 30.0), ("other", "plain", None)]
    steps += [("late", "other", 20.0)]
    rows = [
        trial(engine, 8, replicate, value and value * factor, ladder=step, ladder_parent=parent)
        for engine, factor in (("vllm", 1), ("tgi", 2))
        for step, parent, value in steps
        for replicate in range(2)
    ]
    run = run_of(tmp_path, rows)
    points = summarise(run).set_index(["backend", "ladder"])
    assert points["ladder_parent"].dropna().to_dict()["tgi", "fp8"] == "seqs"
    ratios = points["output_throughput_vs_parent"].dropna().to_dict()
    assert ratios == pytest.approx({(e, s): v for e in ("vllm", "tgi") for s, v in (("seqs", 1.5), ("fp8", 2.0))})
    text = report_of(run)
    steps = {(row[0], row[1], row[4]) for row in rows_of(text) if row and row[2] == "qa"}
    assert {
        ("vllm, fp8", "seqs", "2.00× 2.00–2.00"),
        ("vllm, late", "other", "the parent step has no result"),
        ("vllm, other", "plain", "no result"),
    } <= steps


def test_a_p99_says_of_how_many_requests_it_is_and_has_no_interval_without_them(tmp_path: Path) -> None:
    rows = [trial("one", 8, 0, 10.0, ttft_p99=0.2)]
    rows += [trial("two", 8, index, 10.0, ttft_p99=0.2) for index in (0, 1)]
    results = report_of(run_of(tmp_path, rows)).partition("<h2>Results")[2].partition("</table>")[0]
    figures = {row[0]: row[3:] for row in rows_of(results) if len(row) > 4}
    assert {name: (row[0], row[-1]) for name, row in figures.items()} == {"one": ("100", "200"), "two": ("200", "200")}
