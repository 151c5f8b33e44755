"""`densepath view` as a command: the file that it writes, the server that it starts, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest
from tests.report.scored_files import ROWS

from densepath.cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch, write_jsonl):
    monkeypatch.chdir(tmp_path)
    write_jsonl("scores.jsonl", ROWS)
    write_jsonl("rows.jsonl", [{"prompt": "(", "completion": "b"}])
    return tmp_path


def test_a_scored_file_becomes_a_page_with_its_twin(here, capsys):
    words = ["view", "scores.jsonl", "--html_file", "page.html", "--sort", "lowest", "--max_samples", "2"]
    assert main([*words, "--compare", "right", "2"]) == 0
    assert capsys.readouterr().out.split() == [str(here / "page.html"), str(here / "page.json")]
    twin = json.loads((here / "page.json").read_text())
    assert [row["number"] for row in twin["rows"]] == [2, 3]
    assert twin["total"] == 3
    assert twin["comparison"]["a"]["id"] == "right"
    page = (here / "page.html").read_text()
    assert "2 of 3 rows." in page
    assert '<option value="lowest" selected>' in page


def test_a_scored_file_is_written_without_torch(here):
    code = (
        "import sys; from densepath.cli.main import main; main(['view', 'scores.jsonl', '--html_file', 'page.html']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_what_score_wrote_can_be_viewed(models, here):
    common = ["--model_name_or_path", models["sft"], "--ref_model_name_or_path", models["ref"]]
    assert main(["score", *common, "--dataset_name", "rows.jsonl", "--output_file", "mine.jsonl"]) == 0
    assert main(["view", "mine.jsonl", "--html_file", "mine.html"]) == 0
    (row,) = json.loads((here / "mine.json").read_text())["rows"]
    assert row["turns"][0]["tokens"] == ["b", "<|im_end|>"]


def test_answers_given_on_the_command_line_are_aligned(models, here):
    words = [
        "--model_name_or_path",
        models["sft"],
        "--ref_model_name_or_path",
        models["ref"],
        "--html_file",
        "ab.html",
    ]
    assert main(["view", *words, "--prompt", "Say:", "--completion", "3, 4", "--other_completion", "3, 5"]) == 0
    twin = json.loads((here / "ab.json").read_text())
    assert "replace" in [edit["tag"] for edit in twin["comparison"]["edits"]]
    assert twin["facts"]["SFT model"] == models["sft"]


def test_the_server_starts_answers_and_stops(here):
    command = [sys.executable, "-m", "densepath.cli.main", "view", "scores.jsonl", "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = running.stderr.readline()
        url = re.fullmatch(r"densepath view: (http://127\.0\.0\.1:\d+); Ctrl\+C stops\n", line)[1]
        with urlopen(f"{url}/v1/view", timeout=20) as answer:
            assert json.load(answer)["file"] == {"path": "scores.jsonl", "rows": 3}
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.stderr.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("view", "nothing to view: give a file that densepath score wrote, or model_name_or_path and"),
        ("view nowhere.jsonl", "nowhere.jsonl: no such file; give one that densepath score wrote"),
        ("view rows.jsonl", 'rows.jsonl, row 1: not a scored row, it has no "turns"; see densepath score'),
        ("view scores.jsonl --sort size", "sort='size' does not exist; choose one of: row, reward"),
        ("view scores.jsonl --html_file a.json", "html_file=a.json: the page's JSON twin takes that name"),
        ("view scores.jsonl --html_file a.html --compare 1", "compare takes two rows, by number or id, not 1"),
        ("view scores.jsonl --html_file a.html --compare 1 9", "scores.jsonl: no row '9'; give a number from 1 to 3"),
        ("view scores.jsonl --compare 1 2", "compare=['1', '2'] has no effect without html_file: leave it out"),
        ("view scores.jsonl --max_samples 9", "max_samples=9 has no effect without html_file"),
        ("view scores.jsonl --prompt a --completion b", "prompt='a' has no effect without html_file"),
        ("view scores.jsonl --html_file a.html --prompt a --completion b", "prompt and completion need"),
        ("view scores.jsonl --html_file a.html --model_name_or_path SFT --dense_reward logprob", "html_file takes a"),
        (
            "view --model_name_or_path SFT,SFT --dense_reward logprob --html_file a.html --prompt a --completion b",
            "html_file scores with one pair of models; model_name_or_path names 2",
        ),
        ("view scores.jsonl --html_file a.html --prompt x", "prompt and completion are given together"),
        ("view --model_name_or_path SFT", "dense_reward=baseline_relative needs ref_model_name_or_path"),
        ("view --ref_model_name_or_path SFT", "nothing to view"),
        ("view scores.jsonl --ref_model_name_or_path SFT", "ref_model_name_or_path needs model_name_or_path"),
        ("view --model_name_or_path SFT --dense_reward logprob --html_file a.html", "html_file needs a scored file"),
        ("view --model_name_or_path ./nomodel --dense_reward logprob --port 0", "./nomodel"),
        ("view --model_name_or_path SFT --ref_model_name_or_path FOREIGN --port 0", "differ"),
        ("view scores.jsonl --port TAKEN", "cannot listen on 127.0.0.1, port TAKEN: Address already in use; choose"),
        ("view scores.jsonl --host nowhere.invalid", "cannot listen on nowhere.invalid"),
        ("view scores.jsonl --api_key_file none.txt", "api_key_file=none.txt: cannot be read"),
        ("view scores.jsonl --sorting x", "unknown key 'sorting'; did you mean sort?"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(models, here, capsys, words, message):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"SFT": models["sft"], "FOREIGN": models["foreign"], "TAKEN": str(taken.getsockname()[1])}
        assert main([values.get(word, word) for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert message.replace("TAKEN", values["TAKEN"]) in err
    assert err.count("\n") == 1
    assert not list(here.glob("a.*"))
