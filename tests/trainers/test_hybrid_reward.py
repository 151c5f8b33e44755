"""The hybrid reward in the trainer: TRL's reward functions mixed in, or only logged, against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from tests.trainers.test_dpr import completion_of, config, naive_distributions, naive_logprobs, rollout

from densepath.errors import ConfigError, DataError
from densepath.trainers.dpr import DPRTrainer


def parity_reward(completion_ids, **kwargs):
    """Not a function of the length alone, so that a mix-up of rows shows."""
    return [float(sum(ids) % 5) for ids in completion_ids]


def even_tokens(completion_ids, **kwargs):
    return [[float(token % 2 == 0) for token in ids] for ids in completion_ids]


async def slow_judge(prompts, completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def hybrid_trainer(tmp_path, make_model, tokenizer, prompts, functions, *, models=None, **changes):
    policy, sft, ref = models or (make_model(2), make_model(0), make_model(1))
    return DPRTrainer(
        model=policy,
        ref_model=ref,
        args=config(tmp_path, baseline="none", **changes),
        train_dataset=prompts,
        processing_class=tokenizer,
        reward_funcs=functions,
        sft_model=sft,
    )


@pytest.mark.parametrize(
    ("functions", "weights", "estimator"),
    [
        (parity_reward, None, "sampled"),
        ([even_tokens], None, "all_action"),
        ([parity_reward, even_tokens, slow_judge], [2.0, 0.5, 0.1], "sampled"),
        ([parity_reward, even_tokens, slow_judge], [2.0, 0.5, 0.1], "all_action"),
    ],
)
def test_advantages_mix_both_rewards(tmp_path, make_model, tokenizer, prompts, functions, weights, estimator):
    models = make_model(2), make_model(0), make_model(1)
    trainer = hybrid_trainer(
        tmp_path,
        make_model,
        tokenizer,
        prompts,
        functions,
        models=models,
        dense_reward_weight=0.25,
        reward_weights=weights,
        estimator=estimator,
        **({"all_action_weight": 1.0} if estimator == "all_action" else {}),
    )
    output = rollout(trainer)
    assert trainer.args.reward_weights == weights
    names = [f.__name__ for f in (functions if isinstance(functions, list) else [functions])]
    means = dict.fromkeys(names, 0.0)
    total = 0.0
    rows = len(output["advantages"])
    for row in range(rows):
        prompt, ids = completion_of(output, row)
        pi, sft, ref = (naive_logprobs(model, prompt, ids) for model in models)
        q = [0.25 * float(sft[t] - ref[t]) - 0.3 * float(pi[t] - sft[t]) for t in range(len(ids))]
        present = [0.0] * len(ids)  # what stands in the loss as an expectation instead
        if estimator == "all_action":
            with torch.no_grad():
                p, s, r = (naive_distributions(model, prompt, ids) for model in models)
            q = present = (p.exp() * (0.25 * (s - r) - 0.3 * (p - s))).sum(-1).tolist()
        reward = 0.25 * float((sft - ref).sum())
        for name, weight in zip(names, weights or [1.0], strict=True):
            per_token = {
                "parity_reward": [0.0] * (len(ids) - 1) + [float(sum(ids) % 5)],
                "even_tokens": [float(token % 2 == 0) for token in ids],
                "slow_judge": [0.0] * (len(ids) - 1) + [float(len(ids))],
            }[name]
            means[name] += sum(per_token) / rows
            reward += 0.75 * weight * sum(per_token)
            q = [value + 0.75 * weight * extra for value, extra in zip(q, per_token, strict=True)]
        total += reward / rows
        for t in range(len(ids)):
            assert output["advantages"][row, t].item() == pytest.approx(sum(q[t:]) - present[t], abs=3e-4)
    logged = trainer._metrics["train"]
    for name, mean in means.items():
        assert logged[f"rewards/{name}/mean"] == [pytest.approx(mean, abs=1e-5)]
    assert logged["reward"] == [pytest.approx(total, abs=1e-3)]


def test_with_weight_one_functions_are_only_logged(tmp_path, make_model, tokenizer, prompts):
    with_function = rollout(
        trainer := hybrid_trainer(tmp_path, make_model, tokenizer, prompts, parity_reward)  # weight 1: the default
    )
    without = rollout(plain := hybrid_trainer(tmp_path, make_model, tokenizer, prompts, None))
    assert torch.equal(with_function["completion_ids"], without["completion_ids"])
    assert torch.equal(with_function["advantages"], without["advantages"])
    assert trainer._metrics["train"]["reward"] == plain._metrics["train"]["reward"]
    seen = [completion_of(with_function, row)[1] for row in range(len(with_function["advantages"]))]
    expected = sum(sum(ids) % 5 for ids in seen) / len(seen)
    assert trainer._metrics["train"]["rewards/parity_reward/mean"] == [pytest.approx(expected)]


def test_columns_reach_the_function_and_its_logs_reach_trl(tmp_path, make_model, tokenizer, prompts):
    given = []

    def verifier(prompts, completions, completion_ids, answer, tools, trainer_state, log_metric, **kwargs):
        given.append((prompts, answer, tools, trainer_state.global_step))
        log_metric("seen", 3.0)
        return [0.0] * len(prompts)

    data = prompts.map(lambda row, i: {"answer": f"a{i}", "tools": [{"name": "add", "n": i}]}, with_indices=True)
    trainer = hybrid_trainer(tmp_path, make_model, tokenizer, data, verifier)
    rollout(trainer)
    asked, answers, tools, step = given[0]
    by_prompt = {row["prompt"]: (row["answer"], row["tools"]) for row in data}
    assert [by_prompt[prompt] for prompt in asked] == list(zip(answers, tools, strict=True))
    assert step == 0
    assert trainer._metrics["train"]["seen"] == [3.0]


def test_a_reward_model_gives_one_number_a_completion(tmp_path, make_model, tokenizer, prompts):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    torch.manual_seed(0)
    judge = LlamaForSequenceClassification(
        LlamaConfig(**shape, num_attention_heads=2, num_labels=1, initializer_range=0.5)
    ).eval()
    judge.config._name_or_path = "org/judge"
    trainer = DPRTrainer(
        model=make_model(0),
        ref_model=make_model(0),  # no dense reward, and at the start no KL: what is left is the judge's
        args=config(tmp_path, baseline="none", dense_reward_weight=0.5),
        train_dataset=prompts,
        processing_class=tokenizer,
        reward_funcs=judge,
        reward_processing_classes=tokenizer,
    )
    output = rollout(trainer)
    for row in range(len(output["advantages"])):
        prompt, ids = completion_of(output, row)
        text = tokenizer.decode(prompt) + tokenizer.decode(ids, skip_special_tokens=True)
        with torch.no_grad():
            value = judge(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 0].item()
        expected = torch.full((len(ids),), 0.5 * value)  # the return of one number at the end is that number
        torch.testing.assert_close(output["advantages"][row, : len(ids)], expected, atol=2e-4, rtol=1e-3)


def test_reward_models_of_one_name_are_refused(tmp_path, make_model, tokenizer, prompts):
    """Their metrics would be one: TRL names a model by the last part of its path."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    judge = LlamaForSequenceClassification(LlamaConfig(**shape, num_attention_heads=2, num_labels=1))
    judge.config._name_or_path = "org/model"
    saved = tmp_path / "helpful/model"
    judge.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    named_alike = type("model", (), {"__call__": lambda self, **columns: []})()
    for other in ("harmless/model", judge, named_alike, saved):
        with pytest.raises(ConfigError, match="two reward functions are called 'model': their metrics would mix"):
            hybrid_trainer(tmp_path, make_model, tokenizer, prompts, [str(saved), other])
    trainer = hybrid_trainer(tmp_path, make_model, tokenizer, prompts, [saved, parity_reward])
    assert trainer.reward_func_names[1:] == ["model", "parity_reward"]


def test_a_function_of_the_wrong_length_stops_the_run_with_its_name(tmp_path, make_model, tokenizer, prompts):
    def verifier(completion_ids, **kwargs):
        return [1.0] * (len(completion_ids) - 1)

    trainer = hybrid_trainer(tmp_path, make_model, tokenizer, prompts, verifier)
    with pytest.raises(DataError, match="'verifier' returned 7 rewards for 8 completions"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_mixture_needs_something_to_mix_in(tmp_path, make_model, tokenizer, prompts):
    with pytest.raises(
        ConfigError, match=r"dense_reward_weight=0.5 mixes in a reward from outside: give reward_funcs"
    ):
        hybrid_trainer(tmp_path, make_model, tokenizer, prompts, None, dense_reward_weight=0.5)
    with pytest.raises(ConfigError, match=r"dense_reward_weight=1.5 must lie in \[0, 1\]"):
        config(tmp_path, dense_reward_weight=1.5)
