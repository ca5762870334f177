"""The answer for an SLO by the claims of searches: which configuration sustains the most, and which tie."""

import json

import pytest

import llm_sweep
from analysis.answers.capacity import of_capacities
from analysis.answers.deciding import answers
from analysis.answers.sentences import lead, sentence
from analysis.results import open_results
from sweep.cli.commands import dispatch
from tests.support.results import claim_record, claims_in, run_of, trial

SLO = {"ttft.p90": 0.2}


@pytest.fixture
def searched(tmp_path):
    """A run with these claims."""

    def run(*records, name="run"):
        run_of(tmp_path / name, [trial("vllm", 1, 0, 100.0, slo=json.dumps({"ttft": 0.2}))])
        claims_in(tmp_path / name, *records)
        return open_results(tmp_path / name)

    return run


def test_the_highest_claim_leads_if_its_interval_is_above_the_others(searched):
    results = searched(claim_record(10, 12), claim_record(15, 18, "sglang m"), claim_record(14, 16, "tgi m"))
    (answer,) = answers([results])
    named = {each.name: (str(each.standing), each.ratio, each.low, each.high) for each in answer.configurations[1:]}
    assert answer.best.name == "sglang m"
    assert named["vllm m"] == ("behind", 1.5, pytest.approx(15 / 12), pytest.approx(1.8))
    assert named["tgi m"][0] == "tie with the best"
    (answer,) = answers([searched(claim_record(10, 12), claim_record(15, 18, "sglang m"))], SLO)
    assert sentence(answer) == (
        "qa poisson: sglang m (15.0 requests/s, 15.0–18.0) is the best within TTFT p90 ≤ 200 ms; "
        "1.50× (1.25 to 1.80) ahead of vllm m (10.0 requests/s, 10.0–12.0)"
    )


def test_a_capacity_that_is_unknown_is_not_ranked_and_users_are_whole(searched):
    refused = claim_record(0, 0, "tgi m", status="refused", lines=["capacity: unknown", "", ""])
    (answer,) = answers([searched(claim_record(10, 0), refused)])
    met = "qa poisson: vllm m (10.0 requests/s) meets TTFT p90 ≤ 200 ms; not ranked: tgi m (unknown)"
    assert sentence(answer) == met
    more = claim_record(15, 0, "tgi m", unit="users", status="above")
    (answer,) = answers([searched(claim_record(10, 11, unit="users"), more)])
    assert "; 1.50× (at least 1.36) ahead of vllm m (10 users, 10–11)" in sentence(answer)


def test_launches_of_a_configuration_are_one_rival_with_a_figure_for_a_fresh_launch(searched):
    fresh = {"fresh_launch": {"lower": 8.5, "launches": 2, "spread": 0.05}}
    costs = [{"cost_per_million_tokens": [20 / low, 20 / (low + 2)]} for low in (10, 9)]
    launches = [claim_record(low, low + 2, replicate=n, **costs[n], **fresh) for n, low in enumerate((10, 9))]
    results = searched(*launches, claim_record(15, 18, "sglang m"))
    assert of_capacities(results).rows[1].record["cost_per_million_tokens"] == [20 / 9, 20 / 12]
    (answer,) = answers([results])
    assert [each.name for each in answer.configurations] == ["sglang m", "vllm m"]
    figure = answer.configurations[1].figure
    assert (figure.value, figure.high, figure.n, figure.new_low) == (9, 12, 2, 8.5)


def test_open_ends_at_several_tasks_are_no_matter_of_launches(searched):
    chat = {"asked": {"model": "m"}, "task": "chat"}
    both = [claim_record(low, 0, name, **task) for low, name in ((10, "vllm m"), (9, "tgi m")) for task in ({}, chat)]
    said = "vllm m and tgi m were searched for too short to tell which leads at any of 2 tasks in capacity"
    assert lead(answers([searched(*both)])) == said


def test_another_slo_or_another_task_is_another_question(searched):
    results = searched(claim_record(10, 12), claim_record(15, 18, asked={"model": "m"}, task="chat"))
    assert [answer.best.figure.value for answer in answers([results])] == [10, 15]
    assert answers([results], {"ttft.p90": 0.3})[0].criterion.quantity.column != "capacity"
    assert answers([results], {"ttft.p99": 0.2})[0].criterion.quantity.column != "capacity"


def test_runs_that_searched_the_same_share_a_task(searched, tmp_path, capsys):
    searched(claim_record(10, 12))
    searched(claim_record(20, 22), name="other")
    dispatch(["summary", str(tmp_path / "run"), str(tmp_path / "other"), "--format", "csv"])
    assert ",vllm m (" in capsys.readouterr().out
    frame = llm_sweep.open(str(tmp_path / "run")).capacities
    assert frame.loc[0, ["lower", "upper", "cost_at_lower", "cost_at_upper"]].tolist() == [10, 12, 2, 1]
    assert llm_sweep.open(str(tmp_path / "run")).best()["value"].tolist() == [10]
