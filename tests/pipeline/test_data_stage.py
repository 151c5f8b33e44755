"""The data stage: what is held out is held out, whatever the data set looks like."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.pipeline.runs import save_tiny_model
from tests.support import tiny_tokenizer

from densepath.config.run import RunArguments
from densepath.data.encode import encode_pairs
from densepath.data.sources import load_rows, place
from densepath.errors import ConfigError, DataError
from densepath.evals.verifiers import instruction_format
from densepath.io import read_json, read_jsonl
from densepath.models.load import model_context
from densepath.pipeline.data import (
    AnswerBudget,
    answer_budget,
    fewer_text,
    fitting_rows,
    longest_prompt,
    prepare_data,
    tell_data,
)
from densepath.pipeline.run_folder import RunFolder
from densepath.terminal import terminal

CONTEXT = 256


@pytest.fixture
def prepare(tmp_path):
    """Run the stage; the rows of each split."""
    count = 0

    def run(**changes) -> dict[str, list[dict]]:
        nonlocal count
        count += 1
        folder = RunFolder(tmp_path / f"run-{count}")
        arguments = RunArguments(
            **{
                "output_dir": str(folder.path),
                "dataset_name": "text_tasks",
                "max_train_samples": 40,
                "num_validation_samples": 10,
                "num_test_samples": 10,
                "max_completion_length": 8,
                **changes,
            }
        )
        prepare_data(folder, arguments, tiny_tokenizer(), CONTEXT)
        assert folder.is_done("data")
        record = read_json(folder / "data.json")
        found = {name: read_jsonl(folder / f"data/{name}.jsonl") for name in record}
        assert {name: len(rows) for name, rows in found.items()} == {n: record[n]["rows"] for n in record}
        folder.close()
        return found

    return run


@pytest.fixture
def write(tmp_path):
    def write_rows(name: str, rows: list) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write_rows


def words(row: dict) -> str:
    """A prompt by what it says: its turns' words, however they are spaced."""
    prompt = row["prompt"] if "prompt" in row else row["messages"][:-1]
    text = prompt if isinstance(prompt, str) else " / ".join(turn["content"] for turn in prompt)
    return " ".join(text.split())


def said(rows: list[dict]) -> set[str]:
    return {words(row) for row in rows}


def test_generated_tasks_are_split_without_a_common_prompt(prepare):
    found = prepare(verifier="exact_match")
    train, validation, test = (said(found[name]) for name in ("train", "validation", "test"))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(found["train"]) == 40
    assert 1 <= len(found["validation"]) <= 10
    assert 1 <= len(found["test"]) <= 10
    assert found == prepare(verifier="exact_match")
    assert said(found["train"]) != said(prepare(seed=1)["train"])


def test_rows_that_repeat_a_prompt_stay_on_one_side(prepare, write):
    """40 prompts, each five times: with other completions, another spacing, another kind of row."""
    rows = [
        {"prompt": f"Say{' ' * (1 + copy)}{i}:" + "\n" * copy, "completion": f"{i} {copy}"}
        for copy in range(5)
        for i in range(40)
    ]
    found = prepare(dataset_name=write("rows.jsonl", rows), max_train_samples=200)
    assert not said(found["train"]) & (said(found["validation"]) | said(found["test"]))
    assert not said(found["validation"]) & said(found["test"])
    assert len(found["train"]) > len(said(found["train"]))


def test_what_is_not_held_out_is_trained_on(prepare, write):
    """Nothing is lost but the surplus of the held-out parts."""
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(300)]
    found = prepare(dataset_name=write("rows.jsonl", rows), max_train_samples=300)
    assert len(found["train"]) > 240
    assert 3 <= len(found["test"]) <= 10  # a hash meets shares on average
    assert 3 <= len(found["validation"]) <= 10
    assert said(found["train"]) < {f"Say {i}:" for i in range(300)}


