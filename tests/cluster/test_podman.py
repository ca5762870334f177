"""An engine in a container of the real podman, on an imported root, where podman runs: the stand-ins' contract holds.

The root is empty: the machine's own programs are mounted into it, by podman's configuration. That also has what a
machine without full privileges needs: runc, cgroups as files, and limits no higher than those of this process.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest

from backends.base import Launch
from backends.launch import server
from backends.prepare import images
from backends.tgi import TGI
from sweep.inputs.load import Batch
from tests.backends.test_tgi import STAND_IN, asked, executable, measure
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MOUNTED = ("/usr", "/bin", "/lib", "/lib64")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def podman(tmp_path, monkeypatch):
    """podman with an image of an empty root; skipped where it cannot run a program in it."""
    folders = {*MOUNTED, *(str(Path(part).resolve()) for part in (sys.prefix, sys.base_prefix, ROOT))}
    volumes = [f"{folder}:{folder}:ro" for folder in sorted(folders) if Path(folder).is_dir()]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    settings = {"volumes": volumes, "default_ulimits": [f"nofile={files}:{files}", "nproc=4096:4096"]}
    lines = ["[containers]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    lines += ["[engine]", 'runtime = "runc"', 'cgroup_manager = "cgroupfs"']
    (tmp_path / "containers.conf").write_text("\n".join(lines))
    monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
    root, name = tmp_path / "root.tar", f"localhost/sweep-test-{os.getpid()}:1"
    with tarfile.open(root, "w") as archive:
        for folder in ("proc", "sys", "dev", "tmp", "etc", "run", "root", *(part.lstrip("/") for part in MOUNTED)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
    try:
        subprocess.run(["podman", "import", str(root), name], check=True, capture_output=True)
        trial = ["podman", "run", "--rm", "--init", "--network=host", name, "/bin/true"]
        answer = subprocess.run(trial, capture_output=True, text=True, check=False)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no podman that works here: {error}")
    if answer.returncode:
        pytest.skip(f"podman runs nothing here: {answer.stderr.strip()[-200:]}")
    yield name
    subprocess.run(["podman", "rmi", "--force", name], capture_output=True, check=False)


def inside(folder: Path) -> list[int]:
    lines = ((process.pid, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [
        pid for pid, line in lines if len(line) > 2 and line[1].endswith("tgi_stand_in.py") and str(folder) in line[3]
    ]


def test_an_engine_in_podman(podman, tmp_path, monkeypatch):
    """It serves, its token is a file, and it ends with its owner; also when its wrapper and client are killed."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "attempt").mkdir()
    engine_program = executable(tmp_path / "attempt" / "engine", *STAND_IN, PYTHONPATH=str(ROOT))
    backend = TGI(name="tgi", stop_grace=2)
    launch = Launch(
        model=model,
        served_name="tiny",
        workdir=tmp_path / "attempt",
        binary=str(engine_program),
        image=podman,
        runtime="podman",
        cache=tmp_path / "cache",
        image_cache="/var/cache/sweep",
        shm_size="64m",
        max_model_len=4096,
    )
    assert images.has_image(podman, "podman", tmp_path)
    with server.running(backend, launch, marker=f"podman/{os.getpid()}") as engine:
        assert list(measure(engine, asked(2), Batch(batch_size=2), tmp_path).records.output_tokens) == [16, 16]
        (pid,) = inside(tmp_path)
        assert pid in {process.pid for process in engine.processes()}, "its CPU time and memory are the engine's"
        assert engine.processes_known()
        environ = psutil.Process(pid).environ()
        assert environ["HF_TOKEN_PATH"] == "/run/sweep/token"
        assert Path("/proc", str(pid), "root", "run/sweep/token").read_text() == "hf_secret_value"
        assert "hf_secret_value" not in json.dumps(environ)
    wait_until(lambda: not inside(tmp_path), 25)
    with server.running(backend, launch, marker=f"podman/{os.getpid()}") as engine:
        for process in engine.processes():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == os.readlink("/proc/self/ns/pid"):  # not the engine
                    process.send_signal(signal.SIGKILL)
        wait_until(lambda: not inside(tmp_path), 25)
