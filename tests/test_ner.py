"The tagger at its edges: seeds, unread words, wrong sizes, saved folders, lost heads, odd input."

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForTokenClassification

from fmtut.conll import DataError, Sentence, split_words
from fmtut.decoding import Entity, Tagged, tagged
from fmtut.ner import (
    NERDataset,
    Tagger,
    evaluate,
    fit,
    labels_of,
    load_model,
    place_words,
    predict_tags,
    save_model,
    set_labels,
    small_bert,
    small_tokenizer,
    train_to_folder,
    word_log_probs,
)
from fmtut.newswire import load_newswire
from fmtut.training import Recipe, RecipeError
from fmtut.weights import ModelError


@pytest.fixture(scope="module")
def few():
    return load_newswire("train")[:60]


@pytest.fixture(scope="module")
def model_and_tokenizer(few):
    return small_bert(few)


@pytest.fixture(scope="module")
def folder(model_and_tokenizer, tmp_path_factory):
    "A saved, untrained tagger."
    place = tmp_path_factory.mktemp("ner") / "model"
    save_model(*model_and_tokenizer, Recipe(epochs=3), place, history={"steps": []})
    return place


def test_vocabulary_is_repeatable_and_complete(few):
    tokenizer = small_tokenizer(few)
    assert small_tokenizer(few).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.unk_token_id not in tokenizer(" ".join(few[0].words)).input_ids


def test_weights_follow_the_seed(few, model_and_tokenizer):
    again, _ = small_bert(few)
    other, _ = small_bert(few, seed=1)
    model = model_and_tokenizer[0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))
    assert not torch.equal(model.classifier.weight, other.classifier.weight)


def test_equal_labels_keep_the_head():
    toy = BertForTokenClassification(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    set_labels(toy, ["O", "B-X", "I-X"])
    head = toy.classifier
    set_labels(toy, labels_of(toy))
    assert toy.classifier is head and head.out_features == 3


def test_windows_are_short_and_unread_words_counted(few, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    dataset = NERDataset(few, tokenizer, labels_of(model), 16)
    assert max(dataset.lengths) <= 16 and dataset.unread_words == 0
    assert NERDataset([Sentence(["\u200b", "Ana"], ["O", "O"])], tokenizer, ["O"], 16).unread_words == 1


def test_answers_keep_the_order_of_the_questions(model_and_tokenizer):
    words = [sentence.words for sentence in load_newswire("test")[:12]] + [[], ["\u200b"], ["Lund"] * 700]
    assert predict_tags(*model_and_tokenizer, words[::-1]) == predict_tags(*model_and_tokenizer, words)[::-1]
    assert word_log_probs(*model_and_tokenizer, []) == []


def test_no_sentences_and_too_many_positions(few, model_and_tokenizer):
    with pytest.raises(DataError, match="dev: 0 sentences"):
        fit(*model_and_tokenizer, few, [])
    with pytest.raises(DataError, match="train: 0 sentences"):
        fit(*model_and_tokenizer, [], few)
    with pytest.raises(DataError, match="test: 0 sentences"):
        evaluate(*model_and_tokenizer, [])
    with pytest.raises(RecipeError, match="max_length is 1024; the model has 512"):
        fit(*model_and_tokenizer, few, few, Recipe(max_length=1024))


def test_a_folder_is_complete(folder, model_and_tokenizer):
    model, tokenizer = load_model(folder)
    assert tokenizer.model_max_length == model_and_tokenizer[1].model_max_length and labels_of(model) == labels_of(model_and_tokenizer[0])
    assert Recipe(**json.loads((folder / "recipe.json").read_text())) == Recipe(epochs=3)
    assert json.loads((folder / "history.json").read_text()) == {"steps": []}


def test_a_lost_head_is_found(folder, tmp_path):
    "The config promises labels; a fresh head would answer at random."
    headless = tmp_path / "headless"
    shutil.copytree(folder, headless)
    weights = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "classifier" not in key}, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="the weights have no head"):
        load_model(headless)


def test_a_run_leaves_its_reports(few, tmp_path):
    dev, test = load_newswire("dev")[:20], load_newswire("test")[:20]
    reports = train_to_folder(*small_bert(few), {"train": few[:40], "dev": dev, "test": test}, Recipe(epochs=1, max_length=64), tmp_path / "out")
    assert set(reports) == {"dev", "test"}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(reports))
    assert load_model(tmp_path / "out")[1].model_max_length == 64


def test_offsets_count_the_characters_of_the_text():
    log_probs = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]).log().numpy()
    found = tagged("Ana  Okafor ran", split_words("Ana  Okafor ran"), log_probs, ["O", "B-PER", "I-PER"])
    assert found == Tagged("Ana  Okafor ran", ["Ana", "Okafor", "ran"], ["B-PER", "I-PER", "O"], found.entities)
    assert found.entities == [Entity("PER", "Ana  Okafor", 0, 2, 0, 11, found.entities[0].confidence)]
    assert abs(found.entities[0].confidence - 0.8 * 0.5) < 1e-6


def test_place_words_of_nothing():
    assert place_words([]) == []


def test_tagger_takes_odd_input(folder):
    tagger, test = Tagger(folder), load_newswire("test")
    assert tagger("Ana Okafor, of Lund, won\u00a0it.").words == ["Ana", "Okafor", ",", "of", "Lund", ",", "won", "it", "."]
    assert tagger([]) == [] and tagger("").entities == [] and tagger([[]])[0].words == []
    assert tagger([s.words for s in test[:5]])[3].words == test[3].words


@pytest.mark.parametrize("wrong", [None, 3, ["a", ["b"]], [["a", 1]], ("a",)], ids=str)
def test_tagger_refuses_what_is_no_text(folder, wrong):
    with pytest.raises(TypeError, match="give a str, a list of str"):
        Tagger(folder)(wrong)
