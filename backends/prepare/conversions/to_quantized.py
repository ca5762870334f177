"""Converts a folder in Hugging Face layout to a quantised checkpoint, in the engine's environment.

GPTQModel makes GPTQ checkpoints, with calibration, if it is installed. Otherwise every weight is rounded to the nearest
step of its group. Only linear layers of decoder blocks are quantised. One weight file is in memory at a time.

    gptq       4-bit, symmetric, groups along the inputs (AutoGPTQ's "gptq" checkpoint format)
    ct-int8    int8 weights per output channel, int8 activations per token (compressed-tensors "int-quantized")
"""

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Tensor = Any  # stands for torch.Tensor, since torch is not installed where types are checked
Tensors = dict[str, Tensor]

BLOCK_LINEAR = re.compile(r"\.(layers|h|blocks)\.\d+\..+\.weight$")
INDEX = "model.safetensors.index.json"  # names the file that holds each tensor, if there are several files
SMALLEST_SCALE = 1e-8
CALIBRATION_SAMPLES = 128


def pack_int4(numbers: Tensor, axis: int) -> Tensor:
    """Pack eight numbers from 0 to 15 along `axis` into each int32, the first in the lowest bits."""
    groups = numbers.movedim(axis, 0).to(torch.int64)
    groups = groups.reshape(groups.shape[0] // 8, 8, *groups.shape[1:])
    packed = sum(groups[:, column] << (4 * column) for column in range(8))
    signed = torch.where(packed >= 2**31, packed - 2**32, packed)
    return signed.to(torch.int32).movedim(0, axis).contiguous()


def gptq(weight: Tensor, group: int) -> Tensors:
    """Split weight = scale * (q - 8) into qweight, scales, qzeros (zero point - 1) and g_idx, in AutoGPTQ's shapes."""
    grouped = weight.T.reshape(-1, group, weight.shape[0])
    scales = (grouped.abs().amax(1) / 7).clamp(min=SMALLEST_SCALE).half()
    steps = torch.round(grouped / scales.float()[:, None]) + 8
    zeros = torch.full(scales.shape, 7)
    return {
        "qweight": pack_int4(steps.clamp(0, 15).reshape(weight.T.shape), axis=0),
        "scales": scales,
        "qzeros": pack_int4(zeros, axis=1),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group,
    }


def ct_int8(weight: Tensor, group: int) -> Tensors:
    """Split weight (out, in) into weight int8 (out, in) and weight_scale (out, 1), without groups."""
    scales = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=SMALLEST_SCALE)
    return {"weight": torch.round(weight / scales).clamp(-128, 127).to(torch.int8), "weight_scale": scales}


QUANTISE: Mapping[str, Callable[[Tensor, int], Tensors]] = {"gptq": gptq, "ct-int8": ct_int8}


def description(kind: str, group: int) -> dict[str, Any]:
    """Return the quantization_config for config.json."""
    if kind == "gptq":
        about = {"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False, "sym": True, "lm_head": False}
        return {**about, "bits": 4, "group_size": group}
    eight_bits = {"type": "int", "symmetric": True, "num_bits": 8}
    weights = {**eight_bits, "strategy": "channel", "dynamic": False}
    activations = {**eight_bits, "strategy": "token", "dynamic": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}},
    }


def round_to_nearest(model: Path, output: Path, kind: str, group: int) -> None:
    """Write the checkpoint file by file. Raises ValueError for a layer that the format cannot represent."""
    shards, places = _shards(model), dict[str, str]()
    for number, shard in enumerate(shards, 1):
        print(f"progress: {kind}: file {number} of {len(shards)}", flush=True)
        tensors: Tensors = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensors |= _converted(name, file.get_tensor(name), kind, group)
        save_file(tensors, output / shard.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, shard.name)
    if len(shards) > 1:
        (output / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = description(kind, group)
    (output / "config.json").write_text(json.dumps(config, indent=1))


def _shards(model: Path) -> list[Path]:
    """Return the files with a model's weights. If there are several, the model's index lists them."""
    index = model / INDEX
    if index.is_file():
        return [model / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = model / "model.safetensors"
    if not single.is_file():
        raise ValueError(f"{model} has no model.safetensors; expected a model with weights in that format")
    return [single]


def _converted(name: str, tensor: Tensor, kind: str, group: int) -> Tensors:
    if tensor.ndim != 2 or not BLOCK_LINEAR.search(name):
        # GPTQ's kernels compute in float16, so the other layers must too.
        return {name: tensor.half() if kind == "gptq" and tensor.is_floating_point() else tensor}
    outputs, inputs = tensor.shape
    if kind == "gptq" and (inputs % group or outputs % 8):
        raise ValueError(f"{name}: {outputs} x {inputs} cannot be divided into groups of {group} inputs and 8 outputs")
    layer = name.removesuffix("weight")
    return {layer + part: value for part, value in QUANTISE[kind](tensor.float(), group).items()}


def gptqmodel(model: Path, output: Path, group: int, prompts: Path) -> None:
    """Quantise with the GPTQModel library, calibrated on the prompts in a folder of JSON lines files."""
    if (os.cpu_count() or 1) < 4:  # GPTQModel assumes more cores than a small machine has
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    lines = [line for path in sorted(prompts.glob("*.jsonl")) for line in path.read_text().splitlines()]
    samples = [json.loads(line)["prompt"] for line in lines]
    loaded = GPTQModel.load(str(model), QuantizeConfig(bits=4, group_size=group, desc_act=False))
    loaded.quantize(samples[-CALIBRATION_SAMPLES:], batch_size=1)
    loaded.save(str(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--format", choices=QUANTISE, required=True)
    parser.add_argument("--group", type=int, default=128, help="weights that share a scale")
    parser.add_argument("--calibration", type=Path, required=True, help="prompts, for methods that calibrate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.format == "gptq" and importlib.util.find_spec("gptqmodel"):
        method = "GPTQModel, calibrated"
        gptqmodel(arguments.model, arguments.output, arguments.group, arguments.calibration)
    else:
        method = "round to nearest"
        round_to_nearest(arguments.model, arguments.output, arguments.format, arguments.group)
    (arguments.output / "conversion.json").write_text(json.dumps({"method": method}))


if __name__ == "__main__":
    main()
