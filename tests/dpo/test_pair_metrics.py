"""What is logged of pairs, by hand: means over the pairs that count, none where nothing was added."""

import math

import pytest
import torch
from accelerate import Accelerator

from alignkit.dpo.metrics import PairMetrics


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_log_ratios_are_means_over_the_pairs_that_count_and_a_tie_is_half_a_success(accelerator):
    metrics = PairMetrics()
    chosen, rejected = torch.tensor([1.0, 2.0, 5.0, 9.0]), torch.tensor([1.0, -1.0, 6.0, 0.0])
    metrics.add_pairs(chosen[:2], rejected[:2], 2)
    metrics.add_pairs(chosen[2:], rejected[2:], 1)  # the last pair only fills the batch
    assert metrics.pop(accelerator) == {
        "logratio/chosen": 8 / 3,
        "logratio/rejected": 2.0,
        "logratio/margin": pytest.approx(2 / 3),
        "logratio/accuracy": 0.5,
    }


def test_beta_is_its_mean_over_pairs_whether_one_for_all_or_one_each(accelerator):
    metrics = PairMetrics()
    metrics.add_beta(0.5, torch.zeros(3))
    metrics.add_beta(torch.tensor([0.25]), torch.zeros(1))
    assert metrics.pop(accelerator) == {"beta": 1.75 / 4}


def test_the_divergence_is_its_mean_over_tokens_not_over_batches(accelerator):
    metrics = PairMetrics()
    metrics.add_divergence(torch.tensor([1.0, 2.0, 3.0]))
    metrics.add_divergence(torch.tensor([0.0]))
    assert metrics.pop(accelerator) == {"kl/reverse_on_data": 1.5}


def test_a_pair_that_lost_any_token_is_a_cut_one(accelerator):
    metrics = PairMetrics()
    metrics.add_cut(torch.tensor([[7, 0], [0, 0], [1, 2], [4, 4]]), 3)  # the last pair only fills the batch
    assert metrics.pop(accelerator) == {"truncated/prompts": 2 / 3, "truncated/completions": 1 / 3}


def test_what_was_read_is_forgotten_and_what_saw_nothing_is_nan(accelerator):
    metrics = PairMetrics()
    metrics.add_pairs(torch.ones(1), torch.zeros(1), 1)
    metrics.pop(accelerator)
    assert metrics.pop(accelerator) == {}
    metrics.add_divergence(torch.zeros(0))
    assert math.isnan(metrics.pop(accelerator)["kl/reverse_on_data"])
