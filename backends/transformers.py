"""Hugging Face transformers as people first use it: `model.generate` on left-padded static batches. The baseline."""

from backends.base import Hosted


class Transformers(Hosted):
    """dtype and `flags: {attn_implementation: sdpa|eager|flash_attention_2}` are those of `from_pretrained`.

    A list prompt is one batch. With `max_batch` 1, queued requests are served one by one, without inter-request
    batching.
    """

    library: str = "backends.host.transformers_library"
    distribution: str | None = "transformers"
