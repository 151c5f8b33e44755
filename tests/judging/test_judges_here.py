"""Judges that run here: their numbers are those of transformers' own forward passes, of the reward, of the program."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.errors import ConfigError, DataError, ModelError, NumericalError
from densepath.evals.verifiers import exact_match
from densepath.judging.against import AgainstAnswers, prompt_key
from densepath.judging.evaluation import labelled_pairs
from densepath.judging.here import judgement_of_scores
from densepath.judging.local import LocalJudge
from densepath.judging.program import ProgramJudge
from densepath.judging.protocol import JudgeRequest
from densepath.judging.scorers import DenseRewardJudge, RewardModelJudge
from densepath.judging.templates import load_template
from densepath.rewards.dense import DenseReward

LONG = {"max_position_embeddings": 2048}


def request(question: str = "Sort: 3, 1", answers=(("1, 3",), ("3, 1 it is",)), **fields: Any) -> JudgeRequest:
    return JudgeRequest(({"role": "user", "content": question},), answers, **fields)


REQUESTS = [
    request(),
    request("What is the last word?", (("SUN",), ("the answer is dog",))),
    request("one", (("a", "b"), ("c d e", "f")), follow_ups=("two",)),
    request().switched,
]


def reward_model(seed: int = 0, **config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields = {"num_labels": 1, "pad_token_id": 1, "vocab_size": 384, **widths, **LONG, **config}
    return LlamaForSequenceClassification(LlamaConfig(**fields)).eval()


def test_a_local_model_is_read_by_its_own_forward_pass_on_the_letters():
    tokenizer, model = tiny_tokenizer(), tiny_llama(384, **LONG)
    template = load_template("letters")
    judge = LocalJudge(model, tokenizer, template, "tiny", token_budget=512)
    found = list(judge.judge(REQUESTS))
    for each, asked in zip(found, REQUESTS, strict=True):
        text = tokenizer.apply_chat_template(template.messages(asked), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        letters = [tokenizer("A")["input_ids"][0], tokenizer("B")["input_ids"][0]]
        assert each.preference == pytest.approx(float(logits[letters].double().softmax(0)[0]), abs=1e-5)
        assert (each.verdict, each.reply, each.usage, each.invalid) == (None, "", None, None)
    assert judge.name == "tiny (letters)"
    assert judge.spent.calls == judge.estimate(REQUESTS).calls == 0


def test_what_a_chat_template_writes_before_every_answer_is_part_of_the_question():
    """Qwen3's writes empty thoughts before the last answer, and none where it only asks for one."""
    tokenizer, model, template = tiny_tokenizer(), tiny_llama(384, **LONG), load_template("letters")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}" + tokenizer.eos_token + "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    (found,) = LocalJudge(model, tokenizer, template, "thinks").judge([request()])
    asked = tokenizer.apply_chat_template(template.messages(request()), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(asked + "<think>\n\n</think>\n\nA", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0, -2]
    letters = [tokenizer("A")["input_ids"][0], tokenizer("B")["input_ids"][0]]
    assert found.preference == pytest.approx(float(logits[letters].double().softmax(0)[0]), abs=1e-5)


def test_a_request_longer_than_the_context_is_invalid_and_the_others_are_judged():
    judge = LocalJudge(tiny_llama(384), tiny_tokenizer(), load_template("letters"), "tiny")  # 256 tokens
    judge._context = 400
    found = list(judge.judge([request(), request(answers=(("x " * 300,), ("b",))), request()]))
    assert [each.invalid is None for each in found] == [True, False, True]
    assert "the models' context holds 400" in found[1].invalid


def test_a_local_model_takes_letters_alone_and_such_as_differ():
    with pytest.raises(ConfigError, match="judge_template=pair is read from what a judge writes"):
        LocalJudge(tiny_llama(384), tiny_tokenizer(), load_template("pair"), "tiny")
    words = tiny_tokenizer(byte_level=False)
    judge = LocalJudge(tiny_llama(384, **LONG), words, load_template("letters"), "tiny")
    with pytest.raises(ModelError, match="the letters A, B begin with the same token"):
        list(judge.judge([request()]))
    judge = LocalJudge(tiny_llama(384), tiny_tokenizer(), load_template("letters"), "tiny")
    with pytest.raises(DataError, match="is shown 2 answers at once, and was given 1"):
        list(judge.judge([request(answers=(("a",),))]))


@pytest.mark.parametrize("token_budget", [1, 4096])
def test_a_reward_model_is_read_by_its_own_forward_pass(token_budget):
    """One row a pass, without padding; the judge pads rows of different lengths."""
    tokenizer, model = tiny_tokenizer(), reward_model()
    judge = RewardModelJudge(model, tokenizer, "rm", token_budget)

    def own(asked: JudgeRequest, answer: int) -> float:
        ids = tokenizer.apply_chat_template(asked.conversation(answer), tokenize=True, return_dict=False)
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits[0, 0])

    for each, asked in zip(judge.judge(REQUESTS), REQUESTS, strict=True):
        difference = own(asked, 0) - own(asked, 1)
        assert each.preference == pytest.approx(1 / (1 + math.exp(-difference)), abs=1e-6)
    singles = [request(answers=(("1, 3",),)), request(answers=(("no",),))]
    assert [each.grade for each in judge.judge(singles)] == pytest.approx([own(each, 0) for each in singles], abs=1e-6)


