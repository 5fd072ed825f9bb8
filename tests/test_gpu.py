"What only a machine with CUDA can show; skipped elsewhere."

import numpy as np
import pytest

from fmtut.conll import read_conll


@pytest.mark.gpu
def test_training_and_tagging_on_the_gpu(corpus, tmp_path):
    from fmtut.ner import FROM_SCRATCH, Tagger, fit, save_model, small_bert, word_log_probs

    sentences = read_conll(corpus)
    model, tokenizer = small_bert(sentences)
    history = fit(model.to("cuda"), tokenizer, sentences, sentences, FROM_SCRATCH)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    save_model(model, tokenizer, FROM_SCRATCH, tmp_path / "tagger")
    words = [sentence.words for sentence in sentences]
    on_cpu, on_gpu = (Tagger(tmp_path / "tagger", device) for device in ("cpu", "cuda"))
    assert [result.tags for result in on_cpu(words)] == [result.tags for result in on_gpu(words)]
    for a, b in zip(word_log_probs(on_cpu.model, tokenizer, words), word_log_probs(on_gpu.model, tokenizer, words)):
        assert np.allclose(a, b, atol=1e-3)
