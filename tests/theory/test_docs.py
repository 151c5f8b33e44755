"""docs/theory.md: every statement is there, every link leads somewhere, every formula can be typeset."""

import re
from pathlib import Path

import pytest

from densepath.theory.runner import STATEMENTS, run_statements

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```math\n(.*?)```", TEXT, flags=re.DOTALL)
PROSE = re.sub(r"```.*?```|`[^`\n]*`", "", TEXT, flags=re.DOTALL)
INLINE = re.findall(r"\$([^$\n]+)\$", PROSE)


def sections():
    return re.split(r'(?=<a id="statement-\d+"></a>)', TEXT)[1:]


def test_each_statement_has_source_function_and_test():
    assert len(sections()) == len(STATEMENTS)
    for number, (section, statement) in enumerate(zip(sections(), STATEMENTS.values(), strict=True), start=1):
        assert section.startswith(f'<a id="statement-{number}"></a>\n## {number}. ')
        assert re.search(r"^Source: .*\[[PD]\]", section, flags=re.MULTILINE)
        assert f"`{statement.__name__}`" in section
        assert "test_plants.py" in section
        assert "*Proof.*" in section


def test_links_lead_somewhere():
    links = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", TEXT)
    assert len(links) > 30
    for label, target in links:
        if target.startswith("#"):
            assert f'<a id="{target[1:]}"></a>' in TEXT
            continue
        path = (ROOT / "docs" / target).resolve()
        assert path.is_file(), target
        for name in re.findall(r"`(\w+)`", label):
            source = path.read_text(encoding="utf-8")
            assert path.stem == name or f"def {name}(" in source, (name, target)


def test_results_point_at_their_section():
    for result in run_statements(0, 1, ["1", "8"]).results:
        path, anchor = result.docs.split("#")
        assert f'<a id="{anchor}"></a>' in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("formula", BLOCKS + sorted(set(INLINE)))
def test_formulas_render(formula):
    """matplotlib's typesetter knows a subset of what GitHub's does: what it takes, both take."""
    from matplotlib.mathtext import MathTextParser

    one_line = " ".join(formula.split()).replace(r"\langle", "<").replace(r"\rangle", ">")
    MathTextParser("path").parse(f"${one_line}$")


def test_inline_formulas_survive_markdown():
    assert PROSE.count("$") % 2 == 0
    for formula in INLINE:
        # markdown would take these for escapes or emphasis
        assert not re.search(r"\\[,;:!{}|_*]", formula), formula
        assert not re.search(r"[})\]]_", formula), formula
        assert formula == formula.strip()
