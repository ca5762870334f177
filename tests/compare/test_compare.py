"""Comparisons across runs: what is compared, how sure, and the exit status that a script acts on."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import special

from analysis import open_results
from analysis.compare import Finding, PointComparison, comparisons, noise_of, side
from analysis.compare.matching import Match
from analysis.compare.output import verdict_text
from analysis.compare.verdicts import verdict
from analysis.quantities import labelled_column
from analysis.statistics.comparison import Trials, contest, fit
from analysis.statistics.power import Error, launches_for, smallest_change
from sweep.__main__ import main
from tests.support.results import run_of, trial
from tests.support.synthetic_run import make_run

CONFIG = {"backend": {"name": "vllm", "flags": {"max-num-seqs": 8}}, "model": {"name": "m"}, "load": {"name": "batch"}}


def launches(folder: Path, speed: float, spread: float, launched: int = 5, config: dict | None = None, **other):
    """A run with a launch for each replicate, whose speeds differ by `spread`."""
    draws = np.random.default_rng(ord(folder.name)).normal(0, spread, (launched, 2))
    draws -= draws.mean(axis=0)  # so that its mean is known
    rows = [
        trial("vllm", batch, replicate, speed * batch * float(np.exp(draws[replicate][index])), seed=replicate, **other)
        | {"launch": f"{folder.name}-{replicate}", "config": json.dumps(config or CONFIG)}
        | {"startup_seconds": 30.0, "wall_seconds": 30.0}
        for replicate in range(launched)
        for index, batch in enumerate((1, 8))
    ]
    run_of(folder, rows)
    return str(folder)


def verdicts(first: str, second: str, **options):
    compared = comparisons([side(first), side(second)], ["output_throughput"], **options)
    return {each.label: (str(each.verdict), each.reason) for each in compared}


def test_a_slow_down_is_found_and_its_size_is_right(tmp_path):
    reference, slower = launches(tmp_path / "a", 100, 0.01), launches(tmp_path / "b", 90, 0.01)
    compared = comparisons([side(reference), side(slower)], ["output_throughput"])
    assert [each.verdict for each in compared] == [Finding.SLOWER] * 2
    for each in compared:
        assert each.ratio == pytest.approx(0.9)
        assert each.low < 0.9 < each.high < 1


def drifting(folder: Path, speed: float, seeds: range = range(5), **other) -> str:
    """A run whose replicates differ by as much in every run, as by their prompts; its own noise is small."""
    factors = (0.7, 1.2, 0.9, 1.3, 1.0)
    rows = [
        trial("vllm", 1, index, speed * factor * (1 + 0.001 * index), seed=seed, config=json.dumps(CONFIG))
        for index, (factor, seed) in enumerate(zip(factors, seeds, strict=True))
    ]
    run_of(folder, [{**row, "launch": f"{folder.name}-{row['replicate']}", **other} for row in rows])
    return str(folder)


def test_a_figure_has_the_value_of_the_summary(tmp_path, capsys):
    """Both pool the requests of all launches; the mean over launches of their medians is another number."""
    run = make_run(tmp_path / "run", replicates=3, batches=(1, 8), workloads=("qa",)).out
    assert main(["compare", f"{run}@backend=transformers", f"{run}@backend=vllm", "--format", "json"]) == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    points = open_results(run).points.set_index(["backend", "batch_size"])
    assert len({each["column"] for each in compared}) == 5
    for each in compared:
        batch = int(each["configuration"].rpartition("=")[2])
        for engine, value in (("transformers", each["reference_value"]), ("vllm", each["other_value"])):
            shown = points.loc[(engine, batch), each["column"]]
            assert (math.nan if value is None else value) == pytest.approx(shown, nan_ok=True), (engine, each["column"])
    ttft = next(each for each in compared if each["column"] == "ttft_p50")
    assert ttft["ratio"] != pytest.approx(ttft["other_value"] / ttft["reference_value"], rel=1e-6), "it is paired"


def test_what_replicates_have_in_common_cancels(tmp_path):
    reference = side(drifting(tmp_path / "a", 100))
    for name, other, is_found in (("same", {}, True), ("launch", {"launch": "one"}, False)):
        (compared,) = comparisons([reference, side(drifting(tmp_path / name, 95, **other))], ["output_throughput"])
        assert (compared.verdict is Finding.SLOWER) == is_found, name


def test_what_fails_a_build_is_one_sided_and_holds_for_all_configurations_at_once(tmp_path):
    """Sidak's: each of two is at 0.95^(1/2); the ratio of one configuration is at 0.95 however many are compared."""
    runs = [launches(tmp_path / name, 100, 0.02) for name in "ab"]
    of_two, *_ = comparisons([side(run) for run in runs], ["output_throughput"])
    (alone,) = comparisons([side(f"{run}@load.batch_size=1") for run in runs], ["output_throughput"])
    assert (of_two.low, of_two.high) == pytest.approx((alone.low, alone.high))
    two_sided = special.stdtrit(4, 0.975)
    for count, compared in ((1, alone), (2, of_two)):
        width = np.log(compared.all_high / compared.all_low) / np.log(compared.high / compared.low)
        assert width == pytest.approx(special.stdtrit(4, 0.95 ** (1 / count)) / two_sided)


