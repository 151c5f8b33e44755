"""The data stage: demonstrations, RL prompts and held-out rows, checked, disjoint, and written into the run folder."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densepath.config.judge import JudgeArguments
from densepath.config.mixins import REGIME, TEXT_TASKS, SamplingArguments
from densepath.config.run import RunArguments
from densepath.config.training import PurifyCommandArguments
from densepath.data.benchmarks import references_of
from densepath.data.context import check_context, room_for_prompts
from densepath.data.encode import Encoded, encode_demonstrations, encode_pairs, encode_row_prompt
from densepath.data.formats import dataset_fingerprint
from densepath.data.outputs import check_outputs, rows_read
from densepath.data.regimes import SFT, Regime, regime_rows
from densepath.data.rows import DataFormat, Row, detect_format, has_prompt, is_answered, jsonable
from densepath.data.sources import load_rows, place
from densepath.data.splits import answered_hashes, check_disjoint, content_hash, split_by_content
from densepath.data.training_rows import Rows, fitting_rows, longest_prompt
from densepath.errors import ConfigError, DataError, ModelError
from densepath.evals.verifiers import VERIFIERS
from densepath.io import read_json, read_jsonl, write_json_atomic, write_jsonl_atomic
from densepath.judging.build import shows_reference
from densepath.models.kept import kept_models
from densepath.models.load import load_tokenizer, model_context
from densepath.pipeline.run_folder import RunFolder
from densepath.terminal import Console, say, warn

BUDGET_ROWS = 2000
"""Demonstrations whose lengths decide how long an answer may be."""
NEEDED_SHARE = 0.99
"""Of these demonstrations, that are to end within it."""
GENERATED_ROWS = 960
"""Training rows that text_tasks generates when `max_train_samples` is None."""
WRITTEN = (
    *(f"data/{name}.jsonl" for name in ("train", "validation", "test", "rl")),
    *("data.json", "selection.json", "samples.jsonl", "results.json", "report.json"),
)
"""Files of a run's folder that are written over."""
SFT_SEED = 42
"""Of `densepath sft` where none is given: SFTConfig's, which what trains nothing does not import."""
REGIME_ROWS = 4000
"""Demonstrations of a regime when `max_train_samples` is None."""


def prepare_data(run: RunFolder, arguments: RunArguments, tokenizer: Any, context: int) -> None:
    """Load, check and split the data; write `data/*.jsonl` and `data.json`.

    Raises:
        DataError: bad rows, too few rows, held-out prompts among the training prompts, or prompts that leave no
            room for a completion.
    """
    started = time.monotonic()
    check_sources(arguments, run.path, WRITTEN)
    splits, unused = _splits(arguments)
    _check_prompts_exist(arguments, splits)

    def where(name: str, row: Row) -> str:
        return place(*_origin(arguments, name), row)

    check_disjoint({name: splits[name] for name in ("train", "validation", "test")}, ["train"], where)
    if arguments.rl_prompts is not None:
        check_disjoint({name: splits[name] for name in ("rl", "validation", "test")}, where=where)
    for name in ("validation", "test"):
        check_answers(arguments.verifier, splits[name], *_origin(arguments, name))
        check_right_answers(arguments, splits[name], *_origin(arguments, name))
        check_demonstrations(splits[name], tokenizer, *_origin(arguments, name))
    record: dict[str, dict[str, Any]] = {}
    for name, rows in splits.items():
        if name != "train":
            check_prompts(rows, tokenizer, context, arguments.completion_tokens, *_origin(arguments, name))
        record[name] = {"source": _origin(arguments, name)[0], "rows": len(rows), "sha256": dataset_fingerprint(rows)}
        if name in ("validation", "test") and (fewer := fewer_text(arguments, name, len(rows))) is not None:
            record[name]["note"] = fewer
        if name in ("validation", "test") and (seen := seen_text(arguments, name, rows)) is not None:
            record[name]["seen"] = seen
        write_jsonl_atomic(run / f"data/{name}.jsonl", rows)
    limit = min(arguments.max_length or context, context)
    _, counts = encode_demonstrations(
        splits["train"],
        tokenizer,
        limit,
        drop_overlong=True,
        source=arguments.dataset_name,
        where=functools.partial(where, "train"),
    )
    if arguments.rl_prompts is None:
        longest = longest_prompt(context, arguments.completion_tokens, arguments.max_prompt_length)
        kept = fitting_rows(splits["train"], tokenizer, longest)
        record["train"]["unsampled"] = len(splits["train"]) - len(kept)
        if not kept:
            raise DataError(
                f"{arguments.dataset_name}: no training prompt leaves room for a completion (context {context}, "
                f"max_completion_length {arguments.completion_tokens}, max_prompt_length "
                f"{arguments.max_prompt_length}); lower the first or raise the second"
            )
    record["train"]["unused"] = unused
    record["train"]["truncated"] = counts.truncated
    record["train"]["dropped"] = counts.dropped
    record["train"]["notes"] = counts.notes
    record["train"]["tokens"] = counts.state_tokens + counts.action_tokens
    write_json_atomic(run / "data.json", record)
    run.finish("data", started)


