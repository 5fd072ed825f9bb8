"""The work of the benchmark and the arms that do it.

Work: fine-tuning a BERT with random weights to give each word one of nine labels. The sentences are random numbers with the lengths of news.
An arm is a function of (model, dataset, work, options) that prepares a run and returns it as a function without arguments;
calling that trains for `work.steps` steps and returns what it recorded. The time runs from the model's first call to the return.
"""

import os
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

from fmtut.batching import TokenDataset, pad, token_loss, training_batches
from fmtut.losses import IGNORE_INDEX
from fmtut.training import Callback, CancelFit, Recipe, Trainer

LABELS, FIRST_ID = 9, 10 # the ids below FIRST_ID are [PAD], [CLS] and the like
LABELLED = 14.5 / 20 # words, which have a label, among pieces
CLS, SEP = 2, 3


class Work(NamedTuple):
    "The size of the model and of a run."

    layers: int = 6
    width: int = 384
    heads: int = 12
    inner: int = 1536
    vocabulary: int = 30522
    batch_size: int = 16
    sentences: int = 3200 # what group_by_length needs for groups of 50 batches
    steps: int = 16 # of a run in an arm with random batches; arms that sort by length do `pool`, so that all lengths occur
    pool: int = 50 # batches that are sorted together, in group_by_length and in fmtut


FULL = Work()
SMALL = Work(layers=2, width=32, heads=4, inner=64, vocabulary=512, batch_size=4, sentences=64, steps=2, pool=4)


def size_flag(work: Work) -> list[str]:
    "What tells child.py to work at the same size: its work may differ in steps, but a narrower model is that of --small."
    return ["--small"] if work.width == SMALL.width else []


def news_lengths(number: int, generator: np.random.Generator) -> np.ndarray:
    """Words of each sentence. Half are lines of a report, 6 words in the mean; half are full sentences, 23 words.

    Mean 14.5. Together with `make_sentences` this was fitted to the English training set of CoNLL-2003, which is news:
    20.0 pieces a sentence, and random batches of 16, 32, 64, 128 hold 2.42, 2.64, 2.84, 3.02 times as many positions as pieces (there: 2.38, 2.64, 2.90, 3.11).
    """
    lines = 1 + generator.poisson(generator.gamma(3.0, 5 / 3, number))
    sentences = np.maximum(2, np.rint(generator.normal(23, 10, number)))
    return np.where(generator.random(number) < 0.5, lines, sentences).clip(1, 113).astype(int)


def make_sentences(number: int, vocabulary: int, seed: int) -> TokenDataset:
    "Examples with 1.24 pieces a word, piece numbers that fall off as in language (Zipf), and a label on each word's first piece."
    generator = np.random.default_rng(seed)
    examples = []
    for words in news_lengths(number, generator):
        sizes = 1 + generator.binomial(3, 0.08, words)
        total = int(sizes.sum())
        pieces = FIRST_ID + ((vocabulary - FIRST_ID) ** generator.random(total) - 1).astype(int)
        labels = np.full(total, IGNORE_INDEX)
        first = np.cumsum(sizes) - sizes
        labels[first] = np.where(pieces[first] % 6 == 0, 1 + pieces[first] % (LABELS - 1), 0) # what can be learned
        examples.append({"input_ids": [CLS, *pieces.tolist(), SEP], "labels": [IGNORE_INDEX, *labels.tolist(), IGNORE_INDEX]})
    return TokenDataset(examples)


def make_model(work: Work, dropout: float = 0.1, seed: int = 0) -> BertForTokenClassification:
    "The same random weights for the same seed, on the GPU if there is one."
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=work.vocabulary, hidden_size=work.width, num_hidden_layers=work.layers, num_attention_heads=work.heads,
                        intermediate_size=work.inner, num_labels=LABELS, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertForTokenClassification(config).to(device())


def device() -> str:
    "cuda if there is one, else cpu."
    return "cuda" if torch.cuda.is_available() else "cpu"


def tokenizer(vocabulary: int) -> BertTokenizerFast:
    "What Hugging Face's collator wants for padding; nothing is tokenised."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        path.write_text("\n".join(special + [f"w{number}" for number in range(len(special), vocabulary)]), encoding="utf-8")
        return BertTokenizerFast(str(path))


def model_flops(lengths: list[int], labelled: int, work: Work) -> float:
    "Operations of forward and backward that the sentences need, without padding, and with the head only where there is a label."
    matrices = 6 * work.layers * (4 * work.width**2 + 2 * work.width * work.inner) * sum(lengths)
    attention = 12 * work.layers * work.width * sum(length**2 for length in lengths)
    return matrices + attention + 6 * labelled * work.width * LABELS


class Shapes:
    "Notes when a model is first called, and the mask of every batch that it is given: pieces, positions, operations."

    def __init__(self, model: nn.Module, clock: Callable[[], float]):
        self.masks, self.clock, self.began = [], clock, 0.0
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: nn.Module, args: tuple, kwargs: Mapping):
        "Keeps the mask; its sum is taken later, so that nobody waits for a GPU."
        if not self.masks:
            self.began = self.clock()
        self.masks.append(kwargs["attention_mask"])

    def pieces(self) -> int:
        "Positions that hold a piece, [CLS] and [SEP] included."
        return int(sum(mask.sum() for mask in self.masks))

    def tax(self) -> float:
        "Positions over pieces."
        return sum(mask.numel() for mask in self.masks) / max(self.pieces(), 1)

    def flops(self, work: Work) -> tuple[float, float]:
        "Operations that the pieces need, and those that were done: with padding, and with the head at every position."
        lengths = [length for mask in self.masks for length in mask.sum(1).tolist()]
        widths = [mask.shape[1] for mask in self.masks for _ in range(len(mask))]
        return model_flops(lengths, round(sum(lengths) * LABELLED), work), model_flops(widths, sum(widths), work)