def test_what_fails_a_build_among_several_engines_does_not_cover_their_other_pairs(tmp_path, capsys):
    """The interval of three engines is Tukey's; the bound is Student's, of eight degrees of freedom."""
    logs = np.array([[0.01, 0.02, -0.03, 0.0, 0.0], [-0.02, 0.0, 0.0, 0.03, -0.01], [0.0, -0.01, 0.02, -0.01, 0.0]])
    rows = [
        trial(name, 1, i, 100 * float(np.exp(logs[engine, i])), launch=f"{name}{i}", seed=i)
        | {"config": json.dumps({**CONFIG, "backend": {"name": name}})}
        for engine, name in enumerate("abc")
        for i in range(5)
    ]
    run_of(tmp_path, rows, baseline={"backend": "b"})
    assert main(["compare", str(tmp_path), "--format", "json", "--metric", "output_throughput"]) == 0
    sides = [f"{tmp_path}@backend={name}" for name in "bac"]
    pairs = [(each["reference"], each["other"]) for each in json.loads(capsys.readouterr().out)["comparisons"]]
    assert pairs == [(sides[0], sides[1]), (sides[0], sides[2])], "of one run, with the baseline"
    (compared,) = comparisons([side(f"{tmp_path}@backend={name}") for name in "ab"], ["output_throughput"])
    residuals = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0)
    error = np.sqrt(2 / 5 * (residuals**2).sum() / 8)
    assert np.log(compared.all_high / compared.ratio) == pytest.approx(special.stdtrit(8, 0.95) * error)


def test_small_differences_are_equal_within_the_margin_and_noise_is_not_told_apart(tmp_path):
    reference = launches(tmp_path / "a", 100, 0.002)
    assert {each[0] for each in verdicts(reference, launches(tmp_path / "b", 101, 0.002)).values()} == {"equal"}
    noisy = launches(tmp_path / "c", 105, 0.2)
    assert {each[0] for each in verdicts(reference, noisy).values()} == {"tie"}


def test_one_launch_tells_nothing(tmp_path):
    reference, other = (launches(tmp_path / name, speed, 0, launched=1) for name, speed in (("a", 100), ("b", 50)))
    assert all(
        each == ("tie", "one launch does not show how much launches differ")
        for each in verdicts(reference, other).values()
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"config": {**CONFIG, "workload": {"num_requests": 9}}}, "workload: workload.num_requests None and 9"),
        ({"config": {**CONFIG, "model": {"name": "m", "dtype": "x"}}}, "model: model.dtype None and x"),
        ({"accelerator": "H100"}, "hardware: L4 and H100"),
        ({"protocol": 3}, "protocol: 4 and 3"),
        ({"digests": json.dumps({"workload": "f"})}, "workload: its files differ (e and f)"),
        ({"digests": json.dumps({"workload": "e", "load": "f"})}, "load: its files differ (e and f)"),
    ],
)
def test_other_questions_are_not_compared(tmp_path, changed, reason):
    common = {"accelerator": "L4", "protocol": 4, "digests": json.dumps({"workload": "e", "load": "e"})}
    reference = launches(tmp_path / "a", 100, 0.01, **common)
    other = launches(tmp_path / "b", 50, 0.01, **{**common, **changed})
    assert set(verdicts(reference, other).values()) == {("not comparable", reason)}


def test_longer_answers_forbid_durations_but_not_tokens_a_second(tmp_path):
    figures = {"e2el_p50": 1.0, "output_tokens": 1600, "input_tokens": 100}
    reference = launches(tmp_path / "a", 100, 0.01, **figures)
    other = launches(tmp_path / "b", 90, 0.01, **{**figures, "output_tokens": 3200})
    compared = comparisons([side(reference), side(other)], ["output_throughput", "e2el_p50"])
    assert [each.reason for each in compared] == ["", ""] + ["tokens: 16 and 32 output tokens a request"] * 2


