"""A container that ends with the process that asked for it: `container.py NAME docker OPTION... IMAGE COMMAND...`.

`docker run` is only a client: killed, it leaves the container running. So the container's own first process reads from
its standard input and ends the engine at end of file, which comes when this process is gone, however it went: docker
closes the input of `run --interactive` when its client's ends, or when the client itself does. Besides, the container
is removed by name before and after. Standard library only.
"""

import os
import signal
import subprocess
import sys

# Job control is off in a script, so `&` would take the input away: it is kept as descriptor 3.
LEASE = """
exec 3<&0
"$@" 3<&- & engine=$!
trap 'kill -TERM "$engine"' TERM INT
( cat <&3 >/dev/null; kill -TERM "$engine" 2>/dev/null; sleep 20; kill -KILL "$engine" 2>/dev/null ) & lease=$!
exec 3<&-
while :; do
    wait "$engine"; status=$?
    kill -0 "$engine" 2>/dev/null || break
done
kill "$lease" 2>/dev/null
exit "$status"
"""


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options of `docker run`, and the image with its command: every option but a bare flag has a value."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("--"):
        index += 2
    return arguments[:index], arguments[index:]


def command(name: str, docker: str, arguments: list[str]) -> list[str]:
    """The whole `docker run`: interactive for the lease, removed at its end, with the lease around the engine."""
    options, (image, *engine) = split(arguments)
    run = [docker, "run", "--rm", "--interactive", "--init", "--name", name, "--entrypoint", "/bin/sh", *options]
    return [*run, image, "-c", LEASE, "lease", *engine]


def remove(docker: str, name: str) -> None:
    """Whatever has this name; nothing is said where there is none."""
    subprocess.run([docker, "rm", "--force", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> int:
    name, docker, *arguments = sys.argv[1:]
    remove(docker, name)
    read, write = os.pipe()  # the write end is this process's alone: it closes when this process ends
    process = subprocess.Popen(command(name, docker, arguments), stdin=read)
    os.close(read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        return process.wait()
    finally:
        os.close(write)
        remove(docker, name)


if __name__ == "__main__":
    sys.exit(main())
