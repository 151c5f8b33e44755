"""The GRPO script of docs/trainer.md: both sides of its diff run, and they differ in no more than was promised."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

import densepath

TEXT = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
(DIFF,) = re.findall(r"^```diff\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
SMALL = {
    "max_steps=200": "max_steps=1",
    "max_completion_length=256": "max_completion_length=8",
    "logging_steps=10": "logging_steps=1, report_to='none', disable_tqdm=True, per_device_eval_batch_size=8",
    "eval_steps=100": "eval_steps=1, bf16=False",
    "save_steps=100": "save_steps=1",
    "test_size=16": "test_size=1",
}


def side(mark: str) -> str:
    """One side of the diff as a script."""
    return "".join(line[1:] + "\n" for line in DIFF.splitlines() if line[:1] in (mark, " ", ""))


def test_only_the_import_the_name_and_two_arguments_change():
    removed = [line[1:].strip() for line in DIFF.splitlines() if line.startswith("-")]
    added = [line[1:].strip() for line in DIFF.splitlines() if line.startswith("+")]
    assert removed == ["from trl import GRPOConfig, GRPOTrainer", "trainer = GRPOTrainer(", "args=GRPOConfig("]
    assert added == [
        "from densepath import DPRConfig, DPRTrainer",
        "trainer = DPRTrainer(",
        'ref_model="model-before-sft",',
        "args=DPRConfig(",
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("mark", "trainer"), [pytest.param("-", "GRPOTrainer", marks=pytest.mark.slow), ("+", "DPRTrainer")]
)
def test_the_script_runs(mark, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = tiny_tokenizer()
    for seed, name in enumerate(("sft-model", "model-before-sft")):
        model = tiny_llama(vocab_size=len(tokenizer), seed=seed)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    rows = densepath.generate_tasks(6, seed=1)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    code = side(mark)
    for long, short in SMALL.items():
        assert long in code
        code = code.replace(long, short)
    namespace = {"__name__": "__main__"}
    exec(compile(code, f"docs/trainer.md ({mark})", "exec"), namespace)
    made = namespace["trainer"]
    assert type(made).__name__ == trainer
    logged = {key for row in made.state.log_history for key in row}
    assert {"loss", "reward", "rewards/ends_with_a_stop/mean", "eval_reward"} <= logged
    assert (Path("rl-output/checkpoint-1/adapter_model.safetensors")).is_file()
    table = pq.read_table("rl-output/completions/completions_00001.parquet")
    assert ("token_rewards" in table.column_names) == (trainer == "DPRTrainer")
