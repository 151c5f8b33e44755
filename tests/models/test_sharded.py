"""Scores of models whose weights are spread over processes are those of whole ones. On a CPU, by the engines' code."""

from __future__ import annotations

import pytest
import torch
from tests.launching import NEEDS_DEEPSPEED, launched
from tests.tiny_models import tiny_llama

from densepath.models.sharded import inside_forward


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", pytest.param("zero3", marks=NEEDS_DEEPSPEED)])
def test_spread_over_two_processes_a_model_scores_as_on_one(tmp_path, kind):
    done = launched("tests.models.sharded_script", tmp_path, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank, rows in ((0, 4), (1, 1)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == 11
        for name, (before, after, entropies) in found.items():
            assert len(after) == (0 if "none" in name and rank == 1 else rows), name
            for whole, pieces, entropy in zip(before, after, entropies, strict=True):
                torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4, msg=name)
                assert (entropy > 0).all()


def test_a_function_runs_inside_of_the_forward_and_leaves_no_trace():
    model = tiny_llama()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    ids = torch.tensor([[1, 2, 3]])

    def function():
        seen.append("inside")
        return model(input_ids=ids).logits  # its own forward, not this function again

    expected = model(input_ids=ids).logits
    seen.clear()
    assert torch.equal(inside_forward(model, function), expected)
    assert seen == ["before", "inside", "before", "after", "after"]
    assert "forward" not in model.__dict__
    with pytest.raises(ZeroDivisionError):
        inside_forward(model, lambda: 1 / 0)
    assert "forward" not in model.__dict__