@pytest.mark.slow
def test_percentiles_of_either_side_are_compared_like_the_default_ones(tmp_path, capsys):
    figures = {"percentiles": "50, 75", "ttft_p75": 0.1, "e2el_p75": 1.0, "output_tokens": 1600}
    reference = launches(tmp_path / "a", 100, 0.01, **figures)
    other = launches(tmp_path / "b", 100, 0.01, **{**figures, "ttft_p75": 0.2, "output_tokens": 3200})
    arguments = ["--metric", "e2el_p75", "--fail-if", "ttft_p75 > 5%", "--format", "json"]
    assert main(["compare", reference, other, *arguments]) == 1
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert {(each["column"], each["verdict"], each["reason"]) for each in compared} == {
        ("e2el_p75", "not comparable", "tokens: 16 and 32 output tokens a request"),
        ("ttft_p75", "slower", None),
    }
    without = launches(tmp_path / "c", 100, 0.01)
    assert main(["compare", reference, without, "--metric", "ttft_p75"]) == 0
    assert "not comparable: one side has no value" in capsys.readouterr().out


@pytest.mark.slow
def test_two_engines_and_changed_flags_are_compared_and_what_differs_is_named(tmp_path):
    reference = launches(tmp_path / "a", 100, 0.01)
    flags = {**CONFIG, "backend": {"name": "vllm", "flags": {"max-num-seqs": 16}}}
    sides = [side(reference), side(launches(tmp_path / "b", 90, 0.01, config=flags))]
    first, _ = comparisons(sides, ["output_throughput"])
    assert first.differences == ("backend.flags.max-num-seqs 8 → 16",)
    engine = {**CONFIG, "backend": {"name": "tgi"}}
    assert len(verdicts(reference, launches(tmp_path / "c", 90, 0.01, config=engine))) == 2


def test_equal_runs_raise_few_alarms():
    """Five launches a side of unequal spread: at most one in twenty, and a bit for chance."""
    draws, alarms = np.random.default_rng(5), 0
    trials = Trials(np.repeat([0, 1], 5), np.tile(np.arange(5), 2), np.full(10, None, object))
    for _ in range(2000):
        logs = np.concatenate([draws.normal(0, 0.14, 5), draws.normal(0, 0.03, 5)])
        alarms += contest(fit(np.exp(logs), trials, 2), "higher").won
    assert alarms < 0.06 * 2000


PILOTS = (3, 5, 10, 30)  # pairs of launches, of which the command prints what would be found


@pytest.mark.parametrize("size", PILOTS)
def test_the_smallest_change_is_found_nine_times_in_ten(size):
    """By fresh launches, as many as the pilot's, whose own spread is all that is known of the true one."""
    draws, deviation, found = np.random.default_rng(6), 0.05, 0
    for _ in range(2000):
        shift = np.log1p(smallest_change(pilot(draws, deviation, size), size, 0.95))
        found += is_found(draws.normal(shift, deviation, size))
    assert 0.88 < found / 2000 < 0.92


@pytest.mark.parametrize("size", PILOTS)
def test_the_launches_that_a_pilot_asks_for_find_the_change_nine_times_in_ten(size):
    draws, deviation, found = np.random.default_rng(7), 0.05, 0
    for _ in range(2000):
        launched = launches_for(pilot(draws, deviation, size), 0.1, 0.95)
        found += is_found(draws.normal(np.log(1.1), deviation, launched))
    assert found / 2000 > 0.88


def pilot(draws: np.random.Generator, deviation: float, size: int) -> Error:
    differences = draws.normal(0, deviation, size)
    return Error(differences.std(ddof=1) / np.sqrt(size), size - 1, size)


def is_found(differences: np.ndarray) -> bool:
    size = len(differences)
    return bool(differences.mean() > special.stdtrit(size - 1, 0.975) * differences.std(ddof=1) / np.sqrt(size))


def test_the_smallest_change_of_a_known_error_is_two_quantiles_of_it():
    """The error of A/A comparisons is that of the later ones too; it falls as the root of the number of launches."""
    by_hand = (special.stdtrit(4, 0.975) + special.stdtrit(4, 0.9)) * 0.02 / 2
    error = Error(0.02, 4, 5, known=True)
    assert smallest_change(error, 20, 0.95) == pytest.approx(np.expm1(by_hand))


