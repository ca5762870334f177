"""A stand-in for `docker`: `run` starts the container's command on this machine, detached from the client's life.

As with the real one, killing the client leaves the container running; with --interactive its input ends when the
client's does or when the client is gone; `rm --force NAME` kills it. Containers are pid files in $DOCKER_STAND_IN, and
every call is noted in its file `calls`, with the value of HF_TOKEN that it would pass on.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

STATE = Path(os.environ["DOCKER_STAND_IN"])
IMAGE_COMMAND = os.environ.get("DOCKER_STAND_IN_COMMAND", "")  # what the image's command stands for here


def options(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    found: dict[str, list[str]] = {}
    while arguments and arguments[0].startswith("--"):
        flag = arguments.pop(0)
        if flag not in ("--rm", "--interactive", "--init"):
            found.setdefault(flag, []).append(arguments.pop(0))
        else:
            found[flag] = []
    return found, arguments


def kill(name: str) -> None:
    pid = STATE / name
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        pid.unlink(missing_ok=True)


def run(arguments: list[str]) -> int:
    found, (_, *command) = options(arguments)
    # The image's command is replaced, and the port inside by the one published.
    published = found["--publish"][0].split(":")[1]
    command = [published if part == "80" else part for part in command]
    where = command.index("/tgi-entrypoint.sh")
    command[where : where + 1] = json.loads(IMAGE_COMMAND)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ["DOCKER_STAND_IN_PYTHONPATH"]}
    container = subprocess.Popen(
        [*found["--entrypoint"], *command], stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    (STATE / found["--name"][0]).write_text(str(container.pid))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: container.send_signal(signal.SIGTERM))

    def pass_on() -> None:
        while os.read(0, 4096):
            pass
        container.stdin.close()

    threading.Thread(target=pass_on, daemon=True).start()
    status = container.wait()
    (STATE / found["--name"][0]).unlink(missing_ok=True)
    return status


def main() -> int:
    with (STATE / "calls").open("a") as file:
        file.write(json.dumps({"argv": sys.argv[1:], "HF_TOKEN": os.environ.get("HF_TOKEN")}) + "\n")
    if sys.argv[1] == "run":
        return run(sys.argv[2:])
    if sys.argv[1:3] == ["rm", "--force"]:
        kill(sys.argv[3])
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