def check_sources(arguments: RunArguments | PurifyCommandArguments, folder: Path, written: Iterable[str]) -> None:
    """Refuse a data set that is a file which the folder's stages would write, with a `UsageError`.

    Args:
        arguments: which data sets are read.
        folder: `output_dir`, or that of a stage below it.
        written: names of its files.
    """
    read = {
        "dataset_name": rows_read(arguments.dataset_name, arguments.dataset_train_split),
        "eval_dataset_name": rows_read(arguments.eval_dataset_name, arguments.dataset_test_split),
        "rl_prompts": rows_read(getattr(arguments, "rl_prompts", None), arguments.dataset_train_split),
    }
    check_outputs({f"{name} of output_dir": folder / name for name in written}, read)


def seen_text(arguments: RunArguments, split: str, rows: Rows) -> str | None:
    """Of held-out rows whose prompts the given SFT model was trained on how many there are; None for none.

    Args:
        arguments: which may name the folder of the SFT run, `sft_from`.
        split: "validation" or "test".
        rows: of that split.
    """
    if arguments.sft_from is None:
        return None
    folder = Path(arguments.sft_from).expanduser()
    source, trained = prompts_of_sft(folder, kept_models(folder).recipe)
    seen = sum(content_hash(row) in trained for row in rows)
    if not seen:
        return None
    return (
        f"{seen} of {len(rows)} {split} prompts were trained on by the SFT model that is given ({source}): they say "
        "little of new prompts; keep rows out of SFT, and name them with eval_dataset_name"
    )


