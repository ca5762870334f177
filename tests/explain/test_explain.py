"""What bought the gain: shares against costs that are known, in a factorial, a fraction of it, and a ladder."""

import itertools
import json
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.explain.decomposition import Explanation, explanations
from analysis.explain.design import Unexplained
from analysis.explain.output import gain_sentence
from analysis.results import RunResults
from analysis.statistics.comparison import Trials, fit
from sweep.__main__ import main
from tests.support.results import report_of, run_of, trial

KNOBS = ("backend.flags.batching", "backend.flags.graphs", "backend.flags.no-cache", "backend.flags.draft")
OFF_ON = ((1, 256), (False, True), (True, False), (None, '{"method": "ngram"}'))
EFFECTS = (0.5, 0.2, -0.1, 0.0)  # of the logarithm of the throughput
TOGETHER = 0.15  # of the first two
ENGINE = math.log(2)  # the engine with all off, over the baseline


def factorial(folder, even_only=False, noise=0.01, cubic=0.0, omit=(), launches=3):
    """A run with four knobs, each off and on, and a baseline of another engine."""
    noises, rows = np.random.default_rng(7), []
    for bits in itertools.product((0, 1), repeat=4):
        if (even_only and sum(bits) % 2) or bits in omit:
            continue
        log = math.log(100) + float(np.dot(EFFECTS, bits)) + TOGETHER * bits[0] * bits[1] + cubic * math.prod(bits[:3])
        settings = {key: values[bit] for key, values, bit in zip(KNOBS, OFF_ON, bits, strict=True)}
        rows += [
            trial("vllm", 8, launch, math.exp(log + noises.normal(0, noise)), launch=f"{bits}-{launch}", **settings)
            for launch in range(launches)
        ]
    speeds = [math.exp(math.log(100) - ENGINE + noises.normal(0, noise)) for _ in range(launches)]
    rows += [trial("transformers", 8, launch, speed, launch=f"t-{launch}") for launch, speed in enumerate(speeds)]
    for index, row in enumerate(rows):
        row["trial_id"] = f"trial-{index}"
    return RunResults(run_of(folder, rows, baseline={"backend": "transformers"}))


def explained(results) -> Explanation:
    (only,) = explanations(results.run, results.layout, ["output_throughput"])
    return only


def parts(explanation):
    return {part.name: part for part in explanation.parts}


@pytest.mark.parametrize("even_only", [False, True])
def test_shares_are_the_planted_ones_and_add_up_to_the_whole(tmp_path, even_only):
    """With half of the combinations as well: the interaction is halved between its two knobs."""
    explanation = explained(factorial(tmp_path, even_only))
    truth = {"vllm": ENGINE, "batching": 0.5 + TOGETHER / 2, "graphs": 0.2 + TOGETHER / 2, "no-cache": -0.1, "draft": 0}
    total = sum(truth.values())
    for name, log in truth.items():
        part = parts(explanation)[name]
        assert part.share.value == pytest.approx(log / total, abs=0.03)
        assert part.share.low <= log / total <= part.share.high
        assert part.gain.low <= math.exp(log) <= part.gain.high
    assert sum(part.share.value for part in explanation.parts) == pytest.approx(1)
    assert math.prod(part.gain.value for part in explanation.parts) == pytest.approx(explanation.total.value)
    assert explanation.begin == "the baseline"


