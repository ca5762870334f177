"""A real Slurm on one host: munge, slurmctld and a slurmd for each node, each node in a network namespace of its own.

It needs root, for the namespaces; on Debian and Ubuntu the packages are installed where they are missing.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from backends.launch.server import free_port
from sweep.base.config import ROOT
from tests.cluster.harness import ENVIRONMENT, SIMULATED, Network, Sweep, network_obstacle
from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
JOB = ROOT / "scripts" / "cluster" / "slurm.sbatch"
SILENCE = 20  # s after which slurmctld takes a node that does not answer for down
CONFIGURATION = """\
ClusterName=sweep
FirstJobId={first_job}
SlurmctldHost={host}({subnet}.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=25
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout={silence}
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=5,bf_interval=5
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def obstacle() -> str | None:
    """Return why no Slurm can be started here, after an attempt to install what is missing; None if it can."""
    if reason := network_obstacle("nsenter"):
        return reason
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and shutil.which("apt-get"):
        _install()
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"Slurm is not installed, it lacks {', '.join(missing)} (packages {' '.join(PACKAGES)})" if missing else None


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-yq", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, check=False)


class Slurm:
    """A Slurm whose nodes n1, n2, ... are at .2, .3, ... of its network; the controller is at .1."""

    def __init__(self, size: int = 2) -> None:
        self.network = Network(size)
        self.names = [f"n{index + 1}" for index in range(size)]
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RAY_"))}
        self.environment |= ENVIRONMENT | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.environment |= {"SWEEP_PYTHON": sys.executable, "SWEEP_ENVIRONMENT": "none"}
        self.environment |= {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000"}
        del self.environment["RAY_AUTH_MODE"]  # the job makes a token
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.jobs: list[Job] = []

    def __enter__(self) -> "Slurm":
        self.network.__enter__()
        try:
            self._start()
        except BaseException as error:
            for path in sorted(self.folder.glob("*.log")):
                error.add_note(f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}")
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for job in self.jobs:
            job.cancel()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.command("squeue", "--noheader"), 30, "the end of all jobs", poll=1)
        for name in reversed(list(self.daemons)):
            self.kill(name)
        for name in self.names:
            self._kill_all(name)
        self.network.__exit__()
        for job in self.jobs:  # of steps that were killed with their node
            for folder in Path("/tmp").glob(f"sweep-{job.number}-*"):
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        host = os.uname().nodename.partition(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr={self.network.subnet}.{index + 2} Port={free_port()}"
            f" CPUs={os.cpu_count()} Gres=gpu:l4:4 State=UNKNOWN"
            for index, name in enumerate(self.names)
        ]
        configuration = CONFIGURATION.format(
            host=host,
            subnet=self.network.subnet,
            controller=free_port(),
            first_job=os.getpid(),
            folder=self.folder,
            silence=SILENCE,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(configuration)
        for number in range(4):
            (self.folder / f"gpu{number}").touch()
        gres = f"NodeName={','.join(self.names)} Name=gpu Type=l4 File={self.folder}/gpu[0-3]\n"
        (self.folder / "gres.conf").write_text(gres)
        for name in ("state", *self.names):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {name: str(self.folder / f"munge.{name}") for name in ("socket", "log", "pid", "seed")}
        options = ["--socket", "--log-file", "--pid-file", "--seed-file"]
        places = [f"{option}={path}" for option, path in zip(options, files.values(), strict=True)]
        self._daemon("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *places])
        wait_until(Path(files["socket"]).exists, 20, "munge's socket")
        self._daemon("slurmctld", ["slurmctld", "-D"])
        for name in self.names:
            self.start_node(name)
        wait_until(lambda: self.states() == {"idle"}, 60, f"idle nodes, see {self.folder}", poll=0.5)

    def _daemon(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        """Start a node's slurmd in its namespace."""
        namespace = (
            f"--net=/run/netns/{self.network.names[self.names.index(name)]}"  # keeps /sys, unlike `ip netns exec`
        )
        self._daemon(name, ["nsenter", namespace, "slurmd", "-D", "-N", name])

    def kill(self, name: str) -> None:
        """Kill a daemon."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def power_off(self, name: str) -> None:
        """Kill all that runs on a node, its slurmd first."""
        self.kill(name)
        self._kill_all(name)

    def _kill_all(self, name: str) -> None:
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the processes that run on a node."""
        namespace = self.network.names[self.names.index(name)]
        answer = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        return [psutil.Process(int(pid)) for pid in answer.stdout.split() if psutil.pid_exists(int(pid))]

    def command(self, *words: str) -> str:
        """Return what one of Slurm's commands prints."""
        answer = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    def states(self) -> set[str]:
        """Return the states of the nodes."""
        return set(self.command("sinfo", "--Node", "--noheader", "--format=%T").split())

    def submit(self, folder: Path, *arguments: str, options: tuple[str, ...] = (), cache: Path) -> "Job":
        """Submit scripts/cluster/slurm.sbatch as it is, from a folder with a link to the repository's files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("scripts", "sweep", "backends", "analysis", "conf", "llm_sweep"):
            with contextlib.suppress(FileExistsError):
                (folder / name).symlink_to(ROOT / name)
        command = ["sbatch", "--parsable", *options, str(JOB), *SIMULATED, *arguments, f"cache_dir={cache}"]
        answer = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        self.jobs.append(Job(self, folder, answer.stdout.strip()))
        return self.jobs[-1]


class Job:
    """A submitted job."""

    def __init__(self, slurm: Slurm, folder: Path, number: str) -> None:
        self.slurm, self.folder, self.number = slurm, folder, number
        self.results = folder / "results" / "slurm" / number

    @property
    def sweep(self) -> Sweep:
        """The files of its sweep."""
        return Sweep(self.results / "run", cache=self.folder)

    def facts(self) -> dict[str, str]:
        """Return what Slurm says of the job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm.command("scontrol", "show", "job", self.number)))

    @property
    def state(self) -> str:
        """Its state, such as RUNNING."""
        return self.facts().get("JobState", "")

    @property
    def restarts(self) -> int:
        """The number of times that it was requeued."""
        return int(self.facts().get("Restarts", 0))

    def ended(self) -> bool:
        """Return whether the job will not run any more."""
        return self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

    def exit_status(self) -> int:
        """Return the exit status of the batch script."""
        return int(self.facts()["ExitCode"].partition(":")[0])

    def rows(self) -> int:
        """Return the number of trials that have ended."""
        return len(self.sweep.committed())

    def log(self) -> str:
        """Return what the job has printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"*{self.number}*.log")))

    def cancel(self) -> None:
        """Cancel the job; one that has ended stays as it is."""
        self.slurm.command("scancel", self.number)
