"""Runs a night of outages: sweeps under random faults, on this machine alone, reissued until every trial is measured.

    scripts/own-network .venv/bin/python -m benchmarks.night [--seeds 1,2,3] [--trials 1680] [--minutes 60]
    python -m benchmarks.night --write docs/measurements/soak.md

Two sweeps take turns. One launches engines. The other measures an endpoint that vanishes, and stores its results in an
object store whose answers are sometimes stale. The mean time between faults is what a command needs to its first row,
so that a slow machine makes progress too. If the time is too short for a seed, the same command continues where it
stopped. It needs a separate network, since there is one machine lease per network. Networks may share `--folder`.
"""

import argparse
import contextlib
import http.client
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks.documents import markdown_table, publish
from sweep.base.config import ROOT, cache_directory
from sweep.disk import object_store
from sweep.disk.ledger_lines.shared_texts import Texts
from sweep.disk.run_files import RunPaths, read_trials

LAUNCH = 30  # trials of a launch
GOOD = ("ok", "client_limited")  # recovery is tested, not timing
TICK, LEFT_WITHIN = 0.1, 30.0  # s
MARKS = ("<!-- night: begin -->", "<!-- night: end -->")
OF_A_CONNECTION = ("content-length", "transfer-encoding", "expect", "connection")  # headers
STORE = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-so-secret", "AWS_REGION": "us-east-1"}
HOLD = """
import sys, time
from sweep.node.machine.lease import leased
with leased([], "another sweep", "", lambda line: None, lambda: False):
    time.sleep(float(sys.argv[1]))
"""