def test_held_out_rows_of_their_own(prepare, write):
    train = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(30)]
    held = [{"prompt": f"Repeat {i}:", "completion": f"{i}"} for i in range(60)]
    found = prepare(dataset_name=write("train.jsonl", train), eval_dataset_name=write("held.jsonl", held))
    assert said(found["train"]) == {f"Say {i}:" for i in range(30)}
    assert said(found["validation"]) | said(found["test"]) < {f"Repeat {i}:" for i in range(60)}
    assert not said(found["validation"]) & said(found["test"])


def test_a_planted_leak_is_refused(prepare, write):
    train = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(30)]
    held = [{"prompt": [{"role": "user", "content": f"Say {i}:"}], "answer": "x"} for i in range(29, 60)]
    with pytest.raises(DataError, match="have the same prompt"):
        prepare(
            dataset_name=write("train.jsonl", train),
            eval_dataset_name=write("held.jsonl", held),
            num_validation_samples=31,
            num_test_samples=31,
        )


def test_a_prompt_of_an_earlier_turn_that_sft_imitates_is_not_held_out(prepare, write):
    """Every second conversation is the beginning of the one before it."""
    rows = []
    for i in range(150):
        turns = [("user", f"Say {i}."), ("assistant", f"{i}"), ("user", "Go on."), ("assistant", "x")]
        messages = [{"role": role, "content": content} for role, content in turns]
        rows += [{"messages": messages}, {"messages": messages[:2]}]
    found = prepare(dataset_name=write("rows.jsonl", rows), max_train_samples=None)
    first = {name: {row["messages"][0]["content"] for row in part} for name, part in found.items()}
    assert not first["train"] & (first["validation"] | first["test"])
    held = [{"prompt": [{"role": "user", "content": text}]} for text in ("Say 7.", *map(str, range(40)))]
    limits = {"num_validation_samples": 30, "num_test_samples": 30, "max_train_samples": None}
    with pytest.raises(DataError, match=r"have the same prompt \('Say 7\.'\)"):
        prepare(dataset_name=write("whole.jsonl", rows[::2]), eval_dataset_name=write("eval.jsonl", held), **limits)


def test_rl_prompts_are_kept_apart_from_what_is_held_out(prepare, write):
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(200)]
    prompts = [{"prompt": f"Repeat {i}:"} for i in range(20)]
    path = write("rows.jsonl", rows)
    found = prepare(dataset_name=path, rl_prompts=write("prompts.jsonl", prompts))
    assert said(found["rl"]) == said(prompts)
    # SFT's own prompts may be used again; a held-out one may not.
    again = prepare(dataset_name=path, rl_prompts=write("again.jsonl", found["train"][:5]))
    assert said(again["rl"]) == said(found["train"][:5])
    with pytest.raises(DataError, match="have the same prompt"):
        prepare(dataset_name=path, rl_prompts=write("leak.jsonl", [*prompts, found["test"][0]]))


def test_conversations_keep_their_turns(prepare, write):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Count from {i}."},
                {"role": "assistant", "content": f"{i}"},
                {"role": "user", "content": "Go on."},
                {"role": "assistant", "content": f"{i + 1}"},
            ]
        }
        for i in range(120)
    ]
    found = prepare(dataset_name=write("rows.jsonl", rows))
    assert all(row in rows for part in found.values() for row in part)


