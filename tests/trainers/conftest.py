"""Tiny models and data for trainer tests."""

from __future__ import annotations

import gc
import warnings

import datasets
import pytest
import transformers
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama


@pytest.fixture(autouse=True, scope="session")
def _light_garbage_collection():
    """accelerate collects garbage at each training's begin and end: a third of a second over what imports made."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def make_model(tokenizer):
    def make(seed: int = 0, **config):
        model = tiny_llama(vocab_size=len(tokenizer), seed=seed, **config)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        return model

    return make


@pytest.fixture
def prompts():
    words = ["red", "blue", "green", "tree", "bird", "fish", "stone", "cloud"]
    return datasets.Dataset.from_list([{"prompt": f"Say {a} {b}:"} for a in words for b in words if a != b])
