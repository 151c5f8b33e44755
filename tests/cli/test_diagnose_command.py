"""`densepath diagnose` end to end: the folders of `densepath sft` and `run`, what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama, with_lora
from tests.tiny_sft import TOKENIZER, counting_models, counting_rows

from densepath import load_dataset_rows
from densepath.choice.decide import decide
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.choice.measure import measure
from densepath.cli.main import main
from densepath.io import write_jsonl_atomic
from densepath.records.choice import Decision
from densepath.records.codec import from_json, to_json


def checked(seed, n=8):
    return [{**row, "answer": row["completion"]} for row in counting_rows(n, seed=seed)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("counting")
    for name, model in zip(("sft", "ref", "base"), counting_models(), strict=True):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    return {name: folder / name for name in ("sft", "ref", "base")}


@pytest.fixture(params=["sft", "run"])
def run_dir(request, saved, tmp_path, monkeypatch) -> Path:
    """As `densepath sft` or `densepath run` leaves it; a run has its splits and a verifier."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    inside = folder / "sft" if request.param == "run" else folder
    (inside / "references").mkdir(parents=True)
    (inside / "model").symlink_to(saved["sft"])
    (inside / "references/0.25").symlink_to(saved["ref"])
    recipe = {"model_name_or_path": str(saved["base"]), "dataset_name": "train.jsonl"}
    if request.param == "run":
        recipe |= {"verifier": "exact_match", "max_completion_length": 6}
        for name, mark in (("train", "t"), ("validation", ""), ("test", "u")):
            rows = [{**row, "prompt": mark + row["prompt"]} for row in checked(41)]
            write_jsonl_atomic(folder / f"data/{name}.jsonl", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_diagnose_writes_what_the_function_returns(run_dir, saved, write_jsonl, capsys):
    words = ["diagnose", "--run_dir", str(run_dir), "--betas", "0.5", "--seed", "2"]
    rows = run_dir / "data/validation.jsonl"
    if not rows.exists():  # `densepath sft` alone
        rows = Path(write_jsonl("held-out.jsonl", checked(41)))
        words += ["--dataset_name", str(rows), "--verifier", "exact_match", "--max_completion_length", "6"]
    assert main(words) == 0
    record = json.loads(Path("diagnosis.json").read_text())
    out = " ".join(capsys.readouterr().out.split())
    assert list(record["paths"]) == ["0", "0.25"]
    assert (record["verifier"], record["max_completion_length"], record["prompts"]) == ("exact_match", 6, 8)
    direct = measure(
        SFTModels(saved["sft"], {"0": saved["base"], "0.25": saved["ref"]}, TOKENIZER),
        Evidence(list(load_dataset_rows(rows, seed=2)), "exact_match"),
        MeasurePlan(betas=(0.5,), max_completion_length=6, seed=2),
    )
    assert {key: record[key] for key in to_json(direct)} == json.loads(json.dumps(to_json(direct)))
    assert from_json(Decision, record["decision"]) == decide(direct)
    for reason in decide(direct).reasons:
        assert reason in out
    sampled, greedy = record["candidates"][:2]
    assert [greedy[name] for name in ("reference", "alpha", "temperature")] == ["0", 2.0, 0.0]
    shares = [f"{answers['value']['mean']:.3f}".lstrip("0") for answers in (sampled, greedy)]
    best = max((sampled, greedy), key=lambda answers: answers["against_best"]["difference"]["mean"])["against_best"]
    lead = f"{best['difference']['mean']:+.2f}".replace("0.", ".")
    assert f"0 0.5 {shares[0]} - {shares[1]} {lead} [" in out


def test_preferences_without_a_verifier(run_dir, write_jsonl, capsys):
    recipe = yaml.safe_load((run_dir / "config.yaml").read_text())
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**recipe, "verifier": None}))
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "9 9."} for r in counting_rows(9, seed=4)]
    words = ["--dataset_name", write_jsonl("prompts.jsonl", [{"prompt": r["prompt"]} for r in pairs[:4]])]
    words += ["--preference_dataset_name", write_jsonl("pairs.jsonl", pairs), "--references", "0.25"]
    words += ["--max_completion_length", "6", "--betas", "1", "--output_file", "found.json", "--html_file", "p.html"]
    assert main(["diagnose", "--run_dir", str(run_dir), *words]) == 0
    record = json.loads(Path("found.json").read_text())
    assert list(record["paths"]) == ["0.25"]
    assert (record["verifier"], record["preferences"], record["likelihoods"]) == (None, 9, [])
    assert record["rewards"][0]["preference"]["n"] == 9
    assert "No preview could be judged" in capsys.readouterr().out
    assert "No preview could be judged" in Path("p.html").read_text()


