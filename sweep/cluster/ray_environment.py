"""Environment variables that override Ray's defaults. Ray reads them when it is imported.

A Ray started for this run gets its own token for its lifetime. A plain `ray.init()` would write ~/.ray/auth_token,
which breaks a later `ray start`; without a token, anyone who can reach this host could run code.

RAY_grpc_client_keepalive_time_ms keeps its default. At 10 s a silent node would be noticed sooner, but Ray's servers
reject such frequent pings and close the connection: every task longer than about 45 s is lost. So `ray_executor` sends
its own heartbeats.
"""

import os
import secrets

from sweep.base.config import Cluster

ALWAYS = {
    "RAY_memory_monitor_refresh_ms": "0",  # it would kill trials when other programs use much memory
    "RAY_worker_niceness": "0",  # default 15: engine and client would wait for any other program on the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
IN_PLACE = {"RAY_raylet_start_wait_time_s": "120"}  # a busy machine needs more than the default of 30 s


def prepare_ray(cluster: Cluster) -> None:
    """Set the variables that are not set yet. Call it before the first import of `ray_executor`.

    A Ray started for this run always gets a new token, even if the shell sets one: nobody else may join it.
    """
    for name, value in (ALWAYS | (IN_PLACE if cluster.kind == "local" else {})).items():
        os.environ.setdefault(name, value)
    if cluster.kind == "local":
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
