"""Bad input gets one line that names the file, the place and the cure, and nothing that existed is lost.

The rows of the table of bad files, in the order in which a user meets them.
"""

import gzip
import hashlib
import random

import pytest

from fmtut.conll import Columns, DataError, Sentence, read_conll, write_conll

GOOD = "Ana\tB-PER\nran\tO\n\nLund\tB-LOC\n\n"

# name -> (bytes of the file, what the message must say)
BAD_FILES = {
    "empty": (b"", "0 sentences"),
    "only blank lines": (b"\n \n\t\n", "0 sentences"),
    "gzip": (gzip.compress(GOOD.encode()), "is compressed or UTF-16; unpack it"),
    "utf-16": (GOOD.encode("utf-16"), "is compressed or UTF-16"),
    "latin-1": (b"Ana\tB-PER\nJos\xe9\tI-PER\n", ":2: byte 13 is not utf-8; name its encoding="),
    "binary": (bytes(range(128, 256)), ":1: byte 0 is not utf-8"),
    "one column": (b"Ana\nran\n", ":1: 1 column; a word and a tag are needed"),
    "ragged": (b"Ana\tB-PER\nran\n", ":2: 1 column where the first line has 2"),
    "tabs and blanks": (b"Ana\tB-PER\nran O\n", ":2: 1 column where the first line has 2, cut at tabs"),
    "blanks, then a tab": (b"Ana B-PER\nran\tO\n", ":2: 1 column where the first line has 2, cut at blanks"),
    "label with a blank": (b"Ana\tB-PER X\n", ":1: tag 'B-PER X' is not O or"),
    "no prefix": (b"Ana\tPER\n", ":1: tag 'PER' is not O or"),
    "comment": (b"Ana O\n# text = a b c\n", ":2: 6 columns where the first line has 2, cut at blanks; comment lines?"),
    "CoNLL-U": (b"1\tAna\tAna\tPROPN\tNNP\t_\t0\troot\t_\t_\n", ":1: tag '_' is not O or"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_reader_names_file_and_line(tmp_path, name):
    content, text = BAD_FILES[name]
    path = tmp_path / "a b$c.conll"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_conll(path)
    assert str(caught.value).startswith(f"{path}:") and text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="No such file or directory; check the path"):
        read_conll(tmp_path / "none")
    with pytest.raises(DataError, match="Is a directory"):
        read_conll(tmp_path)


def test_layouts_of_one_corpus_read_alike(tmp_path):
    "BOM, line ends, blank lines, no newline at the end: 200 random layouts."
    rng = random.Random(0)
    path = tmp_path / "x.conll"
    for _ in range(200):
        end = rng.choice(["\n", "\r\n", "\r"])
        first, between, last = ("".join(rng.choice(["", " ", "\t", " \t "]) + end for _ in range(rng.randint(1, 3))) for _ in range(3))
        text = rng.choice(["", first]) + f"Ana\tB-PER{end}ran\tO{end}{between}Lund\tB-LOC" + rng.choice(["", end, end + last])
        path.write_bytes(rng.choice([b"", b"\xef\xbb\xbf"]) + text.encode())
        assert [(s.words, s.tags) for s in read_conll(path)] == [(["Ana", "ran"], ["B-PER", "O"]), (["Lund"], ["B-LOC"])]


def test_damaged_line_at_a_random_place_is_named(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "x.conll"
    for _ in range(50):
        lines = ["word\tO" for _ in range(100)]
        place = rng.randrange(1, 100)
        lines[place] = rng.choice(["word", "word\tO\tO", "word\tX-", "word O", "\t\t\t"])
        path.write_text("\n".join(lines))
        if lines[place].strip():
            with pytest.raises(DataError, match=f"x.conll:{place + 1}: "):
                read_conll(path)


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "x.conllu"
    path.write_text("# newdoc id = a\n# text = Ana\n1\tAna\tB-PER\t_\n\n# newdoc id = b\n1\tLund\tB-LOC\t_\n")
    first, second = read_conll(path, Columns(word_column=1, tag_column=2, comment="#"))
    assert (first.words, first.tags, first.document, first.line) == (["Ana"], ["B-PER"], 1, 3)
    assert (second.words, second.document) == (["Lund"], 2)


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["train", "dev", "evaluate", "inspect"])
def test_commands_refuse_bad_files_in_one_line(fmtut, tmp_path, corpus, model_dir, name, command):
    bad = tmp_path / "bad.conll"
    bad.write_bytes(BAD_FILES[name][0])
    arguments = {
        "train": ["ner", "train", "--train", bad, "--dev", corpus, "--out", tmp_path / "out"],
        "dev": ["ner", "train", "--train", corpus, "--dev", bad, "--out", tmp_path / "out"],
        "evaluate": ["ner", "evaluate", "--model", model_dir, "--data", bad],
        "inspect": ["ner", "inspect", "--train", bad],
    }[command]
    code, out, err = fmtut(*arguments)
    assert code == 1 and err.count("\n") == 1 and str(bad) in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def hashes(folder):
    "File names with the sha256 of their content."
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def old_model(tmp_path, model_dir):
    "A copy of a good model folder, with hashes."
    import shutil

    folder = tmp_path / "old model"
    shutil.copytree(model_dir, folder)
    return folder, hashes(folder)


def test_out_is_refused_without_overwrite(fmtut, old_model, corpus):
    folder, before = old_model
    code, out, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", folder)
    assert code == 1 and "exists and is not empty; name another folder, or give --overwrite" in err
    assert hashes(folder) == before


def test_bad_data_leaves_the_old_model_whole(fmtut, old_model, corpus, tmp_path):
    folder, before = old_model
    bad = tmp_path / "bad.conll"
    bad.write_text("Ana PER\n")
    assert fmtut("ner", "train", "--train", corpus, "--dev", bad, "--out", folder, "--overwrite")[0] == 1
    assert hashes(folder) == before and {path.name for path in tmp_path.iterdir()} == {"old model", "bad.conll"}


def test_overwrite_spares_a_folder_that_is_no_model(fmtut, tmp_path, corpus):
    (tmp_path / "letters.txt").write_text("dear")
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path, "--overwrite")
    assert code == 1 and "holds letters.txt, which no run of ours has written" in err and (tmp_path / "letters.txt").read_text() == "dear"
    code, _, err = fmtut("ner", "demo", "--out", tmp_path, "--sentences", 50, "--epochs", 1)
    assert code == 1 and "replaces only what an earlier demo wrote" in err and (tmp_path / "letters.txt").exists()


