"""The command, its JSON and its page: exit codes, escaping, no network, the same bytes twice."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.cells import cell_len
from rich.console import Console

from densepath.cli.theory import _parser, run
from densepath.errors import UsageError
from densepath.records.theory import Check, Kind, Report, StatementResult
from densepath.report.console import parts_text
from densepath.report.html import page_html
from densepath.report.theory import theory_page, theory_parts
from densepath.theory import runner
from densepath.theory.runner import run_statements

FEW = ["--instances", "2", "--only", "3", "--only", "contrastive"]


@pytest.fixture(scope="module")
def report():
    return run_statements(0, 2)


class Tags(HTMLParser):
    """Collects tags and attributes, and insists that what is opened is closed."""

    VOID = ("meta", "br", "link", "path", "use", "stop", "line", "rect", "circle")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def failing(seed, instances):
    bad = Check("<b>planted</b>", Kind.EQUALITY, float("nan"), 1e-10)
    return StatementResult(3, "shaping", "a <script>alert(1)</script> title", "D", "nothing", "not at all", (bad,))


def test_table_and_exit_code(capsys):
    assert run(FEW) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 statements hold" in out
    assert "holds" in out
    assert "Traceback" not in err


def test_a_failing_statement_gives_exit_code_1(monkeypatch, capsys):
    monkeypatch.setitem(runner.STATEMENTS, "shaping", failing)
    assert run(FEW) == 1
    out, _ = capsys.readouterr()
    assert "FAILS" in out
    assert "1 of 2 statements hold" in out
    assert "<b>planted</b>: nan, should be at most 1e-10" in out


@pytest.mark.parametrize("width", [70, 80, 200])
def test_no_word_is_cut_off_whatever_the_width(report, width):
    console = Console(width=width, file=io.StringIO())
    console.print(parts_text(theory_parts(report, width)))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("holds") == len(runner.STATEMENTS)


def test_json_on_stdout_is_pure(capsys, monkeypatch):
    assert run([*FEW, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [s["number"] for s in value["statements"]] == [3, 8]
    assert value["verdict"] == "holds"
    monkeypatch.setitem(runner.STATEMENTS, "shaping", failing)
    assert run([*FEW, "--json"]) == 1
    value = json.loads(capsys.readouterr().out)  # NaN became null, and did not pass
    assert value["statements"][0]["checks"][0]["value"] is None
    assert value["statements"][0]["deviation"] is None
    assert value["verdict"] == "FAILS"


def test_files_are_written_and_repeat(tmp_path, capsys):
    for name in "ab":
        assert (
            run([*FEW, "--output_file", str(tmp_path / f"{name}.json"), "--html_file", str(tmp_path / f"{name}.html")])
            == 0
        )
        assert "statements hold" in capsys.readouterr().out
    for suffix in ("json", "html"):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert first == second
    checks = json.loads((tmp_path / "a.json").read_text())["statements"][0]["checks"]
    page = (tmp_path / "a.html").read_text()
    assert all(f"{check['value']:.3e}" in page for check in checks)  # one source


def test_page_is_self_contained(report):
    page = page_html(theory_page(report))
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.tags
    assert not parser.tags & {"img", "link", "iframe", "object"}
    names = {name for name, _ in parser.attributes}
    assert not any(name.startswith("on") for name in names)
    targets = [value for name, value in parser.attributes if name in ("href", "xlink:href", "src")]
    assert all(target.startswith("#") for target in targets)
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!#)", page)
    # every statement, every picture named for those who do not see it
    assert all(f'id="{result.key}"' in page for result in report.results)
    assert page.count('role="img"') == page.count("<svg ") == page.count("<figcaption>") >= 8
    assert "<metadata>" not in page


def test_what_is_written_on_the_page_is_escaped():
    page = page_html(theory_page(Report(0, 1, (failing(0, 1),))))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;planted" in page
    assert "FAILS" in page


def test_whole_json_is_finite_and_complete(report):
    value = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert len(value["statements"]) == len(runner.STATEMENTS)
    for statement in value["statements"]:
        assert statement["docs"] == f"docs/theory.md#statement-{statement['number']}"
        assert set(statement) >= {
            "title",
            "assumes",
            "method",
            "source",
            "deviation",
            "tolerance",
            "verdict",
            "checks",
        }


def test_defaults_are_the_runners():
    defaults = vars(_parser().parse_args([]))
    assert (defaults["seed"], defaults["instances"]) == (0, runner.DEFAULT_INSTANCES)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="no statement nine"):
        run(["--only", "nine"])
    with pytest.raises(UsageError, match="--instances"):
        run(["--instances", "0"])
    with pytest.raises(UsageError, match="invalid int value: 'many'"):
        run(["--instances", "many"])


def test_help_needs_no_torch():
    code = (
        "import sys\n"
        "from densepath.cli.theory import run\n"
        "try:\n    run(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--instances" in done.stdout
