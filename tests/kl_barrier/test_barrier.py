"""The barrier of a micro-batch as a share of the step's: hand-worked values, and shares that sum to the whole."""

import pytest
import torch

from alignkit.kl_barrier import AGGREGATES, aggregate_positions, hinge_barrier
from alignkit.kl_barrier.barrier import (
    StepShape,
    batch_barrier,
    pooled_barrier,
    position_weights,
    rank_global_barrier,
    sequence_barrier,
    step_barrier,
)
from alignkit.kl_barrier.sequences import Sequences


def sequences(lengths: list[int]) -> Sequences:
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Sequences(index, len(lengths), torch.tensor(sum(length > 0 for length in lengths)))


def step(n_micro_batches: int = 1, n_ranks: int = 1, n_sequences: int = 0) -> StepShape:
    return StepShape(n_micro_batches=n_micro_batches, n_ranks=n_ranks, n_sequences=n_sequences)


def divergences(n: int, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed, as token KLs are."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul(1.5).exp().requires_grad_()


LENGTHS = [7, 1, 40, 0, 3, 21]


# ---- sequence ----


def test_every_sequence_has_its_own_hinge_and_the_mean_is_over_labelled_sequences():
    kl = torch.tensor([1.0, 3.0, 0.25], requires_grad=True)
    barrier = sequence_barrier(kl, sequences([2, 0, 1]), "mean", 0.5, step(n_sequences=2, n_ranks=1))
    # D is 2 and 0.25; relu(2 - 0.5) and relu(0.25 - 0.5), over two sequences.
    assert barrier.value.item() == 0.75
    assert barrier.divergence.isnan().tolist() == [False, True, False]
    assert barrier.divergence[[0, 2]].tolist() == [2.0, 0.25]
    barrier.value.backward()
    assert kl.grad.tolist() == [0.25, 0.25, 0.0]


def test_positions_of_all_sequences_share_one_divisor_whatever_the_split():
    kl = divergences(sum(LENGTHS))
    for how in AGGREGATES:
        whole = sequence_barrier(kl, sequences(LENGTHS), how, 1.0, step(n_sequences=5, n_ranks=1)).value
        (expected,) = torch.autograd.grad(whole, kl)
        for cuts in ([6], [1] * 6, [2, 4], [5, 1]):
            parts, start = [], 0
            rows = kl.split([sum(chunk) for chunk in torch.tensor(LENGTHS).split(cuts)])
            for size, part in zip(cuts, rows, strict=True):
                lengths = LENGTHS[start : start + size]
                parts.append(
                    sequence_barrier(part, sequences(lengths), how, 1.0, step(n_sequences=5, n_ranks=1)).value
                )
                start += size
            torch.testing.assert_close(sum(parts), whole)
            torch.testing.assert_close(torch.autograd.grad(sum(parts), kl)[0], expected)


def test_the_mean_over_ranks_is_the_barrier_of_all_of_them():
    kl = divergences(sum(LENGTHS))
    whole = sequence_barrier(kl, sequences(LENGTHS), "rmse", 1.0, step(n_sequences=5, n_ranks=1)).value
    first, second = kl.split([8, 64])
    ranks = [
        sequence_barrier(part, sequences(lengths), "rmse", 1.0, step(n_sequences=5, n_ranks=2)).value
        for part, lengths in ((first, LENGTHS[:2]), (second, LENGTHS[2:]))
    ]
    torch.testing.assert_close(sum(ranks) / 2, whole)


@pytest.mark.parametrize("how", AGGREGATES)
def test_no_position_at_all_is_a_zero_with_a_gradient(how):
    kl = torch.zeros(0, requires_grad=True)
    for barrier in (
        sequence_barrier(kl, sequences([0, 0]), how, 0.0, step(n_sequences=0, n_ranks=2)),
        pooled_barrier(kl, how, 0.0, step(n_micro_batches=2)),
        rank_global_barrier(kl, (kl.detach(), kl.detach()), how, 0.0, step(n_micro_batches=1, n_ranks=2)),
        step_barrier(kl, kl.detach(), torch.tensor(0.0), 0.0, step(n_micro_batches=1, n_ranks=2)),
    ):
        assert barrier.value.item() == 0.0 and barrier.value.requires_grad
        (gradient,) = torch.autograd.grad(barrier.value, kl)
        assert gradient.shape == (0,)


def test_a_pooled_barrier_without_positions_has_no_divergence_to_report():
    assert pooled_barrier(torch.zeros(0), "max", 0.1, step(n_micro_batches=1)).divergence.isnan().tolist() == [True]


# ---- micro_batch, rank_global ----


def test_a_micro_batch_has_one_hinge_of_which_the_steps_mean_is_taken():
    kl = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    barrier = pooled_barrier(kl, "max", 0.5, step(n_micro_batches=4))
    assert barrier.value.item() == 2.5 / 4 and barrier.divergence.tolist() == [3.0]
    barrier.value.backward()
    assert kl.grad.tolist() == [0.0, 0.25, 0.0]


@pytest.mark.parametrize("how", AGGREGATES)
def test_the_positions_of_all_ranks_share_one_hinge_with_its_gradient(how):
    kl = divergences(41)
    whole = pooled_barrier(kl, how, 1.0, step(n_micro_batches=3)).value
    (expected,) = torch.autograd.grad(whole, kl)
    parts = kl.split([10, 0, 31])  # three ranks, one without a position
    gradient = torch.zeros_like(kl)
    for rank, part in enumerate(parts):
        others = torch.cat([kl[:0], *parts[:rank]]).detach(), torch.cat([kl[:0], *parts[rank + 1 :]]).detach()
        barrier = rank_global_barrier(part, others, how, 1.0, step(n_micro_batches=3, n_ranks=3))
        torch.testing.assert_close(barrier.value, whole)
        gradient += torch.autograd.grad(barrier.value, kl)[0] / 3
    torch.testing.assert_close(gradient, expected)


# ---- step ----


@pytest.mark.parametrize("how", AGGREGATES)
def test_shares_of_a_step_sum_to_the_steps_barrier_for_any_split(how):
    kl = divergences(60)
    barrier = hinge_barrier(aggregate_positions(kl, how), 0.5)
    (expected,) = torch.autograd.grad(barrier, kl)
    divergence, weights = position_weights(kl, how, 0.5)
    torch.testing.assert_close(weights, expected)
    for sizes in ([60], [1, 59], [20, 0, 40], [5] * 12):
        for n_ranks in (1, 2):
            parts = [
                step_barrier(part, weight, divergence, 0.5, step(n_micro_batches=len(sizes), n_ranks=n_ranks)).value
                for part, weight in zip(kl.split(sizes), weights.split(sizes), strict=True)
            ]
            torch.testing.assert_close(sum(parts), barrier)
            (gradient,) = torch.autograd.grad(sum(parts), kl)
            torch.testing.assert_close(gradient, n_ranks * expected)


def test_position_weights_of_a_shut_gate_are_zero_and_of_an_open_one_the_aggregates_derivative():
    kl = torch.tensor([3.0, 4.0])
    divergence, weights = position_weights(kl, "rmse", 0.5)  # D = sqrt(12.5); its derivative k / (n D)
    assert divergence.item() == pytest.approx(12.5**0.5)
    assert weights.tolist() == pytest.approx([3 / (2 * 12.5**0.5), 4 / (2 * 12.5**0.5)])
    assert position_weights(kl, "rmse", 4.0)[1].tolist() == [0.0, 0.0]


def test_a_step_without_a_position_has_no_hinge_whatever_the_threshold():
    kl, nothing = torch.zeros(0, requires_grad=True), torch.tensor(torch.nan)
    barrier = step_barrier(kl, kl.detach(), nothing, 0.0, step(n_micro_batches=1))
    assert barrier.value.item() == 0.0 and barrier.divergence.isnan().tolist() == [True]


# ---- what is reported ----


def test_every_scope_reports_the_divergence_that_its_hinge_saw():
    kl = torch.tensor([1.0, 3.0])
    whole = rank_global_barrier(kl[:1], (kl[:0], kl[1:]), "mean", 0.5, step(n_ranks=2))
    assert whole.divergence.tolist() == [2.0]
    assert step_barrier(kl, torch.tensor([0.5, 0.5]), torch.tensor(2.0), 0.5, step()).divergence.tolist() == [2.0]
    # The last sequence has no position, so that the index alone does not tell how many there are.
    assert sequence_barrier(kl, sequences([2, 0]), "mean", 0.5, step(n_sequences=1)).divergence.shape == (2,)


def test_an_evaluated_batch_counts_its_sequences_alike_or_pools_its_positions():
    kl = torch.tensor([1.0, 3.0, 0.25])
    of_sequences = batch_barrier(kl, sequences([2, 0, 1]), "mean", "sequence", 0.5)
    assert of_sequences.value.item() == 0.75  # relu(2 - 0.5) and relu(0.25 - 0.5), over two sequences
    for scope in ("micro_batch", "rank_global", "step"):
        pooled = batch_barrier(kl, sequences([2, 0, 1]), "max", scope, 0.5)
        assert pooled.value.item() == 2.5 and pooled.divergence.tolist() == [3.0]
