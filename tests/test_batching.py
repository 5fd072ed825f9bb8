"Batching at its edges: nests of every build, empty data, and the global generators left alone."

from collections import UserDict, namedtuple

import pytest
import torch

from fmtut.batching import bucket_batches, count_tokens, sorted_batches, to_device
from fmtut.checks.batching import QUIZ

Pair = namedtuple("Pair", "name x")


def test_order_at_its_edges():
    assert bucket_batches([3, 1], 4, 0, 0) == [[1, 0]] and bucket_batches([], 4, 0, 0) == []
    with pytest.raises(ValueError, match="must not be zero"):
        bucket_batches([3, 1], 0, 0, 0)


def test_order_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    bucket_batches(list(range(1, 101)), 16, 0, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_order_differs_between_epochs_and_runs():
    pairs = [(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({str(bucket_batches(list(range(1, 101)), 16, *pair)) for pair in pairs}) == len(pairs)


def test_right_choices_of_the_quiz_do_not_stand_out():
    longest = sum(len(question.right) > max(map(len, question.wrong)) for question in QUIZ)
    shortest = sum(len(question.right) < min(map(len, question.wrong)) for question in QUIZ)
    assert longest <= 2 and shortest <= 2, (longest, shortest)


def test_no_sentences_make_no_batches():
    assert sorted_batches([]) == []


def test_work_is_counted_in_any_mapping():
    assert count_tokens(UserDict(names=["a"], x=torch.zeros(3))) == 3
    assert count_tokens(["a", 1]) == 0 and count_tokens(torch.tensor(1.0)) == 1


def test_nest_keeps_its_build_when_it_moves():
    meta = torch.device("meta")
    moved = to_device({"x": torch.ones(2), "pair": Pair("id-1", [torch.ones(1), None])}, meta)
    assert moved["x"].device == moved["pair"].x[0].device == meta
    assert isinstance(moved["pair"], Pair) and moved["pair"].name == "id-1" and moved["pair"].x[1] is None
