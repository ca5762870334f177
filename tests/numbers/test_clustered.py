"""Intervals over tokens of texts: their ends on known cases, and how often they hold what is true."""

import math
import subprocess
import sys

import numpy as np
import pytest

from sweep.base.config import ROOT
from sweep.numbers.clustered import ratio_of_likelihoods, share


def test_independent_tokens_have_wilsons_interval():
    hits = [48, 47, 47, 48, 47, 47, 48, 47] * 40
    value, low, high = share(hits, [48] * len(hits))
    assert value == sum(hits) / (48 * len(hits))
    total, z = 48 * len(hits), 1.967
    assert high - low == pytest.approx(2 * z * math.sqrt(value * (1 - value) / total), rel=0.05)


def test_tokens_that_differ_in_whole_texts_have_a_wider_one():
    alike = share([24] * 40, [48] * 40)
    apart = share([0, 48] * 20, [48] * 40)
    assert alike.value == apart.value == 0.5
    assert apart.high - apart.low > 4 * (alike.high - alike.low)


def test_all_right_is_not_certainty():
    value, low, high = share([48] * 30, [48] * 30)
    assert (value, high) == (1.0, 1.0)
    assert 0.995 < low < 1.0


def test_one_text_says_nothing_of_others():
    assert share([47], [48])[1:] == (0.0, 1.0)
    value, low, high = ratio_of_likelihoods([[-1.0]], [[-1.0]])
    assert (value, low, high) == (1.0, 0.0, math.inf)


def test_the_interval_of_a_share_holds_it():
    """Texts of different difficulty, as 30 prompts of 48 tokens: 95 % would be 1,900 of 2,000."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        hits = random.binomial(48, random.beta(39, 1, 30))
        _, low, high = share(hits.tolist(), [48] * 30)
        held += low <= 39 / 40 <= high
    assert 1860 <= held <= 1990


def test_the_interval_of_a_ratio_holds_it_and_is_paired():
    random = np.random.default_rng(2)
    held, width = 0, 0.0
    for _ in range(1000):
        baseline = [random.normal(-3, 2, 130) for _ in range(16)]
        texts = [each - 0.02 + random.normal(0, 0.01) + random.normal(0, 0.1, 130) for each in baseline]
        _, low, high = ratio_of_likelihoods(texts, baseline)
        held += low <= math.exp(-0.02) <= high
        width = max(width, high - low)
    assert 920 <= held <= 975
    assert width < 0.05  # of the log-probabilities themselves, unpaired: 0.2


def test_a_command_starts_without_scipy_stats():
    """It would take a third of the time that every command takes to start."""
    program = "import sys, sweep.cli.run; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
