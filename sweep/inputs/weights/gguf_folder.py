"""Converts a Llama's GGUF file to a folder in Hugging Face layout: dequantised weights, config and tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sweep.inputs.weights.random_weights import Array, encode, header

FORMAT = 1  # part of the model's digest: increase it when the same file gives a different folder
LAYER = {  # llama.cpp's name of a tensor in a layer -> Hugging Face's name
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Patterns for splitting text, by llama.cpp's name; each is applied before GPT-2's own.
SPLITS: dict[str, list[Any]] = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}


def write_folder(file: Path, folder: Path, progress: Callable[[float], None]) -> None:
    """Write config, tokenizer and weights; `progress` gets the fraction done. Raises ValueError unless a Llama."""
    reader = GGUFReader(file)
    facts = _Facts(reader)
    if facts["general.architecture"] != "llama" or facts["tokenizer.ggml.model"] != "gpt2":
        kind = f"{facts['general.architecture']} with a {facts['tokenizer.ggml.model']} tokenizer"
        raise ValueError(f"{file.name}: {kind}; expected a Llama with a byte-level BPE")
    folder.mkdir()
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    ends = {f"{kind}_token_id": facts[f"tokenizer.ggml.{name}_token_id"] for kind, name in _ENDS.items()}
    config = {**facts.architecture(), "tie_word_embeddings": tied, **ends}
    generation = {"do_sample": False, **ends}
    _write_tokenizer(facts, folder)
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    _write_weights(reader, config, folder, progress)


_ENDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


class _Facts:
    """The file's metadata by key."""

    def __init__(self, reader: GGUFReader) -> None:
        self.reader = reader

    def __getitem__(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise ValueError(f"the GGUF file has no {key}")
        return field.contents()

    def architecture(self) -> dict[str, Any]:
        hidden, heads = self["llama.embedding_length"], self["llama.attention.head_count"]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "use_cache": True,
            "torch_dtype": "bfloat16",
            "hidden_size": hidden,
            "intermediate_size": self["llama.feed_forward_length"],
            "num_hidden_layers": self["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": self["llama.attention.head_count_kv"],
            "head_dim": hidden // heads,
            "vocab_size": len(self["tokenizer.ggml.tokens"]),
            "max_position_embeddings": self["llama.context_length"],
            "rope_theta": self["llama.rope.freq_base"],
            "rms_norm_eps": round(self["llama.attention.layer_norm_rms_epsilon"], 12),
        }


def _write_tokenizer(facts: _Facts, folder: Path) -> None:
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    split = facts["tokenizer.ggml.pre"]
    if split not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre={split}: expected {', '.join(SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[split], bytes_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{kind}_token": tokens[facts[f"tokenizer.ggml.{name}_token_id"]] for kind, name in _ENDS.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": facts["tokenizer.ggml.add_bos_token"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=1) + "\n")


def _write_weights(reader: GGUFReader, config: dict[str, Any], folder: Path, progress: Callable[[float], None]) -> None:
    """Write model.safetensors, with only one tensor in memory at a time."""
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    total, done = sum(int(np.prod(shape)) for shape in shapes.values()), 0
    with (folder / "model.safetensors").open("wb") as out:
        out.write(header(shapes, "bfloat16", 2))
        for name, tensor in tensors.items():
            weights = dequantize(tensor.data, tensor.tensor_type).astype("<f4").reshape(shapes[name])
            if number := heads.get(name.split(".")[-2]):
                weights = halves(weights, number)
            out.write(encode(weights, "bfloat16").data)
            done += weights.size
            progress(done / total)


def _name(name: str) -> str:
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in LAYER:
            return f"model.layers.{layer}.{LAYER[part]}.weight"
        case [part, "weight"] if part in OUTSIDE:
            return f"{OUTSIDE[part]}.weight"
    raise ValueError(f"{name}: not a tensor of a Llama")


def halves(weights: Array, heads: int) -> Array:
    """Reorder each head's rows for Hugging Face's rotary embedding: the even rows, then the odd rows."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(weights.shape)
