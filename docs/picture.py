"""Draws the README's picture from the stored results of chapter 47: `python docs/picture.py [FILE]` (or `make picture`)."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fmtut.conll import spans
from fmtut.environment import ENTITY_COLORS, load_result, plot_style
from fmtut.newswire import load_newswire

SHOWN = 4


def chosen(sentences: list, predicted: list[list[str]]) -> list[int]:
    "Numbers of short sentences whose tags are right: the first one for each set of two or more types."
    found = {}
    for number, (sentence, tags) in enumerate(zip(sentences, predicted)):
        types = frozenset(entity[0] for entity in spans(tags))
        if tags == sentence.tags and len(types) >= 2 and 8 <= len(sentence.words) and len(" ".join(sentence.words)) <= 75:
            found.setdefault(types, number)
    return sorted(found.values())[:SHOWN]


def draw_sentence(axes, y: float, words: list[str], tags: list[str]):
    "Words in a row, names in the colour of their type."
    renderer, x = axes.figure.canvas.get_renderer(), 0.0
    starts = {start: (name, end) for name, start, end in spans(tags)}
    position = 0
    while position < len(words):
        name, end = starts.get(position, ("", position + 1))
        box = {"boxstyle": "round,pad=0.2", "fc": ENTITY_COLORS[name], "ec": "none"} if name else None
        text = axes.text(x, y, " ".join(words[position:end]), color="white" if name else "black", fontsize=10, va="center", bbox=box)
        extent = axes.transData.inverted().transform(text.get_window_extent(renderer))
        if name:
            axes.text(x, y + 0.42, name, color=ENTITY_COLORS[name], fontsize=6.5, va="center")
        x, position = extent[1, 0] + 0.012 + 0.008 * bool(name), end


def draw(path: Path):
    "Tagged sentences of the test split on the left, the scores on the right."
    plot_style()
    stored, test = load_result("47_ner"), load_newswire("test")
    predicted = [line.split() for line in stored["test"]["tags"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2.5), width_ratios=[3, 1], layout="constrained")
    left.set(xlim=(0, 1), ylim=(-SHOWN + 0.4, 0.8), title="Test sentences that the tagger of chapter 47 gets right")
    left.axis("off")
    figure.canvas.draw() # the layout must be there before texts are measured
    for row, number in enumerate(chosen(test, predicted)):
        draw_sentence(left, -row, test[number].words, predicted[number])
    mean = sum(stored["f1"]["test"]) / len(stored["seeds"])
    scores = {"small BERT": mean, "linear": stored["baselines"]["linear"], "dictionary": stored["baselines"]["dictionary"]}
    bars = right.barh(list(scores)[::-1], list(scores.values())[::-1], color=["#BBBBBB", "#BBBBBB", ENTITY_COLORS["PER"]])
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.set(title=f"Entity F1 on test ({len(stored['seeds'])} seeds)", xlim=(0, 1.08), xticks=[])
    right.grid(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent / "tagger.png"))
