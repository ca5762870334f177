"""The notice that a spot machine of Google Cloud gets from its metadata server 30 s before it is taken away."""

import os
import threading
import time
from pathlib import Path

import httpx

METADATA_HOST = "GCE_METADATA_HOST"  # as for Google's own libraries; for tests
GOOGLES_HOST = "metadata.google.internal"
PRODUCT = Path("/sys/class/dmi/id/product_name")
GOOGLE = "Google Compute Engine"
LONGEST_ANSWER = 60.0  # s for which the server may hold an answer back until the value changes
ASK_AGAIN = 5.0  # s between requests that fail


class Preempted(Exception):
    """The machine is about to be taken away."""


def notice_url() -> str | None:
    """Return the URL of the notice; None on a machine that is not Google's."""
    host = os.environ.get(METADATA_HOST)
    if host is None:
        try:
            host = GOOGLES_HOST if PRODUCT.read_text().strip() == GOOGLE else None
        except OSError:
            return None
    return None if host is None else f"http://{host}/computeMetadata/v1/instance/preempted"


def wait_for_notice(url: str) -> None:
    """Return when the machine has got its notice. The server answers at once when the value has changed."""
    etag = "0"
    with httpx.Client(headers={"Metadata-Flavor": "Google"}, trust_env=False, timeout=LONGEST_ANSWER + 30) as client:
        while True:
            parameters = {"wait_for_change": "true", "last_etag": etag, "timeout_sec": str(int(LONGEST_ANSWER))}
            try:
                answer = client.get(url, params=parameters).raise_for_status()
            except httpx.HTTPError:
                time.sleep(ASK_AGAIN)
                continue
            if answer.text.strip() == "TRUE":
                return
            if "ETag" not in answer.headers:  # then it does not wait for a change
                time.sleep(ASK_AGAIN)
            etag = answer.headers.get("ETag", "0")


def watch() -> threading.Event:
    """Return an event that is set when this machine has got its notice."""
    noticed = threading.Event()
    if url := notice_url():

        def listen() -> None:
            wait_for_notice(url)
            noticed.set()

        threading.Thread(target=listen, name="preemption", daemon=True).start()
    return noticed