def test_a_row_is_found_in_its_file_again(write):
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}", "note": "x" if i == 3 else None} for i in range(8)]
    path = write("rows.jsonl", rows)
    shuffled = load_rows(path, "train", "demonstrations", limit=None, seed=3)
    assert [row["prompt"] for row in shuffled] != [row["prompt"] for row in rows]
    for row in shuffled:
        number = int(row["completion"]) + 1
        assert place(path, "train", row) == f"{path}, row {number}"
    assert place(path, "train", {"prompt": "other"}) == path
    (Path(path).parent / "folder").mkdir()
    files = [write(f"folder/{name}.jsonl", part) for name, part in (("a", rows[:3]), ("b", rows[3:]))]
    folder = str(Path(files[0]).parent)
    assert place(folder, "train[2:]", shuffled[shuffled.index(rows[3])]) == f"{files[1]}, row 1"
    constrained = load_rows(f"constrained:{path}", "train", None, limit=None, seed=3)
    numbers = [place(f"constrained:{path}", "train", row).removeprefix(f"{path}, row ") for row in constrained]
    assert sorted(numbers) == list("12345678")
    assert place("regime:error", "train", {"prompt": "other"}) == "regime:error"
    assert place("text_tasks", "train", {"prompt": "other"}) == "text_tasks"


def test_rows_keep_their_order_without_a_seed(write):
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}"} for i in range(20)]
    assert load_rows(write("rows.jsonl", rows), "train", None, limit=7, seed=None) == rows[:7]


def test_a_budget_beyond_the_context_is_refused(prepare, tmp_path):
    with pytest.raises(ConfigError, match="max_completion_length=256 fills the models' context of 256 tokens"):
        prepare(max_completion_length=CONTEXT)
    assert not (Path(tmp_path) / "run-1/stages").exists()


def test_prompts_longer_than_max_prompt_length_are_left_out_of_dpr():
    rows = [{"prompt": "z" * length, "completion": "y"} for length in (3, 9, 200, 400)]
    tokenizer = tiny_tokenizer()
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    arguments = RunArguments(max_prompt_length=lengths[1], max_completion_length=8)
    longest = longest_prompt(CONTEXT, arguments.max_completion_length, arguments.max_prompt_length)
    assert longest == lengths[1]
    assert fitting_rows(rows, tokenizer, longest) == rows[:2]
    assert longest_prompt(CONTEXT, 8, None) == CONTEXT - 8
    assert longest_prompt(CONTEXT, 8, CONTEXT) == CONTEXT - 8


def test_constrained_rows_of_a_file_are_split_checked_and_meet_their_constraints(prepare, write):
    """As JSONL through `datasets`, which fills in keys that other rows have."""
    source = write(
        "real.jsonl", [{"prompt": f"Name {i} birds", "completion": "robin " * (i % 9 + 1)} for i in range(80)]
    )
    found = prepare(dataset_name=f"constrained:{source}", verifier="instruction_format", max_train_samples=None)
    for rows in found.values():
        for row in rows:
            assert row["prompt"].startswith("Name ")
            assert instruction_format(row["completion"], row) == 1.0
    assert not said(found["train"]) & said(found["test"])
    first, second = (load_rows(f"constrained:{source}", "train", None, limit=None, seed=seed) for seed in (None, 3))
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))  # a run's seed does not change its task
    with pytest.raises(DataError, match=r"constraints.* are None; write constrained: .*\(verifier=instruction_format"):
        prepare(dataset_name=source, verifier="instruction_format")


def test_a_row_that_cannot_be_constrained_is_named(write):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    turns = [[{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}] for i in range(9)]
    path = write(
        "rows.jsonl", [{"messages": [asked, call if i == 5 else said]} for i, (asked, said) in enumerate(turns)]
    )
    with pytest.raises(DataError, match=re.escape(f"{path}, row 6: a completion that calls tools cannot be constr")):
        load_rows(f"constrained:{path}", "train", "demonstrations", limit=None, seed=0)


def test_rows_that_no_split_takes_are_counted(prepare, write, tmp_path):
    rows = [{"prompt": f"{number}:", "completion": "y"} for number in range(60)]
    found = prepare(dataset_name=write("rows.jsonl", rows), max_train_samples=20)
    unused = read_json(tmp_path / "run-1/data.json")["train"]["unused"]
    assert unused == 60 - sum(map(len, found.values())) > 0


