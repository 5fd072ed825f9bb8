"Column files and words at their edges: odd bytes, layouts and tags, and long texts in linear time."

import bz2
import io
import time

import pytest

from fmtut.conll import Columns, DataError, Sentence, numbered_lines, read_conll, read_row, split_words, stream_conll, write_conll

PLAIN = "In O\nOslo B-LOC\n\nNew B-LOC\nYork I-LOC\ngrew O\n\n"
LAYOUTS = {
    "tabs": PLAIN.replace(" ", "\t"), "Windows": PLAIN.replace("\n", "\r\n"), "old Mac": PLAIN.replace("\n", "\r"),
    "a blank on the empty line": PLAIN.replace("\n\n", "\n \n"), "no line end at the end": PLAIN.rstrip(),
    "boundary": "-DOCSTART- O\n\n" + PLAIN, "byte order mark": "\ufeff" + PLAIN,
}
LONG_TEXTS = ["a," * 20_000 + "!" * 20_000, "'s" * 20_000, "." * 40_000, "a." * 20_000, "(" * 40_000, "http://a(" + ")" * 40_000,
              "-" * 40_000, "x" * 10**6 + "." * 9, "+. " * 20_000, "a(" + ")" * 600_000]


def lines(data, **options):
    return list(numbered_lines(io.BytesIO(data), "x", **options))


def test_lines_are_cut_at_three_line_ends_only():
    assert lines("a\u2028b\x85c\x0bd\n".encode()) == [(1, "a\u2028b\x85c\x0bd")]
    assert lines(b"caf\xe9", encoding="latin-1") == [(1, "café")]


@pytest.mark.parametrize("data, place", [
    (b"a\nca\xe9\n", "x:2: byte 4"), (b"a\rb\rca\xe9\rd", "x:3: byte 6"), (b"a\r\n\xe9\r\n", "x:2: byte 3"),
    (b"\xef\xbb\xbfa\r\xe9", "x:2: byte 5"), (b"a\nb\rc\r\xe9", "x:4: byte 6"),
])
def test_bad_byte_has_its_line_and_place(data, place):
    with pytest.raises(DataError, match=f"{place} is not utf-8"):
        lines(data)


@pytest.mark.parametrize("packed", [b"\x1f\x8b\x08 gz", b"PK\x03\x04 zip", b"\xff\xfea\0", bz2.compress(b"Oslo B-LOC\n")])
def test_compressed_files_are_recognised(packed):
    with pytest.raises(DataError, match="x: is compressed or UTF-16"):
        lines(packed)


@pytest.mark.parametrize("encoding", ["utf-9", "utf-16", "hex"])
def test_encodings_that_move_the_line_feed_are_refused(encoding):
    with pytest.raises(DataError, match=f"encoding '{encoding}' is unknown or not built on ASCII"):
        lines(b"a", encoding=encoding)


@pytest.mark.parametrize("line, width, columns, message", [
    ("New York\tO", 2, Columns(), "it has a tab, the first line has none"),
    ("# text = a b", 2, Columns(), "comment='#'"),
    ("New", 1, Columns(), "1 column; a word and a tag"),
    ("New O", 2, Columns(word_column=5), "^2 columns, too few for word_column=5"),
    ("New", 1, Columns(word_column=5, tag_column=None), "^1 column, too few for word_column=5"),
    ("New", 2, Columns(), "^1 column where the first line has 2"),
])
def test_each_bad_row_has_its_message(line, width, columns, message):
    with pytest.raises(DataError, match=message):
        read_row(line, False, width, columns)


def test_stream_names_the_line():
    with pytest.raises(DataError, match="x:2: 1 column where the first line has 2"):
        list(stream_conll([(1, "a O"), (2, "b")], "x"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_hold_the_same_sentences(tmp_path, name):
    (tmp_path / "a").write_bytes(LAYOUTS[name].encode())
    assert [(s.words, s.tags) for s in read_conll(tmp_path / "a")] == [
        (["In", "Oslo"], ["O", "B-LOC"]), (["New", "York", "grew"], ["B-LOC", "I-LOC", "O"])]


@pytest.mark.parametrize("word, tag", [("a\tb", "O"), ("a\rb", "O"), ("-DOCSTART-x", "O"), ("\ud800", "O"), ("Ada", "PER"), ("Ada", " O"),
                                       ("Ada", ""), ("Ada", "B-a b"), ("Ada", "B-\udcff"), (" ", " "), ("", "")])
def test_what_cannot_be_read_back_is_not_written(tmp_path, word, tag):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(DataError, match="cannot be read back"):
        write_conll(path, [Sentence(["fine"], ["O"]), Sentence([word], [tag])])
    assert path.read_text() == "old"


def test_a_word_may_begin_like_a_packed_file(tmp_path):
    written = [Sentence([word], ["O"]) for word in ("BZhang", "BZh9", "PK", "BZhang")]
    write_conll(tmp_path / "a", written)
    assert [s.words for s in read_conll(tmp_path / "a")] == [s.words for s in written]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=range(len(LONG_TEXTS)))
def test_long_texts_take_linear_time(text):
    start = time.perf_counter()
    assert "".join(word for word, *_ in split_words(text)) == text.replace(" ", "")
    assert time.perf_counter() - start < 5
