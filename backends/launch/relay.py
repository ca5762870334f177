"""Makes engines, which listen on loopback only, reachable from another node of a cluster, for holders of a token.

A connection's first request must carry the token in the header TOKEN_HEADER; whatever follows on that connection goes
to the engine unread. Like Ray's own token, it crosses the network unencrypted.
"""

import asyncio
import contextlib
import hmac
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

TOKEN_HEADER = "x-sweep-token"
TOKEN_VARIABLE = "SWEEP_RELAY_TOKEN"  # environment variable with the token, for the gateway's process
HEAD_WITHIN = 10.0  # s within which the first request's head must arrive
LARGEST_FIRST_HEAD = 64 << 10
PART = 64 << 10  # bytes
REFUSAL = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def is_authorized(head: bytes, token: str) -> bool:
    """Return whether the head of a request carries the token; takes equally long for all wrong tokens."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    given = [value.strip() for name, _, value in lines if name.strip().lower() == TOKEN_HEADER.encode()]
    return len(given) == 1 and hmac.compare_digest(given[0], token.encode())


@contextlib.contextmanager
def relaying(urls: Sequence[str], host: str, token: str) -> Iterator[list[str]]:
    """Relay to these engines for the block, in a thread; yield the URLs at `host`, an address of this machine."""
    loop, targets = asyncio.new_event_loop(), [urlsplit(url) for url in urls]
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    connections: set[asyncio.Task[None]] = set()

    async def listen(address: str, port: int) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            task.add_done_callback(connections.discard)
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await _serve(reader, writer, address, port, token)
            writer.transport.abort()

        return await asyncio.start_server(serve, host, 0, limit=LARGEST_FIRST_HEAD)

    async def close() -> None:
        for server in servers:
            server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    servers: list[asyncio.Server] = []
    try:
        for target in targets:
            opening = listen(target.hostname or "", target.port or 80)
            servers.append(asyncio.run_coroutine_threadsafe(opening, loop).result())
        yield [f"http://{host}:{server.sockets[0].getsockname()[1]}" for server in servers]
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, port: int, token: str
) -> None:
    """Relay one connection to the engine until either side closes it. Raises OSError if the engine is gone."""
    async with asyncio.timeout(HEAD_WITHIN):
        head = await reader.readuntil(b"\r\n\r\n")
    if not is_authorized(head, token):
        writer.write(REFUSAL)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        return
    engine_reader, engine_writer = await asyncio.open_connection(address, port)
    try:
        engine_writer.write(head)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, engine_writer))
            both.create_task(_pump(engine_reader, writer))
    except* OSError:
        pass
    finally:
        engine_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(PART):
        writer.write(part)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
