"""Texts that begin alike share the beginning's computation: no score, loss or gradient changes."""

import logging
from typing import Any

import pytest
import torch
from datasets import Dataset

from alignkit.reward_model.modeling import add_reward_forward, prepare_to_share
from alignkit.tasks.toy import STYLES, corpus_membership, tiny_sequence_classifier
from tests.callbacks import KeepGradients

HEADS = ["tidy", "short"]
PROMPT = "A question that is a good deal longer than all of its answers are, number {}: "


def rankings(n: int) -> Dataset:
    """One prompt and four answers each, rated for two heads; the lengths differ."""
    return Dataset.from_list(
        [
            {
                "prompt": PROMPT.format(number) + "why? " * number,
                "completions": [f"{word} {number}" * (1 + number % 3) for word in ("one", "only", "two words", "3")],
                "ratings": {"tidy": [1.0, 2.0, None, 4.0], "short": [4.0, 1.0 + number, 2.0, 1.0]},
            }
            for number in range(n)
        ]
    )


@pytest.fixture
def both(make_trainer):
    """Logs, gradients and evaluation of two steps, with and without sharing, and the tokens that were computed."""

    def run(head_names: list[str], data: Dataset, **settings: Any) -> list[tuple[Any, ...]]:
        found = []
        for share_prefix in (True, False):
            model, keep = tiny_sequence_classifier(head_names, seed=1), KeepGradients()
            counts: list[int] = []
            model.model.embed_tokens.register_forward_hook(
                lambda _m, _i, out, counts=counts: counts.append(out[..., 0].numel())
            )
            trainer = make_trainer(
                head_names,
                data,
                **{"model": model, "callbacks": [keep], "share_prefix": share_prefix, "max_steps": 2},
                **{"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, **settings},
            )
            trainer.train()
            log = [entry for entry in trainer.state.log_history if "loss" in entry]
            found.append((log, keep.by_step(), trainer.evaluate(data), sum(counts)))
        return found

    return run


def assert_same(shared: tuple[Any, ...], whole: tuple[Any, ...]) -> None:
    for ours, theirs in zip(shared[0], whole[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    for name, gradient in whole[1].items():
        bound = 1e-5 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(shared[1][name], gradient, rtol=0, atol=bound)
    measured = {name for name in whole[2] if not name.endswith(("runtime", "per_second"))}
    for name in measured:
        assert shared[2][name] == pytest.approx(whole[2][name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [{}, {"encode_batch_size": 3}, {"max_packed_tokens": 150}, {"gradient_accumulation_steps": 2}],
    ids=lambda settings: next(iter(settings), "plain"),
)
def test_scores_losses_and_gradients_are_those_without_sharing_for_fewer_tokens(both, settings):
    shared, whole = both(HEADS, rankings(6), per_device_train_batch_size=3, **settings)
    assert_same(shared, whole)
    assert shared[3] < 0.7 * whole[3]


def test_negatives_joined_to_a_step_share_as_well(both):
    train, negatives, _, _ = corpus_membership(n_per_style=6)
    prefix = "Every text of this corpus begins with the same rather long sentence. "
    train, negatives = (part.map(lambda row: {"text": prefix + row["text"]}) for part in (train, negatives))
    shared, whole = both(list(STYLES), train, negatives=negatives, negatives_per_tier=3, per_device_train_batch_size=4)
    assert_same(shared, whole)
    assert shared[3] < 0.8 * whole[3]


def test_padding_on_the_left_is_padding():
    model = tiny_sequence_classifier(HEADS, seed=1)
    add_reward_forward(model)
    assert prepare_to_share(model)
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [0, 5, 6, 7, 9, 9]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.no_grad():
        shared = model(**inputs, use_cache=False, share_prefix=True).logits
        torch.testing.assert_close(shared, model(**inputs, use_cache=False).logits, rtol=0, atol=1e-5)


def test_a_model_that_cannot_share_trains_without_and_says_why_once(make_trainer, caplog, monkeypatch):
    model = tiny_sequence_classifier(HEADS, seed=1)
    model._is_stateful = True
    monkeypatch.setattr(logging.getLogger("alignkit"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(HEADS, rankings(4), model=model, max_steps=2)
        trainer.train()
    reasons = [record.message for record in caplog.records if "carries a state from token to token" in record.message]
    assert len(reasons) == 1
