"""What a deployment checks on its node before it launches anything."""

import pytest

from sweep import deployment
from sweep.config import Hardware

L4 = Hardware(name="l4", platform="cuda", accelerator="L4", matches=("NVIDIA L4",))
ANY = Hardware(name="gpu", platform="cuda")


@pytest.mark.parametrize(
    ("hardware", "gpus", "said"),
    [
        (L4, ("0",), None),
        (L4, ("0", "1"), "hardware=l4 asked for NVIDIA L4, this node has NVIDIA A100"),
        (ANY, ("1",), None),
        (L4, (), None),
    ],
)
def test_a_node_with_other_gpus_than_asked_for_is_no_place_for_a_result(monkeypatch, hardware, gpus, said):
    monkeypatch.setattr(deployment, "gpu_names", lambda: ("NVIDIA L4", "NVIDIA A100"))
    assert deployment.other_gpus(gpus, hardware) == said