def test_overwrite_spares_the_users_files_in_a_model_folder(fmtut, old_model, corpus):
    "The data file that was put into the model's folder must not be deleted by training on it."
    import shutil

    folder, before = old_model
    shutil.copy(corpus, folder / "train.conll")
    code, _, err = fmtut("ner", "train", "--train", folder / "train.conll", "--dev", corpus, "--out", folder, "--overwrite")
    assert code == 1 and "holds train.conll, which no run of ours has written" in err
    assert hashes(folder).items() >= before.items() and (folder / "train.conll").read_text() == corpus.read_text()


def test_out_through_a_link_reaches_the_folder_behind_it(fmtut, old_model, corpus, tmp_path):
    folder, before = old_model
    (tmp_path / "link").symlink_to(folder)
    assert fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "link", "--overwrite", "--epochs", 1)[0] == 0
    assert (tmp_path / "link").is_symlink() and hashes(folder) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old model"]


@pytest.mark.parametrize("place", [".", "..", "/", "/proc/x", "~nobody-here/x"])
def test_impossible_places_are_refused_before_training(fmtut, corpus, place):
    code, out, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", place)
    assert code == 1 and place in err and err.count("\n") == 1 and "epoch" not in out


def test_disk_full_while_saving_names_the_folder(fmtut, old_model, corpus, monkeypatch):
    from transformers import BertForTokenClassification

    folder, before = old_model
    def full(*_, **__): raise Exception("I/O error: No space left on device (os error 28)") # as safetensors says it
    monkeypatch.setattr(BertForTokenClassification, "save_pretrained", full)
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", folder, "--overwrite", "--epochs", 1)
    assert code == 1 and str(folder) in err and "No space left on device" in err and "free some space" in err
    assert hashes(folder) == before and sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.checkpoints"]


def test_scores_go_to_pipes_links_and_devices_as_they_are(fmtut, corpus, model_dir, tmp_path):
    import os
    import threading

    arguments = ["ner", "evaluate", "--model", model_dir, "--data", corpus, "--json"]
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    assert fmtut(*arguments, pipe)[0] == 0
    reader.join(10)
    assert pipe.is_fifo() and '"entity"' in received[0]
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    assert fmtut(*arguments, tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink() and '"entity"' in (tmp_path / "real.json").read_text()
    for place in ["", tmp_path, tmp_path / "none" / "x.json"]:
        code, out, err = fmtut(*arguments, place)
        assert code == 1 and "no file can be written there" in err and not out


@pytest.mark.parametrize("count", [-1, 0, 49, 5001])
def test_demo_with_too_few_or_too_many_sentences(fmtut, tmp_path, count):
    code, _, err = fmtut("ner", "demo", "--out", tmp_path / "out", "--sentences", count)
    assert code == 2 and f"--sentences is {count}; give from 50" in err


def test_out_is_a_file(fmtut, corpus, tmp_path):
    (tmp_path / "f").write_text("x")
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "f")
    assert code == 1 and "is a file; name a folder" in err
    code, out, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "f" / "below")
    assert code == 1 and "cannot be written (Not a directory); choose another folder" in err and "epoch" not in out


