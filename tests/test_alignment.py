"Alignment at its edges: empty input, words that a lower-casing tokenizer deletes, ill-formed tags."

import pytest
from transformers import BertTokenizerFast

from fmtut.alignment import describe, encode_sentence, merge_windows, owned_words, word_pieces
from fmtut.conll import Sentence
from fmtut.tokenizer import count_words, train_wordpiece


@pytest.fixture
def lowercase(tmp_path):
    "A tokenizer without case, whose pieces come from a few words."
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(train_wordpiece(count_words(["lund won the cup"]), 60)), encoding="utf-8")
    return BertTokenizerFast(str(path), do_lower_case=True)


def test_nothing_gives_nothing(lowercase):
    assert word_pieces(lowercase, []) == [] and encode_sentence([], [], lowercase, 128) == []
    assert merge_windows([], []) == [] and owned_words([]) == []


def test_marks_vanish_without_case(lowercase):
    first, second = word_pieces(lowercase, [["\ufe0f", "won"]])[0]
    assert first == [] and second # a variation selector, as in emoji


def test_ill_formed_tags_are_counted(lowercase):
    assert describe([Sentence(["lund", "cup", "won"], ["I-LOC", "O", "B-LOC"])], lowercase)["ill-formed tags"] == 1
