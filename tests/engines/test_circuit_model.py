"""The model that engines are tested with: its code, and which tokens decide the next."""

import numpy as np

from sweep.inputs.weights.random_weights import Architecture
from tests.engines.circuit import LOOKBACKS, Circuit, lookbacks
from tests.inputs.test_model import NUMBERS, ORDINARY


def test_lookbacks_never_cancel_out() -> None:
    assert lookbacks(2) == [1, 5]
    assert lookbacks(8) == [*LOOKBACKS, 2, 3, 4, 6]
    assert all(len(set(lookbacks(layers))) == layers for layers in range(1, 130))


def test_codewords_are_a_linear_code_of_large_distance() -> None:
    circuit = Circuit(
        Architecture(**NUMBERS | {"head_dim": 64, "hidden_size": 256, "intermediate_size": 512}), ORDINARY, 0
    )
    assert circuit.code.shape == (2048, 64)
    assert circuit.distance >= 18
    assert np.array_equal(circuit.code[5] * circuit.code[1000], circuit.code[5 ^ 1000])
    assert sorted(circuit.ids[circuit.outputs]) == list(range(2048))
    assert set(circuit.outputs) <= set(ORDINARY)
