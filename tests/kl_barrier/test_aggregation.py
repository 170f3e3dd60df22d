"""Aggregates over positions and sequences, and the hinge: values, gradients, and which rows a gradient reaches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.kl_barrier import AGGREGATES, aggregate_positions, hinge_barrier
from alignkit.kl_barrier.aggregation import plain_aggregate_positions

EACH = pytest.mark.parametrize("how", AGGREGATES)
EACH_SCOPE = pytest.mark.parametrize("per_sequence", [False, True], ids=["all", "sequence"])
INF = math.inf


def from_torch(kl: torch.Tensor, how: str) -> torch.Tensor:
    """The aggregate of one set of positions in the words of torch."""
    n = len(kl)
    return {
        "mean": lambda: kl.mean(),
        "rmse": lambda: torch.linalg.vector_norm(kl) / math.sqrt(n),
        "p95": lambda: torch.quantile(kl, 0.95),
        "max": lambda: kl.amax(),
        "cvar95": lambda: kl.sort().values[n - max(1, math.ceil(0.05 * n)) :].mean(),
    }[how]()


def aggregate(kl: torch.Tensor, how: str, per_sequence: bool) -> torch.Tensor:
    """Of one set of positions, by either of the two ways through the code."""
    if not per_sequence:
        return aggregate_positions(kl, how)
    return aggregate_positions(kl, how, torch.zeros(len(kl), dtype=torch.long)).squeeze(0)


def gradient(kl: torch.Tensor, how: str, per_sequence: bool = False) -> torch.Tensor:
    kl = kl.detach().requires_grad_()
    return torch.autograd.grad(aggregate(kl, how, per_sequence), kl)[0]


def ragged(seed: int, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergences of a heavy tail in float64, and their sequences, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    index = index[torch.randperm(len(index), generator=generator)]
    return torch.randn(len(index), dtype=torch.float64, generator=generator).mul(2).exp(), index


# ---- Values ----


@EACH_SCOPE
@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", 10.5), ("rmse", math.sqrt(20 * 21 * 41 / 6 / 20)), ("p95", 19.05), ("max", 20.0), ("cvar95", 20.0)],
)
def test_the_aggregates_of_one_to_twenty(how, expected, per_sequence):
    kl = torch.arange(1.0, 21.0).flip(0)
    assert aggregate(kl, how, per_sequence).item() == pytest.approx(expected, rel=1e-6)


@EACH_SCOPE
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (19, 1), (20, 1), (21, 2), (40, 2), (41, 3), (60, 3), (100, 5), (101, 6)]
)
def test_the_worst_five_percent_are_rounded_up_to_whole_positions(n, m, per_sequence):
    kl = torch.arange(n, dtype=torch.float64)
    assert aggregate(kl, "cvar95", per_sequence).item() == pytest.approx(n - 1 - (m - 1) / 2)
    assert (gradient(kl, "cvar95", per_sequence) != 0).sum() == m


@EACH
@EACH_SCOPE
@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 41, 333])
def test_the_aggregate_and_its_gradient_are_those_of_torch(how, per_sequence, n):
    kl = ragged(n, [n])[0].requires_grad_()
    ours, theirs = aggregate(kl, how, per_sequence), from_torch(kl, how)
    torch.testing.assert_close(ours, theirs)
    for values in zip(*(torch.autograd.grad(value, kl) for value in (ours, theirs)), strict=True):
        torch.testing.assert_close(*values)


@EACH_SCOPE
def test_p95_is_blind_to_spikes_at_fewer_than_five_percent_of_positions_and_cvar95_is_not(per_sequence):
    kl = torch.full((1000,), 0.02)
    kl[::25] = 5.0  # 4 %
    assert aggregate(kl, "p95", per_sequence).item() == pytest.approx(0.02)
    assert aggregate(kl, "cvar95", per_sequence).item() == pytest.approx((40 * 5.0 + 10 * 0.02) / 50)


@EACH
@EACH_SCOPE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_aggregated_in_float32(how, per_sequence, dtype):
    kl = ragged(0, [100])[0].to(dtype)
    value = aggregate(kl, how, per_sequence)
    assert value.dtype == torch.float32
    assert torch.equal(value, aggregate(kl.float(), how, per_sequence))


def test_more_positions_than_torch_quantile_takes():
    n = 2**24 + 8
    kl = torch.zeros(n)
    kl[7 :: n // 1000] = 1.0  # far below 5 %
    kl[: n // 10].fill_(0.5)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(kl, 0.95)
    assert aggregate_positions(kl, "p95").item() == 0.5
    constant = torch.full((n,), 0.3)
    assert aggregate_positions(constant, "rmse").item() == pytest.approx(0.3, rel=3e-6)
    assert aggregate_positions(constant, "mean").item() == pytest.approx(0.3, rel=3e-6)


# ---- Over sequences ----


@EACH
@pytest.mark.parametrize("seed", range(4))
def test_over_sequences_value_and_gradient_are_those_of_a_loop_over_them(how, seed):
    lengths = [1, 40, 2, 0, 41, 0, 20, 137, 3, 21]
    kl, index = ragged(seed, [*lengths, 5])
    kl.requires_grad_()
    weights = torch.randn(len(lengths) + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fast, slow = aggregate_positions(kl, how, index), plain_aggregate_positions(kl, how, index)
    torch.testing.assert_close(fast, slow)
    grads = [torch.autograd.grad((weights * values).sum(), kl)[0] for values in (fast, slow)]
    torch.testing.assert_close(*grads)


@EACH
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])), max_size=60),
    extra=st.integers(0, 2),
)
def test_the_loop_and_the_fast_path_agree_also_on_ties_empty_sequences_and_none(how, rows, extra):
    index = torch.tensor([row[0] for row in rows], dtype=torch.long)
    kl = torch.tensor([row[1] for row in rows], dtype=torch.float64, requires_grad=True)
    slow = plain_aggregate_positions(kl, how, index)
    fast = aggregate_positions(kl, how, index, n_sequences=len(slow) + extra)
    assert not fast[len(slow) :].any()
    torch.testing.assert_close(fast[: len(slow)], slow)
    ours, theirs = (torch.autograd.grad(values.square().sum(), kl)[0] for values in (fast, slow))
    assert ours.isfinite().all()
    if how in ("p95", "cvar95"):  # which of equal rows gets the gradient is open; how much they get is not
        key = index.double() * 100 + kl.detach()
        ours, theirs = ours[key.argsort()], theirs[key.argsort()]
        groups = key.sort().values.unique_consecutive(return_inverse=True)[1]
        ours, theirs = (torch.zeros(60, dtype=torch.float64).index_add(0, groups, part) for part in (ours, theirs))
    torch.testing.assert_close(ours, theirs)


@EACH
def test_a_sequence_does_not_feel_its_neighbours(how):
    kl, index = ragged(1, [30, 50, 7])
    alone = aggregate_positions(kl[index == 1], how)
    kl[index != 1] *= 100
    torch.testing.assert_close(aggregate_positions(kl, how, index)[1], alone)


@EACH
def test_gradients_over_sequences_pass_gradcheck(how):
    kl, index = ragged(2, [3, 0, 21, 1])
    assert torch.autograd.gradcheck(lambda values: aggregate_positions(values, how, index), kl.requires_grad_())


# ---- Laws ----

VALUES = st.lists(st.floats(0, 100, width=32).filter(lambda k: k == 0 or k > 1e-6), min_size=1, max_size=50)


@EACH
@EACH_SCOPE
@settings(max_examples=30, deadline=None)
@given(values=VALUES, order=st.randoms(use_true_random=False), scale=st.floats(0.01, 100))
def test_order_is_nothing_scale_is_everything_and_the_aggregate_is_between_the_extremes(
    how, per_sequence, values, order, scale
):
    kl = torch.tensor(values, dtype=torch.float64)
    value = aggregate(kl, how, per_sequence).item()
    shuffled = order.sample(values, len(values))
    assert aggregate(torch.tensor(shuffled, dtype=torch.float64), how, per_sequence).item() == pytest.approx(value)
    assert aggregate(scale * kl, how, per_sequence).item() == pytest.approx(scale * value)
    assert min(values) * (1 - 1e-12) <= value <= max(values) * (1 + 1e-12)


@EACH
@EACH_SCOPE
@settings(max_examples=30, deadline=None)
@given(values=VALUES, data=st.data())
def test_a_larger_divergence_anywhere_never_lowers_the_aggregate(how, per_sequence, values, data):
    kl = torch.tensor(values, dtype=torch.float64)
    before = aggregate(kl, how, per_sequence).item()
    kl[data.draw(st.integers(0, len(values) - 1))] += data.draw(st.floats(0, 10))
    assert aggregate(kl, how, per_sequence).item() >= before * (1 - 1e-12)


@settings(max_examples=30, deadline=None)
@given(values=VALUES)
def test_the_aggregates_have_an_order(values):
    kl = torch.tensor(values, dtype=torch.float64)
    mean, rmse, p95, largest, cvar95 = (aggregate_positions(kl, how).item() for how in AGGREGATES)
    slack = 1 + 1e-12
    assert mean <= rmse * slack
    assert rmse <= largest * slack
    assert p95 <= largest * slack
    assert mean <= cvar95 * slack
    assert cvar95 <= largest * slack


# ---- Gradients ----


@EACH_SCOPE
@pytest.mark.parametrize(("how", "rows"), [("mean", 333), ("rmse", 333), ("p95", 2), ("max", 1), ("cvar95", 17)])
def test_the_gradient_reaches_only_the_rows_of_the_aggregate(how, rows, per_sequence):
    assert (gradient(ragged(3, [333])[0], how, per_sequence) != 0).sum() == rows


@EACH_SCOPE
def test_the_gradient_of_max_is_shared_by_ties(per_sequence):
    grad = gradient(torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]), "max", per_sequence)
    torch.testing.assert_close(grad, torch.tensor([0.0, 1 / 3, 1 / 3, 0.0, 1 / 3]))


@EACH_SCOPE
def test_all_zero_divergences_share_the_gradient_of_max(per_sequence):
    torch.testing.assert_close(gradient(torch.zeros(4), "max", per_sequence), torch.full((4,), 0.25))


@EACH_SCOPE
def test_the_gradient_of_rmse_is_zero_at_zero(per_sequence):
    assert torch.equal(gradient(torch.zeros(4), "rmse", per_sequence), torch.zeros(4))


def test_an_all_zero_sequence_has_a_zero_gradient_of_rmse_beside_others_that_have_not():
    kl = torch.tensor([3.0, 0.0, 4.0, 0.0], requires_grad=True)
    values = aggregate_positions(kl, "rmse", torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(values, torch.tensor([math.sqrt(12.5), 0.0]))
    values.sum().backward()
    d = 2 * math.sqrt(12.5)
    torch.testing.assert_close(kl.grad, torch.tensor([3 / d, 0.0, 4 / d, 0.0]))


@EACH
def test_no_position_gives_a_finite_zero_with_a_gradient(how):
    kl = torch.zeros(0, requires_grad=True)
    index = torch.zeros(0, dtype=torch.long)
    assert aggregate_positions(kl, how, index).shape == (0,)
    none = [
        aggregate_positions(kl, how),
        aggregate_positions(kl, how, index).sum(),
        *aggregate_positions(kl, how, index, n_sequences=2),
    ]
    for value in none:
        assert value.item() == 0
        (grad,) = torch.autograd.grad(value, kl, retain_graph=True)
        assert grad.shape == (0,)


@EACH
def test_a_sequence_without_positions_gives_zero_with_a_gradient(how):
    kl = torch.tensor([1.0, 2.0], requires_grad=True)
    values = aggregate_positions(kl, how, torch.tensor([1, 1]), n_sequences=3)
    assert values[[0, 2]].tolist() == [0, 0]
    (grad,) = torch.autograd.grad(values[0] + values[2], kl)
    assert torch.equal(grad, torch.zeros(2))


# ---- What is not a number ----


@EACH
def test_a_nan_shows_in_its_own_sequence_and_in_the_whole_and_nowhere_else(how):
    kl = torch.full((64,), 0.5)
    kl[11] = math.nan
    index = torch.arange(64) % 2
    assert aggregate_positions(kl, how).isnan()
    assert aggregate_positions(kl, how, index).isnan().tolist() == [False, True]
    assert plain_aggregate_positions(kl, how, index).isnan().tolist() == [False, True]


@EACH_SCOPE
@pytest.mark.parametrize(
    ("how", "expected"), [("mean", INF), ("rmse", INF), ("p95", 1.0), ("max", INF), ("cvar95", INF)]
)
def test_an_infinite_divergence_is_infinite_in_what_it_counts_in(how, expected, per_sequence):
    kl = torch.ones(101)
    kl[5] = INF
    assert aggregate(kl, how, per_sequence).item() == expected
    assert aggregate(kl[:21], how, per_sequence).item() == expected  # p95 is the 20th, beside the infinite one
    assert aggregate(torch.full((7,), INF), how, per_sequence).item() == INF


@pytest.mark.parametrize("how", AGGREGATES)
def test_an_index_may_be_of_either_integer_type(how):
    kl, index = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 1, 1])
    found = aggregate_positions(kl, how, index.int())
    assert found.tolist() == aggregate_positions(kl, how, index).tolist()


# ---- Bad input ----


def test_an_unknown_aggregate_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match=r"'median'.*'mean', 'rmse', 'p95', 'max', 'cvar95'"):
        aggregate_positions(torch.ones(3), "median")


@pytest.mark.parametrize("kl", [torch.ones(2, 3), torch.tensor(1.0), torch.ones(3, dtype=torch.long)])
def test_divergences_that_are_no_vector_of_floats_are_refused(kl):
    with pytest.raises(ValueError, match=r"give a vector \(N,\) of floats"):
        aggregate_positions(kl, "mean")


@pytest.mark.parametrize(
    ("index", "n_sequences", "complaint"),
    [
        (torch.tensor([0, 1]), None, r"\(2,\).*\(3,\)"),
        (torch.tensor([0.0, 1.0, 1.0]), None, "float32; give integers"),
        (torch.tensor([True, False, True]), None, "bool; give integers"),
        (torch.tensor([0, -1, 1]), None, "holds -1; number the sequences from 0"),
        (torch.tensor([0, 4, 1]), 3, "n_sequences is 3, but sequence_index goes up to 4"),
    ],
)
def test_an_index_that_names_no_sequences_is_refused(index, n_sequences, complaint):
    with pytest.raises(ValueError, match=complaint):
        aggregate_positions(torch.ones(3), "mean", index, n_sequences=n_sequences)


def test_the_loop_refuses_what_the_fast_path_refuses():
    with pytest.raises(ValueError, match="float32; give integers"):
        plain_aggregate_positions(torch.ones(2), "mean", torch.tensor([0.0, 1.0]))


# ---- The hinge ----


def test_the_hinge_is_what_exceeds_the_threshold():
    d = torch.tensor([0.0, 0.1, 0.25, 2.0], requires_grad=True)
    values = hinge_barrier(d, 0.25)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, 0.0, 1.75]))
    values.sum().backward()
    assert d.grad.tolist() == [0, 0, 0, 1]


def test_an_infinite_threshold_keeps_the_gate_shut_and_a_nan_passes_any():
    assert hinge_barrier(torch.tensor([0.0, 1e30]), INF).tolist() == [0, 0]
    assert hinge_barrier(torch.tensor(math.nan), INF).isnan()


def test_the_hinge_is_never_taken_in_half_precision():
    d = torch.tensor([0.5], dtype=torch.float16)
    assert hinge_barrier(d, 0.1).item() == torch.tensor(0.5).sub(0.1).item()


@pytest.mark.parametrize("tau_nats", [-0.1, -INF, math.nan])
def test_a_negative_threshold_is_refused(tau_nats):
    with pytest.raises(ValueError, match=rf"tau_nats is {tau_nats}.*>= 0"):
        hinge_barrier(torch.ones(2), tau_nats)
