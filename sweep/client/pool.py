"""The connections of one client process."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from sweep.base.clock import StampClock
from sweep.base.records import Timeouts, proxy_of, tls_context
from sweep.client import wire
from sweep.client.poller import Poller
from sweep.client.stamped_connection import Counters, ServerAddress, StampedConnection

ADDRESS_TIMEOUT = 3.0  # s to try one of several addresses of a name


class Pool:
    """Open connections. The most recently used connection is used next, since it is the warmest."""

    def __init__(
        self,
        target: wire.Target,
        timeouts: Timeouts,
        loop: asyncio.AbstractEventLoop,
        stamps: StampClock,
        counters: Counters,
    ) -> None:
        self._loop, self._stamps, self._counters = loop, stamps, counters
        self.poller = Poller(loop)
        self._address = _resolve(target, timeouts)
        self.opened = 0  # number of connections ever made; each is reused
        self.free: list[StampedConnection] = []
        self.on_done: Callable[[StampedConnection, wire.Answer], None]  # set by the current Sender

    async def open(self, count: int) -> None:
        """Open `count` connections; if one cannot be opened now, it is retried when it is used."""
        fresh = [self._new() for _ in range(count - self.opened)]
        self.free.extend(fresh)
        for begin in range(0, len(fresh), 64):  # a server's backlog may be as short as 128
            attempts = (connection.open() for connection in fresh[begin : begin + 64])
            await asyncio.gather(*attempts, return_exceptions=True)

    def take(self) -> StampedConnection:
        return self.free.pop() if self.free else self._new()

    def give(self, connection: StampedConnection) -> None:
        if connection.is_open:
            self.free.append(connection)
        else:  # used last, since opening takes a while
            connection.reopen()
            self.free.insert(0, connection)

    def keep_spare(self, count: int) -> None:
        for _ in range(count - len(self.free)):
            connection = self._new()
            connection.reopen()
            self.free.insert(0, connection)

    def _new(self) -> StampedConnection:
        self.opened += 1
        return StampedConnection(
            self._loop, self.poller, self._address, self._stamps, self._counters, lambda *ended: self.on_done(*ended)
        )


def _resolve(target: wire.Target, timeouts: Timeouts) -> ServerAddress:
    proxy, (host, port) = proxy_of(target.url, target.proxy), target.address
    candidates = socket.getaddrinfo(*(proxy.address if proxy else target.address), type=socket.SOCK_STREAM)
    chosen = candidates[0]
    if len(candidates) > 1:
        chosen = next(filter(_accepts, candidates), chosen)
    context = tls_context(target.verify_tls) if target.tls else None
    tunnel = proxy.connect_request(host, port) if proxy and target.tls else b""
    closes = any(name.lower() == "connection" and "close" in value.lower() for name, value in target.headers.items())
    return ServerAddress(chosen[0], tuple(chosen[4]), host, context, timeouts.connect, not closes, tunnel)


def _accepts(candidate: tuple[Any, ...]) -> bool:
    """Return whether an address accepts a connection: `localhost` may be ::1, but the server listens on 127.0.0.1."""
    try:
        with socket.socket(candidate[0], candidate[1]) as sock:
            sock.settimeout(ADDRESS_TIMEOUT)
            sock.connect(candidate[4])
    except OSError:
        return False
    return True
