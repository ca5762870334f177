"""The dimensions of a model that determine its memory use and speed."""

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt

from sweep.base.config import Strict
from sweep.inputs.weights.random_weights import Architecture


class ModelShape(Strict):
    """A dense decoder's dimensions, as needed for the plan's estimates of memory and time."""

    parameters: PositiveInt
    layers: PositiveInt
    kv_heads: PositiveInt
    head_size: PositiveInt
    hidden: PositiveInt
    intermediate: PositiveInt
    positions: PositiveInt  # tokens of context that the model was trained for

    @classmethod
    def of_architecture(cls, architecture: Architecture, tied: bool = False) -> "ModelShape":
        """Return the shape of a Llama; `tied`: the output head shares the embedding's weights."""
        head = architecture.vocab_size * architecture.hidden_size if tied else 0
        return cls(
            parameters=architecture.parameters - head,
            layers=architecture.num_hidden_layers,
            kv_heads=architecture.num_key_value_heads,
            head_size=architecture.head_dim,
            hidden=architecture.hidden_size,
            intermediate=architecture.intermediate_size,
            positions=architecture.max_position_embeddings,
        )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "ModelShape | None":
        """Return the shape described by a config.json; None if the model is not a Llama."""
        numbers = {key: config[key] for key in Architecture.model_fields if config.get(key) is not None}
        try:
            return cls.of_architecture(Architecture(**numbers), bool(config.get("tie_word_embeddings")))
        except ValueError:
            return None