def test_the_values_are_those_of_the_summary_and_the_gain_is_that_of_the_comparison(tmp_path, capsys):
    """The defect: geometric means beside the medians and totals that `sweep summary` prints of the same points."""
    speeds = {"plain": (100.0, 100.0, 400.0), "fast": (300.0, 320.0, 700.0)}
    rows = [
        trial("vllm", 8, n, speed, ladder=step, ladder_parent=None if step == "plain" else "plain", launch=f"{step}{n}")
        for step, launches in speeds.items()
        for n, speed in enumerate(launches)
    ]
    results = RunResults(run_of(tmp_path, rows))
    first, final = (f"{value:.0f}" for value in results.summary["output_throughput"])
    assert main(["explain", str(tmp_path)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    gain = math.prod(np.array(speeds["fast"]) / speeds["plain"]) ** (1 / 3)
    assert f"from {first} to {final} tokens/s, {gain:.3g}× that of plain" in output
    assert float(final) / float(first) != pytest.approx(gain, rel=0.02)
    assert "a gain is the ratio of the launches' geometric means" in output
    assert main(["summary", str(tmp_path), "--table"]) == 0
    table = capsys.readouterr().out
    assert re.search(rf"plain +qa +{first} \(", table)
    assert re.search(rf"fast +qa +{final} \(", table)


def test_a_knob_alone_and_last_differ_by_its_interaction(tmp_path):
    part = parts(explained(factorial(tmp_path)))["batching"]
    assert part.alone.low < math.exp(0.5) < part.alone.high < part.last.low < math.exp(0.5 + TOGETHER) < part.last.high


def test_the_interaction_of_two_knobs_is_estimated_and_in_a_fraction_with_its_alias(tmp_path):
    for folder, even_only, label in ((tmp_path / "a", False, "batching × graphs"), (tmp_path / "b", True, " or ")):
        changes = dict(explained(factorial(folder, even_only)).interactions)
        (name,) = [each for each in changes if label in each and "batching × graphs" in each]
        assert changes[name].low < math.exp(TOGETHER) < changes[name].high
        rest = [change for each, change in changes.items() if each != name]
        assert all(change.low < 1 < change.high for change in rest)


def test_a_fraction_says_what_it_cannot_tell_and_shares_still_add_up(tmp_path):
    """Three knobs that interact: a third each; a half fraction puts part of it elsewhere, and says so."""
    full, half = (explained(factorial(tmp_path / str(even), even, noise=0.001, cubic=0.3)) for even in (False, True))
    assert not full.notes
    assert parts(full)["no-cache"].gain.value == pytest.approx(math.exp(-0.1 + 0.1), rel=0.01)
    assert "8 of 16 combinations: the shares are exact if no more than 2 knobs interact" in half.notes[0]
    assert sum(part.share.value for part in half.parts) == pytest.approx(1)
    assert all(math.isnan(part.alone.value) for part in half.parts)


def test_combinations_that_do_not_tell_are_refused_with_the_reason(tmp_path):
    with pytest.raises(Unexplained, match="no result with all of the 4 knobs on"):
        explained(factorial(tmp_path / "a", omit=[(1, 1, 1, 1)]))
    singles = [bits for bits in itertools.product((0, 1), repeat=4) if 1 < sum(bits) < 4]
    with pytest.raises(Unexplained, match="too few to separate the knobs' shares"):
        explained(factorial(tmp_path / "b", omit=[*singles, (1, 0, 0, 0)]))


def two_by_two(folder, **run):
    rows = [
        trial("vllm", 8, launch, 100.0 * (1 + a) * (1.1 + 0.01 * launch) ** b, launch=f"{a}{b}{launch}")
        | {"trial_id": f"{a}{b}{launch}", KNOBS[0]: OFF_ON[0][a], KNOBS[1]: OFF_ON[1][b], "ttft_mean": 0.1}
        | {"ttft_p50": None if a and b and not launch else 0.1}
        for a, b, launch in itertools.product((0, 1), (0, 1), range(3))
    ]
    return RunResults(run_of(folder, [*rows, *run.pop("also", [])], **run))


def test_the_baseline_says_which_value_is_off(tmp_path):
    part = parts(explained(two_by_two(tmp_path, baseline={KNOBS[0]: 256})))["batching"]
    assert part.change == "256 → 1"
    assert part.gain.value == pytest.approx(0.5, rel=0.01)


def test_of_several_points_of_the_baseline_none_is_compared_with(tmp_path):
    also = [trial("transformers", 8, 0, 50.0, **{KNOBS[3]: value, "trial_id": str(value)}) for value in ("a", "b")]
    run = two_by_two(tmp_path, also=also, baseline={"backend": "transformers"})
    every = explanations(run.run, run.layout, ["output_throughput"])
    explanation = next(each for each in every if "vllm" in each.begin)
    assert list(parts(explanation)) == ["batching", "graphs"]
    assert "transformers has 2 points, so the baseline is ambiguous" in explanation.notes


def test_a_quantile_that_fell_on_failed_requests_is_not_explained_by_the_luckier_launches(tmp_path):
    run = two_by_two(tmp_path)
    columns = [each.quantity.column for each in explanations(run.run, run.layout)]
    assert columns == ["output_throughput"]


def test_one_launch_gives_no_interval(tmp_path):
    explanation = explained(factorial(tmp_path, launches=1))
    assert math.isnan(explanation.total.low)
    assert all(math.isnan(part.share.low) for part in explanation.parts)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_parts_of_no_change_at_all_have_no_share(tmp_path, spread):
    """Two knobs whose gains cancel, or are nothing, to the last digit: the run's report and figure are still made."""
    from analysis.figures import waterfall

    rows = [
        trial("vllm", 8, launch, 100.0 * (1 + spread * ((7 * launch + 3 * a + 5 * b) % 4)), launch=f"{a}{b}{launch}")
        | {"trial_id": f"{a}{b}{launch}", KNOBS[0]: OFF_ON[0][a], KNOBS[1]: OFF_ON[1][b]}
        for a, b, launch in itertools.product((0, 1), (0, 1), range(3))
    ]
    results = RunResults(run_of(tmp_path, rows))
    explanation = explained(results)
    assert explanation.total.value == pytest.approx(1)
    assert all(math.isnan(part.share.value) for part in explanation.parts)
    assert "this may be no change" in report_of(results.run)
    assert waterfall.draw(results.run, results.layout) is not None


def test_intervals_hold_as_often_as_they_say(tmp_path):
    """Equal knobs: in at most 5 % of runs some interval leaves out the truth; of 60 runs, 9 are too many."""
    misses = 0
    for seed in range(60):
        weights, model, truth = simulated_model(seed)
        sums, half = model.contrasts(weights, model.sidak(len(weights)))
        misses += bool((np.abs(sums - truth) > half).any())
    assert misses <= 8


def simulated_model(seed):
    from analysis.explain.contrasts import shapley

    measured = [frozenset(pair) for pair in ((), ("a",), ("b",), ("a", "b"))]
    noises = np.random.default_rng(seed)
    point, replicate = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    launch = np.array([f"{a}-{b}" for a, b in zip(point, replicate, strict=True)], object)
    logs = noises.normal(0, 0.02, 12) + noises.normal(0, 0.05, 3)[replicate]
    weights, _ = shapley(measured, ["a", "b"])
    return weights, fit(np.exp(logs), Trials(point, replicate, launch), 4), 0.0


def ladder(folder, speeds=(100, 150, 10, 300), noise=0.01):
    noises, rows = np.random.default_rng(3), []
    parents = {"plain": None, "wide": "plain", "aside": "wide", "fp8": "wide"}
    for (step, parent), speed in zip(parents.items(), speeds, strict=True):
        rows += [
            trial("vllm", 8, launch, speed * math.exp(noises.normal(0, noise)), launch=f"{step}-{launch}")
            | {"ladder": step, "ladder_parent": parent, "trial_id": f"{step}-{launch}"}
            for launch in range(3)
        ]
    return run_of(folder, rows)


def test_a_ladder_gives_ordered_shares_and_says_so(tmp_path):
    explanation = explained(RunResults(ladder(tmp_path)))
    assert explanation.kind == "ladder"
    shares = {part.name: part.share.value for part in explanation.parts}
    assert shares == {
        "wide": pytest.approx(math.log(1.5) / math.log(3), abs=0.03),
        "fp8": pytest.approx(math.log(2) / math.log(3), abs=0.03),
    }
    said = "qa: throughput from 100.0 to 303 tokens/s, 3.03× that of plain. Shares of the change: fp8"
    assert gain_sentence(explanation).startswith(said)
    assert any("hold for this ladder's order" in note for note in explanation.notes)
    ((branch, below, gain, _, *_),) = explanation.branches
    assert (branch, below, gain.value) == ("aside", "wide", pytest.approx(10 / 150, rel=0.05))


@pytest.mark.slow
def test_of_a_task_that_does_not_tell_the_reason_is_printed_beside_what_is_explained(tmp_path, capsys):
    settings = {f"{a}{b}": {KNOBS[0]: OFF_ON[0][a], KNOBS[1]: OFF_ON[1][b]} for a, b in ((0, 0), (0, 1), (1, 0))}
    also = [
        trial("vllm", 8, 0, 100.0, launch=name, **settings[name], workload="chat", trial_id=f"chat-{name}")
        for name in settings
    ]
    results = two_by_two(tmp_path, also=also)
    note = "not explained: vllm, chat: no result with all of the 2 knobs on"
    assert explained(results).task == "qa"
    assert main(["explain", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(note) == 1
    assert main(["explain", str(tmp_path), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.count(note) == 1
    assert note in report_of(results.run)


@pytest.mark.slow
def test_the_command_prints_text_markdown_csv_and_json_and_the_report_has_it(tmp_path, capsys):
    results = factorial(tmp_path)
    assert main(["explain", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("qa: throughput from 5")
    assert "that of the baseline. Shares of the change: vllm 4" in text
    assert main(["explain", str(tmp_path), "--format", "json", "--metric", "output_throughput"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert sum(each["share"] for each in records if each["entry"] == "part") == pytest.approx(1)
    assert main(["explain", str(tmp_path), "--format", "markdown"]) == 0
    assert "| batching | 1 → 256 |" in capsys.readouterr().out
    assert main(["explain", str(tmp_path), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("kind,task,column,against,entry,name,change,gain,")
    document = report_of(results.run)
    assert "What bought the gain" in document
    assert "1 → 256" in document


def test_a_run_without_knobs_is_refused_in_one_line(tmp_path, capsys):
    run_of(tmp_path, [trial("vllm", 8, 0, 100.0)])
    assert main(["explain", str(tmp_path)]) == 2
    assert "neither a ladder nor" in capsys.readouterr().err


def test_the_waterfall_is_drawn_where_there_is_something_to_explain(tmp_path):
    from analysis.figures import waterfall
    from analysis.plotting.chart_style import style

    run = factorial(tmp_path / "a").run
    results = RunResults(replace(run, trials=run.trials.assign(ttft_p50=5 / run.trials["output_throughput"])))
    with style():
        figure = waterfall.draw(results.run, results.layout)
        labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert [ax.get_xlabel() for ax in figure.axes] == ["Output throughput (tokens/s)", "TTFT p50 (ms)"]
        assert labels == ["the baseline", "vllm", "batching", "draft", "graphs", "no-cache", "all together"]
        plain = RunResults(run_of(tmp_path / "b", [trial("vllm", 8, 0, 100.0)]))
        assert waterfall.draw(plain.run, plain.layout) is None
        flags = [trial("vllm", 8, 0, 100.0 * (1 + flag), **{KNOBS[1]: bool(flag)}) for flag in (0, 1)]
        single = RunResults(run_of(tmp_path / "c", [row | {"trial_id": f"{n}"} for n, row in enumerate(flags)]))
        assert explained(single).parts[0].name == "graphs"
        assert waterfall.draw(single.run, single.layout) is None, "one setting is the whole gain"


def test_a_waterfall_says_which_gain_has_no_interval(tmp_path):
    from analysis.figures import waterfall

    run = ladder(tmp_path)
    single = replace(run, trials=run.trials[run.trials["replicate"] == 0].reset_index(drop=True))
    for each, is_bare in ((run, False), (single, True)):
        results = RunResults(each)
        (ax, *_) = waterfall.draw(results.run, results.layout).axes
        assert [text.get_text().endswith(", no interval") for text in ax.texts] == [is_bare, is_bare, False]
        assert ax.texts[2].get_text().endswith("×, a branch")
        assert bool(ax.lines) is not is_bare


def test_an_interval_beyond_the_axis_of_a_waterfall_has_an_arrowhead(tmp_path):
    from analysis.figures import waterfall

    for noise, heads in ((0.001, set()), (2.0, {"<", ">"})):
        results = RunResults(ladder(tmp_path, noise=noise))
        (ax, *_) = waterfall.draw(results.run, results.layout).axes
        left, right = ax.get_xlim()
        lines = [line for line in ax.lines if len(line.get_xdata()) == 2]
        assert lines
        assert all(left <= end <= right for line in lines for end in line.get_xdata()), noise
        assert {line.get_marker() for line in ax.lines if len(line.get_xdata()) == 1} == heads


def test_each_bar_of_a_waterfall_stands_at_its_own_name(tmp_path):
    """A task that has only the last steps: panels share their axis, and its bars once stood at the first steps."""
    from analysis.figures import waterfall

    run = ladder(tmp_path)
    later = run.trials[run.trials["ladder"] != "plain"].assign(workload="short")
    later["trial_id"] += "-short"
    results = RunResults(replace(run, trials=pd.concat([run.trials, later], ignore_index=True)))
    axes = waterfall.draw(results.run, results.layout).axes
    names = [tick.get_text() for tick in axes[0].get_yticklabels()]
    drawn = {}
    for ax in axes:
        drawn[ax.get_title()] = [names[round(bar.get_y() + bar.get_height() / 2)] for bar in ax.patches]
    assert drawn == {
        "qa": ["plain", "wide", "fp8", "aside", "all together"],
        "short": ["wide", "fp8", "aside", "all together"],
    }


def test_a_waterfall_of_no_change_at_all_has_an_axis_without_a_warning(tmp_path):
    """Matplotlib warns where all levels are equal, and widens the axis as it likes."""
    from analysis.figures import waterfall

    results = RunResults(ladder(tmp_path, speeds=(100, 100, 100, 100), noise=0))
    with warnings.catch_warnings(action="error"):
        figure = waterfall.draw(results.run, results.layout)
    low, high = figure.axes[0].get_xlim()
    assert low < 100 < high