def test_the_reward_alone_says_which_reference_to_try(run_dir, write_jsonl, capsys):
    """No sampling and no verifier: demonstrations against twins with an altered number."""
    recipe = yaml.safe_load((run_dir / "config.yaml").read_text())
    rows = write_jsonl("held-out.jsonl", counting_rows(8, seed=31))
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**recipe, "verifier": None, "dataset_name": rows}))
    words = ["diagnose", "--run_dir", str(run_dir), "--dataset_name", rows, "--num_generations", "0"]
    assert main(words) == 0
    record = json.loads(Path("diagnosis.json").read_text())
    out = " ".join(capsys.readouterr().out.split())
    split = (run_dir / "data/train.jsonl").exists()  # which says of each row whether it was trained on: here none was
    assert ("honest on rows that SFT has not seen" in out) is not split
    assert (record["criterion"], record["sft"], record["candidates"]) == ("altered", [], [])
    assert [one["reference"] for one in record["agreement"]] == ["0", "0.25", "all"]
    assert record["decision"]["answer"] in ("cannot_tell", "none")
    assert record["decision"]["figure"] == max(
        (one["value"] for one in record["agreement"]), key=lambda value: value["mean"]
    )
    value = record["agreement"][1]["value"]
    assert f"0.25 {value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" in out
    assert main([*words, "--ensemble", "false", "--references", "0.25", "--html_file", "page.html"]) == 0
    assert re.search(r"^ ?0\.25 ", capsys.readouterr().out, flags=re.MULTILINE)
    assert "altered numbers" in Path("page.html").read_text()


