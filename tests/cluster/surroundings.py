"""What nodes on one machine have of their own so that it can fail: a network, a small disk, a wall clock; and a hub.

Needs root, `ip`, `mkfs.ext4` and a C compiler.
"""

import contextlib
import fcntl
import http.server
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sweep.base import time_factor
from tests.cluster.harness import Network, RayCluster, Sweep, netns, network_obstacle, pids_of, write_engine
from tests.support.hub_stub import Hub

FREEZE, THAW = 0xC0045877, 0xC0045878  # ioctls of a file system: its writes wait from now on, and go on
NODE_DISK = 96  # MiB, for a node's caches and outbox
RESULTS_DISK = 4096  # MiB; the file behind it takes only what is written
CLOCK_SHIM = Path(__file__).with_name("clock_shim.c")
FACTOR = 0.25  # of heartbeats, time-outs and back-offs
# A node's disk is new each time that the node starts, and seen by it alone; some nodes do not see the results.
START_NODE = """
cache=$1 results=$2; shift 2
image=$(mktemp) && truncate -s {size}M "$image" && mkfs.ext4 -q -F "$image" \
    && mount -o loop "$image" "$cache" && rm "$image" || exit 1
[ -z "$results" ] || mount -t tmpfs -o size=1m tmpfs "$results" || exit 1
exec "$@"
"""


def obstacle() -> str | None:
    """Return why nodes cannot have networks, disks and clocks of their own here; None if they can."""
    if reason := network_obstacle("mkfs.ext4", "truncate", "mktemp", "mount", "umount", "cc"):
        return reason
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        cache.mkdir()
        start = ["sh", "-c", START_NODE.format(size=NODE_DISK), "node", cache, cache, "true"]
        environment = {**os.environ, "TMPDIR": folder}  # for the disk's image
        tried = subprocess.run(["unshare", "--mount", *start], env=environment, capture_output=True, text=True)
    return f"no disks for nodes here: {' '.join(tried.stderr.split())}" if tried.returncode else None


class Disk:
    """A file system that can be filled, and frozen, also where only a process in another mount namespace sees it."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder = folder

    def fill(self) -> Callable[[], None]:
        """Take all free space; returns what gives it back."""
        filler = os.open(self.folder() / "filler", os.O_CREAT | os.O_WRONLY)  # stays open: it may be out of sight then
        free = os.fstatvfs(filler)
        for blocks in (free.f_bavail, free.f_bavail // 2, free.f_bavail // 4, free.f_bavail // 8, 64, 8, 1):
            with contextlib.suppress(OSError):  # the file's own tables take some of it
                while True:
                    os.posix_fallocate(filler, os.fstat(filler).st_size, max(1, blocks) * free.f_frsize)

        def give_back() -> None:
            os.ftruncate(filler, 0)
            os.close(filler)

        return give_back

    def stall(self, share: float) -> Callable[[], None]:
        """Let writes wait for this share of each second; returns what ends that."""
        folder = os.open(self.folder(), os.O_RDONLY)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                fcntl.ioctl(folder, FREEZE, 0)
                ended.wait(share)
                fcntl.ioctl(folder, THAW, 0)
                ended.wait(1 - share)

        thread = threading.Thread(target=run)
        thread.start()

        def end() -> None:
            ended.set()
            thread.join()
            os.close(folder)

        return end


class Clock:
    """The wall clock of a node's or the driver's processes, `shift` seconds off the machine's."""

    def __init__(self, path: Path, shim: Path) -> None:
        self.path = path
        self.environment = {"LD_PRELOAD": str(shim), "SOAK_CLOCK": str(path)}
        self.jump(0.0)

    def jump(self, shift: float) -> None:
        with self.path.open("rb+" if self.path.exists() else "wb") as file:
            file.write(struct.pack("q", int(shift * 1e9)))


