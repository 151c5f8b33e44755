"""An adapter is loaded on the base that it was trained on, from any working directory, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.pipeline.runs import save_tiny_model
from tests.tiny_models import with_lora

from densepath.cli.main import main
from densepath.errors import ModelError
from densepath.models import identity
from densepath.models.identity import differences, model_identity, record_base
from densepath.models.load import load_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `out/base`; another one, `elsewhere`, with another model under that name."""
    for folder, seed in (("here", 0), ("elsewhere", 1)):
        save_tiny_model(tmp_path / folder / "out/base", seed=seed)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def save_adapter(folder: str, *, base: str = "out/base", record: bool = True) -> torch.Tensor:
    """An adapter whose configuration names its base as given; what it computes."""
    model = with_lora(load_model("out/base"), seed=3)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    if record:
        record_base(Path(folder))
    return logits(model)


def test_it_loads_from_any_working_directory_by_us_and_by_peft(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = save_adapter("out/lora/model")
    monkeypatch.chdir(place / "elsewhere")
    adapter = place / "here/out/lora/model"
    for given in (adapter, Path("../here/out/lora/model")):
        assert torch.equal(logits(load_model(given)), right)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), right)


def test_a_folder_moved_with_its_base_loads(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = save_adapter("out/lora/model")
    shutil.move(place / "here/out", place / "moved")
    monkeypatch.chdir(place / "elsewhere")
    assert torch.equal(logits(load_model(place / "moved/lora/model")), right)


def test_another_model_in_the_place_of_the_base_is_refused(place: Path) -> None:
    save_adapter("out/lora/model")
    shutil.rmtree("out/base")
    with pytest.raises(ModelError, match=r"out/lora/model: its base model .*out/base is not there"):
        load_model("out/lora/model")
    shutil.copytree(place / "elsewhere/out/base", "out/base")
    with pytest.raises(ModelError, match=r"out/base is another model than it was .weights changed.: load the base"):
        load_model("out/lora/model")


def test_a_base_whose_configuration_was_changed_is_refused(place: Path) -> None:
    save_adapter("out/lora/model")
    path = Path("out/base/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(ModelError, match="config changed"):
        load_model("out/lora/model")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-6, "transformers_version": "9"}))


def test_a_relative_base_of_others_is_meant_from_the_adapters_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = save_adapter("out/lora/model", record=False)
    monkeypatch.chdir(place / "elsewhere")
    assert torch.equal(logits(load_model(place / "here/out/lora/model")), right)
    shutil.copytree(place / "here/out/lora/model", place / "alone")
    for name in ("out/base", "Qwen/Qwen3-0.6B"):  # shaped like a hub id
        shutil.copytree("out/base", f"x/{name}", dirs_exist_ok=True)
        config = json.loads((place / "alone/adapter_config.json").read_text()) | {"base_model_name_or_path": name}
        (place / "alone/adapter_config.json").write_text(json.dumps(config))
        monkeypatch.chdir("x")
        with pytest.raises(ModelError, match=f"its base model {name} would be the folder of that name here"):
            load_model(place / "alone")
        monkeypatch.chdir("..")


def test_what_is_trained_on_from_a_moved_adapter_names_the_base_that_it_has(place: Path) -> None:
    save_adapter("out/lora/model")
    shutil.move(place / "here/out", place / "moved")
    model = load_model(place / "moved/lora/model", for_training=True)
    model.save_pretrained(place / "moved/next")
    config = json.loads((place / "moved/next/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "moved/base")


def test_every_adapter_that_a_command_writes_loads_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"Say {i}:", "completion": f" {i} and on"} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--dataset_name", "rows.jsonl", "--per_device_train_batch_size", "2", "--save_steps", "1"]
    sft = ["sft", "--model_name_or_path", "out/base", "--output_dir", "out/lora", "--use_peft", *words]
    assert main([*sft, "--max_steps", "2", "--reference_fractions", "0.5", "--reference_ema_decay", "0.5"]) == 0
    dpr = ["dpr", "--model_name_or_path", "out/lora/model", "--ref_model_name_or_path", "out/lora/references/0.5"]
    dpr += [*words, "--output_dir", "out/dpr", "--num_generations", "2", "--max_completion_length", "4"]
    assert main([*dpr, "--max_steps", "1"]) == 0
    adapters = [path.parent for path in Path("out").resolve().rglob("adapter_config.json")]
    assert {path.relative_to(place / "here/out").as_posix() for path in adapters} >= {
        *("lora/model", "lora/references/0.5", "lora/references/ema", "dpr/model"),
    }
    monkeypatch.chdir(place / "elsewhere")
    for path in adapters:
        base = load_model(path).get_base_model()
        right = load_model(place / "here/out/base")
        assert torch.equal(base.model.embed_tokens.weight, right.model.embed_tokens.weight)


def test_an_identity_is_that_of_the_content(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = model_identity("out/base"), model_identity(place / "elsewhere/out/base")
    shutil.copytree("out/base", "copy")
    assert model_identity("copy") == here
    assert differences(here, elsewhere) == ["weights"]
    assert set(here) == {"weights", "config", "tokenizer"}
    save_adapter("out/lora/model")
    assert {f"base {name}": value for name, value in here.items()}.items() <= model_identity("out/lora/model").items()
    monkeypatch.setattr(identity, "WHOLE_BYTES", 0)  # as of large files
    assert model_identity("copy") == model_identity("out/base") != here
    assert differences(model_identity("copy"), model_identity(place / "elsewhere/out/base")) == ["weights"]


def test_a_change_in_one_tensor_of_a_large_file_is_seen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE_BYTES", 0)
    before = model_identity("out/base")
    model = load_model("out/base")
    for name, parameter in list(model.named_parameters()):
        with torch.no_grad():
            parameter.add_(1e-3)
        model.save_pretrained("changed")
        assert model_identity("changed")["weights"] != before["weights"], name
        with torch.no_grad():
            parameter.sub_(1e-3)
