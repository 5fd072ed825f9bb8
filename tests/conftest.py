"Settings that every test needs, before anything imports transformers or torch."

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2") # the tests are made for two cores
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: # a shell's background job ignores Ctrl-C, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    "The folder of real corpora that lies beside the checkout; without it the test is skipped."
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared data absent")
    return folder


def pytest_collection_modifyitems(items):
    "Skips tests marked `gpu` where torch sees no GPU; torch is imported only if there is such a test."
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA"))


TRAIN = """Ana\tB-PER
Okafor\tI-PER
flew\tO
to\tO
Lund\tB-LOC
.\tO

Rovers\tB-ORG
beat\tO
Lund\tB-ORG
United\tI-ORG
.\tO
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    "A file of two labelled sentences with three types."
    path = tmp_path_factory.mktemp("corpus") / "train.conll"
    path.write_text(TRAIN, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, corpus) -> Path:
    "A saved tagger with random weights; read it, never write to it."
    from fmtut.conll import read_conll
    from fmtut.ner import FROM_SCRATCH, save_model, small_bert

    folder = tmp_path_factory.mktemp("model") / "tagger"
    model, tokenizer = small_bert(read_conll(corpus))
    save_model(model, tokenizer, FROM_SCRATCH, folder)
    return folder


@pytest.fixture
def fmtut(capsys):
    "Runs the command line in this process; returns exit code, standard output and standard error."
    from fmtut.cli import main

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop: # argparse ends the process itself
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
