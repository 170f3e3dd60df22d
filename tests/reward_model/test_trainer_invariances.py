"""The gradient of a step does not depend on how the step is split, encoded or drawn."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset, concatenate_datasets

from alignkit.tasks.toy import STYLES, corpus_membership, preference_pairs, tiny_sequence_classifier
from tests.callbacks import KeepGradients

HEADS = ["tidy", "short"]


@pytest.fixture
def gradients(make_trainer):
    """Gradients of the first two steps."""

    def train(head_names, data, **settings):
        keep = KeepGradients()
        # Plain SGD: Adam turns rounding of near-zero gradients into steps of full size before the second step.
        sgd = {"optim": "sgd", "learning_rate": 0.1}
        settings = {"max_steps": 2, "max_grad_norm": 0.0, "callbacks": [keep], **sgd, **settings}
        make_trainer(head_names, data, **settings).train()
        return list(keep.steps.values())

    return train


def assert_equal_gradients(first, second, tolerance=1e-6):
    for ours, theirs in zip(first, second, strict=True):
        scale = max(gradient.abs().max().item() for gradient in theirs.values())
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance * max(scale, 1), msg=name)


def mixed_rows() -> Dataset:
    """Pairs of unequal weight, rated lists and multi-attribute pairs, for two heads."""
    pairs = preference_pairs(8, seed=1)
    lists = [
        {
            "completions": [f"answer {i} {word}" for word in ("one", "two two", "three three three")],
            "ratings": {"tidy": [1.0, 1.0, None], "short": [3.0, 2.0, 1.0 + i]},
        }
        for i in range(4)
    ]
    both = [
        {"chosen": f"a {i}", "rejected": f"b b {i}", "head_margins": {"tidy": -1.0, "short": 0.0}} for i in range(4)
    ]
    pairs = pairs.add_column("weight", [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.25])
    return concatenate_datasets([pairs, Dataset.from_list(lists), Dataset.from_list(both)])


def test_a_text_repeated_in_another_micro_batch_is_regularised_once_for_each_of_its_heads(gradients):
    rows = [{"chosen": "the same", "rejected": f"text {i}", "head": "tidy"} for i in range(3)]
    data = Dataset.from_list([*rows, {"chosen": "the same", "rejected": "text", "head": "short"}])
    settings = {"regularizer": "center", "regularizer_weight": 5.0, "max_steps": 1}
    whole = gradients(HEADS, data, per_device_train_batch_size=4, **settings)
    split = gradients(HEADS, data, per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings)
    assert_equal_gradients(split, whole)


@pytest.mark.parametrize("reduction", ["comparisons", "active_heads"])
@pytest.mark.parametrize("regularizer", [None, "log_square"])
def test_a_head_without_comparisons_in_a_step_gets_a_gradient_of_exactly_zero(gradients, reduction, regularizer):
    rows = [{"chosen": f"a {i}", "rejected": f"b {i}", "head": "tidy"} for i in range(4)]
    rows += [{"chosen": "c", "rejected": "d", "head": "short"}]
    tidy_only = gradients(
        HEADS,
        Dataset.from_list(rows),
        train_sampling_strategy="sequential",
        per_device_train_batch_size=4,
        max_steps=1,
        reduction=reduction,
        regularizer=regularizer,
    )
    score = tidy_only[0]["score.weight"]
    assert score[1].abs().max() == 0
    assert score[0].abs().max() > 0


def test_every_distinct_text_is_encoded_once_however_many_comparisons_name_it(make_trainer):
    train, negatives, _, _ = corpus_membership(n_per_style=8)
    model = tiny_sequence_classifier(list(STYLES), seed=1)
    encoded = []
    model.model.register_forward_hook(lambda module, inputs, outputs: encoded.append(len(inputs[0])))
    trainer = make_trainer(
        list(STYLES),
        train,
        model=model,
        negatives=negatives,
        negatives_per_tier=16,
        per_device_train_batch_size=16,
        max_steps=1,
    )
    trainer.train()
    assert encoded == [16 + 3 * 16]


def test_one_batch_is_overfitted(make_trainer):
    trainer = make_trainer(HEADS, mixed_rows(), per_device_train_batch_size=16, max_steps=60, learning_rate=5e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # What is left is the share of ties, each of which costs ln 2 at best.
    ties = sum(unit for row in trainer.train_dataset for unit in row["weight"] if unit == 0.5)
    weight = sum(sum(row["weight"]) for row in trainer.train_dataset)
    assert losses[-1] < 0.7 * ties / weight + 0.05 < losses[0]


def test_inverse_count_weights_make_every_head_count_alike_and_average_to_one(make_trainer):
    rows = [{"chosen": f"a {i}", "rejected": f"b {i}", "head": "tidy", "weight": 0.5} for i in range(6)]
    rows += [{"chosen": f"c {i}", "rejected": f"d {i}", "head": "short", "weight": 1.0} for i in range(2)]
    trainer = make_trainer(HEADS, Dataset.from_list(rows), head_weights="inverse_count")
    torch.testing.assert_close(trainer._head_weights, torch.tensor([5 / (2 * 3), 5 / (2 * 2)]))


def test_inverse_count_weighs_a_positive_by_the_tiers_it_meets(make_trainer):
    pairs = Dataset.from_list([{"chosen": f"a {i}", "rejected": f"b {i}", "head": "tidy"} for i in range(7)])
    texts = Dataset.from_list([{"text": f"text {i}", "head": "short"} for i in range(2)])
    negatives = Dataset.from_list([{"text": tier, "tier": tier, "heads": None} for tier in ("soft", "far")])
    trainer = make_trainer(
        HEADS,
        concatenate_datasets([pairs, texts]),
        negatives=negatives,
        tier_weights={"soft": 3.0, "far": 0.5},
        head_weights="inverse_count",
    )
    torch.testing.assert_close(trainer._head_weights, torch.tensor([14 / (2 * 7), 14 / (2 * 7)]))


def test_inverse_count_weighs_a_positive_by_the_tiers_of_its_own_head(make_trainer):
    texts = Dataset.from_list([{"text": f"text {i}", "head": HEADS[i % 2]} for i in range(8)])
    negatives = Dataset.from_list(
        [{"text": "near", "tier": "soft", "heads": ["tidy"]}, {"text": "far", "tier": "far", "heads": None}]
    )
    trainer = make_trainer(
        HEADS, texts, negatives=negatives, tier_weights={"soft": 2.0, "far": 1.0}, head_weights="inverse_count"
    )
    assert trainer.data_report["train"]["weight"] == {"tidy": 12.0, "short": 4.0}
    torch.testing.assert_close(trainer._head_weights, torch.tensor([16 / (2 * 12), 16 / (2 * 4)]))


def test_every_step_draws_other_negatives_and_a_seed_the_same(make_trainer):
    train, negatives, _, _ = corpus_membership(n_per_style=8)

    def texts_of_steps(seed: int) -> list[set[int]]:
        steps: list[set[int]] = []
        trainer = make_trainer(
            list(STYLES), train, negatives=negatives, negatives_per_tier=2, max_steps=4, seed=seed, data_seed=0
        )
        drawn = trainer._data.negatives.keys
        join = trainer.get_batch_samples

        def get_batch_samples(*args):
            batches, weight = join(*args)
            steps.append({tuple(row) for row in batches[0]["input_ids"][-6:].tolist()})
            return batches, weight

        trainer.get_batch_samples = get_batch_samples
        trainer.train()
        assert len(drawn) > 6
        return steps

    first, again, other = texts_of_steps(1), texts_of_steps(1), texts_of_steps(2)
    assert first == again != other
    assert all(one.isdisjoint(another) for one, another in pairwise(first))


@pytest.mark.parametrize("pairing", ["all", "positional"])
def test_positives_meet_their_negatives_as_the_pure_function_pairs_them(make_trainer, pairing):
    train = Dataset.from_list([{"text": f"positive {i}", "head": "tidy"} for i in range(3)])
    negatives = Dataset.from_list([{"text": f"negative {i}", "tier": "soft", "heads": None} for i in range(2)])
    trainer = make_trainer(
        ["tidy"],
        train,
        negatives=negatives,
        tier_weights={"soft": 2.0},
        pairing=pairing,
        reduction="active_heads",
        per_device_train_batch_size=3,
        max_steps=1,
        max_grad_norm=0.0,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    scores = trainer.model.eval()
    from alignkit.reward_model import RewardModel

    model = RewardModel(scores, trainer.processing_class)
    positive = model.score([f"positive {i}" for i in range(3)])[:, 0]
    order = [int(text.split()[1]) for text in decoded_negatives(trainer)]
    negative = model.score([f"negative {i}" for i in order])[:, 0]
    losses = torch.nn.functional.softplus(negative[None] - positive[:, None])  # (3, 2)
    expected = 2.0 * (losses.mean() if pairing == "all" else losses.diagonal().mean())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-6)


def decoded_negatives(trainer) -> list[str]:
    drawn = trainer._data.negatives.draw(trainer.args.seed, 0, trainer.args.negatives_per_tier)
    return [trainer.processing_class.decode(ids, skip_special_tokens=True) for ids in drawn.input_ids]


def test_head_weights_do_not_move_with_the_batch_size(gradients):
    rows = [{"chosen": f"a {i}", "rejected": f"b {i}", "head": HEADS[i % 2]} for i in range(4)]
    weights = {"tidy": 3.0, "short": 0.5}
    settings = {"train_sampling_strategy": "sequential", "max_steps": 1, "head_weights": weights}
    together = gradients(HEADS, Dataset.from_list(rows), per_device_train_batch_size=4, **settings)
    apart = gradients(
        HEADS, Dataset.from_list(rows), per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings
    )
    assert_equal_gradients(apart, together)