def test_failure_in_mid_training_leaves_the_old_model_whole(fmtut, old_model, corpus, monkeypatch):
    import fmtut.ner as ner

    folder, before = old_model
    monkeypatch.setattr(ner, "evaluate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", folder, "--overwrite", "--epochs", 1)
    assert code == 1 and "No space left on device" in err and hashes(folder) == before


@pytest.mark.parametrize("split", ["dev", "test"])
def test_type_that_only_dev_or_test_has_is_named(fmtut, tmp_path, corpus, split):
    other = tmp_path / "other.conll"
    other.write_text("Ana\tB-PER\n\na\tO\ncup\tB-EVENT\n")
    files = {"train": corpus, "dev": corpus, "test": corpus} | {split: other}
    code, out, err = fmtut("ner", "train", *(part for name, path in files.items() for part in (f"--{name}", path)),
                           "--out", tmp_path / "out")
    assert code == 1 and f"{other}:4: tag B-EVENT is of a type that the model does not have (LOC, ORG, PER)" in err
    assert "epoch" not in out and not (tmp_path / "out").exists()


def test_unknown_type_at_evaluation_is_named(fmtut, tmp_path, model_dir):
    other = tmp_path / "other.conll"
    other.write_text("a\tO\ncup\tI-EVENT\n")
    code, _, err = fmtut("ner", "evaluate", "--model", model_dir, "--data", other)
    assert code == 1 and f"{other}:2: tag I-EVENT" in err


def test_schemes_are_normalised_and_said(fmtut, tmp_path, model_dir):
    "Ill-formed, lower case, BIOES and bare tags: one line says what was found."
    files = {"IOB1": "Ana\tI-PER\nOkafor\tI-PER\n", "BIOES": "Ana\tB-PER\nOkafor\tE-PER\n", "BILOU": "Ana\tU-PER\n",
             "ill-formed IOB": "Ana\tb-PER\nOkafor\ti-PER\nran\tO\nLund\tI-LOC\n"}
    for scheme, text in files.items():
        path = tmp_path / "x.conll"
        path.write_text(text)
        code, out, _ = fmtut("ner", "evaluate", "--model", model_dir, "--data", path)
        assert code == 0 and f"{path}: 1 sentences, {scheme}, " in out and "tags changed to IOB2" in out
        assert path.read_text() == text


def test_warnings_carry_numbers(fmtut, tmp_path, corpus):
    all_o = tmp_path / "o.conll"
    all_o.write_text("a\tO\n\na\tO\n\n")
    code, out, _ = fmtut("ner", "train", "--train", all_o, "--dev", all_o, "--out", tmp_path / "out", "--epochs", 1)
    assert code == 0
    assert "warning: 2 of 2 dev sentences stand word for word in train" in out
    assert "warning: 1 of 2 training sentences are repeats" in out
    assert "warning: no entity in train" in out and "warning: no dev entity was found in any epoch" in out


def test_home_folder_in_paths(fmtut, tmp_path, corpus, monkeypatch):
    "A quoted ~ reaches the program as it is."
    import shutil

    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(corpus, tmp_path / "train.conll")
    assert fmtut("ner", "train", "--train", "~/train.conll", "--dev", "~/train.conll", "--out", "~/out", "--epochs", 1)[0] == 0
    assert fmtut("ner", "evaluate", "--model", "~/out", "--data", "~/train.conll", "--json", "~/scores.json")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"train.conll", "out", "scores.json"}


# --- words without pieces, and very long ones ----------------------------------------------------


def test_words_without_pieces_are_counted(fmtut, tmp_path, corpus):
    odd = tmp_path / "odd.conll"
    odd.write_text(corpus.read_text() + "\n\u200b\tO\n\u00ad\tO\n", encoding="utf-8")
    code, out, _ = fmtut("ner", "train", "--train", odd, "--dev", corpus, "--out", tmp_path / "out", "--epochs", 1)
    assert code == 0 and "warning: 2 training words give no piece and are read as [UNK]" in out


