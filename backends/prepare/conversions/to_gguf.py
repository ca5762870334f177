"""Converts a folder in Hugging Face layout to a GGUF file with llama.cpp's converter, in the environment `gguf`.

The converter recognises a byte-level BPE's way of splitting text only by a hash of its results. If the hash is unknown
but tokenizer.json has GPT-2's split, this program supplies that split's name. Any other split is an error, as usual.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

GPT2 = "gpt-2"  # llama.cpp's name for GPT-2's split


def gpt2_split(model: Path) -> bool:
    """Return whether the tokenizer splits text only by GPT-2's regular expression."""
    path = model / "tokenizer.json"
    splits = (json.loads(path.read_text()).get("pre_tokenizer") if path.is_file() else None) or {}
    return splits.get("type") == "ByteLevel" and bool(splits.get("use_regex", True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--type", required=True, help="f32, f16, bf16 or auto (the 16-bit type that loses least)")
    arguments = parser.parse_args()

    import convert_hf_to_gguf as converter
    from conversion.base import TextModel

    original = TextModel.get_vocab_base_pre

    def name_of_split(model: Any, tokenizer: Any) -> str:
        try:
            return str(original(model, tokenizer))
        except NotImplementedError:
            if gpt2_split(arguments.model):
                return GPT2
            raise

    TextModel.get_vocab_base_pre = name_of_split
    sys.argv[1:] = [str(arguments.model), f"--outfile={arguments.output}", f"--outtype={arguments.type}"]
    converter.main()


if __name__ == "__main__":
    main()
