"""The parent process of an engine or of a preparing program. It leaves no process behind.

It is forked twice (so a parent that kills its direct children does not hit it) and leads a separate session. Two pipes
connect it to the task: the *lease*, which ends when the task closes it or dies; and the *status*, a JSON object per
line: {"pid": …}, {"exit": …}, {"gone": …}. As a subreaper it inherits processes that the engine detaches, even those
with a new environment and session. If it is killed, its parent, the *guardian*, inherits and ends them. If both are, a
marker in every process's environment and limits identifies the rest. `hold LEASE COMMAND…` does the same for a program.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

MARKER = "SWEEP_MARKER"  # variable in an engine's environment with the attempt that the engine belongs to
OWNER = "SWEEP_OWNER"  # "pid:start time" of the process that launched it
OWNER_NAMESPACE = "SWEEP_OWNER_NAMESPACE"  # pid namespace of that process; not in OWNER, which earlier versions compare
MARKS = (MARKER, OWNER, OWNER_NAMESPACE)
SUPERVISOR = "SWEEP_SUPERVISOR"  # variable only in a supervisor's environment
# Two limits that Linux keeps but does not enforce. Unlike variables, they survive a cleared environment.
MARKED_LIMITS = resource.RLIMIT_RSS, 10  # RLIMIT_LOCKS, which Python does not name
LIMITS = re.compile(rb"Max resident set +(\d+) .*Max file locks +(\d+) ", re.DOTALL)
IS_MARK, TICKS = 1 << 62, 40  # bit of a limit that is a mark, and bits of the owner's start time in it
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOG_HEAD = LOG_TAIL = 8 << 20  # bytes to keep of a log that has grown to twice as many
LOG_CHECK = 1.0  # seconds between two checks of a log's size
LOG_NOTE = b"\nsweep: %015d bytes of this log are left out here\n"
NOTE_SIZE = len(LOG_NOTE % 0)
GONE_WITHIN = 15.0  # seconds within which killed processes should disappear (a GPU driver can hold them longer)


def status_field(pid: int, number: int) -> str | None:
    """Return a field of /proc/PID/stat by its number (4 or more); None if the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[number - 4]


def start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot; None if the process is gone or a zombie."""
    return status_field(pid, 22)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def owner_marks() -> dict[str, str]:
    """Return the variables that name this process as the owner of engines that it launches."""
    return {OWNER: f"{os.getpid()}:{start_time(os.getpid())}", OWNER_NAMESPACE: pid_namespace()}


def pid_namespace() -> str:
    """Return the namespace of this process's id; empty if it is unknown."""
    with contextlib.suppress(OSError):
        return str(os.stat("/proc/self/ns/pid").st_ino)
    return ""


def living_owner(environment: dict[str, str]) -> int | None:
    """Return the pid of the process that launched an engine; 0 if it is dead, None if it is in another container."""
    if environment.get(OWNER_NAMESPACE, pid_namespace()) != pid_namespace():
        return None
    pid, _, started = environment.get(OWNER, "").partition(":")
    return int(pid) if pid.isdecimal() and start_time(int(pid)) == started else 0


def process_environment(pid: int) -> dict[str, str]:
    """Return a process's initial environment; empty if the process is gone or unreadable."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def marks_of(pid: int) -> dict[str, str]:
    """Return a process's environment, or if it cleared that, the marks in its limits; empty if it has no marks."""
    if MARKER in (environment := process_environment(pid)):
        return environment
    with contextlib.suppress(OSError), open(f"/proc/{pid}/limits", "rb") as file:
        owner, marker = (int(limit) - IS_MARK for limit in (LIMITS.findall(file.read()) or [(0, 0)])[0])
        if min(owner, marker) >= 0 and start_time(pid):  # a zombie has limits too
            namespace = str(os.stat(f"/proc/{pid}/ns/pid").st_ino)
            return {MARKER: str(marker), OWNER: f"{owner >> TICKS}:{owner % (1 << TICKS)}", OWNER_NAMESPACE: namespace}
    return {}


def marked(matches: Callable[[dict[str, str]], bool]) -> list[int]:
    """Return other processes on this node that carry a marker and whose marks (`marks_of`) match."""
    marks = ((pid, marks_of(pid)) for pid in all_pids() if pid != os.getpid())
    return [pid for pid, each in marks if MARKER in each and matches(each)]


def of_attempt(marker: str) -> list[int]:
    """Return the processes of an attempt."""
    markers = marker, str(zlib.crc32(marker.encode()))
    return marked(lambda marks: marks[MARKER] in markers)


