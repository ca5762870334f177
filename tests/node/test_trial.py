"""The row of a trial: what is decided of it after it was measured."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from backends.base import Backend
from backends.vllm import VLLM
from sweep.base.config import FoundHardware, Hardware, slo_in_units
from sweep.disk import run_files
from sweep.disk.ledger import Ledger
from sweep.disk.run_files import RunPaths
from sweep.drive.row_writer import RowWriter
from sweep.inputs.load import Batch
from sweep.node.rows import present_row, slo_text
from sweep.node.trial import target
from sweep.plan.plan import Deployment, Plan, Trial
from tests.support.settings import run_settings
from tests.support.synthetic_run import make_records

ENGINE, ENDPOINT = (
    SimpleNamespace(launches=True, price_per_million_tokens=None),
    SimpleNamespace(launches=False, price_per_hour=None, price_per_million_tokens=None),
)


@pytest.mark.parametrize(
    ("was", "price", "assumed", "backend", "now"),
    [
        (None, 3.6, False, ENGINE, 3.6),
        (1.0, 3.6, False, ENGINE, 3.6),
        (1.0, None, False, ENGINE, None),
        (1.0, 3.6, True, ENDPOINT, None),  # of an endpoint, hardware=auto knows nothing
        (None, 3.6, False, ENDPOINT, 3.6),
    ],
)
def test_a_price_that_is_set_or_dropped_later_reaches_the_rows(was, price, assumed, backend, now):
    kind = FoundHardware if assumed else Hardware
    settings = SimpleNamespace(name="t", hardware=kind(name="x", platform="cuda", price_per_hour=price))
    row = {"price_per_hour": was, "cost_per_million_tokens": was, "gpu_count": 2, "output_throughput": 100.0}
    deployment = SimpleNamespace(backend=backend, describe=lambda: "vllm m x=1")
    trial = Trial("1", None, None, 0, 1, {}, {}, label="qa batches of 8")
    present = present_row(row, deployment, trial, settings, [])
    assert present["price_per_hour"] == now
    assert present["label"] == "vllm m x=1 qa batches of 8 replicate 0"
    assert present["cost_per_million_tokens"] == (None if now is None else pytest.approx(20.0))


def test_the_client_gets_what_the_backend_says_of_its_endpoint():
    dialect = {"api": "chat", "batch_form": "streams", "continuous_usage": True, "token_ids": False}
    dialect |= {"extra_body": {"top_k": 1}, "headers": {"x-team": "a"}, "api_key_env": "KEY", "verify_tls": False}
    backend = Backend(name="x", url="http://elsewhere/v1", ignores_eos=False, **dialect)
    engine = SimpleNamespace(url="http://host:1", backend=backend, launch=SimpleNamespace(served_name="m"))
    facts = {"url": "http://elsewhere/v1", "model": "m", "ignore_eos": False, **dialect}
    assert asdict(target(engine, ignore_eos=True)).items() >= facts.items()
    assert target(engine, True, "http://gateway:1").url == "http://gateway:1"


def test_answers_whose_end_is_ignored_show_their_special_tokens_so_that_the_text_can_be_counted():
    engine = SimpleNamespace(
        url="http://host:1", backend=VLLM(name="vllm", extra_body={"top_k": 1}), launch=SimpleNamespace(served_name="m")
    )
    assert target(engine, ignore_eos=True).extra_body["skip_special_tokens"] is False
    assert target(engine, ignore_eos=False).extra_body == {"top_k": 1}


@pytest.mark.parametrize("slo", [None, {"ttft": 0.3}, {"ttft": 0.1}])
@pytest.mark.parametrize("stamps", [True, False])
def test_a_changed_slo_is_judged_from_the_stamps_on_disk(tmp_path, slo, stamps):
    paths, records = RunPaths(tmp_path), make_records(8, 4, 10, ttft=0.2, tpot=0.01)
    trial = Trial("t1", SimpleNamespace(name="qa"), Batch(batch_size=4), 0, 1, {}, {}, label="qa batches of 4")
    plan = Plan(
        run_settings(slo=slo_in_units(slo)), [Deployment("d1", ENGINE, None, 0, None, [trial], label="vllm m")], [], []
    )
    if stamps:
        run_files.write_requests(paths.trial("d1", "1", "t1"), records)
    ledger = Ledger(paths.ledger)
    row = {"trial_id": "t1", "deployment_id": "d1", "attempt": "1", "outcome": "ok", "gpu_count": 0}
    ledger.commit({**row, "slo": slo_text(run_settings(slo="ttft=9s")), "goodput": 7.0})
    RowWriter(plan, paths, ledger, None, None).write_table()
    present = run_files.read_trials(paths.trials)[0]
    assert present["slo"] == slo_text(plan.settings)
    assert ("few-requests" in present["warnings"]) if stamps else (present["warnings"] is None)
    if slo is None or not stamps:
        assert present["goodput"] is None
    elif slo["ttft"] == 0.3:
        assert present["goodput"] > 0
    else:
        assert present["goodput"] == 0