def test_a_reward_model_without_padding_token_or_template_is_read_too():
    tokenizer, model = tiny_tokenizer(), reward_model(pad_token_id=None)
    tokenizer.chat_template = None
    judge = RewardModelJudge(model, tokenizer, "rm")
    ids = tokenizer("Sort: 3, 1", "1, 3")["input_ids"]
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits[0, 0])
    assert [each.grade for each in judge.judge([request(answers=(("1, 3",),))])] == pytest.approx([expected])


@pytest.mark.parametrize("token_budget", [1, 4096])
def test_a_reward_model_is_told_which_text_is_the_answer(tmp_path, token_budget):
    """BERT marks the second text by its token types."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(start + chr(c) for start in ("", "##") for c in range(33, 127)),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    widths = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(words), num_labels=1, initializer_range=0.5, **widths)
    ).eval()
    answers = ("1, 3", "3, 1 it is")
    with torch.no_grad():
        own = [float(model(**tokenizer("Sort: 3, 1", each, return_tensors="pt")).logits) for each in answers]
    judge = RewardModelJudge(model, tokenizer, "bert", token_budget)
    found = judge.judge([request(answers=((each,),)) for each in answers])
    assert [each.grade for each in found] == pytest.approx(own, abs=1e-5)


def test_a_reward_model_that_is_none_is_refused():
    with pytest.raises(ModelError, match="tells 3 classes apart"):
        RewardModelJudge(reward_model(num_labels=3), tiny_tokenizer(), "rm")
    broken = reward_model()
    with torch.no_grad():
        broken.score.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        list(RewardModelJudge(broken, tiny_tokenizer(), "rm").judge([request()]))


def test_a_dense_reward_prefers_by_its_sums():
    reward = DenseReward(tiny_llama(384, seed=0, **LONG), tiny_llama(384, seed=1, **LONG), tokenizer=tiny_tokenizer())
    judge = DenseRewardJudge(reward, "dense")
    for each, asked in zip(judge.judge(REQUESTS), REQUESTS, strict=True):
        *turns, last = zip(asked.conversation(0), asked.conversation(1), strict=True)
        prompts = [[pair[side] for pair in turns] for side in (0, 1)]
        first, second = map(float, reward.score(prompts, [[last[0]], [last[1]]]).sums)
        assert each.preference == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
    (empty,) = judge.judge([request(answers=(("",), ("b",)))])
    assert empty.invalid == "an empty answer has no token to score"


def test_a_dense_reward_reads_a_plain_row_as_plain_text():
    tokenizer = tiny_tokenizer()
    reward = DenseReward(tiny_llama(384, seed=0, **LONG), tiny_llama(384, seed=1, **LONG), tokenizer=tokenizer)
    row = {"prompt": "Sort: 3, 1", "chosen": "1, 3", "rejected": "3, 1 it is"}
    (pair,), _ = labelled_pairs([row], "pairs.jsonl")
    asked = [pair.match.request]

    class Hears(DenseRewardJudge):
        def judge(self, requests):
            asked.extend(requests)
            return super().judge(requests)

    tokenizer.chat_template = None  # a model of plain text has none
    first, second = map(float, reward.score([row["prompt"]] * 2, [row["chosen"], row["rejected"]]).sums)
    against = AgainstAnswers(Hears(reward, "dense"), {prompt_key(row): row["rejected"]})
    (found,) = against.judged([row["chosen"]], [row])
    assert found.value == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
    apart = [second - first, second - first, first - second]
    for each, difference in zip(DenseRewardJudge(reward, "dense").judge(asked), apart, strict=True):
        assert each.preference == pytest.approx(1 / (1 + math.exp(difference)), abs=1e-5)


def test_a_program_prefers_what_it_grades_higher():
    judge = ProgramJudge(exact_match, "verifier:exact_match")
    row = {"answer": "1, 3"}
    found = list(
        judge.judge([request(row=row), request(row=row).switched, request(answers=(("x",), ("y",)), row=row)])
    )
    assert [(each.preference, each.verdict) for each in found] == [(1.0, ">"), (0.0, "<"), (0.5, "=")]
    assert next(judge.judge([request(answers=(("1, 3",),), row=row)])).grade == 1.0
    assert "answer" in next(judge.judge([request()])).invalid


@pytest.mark.parametrize(
    "said", [None, math.nan, math.inf, "good", 10**400], ids=["none", "nan", "inf", "text", "big"]
)
def test_what_a_program_says_that_is_no_finite_number_is_invalid(said):
    judge = ProgramJudge(lambda text, row: said if text == "odd" else 1.0, "verifier:mine")
    found = list(judge.judge([request(answers=(("odd",),)), request(answers=(("odd",), ("odd",))), request()]))
    assert [each.invalid is None for each in found] == [False, False, True]
    assert re.fullmatch(r"verifier:mine says .{1,90} of an answer, which is no finite number", found[0].invalid)


def test_scores_far_apart_are_a_preference_too():
    assert judgement_of_scores([2000.0, -2000.0]).preference == 1.0
    assert judgement_of_scores([-2000.0, 2000.0]).preference == 0.0
    assert judgement_of_scores([1.0, 0.0]).preference == pytest.approx(1 / (1 + math.exp(-1)))
