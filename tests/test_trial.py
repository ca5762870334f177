"""The row of a trial: what is decided of it after it was measured."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from backends.base import Backend
from sweep.config import FoundHardware, Hardware
from sweep.node.trial import _target, present_row
from sweep.plan.plan import Trial

ENGINE, ENDPOINT = SimpleNamespace(launches=True), SimpleNamespace(launches=False)


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
    present = present_row(row, backend, Trial("1", None, None, 0, 1, {}, {}), settings, [])
    assert present["price_per_hour"] == now
    assert present["cost_per_million_tokens"] == (None if now is None else pytest.approx(20.0))


def test_the_client_gets_what_the_backend_says_of_its_endpoint():
    dialect = {
        "api": "chat",
        "batch_form": "streams",
        "continuous_usage": True,
        "token_ids": False,
        "extra_body": {"top_k": 1},
        "headers": {"x-team": "a"},
        "api_key_env": "KEY",
        "verify_tls": False,
    }
    backend = Backend(name="x", url="http://elsewhere/v1", ignores_eos=False, **dialect)
    engine = SimpleNamespace(url="http://host:1", backend=backend, launch=SimpleNamespace(served_name="m"))
    trial = SimpleNamespace(workload=SimpleNamespace(ignore_eos=True))
    target = _target(trial, engine)
    assert asdict(target) == {"url": "http://host:1", "model": "m", "ignore_eos": False, **dialect}
