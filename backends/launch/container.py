"""A container that ends with the process that started it: `container.py RUNTIME NAME OPTION... IMAGE COMMAND...`.

The container's first process ends the engine when its standard input closes, as happens if the client is killed.
A hub token is passed as a file, since anyone who may inspect a container can read its environment.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TOKEN = "HF_TOKEN"
TOKEN_FILE = "/run/sweep/token"  # path in the container

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
# What root wrote into the mounted cache is its user's again, where root is the host's own and no other user's alias.
read -r _ outside _ </proc/self/uid_map
[ -z "$SWEEP_CACHE_OWNER" ] || [ "$outside" != 0 ] || chown -R "$SWEEP_CACHE_OWNER" "$XDG_CACHE_HOME" 2>/dev/null
exit "$status"
"""


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into the runtime's options (`--name=value` or bare) and the image with its command."""
    count = next((index for index, argument in enumerate(arguments) if not argument.startswith("--")), len(arguments))
    return arguments[:count], arguments[count:]


def command(runtime: str, name: str, arguments: list[str], token: Path | None = None) -> list[str]:
    """Return the runtime's command. The container's standard input is the lease, and it is removed when it ends."""
    options, (image, *engine) = split(arguments)
    leased = ["-c", LEASE, "lease", *engine]
    if runtime == "apptainer":  # apptainer has no daemon, so the container is a child of this process
        bind = [f"--bind={token}:{TOKEN_FILE}:ro", f"--env=HF_TOKEN_PATH={TOKEN_FILE}"] if token else []
        return [runtime, "exec", *options, *bind, image, "/bin/sh", *leased]
    mount = [f"--volume={token}:{TOKEN_FILE}:ro", f"--env=HF_TOKEN_PATH={TOKEN_FILE}"] if token else []
    run = [runtime, "run", "--rm", "--interactive", "--init", f"--name={name}", "--entrypoint=/bin/sh"]
    return [*run, *options, *mount, image, *leased]


def remove(runtime: str, name: str) -> None:
    """Remove the container of this name, if it exists."""
    if runtime != "apptainer":
        silent = subprocess.DEVNULL
        subprocess.run([runtime, "rm", "--force", name], stdout=silent, stderr=silent, check=False)


def main() -> int:
    runtime, name, *arguments = sys.argv[1:]
    secret, folder = os.environ.pop(TOKEN, None), None
    remove(runtime, name)
    if secret:
        folder = Path(tempfile.mkdtemp(prefix="sweep-token-"))  # readable only by this user
        (folder / "token").write_text(secret)
    read, write = os.pipe()  # only this process holds the write end, so it closes when this process ends
    process = subprocess.Popen(command(runtime, name, arguments, folder and folder / "token"), stdin=read)
    os.close(read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        return process.wait()
    finally:
        os.close(write)
        remove(runtime, name)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
