"""What a user can get wrong: one line on stderr with the place and the remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.pipeline.runs import leftovers, run_argv

from densepath.cli.main import main
from densepath.config.run import RunArguments
from densepath.errors import DensepathError
from densepath.pipeline.run import check_configuration

GOOD = [{"prompt": f"Say {i}:", "completion": f"{i}", "answer": f"{i}"} for i in range(60)]
CHAT = [
    {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": f"{i}"}]}
    for i in range(60)
]
TEXT = [{"text": f"Say {i}: {i}"} for i in range(60)]
LONG = {"prompt": "z" * 300, "completion": "y", "answer": "y"}
ROBOT = {
    "prompt": [{"role": "robot", "content": "x"}],
    "completion": [{"role": "assistant", "content": "y"}],
}


@pytest.fixture
def refused(models, tmp_path, capsys):
    """Run `densepath run` with the changes; it must fail with one line, which is returned."""

    def run(code: int = 2, **changes) -> str:
        output = tmp_path / "run"
        argv = run_argv(models["sft"], output, **{"verifier": "none", **changes})
        assert main(argv) == code
        err = capsys.readouterr().err
        assert err.startswith("densepath: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        if output.exists():
            assert leftovers(output) == []
            for path in output.rglob("*.jsonl"):
                assert all(json.loads(line) for line in path.read_text().splitlines())
        with pytest.raises(DensepathError):
            main([*argv, "--debug"])
        capsys.readouterr()
        return err

    return run


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_missing_file(refused):
    assert "no data set at nowhere.jsonl: there is neither a file nor a folder; check the path" in refused(
        dataset_name="nowhere.jsonl"
    )


def test_an_empty_data_set(refused, write_jsonl):
    path = write_jsonl("empty.jsonl", [])
    assert f"{path}: no rows; give at least one example" in refused(dataset_name=path)


def test_too_few_rows_for_a_held_out_part(refused, write_jsonl):
    path = write_jsonl("few.jsonl", GOOD[:2])
    assert "no row is left for the" in refused(dataset_name=path)


def test_a_row_without_a_completion(refused, write_jsonl):
    path = write_jsonl("rows.jsonl", [*GOOD[:3], {"prompt": "x"}, *GOOD[3:]])
    assert f'{path}, row 4: a prompt without "completion"; add the demonstrated answer' in refused(dataset_name=path)


def test_a_role_that_does_not_exist(refused, write_jsonl):
    path = write_jsonl("roles.jsonl", [*CHAT[:4], ROBOT])
    err = refused(dataset_name=path)
    assert f"{path}, row 5: " in err
    assert "the role 'robot'; the roles are system, user, assistant" in err


def test_a_line_that_is_not_json(refused, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comple\n')
    assert f"{path}, row 2: not valid JSON" in refused(dataset_name=str(path))


@pytest.mark.parametrize("key", ["rl_prompts", "eval_dataset_name"])
def test_a_prompt_longer_than_the_context_names_its_row_in_its_file(refused, write_jsonl, key):
    changes = {"dataset_name": write_jsonl("good.jsonl", GOOD), "eval_dataset_name": write_jsonl("held.jsonl", CHAT)}
    rows = [{"prompt": f"Repeat {i}.", "completion": "x"} for i in range(30)]
    changes[key] = write_jsonl("long.jsonl", [*rows[:7], LONG, *rows[7:]])
    err = refused(**changes, num_validation_samples=20, num_test_samples=20)
    assert (
        f"{changes[key]}, row 8: 300 tokens beside max_completion_length=6, but the models' context holds 256" in err
    )
    assert "; shorten or leave it out, or lower max_completion_length" in err


def test_training_prompts_longer_than_the_context_are_left_out_and_counted(models, tmp_path, write_jsonl, capsys):
    """SFT and DPR can do without them; a run whose every training prompt is too long cannot."""
    held = write_jsonl("held.jsonl", CHAT)
    nearly = {"prompt": "z" * 252, "completion": "y"}  # fits the context, and leaves no room to sample 6 tokens
    path = write_jsonl("some.jsonl", [LONG, nearly, *GOOD[:3]])
    output = tmp_path / "some"
    argv = run_argv(models["sft"], output, dataset_name=path, eval_dataset_name=held, verifier="none", beta=1)
    argv += ["--sft_max_steps", "1", "--dpr_max_steps", "3", "--arms", "sft", "dpr", "--eval_temperatures", "0"]
    assert main(argv) == 0  # three steps of two prompts: all that are left
    out = " ".join(capsys.readouterr().out.split())
    assert "5 train, 4 validation, 4 test rows (1 left out of SFT: the prompt fills max_length;" in out
    assert "2 left out of DPR: the prompt is too long" in out
    argv = run_argv(models["sft"], tmp_path / "all", dataset_name=write_jsonl("all.jsonl", [nearly]), verifier="none")
    assert main([*argv, "--eval_dataset_name", held]) == 2
    assert "all.jsonl: no training prompt leaves room for a completion" in capsys.readouterr().err


def test_a_completion_budget_that_fills_the_context(refused):
    assert "max_completion_length=256 fills the models' context of 256 tokens" in refused(max_completion_length=256)


def test_plain_text_has_no_prompts_to_sample_from(refused, write_jsonl):
    text, good = write_jsonl("text.jsonl", TEXT), write_jsonl("good.jsonl", GOOD)
    assert f"{text}, row 1: plain text has no prompt to sample from; give prompts of their own with eval" in refused(
        dataset_name=text
    )
    assert "give prompts of their own with rl_prompts" in refused(dataset_name=text, eval_dataset_name=good)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": CHAT[0]["prompt"] + CHAT[0]["completion"]}, "the prompt ends with an assistant turn"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "z", "completion": CHAT[0]["completion"]}, 'differ in kind; make both text or both lists'),
        ({"prompt": CHAT[0]["prompt"], "completion": CHAT[0]["prompt"]}, '"completion" has no assistant turn'),
        ({"prompt": CHAT[0]["prompt"]}, "format is conversational prompt, where row 1 is standard prompt"),
        ({"text": "z"}, 'a "text" row has no prompt'),
    ],
)  # fmt: skip
def test_held_out_rows_are_checked_before_training(refused, write_jsonl, row, message):
    held = [{"prompt": f"Repeat {i}:"} for i in range(60)]
    file = write_jsonl("held.jsonl", [*held, row])
    err = refused(dataset_name=write_jsonl("rows.jsonl", GOOD), eval_dataset_name=file)
    assert f"{file}, row 61: " in err
    assert message in err


def test_a_choice_without_anything_to_judge_by_is_refused_before_sft(refused, write_jsonl, tmp_path):
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"Say {n}:"} for n in range(1000, 1200)])
    given = {"dataset_name": write_jsonl("good.jsonl", GOOD), "eval_dataset_name": prompts, "verifier": "none"}
    err = refused(**given, reference="auto")
    assert "reference=auto needs a verifier or a judge, or held-out rows with a completion" in err
    assert not (tmp_path / "run/sft").exists()


def test_held_out_prompts_that_are_trained_on(refused, write_jsonl):
    train = write_jsonl("train.jsonl", GOOD)
    leak = {"prompt": "  Say\n17: ", "completion": "another"}  # the same content, written in another way
    held = write_jsonl("held.jsonl", [{**row, "prompt": f"Repeat {row['answer']}."} for row in GOOD] + [leak])
    err = refused(dataset_name=train, eval_dataset_name=held, max_train_samples=60, num_test_samples=60)
    assert f"{train}, row 18 (train) and {held}, row 61 (" in err
    assert "have the same prompt ('Say 17:'); remove one" in err
    prompts = write_jsonl("rl.jsonl", [*GOOD[:5], leak])
    err = refused(
        dataset_name=write_jsonl("other.jsonl", CHAT), rl_prompts=prompts, eval_dataset_name=held, num_test_samples=60
    )
    assert f"{prompts}, row 6 (rl) and {held}, row 61 (" in err
    assert "have the same prompt" in err


REFUSES = (  # Gemma: no system turn
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system turn') }}{% endif %}"
    "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("command", ["sft", "dpr", "purify", "run", "answer length", "held-out answers"])
def test_a_row_that_the_chat_template_refuses_is_named(models, tmp_path, write_jsonl, capsys, command):
    """Whatever shuffled and split the rows before they are read as ids; a blank line is a line."""
    (tmp_path / "template.jinja").write_text(REFUSES)
    system, answered = {"role": "system", "content": "Be kind."}, CHAT[0]["completion"]
    row = {"prompt": [system, *CHAT[0]["prompt"]], "completion": answered}
    if command == "held-out answers":  # the prompt can be read
        row = {"prompt": [{"role": "user", "content": "Hi?"}], "completion": [*answered, system, *answered]}
    path = Path(write_jsonl("bad.jsonl", [*CHAT[:40], row, *CHAT[40:]]))
    path.write_text(f"\n{path.read_text()}")
    options = {"dataset_name": path, "chat_template_path": tmp_path / "template.jinja"}
    if command in ("sft", "dpr", "purify"):
        options |= {"model_name_or_path": models["sft"], "output_dir": tmp_path / "out"}
        options |= {} if command == "sft" else {"ref_model_name_or_path": models["ref"], "max_completion_length": 4}
        argv = [command, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
    else:
        options |= {"verifier": "none", "max_train_samples": "none"}
        options |= {"max_completion_length": "none"} if command == "answer length" else {}
        if command == "held-out answers":
            options |= {"dataset_name": write_jsonl("good.jsonl", GOOD)}
            options |= {"eval_dataset_name": path, "num_validation_samples": 30, "num_test_samples": 60}
        argv = run_argv(models["sft"], tmp_path / "out", **options)
    assert main(argv) == 2
    assert f"{path}, row 42: the chat template refuses these turns (No system turn)" in capsys.readouterr().err
    assert not (tmp_path / "out/sft").exists()


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_whose_tokenizers_differ(refused, models):
    err = refused(reference=models["foreign"])
    assert f"the tokenizers of {models['sft']} and {models['foreign']} differ" in err


def test_a_model_that_is_not_there(refused, models):
    assert "no such model folder: ./nowhere" in refused(model_name_or_path="./nowhere")
    assert "no such model folder: ./nowhere" in refused(reference="./nowhere")


def test_modules_that_an_adapter_cannot_sit_on(refused):
    assert "Target modules {'nowhere'} not found" in refused(use_peft="true", lora_target_modules="nowhere")


def test_a_reference_equal_to_the_sft_model_is_a_warning(models, tmp_path, capsys):
    argv = run_argv(models["sft"], tmp_path / "run", sft_learning_rate=0, beta=1, sft_max_steps=2, dpr_max_steps=1)
    assert main([*argv, "--reference", "0.5", "--arms", "sft", "dpr", "--eval_temperatures", "0"]) == 0
    warning = "reference 0.5 has the same weights as the SFT model: the reward is zero everywhere"
    assert f"warning: {warning}" in " ".join(capsys.readouterr().out.split())
    (results,) = json.loads((tmp_path / "run/results.json").read_text())["settings"]
    assert warning in results["warnings"]
    assert all(abs(row["reward"]) < 1e-5 for row in results["rows"])
    assert "the reward is zero everywhere" in (tmp_path / "run/report.html").read_text()


def test_weights_that_are_not_numbers_stop_at_the_first_step(refused, models, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(models["sft"], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    err = refused(code=1, model_name_or_path=str(folder))
    assert (
        f"the loss is nan at step 1 ({tmp_path / 'run/sft/metrics.jsonl'}); lower the learning rate, or check" in err
    )


def test_training_that_diverges_names_the_step(refused, tmp_path):
    assert re.search(r"the loss is nan at step [23] \(", refused(code=1, sft_learning_rate="1e20"))
    assert not (tmp_path / "run/sft/model").exists()


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_train_sample": 3}, "unknown key 'max_train_sample'; did you mean max_train_samples?"),
        (
            {"sft_learning_rat": 3},
            "unknown key 'sft_learning_rat': SFTConfig has no such argument; did you mean sft_le",
        ),
        ({"dpr_num_generation": 3}, "unknown key 'dpr_num_generation': DPRConfig has no such argument; did you mean "),
        ({"sft_max_steps": "many"}, "sft_max_steps='many' must be a number"),
        ({"sft_weight_decay": "abc"}, "sft_weight_decay='abc' must be a number"),
        ({"sft_weight_decay": "inf"}, "sft_weight_decay=inf must be at least 0, and finite"),
        ({"sft_dataloader_num_workers": "1.5"}, "sft_dataloader_num_workers=1.5 must be a whole number"),
        ({"dpr_bf16": "perhaps"}, "dpr_bf16='perhaps' must be true or false"),
        ({"sft_lr_scheduler_type": "zigzag"}, "zigzag is not a valid SchedulerType"),
        ({"dpr_temperature": 0.5}, "REINFORCE must sample from the policy it differentiates: set temperature=1"),
        ({"dpr_baseline": "critic"}, "baseline='critic' does not exist; choose one of: none, position_mean"),
        ({"report_to": "clearml"}, "report_to=clearml needs a package that is missing: pip install clearml"),
        ({"report_to": "no"}, "report_to='no' does not exist; choose none, all, or some of"),
        ({"sft_report_to": "wandb"}, "sft_report_to is not taken from a recipe; set report_to, which holds for every"),
        ({"sft_packing": "yes"}, "packing=True has no effect in SFT, whose rows densepath tokenises itself"),
        ({"dpr_loss_type": "grpo"}, "loss_type='grpo' has no effect in DPR"),
        ({"sft_lr_scheduler_kwargs": "{power: 2}"}, "get_cosine_schedule_with_warmup() got an unexpected keyword"),
        (
            {"dpr_model_init_kwargs": "{dtype: float64}"},
            "dpr_model_init_kwargs is not taken here: a command loads its",
        ),
        ({"dpr_beta": 0.5}, "dpr_beta is not taken from a recipe; set beta"),
        ({"dpr_push_to_hub": True}, "dpr_push_to_hub is not taken from a recipe; set nothing: of the models that"),
        ({"sft_output_dir": "x"}, "sft_output_dir is not taken from a recipe; set output_dir"),
        (
            {"dpr_logging_strategy": "epoch"},
            "dpr_logging_strategy is not taken from a recipe; set nothing: every step",
        ),
        (
            {"verifier": "exactmatch"},
            "verifier 'exactmatch' does not exist; choose exact_match, final_number, instruction_format, or give",
        ),
        ({"verifier": "nowhere:f"}, "'nowhere' cannot be imported (ModuleNotFoundError"),
        ({"num_threads": 0}, "num_threads=0 must be at least 1"),
        ({"max_length": 0}, "max_length=0 must be at least 2"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"lora_r": 0, "use_peft": True}, "lora_r=0 must be at least 1"),
        ({"num_report_samples": -1}, "num_report_samples=-1 must be at least 0"),
        ({"dpr_per_device_train_batch_size": -4}, "dpr_per_device_train_batch_size=-4 must be at least 1"),
        ({"beta": "inf"}, "beta=inf must be auto or a number above 0"),
        ({"candidate_betas": ["1", "inf"]}, "candidate_betas=inf must be a number"),
        ({"candidate_betas": [1, "1.0"]}, "candidate_betas=[1.0, 1.0]: give each once"),
        ({"eval_temperatures": [1, 0.5, "1.0000001"]}, "eval_temperatures=[1.0, 0.5, 1.0000001]: give each once"),
        ({"reference": 0.3}, "reference=0.3 is not among reference_fractions (0, 0.25, 0.5, 0.75)"),
    ],
)
def test_a_recipe_is_refused_before_anything_is_written(refused, tmp_path, changes, message):
    assert message in refused(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("said", [False, "no"])
def test_a_recipe_may_say_that_nothing_is_pushed(said):
    check_configuration(RunArguments(), {"sft_push_to_hub": said, "dpr_push_to_hub": said})


def test_a_dtype_that_does_not_exist(refused):
    assert "dtype 'float31' is not one of float32, bfloat16" in refused(dtype="float31")


def test_answers_that_the_verifier_needs(refused, write_jsonl):
    path = write_jsonl("chat.jsonl", [*CHAT[:59], {**CHAT[59], "answer": "59"}])
    err = refused(dataset_name=path, verifier="exact_match")
    assert f"{path}, row " in err
    assert 'no "answer" to compare with' in err
    assert "or leave the verifier out" in err
    rows = [{**row, "answer": "many"} if i == 11 else row for i, row in enumerate(GOOD)]
    path = write_jsonl("words.jsonl", rows)
    err = refused(
        dataset_name=write_jsonl("train.jsonl", CHAT), eval_dataset_name=path, verifier="final_number",
        num_validation_samples=30, num_test_samples=60,
    )  # fmt: skip
    assert f"{path}, row 12: " in err
    assert "holds no number" in err


def test_a_run_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder" in refused(output_dir=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    assert "Not a directory; give another output_dir" in refused(code=1, output_dir=str(tmp_path / "file/run"))


def test_a_mistake_can_be_corrected_in_the_same_folder(models, tmp_path, write_jsonl, capsys):
    """The configuration of a run that trained nothing yet binds nobody."""
    output = tmp_path / "run"
    wrong = run_argv(models["sft"], output, dataset_name=write_jsonl("rows.jsonl", [*GOOD, {"prompt": "x"}]))
    assert main(wrong) == 2
    capsys.readouterr()
    right = run_argv(models["sft"], output, dataset_name=write_jsonl("good.jsonl", GOOD), dtype="float31")
    assert main(right) == 2
    assert "dtype" in capsys.readouterr().err
    other = run_argv(models["sft"], output, sft_max_steps=1, dpr_max_steps=1, beta=1, arms=["sft", "dpr"])
    assert main([*other, "--eval_temperatures", "0"]) == 0
    assert "text_tasks" in (output / "data.json").read_text()
    assert "good.jsonl" not in (output / "data.json").read_text()
    assert "dataset_name: text_tasks" in (output / "config.yaml").read_text()
    capsys.readouterr()
    assert main(right) == 2
    assert "holds a run with another configuration" in capsys.readouterr().err


# --- the other commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --config nowhere.yaml", "--config nowhere.yaml: no such file"),
        ("run recipe.yaml", "unexpected word 'recipe.yaml' (see densepath run --help)"),
        ("report", "the following arguments are required: run_dir (see densepath report --help)"),
        ("report nowhere", "nowhere: no such run folder; give the output_dir of run, experiment or judge"),
        ("report nowhere --fast", "unrecognized arguments: --fast"),
        ("theory --seed x", "argument --seed: invalid int value: 'x' (see densepath theory --help)"),
        ("env --fast", "unrecognized arguments: --fast"),
        ("score --model_name_or_path SFT", "dataset_name is missing"),
        ("score", "model_name_or_path is missing: The SFT model"),
        ("sft --model_name_or_path SFT", "dataset_name is missing: Demonstrations"),
        ("run --dataset-name good", "model_name_or_path is missing: Hub id"),
        (
            "run --model_name_or_path SFT --dataset_name good --sft_max_steps 2 --sft_num_train_epochs 1",
            "give one of them",
        ),
        ("dpr --model_name_or_path SFT --dataset_name good --dataset_test_split x", "without eval_dataset_name"),
        ("score ON --dense_reward x", "dense_reward='x' does not exist; choose one of: baseline_relative, logprob"),
        ("score ON --datasetname x", "unknown key 'datasetname'; did you mean dataset_name?"),
        ("score --dataset_name good --model_name_or_path SFT", "baseline_relative needs ref_model_name_or_path"),
        ("score --dataset_name long --model_name_or_path SFT --dense_reward logprob --strict", "row 61: 302 tokens"),
        ("score ON --output_file scores.csv", "output_file=scores.csv must end in .jsonl or .parquet"),
        ("score ON --num_shards 2 --shard_index 2", "shard_index=2 must lie in 0..1, below num_shards"),
        ("score --dataset_name prompts --model_name_or_path SFT --dense_reward logprob", "no row could be scored"),
        ("score --dataset_name empty --model_name_or_path SFT --dense_reward logprob", "empty.jsonl: no rows"),
        ("eval --model_name_or_path SFT --dataset_name good --verifier x", "verifier 'x' does not exist; choose"),
        ("eval ON --temperature -1", "temperature=-1.0 must be at least 0; 0 is greedy"),
        ("eval ON --seed -1", "seed=-1 must be at least 0"),
        ("sft --model_name_or_path SFT --dataset_name good --max_length 1", "max_length=1 must be at least 2"),
        ("eval ON --num_generations 0", "num_generations=0 must be at least 1"),
        ("eval --dataset_name chat --model_name_or_path SFT", 'the row has no "answer" to compare with'),
        ("eval --dataset_name long --model_name_or_path SFT", "long.jsonl, row 61: 300 tokens beside max_"),
        ("eval --dataset_name text --model_name_or_path SFT", 'text.jsonl, row 1: a "text" row has no prompt'),
        (
            "sft --model_name_or_path SFT --completion_only_loss false --dataset_name good",
            "completion_only_loss=False has no effect",
        ),
        (
            "dpr --model_name_or_path SFT --max_completion_length none --dataset_name good",
            "max_completion_length=None: give the most",
        ),
        (
            "dpr --model_name_or_path SFT --report_to clearml --dataset_name good",
            "report_to=clearml needs a package that is missing",
        ),
        ("sft --model_name_or_path SFT --seed -1 --dataset_name good", "seed=-1 must lie in [0, 4294967295]"),
        (
            "sft --model_name_or_path SFT --num_train_epochs inf --dataset_name good",
            "num_train_epochs=inf must lie in (0, 1000000]",
        ),
        (
            "sft --model_name_or_path SFT --max_step 2 --dataset_name good",
            "unknown key 'max_step': SFTConfig has no such argument",
        ),
        ("dpr --model_name_or_path SFT --max_completion_length 4 --dataset_name good", "needs ref_model_name_or_path"),
        ("dpr --model_name_or_path SFT --dataset_name text", 'text.jsonl, row 1: a "text" row has no prompt'),
        (
            "dpr --model_name_or_path SFT --ref_model_name_or_path FOREIGN --max_completion_length 4 "
            "--dataset_name good",
            "differ: token",
        ),
        (
            "dpr --model_name_or_path SFT --dataset_name long --max_completion_length 4",
            "long.jsonl, row 61: 300 tokens beside max_",
        ),
    ],
)  # fmt: skip
def test_wrong_input_of_the_other_commands(models, tmp_path, write_jsonl, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    files = {
        "good": GOOD,
        "chat": CHAT,
        "text": TEXT,
        "long": [*GOOD, LONG],
        "empty": [],
        "prompts": [{"prompt": "?"}],
    }
    words = words.replace(" ON ", " --dataset_name good --model_name_or_path SFT ")
    values = {name: write_jsonl(f"{name}.jsonl", rows) for name, rows in files.items() if f" {name}" in words}
    values |= {"SFT": models["sft"], "FOREIGN": models["foreign"]}
    assert main([values.get(word, word) for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path(tmp_path).rglob("*.tmp"))
