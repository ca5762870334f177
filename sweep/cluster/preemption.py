"""The preemption notice: Google Cloud tells a spot machine 30 s in advance that it will be taken away."""

import os
import threading
import time
from pathlib import Path

import httpx

METADATA_HOST = "GCE_METADATA_HOST"  # the same variable as in Google's own libraries; for tests
GOOGLES_HOST = "metadata.google.internal"
PRODUCT = Path("/sys/class/dmi/id/product_name")
GOOGLE = "Google Compute Engine"
LONGEST_ANSWER = 60.0  # s for which the server may hold a request until the value changes
ASK_AGAIN = 5.0  # s before a failed request is repeated


class Preempted(Exception):
    """The machine is about to be taken away."""


def notice_url() -> str | None:
    """Return the URL of the notice; None if the machine is not in Google Cloud."""
    host = os.environ.get(METADATA_HOST)
    if host is None:
        try:
            host = GOOGLES_HOST if PRODUCT.read_text().strip() == GOOGLE else None
        except OSError:
            return None
    return None if host is None else f"http://{host}/computeMetadata/v1/instance/preempted"


def wait_for_notice(url: str) -> None:
    """Wait until this machine receives its preemption notice. The server answers as soon as the value changes."""
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
            if "ETag" not in answer.headers:  # without it, the server answers immediately
                time.sleep(ASK_AGAIN)
            etag = answer.headers.get("ETag", "0")


def watch() -> threading.Event:
    """Return an event that is set once this machine receives its preemption notice."""
    noticed = threading.Event()
    if url := notice_url():

        def listen() -> None:
            wait_for_notice(url)
            noticed.set()

        threading.Thread(target=listen, name="preemption", daemon=True).start()
    return noticed
