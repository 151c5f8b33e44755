"""The notebook runs from its first cell to its last, shows the heat map, and holds no output of anybody's."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.pipeline.runs import save_tiny_model

NOTEBOOK = Path(__file__).parents[2] / "examples/dense_reward.ipynb"


def test_the_notebook_runs(tmp_path, capsys):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names: dict[str, object] = {}
    shown = {}
    for cell in code:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        if cell["id"] == "models":
            models = [save_tiny_model(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
            names |= dict(zip(("SFT_MODEL", "REFERENCE"), models, strict=True))
        if last is not None:
            shown[cell["id"]] = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
    assert "DenseReward" in repr(shown["reward"])
    assert shown["scores"]._repr_html_().count('class="dp-row"') == 3
    sums = [float(line.split(" nats")[0]) for line in capsys.readouterr().out.splitlines()]
    assert sums == sorted(sums, reverse=True)
    assert len(sums) == 3