class HubServer:
    """A hub on the nodes' network, which can be down: nothing listens, or every answer is status 503."""

    def __init__(self, host: str) -> None:
        self.host, self.port = host, 0
        self.start()

    def start(self) -> None:
        self.server = http.server.ThreadingHTTPServer((self.host, self.port), Hub)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, listens: bool) -> Callable[[], None]:
        """Be down from now on; returns what ends that."""
        if not listens:
            self.stop()
            return self.start
        Hub.hiccups = 1 << 60

        def end() -> None:
            Hub.hiccups = 0

        return end


class Surroundings:
    """A Ray cluster of nodes with all this, a sweep on it, and what of it can be made to fail."""

    def __init__(
        self, folder: Path, nodes: int, arguments: tuple[str, ...], model: Path, longest_outage: float
    ) -> None:
        """`model`: a folder in Hugging Face layout that all repositories of the hub have; `longest_outage`: its, s."""
        self.folder, self.size, self.arguments, self.longest_outage = folder, nodes, arguments, longest_outage
        self.cache, self.results = folder / "cache", folder / "results"
        Hub.files = {path.name: path.read_bytes() for path in model.iterdir()}
        Hub.requests, Hub.closed, Hub.hiccups = [], set(), 0

    @contextlib.contextmanager
    def running(self) -> Iterator["Surroundings"]:
        """Everything started; whatever happens, nothing of it is left."""
        for path in (self.cache, self.results):
            path.mkdir(parents=True, exist_ok=True)
        shim = self.folder / "clock_shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", shim, CLOCK_SHIM, "-ldl"], check=True)
        self.clocks = [Clock(self.folder / f"clock{index}", shim) for index in range(self.size)]
        self.driver_clock = Clock(self.folder / "clock", shim)
        with contextlib.ExitStack() as stack:
            self._mount_results(stack)
            self.network = stack.enter_context(Network(self.size))
            self.hub = HubServer(f"{self.network.subnet}.1")
            stack.callback(lambda: self.hub.stop())
            surroundings = self._environment()
            self.cluster = stack.enter_context(
                RayCluster(
                    self.size,
                    self.network,
                    prefixes=[self._prefix(index) for index in range(self.size)],
                    environments=[surroundings | clock.environment for clock in self.clocks],
                )
            )
            ray = ("cluster=ray", f"cluster.address={self.cluster.address}", *self.arguments)
            engine = write_engine(self.folder / "engine", sys.executable)
            environment = surroundings | self.driver_clock.environment
            self.sweep = Sweep(self.results / "out", *ray, engine, cache=self.cache, environment=environment)
            self.sweep.logs = self.folder / "command"
            self.disks = [Disk(lambda index=index: self._seen_by(index, self.cache)) for index in range(self.size)]
            self.results_disk = Disk(lambda: self.results)
            yield self

    def _environment(self) -> dict[str, str]:
        own = {
            time_factor.FACTOR_VARIABLE: str(FACTOR),
            "HF_ENDPOINT": f"http://{self.network.subnet}.1:{self.hub.port}",
        }
        return own | {"HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "3", "HF_HUB_DISABLE_XET": "1"}

    def _mount_results(self, stack: contextlib.ExitStack) -> None:
        image = self.folder / "results.img"
        subprocess.run(["truncate", "-s", f"{RESULTS_DISK}M", image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, self.results], check=True)
        stack.callback(subprocess.run, ["umount", "-l", self.results], check=True)
        image.unlink()

    def _prefix(self, index: int) -> list[str]:
        hidden = str(self.results) if index % 2 else ""
        script = START_NODE.format(size=NODE_DISK)
        return [*self.network.prefixes()[index], "sh", "-c", script, "node", str(self.cache), hidden]

    def _seen_by(self, index: int, path: Path) -> Path:
        return Path(f"/proc/{self.cluster.nodes[index].process.pid}/root{path}")

    def leftovers(self) -> list[str]:
        networks = {netns(node.process.pid) for node in self.cluster.nodes}
        clients = [pid for pid in pids_of("sweep.client.process") if netns(pid) in networks]
        return [f"process {pid}" for pid in [*self.sweep.marked(), *clients]]
