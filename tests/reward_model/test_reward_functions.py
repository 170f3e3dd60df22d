"""Heads as TRL reward functions: right values, one forward for all of them, in GRPO as it is."""

import pytest
import torch
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from alignkit.reward_model import RewardModel, combine, reward_functions
from alignkit.reward_model.modeling import add_reward_forward
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm, tiny_sequence_classifier

HEADS = [f"head_{i}" for i in range(7)]


@pytest.fixture
def reward_model() -> RewardModel:
    model = tiny_sequence_classifier(HEADS, seed=1)
    add_reward_forward(model)
    return RewardModel(model.eval(), byte_tokenizer(chat_template=CHAT_TEMPLATE))


@pytest.fixture
def forwards(reward_model) -> list[int]:
    """Batch size of every forward of the backbone."""
    sizes: list[int] = []
    reward_model.model.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


def test_each_function_returns_its_heads_scores_and_all_share_one_forward(reward_model, forwards):
    prompts, completions = ["a ", "b ", "c "], ["x", "yy", "zzz"]
    expected = reward_model.score(["a x", "b yy", "c zzz"])
    forwards.clear()
    functions = reward_functions(reward_model)
    assert [function.__name__ for function in functions] == HEADS
    rewards = [function(prompts=prompts, completions=completions, other_column=[1, 2, 3]) for function in functions]
    assert torch.equal(torch.tensor(rewards).T, expected)
    assert forwards == [3]


def test_other_completions_are_scored_again(reward_model, forwards):
    function = reward_functions(reward_model)[0]
    first = function(["a"], ["x"])
    assert function(["a"], ["y"]) != first
    assert len(forwards) == 2


def test_a_model_that_changed_is_asked_again(reward_model):
    functions = reward_functions(reward_model)
    before = [function(["a"], ["x"]) for function in functions]
    reward_model.model.score.weight.data.mul_(2)
    after = [function(["a"], ["x"]) for function in functions]
    torch.testing.assert_close(torch.tensor(after), 2 * torch.tensor(before))


def test_chat_messages_are_rendered_by_the_template(reward_model):
    prompt = [{"role": "user", "content": "hello"}]
    answer = [{"role": "assistant", "content": "hi"}]
    rendered = reward_model.tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    expected = reward_model.score([rendered])[0, 2].item()
    assert reward_functions(reward_model)[2]([prompt], [answer]) == [pytest.approx(expected, abs=1e-6)]


def test_a_combination_is_the_weighted_sum_of_the_heads(reward_model):
    combined = combine(reward_model, {"head_0": 2.0, "head_3": -1.0})
    scores = reward_model.score(["ax"])[0]
    assert combined(["a"], ["x"]) == [pytest.approx((2 * scores[0] - scores[3]).item(), abs=1e-6)]


def test_scores_keep_the_order_of_the_texts_whatever_the_batch_size(reward_model):
    texts = [letter * length for letter, length in zip("abcdefg", (5, 1, 9, 3, 30, 2, 8), strict=True)]
    alone = torch.cat([reward_model.score([text]) for text in texts])
    for batch_size in (1, 2, 16):
        torch.testing.assert_close(reward_model.score(texts, batch_size), alone, rtol=0, atol=1e-5)


def test_grpo_takes_the_heads_as_its_reward_functions_with_one_forward_a_batch(reward_model, forwards, tmp_path):
    trainer = GRPOTrainer(
        tiny_causal_lm(),
        reward_functions(reward_model),
        GRPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=4,
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list([{"prompt": "say "}, {"prompt": "tell "}]),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/head_6/mean" in entry]
    assert len(logged) == 2
    assert len(forwards) == 2
