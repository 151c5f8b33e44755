"""SFT over the same demonstrations: TRL's trainer, padded, packed and padding-free, against densepath's.

    python -m benchmarks.sft [--prompts 16] [--batch 8] [--dataset_name rows.jsonl]

Forward and backward of all rows once, through each trainer's own loader and training step; no optimizer. Packed rows
do not see each other in any arm; TRL says that its attention on a CPU does not promise it, and does it by positions.
"""

from __future__ import annotations

import tempfile
from functools import partial

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.common import OPTIONS, Floor, distinct, keep, load, parser, peaks, print_peak, rows, side_by_side
from benchmarks.words import count, run_command
from densepath.models.load import load_tokenizer
from densepath.trainers.sft import sft_trainer

LONGEST = 1024
ARMS = {
    "TRL, padded": {},
    "TRL, padding-free": {"padding_free": True, "max_length": None},
    "TRL, packed": {"packing": True},
    "densepath": {},
}


def trainer_of(arm: str, options) -> SFTTrainer:
    """A trainer of its own copy of the model over the rows."""
    model, tokenizer = load(options.model)
    model.requires_grad_(True)
    prompts, completions = rows(options, tokenizer)
    encoded = Dataset.from_list(
        [
            {"input_ids": [*p, *c], "completion_mask": [0] * len(p) + [1] * len(c)}
            for p, c in zip(prompts, completions, strict=True)
        ]
    )
    args = SFTConfig(
        tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        **{"max_length": LONGEST, **ARMS[arm]},
    )
    make = sft_trainer if arm == "densepath" else _of_trl
    trainer = make(model, tokenizer, encoded, args)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _of_trl(model, tokenizer, encoded, args: SFTConfig) -> SFTTrainer:
    args.completion_only_loss = True
    return SFTTrainer(model=model, args=args, train_dataset=encoded, processing_class=tokenizer)


def epoch(trainer: SFTTrainer) -> None:
    """Forward and backward of every row."""
    for inputs in trainer.get_train_dataloader():
        trainer.training_step(trainer.model, inputs)
        trainer.model.zero_grad()


def main() -> None:
    given = parser(__doc__, *OPTIONS, arms=ARMS)
    given.add_argument("--batch", type=count, default=8, help="rows of a batch; packed ones are longer")
    given.set_defaults(prompts=16, num_generations=1)
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    rows(options, load_tokenizer(options.model))  # says what is wrong with them before anything is loaded
    if options.only:
        epoch(trainer_of(options.only, options))
        print_peak()
        return
    memory = peaks("benchmarks.sft", ARMS)
    trainers = {arm: trainer_of(arm, options) for arm in ARMS}
    data = trainers["densepath"].train_dataset
    tokens, completion_tokens = sum(map(len, data["input_ids"])), sum(map(sum, data["completion_mask"]))
    print(f"{options.prompts} rows of {tokens} tokens")
    forward = Floor(trainers["densepath"].model).forward(distinct(data["input_ids"]), completion_tokens)
    floor = {"forward": forward, "backward": 2 * forward}
    arms = {arm: partial(epoch, each) for arm, each in trainers.items()}
    time = side_by_side(arms, options.rounds, tokens=tokens, floor=floor)
    keep(options, tokens=tokens, floor=floor, time=time, peak_bytes=memory)


if __name__ == "__main__":
    run_command(main)
