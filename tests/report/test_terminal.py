"""The table that the terminal shows."""

import math
import re
from pathlib import Path

import pytest

from analysis.load import open_run
from analysis.report.page_data import page_data
from analysis.results import RunResults
from analysis.summary import summarise
from tests.support.results import printed, report_of, rows_of, run_of, trial
from tests.support.synthetic_run import make_completion_batches, make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "throughput_bound"
    make_run(folder, replicates=2, batches=(1, 8, 32), workloads=("qa", "reasoning"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_table_fits_the_terminal(run_folder: Path, width: int) -> None:
    text = printed(open_run(run_folder), width)
    assert "replaced-settings: settings replaced for this machine" in " ".join(text.split())
    assert text.count(" engine  ") == {60: 3, 80: 2}.get(width, 1)
    for said in ("TTFT", "$/M tok", "KV", "Memory", "baseline"):
        assert said in text, said  # nothing is left out of eleven points: it follows below


@pytest.mark.slow
def test_metrics_of_many_points_without_room_follow(tmp_path: Path) -> None:
    one = dict.fromkeys(("ttft_p50", "tpot_p50", "ttft_p99", "cost_per_million_tokens"), 0.1)
    memory = {"memory_peak_bytes": 2.0**30, "kv_cache_usage_max": 0.5}
    rows = [trial("a-rather-long-name-of-an-engine", batch, 0, 10.0, **one, **memory) for batch in range(1, 31)]
    run_of(tmp_path, rows)
    for width, tables in ((80, 2), (120, 1)):
        text = printed(open_run(tmp_path), width)
        assert text.count(" engine  ") == tables
        assert text.count(" 50.0 ") == 30  # the KV-cache use of every point


@pytest.mark.parametrize("width", [80, 160])
def test_names_are_broken_between_words_only(tmp_path: Path, width: int) -> None:
    flags = [{"backend.flags.max-num-batched-tokens": value} for value in (2048, 8192)]
    other = dict.fromkeys(("ttft_p50", "tpot_p50", "ttft_p99", "cost_per_million_tokens"), 0.1)
    rows = [trial("transformers", batch, 0, 10.0, **flag, **other) for batch in (1, 8) for flag in flags]
    run_of(tmp_path, rows)
    text = printed(open_run(tmp_path), width)
    assert re.search(r"\bmax-num-batched-tokens=2048\b", text)
    table = text.partition("engine")[2].partition("best")[0]
    assert ("transformers, max-num-batched-tokens=2048 " in table) == (width == 160)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lockstep_batches_show_what_a_batch_took(tmp_path: Path, width: int) -> None:
    make_completion_batches(tmp_path)
    text = printed(open_run(tmp_path), width)
    if width > 60:  # else in two tables
        units = next(line for line in text.splitlines() if line.startswith(" engine"))
        assert " ".join(units.split()).startswith("engine size tokens/s ms tokens/request GiB ")
        row = next(line for line in text.splitlines() if line.split()[:2] == ["vllm_gptq", "64"])
        assert row.split()[4:8] == ["5,792", "200", "5.00", "24.2"]
    for said in ("latency", "Output", "Memory", "Agreement"):
        assert said in text, said
    for said in (
        "float32: transformers\n",
        "bfloat16, bitsandbytes int8: transformers_8bit",
        "float16, gptq (made by GPTQ): vllm_gptq",
        "F16: llamacpp",
    ):
        assert said in text, said
    for said in (
        "transformers, stories: batch 16 (ran out at 64)",
        "llamacpp, stories: batch 4 (ran out at 16; not tried at 64)",
    ):
        assert said in " ".join(text.split()), said  # the second is longer than 60 characters


def test_a_thousand_ways_to_fail_are_counted(tmp_path: Path) -> None:
    rows = [{**trial("a", 1, index, None), "reason": f"failed at {index}"} for index in range(1000)]
    rows += [{**trial("a", 2, index, None), "reason": "failed alike"} for index in range(5)]
    run_of(tmp_path, rows)
    text = printed(open_run(tmp_path), 120)
    assert "1,005 trials have no result" in text
    assert "hung x5 a: failed alike" in text
    assert "warning" not in text  # about numbers, of which there are none
    assert "and 961 more trials with 961 other failures" in text


@pytest.mark.slow
def test_a_ratio_that_may_be_none_is_marked(tmp_path: Path) -> None:
    speeds = {"plain": (10.0, 11.0), "alike": (10.2, 11.2), "fast": (30.0, 30.1)}
    rows = [trial(name, 8, index, speed) for name, both in speeds.items() for index, speed in enumerate(both)]
    run_of(tmp_path, rows, baseline={"backend": "plain"})
    text = printed(open_run(tmp_path), 120)
    assert " ≈1.02×" in text
    assert " 2.87×" in text
    assert "≈ the interval includes 1: may be no difference from the baseline" in text
    run_of(tmp_path, [row for row in rows if row["backend"] != "alike"], baseline={"backend": "plain"})
    assert "≈" not in printed(open_run(tmp_path), 120)


def test_launches_add_their_spread_to_the_interval_of_the_comparison(tmp_path: Path) -> None:
    """The sample is the same at each launch, so its part is in no spread between them: the halves add as squares."""
    from_launches = [
        trial("a", 1, replicate, 100.0, launch=f"{replicate}", agreement=agreement)
        for replicate, agreement in enumerate((0.88, 0.9, 0.92))
    ]
    spread = summarise(run_of(tmp_path / "spread", from_launches)).loc[0]
    low, high = spread["agreement_new_launch_low"], spread["agreement_new_launch_high"]
    ends = {"agreement_low": low, "agreement_high": high}  # as far apart as the launches are
    both = summarise(run_of(tmp_path / "both", [row | ends for row in from_launches])).loc[0]
    assert 0.9 - both["agreement_new_launch_low"] == pytest.approx(2**0.5 * (0.9 - low))
    assert both["agreement_new_launch_high"] - 0.9 == pytest.approx(2**0.5 * (high - 0.9))
    assert list(both[["agreement_ci_low", "agreement_ci_high"]]) == pytest.approx([low, high])
    once = summarise(run_of(tmp_path / "once", [row | ends | {"launch": "0"} for row in from_launches])).loc[0]
    assert math.isnan(once["agreement_new_launch_low"])


@pytest.mark.slow
def test_quality_stands_beside_agreement_with_the_interval_of_the_comparison(tmp_path: Path) -> None:
    """Both launches compared the same sample: their equal figures are no proof, the comparison's interval stays."""
    answers = {"agreement": 0.9, "agreement_low": 0.85, "agreement_high": 0.94}
    answers |= {"quality": 0.985, "quality_low": 0.976, "quality_high": 0.9932}
    rows = [trial("a", 1, replicate, 100.0, launch=f"{replicate}", **answers) for replicate in range(2)]
    rows += [trial("b", 1, replicate, 90.0, launch=f"b{replicate}") for replicate in range(2)]
    run = run_of(tmp_path, rows)
    text = printed(run, 200)
    assert "90.0 (85.0 to 94.0)  98.5 (97.6 to 99.3)" in text
    assert "(a to b): the 95% interval of the comparison with the reference" in text
    point = summarise(run).set_index("backend").loc["a"]
    assert list(point[["agreement_ci_low", "agreement_ci_high"]]) == pytest.approx([0.85, 0.94])
    assert list(point[["quality_new_launch_low", "quality_new_launch_high"]]) == pytest.approx([0.976, 0.9932])
    shown = {each["key"]: each for each in page_data([RunResults(run)])["quantities"]}
    assert (shown["quality"]["value"][0], shown["quality"]["low"][0], shown["quality"]["high"][0]) == (
        98.5,
        97.6,
        99.32,
    )
    assert shown["agreement"]["low"][0] == 85
    assert [row for row in rows_of(report_of(run)) if "90.0 (85.0 to 94.0)" in row and "98.5 (97.6 to 99.3)" in row]
    assert "95% interval of the comparison" not in printed(run_of(tmp_path / "none", rows[2:]), 200)