def test_prompts_beside_a_text_are_asked(prepare, write):
    """The column `text` of Alpaca's rows, and of many others, is prompt and answer once more."""
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}", "text": f"Below: Say {i}: {i}"} for i in range(30)]
    held = [{"prompt": f"Repeat {i}:", "text": "Below."} for i in range(60)]
    found = prepare(dataset_name=write("rows.jsonl", rows), eval_dataset_name=write("held.jsonl", held))
    assert said(found["validation"]) | said(found["test"]) < said(held)
    with pytest.raises(DataError, match="have the same prompt"):
        prepare(dataset_name=write("rows.jsonl", rows), eval_dataset_name=write("leak.jsonl", rows))


def test_answers_may_be_as_long_as_99_of_100_demonstrations(write, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    one = {"prompt": "a:", "completion": "b"}
    lengths = [
        len(encode_pairs({**one, "completion": "b" * n}, tiny_tokenizer())[-1].completion_ids) for n in (20, 90)
    ]

    def budget(*words: str) -> int:
        rows = [{"prompt": f"{number}:", "completion": word} for number, word in enumerate(words)]
        return answer_budget(RunArguments(model_name_or_path=model, dataset_name=write("rows.jsonl", rows))).tokens

    assert budget(*["b"] * 199, "b" * 90) == 16  # one in 200 may be cut
    assert budget(*["b"] * 49, "b" * 20) == 16 * -(-lengths[0] // 16)
    assert budget(*["b"] * 5, "b" * 90) == 16 * -(-lengths[1] // 16)
    assert budget("b" * 3000, "b") == model_context(model) // 2
    # A column `text` beside prompt and completion (Alpaca's) is no plain text, which has no answer to measure.
    rows = [{"prompt": f"{number}:", "completion": "b", "text": "Below."} for number in range(9)]
    assert answer_budget(RunArguments(model_name_or_path=model, dataset_name=write("beside.jsonl", rows))).tokens == 16
    plain = write("plain.jsonl", [{"text": "b"}])
    assert answer_budget(RunArguments(model_name_or_path=model, dataset_name=plain)).tokens == 64


@pytest.mark.parametrize(
    ("lengths", "context", "text"),
    [
        ([20] * 99 + [400], 1024, "32 tokens, within which 99 of 100 demonstrations end"),
        (
            [100] * 877 + [900] * 123,
            1024,
            "512 tokens, half the context, within which 87.7 % of the demonstrations end (99 of 100 need 900): give "
            "max_completion_length to let answers be longer",
        ),
        ([510] * 9, 1023, "511 tokens, within which 99 of 100 demonstrations end"),
        ([], 1024, "64 tokens, the default: there is no demonstration with an answer to measure"),
    ],
)
def test_the_share_of_demonstrations_that_end_within_the_budget_is_said(lengths, context, text):
    assert AnswerBudget.of(lengths, context).text == f"max_completion_length: {text}"


def test_fewer_held_out_rows_than_asked_for_are_said_with_the_remedy(prepare, write, tmp_path, capsys):
    rows = [{"prompt": f"{number}:", "completion": "y"} for number in range(60)]
    found = prepare(dataset_name=write("rows.jsonl", rows), num_validation_samples=1, num_test_samples=50)
    tell_data(RunFolder(tmp_path / "run-1", read_only=True), terminal(), "")
    out, count = " ".join(capsys.readouterr().out.split()), len(found["test"])
    assert f"num_test_samples=50 of {tmp_path}/rows.jsonl, and there are {count}, a tenth of the rows at most:" in out
    assert "give more rows, or held-out ones of their own (eval_dataset_name)" in out
    assert "num_validation_samples" not in out
    own = RunArguments(dataset_name="rows.jsonl", eval_dataset_name="held.jsonl", num_test_samples=9)
    assert fewer_text(own, "test", 3) == "num_test_samples=9 of held.jsonl, and there are 3: give more rows there"
    assert fewer_text(own, "test", 9) is None