def prompts_of_sft(run_dir: Path, recipe: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Where the SFT run of a folder read its demonstrations, and the hashes of all prompts that are answered there.

    These are the folder's own `data/train.jsonl`, else what its recipe names; no prompt where that is no file here.

    Args:
        run_dir: output_dir of `densepath sft` or `run`.
        recipe: of that run.

    Raises:
        DataError: rows that cannot be read.
    """
    own, source = run_dir / "data/train.jsonl", str(recipe.get("dataset_name") or "")
    if own.is_file():
        source, rows = str(own), read_jsonl(own)
    elif source and Path(source).expanduser().exists():
        split, most = recipe.get("dataset_train_split") or "train", recipe.get("max_train_samples")
        rows = load_rows(source, split, "demonstrations", limit=most, seed=recipe.get("seed", SFT_SEED))
    else:
        rows = []
    return source, {one for row in rows for one in answered_hashes(row)}


def fewer_text(arguments: RunArguments | PurifyCommandArguments, split: str, found: int) -> str | None:
    """Of a user's held-out rows that are fewer than asked for how many there are, why, and what to do; else None.

    Args:
        arguments: which ask for them.
        split: "validation" or "test".
        found: rows that there are.
    """
    asked, own = getattr(arguments, f"num_{split}_samples"), arguments.eval_dataset_name
    if found >= asked or (own is None and arguments.dataset_name.endswith(TEXT_TASKS)):
        return None  # a hash splits toy tasks, and there are about as many
    start = f"num_{split}_samples={asked} of {own or arguments.dataset_name}, and there are {found}"
    if own is not None:
        return f"{start}: give more rows there"
    return f"{start}, a tenth of the rows at most: give more rows, or held-out ones of their own (eval_dataset_name)"


@dataclass(frozen=True)
class AnswerBudget:
    """How long a sampled answer may be.

    Attributes:
        tokens: at most, EOS included.
        needed: tokens within which 99 of 100 demonstrations end; None where none was measured.
        share: of the demonstrations that end within `tokens`.
    """

    tokens: int
    needed: int | None = None
    share: float = 1.0

    @classmethod
    def of(cls, lengths: Sequence[int], context: int) -> AnswerBudget:
        """What 99 of 100 demonstrations need, a multiple of 16, at most half of the context; a default for none.

        Args:
            lengths: of the demonstrations' completions in tokens.
            context: tokens that the model reads.
        """
        if not lengths:
            return cls(SamplingArguments().max_completion_length)
        needed = sorted(lengths)[max(0, math.ceil(NEEDED_SHARE * len(lengths)) - 1)]
        tokens = min(16 * math.ceil(needed / 16), max(1, context // 2))
        return cls(tokens, needed, sum(length <= tokens for length in lengths) / len(lengths))

    @property
    def is_short(self) -> bool:
        """Whether the context bounds it below what demonstrations need."""
        return self.needed is not None and self.tokens < self.needed

    @property
    def text(self) -> str:
        """What it is, and why."""
        start = f"max_completion_length: {self.tokens} tokens"
        if self.needed is None:
            return f"{start}, the default: there is no demonstration with an answer to measure"
        if not self.is_short:
            return f"{start}, within which 99 of 100 demonstrations end"
        return (
            f"{start}, half the context, within which {100 * self.share:.1f} % of the demonstrations end (99 of 100 "
            f"need {self.needed}): give max_completion_length to let answers be longer"
        )


def answer_budget(arguments: RunArguments) -> AnswerBudget:
    """How long answers may be after the demonstrations' lengths.

    What is plain text, and what is drawn for each seed alone, gives the default of a command.

    Raises:
        DensepathError: data or tokenizer that cannot be used.
    """
    tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
    found = _demonstrations(arguments, BUDGET_ROWS)
    rows = [row for row in found if detect_format(row) is not DataFormat.TEXT]
    origin = arguments.dataset_name, arguments.dataset_train_split
    lengths = [len(_encoded(row, tokenizer, *origin)[-1].completion_ids) for row in rows]
    return AnswerBudget.of(lengths, model_context(arguments.model_name_or_path, arguments.trust_remote_code))


def _demonstrations(arguments: RunArguments, limit: int | None) -> Rows:
    """Rows of the data set, before any split."""
    return load_rows(
        arguments.dataset_name,
        arguments.dataset_train_split,
        "demonstrations",
        limit=limit,
        seed=arguments.seed,
        tasks={
            "families": arguments.task_families,
            "error_rate": arguments.task_error_rate,
            "noise": arguments.task_errors or None,
        },
    )


def with_answer_budget(arguments: RunArguments, console: Console) -> RunArguments:
    """The recipe with the longest answer that the demonstrations ask for, where it names none."""
    if arguments.max_completion_length is not None:
        return arguments
    budget = answer_budget(arguments)
    (warn if budget.is_short else say)(console, budget.text)
    return replace(arguments, max_completion_length=budget.tokens)


def tell_data(run: RunFolder, console: Console, title: str) -> None:
    """Say how many rows there are, and what became of those that are too long."""
    record = read_json(run / "data.json")
    counts = ", ".join(f"{each['rows']} {name}" for name, each in record.items())
    train = record["train"]
    notes = (
        ("truncated", "cut to max_length"),
        ("dropped", "left out of SFT: the prompt fills max_length"),
        ("unsampled", "left out of DPR: the prompt is too long"),
        ("unused", "used nowhere: beyond what max_train_samples or the held-out splits take"),
    )
    left_out = "; ".join(f"{train[name]} {text}" for name, text in notes if train.get(name))
    say(console, f"{title}data: {counts} rows" + (f" ({left_out})" if left_out else ""))
    of_splits = (each[key] for each in record.values() for key in ("note", "seen") if key in each)
    for note in (*train.get("notes", []), *of_splits):
        warn(console, note)


def _origin(arguments: RunArguments, name: str) -> tuple[str, str]:
    """Data set and split that a split's rows came from."""
    if name == "rl" and arguments.rl_prompts is not None:
        return arguments.rl_prompts, arguments.dataset_train_split
    if name in ("validation", "test") and arguments.eval_dataset_name is not None:
        return arguments.eval_dataset_name, arguments.dataset_test_split
    return arguments.dataset_name, arguments.dataset_train_split


def split_fingerprints(arguments: RunArguments) -> dict[str, tuple[int, str]]:
    """Split -> number and SHA-256 of its rows, as `prepare_data` would find them now.

    Raises:
        MissingFileError, DataError: the data cannot be read.
    """
    return {name: (len(rows), dataset_fingerprint(rows)) for name, rows in _splits(arguments)[0].items()}


def _splits(arguments: RunArguments) -> tuple[dict[str, Rows], int]:
    """Split -> rows; and how many rows of a user's data are in none."""
    if (regime := regime_of(arguments.dataset_name)) is not None:
        return _regime_splits(regime, arguments), 0
    held_out = {"validation": arguments.num_validation_samples, "test": arguments.num_test_samples}
    generated = arguments.dataset_name == TEXT_TASKS
    train_rows = arguments.max_train_samples or (GENERATED_ROWS if generated else None)
    split_here = arguments.eval_dataset_name is None
    # Hash splits meet their shares only on average: a fifth more rows than needed are generated.
    spare = int(1.2 * sum(held_out.values())) + 60 + (train_rows or 0) // 5 if split_here and generated else 0
    rows = _demonstrations(arguments, (train_rows or 0) + spare if generated else None)
    if split_here:
        # Of each split a fifth more than asked for, but at most a tenth of the data for each that is held out.
        share = {name: min(0.1, 1.2 * count / len(rows) + 0.01) for name, count in held_out.items()}
        if generated:
            share = {name: 1.1 * count / len(rows) for name, count in held_out.items()}
        parts = split_by_content(rows, {"train": 1 - sum(share.values()), **share})
        splits = {"train": parts["train"][:train_rows], **_cut(parts, held_out)}
        given = len(rows)
    else:
        found = load_rows(
            arguments.eval_dataset_name or "",
            arguments.dataset_test_split,
            "held-out prompts",
            limit=None,
            seed=arguments.seed,
        )
        total = sum(held_out.values())
        parts = split_by_content(found, {name: count / total for name, count in held_out.items()})
        splits = {"train": rows[:train_rows], **_cut(parts, held_out)}
        given = len(rows) + len(found)
    used = sum(map(len, splits.values()))
    for name, part in splits.items():
        if not part:
            raise DataError(
                f"{_origin(arguments, name)[0]}: no row is left for the {name} split; give more rows, or held-out "
                "rows of their own with eval_dataset_name"
            )
    if arguments.rl_prompts is not None:
        splits["rl"] = load_rows(
            arguments.rl_prompts, arguments.dataset_train_split, "prompts", limit=None, seed=arguments.seed
        )
    settled = {name: [jsonable(row) for row in part] for name, part in splits.items()}
    return settled, 0 if generated else given - used


def regime_of(dataset_name: str) -> Regime | None:
    """The regime that `regime:NAME` names; None for any other data set.

    Raises:
        ConfigError: no regime of that name.
    """
    if not dataset_name.startswith(REGIME):
        return None
    name = dataset_name.removeprefix(REGIME)
    names = [regime.value for regime in Regime]
    if name not in names:
        raise ConfigError(f"dataset_name={dataset_name}: choose {', '.join(f'{REGIME}{each}' for each in names)}")
    return Regime(name)


def _regime_splits(regime: Regime, arguments: RunArguments) -> dict[str, Rows]:
    """Demonstrations of a regime; the same held-out prompts for every seed."""
    mixture = SFT[regime]
    train = regime_rows(mixture, arguments.max_train_samples or REGIME_ROWS, seed=arguments.seed)
    validation = arguments.num_validation_samples
    held_out = regime_rows(mixture, validation + arguments.num_test_samples, seed=0, held_out=True)
    return {"train": train, "validation": held_out[:validation], "test": held_out[validation:]}


def _cut(parts: dict[str, Rows], counts: dict[str, int]) -> dict[str, Rows]:
    return {name: parts[name][: counts[name]] for name in counts}


def _check_prompts_exist(arguments: RunArguments, splits: dict[str, Rows]) -> None:
    """Plain text can be imitated and not be answered: prompts must then come from elsewhere."""
    for name, key in (("test", "eval_dataset_name"), ("train", "rl_prompts")):
        prompts = splits.get("rl", splits["train"]) if name == "train" else splits[name]
        if not has_prompt(prompts[0]):
            raise DataError(
                f"{_origin(arguments, name)[0]}, row 1: plain text has no prompt to sample from; "
                f"give prompts of their own with {key}"
            )


def check_answers(verifier: str | None, rows: Rows, source: str, split: str) -> None:
    """Refuse rows that densepath's own verifiers could not check.

    Raises:
        DataError: a row without a usable `answer`.
    """
    if verifier not in VERIFIERS:
        return
    for row in rows:
        try:
            VERIFIERS[verifier]("", row)
        except DataError as error:
            raise DataError(
                f"{place(source, split, row)}: {error} (verifier={verifier} needs it), or leave the verifier out"
            ) from error


def check_right_answers(judge: JudgeArguments, rows: Rows, source: str, split: str) -> None:
    """Refuse rows with a right answer that the judge, if there is one, is to be shown and could not be.

    Raises:
        ConfigError: a template that cannot be used.
        DataError: a row with a `reference` that is no text.
    """
    if not shows_reference(judge):
        return
    for row in rows:
        try:
            references_of(row, 1)
        except DataError as error:
            raise DataError(f"{place(source, split, row)}: {error}, which a judge is shown") from error


def check_prompts(
    rows: Rows, tokenizer: Any, context: int, max_completion_length: int, source: str, split: str
) -> None:
    """Refuse prompts that leave no room for a completion.

    Raises:
        DataError: the first such row.
        ConfigError: no prompt at all would fit.
    """
    longest = room_for_prompts(context, max_completion_length)
    for row in rows:
        with _named(row, source, split):
            tokens = len(encode_row_prompt(row, tokenizer))
        if tokens > longest:  # to find its place takes time
            check_context(tokens, context, place(source, split, row), max_completion_length=max_completion_length)


def check_demonstrations(rows: Rows, tokenizer: Any, source: str, split: str, limit: int | None = None) -> None:
    """Refuse rows whose answers, those that begin within the limit of tokens, cannot be encoded.

    Raises:
        DataError, ModelError: the first such row.
    """
    for row in filter(is_answered, rows):
        _encoded(row, tokenizer, source, split, limit)


def _encoded(row: Row, tokenizer: Any, source: str, split: str, limit: int | None = None) -> list[Encoded]:
    with _named(row, source, split):
        return encode_pairs(row, tokenizer, limit)


@contextlib.contextmanager
def _named(row: Row, source: str, split: str) -> Iterator[None]:
    """What is wrong with a row, said with its place, which takes time to find."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"{place(source, split, row)}: {error}") from error
