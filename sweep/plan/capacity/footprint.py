"""The GPU memory that a point of a plan needs, computed from its model's dimensions: weights, KV cache, activations."""

import re
from pathlib import Path
from typing import NamedTuple

from backends.base import Launch
from sweep.base.config import Hardware
from sweep.inputs.model_shape import ModelShape
from sweep.plan.plan import Deployment

GIBIBYTE = 2**30
RUNTIME = 0.6 * GIBIBYTE  # bytes per process: the CUDA context, kernels and their workspaces
STEP_TOKENS = 2048  # tokens per step of an engine that splits prompts into chunks
FULL_WIDTH = 16.0  # bits of a format missing in the table below
CACHE_FLAG = re.compile(r"^kv[-_]?cache[-_]dtype$")
# Bits per weight, including scales, by the prefix of a format's name; the longest matching prefix is used.
BITS = {
    "float32": 32.0,
    "f32": 32.0,
    "int16": 16.0,
    "int8": 8.0,
    "ct-int8": 8.0,
    "fp8": 8.0,
    "bitsandbytes int8": 8.0,
    "bitsandbytes": 4.5,
    "gptq": 4.25,
    "awq": 4.25,
    "q8": 8.5,
    "q6": 6.6,
    "q5": 5.5,
    "q4": 4.5,
    "iq4": 4.5,
    "q3": 3.9,
    "q2": 3.2,
}


class Sizes(NamedTuple):
    """The memory needs of one replica of a deployment: its model in bytes, and its KV cache in tokens."""

    parameters: float
    weights: float  # bytes
    per_token: float  # bytes of KV cache
    activation: float  # bytes per token of a step
    computes_in: str  # number format of the matrix products
    room: float | None  # capacity of the KV cache in tokens, fixed at launch; None: as many as fit in memory
    shared: bool  # whether the cache takes what the weights leave of a fixed share of the memory
    context: int  # tokens of the longest sequence that is served
    streams_at_once: int | None  # sequences that run concurrently, unless they arrive as a batch
    memory: float  # bytes of all GPUs of the engine together
    replicas: int = 1  # number of replicas

    @property
    def launches(self) -> bool:
        """Return whether weights and cache fit at launch; a shared cache must have room for one full context."""
        if self.shared:
            return (self.room or 0.0) >= self.context
        return self.weights + RUNTIME + (self.room or 0.0) * self.per_token <= self.memory


def planned_launch(deployment: Deployment) -> Launch:
    """Return the Launch of a deployment as far as known when planning; folders and the port depend on the node."""
    backend, model = deployment.backend, deployment.model
    return Launch(
        model=Path("MODEL"),
        served_name=model.served_name or model.name,
        workdir=Path("ATTEMPT"),
        binary=backend.env.binary,
        gpus=tuple(str(index) for index in range(deployment.gpu_count // backend.replicas)),
        dtype=model.dtype if backend.dtype == "auto" else backend.dtype,
        max_model_len=model.max_model_len,
    )


def sizes(deployment: Deployment, shape: ModelShape, hardware: Hardware) -> Sizes:
    """Return the sizes of a deployment on GPUs of this profile; its memory must be set."""
    backend, launch = deployment.backend, planned_launch(deployment)
    computes_in = "float16" if launch.dtype == "auto" else launch.dtype
    stored = backend.weight_format(launch) or computes_in
    weights = shape.parameters * bits(stored) / 8
    memory = (hardware.gpu_memory or 0.0) * GIBIBYTE * max(1, len(launch.gpus))
    width = 4.0 if computes_in == "float32" else 2.0
    cache_width = next((bits(str(v)) / 8 for k, v in backend.flags_on(launch).items() if CACHE_FLAG.match(k)), width)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_size * cache_width
    activation = (3 * shape.intermediate + 6 * shape.hidden) * width
    context = deployment.model.context or shape.positions
    room: float | None = backend.reserved_tokens(context)
    share = backend.memory_share(launch)
    shared = room is None and share is not None
    if shared and share is not None:
        room = max(0.0, (share * memory - weights - RUNTIME - STEP_TOKENS * activation) / per_token)
    at_once = backend.streams_at_once()
    engine = Sizes(
        shape.parameters, weights, per_token, activation, computes_in, room, shared, context, at_once, memory
    )
    return engine._replace(replicas=backend.replicas)


def bits(name: str) -> float:
    """Return the bits per number of a format, given an engine's name for it."""
    if stated := re.match(r"exl\d (\d+(\.\d+)?) bits", name):
        return float(stated[1])
    formats = [begin for begin in BITS if name.lower().startswith(begin)]
    return BITS[max(formats, key=len)] if formats else FULL_WIDTH
