import json
import shutil
import subprocess
import sys

import pytest
from tests.report.scored_files import span, turn

from densepath.errors import MissingFileError
from densepath.report import build_report, page_html, run_page, write_report
from densepath.report.load import MAX_SAMPLE_TOKENS, MAX_SAMPLES


def twin(run_dir):
    def refuse(name):
        raise AssertionError(f"{name} in strict JSON")

    return json.loads(write_report(run_dir).json.read_text(encoding="utf-8"), parse_constant=refuse)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path, change):
    value = read(path)
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_the_twin_holds_the_data_of_the_run_folder(run_dir):
    data = twin(run_dir)
    results = read(run_dir / "results.json")
    assert data["results"] == results
    selection = {"warnings": [], "decision": None, "findings": None, **read(run_dir / "selection.json")}
    assert data["selection"] == selection
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert data["samples_total"] == len(samples)
    for sample, shown in zip(samples, data["samples"], strict=True):
        assert shown == sample
    assert data["data"] == read(run_dir / "data.json")
    assert data["environment"] == read(run_dir / "environment.json")
    assert (data["run"], data["model"], data["version"]) == ("a-run", "tiny/model", "0.1.0")
    assert data["date"] == "2026-01-02T03:04:05+00:00"


def test_the_twin_is_the_dump_of_the_report_that_made_the_page(run_dir):
    report = build_report(run_dir)
    paths = write_report(run_dir)
    assert read(paths.json) == json.loads(json.dumps(report.to_dict()))
    assert paths.html.read_text(encoding="utf-8") == page_html(run_page(report))


def test_curves_keep_the_last_value_of_a_step_and_leave_a_gap_at_nan(run_dir):
    curves = {(curve["stage"], curve["metric"]): curve for curve in twin(run_dir)["curves"]}
    assert curves["dpr", "reward"] == {"stage": "dpr", "metric": "reward", "steps": [1, 2], "values": [4.0, 5.5]}
    assert curves["dpr", "loss"]["values"] == [0.5, None]
    assert ("dpr", "entropy") not in curves
    assert curves["sft", "loss"]["values"] == [2.0, 1.0, 2.0 / 3]


def test_nan_is_said_and_never_printed(run_dir):
    report = build_report(run_dir)
    assert "dpr/metrics.jsonl: loss is not finite at 1 step(s), first at step 2" in report.warnings
    assert ">nan" not in page_html(run_page(report)).lower()


def test_what_was_not_measured_is_a_dash(run_dir):
    edit(run_dir / "results.json", lambda value: [row.update(value=None, length=None) for row in rows_of(value)])
    page = page_html(run_page(build_report(run_dir)))
    assert page.count("<strong>–</strong>") >= 3
    assert "None" not in page


def rows_of(results):
    return results["settings"][0]["rows"]


PARTS = [
    "config.yaml",
    "environment.json",
    "data.json",
    "selection.json",
    "results.json",
    "samples.jsonl",
    "sft",
    "dpr",
]


@pytest.mark.parametrize("gone", PARTS)
def test_each_part_may_be_missing_and_is_named(run_dir, gone):
    path = run_dir / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    report = build_report(run_dir)
    assert any(gone in line for line in report.missing)
    assert gone in page_html(run_page(report))


@pytest.mark.parametrize("kept", PARTS)
def test_each_part_alone_is_reportable(run_dir, kept):
    for name in PARTS:
        path = run_dir / name
        if name == kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    page = page_html(run_page(build_report(run_dir)))
    assert page.startswith("<!doctype html>")
    assert ("Not evaluated" in page) == (kept != "results.json")


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "selection.json", "results.json", "dpr/metrics.jsonl"])
@pytest.mark.parametrize("content", ["{broken\n{}\n", "[1]\n", "\n", "null\n"])
def test_a_broken_part_never_stops_the_report(run_dir, name, content):
    (run_dir / name).write_text(content)
    report = build_report(run_dir)
    if content.startswith("{broken"):
        assert any(line.startswith(f"{name} cannot be read") for line in report.warnings)
        assert str(run_dir) not in " ".join(report.warnings)
    assert "</html>" in page_html(run_page(report))


def test_a_half_written_last_line_is_left_out(run_dir):
    before = twin(run_dir)["curves"]
    with (run_dir / "dpr/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    assert twin(run_dir)["curves"] == before
    assert not any("cannot be read" in line for line in build_report(run_dir).warnings)


def test_no_folder_and_no_run(tmp_path):
    with pytest.raises(MissingFileError, match="no such run folder"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="not a run folder"):
        build_report(tmp_path)


def test_secrets_in_the_configuration_are_hidden(run_dir):
    paths = write_report(run_dir)
    for path in paths:
        assert "hunter2" not in path.read_text(encoding="utf-8")
    assert build_report(run_dir).config["hub_token"] == "(hidden)"


def test_samples_are_the_first_ones_up_to_the_limits(run_dir):
    path = run_dir / "samples.jsonl"
    line = path.read_text().split("\n")[0]
    path.write_text((line + "\n") * (MAX_SAMPLES + 5))
    report = build_report(run_dir)
    assert (len(report.samples), report.samples_total) == (MAX_SAMPLES, MAX_SAMPLES + 5)
    assert f"first {MAX_SAMPLES} of {MAX_SAMPLES + 5} in file order" in page_html(run_page(report))
    big = json.loads(line)
    big["completions"]["dpr"] = turn(span("x", *[0.5] * (MAX_SAMPLE_TOKENS // 3)))
    path.write_text((json.dumps(big) + "\n") * 5)
    assert len(build_report(run_dir).samples) == 2  # with the 2 tokens of SFT, three are just over it


def test_no_chosen_reference_is_said(run_dir):
    edit(run_dir / "selection.json", lambda value: value.update(chosen=None))
    (run_dir / "results.json").unlink()
    page = page_html(run_page(build_report(run_dir)))
    assert '<div class="card verdict none-helps"><h2>No candidate reference beat SFT on validation' in page
    assert "None helps" in page


def test_importing_the_report_imports_neither_torch_nor_matplotlib():
    code = (
        "import sys, densepath.report; print([m for m in ('torch', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_arm_that_was_trained_has_its_curves_and_no_other_is_missing(run_dir):
    """The capped reward was chosen: there is no DPR, and no control was asked for."""
    (run_dir / "dpr").rename(run_dir / "dpr_capped")

    def capped(value):
        rows = rows_of(value)
        rows[:] = [row for row in rows if row["method"] != "continued_sft"]
        for row in rows:
            if row["method"] == "dpr":
                row.update(method="dpr_capped", label="capped DPR")

    edit(run_dir / "results.json", capped)
    report = build_report(run_dir)
    assert report.missing == ()
    assert {curve.stage for curve in report.curves} == {"sft", "dpr_capped"}
    page = page_html(run_page(report))
    assert "last: dpr capped 5.5" in page  # its reward
    assert "Loss: DPR" in page


def test_the_log_of_a_given_sft_model_is_not_missing(run_dir):
    shutil.rmtree(run_dir / "sft")
    assert any("sft/metrics.jsonl" in line for line in build_report(run_dir).missing)
    (run_dir / "config.yaml").write_text("model: tiny/model\nsft_from: runs/sft\n")
    assert not any("the training log of SFT" in line for line in build_report(run_dir).missing)