def descendants(ancestor: int) -> list[int]:
    """Return all living descendants of a process, by the parent pids in /proc."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        if parent := status_field(pid, 4):
            children.setdefault(int(parent), []).append(pid)
    pids = [ancestor]
    for pid in pids:  # `pids` grows during the loop
        pids += children.get(pid, [])
    return pids[1:]


def send(pids: list[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(find: Callable[[], list[int]]) -> list[int]:
    """Send SIGKILL until `find` returns no process. Return the pids still stuck after GONE_WITHIN s."""
    deadline = time.monotonic() + GONE_WITHIN
    while (pids := find()) and time.monotonic() < deadline:
        send(pids, signal.SIGKILL)
        time.sleep(0.02)
    return pids


def reap() -> dict[int, int]:
    """Collect ended children as {pid: exit status}; a negative status is the signal that killed the child."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):  # no child remains
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = os.waitstatus_to_exitcode(child[1])
    return ended


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def bytes_left_out(log: str) -> int:
    """Return the number of bytes that `cut_log` removed from a log."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(LOG_HEAD)
        if note := re.fullmatch(LOG_NOTE.replace(b"%015d", rb"(\d{15})"), file.read(NOTE_SIZE)):
            return int(note[1])
    return 0


def cut_log(log: str | None) -> None:
    """Cut the middle out of a log that is twice as large as its kept head and tail, and note the bytes removed."""
    with contextlib.suppress(OSError):
        if log is None or (size := os.path.getsize(log)) < 2 * (LOG_HEAD + LOG_TAIL):
            return
        earlier = bytes_left_out(log)
        with open(log, "r+b") as file:
            file.seek(size - LOG_TAIL)
            tail = file.read(LOG_TAIL)
            file.seek(LOG_HEAD)
            file.write(LOG_NOTE % (earlier + size - LOG_HEAD - LOG_TAIL - (NOTE_SIZE if earlier else 0)) + tail)
            file.truncate()  # the engine appends, so its output continues from here


def start(spec: dict[str, Any]) -> int:
    """Start the engine, logged, in its own process group, on its cores. Return its pid. It dies with this process."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # the supervisor died before the line above took effect
            os._exit(1)
        if spec["log"] is not None:
            log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
        if spec["cpus"]:
            os.sched_setaffinity(0, spec["cpus"])
        owner, started = map(int, spec["env"][OWNER].split(":"))
        marks = owner << TICKS | started, zlib.crc32(spec["env"][MARKER].encode())
        for limit, mark in zip(MARKED_LIMITS, marks, strict=True):
            with contextlib.suppress(OSError, ValueError):  # the user's limit is lower
                resource.setrlimit(limit, (IS_MARK | mark, IS_MARK | mark))
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(2, f"error: cannot start {spec['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def supervise(spec: dict[str, Any], lease: int, status: int | None) -> int | None:
    """Supervise an engine until it or the lease ends, then kill what remains. Return the exit status, if any."""

    def say(**message: Any) -> None:
        if status is None:
            return
        with contextlib.suppress(BrokenPipeError):  # even if the task is dead, its processes must be killed
            os.write(status, json.dumps(message).encode() + b"\n")

    def ours() -> list[int]:
        return list({*descendants(os.getpid()), *of_attempt(spec["env"][MARKER])})

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    stopping = False

    def on_stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, on_stop)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    engine = start(spec)
    say(pid=engine)

    def wait(fds: list[int], seconds: float | None) -> list[int]:
        readable = select.select(fds, [], [], seconds)[0]
        if wake_read in readable:
            os.read(wake_read, 4096)
        return readable

    exited: int | None = None
    while exited is None and not stopping:
        stopping = lease in wait([lease, wake_read], LOG_CHECK if spec["log"] else None) or stopping
        cut_log(spec["log"])
        exited = reap().get(engine)
        if exited is not None:
            say(exit=exited)
    send(ours(), signal.SIGTERM)
    deadline = time.monotonic() + spec["grace"]
    while ours() and time.monotonic() < deadline:
        wait([wake_read], 0.05)
        cut_log(spec["log"])
        ended = reap()
        if engine in ended:
            say(exit=ended[engine])
    say(gone=not kill_all(ours))  # init reaps the zombies when this process ends
    return exited


def hold(lease: int, command: list[str]) -> int:
    """Supervise a program. Return its exit status, or 128 + signal if a signal killed it, as a shell does."""
    os.set_inheritable(lease, False)
    spec = {"argv": command, "env": dict(os.environ), "cwd": os.getcwd(), "log": None, "cpus": [], "grace": 0.0}
    exited = supervise(spec, lease, None)
    return 128 + signal.SIGKILL if exited is None else exited if exited >= 0 else 128 - exited


def guard(spec: dict[str, Any], lease: int, status: int) -> None:
    """Run the supervisor; if it is killed, end the processes that it leaves. Readers of `status` wait for that."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    arguments = [sys.executable, "-I", "-S", __file__, "supervise", str(lease), str(status)]
    marks = spec["marks"] | {SUPERVISOR: "1"}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, pass_fds=(lease, status), env=marks, start_new_session=True
    ) as child:
        os.close(lease)
        child.communicate(json.dumps(spec).encode())
    kill_all(lambda: descendants(os.getpid()))


def main() -> None:
    if sys.argv[1] == "hold":
        sys.exit(hold(int(sys.argv[2]), sys.argv[3:]))
    run, lease, status = supervise if sys.argv[1] == "supervise" else guard, int(sys.argv[2]), int(sys.argv[3])
    spec = json.load(sys.stdin)  # not on the command line: the engine's environment may hold a token
    if run is guard:
        if os.fork():
            os._exit(0)
        os.setsid()
    for descriptor in (lease, status):
        os.set_inheritable(descriptor, False)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    run(spec, lease, status)


if __name__ == "__main__":
    main()
