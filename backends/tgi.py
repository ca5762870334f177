"""Text Generation Inference: in its Docker image, by its own launcher, or attached to where it runs already.

It has no ignore_eos and takes no token ids, so an answer may be shorter than asked for: compare it by tokens per
second, and read `finish_reason`. TGI itself cuts requests above 1,024 new tokens into chunks and queues each anew.
"""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from backends.base import Backend, EnvironmentChoice, Host, Launch, cli, metrics
from backends.launch.server import free_port
from sweep.records import Api

CONTAINER = Path(__file__).resolve().parent / "launch" / "container.py"
LAUNCHER = "text-generation-launcher"
# "2025-01-01T00:00:00.000000Z ERROR text_generation_launcher: Shard 0 crashed", with colours on a terminal.
PREFIX = re.compile(r"^(\x1b\[[\d;]*m)*\d{4}-\d\d-\d\dT\S+Z\s+(INFO|WARN|ERROR|DEBUG)\s+[\w:{}=\"]+:\s*")
MEMORYLESS = {"PREFIX_CACHING": "0"}  # it has no reset, and would answer a trial from the one before
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class TGI(Backend):
    """Flags are those of text-generation-launcher."""

    attachable = True
    needs_gpu = True
    reserves_memory = True
    version_path = "/info"
    tables = ("tgi",)
    own_flags: ClassVar[dict[str, str]] = {
        "model-id": "model",
        "port": "backend.port",
        "dtype": "backend.dtype",
        "max-input-tokens": "model.max_model_len",
        "max-input-length": "model.max_model_len",
        "max-total-tokens": "model.max_model_len",
        "num-shard": "backend.gpus",
        "sharded": "backend.gpus",
    }

    env: EnvironmentChoice = EnvironmentChoice(python=sys.executable)  # nothing of it is Python here
    launcher: Literal["docker", "native"] = "docker"
    image: str = "ghcr.io/huggingface/text-generation-inference"
    tag: str = "3.3.7"
    shm_size: str = "1g"  # shared memory of the container, through which its shards talk
    cache: str | None = None  # folder that is its Hugging Face cache; None: HF_HUB_CACHE, where that is set

    api: Api = "tgi"
    token_ids: bool = False
    ignores_eos: bool = False
    stop_grace: float = Field(default=20.0, gt=0)  # an engine on a node that is cut off has 60 s in all
    metric_names: dict[str, str] = metrics(
        "tgi_",
        kv_cache_usage="batch_current_max_tokens / tgi_batch_max_total_tokens",  # reserved, of its budget of tokens
        requests_running="batch_current_size",
        requests_waiting="queue_size",
    )
    oom_patterns = (
        *Backend.oom_patterns,
        r"NotEnoughMemory\(",
        r"You need to decrease `?--max-batch-prefill-tokens",
    )
    choice_patterns: ClassVar[dict[str, str]] = {
        "attention": r"Using attention (\w+)",
        "prefix_caching": r"Prefix caching (\w+)",
    }
    noise_patterns = (
        r"^Error: (Shard|Webserver)",
        r"[Ss]hard \d+ (crashed|failed)",
        r"^Shard .* failed",
    )

    def unavailable(self, host: Host) -> str | None:
        attach = "attach to a running TGI with backend.url=http://HOST:PORT"
        if not self.launches or host.platform != "linux":
            return super().unavailable(host)
        if not host.gpus:
            return f"TGI needs a CUDA GPU: run sweep on a machine that has one, or {attach}"
        if self.launcher == "native" and not self.env.binary and LAUNCHER not in host.executables:
            return f"no {LAUNCHER} on PATH: install TGI, name it as backend.env.binary, or {attach}"
        if self.launcher == "docker" and "docker" not in host.executables:
            return f"no docker on PATH: install it with NVIDIA's toolkit, set backend.launcher=native, or {attach}"
        return None

    def image_version(self) -> str | None:
        return self.tag if self.launcher == "docker" else None

    def command(self, launch: Launch) -> list[str]:
        if self.launcher == "docker":
            return self._docker(launch)
        own_ports = {
            "hostname": launch.host,
            "port": launch.port,
            # Every launcher on a node needs its own of these, which it does not look for itself.
            "prometheus-port": free_port(),
            "master-port": free_port(),
            "shard-uds-path": f"/tmp/tgi-{launch.port}",
        }
        return [
            launch.binary or LAUNCHER,
            *cli({**self._arguments(launch), **own_ports, **self.flags_on(launch)}, self.table()),
        ]

    def _docker(self, launch: Launch) -> list[str]:
        """`docker run` in the hands of container.py, which sees to it that the container ends with it."""
        name = "sweep-tgi-" + hashlib.sha256(f"{launch.workdir}:{launch.port}".encode()).hexdigest()[:12]
        options = {
            "gpus": f'"device={",".join(launch.gpus)}"' if launch.gpus else None,  # docker reads a line of CSV
            "shm-size": self.shm_size,
            "publish": f"{launch.host}:{launch.port}:80",
            "cpuset-cpus": ",".join(map(str, launch.cpus)) or None,
        }
        mounts = [f"{folder}:{folder}:ro" for folder in folders(launch.model)]
        cache = self.cache or os.environ.get("HF_HUB_CACHE")
        if cache:
            mounts.append(f"{Path(cache).expanduser().absolute()}:/data")
        arguments = {**self._arguments(launch), "hostname": "0.0.0.0", "port": 80}
        passed = [*(["HF_TOKEN"] if "HF_TOKEN" in os.environ else []), "HF_HUB_OFFLINE", *(MEMORYLESS | self.environ)]
        return [
            launch.python,
            str(CONTAINER),
            name,
            "docker",
            *cli(options),
            *(part for mount in mounts for part in ("--volume", mount)),
            # Names only: docker takes the values from its environment, and none stands in the list of processes.
            *(part for variable in passed for part in ("--env", variable)),
            f"{self.image}:{self.tag}",
            "/tgi-entrypoint.sh",
            *cli({**arguments, **self.flags_on(launch)}, self.table()),
        ]

    def _arguments(self, launch: Launch) -> dict[str, Any]:
        longest = launch.max_model_len
        return {
            "model-id": str(launch.model),
            "num-shard": max(1, len(launch.gpus)),
            "dtype": None if launch.dtype == "auto" else launch.dtype,
            "max-input-tokens": longest - 1 if longest else None,
            "max-total-tokens": longest,
            "usage-stats": "off",
        }

    def environment(self, launch: Launch) -> dict[str, str]:
        # Secrets are not inherited by engines: this one is asked for, so that a gated model's files can be read.
        token = {"HF_TOKEN": os.environ["HF_TOKEN"]} if "HF_TOKEN" in os.environ else {}
        return {**token, **MEMORYLESS, **super().environment(launch)}

    def facts(self, launch: Launch) -> dict[str, Any]:
        image = {"image": f"{self.image}:{self.tag}"} if self.launches and self.launcher == "docker" else {}
        # Told nothing, it chooses by kind of model and says nowhere what.
        dtype = {"dtype": None} if launch.dtype == "auto" else {}
        cached = (MEMORYLESS | self.environ)["PREFIX_CACHING"].lower() in ("1", "true") if self.launches else None
        return {**image, **dtype, "prefix_cache": cached, "quantization": self.flags_on(launch).get("quantize")}

    def message(self, line: str) -> str:
        return COLOUR.sub("", PREFIX.sub("", line.strip())).strip()


def folders(model: Path) -> list[Path]:
    """The folders to mount for a model folder: itself, and the targets of its links (the hub's cache has some)."""
    linked = {path.resolve().parent for path in model.iterdir() if path.is_symlink()} if model.is_dir() else set()
    return [model.absolute(), *sorted(linked - {model.resolve()})]
