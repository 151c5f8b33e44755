"""The run folder that methods are tested on."""

from __future__ import annotations

import json

import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run folder with what the methods read."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("base", "sft/model", "sft/references/0.5")):
        model = tiny_llama(vocab_size=len(tokenizer), seed=seed)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    rows = [{"prompt": f"Count from {i}:", "completion": f"{i + 1} {i + 2}"} for i in range(10)]
    rows.append({"prompt": "x " * 130, "completion": "too long to be sampled from"})
    (folder / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