class StaleStore(http.server.BaseHTTPRequestHandler):
    """A proxy in front of an S3 server. While it is stale, it repeats its earlier listings and does not lock."""

    port, stale_until, down_until = 0, 0.0, 0.0  # address of the S3 server; monotonic times
    listings: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - one store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self._body()
        now = time.monotonic()
        if now < self.down_until:
            self._answer(503, b"", {})
            return
        listing = self.command == "GET" and "list-type" in self.path
        if now < self.stale_until and self.command in ("GET", "HEAD") and self.path.partition("?")[0].endswith(".lock"):
            self._answer(404, b"", {})
            return
        if now < self.stale_until and listing and self.path in self.listings:
            self._answer(*self.listings[self.path], {"content-type": "application/xml"})
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_A_CONNECTION}
        try:
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._answer(503, b"", {})
            return
        if listing:
            self.listings[self.path] = answer.status, content
        passed_on = {
            n: v for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "connection", "server")
        }
        self._answer(answer.status, content, passed_on)

    def _body(self) -> bytes:
        """Read the request's body. Arrow uploads in chunks."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" or "content-length" not in {name.lower() for name in headers}:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


def _server(*line: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, *line], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Surroundings:
    """An endpoint and an object store on fixed ports."""

    endpoint_port, store_port, proxy_port = 18001, 18002, 18003

    def __init__(self) -> None:
        self.store = _server("-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.store_port))
        StaleStore.port = self.store_port
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", self.proxy_port), StaleStore)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        os.environ.update(STORE | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy_port}"})
        os.environ.update({"AWS_EC2_METADATA_DISABLED": "true", "SWEEP_TIME_FACTOR": "0.25"})
        self._make_bucket()
        self.start_endpoint()

    def _make_bucket(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.store_port, timeout=10)
                connection.request("PUT", "/bucket")
                connection.getresponse()
                return
            time.sleep(0.2)

    def start_endpoint(self) -> None:
        config = json.dumps({"ttft": {"mean": 0.01}, "itl": {"mean": 0.005}})
        port = str(self.endpoint_port)
        line = ("-m", "backends.simulated_server", "--host", "127.0.0.1", "--port", port, "--config", config)
        self.endpoint = _server(*line)

    def stop(self) -> None:
        for process in (self.endpoint, self.store):
            process.kill()
            process.wait()


class Night:
    """One seed's sweep of one kind, with its faults."""

    def __init__(self, around: Surroundings, folder: Path, seed: int, kind: str, trials: int, every: float) -> None:
        self.around, self.folder, self.kind, self.every = around, folder, kind, every
        self.chance = random.Random(f"{seed}/{kind}/{time.time_ns()}")
        self.state: dict[str, Any] = {"seed": seed, "kind": kind, "trials": trials, "commands": 0, "seconds": 0.0}
        self.state |= {"faults": {}, "statuses": [], "tracebacks": 0, "complete": False}
        self.pace: float | None = None  # mean s between faults; None until a command has had its first row
        self.file = folder / f"{seed}-{kind}.json"
        if self.file.exists():
            self.state = json.loads(self.file.read_text())
        self.cache = folder / "cache"
        self.ends: list[tuple[float, Callable[[], None]]] = []
        self.out = str(folder / f"out-{seed}") if kind == "engines" else f"s3://bucket/seed-{seed}"
        self.held: list[subprocess.Popen[bytes]] = []

    def _command(self) -> list[str]:
        replicates, odd = divmod(self.state["trials"], 4 * LAUNCH)
        assert not odd, f"--trials: expected a multiple of {8 * LAUNCH}"
        shared = ["workload=synthetic", "workload.input_tokens=8", "workload.num_requests=1", "load=closed"]
        shared += ["load.concurrency=1", f"workload.output_tokens={','.join(str(3 + n) for n in range(LAUNCH))}"]
        shared += [f"replicates={replicates}", "cluster=inline", "tracking=none", "report=false", "stall_timeout=6"]
        shared += [f"cache_dir={self.cache}", f"out={self.out}"]
        if self.kind == "engines":
            keys = ["backend=simulated", "model=tiny-llama", "backend.itl.mean=0.001,0.002,0.003,0.004"]
        else:
            keys = [
                "backend=openai",
                f"backend.url=http://127.0.0.1:{self.around.endpoint_port}",
                "model=simulated",
            ]
            keys += ["backend.continuous_usage=false", "workload.input_tokens=8,9,10,11"]
        return [sys.executable, "-m", "sweep", "run", *keys, *[each for each in shared if each.partition("=")[0] not in
                {line.partition("=")[0] for line in keys}]]  # fmt: skip

    def run(self, until: float) -> None:
        """Reissue the command until every trial is measured, or the time is over."""
        while time.monotonic() < until and not self.state["complete"]:
            self.state["commands"] += 1
            began = time.monotonic()
            output: list[bytes] = []
            with subprocess.Popen(
                self._command(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as driver:
                assert driver.stdout is not None
                self.driver, self.reader_left = driver, threading.Event()
                reader = threading.Thread(target=self._read, args=(driver.stdout, output))
                reader.start()
                strike_at, first_row, ledger = self._next_strike(), False, self._ledger_size()
                while driver.poll() is None and time.monotonic() < until:
                    time.sleep(TICK)
                    self._end_faults(time.monotonic())
                    if not first_row and self._has_row(ledger):
                        first_row, self.pace = True, max(self.every, time.monotonic() - began)
                        strike_at = min(strike_at, self._next_strike())
                    if time.monotonic() >= strike_at:
                        self._strike()
                        strike_at = self._next_strike()
                if driver.poll() is None:
                    driver.send_signal(signal.SIGTERM)
                self._end_faults(float("inf"))
                status = driver.wait(120)
                self.reader_left.set()
                reader.join()
            self.state["seconds"] += time.monotonic() - began
            self.state["statuses"].append(status)
            assert status != 2, b"".join(output).decode(errors="replace")
            self.state["tracebacks"] += b"Traceback" in b"".join(output)
            self.state |= self._rows()
            self.state["complete"] = status in (0, 1) and self.state["lost"] == 0
            self.file.write_text(json.dumps(self.state))
        if self.state["complete"] and "leaked" not in self.state:
            self.state["leaked"] = self._leaked()
            self.file.write_text(json.dumps(self.state))

    def _next_strike(self) -> float:
        return time.monotonic() + self.chance.expovariate(1 / self.pace) if self.pace else float("inf")

    def _ledger(self) -> Path:
        out = Path(self.out) if self.kind == "engines" else object_store.staging_folder(self.out, self.cache)
        return RunPaths(out).ledger

    def _ledger_size(self) -> int:
        return self._ledger().stat().st_size if self._ledger().exists() else 0

    def _has_row(self, begin: int) -> bool:
        """Return whether the ledger has a trial's row after this offset."""
        with contextlib.suppress(OSError), self._ledger().open("rb") as file:
            file.seek(begin)
            return b'"trial"' in file.read()
        return False

    def _read(self, stream: Any, output: list[bytes]) -> None:
        """Read the driver's output until it ends, or until its reader leaves."""
        os.set_blocking(stream.fileno(), False)
        while not self.reader_left.is_set():
            part = stream.read()
            if part == b"":
                return
            if part:
                output.append(part)
            time.sleep(0.05)
        stream.close()

    def _rows(self) -> dict[str, Any]:
        """Return how many trials were measured, are lost, or have two good rows, and the useful seconds."""
        folder = Path(self.out)
        if self.kind != "engines":
            folder = self.folder / f"copy-{self.state['seed']}"
            subprocess.run(["rm", "-rf", str(folder)], check=True)
            StaleStore.stale_until = StaleStore.down_until = 0.0
            object_store.copy(self.out, folder, lambda name: name == RunPaths(folder).trials.name)
        paths, texts, good = RunPaths(folder), Texts(), Counter[str]()
        for line in paths.ledger.read_bytes().splitlines() if paths.ledger.exists() else ():
            entry = json.loads(line)
            if entry["event"] == "text":
                texts.add(entry)
            elif entry["event"] == "trial" and entry["row"]["outcome"] == "ok":
                good[entry["row"]["trial_id"]] += 1
        rows = read_trials(paths.trials) if paths.trials.exists() else []
        measured = {row["trial_id"]: row for row in rows if row["outcome"] in GOOD}
        spans = [pd.Timestamp(row["ended_at"]) - pd.Timestamp(row["started_at"]) for row in measured.values()]
        useful = sum(span.total_seconds() for span in spans)
        doubled = sum(count > 1 for count in good.values())
        lost = self.state["trials"] - len(measured)
        return {"measured": len(measured), "lost": lost, "doubled": doubled, "useful": useful}

    def _leaked(self) -> list[str]:
        """Return the processes of sweeps that remain in this network."""
        network = os.readlink("/proc/self/ns/net")
        servers = {self.around.endpoint.pid, self.around.store.pid, os.getpid()}
        until, command_lines = time.monotonic() + LEFT_WITHIN, [""]
        while command_lines and time.monotonic() < until:
            command_lines = []
            for process in psutil.process_iter(["pid", "cmdline"]):
                with contextlib.suppress(OSError, psutil.Error):
                    line = " ".join(process.info["cmdline"] or [])
                    ours = any(word in line for word in ("sweep", "simulated_server", "supervisor.py"))
                    if ours and process.pid not in servers and os.readlink(f"/proc/{process.pid}/ns/net") == network:
                        command_lines += [line[:80]] if str(ROOT) in line or "-m sweep" in line else []
            time.sleep(0.5)
        return command_lines

    # -- faults

    def _below(self, command_part: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            members = psutil.process_iter(["cmdline"])
            network = os.readlink("/proc/self/ns/net")
            matching = []
            for process in members:
                with contextlib.suppress(OSError, psutil.Error):
                    line = " ".join(process.info["cmdline"] or [])
                    if command_part in line and os.readlink(f"/proc/{process.pid}/ns/net") == network:
                        matching.append(process)
            return [process for process in matching if process.pid != self.around.endpoint.pid]
        return []

    def _kill(self, command_part: str) -> bool:
        processes = self._below(command_part)
        if processes:
            self.chance.choice(processes).kill()
        return bool(processes)

    def _strike(self) -> None:
        shared = {"driver killed": 1, "driver interrupted": 1, "reader left": 2, "client killed": 2}
        of_engines = {"engine killed": 3, "supervisor killed": 2, "log grown": 3, "lease held": 2}
        of_endpoint = {"endpoint vanished": 4, "store stale": 4, "store down": 2}
        weights = shared | (of_engines if self.kind == "engines" else of_endpoint)
        (fault,) = self.chance.choices(list(weights), list(weights.values()))
        if self._struck(fault, self.chance.uniform(0.5, 8)):
            self.state["faults"][fault] = self.state["faults"].get(fault, 0) + 1

    def _struck(self, fault: str, seconds: float) -> bool:
        """Inject the fault, and return whether there was something to hit."""
        now = time.monotonic()
        match fault:
            case "driver killed":
                self.driver.kill()
            case "driver interrupted":
                self.driver.send_signal(self.chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            case "reader left":
                self.reader_left.set()
            case "client killed":
                return self._kill("sweep.client.process")
            case "engine killed":
                return self._kill("backends.simulated_server")
            case "supervisor killed":
                return self._kill("supervisor.py supervise")
            case "log grown":
                return self._grow_log()
            case "lease held":
                self.held.append(_server("-c", HOLD, str(seconds)))
            case "endpoint vanished":
                if self.around.endpoint.poll() is not None:
                    return False
                self.around.endpoint.kill()
                self.around.endpoint.wait()
                self.ends.append((now + seconds, self.around.start_endpoint))
            case "store stale":
                StaleStore.stale_until = now + seconds
            case "store down":
                StaleStore.down_until = now + seconds
        return True

    def _grow_log(self) -> bool:
        for engine in self._below("backends.simulated_server"):
            with contextlib.suppress(OSError), open(f"/proc/{engine.pid}/fd/1", "ab") as log:
                for _ in range(40):
                    log.write(b"a line that somebody left at debug\n" * 30_000)
                return True
        return False

    def _end_faults(self, now: float) -> None:
        for at, end in [pending for pending in self.ends if pending[0] <= now]:
            self.ends.remove((at, end))
            end()
        if now == float("inf"):
            for process in self.held:
                process.kill()
                process.wait()
            self.held.clear()


def table(folder: Path) -> list[str]:
    """Return the table of all seeds so far."""
    states = [json.loads(file.read_text()) for file in sorted(folder.glob("*-*.json"))]
    rows = [
        [
            *(state["seed"], state["kind"], state["trials"], state.get("measured", 0)),
            state["lost"] if state["complete"] else "the time was over",
            *(
                state.get("doubled", 0),
                len(state["leaked"]) if "leaked" in state else "",
                sum(state["faults"].values()),
            ),
            *(state["commands"], state["tracebacks"], f"{state['seconds']:.0f} s"),
            f"{1 - state.get('useful', 0) / state['seconds']:.0%}" if state["seconds"] else "",
        ]
        for state in states
    ]
    struck = Counter[str]()
    for state in states:
        struck.update(state["faults"])
    headings = (
        "seed | sweep | trials | measured | lost | doubled | leaked | faults | commands | tracebacks | time | idle"
    )
    measured = sum(state.get("measured", 0) for state in states)
    return [
        *markdown_table(headings, rows),
        "",
        f"{measured:,} trials measured: {sum(state.get('doubled', 0) for state in states)} doubled.",
        "",
        *markdown_table("fault | struck", struck.most_common()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--trials", type=int, default=1680, help="of each seed, half of them in each sweep")
    parser.add_argument("--every", type=float, default=6.0, help="least mean s between faults")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=cache_directory(None) / "night", help="of seeds so far")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.write:
        around, until = Surroundings(), time.monotonic() + 60 * options.minutes
        try:
            for seed in map(int, options.seeds.split(",")):
                for kind in ("engines", "endpoint"):
                    Night(around, options.folder, seed, kind, options.trials // 2, options.every).run(until)
        finally:
            around.stop()
    publish(table(options.folder), options.write, MARKS)


if __name__ == "__main__":
    main()
