"Decoding at its edges: columns that are not the labels, zeros, no words."

import numpy as np
import pytest

from fmtut.conll import to_iob2
from fmtut.decoding import FORBIDDEN, LOWEST, argmax_decode, viterbi_decode

LABELS = ["O", *(f"{letter}-{name}" for name in ("LOC", "MISC", "ORG", "PER") for letter in "BI")]


@pytest.mark.parametrize("decode", [argmax_decode, viterbi_decode])
@pytest.mark.parametrize("shape", [(2, 5), (9, 5), (3, 18), (9,)]) # all but the first have a multiple of nine numbers
def test_columns_must_be_the_labels(decode, shape):
    with pytest.raises(ValueError, match="but there are 9 labels"):
        decode(np.zeros(shape), LABELS)


@pytest.mark.parametrize("decode", [argmax_decode, viterbi_decode])
def test_a_sentence_without_words_has_no_labels(decode):
    assert decode([], LABELS) == decode(np.zeros((0, 9), np.float32), LABELS) == []


def test_certain_models_stay_legal():
    rng = np.random.default_rng(46)
    for _ in range(100):
        log_probs = np.full((12, 9), -np.inf)
        log_probs[range(12), rng.integers(0, 9, 12)] = 0 # all probability on one label of each word
        tags = [LABELS[i] for i in viterbi_decode(log_probs, LABELS)]
        assert to_iob2(tags) == tags


def test_the_floor_is_far_above_a_forbidden_step():
    assert 100_000 * LOWEST > FORBIDDEN
