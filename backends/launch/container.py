"""A container that ends with the process that started it: `container.py NAME docker OPTION... IMAGE COMMAND...`.

`docker run` is only a client: when it is killed, the container keeps running. So the first process in the container
ends the engine at the end of its standard input, which docker closes when the client's input closes or the client dies.
"""

import os
import signal
import subprocess
import sys

# Without job control the shell redirects the input of `&` from /dev/null, so the input is saved as descriptor 3.
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
    """Split arguments into the options of `docker run`, each with its value, and the image with its command."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("--"):
        index += 2
    return arguments[:index], arguments[index:]


def command(name: str, docker: str, arguments: list[str]) -> list[str]:
    """The complete `docker run` command: interactive for the lease, removed at its end, the engine inside the lease."""
    options, (image, *engine) = split(arguments)
    run = [docker, "run", "--rm", "--interactive", "--init", "--name", name, "--entrypoint", "/bin/sh", *options]
    return [*run, image, "-c", LEASE, "lease", *engine]


def remove(docker: str, name: str) -> None:
    """Remove the container of this name, silently if there is none."""
    subprocess.run([docker, "rm", "--force", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> int:
    name, docker, *arguments = sys.argv[1:]
    remove(docker, name)
    read, write = os.pipe()  # only this process holds the write end, so it closes when this process ends
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