# --- fmtut

class StopAfter(Callback):
    "Ends the training after some steps."

    def __init__(self, steps: int):
        self.steps = steps

    def after_step(self, trainer: Trainer):
        if trainer.step == self.steps:
            raise CancelFit


class Stamps(Callback):
    "Notes the time when each step is done."

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.times = clock, []

    def after_step(self, trainer: Trainer):
        self.times.append(self.clock())


def fmtut_arm(model: nn.Module, dataset: TokenDataset, work: Work, *, in_order: bool = False, precision: str | None = None, **settings) -> Callable:
    "Trainer, training_batches, token_loss and Recipe, with chapter 25's engine as in `fmtut.ner`; each with its defaults but for the batch size."
    from fmtut.distributed import engine # here: it takes memory, which is measured for each arm

    given = {"batch_size": work.batch_size, "epochs": 1} | ({"precision": precision} if precision else {}) | settings
    recipe = Recipe(**given)
    if in_order:
        batches = DataLoader(dataset, work.batch_size, collate_fn=pad)
    else:
        batches = training_batches(dataset, work.batch_size, recipe.seed)
    trainer = Trainer(model, token_loss, batches, recipe, [*engine(recipe), StopAfter(work.steps)])

    def run() -> list[dict]:
        return trainer.fit().steps
    return run


# --- a plain loop

def plain_arm(model: nn.Module, dataset: TokenDataset, work: Work, *, in_order: bool = False, precision: str = "fp32",
              learning_rate: float = 5e-5, weight_decay: float = 0.01, **_) -> Callable:
    "What nanoGPT's train.py does: fused AdamW, weight decay on matrices, clipping, random batches, no number read inside."
    where = device()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    loader = DataLoader(dataset, work.batch_size, shuffle=not in_order, collate_fn=pad, pin_memory=where == "cuda")
    total = len(loader)
    autocast = torch.autocast(where, torch.bfloat16) if precision == "bf16" else nullcontext()

    def run() -> list[dict]:
        losses = []
        model.train()
        for step, batch in enumerate(loader):
            if step == work.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (total - step) / total
            batch = {key: value.to(where, non_blocking=True) for key, value in batch.items()}
            with autocast:
                loss = model(**batch).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(torch.stack([loss.detach(), norm]))
        return [{"loss": loss, "gradient_norm": norm} for loss, norm in torch.stack(losses).tolist()]
    return run


# --- Hugging Face

def hugging_face_arm(model: nn.Module, dataset: TokenDataset, work: Work, *, strategy: str = "random", in_order: bool = False,
                     log: bool = False, **arguments) -> Callable:
    "transformers.Trainer with its defaults, but no progress bar, no files and, unless asked for, no logs; the usual collator for token labels."
    from transformers import DataCollatorForTokenClassification, PrinterCallback, TrainingArguments, logging
    from transformers import Trainer as HuggingFaceTrainer

    logging.set_verbosity_error()
    given = {"per_device_train_batch_size": work.batch_size, "max_steps": work.steps} | arguments
    options = TrainingArguments(
        output_dir=os.path.join(tempfile.gettempdir(), "fmtut-benchmark"), report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1 if log else 500, train_sampling_strategy="sequential" if in_order else strategy, **given)
    trainer = HuggingFaceTrainer(model=model, args=options, train_dataset=dataset,
                                 data_collator=DataCollatorForTokenClassification(tokenizer(work.vocabulary)))
    trainer.remove_callback(PrinterCallback)

    def run() -> list[dict]:
        trainer.train()
        return [{"loss": row["loss"], "gradient_norm": row["grad_norm"]} for row in trainer.state.log_history if "loss" in row]
    return run


def arms() -> dict[str, Callable]:
    "Name -> arm. On a GPU the tuned ones get the number formats that it is fast in; on a CPU all compute in fp32."
    gpu = device() == "cuda"
    fast = {"bf16": True, "tf32": True} if gpu else {}
    found = {
        "fmtut": fmtut_arm,
        "hf_default": hugging_face_arm,
        "hf_grouped": partial(hugging_face_arm, strategy="group_by_length", **fast),
        "plain_loop": partial(plain_arm, precision="bf16" if gpu else "fp32"),
    }
    return found | ({f"fmtut_{name}": partial(fmtut_arm, precision=name) for name in ("fp32", "tf32", "bf16")} if gpu else {})


def missing_reason(name: str) -> str | None:
    "Why an arm cannot run; None if it can."
    if name.startswith("hf"):
        try:
            import accelerate # noqa: F401
            from transformers import TrainingArguments
        except ImportError:
            return 'Hugging Face\'s Trainer needs accelerate: pip install -e ".[bench]"'
        if not hasattr(TrainingArguments, "train_sampling_strategy"):
            return 'this transformers has no train_sampling_strategy: pip install -e ".[bench]"'
    return None


def set_seed(seed: int):
    "For the order and the dropout of an arm that draws from the global generators."
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
