"Batching at its edges: nests of every build, empty data, workers of every kind, and the global generators left alone."

import multiprocessing
import os
import subprocess
import sys
import time
from collections import UserDict, namedtuple
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from fmtut.batching import (BucketSampler, BudgetSampler, TokenDataset, WorkerError, bucket_batches, check_sendable, count_tokens,
                            epoch_batches, pack, pad, padded_batches, sorted_batches, to_device, token_budget, training_batches)
from fmtut.checks.batching import QUIZ
from fmtut.losses import IGNORE_INDEX

Pair = namedtuple("Pair", "name x")
LENGTHS = [1 + i * i % 47 for i in range(300)]
METHODS = [pytest.param("fork", marks=pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")),
           pytest.param("spawn", marks=pytest.mark.slow)]


def sentences(lengths=LENGTHS):
    "A data set with these lengths, each sentence different."
    return TokenDataset([{"input_ids": list(range(i, i + n)), "labels": [i % 7] * n} for i, n in enumerate(lengths)])


def passed(loader, *place):
    "The padded rows of one pass."
    return [{key: rows.tolist() for key, rows in batch.items()} for batch in epoch_batches(loader, *place)]


# Orders


def test_order_at_its_edges():
    assert bucket_batches([3, 1], 4, 0, 0) == [[1, 0]] and bucket_batches([], 4, 0, 0) == []
    with pytest.raises(ValueError, match="must not be zero"):
        bucket_batches([3, 1], 0, 0, 0)


@pytest.mark.parametrize("order", [bucket_batches, token_budget])
def test_order_leaves_the_global_generator_alone(order):
    state = torch.get_rng_state()
    order(list(range(1, 101)), 160, 0, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("order, size", [(bucket_batches, 16), (token_budget, 300)])
def test_order_differs_between_epochs_and_runs(order, size):
    pairs = [(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({str(order(LENGTHS, size, *pair)) for pair in pairs}) == len(pairs)
    assert all(sorted(chain(*order(LENGTHS, size, *pair))) == list(range(300)) for pair in pairs)


def test_no_sentences_make_no_batches():
    assert sorted_batches([]) == [] and token_budget([], 10, 0, 0) == []
    assert len(BudgetSampler([], 10, 0)) == len(BucketSampler([], 10, 0)) == 0


@pytest.mark.parametrize("max_tokens", [1, 16, 40, 100, 512, 10**6])
def test_budget_is_kept_and_its_number_of_batches_fixed(max_tokens):
    plans = [token_budget(LENGTHS, max_tokens, seed, epoch) for seed in range(3) for epoch in range(4)]
    assert len({len(plan) for plan in plans}) == 1
    for batch in chain(*plans):
        assert len(batch) == 1 or len(batch) * max(LENGTHS[i] for i in batch) <= max_tokens


def test_budget_separates_long_sentences_that_met():
    "Rare long sentences would meet the same few again if only equal lengths were shuffled."
    long = [40 + i for i in range(20)] * 4
    first, second = ({pair for batch in token_budget(long, 256, 0, epoch) for pair in zip(sorted(batch), sorted(batch)[1:])} for epoch in (0, 1))
    assert len(first & second) < 0.35 * len(first)


@pytest.mark.parametrize("sampler", [BucketSampler(LENGTHS, 16, 3), BudgetSampler(LENGTHS, 300, 3)])
def test_sampler_begins_anywhere(sampler):
    for epoch in range(3):
        plan = sampler.plan(epoch)
        assert len(plan) == len(sampler)
        for start in 0, 1, len(plan) - 1, len(plan), len(plan) + 5:
            sampler.set_epoch(epoch, start)
            assert list(sampler) == plan[start:] and len(sampler) == len(plan)


# Rectangles


def plain_pad(examples, pad_id):
    "The first version: lists filled one by one."
    longest = max(len(example["input_ids"]) for example in examples)
    fill = {"input_ids": pad_id, "labels": IGNORE_INDEX}
    rows = {key: torch.tensor([example[key] + [fill[key]] * (longest - len(example[key])) for example in examples]) for key in examples[0]}
    return rows | {"attention_mask": torch.tensor([[int(t < len(e["input_ids"])) for t in range(longest)] for e in examples])}


@pytest.mark.parametrize("seed", range(20))
def test_pad_is_the_plain_version(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 40, generator.integers(1, 33)).tolist()
    examples = [{"input_ids": generator.integers(0, 10**9, n).tolist(), "labels": generator.integers(-100, 9, n).tolist()} for n in lengths]
    if seed % 3 == 0:
        examples = [{"input_ids": example["input_ids"]} for example in examples]
    found, expected = pad(examples, 7), plain_pad(examples, 7)
    assert list(found) == list(expected)
    for key in expected:
        assert found[key].dtype == torch.int64 and torch.equal(found[key], expected[key]) and found[key].is_contiguous()


def test_pad_at_its_edges():
    assert pad([{"input_ids": []}, {"input_ids": [1]}])["attention_mask"].tolist() == [[0], [1]]
    assert pad([{"input_ids": np.array([1, 2], np.uint16)}, {"input_ids": torch.tensor([3])}], 9)["input_ids"].tolist() == [[1, 2], [3, 9]]
    with pytest.raises(ValueError, match="labels and input_ids differ"): # one too many, one too few: the sum fits
        pad([{"input_ids": [1, 2], "labels": [1]}, {"input_ids": [1], "labels": [1, 2]}])
    with pytest.raises(KeyError, match="word_ids"):
        pad([{"input_ids": [1], "word_ids": [0]}])
    with pytest.raises(ValueError):
        pad([])


def test_padding_and_counting_are_cheap():
    "Aims are 100 and 5 microseconds; the bounds leave room for a busy machine."
    examples = [{"input_ids": list(range(20 + i % 5)), "labels": [1] * (20 + i % 5)} for i in range(16)]
    batch = pad(examples)
    for action, limit in ((lambda: pad(examples), 400e-6), (lambda: count_tokens(batch), 25e-6)):
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < limit


def test_work_is_counted_in_any_mapping():
    assert count_tokens(UserDict(names=["a"], x=torch.zeros(3))) == 3
    assert count_tokens(["a", 1]) == 0 and count_tokens(torch.tensor(1.0)) == 1


def test_nest_keeps_its_build_when_it_moves():
    meta = torch.device("meta")
    moved = to_device({"x": torch.ones(2), "pair": Pair("id-1", [torch.ones(1), None])}, meta)
    assert moved["x"].device == moved["pair"].x[0].device == meta
    assert isinstance(moved["pair"], Pair) and moved["pair"].name == "id-1" and moved["pair"].x[1] is None


# Packing


@pytest.mark.parametrize("length", [1, 7, 128, 10**6])
def test_pack_loses_and_adds_nothing(length):
    documents = [list(range(i, i + n)) for i, n in enumerate(LENGTHS)] + [[]]
    rows, rest = pack(documents, length)
    assert rows.shape[1] == length and len(rest) < length
    assert rows.flatten().tolist() + rest.tolist() == list(chain(*documents))


def test_pack_keeps_the_type_and_takes_any_sequence():
    assert pack([np.array([1, 65535], np.uint16), np.array([3], np.uint16)], 3)[0].dtype == torch.uint16
    assert pack(([1, 2], torch.tensor([3]), np.array([4])), 2)[0].tolist() == [[1, 2], [3, 4]]
    assert pack(iter([]), 5)[0].shape == (0, 5) and len(pack([[], []], 5)[1]) == 0
    source = np.arange(4)
    pack([source], 2)[0].zero_()
    assert source.tolist() == [0, 1, 2, 3]


def test_pack_is_fast():
    "Fifty million pieces take under a second; a fiftieth of that leaves room for a busy machine."
    documents = list(np.zeros(10**6, np.uint16).reshape(-1, 500))
    start = time.perf_counter()
    pack(documents, 128)
    assert time.perf_counter() - start < 0.5


# Workers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_workers_change_nothing(method, workers):
    data = sentences()
    for sampler in BucketSampler(LENGTHS, 16, 0), BudgetSampler(LENGTHS, 300, 0):
        alone, helped = padded_batches(data, sampler, 9), padded_batches(data, sampler, 9, workers)
        helped.multiprocessing_context = method
        assert passed(alone, 0) != passed(alone, 1) and passed(alone, 1, 4) == passed(alone, 1)[4:]
        state = torch.get_rng_state()
        next(iter(epoch_batches(helped, 0))) # broken off: what was fetched ahead must not come back
        for place in (0,), (1,), (1, 4), (0, 0):
            assert passed(helped, *place) == passed(alone, *place)
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_trainer_with_workers_learns_the_same():
    from fmtut.training import Recipe, Trainer

    def run(workers):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(600, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 7))
        loss = lambda model, batch: (torch.nn.functional.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()), 1)
        batches = padded_batches(sentences(), BudgetSampler(LENGTHS, 900, 0), workers=workers)
        Trainer(model, loss, batches, Recipe(epochs=2, learning_rate=1e-2)).fit()
        return model.state_dict()

    alone, helped = run(0), run(2)
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_dies_is_named_and_replaced(method):
    before = multiprocessing.active_children()
    loader = training_batches(sentences(), 4, 0, workers=1)
    loader.multiprocessing_context = method
    batches = epoch_batches(loader, 0)
    next(batches)
    with pytest.raises(RuntimeError, match="worker") as caught: # torch's own if its signal handler is first
        next(child for child in multiprocessing.active_children() if child not in before).kill()
        list(batches)
    if not isinstance(caught.value, WorkerError):
        with pytest.raises(WorkerError, match="use fewer workers, or workers=0"):
            list(loader)
    assert passed(loader, 1, 2) == passed(training_batches(sentences(), 4, 0), 1, 2)


class Broken(TokenDataset):
    "One example cannot be read."

    def __getitem__(self, index):
        return self.examples[index] if index != 30 else 1 / 0


class Unreadable(TokenDataset):
    "One example lies on a broken disk."

    def __getitem__(self, index):
        if index == 30:
            raise OSError("disk")
        return self.examples[index]


@pytest.mark.parametrize("kind, error, text", [(Broken, ZeroDivisionError, "in Broken|__getitem__"), (Unreadable, OSError, "disk")])
def test_an_error_of_the_data_set_stays_its_own(kind, error, text):
    loader = training_batches(kind(sentences().examples), 16, 0, workers=1)
    for _ in range(2):
        with pytest.raises(error, match=text) as caught:
            list(epoch_batches(loader, 0))
        assert "Caught" in str(caught.value)


def test_what_cannot_be_sent_is_refused():
    loader = padded_batches(sentences(), BucketSampler(LENGTHS, 16, 0), workers=1)
    loader.dataset.hook = lambda: None
    loader.multiprocessing_context = "spawn"
    with pytest.raises(WorkerError, match="cannot be sent"):
        iter(loader)
    check_sendable(sentences())


SCRIPT = """
import sys
from fmtut.batching import *
from fmtut.batching import TokenDataset, training_batches
class Mine(TokenDataset): pass
if __name__ == "__main__":
    loader = training_batches(Mine([{"input_ids": [n]} for n in range(9)]), 4, 0, workers=1)
    loader.multiprocessing_context = "spawn"
    print(sorted(n for batch in loader for (n,) in batch["input_ids"].tolist()))
"""


@pytest.mark.slow
def test_a_script_may_define_its_data_set_and_a_notebook_not(tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == str(list(range(9))), run.stderr
    run = subprocess.run([sys.executable, "-"], input=SCRIPT, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "defined in a notebook, which a worker process cannot import" in run.stderr and "put its class" in run.stderr


FORKED = """
import os
from tokenizers import Tokenizer, models
from fmtut.batching import TokenDataset, training_batches
os.environ.pop("TOKENIZERS_PARALLELISM", None)
Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b")).encode_batch(["a b"] * 100)
loader = training_batches(TokenDataset([{"input_ids": [n]} for n in range(9)]), 4, 0, workers=2)
print(len(list(loader)), os.environ.get("TOKENIZERS_PARALLELISM"))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_tokenizers_do_not_complain_about_forks():
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["3", "None"] and "forked" not in run.stderr, run.stderr


def test_right_choices_of_the_quiz_do_not_stand_out():
    longest = sum(len(question.right) > max(map(len, question.wrong)) for question in QUIZ)
    shortest = sum(len(question.right) < min(map(len, question.wrong)) for question in QUIZ)
    assert longest <= 2 and shortest <= 2, (longest, shortest)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shuffled_loader_has_another_order_in_each_epoch(workers):
    loader = torch.utils.data.DataLoader(torch.arange(12), 2, shuffle=True, num_workers=workers)
    torch.manual_seed(0)
    orders = [torch.cat(list(epoch_batches(loader, epoch, 0))).tolist() for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 3 and all(sorted(order) == list(range(12)) for order in orders)


def test_a_generator_of_examples_is_read_once():
    assert len(TokenDataset({"input_ids": [1] * n} for n in (1, 2, 3))) == 3
