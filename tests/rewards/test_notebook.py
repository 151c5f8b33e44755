"""Scores as a notebook shows them, from a real reward of tiny models."""

from __future__ import annotations

import re

import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath import view_scores
from densepath.rewards.dense import DenseReward

ANSWERS = ["cat, 狗 & <b>dog</b>", "cat"]


@pytest.fixture(scope="module")
def reward():
    tokenizer = tiny_tokenizer()
    return DenseReward(*(tiny_llama(len(tokenizer), seed=seed) for seed in (0, 1)), tokenizer=tokenizer)


def test_scores_show_themselves(reward):
    scores = reward.score(["Say:"] * 2, ANSWERS)
    html = scores._repr_html_()
    heats = re.findall(r'<div class="dp-heat" .*?>(.*?)</div>', html, re.S)
    texts = [re.sub(r"<[^>]+>", "", heat) for heat in heats]
    assert texts == ["cat, 狗 &amp; &lt;b&gt;dog&lt;/b&gt;&lt;|im_end|&gt;", "cat&lt;|im_end|&gt;"]
    # The last tooltip of each completion tells its sum.
    shown = [float(re.findall(r"sum so far (\S+) nats", heat)[-1].replace("−", "-")) for heat in heats]
    assert shown == pytest.approx(scores.sums.tolist(), abs=6e-4)


def test_with_the_tokenizer_the_end_has_its_name(reward):
    scores = reward.score_ids([[5, 9]], [reward.tokenizer("cat")["input_ids"] + [reward.tokenizer.eos_token_id]])
    assert scores._repr_html_() is None  # ids alone have no text: the notebook falls back to the plain repr
    view = view_scores(scores, prompts=["Say:"], tokenizer=reward.tokenizer)
    assert "&lt;|im_end|&gt;</b>" in view._repr_html_()
    assert view.rows[0].reward == pytest.approx(float(scores.sums[0]), abs=1e-5)


def test_a_long_list_is_cut_in_a_notebook(reward):
    html = reward.score(["Say:"] * 22, ["cat"] * 22)._repr_html_()
    assert html.count('class="dp-row"') == 20
    assert "20 of 22 completions." in html
