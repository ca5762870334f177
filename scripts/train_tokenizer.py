"""Train the tokenizer in the repository on the repository's own text: byte-level BPE, reproducible to the byte.

    python scripts/train_tokenizer.py            # writes sweep/inputs/data/tokenizer and sweep/inputs/data/words.txt

Its text is the tasks' prompts in sweep/inputs/data/prompts. Run it after changing them, since a test compares them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

DATA = Path(__file__).resolve().parent.parent / "sweep" / "inputs" / "data"
VOCABULARY = 4096
WORDS = 1024
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


LATER = ("paraphrases.jsonl",)  # newer than the tokenizer; adding it would change the tokenizer and so every trial's id


def texts(data: Path = DATA) -> Iterator[str]:
    """Return the tasks' text in a fixed order."""
    for path in sorted((data / "prompts").glob("*.jsonl")):
        if path.name in LATER:
            continue
        for line in path.read_text().splitlines():
            yield json.loads(line)["prompt"]


def train(data: Path = DATA) -> Tokenizer:
    """Train byte-level BPE. Every text begins with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(data), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def words(data: Path = DATA) -> list[str]:
    """Return the most common plain words, from which synthetic prompts and headers are made, in alphabetical order."""
    counts = Counter(word for text in texts(data) for word in re.findall(r"(?<= )[a-z]{3,9}(?= )", text))
    return sorted(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS])


def save(folder: Path, data: Path = DATA) -> None:
    """Write tokenizer/ in the format that engines read, and words.txt."""
    target = folder / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    train(data).save(str(target / "tokenizer.json"))
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (target / "special_tokens_map.json").write_text(json.dumps(tokens, indent=1) + "\n")
    (folder / "words.txt").write_text("\n".join(words(data)) + "\n")


if __name__ == "__main__":
    save(DATA)
