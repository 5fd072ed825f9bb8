"Evaluation at its edges: no type at all, an unknown mode, the order of the rows."

import pytest

from fmtut.evaluation import averages, entity_report, word_report


def test_no_type_at_all_scores_zero():
    assert averages({})["micro"]["f1"] == 0.0


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="give 'default' or 'strict'"):
        entity_report([["O"]], [["O"]], "loose")


def test_tags_are_listed_by_type_and_o_comes_last():
    tags = ["I-a-b", "O", "B-PER", "I-LOC", "B-a-b", "I-PER", "B-LOC"]
    assert list(word_report([tags], [tags])["tags"]) == ["B-LOC", "I-LOC", "B-PER", "I-PER", "B-a-b", "I-a-b", "O"]
