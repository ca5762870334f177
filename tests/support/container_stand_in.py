"""A stand-in for docker, podman and apptainer, by the name it is called: a container is a process in a namespace.

`run` starts the container's command in a namespace of its own processes, detached from the client's life: as with the
real ones, killing the client leaves the container running; with --interactive its input ends when the client's does or
when the client is gone; `rm --force NAME` kills it. apptainer has no daemon: what it executes is the client's child.
Options that the real one does not have are refused (container_options.txt). A container has no variables but those that
it is given. Containers are pid files in $CONTAINER_STAND_IN, and every call is noted in its file `calls`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

STATE = Path(os.environ["CONTAINER_STAND_IN"])
IMAGE_COMMAND = json.loads(os.environ["CONTAINER_STAND_IN_COMMAND"])  # what the image's program stands for here
TABLE = Path(__file__).with_name("container_options.txt")
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child"] + (["--user", "--map-root-user"] if os.getuid() else [])


def allowed(subcommand: str) -> dict[str, bool]:
    """The long options of a subcommand, each with whether it takes a value."""
    lines = [line.split(": ", 1) for line in TABLE.read_text().splitlines() if line.startswith(subcommand)]
    return {f"--{name}": title.endswith("value") for title, names in lines for name in names.split()}


def options(subcommand: str, arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    known, given = allowed(subcommand), {}
    while arguments and arguments[0].startswith("--"):
        flag, equals, value = arguments.pop(0).partition("=")
        if flag not in known:
            sys.exit(f"unknown flag: {flag}")
        if known[flag] and not equals:
            value = arguments.pop(0)
        given.setdefault(flag, []).append(value)
    return given, arguments


def kill(name: str) -> None:
    pid = STATE / name
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        pid.unlink(missing_ok=True)


def variables(given: dict[str, list[str]], inherited: bool) -> dict[str, str]:
    """The container's variables: those named, with this process's values, or with their own."""
    pairs = [entry.partition("=") for entry in given.get("--env", [])]
    chosen = {
        name: value if equals else os.environ[name] for name, equals, value in pairs if equals or name in os.environ
    }
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ["CONTAINER_STAND_IN_PYTHONPATH"]}
    return {**(os.environ if inherited else {}), **chosen, **own}


def mounted(given: dict[str, list[str]], environment: dict[str, str]) -> None:
    """Check that what is mounted exists, and show a token's file where it really is."""
    for entry in [*given.get("--volume", []), *given.get("--bind", [])]:
        source, target, _ = entry.split(":")
        if not Path(source).exists():
            sys.exit(f"no such file: {source}")
        if target == environment.get("HF_TOKEN_PATH"):
            environment["HF_TOKEN_PATH"] = source


def program(command: list[str]) -> list[str]:
    """The lease's shell with the image's program replaced by the stand-in of the engine."""
    where = command.index("lease") + 1
    return [*command[:where], *IMAGE_COMMAND, *command[where + 1 :]]


def run(arguments: list[str], runtime: str) -> int:
    given, (_, *command) = options(f"{runtime} run", arguments)
    environment = variables(given, inherited=False)
    mounted(given, environment)
    container = subprocess.Popen(
        [*NAMESPACE, *given["--entrypoint"], *program(command)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    (STATE / given["--name"][0]).write_text(str(container.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [os.kill(child, signal.SIGTERM) for child in children(container.pid)])

    def pass_on() -> None:
        while os.read(0, 4096):
            pass
        container.stdin.close()

    threading.Thread(target=pass_on, daemon=True).start()
    status = container.wait()
    (STATE / given["--name"][0]).unlink(missing_ok=True)
    return status


def children(pid: int) -> list[int]:
    """The first process in the container: what a signal to it reaches."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def execute(arguments: list[str]) -> int:
    given, (_, *command) = options("apptainer exec", arguments)
    environment = variables(given, inherited=True)
    mounted(given, environment)
    command = [*NAMESPACE, *program(command)]
    os.execvpe(command[0], command, environment)


def main() -> int:
    runtime, subcommand, *arguments = sys.argv[1:]
    with (STATE / "calls").open("a") as file:
        file.write(
            json.dumps({"runtime": runtime, "argv": [subcommand, *arguments], "environ": dict(os.environ)}) + "\n"
        )
    if subcommand == "run":
        return run(arguments, runtime)
    if subcommand == "exec":
        return execute(arguments)
    if [subcommand, *arguments[:1]] == ["rm", "--force"]:
        kill(arguments[1])
    if [runtime, subcommand] == ["apptainer", "pull"]:
        Path(arguments[0]).write_text("")
    if subcommand == "image":
        print("[{}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
