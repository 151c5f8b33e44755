"""The stop at the first NaN or infinity: before the optimizer takes it in, with the batch kept for inspection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from densepath.errors import NumericalError
from densepath.io import atomic_path, write_json_atomic
from densepath.trainers.rollout import Credited, Rollout, Sampled, Scored

FOLDER = "nan_batches"
_SHOWN = 10


def check_finite(name: str, values: Tensor, accelerator: Accelerator) -> None:
    """Refuse NaN and infinity, on every process as soon as one of them has any.

    Args:
        name: of the values, for the message.
        values: any shape, float.
        accelerator: joins the processes.

    Raises:
        NumericalError: with the first place, and how many values are not finite.
    """
    if isinstance(values, DTensor):  # FSDP2's gradient norm
        values = values.full_tensor()
    finite = torch.isfinite(values)
    bad = int(accelerator.reduce((~finite).sum(), reduction="sum"))
    if not bad:
        return
    places = (~finite).nonzero().tolist()
    if not places:
        raise NumericalError(f"{name}: {bad} values of another process are NaN or infinite")
    first = tuple(places[0])
    index = f"[{', '.join(map(str, first))}]" if first else ""
    many = f", and {bad - 1} more" if bad > 1 else ""
    raise NumericalError(f"{name}{index} is {values[first].item()}{many}")


def check_weights(model: Any, accelerator: Accelerator) -> None:
    """Refuse trainable weights that are not finite, naming the first of them.

    Raises:
        NumericalError: on every process.
    """
    names, finite = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # of a parameter that FSDP2 or ZeRO-3 shards, this process's part
            local = (
                parameter.to_local() if hasattr(parameter, "to_local") else getattr(parameter, "ds_tensor", parameter)
            )
            names.append(name)
            finite.append(torch.isfinite(local.detach()).all())
    bad = ~torch.stack(finite)
    if int(accelerator.reduce(bad.sum(), reduction="sum")):
        places = bad.nonzero().flatten().tolist()
        where = names[places[0]] if places else "of another process"
        raise NumericalError(f"the update made weights NaN or infinite ({where})")


class NaNStop(TrainerCallback):  # type: ignore[misc]
    """Ends a training at the first NaN or infinity; the error names the kept batch and the last good checkpoint.

    Nothing that is not finite reaches the optimizer, and the weights are checked after each update: so every
    checkpoint is good.

    Args:
        output_dir: of the trainer; batches go to its `nan_batches`.
        accelerator: joins the processes.
        rollout: gives the generation batch at hand.
    """

    def __init__(self, output_dir: str | Path, accelerator: Accelerator, rollout: Callable[[], Rollout]) -> None:
        self.output_dir = Path(output_dir)
        self.accelerator = accelerator
        self.rollout = rollout

    @contextlib.contextmanager
    def watch(self, step: int, tensors: Callable[[], Mapping[str, Tensor]] = dict) -> Iterator[None]:
        """Keep the batch if the block raises a `NumericalError`, and say where it lies.

        Args:
            step: the optimizer step that is being made, from 1.
            tensors: gives further tensors to keep.

        Raises:
            NumericalError: with step, cause, the file of the batch and the last good checkpoint.
        """
        try:
            yield
        except NumericalError as error:
            raise self._explained(str(error), step, tensors()) from error

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Stop where an update left weights that are not finite, before they are saved."""
        with self.watch(state.global_step):
            check_weights(model, self.accelerator)

    def _explained(self, cause: str, step: int, tensors: Mapping[str, Tensor]) -> NumericalError:
        checkpoint = get_last_checkpoint(str(self.output_dir)) if self.output_dir.is_dir() else None
        kept = {**batch_tensors(self.rollout()), **{name: _plain(values) for name, values in tensors.items()}}
        path = self.output_dir / FOLDER / f"step-{step}-process-{self.accelerator.process_index}.safetensors"
        with atomic_path(path) as temporary:
            save_file(kept, str(temporary))
        record = {
            "step": step,
            "process": self.accelerator.process_index,
            "cause": cause,
            "last_good_checkpoint": checkpoint,
            "tensors": {name: _described(values) for name, values in kept.items()},
        }
        write_json_atomic(path.with_suffix(".json"), record)
        return NumericalError(
            f"training stopped at step {step}: {cause}; the batch is kept in {path}, the last good checkpoint is "
            f"{checkpoint or 'none (save_steps was not reached)'}; check the models for NaN or lower learning_rate, "
            "then resume"
        )


def batch_tensors(rollout: Rollout) -> dict[str, Tensor]:
    """A batch as tensors: (completions, tokens), padded on the right with 0, with the lengths beside."""
    credited = rollout if isinstance(rollout, Credited) else None
    scored = credited.scored if credited is not None else rollout if isinstance(rollout, Scored) else None
    sampled = scored.sampled if scored is not None else rollout
    assert isinstance(sampled, Sampled)
    found: dict[str, Tensor] = {}
    for name, rows in (("prompt", sampled.prompt_ids), ("completion", sampled.completion_ids)):
        if rows:
            found[f"{name}_ids"] = _padded([torch.tensor(ids) for ids in rows])
            found[f"{name}_lengths"] = torch.tensor([len(ids) for ids in rows])
    if scored is not None:
        ragged = {"policy_logprobs": scored.policy_logprobs, "rewards": scored.scores.rewards}
        ragged |= {name: getattr(scored.scores, name) for name in ("sft_logprobs", "ref_logprobs")}
        found |= {name: _padded(rows) for name, rows in ragged.items() if len(rows)}
        if scored.functions is not None and scored.functions.own.numel():
            found["function_rewards"] = _plain(scored.functions.own)
    if credited is not None:
        found["advantages"] = _plain(credited.credit.advantages)
    return found


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return _plain(pad_sequence(list(rows), batch_first=True))


def _plain(values: Tensor) -> Tensor:
    return values.detach().cpu().contiguous()


def _described(values: Tensor) -> dict[str, Any]:
    """Shape and, where values are not finite, how many and the first places."""
    places = (~torch.isfinite(values)).nonzero().tolist() if values.is_floating_point() else []
    return {"shape": list(values.shape), "not_finite": len(places), "first_places": places[:_SHOWN]}