def test_the_launches_asked_for_are_the_fewest_that_find_a_change():
    error = Error(0.02, 4, 5)
    needed = launches_for(error, 0.1, 0.95)
    assert smallest_change(error, needed, 0.95) <= 0.1 < smallest_change(error, needed - 1, 0.95)


def repeated(folder: Path, speeds: list[float], hour: str = "", **other: object) -> str:
    """A run of one configuration, launched again and again, with prompts that no other run has."""
    begin = hour or f"2026-01-{ord(folder.name) % 30:02}T00"
    rows = [
        trial("vllm", 1, index, speed, launch=f"{folder.name}-{index}", seed=100 * ord(folder.name) + index, **other)
        | {"config": json.dumps(CONFIG), "started_at": f"{begin}:{index:02}:00"}
        for index, speed in enumerate(speeds)
    ]
    run_of(folder, rows)
    return str(folder)


STEADY = (0.999, 1.0, 1.001)  # launches of a run, which lasts less long than the machine's moods


@pytest.mark.slow
def test_a_drift_from_run_to_run_is_no_alarm_where_the_noise_of_the_machine_is_known(tmp_path, capsys):
    """Launches that follow each other are alike, and blocks of three of them differ: no run by itself shows it."""
    moods = (1.0, 1.1, 1.0, 0.9, 1.0, 1.1, 0.95, 1.05)
    noise = repeated(tmp_path / "n", [100 * mood * each for mood in moods for each in STEADY])
    sides = [repeated(tmp_path / name, [speed * each for each in STEADY]) for name, speed in (("a", 100), ("b", 90))]
    command = ["compare", *sides, "--fail-if", "output_throughput < -3%"]
    assert main(command) == 1
    capsys.readouterr()
    assert main([*command, "--noise", noise]) == 0
    assert "noise of throughput: two launches of one configuration differ by up to" in capsys.readouterr().out
    halved = repeated(tmp_path / "h", [50 * each for each in STEADY])
    assert main(["compare", sides[0], halved, "--fail-if", "output_throughput < -3%", "--noise", noise]) == 1


def hourly(folder: Path, moods: np.ndarray, hour: int = 0, apart: int = 60, launched: int = 3) -> str:
    """Some launches in each hour, whose speeds differ by 0.5 %, and by the moods of each configuration's hours."""
    logs = moods[..., None] + np.random.default_rng(ord(folder.name)).normal(0, 0.005, (*moods.shape, launched))
    begin = pd.Timestamp("2026-11-25") + pd.Timedelta(hours=hour)
    rows = [
        trial("vllm", batch + 1, 3 * block + i, 100 * float(np.exp(log)), launch=f"{folder.name}{block}{i}")
        | {"started_at": f"{begin + pd.Timedelta(minutes=apart * block + i)}", "seed": 1000 * hour + 3 * block + i}
        | {"config": json.dumps(CONFIG)}
        for (batch, block, i), log in np.ndenumerate(logs)
    ]
    run_of(folder, rows)
    return str(folder)


def test_runs_an_hour_apart_are_equal_where_the_noise_of_hours_is_known(tmp_path):
    """Hours differ by 2 %, launches by 0.5 %. Of 40 comparisons 6.4 % may be called different."""
    moods = np.random.default_rng(12).normal(0, 0.02, (40, 2))
    noise = noise_of(hourly(tmp_path / "n", moods.reshape(-1, 8)[:10]), [])
    sides = [side(hourly(tmp_path / name, moods[:, i : i + 1], hour=i)) for i, name in enumerate("ab")]
    compared = comparisons(sides, ["output_throughput"], noise=noise)
    assert {each.apart for each in compared} == {""}
    assert sum(each.verdict in (Finding.FASTER, Finding.SLOWER) for each in compared) <= 0.064 * len(compared)
    apart = comparisons(sides, ["output_throughput"])  # by the guess of 3 %
    assert all("58 min apart" in each.apart for each in apart)
    assert 0.1 < sum(each.verdict in (Finding.FASTER, Finding.SLOWER) for each in apart) / len(apart) < 0.4


