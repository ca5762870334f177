"""Prompts like those of `vllm bench serve --dataset-name random`: consecutive tokens of the vocabulary."""

from itertools import count

from tokenizers import Tokenizer

from sweep.inputs.workload import Draw, Encoded, Serving

TRIES = 10  # rounds of decoding and encoding, as many as in vLLM


class RandomTokens(Serving):
    """Each prompt starts at a random token of the vocabulary, decoded and encoded until it has the requested length.

    Lengths are drawn as in Serving. If the tokenizer is unknown, prompts are plain words, also as in Serving.
    """

    unique_header: bool = False  # whether all prompts begin at different tokens

    def _draw(self, draw: Draw, tokenizer: Tokenizer | None) -> tuple[list[Encoded], list[int]]:
        if tokenizer is None:
            return super()._draw(draw, tokenizer)
        special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        vocabulary = sorted(set(tokenizer.get_vocab().values()) - special)
        lengths = self.lengths(draw)
        offsets = draw.order(len(vocabulary), f"offset{draw.salt}").tolist()
        extra = draw.below(len(vocabulary), "extra", TRIES * len(lengths)).tolist()
        prompts = [
            _of_length(tokenizer, vocabulary, offsets[number % len(offsets)] + number, length, extra[number])
            for number, (length, _) in enumerate(lengths)
        ]
        return prompts, [output for _, output in lengths]


def _of_length(tokenizer: Tokenizer, vocabulary: list[int], first: int, length: int, extra: int) -> Encoded:
    """Return the prompt that starts at a token. Its length is counted after encoding, and may be off by one."""
    following = (vocabulary[(extra + step) % len(vocabulary)] for step in count())
    tokens = [vocabulary[(first + step) % len(vocabulary)] for step in range(length)]
    words, encoded = "", tokens
    for _ in range(TRIES):
        words = tokenizer.decode(tokens, skip_special_tokens=False)
        encoded = tokenizer.encode(words).ids
        special = len(encoded) - len(tokenizer.encode(words, add_special_tokens=False).ids)
        if len(encoded) == length:
            break
        tokens = encoded[special:][: length - special]
        tokens += [next(following) for _ in range(length - special - len(tokens))]
    return Encoded(words, encoded)
