"""The settings of a run that is planned in a test."""

from sweep.base.config import Settings


def run_settings(**more: object) -> Settings:
    """An inline run on a CPU without tracking; what is named replaces that."""
    groups = {
        "hardware": {"name": "cpu", "platform": "cpu"},
        "cluster": {"name": "inline", "kind": "inline"},
        "tracking": {"name": "none", "kind": "none"},
    }
    return Settings.model_validate({"name": "test", "out": "out", **groups, **more})
