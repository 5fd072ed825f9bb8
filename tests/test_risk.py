"Splits and the split report: properties over many random cases that teach nothing in the chapter."

import time

import numpy as np
import pytest
from scipy.stats import chi2

from fmtut.risk import (
    chi_square,
    compare_splits,
    count_labels,
    empirical_risk,
    group_split,
    part_sizes,
    shuffled_sums,
    split,
    split_report,
    stratified_split,
)


def test_no_size_is_off_by_a_whole_example():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        shares, count = rng.dirichlet(np.full(4, 5)), int(rng.integers(300, 3000))
        sizes = part_sizes(count, shares)
        assert sizes.sum() == count and (abs(sizes - count * shares) < 1).all()


@pytest.mark.parametrize("shares", [[0.5, -0.1, 0.6], [0.5, 0.4], [float("nan"), 1], [1, 0], []])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="not positive with sum 1"):
        part_sizes(100, shares)


def test_float_shares_that_nearly_sum_to_one():
    assert part_sizes(10**9, [0.7, 0.2, 0.1]).tolist() == [7 * 10**8, 2 * 10**8, 10**8]
    assert part_sizes(10, [0.1] * 10).tolist() == [1] * 10


@pytest.mark.parametrize("parts, bound", [(2, 1 + 1e-9), (3, 2)])
def test_stratified_keeps_sizes_and_shares(parts, bound):
    rng = np.random.default_rng(1)
    for seed in range(300):
        labels, shares = rng.integers(0, 8, 300), rng.dirichlet(np.full(parts, 5))
        found, sizes = stratified_split(labels, shares, seed), part_sizes(300, shares)
        table = np.array([np.bincount(labels[part], minlength=8) for part in found])
        assert table.sum(1).tolist() == sizes.tolist() and len(set(np.concatenate(found))) == 300
        assert (abs(table - np.outer(sizes / 300, np.bincount(labels, minlength=8))) <= bound).all()


def test_stratified_is_fair_to_small_classes_and_to_each_example():
    labels = np.repeat(np.arange(40), 5)
    dev = np.zeros(200)
    for seed in range(1000):
        train, second, third = stratified_split(labels, [0.8, 0.1, 0.1], seed)
        assert (len(train), len(second), len(third)) == (160, 20, 20)
        dev[second] += 1
    assert abs(dev.mean() - 100) < 1e-9 and abs(dev - 100).max() < 5 * np.sqrt(1000 * 0.1 * 0.9)


def test_group_split_cuts_no_group_and_leaves_no_part_empty():
    rng = np.random.default_rng(2)
    for seed in range(300):
        groups = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 20, 30)))
        parts, largest = group_split(groups, [0.7, 0.2, 0.1], seed), np.bincount(groups).max()
        owners = [set(groups[part]) for part in parts]
        assert all(owners) and len(set.union(*owners)) == sum(map(len, owners)) == 30
        assert (abs(np.array([len(part) for part in parts]) - part_sizes(len(groups), [0.7, 0.2, 0.1])) <= 2 * largest).all()
    for seed in range(20):
        assert all(map(len, group_split(["a"] * 40 + ["b"] * 40 + ["c"] * 20, [0.8, 0.1, 0.1], seed)))


def test_seed_decides():
    labels, groups = np.arange(100) % 4, np.arange(100) // 5
    for make in (lambda s: split(100, [0.5, 0.5], s), lambda s: stratified_split(labels, [0.5, 0.5], s), lambda s: group_split(groups, [0.5, 0.5], s)):
        first, again, other = make(1), make(1), make(2)
        assert all((a == b).all() for a, b in zip(first, again)) and first[0].tolist() != other[0].tolist()
        assert all(part.dtype.kind == "i" and (np.diff(part) > 0).all() for part in first)


def test_empirical_risk_takes_torch_with_gradients():
    import torch

    x, y = torch.randn(10, 3), torch.randn(10)
    model = torch.nn.Linear(3, 1)
    found = empirical_risk(lambda x: model(x)[:, 0], lambda a, b: (a - b) ** 2, [(x[:7], y[:7]), (x[7:], y[7:])])
    assert isinstance(found, float) and abs(found - ((model(x)[:, 0] - y) ** 2).mean().item()) < 1e-6


