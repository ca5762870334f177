"""`sweep compare` with two searches for a capacity: ratios with the intervals that both claims allow."""

import json
import math

import pytest

from sweep.cli.commands import dispatch
from tests.support.results import claim_record, claims_in, question_in, run_of, trial


@pytest.fixture
def compared(tmp_path, capsys):
    """The comparison of two runs with these claims, as in its JSON."""

    def of(first, second, *options):
        for name, records in (("a", first), ("b", second)):
            run_of(tmp_path / name, [trial("vllm", 1, 0, 100.0, config=json.dumps({"load": {"name": name}}))])
            claims_in(tmp_path / name, *records)
        capsys.readouterr()
        dispatch(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "json", *options])
        return json.loads(capsys.readouterr().out)

    return of


def test_the_ratio_is_certain_if_the_intervals_are_apart(compared):
    found = compared([claim_record(10, 12), claim_record(5, 6, "tgi m")], [claim_record(15, 18)])
    (each,) = found["capacities"]
    assert (each["configuration"], each["verdict"]) == ("vllm m", "better")
    assert (each["low"], each["high"]) == (pytest.approx(15 / 12), pytest.approx(18 / 10))
    assert each["ratio"] == pytest.approx(math.sqrt(1.25 * 1.8))
    assert found["comparisons"] == []  # of single probes
    assert compared([claim_record(10, 12)], [claim_record(11, 13)])["capacities"][0]["verdict"] == "tie"
    assert compared([claim_record(10, 12)], [claim_record(15, 18)], "--metric", "ttft_p50")["capacities"]


def test_replicates_are_paired_by_launch(compared):
    """Three launches of 10, 11 and 12 requests/s; the other side's are 1.2, 1.21 and 1.22 times as fast."""
    sides = [
        [claim_record(rate * factor, rate * factor, replicate=n) for n, rate in enumerate((10, 11, 12))]
        for factor in (1.0, 1.21)
    ]
    sides[1] = [
        claim_record(each["lower"] * ratio, each["upper"] * ratio, replicate=each["replicate"])
        for each, ratio in zip(reversed(sides[1]), (1.01, 1.0, 1 / 1.01), strict=True)
    ]
    (each,) = compared(*sides)["capacities"]
    margin = 4.3027 * math.log(1.01) / math.sqrt(3)  # t at 97.5% with two degrees of freedom
    assert (each["verdict"], each["ratio"]) == ("better", pytest.approx(1.21))
    assert (each["low"], each["high"]) == (
        pytest.approx(1.21 * math.exp(-margin), rel=1e-4),
        pytest.approx(1.21 * math.exp(margin), rel=1e-4),
    )


def test_the_answer_of_a_question_is_no_capacity(compared, tmp_path):
    """It once ended the comparison with an internal error."""
    for name in "ab":
        (tmp_path / name).mkdir()
        question_in(tmp_path / name)
    assert "capacities" not in compared([], [])
    (each,) = compared([claim_record(10, 12)], [claim_record(15, 18)])["capacities"]
    assert each["configuration"] == "vllm m"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (claim_record(10, 12, slo={"ttft": "0.3s"}), "different slo.ttft"),
        (claim_record(10, 12, asked={"model": "m", "workload": {"name": "qa", "input_tokens": 5}}), "input_tokens"),
        (claim_record(0, 12), "a capacity is unknown"),
    ],
)
def test_what_was_not_asked_alike_is_not_compared(compared, other, reason):
    (each,) = compared([claim_record(10, 12)], [other])["capacities"]
    assert (each["verdict"], each["ratio"]) == ("not comparable", None)
    assert reason in each["reason"]