@pytest.mark.parametrize(("launched", "pause"), [(1, "60 min"), (2, "59 min"), (3, "58 min")])
def test_noise_of_blocks_in_a_row_does_not_cover_an_hour(tmp_path, capsys, launched, pause):
    """The launches of the noise run follow each other by minutes: a change of 2 % an hour later is no alarm."""
    moods = (("a", 0.0, 1), ("b", -0.02, 2))
    sides = [hourly(tmp_path / name, np.array([[mood]]), hour, launched=launched) for name, mood, hour in moods]
    command = ["compare", *sides, "--fail-if", "output_throughput < -1%", "--margin", "1", "--noise"]
    for name, apart, said in (("s", 3, True), ("l", 60, False)):
        noise = hourly(tmp_path / name, np.array([[0.0, 0.02] * 4]), apart=apart, launched=launched)
        assert main([*command, noise]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert (f"{pause} apart; in" in output) == said == ("is attributed to the machine" in output), name


def test_sides_measured_apart_say_so_and_a_small_change_is_a_tie(tmp_path, capsys):
    """Half an hour apart, 2 % is no more than what the machine may have changed; 10 % is, by a guess."""
    runs = [
        repeated(tmp_path / name, [speed * (1 + 0.0005 * index) for index in range(5)], hour=f"2026-11-25T{hour}")
        for name, hour, speed in (("a", 10, 100.0), ("b", 11, 98.0), ("c", 11, 90.0))
    ]
    assert main(["compare", *runs[:2], "--fail-if", "output_throughput < -1%", "--margin", "1"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "did not take turns (measured 56 min apart)" in output
    assert "tie: a change below 3% may come from the machine (a guess)" in output
    assert main(["compare", *runs[::2], "--fail-if", "output_throughput < -1%"]) == 1
    assert "slower in 1 of 1" in capsys.readouterr().out


def test_sides_that_took_turns_have_the_noise_of_single_launches(tmp_path):
    """Blocks of two launches differ, and those within a block do not."""
    noise = noise_of(repeated(tmp_path / "n", [100 * mood for mood in (1, 1.1, 1, 0.9) * 3 for _ in range(2)]), [])
    sides = [side(repeated(tmp_path / name, [100 * each for each in STEADY])) for name in "ab"]
    assert not Match("", *(each.trials for each in sides)).took_turns
    later = sides[1].trials.assign(started_at=[f"{begin}.5" for begin in sides[0].trials["started_at"]])
    assert Match("", sides[0].trials, later).took_turns
    single, blocks = (noise.error(2, "output_throughput", turns) for turns in (True, False))
    assert (single.error, single.freedom) == (0, 12)
    assert blocks.error == pytest.approx(np.sqrt((np.log(1.1) ** 2 + np.log(0.9) ** 2) / 2))


def test_one_launch_a_side_is_enough_where_the_noise_is_known(tmp_path):
    """Four A/A differences of 2 %: Student's t of four degrees of freedom."""
    noise = noise_of(repeated(tmp_path / "n", [100.0, 102.0] * 4), [])
    reference, other = (side(repeated(tmp_path / name, [speed])) for name, speed in (("a", 100.0), ("b", 90.0)))
    (compared,) = comparisons([reference, other], ["output_throughput"], noise=noise)
    assert compared.high / compared.ratio == pytest.approx(1.02 ** special.stdtrit(4, 0.975))
    assert compared.verdict is Finding.SLOWER


@pytest.mark.parametrize(
    ("launched", "machine", "message"),
    [
        (
            12,
            "L4",
            "2 A/A comparisons of output_throughput between blocks of 3 launches; expected at least 3: 18 launches",
        ),
        (24, "H100", "measured on H100, not on L4"),
    ],
)
def test_noise_of_too_few_launches_or_of_another_machine_is_refused(tmp_path, capsys, launched, machine, message):
    sides = [repeated(tmp_path / name, [100.0, 101.0, 102.0], accelerator="L4") for name in "ab"]
    noise = repeated(tmp_path / "n", [100.0, 101.0] * (launched // 2), accelerator=machine)
    assert main(["compare", *sides, "--metric", "output_throughput", "--noise", noise]) == 2
    assert message in capsys.readouterr().err


def test_the_verdict_knows_the_direction():
    assert verdict(1.1, 1.2, 0.03, "higher") is Finding.FASTER
    assert verdict(1.1, 1.2, 0.03, "lower") is Finding.SLOWER
    assert verdict(0.99, 1.02, 0.03, "lower") is Finding.EQUAL


@pytest.mark.slow
def test_the_command_fails_only_for_a_loss_beyond_the_noise(tmp_path, capsys):
    reference = launches(tmp_path / "a", 100, 0.01)
    slower, noisy = launches(tmp_path / "b", 90, 0.01), launches(tmp_path / "c", 90, 0.3)
    fail = ["--fail-if", "output_throughput < -3%"]
    assert main(["compare", reference, slower, *fail]) == 1
    printed = capsys.readouterr().out
    assert "slower in 2 of 2" in printed
    assert "failed: output_throughput < -3%: batch_size=1 -10.0%" in printed
    assert main(["compare", reference, slower, *fail, "--metric", "tpot_p50"]) == 1
    assert main(["compare", reference, noisy, *fail]) == 0
    assert main(["compare", reference, slower, "--fail-if", "output_throughput < -20%"]) == 0
    assert "change of" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gate_cries_wolf_in_two_of_forty_pairs_at_most(tmp_path):
    """Launches of one engine differ by 2%, three a side. Of 40 losses of 8% in the second side 90% are found."""
    noise, failed = np.random.default_rng(36).normal(0, 0.02, (40, 2, 3)), {}
    for loss in (0.0, 0.08):
        statuses = []
        for number, pair in enumerate(noise):
            folders = [tmp_path / f"{loss}-{number}" / name for name in "ab"]
            speeds = 100 * np.exp(pair) * [[1.0], [1 - loss]]
            sides = [repeated(folder, list(each)) for folder, each in zip(folders, speeds, strict=True)]
            statuses.append(main(["compare", *sides, "--fail-if", "output_throughput < -3%"]))
        failed[loss] = statuses.count(1)
    assert failed[0.0] <= 2
    assert failed[0.08] >= 36


@pytest.mark.slow
def test_a_condition_that_could_not_be_judged_is_no_success(tmp_path, capsys):
    reference = launches(tmp_path / "a", 100, 0.01)
    fail = ["--fail-if", "output_throughput < -3%"]
    crashed = tmp_path / "b"
    launches(crashed, 101, 0.01)
    rows = pq.read_table(crashed / "trials.parquet").to_pylist()
    run_of(crashed, [row for row in rows if row["batch_size"] == 1])
    assert main(["compare", reference, str(crashed), *fail]) == 3
    lost = f"output_throughput < -3%: batch_size=8: no result in {crashed}"
    assert f"not judged: {lost}" in capsys.readouterr().out
    assert main(["compare", reference, str(crashed), *fail, "--format", "json"]) == 3
    assert json.loads(capsys.readouterr().out)["not_judged"] == [lost]
    assert main(["compare", str(crashed), reference, *fail]) == 0  # the reference has nothing that could be lost there
    capsys.readouterr()
    once = [repeated(tmp_path / name, [100.0]) for name in ("c", "d")]
    assert main(["compare", *once, *fail, "--format", "markdown"]) == 3
    assert "one launch does not show how much launches differ" in capsys.readouterr().out
    assert main(["compare", reference, reference, "--fail-if", "ttft_p50 > 5%"]) == 3
    assert "no configuration in the reference has ttft_p50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "words"),
    [("goodput", "faster"), ("ttft_p99", "faster"), ("cost_per_million_tokens", "cheaper"), ("agreement", "better")],
)
def test_the_verdict_is_in_the_words_of_the_quantity(column, words):
    quantity = labelled_column(column)
    assert verdict_text(PointComparison("a", "b", "", quantity, Finding.FASTER), 0.03) == words
    assert verdict_text(PointComparison("a", "b", "", quantity, Finding.UNDECIDED), 0.03) == "tie"


@pytest.mark.slow
def test_formats(tmp_path, capsys):
    reference, slower = launches(tmp_path / "a", 100, 0.01), launches(tmp_path / "b", 90, 0.01)
    assert main(["compare", reference, slower, "--format", "json", "--metric", "output_throughput"]) == 0
    assert [each["verdict"] for each in json.loads(capsys.readouterr().out)["comparisons"]] == ["slower"] * 2
    assert main(["compare", reference, slower, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("reference,other,configuration,column,")
    assert main(["compare", reference, slower, "--format", "markdown"]) == 0
    assert "| batch_size=1 | 100 | 90.0 | 0.900× |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN: expected two or more"),
        (["nowhere"], "no run here"),
        (["RUN@backend=tgi"], "no trial with a result has backend=tgi"),
        (["RUN@batch=1"], "batch is not a setting of this run"),
        (["RUN", "--metric", "outcome"], "metric=outcome: expected a quantity by which configurations can be ranked"),
        (["RUN", "--fail-if", "output_throughput < 3%"], "the percentage must be negative after <"),
        (["RUN", "--fail-if", "output_throughput below 3"], "expected a column"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    reference = launches(tmp_path / "a", 100, 0.01)
    assert main(["compare", reference, *(each.replace("RUN", reference) for each in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