def test_every_word_of_an_odd_text_keeps_one_tag(tmp_path, model_dir, fmtut):
    "Words without pieces at start, middle and end; 10,000 words; a word of a megabyte: counted, never cut."
    odd = ["\u200b", "\u00ad", "\ufeff", "\x00", "\ufffd", "\ufe0f", "\x1f", "a\u2028b", "\u3000", "x" * 1_000_000, "a-" * 5_000]
    sentences = [odd, ["Ana", *odd, "Lund"], ["Lund", "won"] * 5_000]
    path = tmp_path / "odd.conll"
    write_conll(path, [Sentence(words, ["O"] * len(words), 1) for words in sentences])
    code, out, err = fmtut("ner", "predict", "--model", model_dir, "--input", path, "--input-format", "conll")
    assert code == 0, err
    blocks = [block.split("\n") for block in out.strip("\n").split("\n\n")]
    assert [[line.split("\t")[0] for line in block] for block in blocks] == sentences


def test_lone_surrogate_in_a_text(model_dir):
    from fmtut.ner import Tagger

    result = Tagger(model_dir)([["Ana", "\ud800", "ran"]])[0]
    assert result.words == ["Ana", "\ud800", "ran"] and len(result.tags) == 3


def test_order_of_the_input_is_kept(model_dir):
    from fmtut.ner import Tagger

    tagger = Tagger(model_dir)
    texts = ["Ana " * n for n in random.Random(0).sample(range(40), 40)]
    assert [result.text for result in tagger(texts)] == texts
    assert [result.tags for result in tagger(texts[::-1])] == [result.tags for result in tagger(texts)][::-1]


# --- models and settings -------------------------------------------------------------------------


def test_bad_model_folders(fmtut, tmp_path, corpus, model_dir):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(model_dir, damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "empty").mkdir()
    cases = {damaged: "damaged or incomplete", tmp_path / "empty": "holds no config.json", tmp_path / "none": "no such folder",
             corpus: "is a file", "no-such-name": "no such folder, and the hub cannot be reached"}
    for model, text in cases.items():
        for arguments in (["evaluate", "--data", corpus], ["predict", "--input", corpus]):
            code, _, err = fmtut("ner", *arguments, "--model", model)
            assert code == 1 and text in err and str(model) in err and err.count("\n") == 1, err


def test_base_model_is_no_tagger(fmtut, tmp_path, corpus, model_dir):
    from transformers import AutoTokenizer, BertConfig, BertModel

    config = BertConfig.from_pretrained(model_dir)
    config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    BertModel(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path / "base")
    code, _, err = fmtut("ner", "predict", "--model", tmp_path / "base", "--input", corpus)
    assert code == 1 and "has no NER head" in err and "fmtut ner train --model DIR --train FILE --dev FILE --out DIR" in err
    code, out, err = fmtut("ner", "train", "--model", tmp_path / "base", "--train", corpus, "--dev", corpus, "--out", tmp_path / "out", "--epochs", 1)
    assert code == 0, err
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("flag, value", [("--epochs", "0"), ("--epochs", "2.5"), ("--learning-rate", "nan"), ("--learning-rate", "inf"),
                                         ("--learning-rate", "-1"), ("--batch-size", "x"), ("--seed", "4294967296"), ("--warmup", "1.5"),
                                         ("--patience", "0"), ("--max-length", "2"), ("--epoch", "3"), ("--device", "tpu")])
def test_bad_settings_are_usage_errors(fmtut, tmp_path, corpus, flag, value):
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "out", flag, value)
    assert code == 2 and flag in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_window_longer_than_the_model(fmtut, tmp_path, corpus):
    code, _, err = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "out", "--max-length", 1024)
    assert code == 1 and "max_length is 1024; the model has 512 positions" in err


def test_cuda_where_there_is_none(fmtut, corpus, model_dir):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, _, err = fmtut("ner", "evaluate", "--model", model_dir, "--data", corpus, "--device", "cuda")
    assert code == 1 and "torch sees no GPU here; use --device cpu" in err


def test_fewer_sentences_than_a_batch_still_train(fmtut, tmp_path, corpus):
    code, out, _ = fmtut("ner", "train", "--train", corpus, "--dev", corpus, "--out", tmp_path / "a b $c", "--batch-size", 64, "--epochs", 1)
    assert code == 0 and "epoch 1/1" in out and (tmp_path / "a b $c" / "report.json").exists()
