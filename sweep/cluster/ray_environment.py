"""Environment variables that override defaults of Ray, which reads them when it is imported.

A Ray started for this run gets its own token for its lifetime. A plain `ray.init()` would write ~/.ray/auth_token,
which breaks a later `ray start`; without a token, anyone who can reach this host could run code.

RAY_grpc_client_keepalive_time_ms keeps its default. At 10 s, which would detect a silent node sooner, Ray's own servers
find the pings too frequent and close the connection, and every task longer than about 45 s is lost. So `ray_executor`
sends its own heartbeats.
"""

import os
import secrets

from sweep.base.config import Cluster

ALWAYS = {
    "RAY_memory_monitor_refresh_ms": "0",  # it would kill trials for memory that other programs use
    "RAY_worker_niceness": "0",  # default 15: engine and client would wait for any other program on the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
IN_PLACE = {"RAY_raylet_start_wait_time_s": "120"}  # a busy machine needs more than the default of 30 s


def prepare_ray(cluster: Cluster) -> None:
    """Set the variables that are not set yet. Call it before the first import of `ray_executor`.

    A Ray started for this run gets its own token whatever the shell sets for clusters: nobody else may join it.
    """
    for name, value in (ALWAYS | (IN_PLACE if cluster.kind == "local" else {})).items():
        os.environ.setdefault(name, value)
    if cluster.kind == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
