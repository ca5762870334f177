"""The gateway's metrics: for Prometheus, in a log with one line per request and no prompts, and its loop's lag."""

import asyncio
import json
import os
from collections import Counter as Tally
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sweep.base.config import ConfigError

LAG_INTERVAL = 0.01  # s between two readings of the clock
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LAG_RESOLUTION = 1e-4  # s


@dataclass
class Decision:
    """The gateway's decision about one request, as logged in one line. It contains no prompt, answer or key."""

    request_id: str
    status: int = 0
    cache: str = "off"  # off, uncacheable, miss, exact, semantic, shared
    similarity: float | None = None  # similarity to the prompt whose answer was served
    origin: str | None = None  # the request_id of the request whose answer was served
    input_before: int = 0  # tokens; 0 if none were counted
    input_after: int = 0
    output_before: int = 0
    output_after: int = 0
    cached_input_tokens: int = 0  # prompt tokens that no engine processed, since the cache answered
    cached_output_tokens: int = 0  # answer tokens that no engine generated
    error: str | None = None


class Metrics:
    """The counters of a gateway, and its log of decisions. Raises ConfigError if the log cannot be written."""

    def __init__(self, log: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("gateway_requests", "Requests by status", ["status"], registry=self.registry)
        self._lookups = Counter("gateway_cache_lookups", "Requests by result", ["result"], registry=self.registry)
        self._saved = Counter("gateway_tokens_saved", "Tokens no engine processed", ["by"], registry=self.registry)
        self._clipped = Counter("gateway_clipped_requests", "Requests that were clipped", registry=self.registry)
        self.retries = Counter("gateway_retries", "Retries of requests", registry=self.registry)
        self.entries = Gauge("gateway_cache_entries", "Answers in the cache", registry=self.registry)
        self.failed_writes = Counter("gateway_failed_writes", "Lines of the log not written", registry=self.registry)
        self._up = Gauge("gateway_engine_up", "1 if the engine is healthy", ["engine"], registry=self.registry)
        self._busy = Gauge("gateway_engine_requests", "Requests in flight", ["engine"], registry=self.registry)
        self._lag = Histogram(
            "gateway_loop_lag_seconds", "Delay of the loop", buckets=LAG_BUCKETS, registry=self.registry
        )
        self._lags: Tally[int] = Tally()
        try:
            self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigError(f"--log {log}: {error.strerror or error}") from None

    def text(self) -> bytes:
        """Return the metrics in Prometheus' format."""
        return bytes(generate_latest(self.registry))

    def engine(self, url: str, healthy: bool, in_flight: int) -> None:
        """Report an engine's state."""
        self._up.labels(url).set(healthy)
        self._busy.labels(url).set(in_flight)

    def decided(self, decision: Decision) -> None:
        """Count a request that has ended, and log it; if the disk is full, only the log line is lost."""
        self._requests.labels(decision.status).inc()
        self._lookups.labels(decision.cache).inc()
        saved_input = decision.input_before - decision.input_after
        saved_output = decision.output_before - decision.output_after
        if saved_input or saved_output:
            self._clipped.inc()
            self._saved.labels("clipping").inc(saved_input + saved_output)
        if cached := decision.cached_input_tokens + decision.cached_output_tokens:
            self._saved.labels("cache").inc(cached)
        if self._log is not None:
            line = json.dumps(asdict(decision), separators=(",", ":")) + "\n"
            try:
                os.write(self._log, line.encode())
            except OSError:
                self.failed_writes.inc()

    async def watch_loop(self) -> None:
        """Measure repeatedly how late the loop wakes up."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            lag = max(loop.time() - due, 0.0)
            self._lag.observe(lag)
            self._lags[round(lag / LAG_RESOLUTION)] += 1

    def state(self) -> dict[str, Any]:
        """Return the loop's lag in seconds since the last call, with the number of readings."""
        state = {"loop_lag_p50": self._quantile(0.5), "loop_lag_p99": self._quantile(0.99), "looks": self._lags.total()}
        self.reset()
        return state

    def reset(self) -> None:
        """Discard the recorded lags at the start of a trial."""
        self._lags.clear()

    def _quantile(self, share: float) -> float | None:
        rank, total = share * self._lags.total(), 0
        for lag in sorted(self._lags):
            total += self._lags[lag]
            if total >= rank:
                return lag * LAG_RESOLUTION
        return None
