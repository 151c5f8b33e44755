"""The record of a diagnosis in the terminal and as a page: what was found is what is shown, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from densepath.records.choice import Answer, Decision, Findings
from densepath.records.codec import from_json
from densepath.report.console import parts_text
from densepath.report.diagnosis import diagnosis_page, diagnosis_parts, headline
from densepath.report.html import page_html

HOSTILE = "</style><script>alert(1)</script>\"'<img src=x onerror=alert(2)>\u202e"


def interval(mean, half=0.05):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 200}


def answers(value, temperature, reference=None, alpha=0.0, lead=None, verdict=None, kl=None):
    against = None if lead is None else {"difference": interval(lead), "p": 0.001, "p_holm": 0.01, "verdict": verdict}
    against = against and {"measure": "preview", "against": "SFT", **against}
    return {
        "reference": reference, "alpha": alpha, "temperature": temperature, "policy": None,
        "value": None if value is None else interval(value), "length": interval(6.0), "truncated": 0.125,
        "longer": None, "kl": None if kl is None else interval(kl), "reward": None, "against_best": against,
        "against_same": against, "verdicts": [], "lengths": [],
    }  # fmt: skip


def record(name="0.5", advice="candidate", verifier="exact_match", plain=lambda value: value):
    spread = {"mean": 0.02, "sd": 0.25, "negative": 0.4}
    reward = {"reference": name, "per_token": spread, "per_completion": spread, "length_correlation": None}
    reward |= {"verifier": interval(0.82), "preference": None, "histogram": [[-1.0, 0.0, 2.0], [3, 5]]}
    run = advice == "candidate"
    decision = {
        "answer": advice, "reference": name if run else None, "beta": 0.5 if run else None,
        "reasons": [f"because of {name}"], "warnings": [f"beware of {name}"],
    }  # fmt: skip
    findings = {
        "prompts": 200, "verifier": verifier, "preferences": 0,
        "sft": [answers(plain(0.27), 1.0), answers(plain(0.34), 0.5), answers(plain(0.36), 0.0)],
        "candidates": [
            answers(plain(0.32), 1.0, name, 2.0, plain(-0.04), "tie", kl=0.9),
            answers(plain(0.55), 0.0, name, 2.0, plain(0.19), "better"),
        ],
        "rewards": [reward],
        "agreement": [{"reference": name, "criterion": "verifier", "value": interval(0.82), "low": 0.78}],
        "likelihoods": [
            {"reference": None, "alpha": None, "nll": interval(0.6), "change": None},
            {"reference": name, "alpha": 2.0, "nll": interval(0.9), "change": interval(0.3)},
        ],
    }  # fmt: skip
    return from_json(Findings, findings), from_json(Decision, decision)


def page_of(found, name="run"):
    return page_html(diagnosis_page(*found, name, name))


def printed(value):
    output = io.StringIO()
    console = Console(file=output, width=80)
    console.print(parts_text(diagnosis_parts(*value)))
    return output.getvalue()


@pytest.mark.parametrize(
    ("advice", "words"),
    [
        ("candidate", "Run DPR: reference 0.5, beta 0.5."),
        ("none", "Keep the SFT model: do not run DPR on this."),
        ("cannot_tell", "It cannot be told."),
        ("train_on", "Train on first: SFT is not finished."),
    ],
)
def test_the_advice_comes_first_in_words(advice, words):
    assert headline(record(advice=advice)[1]) == words
    assert f"<h2>{words}</h2>" in page_of(record(advice=advice))


@pytest.mark.parametrize(
    ("beta", "capped", "words"),
    [
        (1.0, True, "Run DPR: reference 0.5, with the capped reward."),
        (None, False, "Run DPR: reference 0.5."),  # by preferences, where no beta was asked for
    ],
)
def test_the_advice_names_the_reward_that_was_previewed(beta, capped, words):
    decision = dataclasses.replace(record()[1], beta=beta, capped=capped)
    assert headline(decision) == words
    tried = dataclasses.replace(decision, answer=Answer.CANNOT_TELL)
    assert ("capped" in headline(tried)) == capped


def test_the_terminal_shows_a_row_for_sft_and_for_each_preview():
    shown = printed(record())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "…" not in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "SFT - .270 .340 .360 - 6.0 12% -" in lines
    assert "0.5 0.5 .320 - .550 +.19 [+.14, +.24] better 6.0 12% 0.90" in lines
    assert "0.5 +0.020 ± 0.25 40% +0.02 ± 0.25 -" in lines
    assert "0.5 0.82 [0.77, 0.87] *" in lines
    assert "preview 0.5, beta 0.5 0.900 +0.300 [+0.250, +0.350]" in lines
    assert lines[-2:] == ["- because of 0.5", "warning: beware of 0.5"]


def test_without_a_verifier_nothing_is_judged():
    blind = record(verifier=None, advice="cannot_tell", plain=lambda value: None)
    shown = printed(blind)
    assert "lead" not in shown
    page = page_of(blind)
    assert "verdict</th>" not in page
    assert "lead over SFT" not in page


class Parsed(HTMLParser):
    VOID = ("meta", "br")

    def __init__(self, page):
        super().__init__()
        self.tags, self.stack = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_page_holds_the_figures_and_hostile_names_stay_text():
    page = page_of(record(name=HOSTILE), HOSTILE)
    parsed = Parsed(page)
    assert parsed.stack == []
    assert {"script", "img"} & set(parsed.tags) == set()
    assert page.count("<svg") == 3  # two decodings, one histogram
    assert "\u202e" not in page
    good = page_of(record())
    assert "<strong>+0.190</strong> <small>[+0.140, +0.240]</small>" in good
    chosen = re.findall(r'<tr class="chosen"><th scope="row">([^<]+)<', good)
    assert chosen == ["reference 0.5, β 0.5, T = 1", "reference 0.5, β 0.5, greedy"]
    assert '<span class="tag better">better</span>' in good