def test_shuffles_agree_with_the_table_where_examples_are_independent():
    rng = np.random.default_rng(3)
    for seed in range(5):
        counts = count_labels(rng.integers(0, 6, 3000))[1]
        parts = split(3000, [0.7, 0.3], seed)
        observed = np.stack([counts[part].sum(0) for part in parts])
        p, expected = compare_splits(observed, shuffled_sums(counts, [2100, 900], 2000, seed)).p, chi2.sf(chi_square(observed), 5)
        assert abs(p - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000) + 0.005


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(4)
    counts = count_labels([["A"] * rng.integers(0, 9) + ["B"] * rng.integers(1, 9) for _ in range(100)])[1]
    p = []
    for seed in range(1000):
        observed = np.stack([counts[part].sum(0) for part in split(100, [0.8, 0.2], 10_000 + seed)])
        p.append(compare_splits(observed, shuffled_sums(counts, [80, 20], 99, seed)).p)
    for level in (0.05, 0.1, 0.5):
        assert abs((np.array(p) <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 1000)


def test_a_corpus_takes_a_few_seconds():
    rng = np.random.default_rng(5)
    tags = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC"])
    sentences = [tags[rng.integers(0, 9, length)].tolist() for length in rng.integers(1, 30, 5000)]
    begin = time.perf_counter()
    report = split_report({"train": sentences[:4000], "dev": sentences[4000:]})
    assert time.perf_counter() - begin < 10 and len(report.labels) == 9


def test_report_of_three_splits_with_empty_sentences():
    rng = np.random.default_rng(6)
    def some(n, p): return [["O"] * int(rng.integers(0, 4)) + ["B-PER"] * int(rng.random() < p) for _ in range(n)]
    report = split_report({"train": some(300, 0.5), "dev": some(60, 0.5), "test": some(60, 0.02)})
    assert report.verdicts[0].startswith("test has 0.") and "tag B-PER" in report.verdicts[0]
    assert not any(verdict.startswith("dev") for verdict in report.verdicts)
    assert {name: len(words) for name, words in report.lengths.items()} == {"train": 300, "dev": 60, "test": 60}
    assert "length: chi-square" in repr(report)


def test_report_of_one_label_only_and_of_labels_that_are_text():
    report = split_report({"train": ["yes"] * 20, "dev": ["yes"] * 5})
    assert report.tests["class"].statistic == 0 and report.tests["class"].p == 1 and "no more than" in report.verdicts[0]
    assert "class yes" in repr(report) and "100.0%" in repr(report)


def test_longer_sentences_are_named():
    report = split_report({"train": [["O"] * 5] * 50 + [["O"] * 6] * 50, "dev": [["O"] * 12] * 30})
    assert report.verdicts[0] == "train has no length 12 (dev has 30)"


@pytest.mark.parametrize("splits, text", [
    ({"train": [1, 2]}, "two splits or more"), ({"train": [1], "dev": []}, "'dev': 0"),
    ({"train": [["O"]], "dev": ["O"]}, "all labels or all sequences"), ({"train": [[]], "dev": [[]]}, "no sentence has a tag")])
def test_bad_splits(splits, text):
    with pytest.raises(ValueError, match=text):
        split_report(splits)


def test_one_value_per_example():
    pairs = [("doc0", n // 10) for n in range(100)]
    for make in (stratified_split, group_split):
        for bad in (pairs, np.zeros((100, 2)), [*range(99), None], [*range(99), float("nan")]):
            with pytest.raises(ValueError, match="is not one text or number: join a pair"):
                make(bad, [0.8, 0.2], 0)
        assert sum(map(len, make([f"{a}/{b}" for a, b in pairs], [0.8, 0.2], 0))) == 100


def test_tensors_are_labels_and_tags():
    import torch

    y = torch.arange(100) % 3
    assert split_report({"train": y[:80], "dev": y[80:]}).labels == [0, 1, 2]
    tags = [torch.tensor([0, 1, 1]), torch.tensor([0, 0])] * 30
    assert split_report({"train": tags[:40], "dev": tags[40:]}).lengths["dev"].tolist() == [3, 2] * 10
    assert list(map(len, stratified_split(y, [0.8, 0.2], 0))) == [80, 20]


class Sentence:
    "Stands for one of chapter 41."


@pytest.mark.parametrize("examples, text", [
    (np.eye(3)[[0, 1, 2] * 10], r"pass labels.argmax\(1\)"), (np.eye(2, dtype=bool)[[0, 1] * 10], "look like one-hot"),
    (np.linspace(0, 1, 50), "np.digitize"), (np.linspace(0, 1, 60).reshape(30, 2), "np.digitize"),
    ([None] * 9, "None is not one text or number"), ([Sentence()] * 9, "pass sentence.tags"), ([[["O"]]] * 9, "is not one text or number")])
def test_what_is_no_label(examples, text):
    with pytest.raises(ValueError, match=text):
        split_report({"train": examples[:-3], "dev": examples[-3:]})


def test_a_rare_tag_among_clusters_is_named():
    rng = np.random.default_rng(8)

    def sentence(rare):
        kind = rng.choice(["ORG", "PER"])
        return [f"B-{kind}"] * int(rng.integers(1, 20)) + ["O"] * int(rng.integers(3, 10)) + ["B-MISC"] * int(rng.random() < rare)

    reports = [split_report({"train": [sentence(0.02) for _ in range(400)], "dev": [sentence(0.1) for _ in range(200)]}, 200, seed) for seed in range(10)]
    assert sum(any("B-MISC" in verdict for verdict in report.verdicts) for report in reports) >= 9
    assert sum(report.tests["tag"].p <= 0.05 for report in reports) < 9 # chi-square alone does not see it


def test_a_class_that_is_lacking_by_chance_is_mentioned():
    report = split_report({"train": [0] * 800 + [2] * 6, "dev": [0] * 100})
    assert "no more than" in report.verdicts[0]
    assert report.verdicts[1] == "dev has no class 2 (others have 6); chance may explain that, but dev cannot measure it"
    many = split_report({"train": list(range(50)) * 4, "dev": [0] * 3})
    assert "and 44 more; chance" in many.verdicts[-1]


def test_too_few_to_tell():
    assert "too few to tell" in split_report({"train": [0] * 3, "dev": [1] * 2}).verdicts[0]
    assert "too few to tell" in split_report({"train": [0] * 100 + [1] * 5, "dev": [0]}).verdicts[0]
    with pytest.raises(ValueError, match="take 39 or more"):
        split_report({"train": [0] * 100, "dev": [1] * 100}, permutations=38)
    assert "has no class" in split_report({"train": [0] * 100, "dev": [1] * 100}, permutations=39).verdicts[0]


@pytest.mark.parametrize("train, dev, text", [
    ([2000, 2], [200, 30], "dev has 130x the share of class 1 (30 of 230 against 2 of 2,002 in train)"),
    ([50_000, 50_000], [50_600, 49_400], "dev has 0.6 points more of class 0"),
    ([10_000, 5], [10_000, 40], "dev has 8x the share of class 1 (40 of 10,040 against 5 of 10,005 in train)")])
def test_plain_words(train, dev, text):
    splits = {name: np.repeat([0, 1], n) for name, n in (("train", train), ("dev", dev))}
    assert any(verdict.startswith(text) for verdict in split_report(splits).verdicts), split_report(splits)


def test_the_least_p():
    report = split_report({"train": ["a"] * 50, "dev": ["b"] * 50})
    test = report.tests["class"]
    assert test.p == test.p_each.min() == 1 / 1001 and test.joint_p == 2 / 1001 and "(p <= 0.001)" in repr(report)


@pytest.mark.parametrize("width", [1, 3]) # one label each is dealt by number, several are shuffled
def test_sizes_of_the_shuffles(width):
    sums = shuffled_sums(np.ones((60, width), int), [40, 15, 5], 20, 0)
    assert (sums == np.array([40, 15, 5])[:, None]).all()


def test_labels_dealt_by_number_are_those_of_shuffled_examples():
    counts = np.repeat(np.eye(3, dtype=int), [50, 30, 20], axis=0)
    by_number, shuffled = shuffled_sums(counts, [60, 30, 10], 4000, 0), shuffled_sums(np.hstack([counts, counts]), [60, 30, 10], 4000, 1)[..., :3]
    n, k, total = np.array([60, 30, 10])[:, None], np.array([50, 30, 20]), 100
    mean, variance = n * k / total, n * k * (total - k) * (total - n) / total**2 / (total - 1)
    for sums in (by_number, shuffled):
        assert (sums.sum(1) == k).all() and (abs(sums.mean(0) - mean) < 5 * np.sqrt(variance / 4000)).all()
        assert (abs(sums.var(0) / variance - 1) < 0.15).all()


def test_large_tables_take_seconds():
    rng, begin = np.random.default_rng(9), time.perf_counter()
    split_report({"train": rng.integers(0, 2, 160_000), "dev": rng.integers(0, 2, 40_000)})
    split_report({"train": rng.integers(0, 1000, 16_000), "dev": rng.integers(0, 1000, 4000)})
    assert time.perf_counter() - begin < 15


def test_a_difference_of_lengths_only():
    report = split_report({"train": [["O"] * n for n in range(1, 101)], "dev": [["O"] * 100] * 50})
    assert report.tests["tag"].p == 1 and report.tests["length"].joint_p <= 0.01
    assert report.verdicts[0] == "dev has 4x the share of length 76-100 (100.0% against 25.0% in train)"
    assert "words, 95 %      95     100" in repr(report)
