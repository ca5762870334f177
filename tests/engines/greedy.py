"""Run by an engine's interpreter: greedy continuations by transformers, and what happens to them if a layer goes wrong.

    python greedy.py MODEL_FOLDER TOKENS < prompts.json > answer.json

The answer has, for the model's weights and for plain random ones, the tokens of each prompt and for each token the best
logit and its lead over the second best.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

Answer = list[dict[str, Any]]


def generate(model: Any, tokenizer: Any, prompts: list[str], count: int) -> Answer:
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.generate(
            **encoded,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(found.logits, 1).float().topk(2).values
    new = found.sequences[:, encoded.input_ids.shape[1] :]
    return [
        {"tokens": ids.tolist(), "top": top[:, 0].tolist(), "lead": (top[:, 0] - top[:, 1]).tolist()}
        for ids, top in zip(new, best, strict=True)
    ]


def singly(model: Any, tokenizer: Any, prompts: list[str], count: int) -> Answer:
    return [generate(model, tokenizer, [prompt], count)[0] for prompt in prompts]


def without_a_layers_attention(model: Any, tokenizer: Any, prompt: str, count: int) -> list[list[int]]:
    found = []
    for layer in model.model.layers:
        weight = layer.self_attn.o_proj.weight
        kept = weight.data.clone()
        weight.data.zero_()
        found.append(generate(model, tokenizer, [prompt], count)[0]["tokens"])
        weight.data.copy_(kept)
    return found


def with_a_spoilt_cache(
    model: Any, tokenizer: Any, prompt: str, count: int, layer: int | None, position: int = -1
) -> list[int]:
    """Tokens when, after the prompt, one position of one layer's KV cache holds the values of its neighbour."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    cache = DynamicCache(config=model.config)
    tokens: list[int] = []
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=cache)
        if layer is not None:
            values = cache.layers[layer].values
            values[:, :, position] = values[:, :, position - 1]
        following = ids[:, -1:]
        for _ in range(count):
            following = model(following, past_key_values=cache).logits[:, -1:].argmax(-1)
            tokens.append(int(following))
    return tokens


def main(folder: str, count: int) -> None:
    torch.set_num_threads(1)
    prompts = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).to(torch.bfloat16).eval()
    answer = {
        "single": singly(model, tokenizer, prompts, count),
        "batch": generate(model, tokenizer, prompts, count),
        "plain": singly(plain, tokenizer, prompts[:3], count),
        "no_attention": without_a_layers_attention(model, tokenizer, prompts[0], count),
        "sound_cache": with_a_spoilt_cache(model, tokenizer, prompts[0], count, None),
        "spoilt_cache": [
            with_a_spoilt_cache(model, tokenizer, prompts[0], count, layer, position)
            for layer, position in ((0, -1), (1, -3), (2, -12), (3, -100))
        ],
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