def test_equal_weights_are_warned_of_and_a_run_without_references_says_how_to_keep_some(
    saved, tmp_path, write_jsonl, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model").symlink_to(saved["sft"])
    rows = write_jsonl("rows.jsonl", counting_rows(4, seed=1))
    words = ["diagnose", "--run_dir", "out", "--dataset_name", rows, "--num_generations", "0"]
    assert main(words) == 2
    assert "SFT kept no reference; train with reference_fractions, such as 0.25 0.5 0.75" in capsys.readouterr().err
    (tmp_path / "out/config.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(saved["sft"])}))
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "reference 0 has the same weights as the SFT model: its reward is zero everywhere" in out


def test_adapters_on_one_base(tmp_path, write_jsonl, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    base = tiny_llama(vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for seed, name in enumerate(("model", "references/0.5")):
        adapter = with_lora(tiny_llama(vocab_size=len(tokenizer)), seed=seed)
        adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        adapter.save_pretrained(tmp_path / "out" / name)
    (tmp_path / "out/config.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(tmp_path / "base")}))
    rows = write_jsonl("rows.jsonl", checked(3, 3))
    words = ["--run_dir", "out", "--dataset_name", rows, "--max_completion_length", "4", "--verifier", "exact_match"]
    assert main(["diagnose", *words]) == 0
    record = json.loads(Path("diagnosis.json").read_text())
    assert list(record["paths"]) == ["0", "0.5"]
    assert all(reward["per_token"]["sd"] > 1e-3 for reward in record["rewards"])
    assert record["decision"]["answer"] == "cannot_tell"  # random models are never right
    assert "found every answer wrong" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"run_dir": "nowhere"}, "nowhere: no such folder; give the output_dir of densepath sft or run"),
        ({"run_dir": None}, "run_dir is missing: Folder of an SFT run"),
        ({"references": "0.9"}, "references=0.9 was not kept by this run; there is 0, 0.25"),
        ({"betas": "0"}, "betas=[0.0] must be different positive numbers"),
        ({"betas": "1,inf"}, "betas=inf must be a number"),
        ({"max_samples": "1"}, "max_samples=1 must be at least 2"),
        ({"run_dir": "."}, "no finished SFT run: neither model nor sft/model is there"),
        ({"criterion": "luck"}, "criterion='luck' does not exist; choose one of: auto, answers, preference"),
        (
            {"criterion": "verifier", "num_generations": "0"},
            "criterion=verifier cannot be computed from what was given (prompts count from 5 on); there is altered",
        ),
        ({"num_generations": "-1"}, "num_generations=-1 must be at least 0"),
        ({"verifier": "luck"}, "verifier 'luck' does not exist"),
        ({"html_file": "page.txt"}, "html_file=page.txt must end in .html"),
        ({"max_completion_length": "9999"}, "max_completion_length=9999 fills the models' context of"),
        ({"preference_dataset_name": "rows"}, 'row 1: no "chosen"; a preference row has'),
        ({"dataset_name": "unanswered"}, 'no "answer"'),
    ],
)
def test_mistakes_are_one_line(run_dir, write_jsonl, capsys, words, message):
    rows = write_jsonl("rows.jsonl", checked(1, 5))
    write_jsonl("unanswered.jsonl", counting_rows(4, seed=1))
    given = {"run_dir": str(run_dir), "dataset_name": rows, "verifier": "exact_match", **words}
    given = {key: {"rows": rows, "unanswered": "unanswered.jsonl"}.get(value, value) for key, value in given.items()}
    words = [word for key, value in given.items() if value is not None for word in (f"--{key}", value)]
    assert main(["diagnose", *words]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"densepath: error: [^\n]+\n", err)
    assert message in err


def test_demonstrations_beyond_the_context_are_no_obstacle_as_they_are_none_for_a_run(run_dir, write_jsonl, capsys):
    """With a verifier all prompts are asked; by the reward alone the other rows count."""
    rows = checked(41)
    rows[3]["completion"] = "1 " * 600
    judged = (run_dir / "data").exists()  # the recipe of a run has a verifier
    words = ["diagnose", "--run_dir", str(run_dir), "--betas", "1", "--max_completion_length", "6"]
    assert main([*words, "--dataset_name", write_jsonl("long.jsonl", rows)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("all are asked as prompts alone" if judged else "1 of 8 left out") in out
    assert json.loads(Path("diagnosis.json").read_text())["prompts"] == (8 if judged else 7)


def test_a_held_out_row_of_two_kinds_is_named_with_its_place(run_dir, write_jsonl, capsys):
    rows = [*checked(41), {"prompt": "z", "answer": "1", "completion": [{"role": "assistant", "content": "a"}]}]
    path = write_jsonl("mixed.jsonl", rows)
    assert main(["diagnose", "--run_dir", str(run_dir), "--dataset_name", path]) == 2
    assert f"{path}, row {len(rows)}: " in capsys.readouterr().err


def test_validation_rows_and_never_the_test_s(run_dir, capsys):
    words = ["diagnose", "--run_dir", str(run_dir)]
    if not (run_dir / "data").exists():
        assert main(words) == 2
        assert "dataset_name is missing: validation rows" in capsys.readouterr().err
        return
    assert main([*words, "--dataset_name", str(run_dir / "data/test.jsonl")]) == 2
    assert "8 of 8 prompts are test prompts of this run" in capsys.readouterr().err
    assert main([*words, "--dataset_name", str(run_dir / "data/train.jsonl"), "--betas", "1"]) == 0
    assert "8 of 8 prompts were trained on" in capsys.readouterr().out.replace("\n", " ")
    row = json.loads((run_dir / "data/train.jsonl").read_text().splitlines()[0])
    turns = [("user", row["prompt"]), ("assistant", "x"), ("user", "Go on."), ("assistant", "y")]
    row["messages"] = [{"role": role, "content": content} for role, content in turns]
    write_jsonl_atomic(run_dir / "data/train.jsonl", [{"messages": row["messages"]}])
    write_jsonl_atomic(run_dir / "asked.jsonl", [{"prompt": row["prompt"], "answer": "x"}])
    assert main([*words, "--dataset_name", str(run_dir / "asked.jsonl"), "--betas", "1"]) == 0
    assert "1 of 1 prompts were trained on" in capsys.readouterr().out.replace("\n", " ")
