"""A folder in Hugging Face layout to CTranslate2's format, by its own converter. Runs in the engine's environment."""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quantization", required=True, help="as CTranslate2 calls it: float32, bfloat16, int8, ...")
    arguments = parser.parse_args()

    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(arguments.model), low_cpu_mem_usage=True, trust_remote_code=False)
    converter.convert(str(arguments.output), quantization=arguments.quantization)


if __name__ == "__main__":
    main()
