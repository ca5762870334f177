"""For all tests: they share this machine on purpose, with each other and with those of another checkout."""

import os

import pytest
from hypothesis import HealthCheck, settings

from sweep.node.machine.sharing import VARIABLE

os.environ.setdefault(VARIABLE, "tests")

# How long an example takes says nothing on a machine that is shared.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures but in tests marked `figures`: of a short sweep they are most of the time."""
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("analysis.report.html.draw_all", lambda run, layout, target: [])
