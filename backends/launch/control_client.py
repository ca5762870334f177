"""HTTP for control: health, models, metrics, short answers. A reply is bounded, since an endpoint may be anyone's."""

import contextlib
import time
from typing import Any

import httpx

LARGEST_REPLY = 4 << 20  # maximum bytes of a reply
LONGEST_REPLY = 30.0  # s until a reply is complete, once its headers have arrived


class ControlClient(httpx.Client):
    """httpx's client. Raises httpx.HTTPError for a reply that is too large, too slow or compressed."""

    largest = LARGEST_REPLY

    def __init__(self, **options: Any) -> None:
        super().__init__(trust_env=False, **options)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """Send a request; return the whole reply, or with `stream` only its head, without any bound."""
        request.headers["Accept-Encoding"] = "identity"  # a compressed reply may expand a millionfold
        reply = super().send(request, stream=True, **options)
        if stream:
            return reply
        until, body = time.monotonic() + LONGEST_REPLY, bytearray()
        with contextlib.closing(reply):
            if (coding := reply.headers.get("Content-Encoding", "identity")) != "identity":
                raise httpx.HTTPError(f"its response is compressed ({coding[:40]}), although that was not accepted")
            for part in reply.iter_raw():
                body += part
                if len(body) > self.largest or time.monotonic() > until:
                    raise httpx.HTTPError(f"its response exceeds {self.largest:,} bytes or {LONGEST_REPLY:g} s")
        return httpx.Response(reply.status_code, headers=reply.headers, content=bytes(body), request=request)
