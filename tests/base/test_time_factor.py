"""One factor scales heartbeats, time-outs and back-offs, on the driver and on its nodes."""

import json
import os
import subprocess
import sys

import pytest

from sweep.base.config import ConfigError
from sweep.base.time_factor import time_factor

PRINTED = """
import json
from sweep.base.config import Cluster
from sweep.cluster.ray_environment import prepare_ray
prepare_ray(Cluster(name="local", kind="local"))
from sweep.cluster import ray_executor
from sweep.cli import reissue
from sweep.disk import heartbeat_lock, object_store
from sweep.drive import policy
from sweep.drive.monitor import status
print(json.dumps([policy.FIRST_PAUSE, policy.LONGEST_PAUSE, reissue.FIRST_PAUSE, reissue.GIVEN_UP_AFTER,
    heartbeat_lock.LOCK_HEARTBEAT, heartbeat_lock.LOCK_TIMEOUT, object_store.PATIENCE, object_store.RETRY,
    ray_executor.HEARTBEAT, ray_executor.HEARTBEAT_TIMEOUT, ray_executor.START_TIMEOUT, ray_executor.LOSS_BACKOFF,
    ray_executor.SILENT_NODE_BACKOFF, policy.FIRST_PATIENCE, policy.QUARANTINE_WAIT,
    status.DRIVER_TIMEOUT]))
"""


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "fast", ""])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(ConfigError, match=rf"^SWEEP_TIME_FACTOR={text}: allowed is a number above 0$"):
        time_factor({"SWEEP_TIME_FACTOR": text})


def test_by_default_nothing_is_scaled():
    assert time_factor({}) == 1


@pytest.mark.slow
def test_every_wait_is_scaled():
    plain, quarter = (
        json.loads(
            subprocess.check_output(
                [sys.executable, "-c", PRINTED], env=os.environ | {"SWEEP_TIME_FACTOR": factor}, text=True
            )
        )
        for factor in ("1", "0.25")
    )
    assert quarter == [seconds / 4 for seconds in plain]
