"""Direct preference optimisation: schedules of beta, cutting, collating, what is measured of pairs; row keys."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from alignkit.dpo.beta import BETA_SCHEDULES, LOWEST_DYNAMIC_BETA, DynamicBeta, TargetKL, scheduled_beta
from alignkit.dpo.collator import PairCollator, cut_to_completions
from alignkit.dpo.metrics import logratio_sums
from alignkit.dpo.truncation import cut_pair
from alignkit.metrics import MetricSums
from alignkit.row_cache import row_key
from alignkit.schedules import SCHEDULES, value_at
from tests.properties.given import given
from tests.properties.strategies import ORDERS, SHARES, shuffled, tensors

POSITIVE = st.floats(1e-6, 1e3)


@given(st.sampled_from(SCHEDULES), POSITIVE, POSITIVE, SHARES, SHARES)
def test_a_schedule_never_leaves_the_interval_of_its_ends(kind, start, end, progress, warmup):
    value = value_at(kind, start, end, progress, warmup_share=warmup)
    low, high = (0.0, start) if kind == "warmup" else (start, start) if kind == "constant" else sorted((start, end))
    assert low <= value <= high


@given(st.sampled_from(["linear", "cosine"]), POSITIVE, POSITIVE, SHARES)
def test_a_schedule_run_backwards_is_the_one_between_exchanged_ends(kind, start, end, progress):
    assert value_at(kind, start, end, progress) == pytest.approx(value_at(kind, end, start, 1 - progress), rel=1e-9)


@given(st.sampled_from(BETA_SCHEDULES), POSITIVE, POSITIVE, SHARES, st.floats(0.01, 1), st.integers(2, 9))
def test_beta_stays_between_its_ends_which_it_reaches(kind, beta, beta_end, progress, warmup_ratio, n_levels):
    def at(share):
        return scheduled_beta(kind, beta, beta_end, share, warmup_ratio=warmup_ratio, n_levels=n_levels)

    low, high = sorted((beta, beta_end))
    assert low <= at(progress) <= high
    assert at(0.0) == beta
    assert at(1.0) == (beta if kind == "constant" else beta_end)


@given(POSITIVE, POSITIVE, st.integers(2, 9))
def test_steps_of_beta_are_as_many_as_were_asked_for_and_in_one_direction(beta, beta_end, n_levels):
    assume(abs(beta - beta_end) > 1e-3 * beta)
    options = {"warmup_ratio": 0.1, "n_levels": n_levels}
    values = [scheduled_beta("step", beta, beta_end, place / 360, **options) for place in range(361)]
    assert len(set(values)) == n_levels
    assert values == sorted(values, reverse=beta > beta_end)


@given(st.lists(st.floats(-20, 20), max_size=12), POSITIVE, st.floats(0.01, 2), st.floats(-20, 20))
def test_dynamic_beta_is_its_base_at_the_average_and_rises_with_the_margin(seen, beta, alpha, margin):
    dynamic = DynamicBeta(alpha)
    for value in seen:
        dynamic.update(value)
    assert dynamic.beta(beta, dynamic.average_nats) == max(beta, LOWEST_DYNAMIC_BETA)
    assert dynamic.beta(beta, margin) >= LOWEST_DYNAMIC_BETA
    assert dynamic.beta(beta, margin + 1) >= dynamic.beta(beta, margin)
    assert abs(dynamic.average_nats) <= max(map(abs, seen), default=0) + 1e-12


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.floats(0.01, 10), st.floats(0.1, 10))
def test_a_targeted_beta_moves_to_the_side_of_the_error_by_a_fiftieth_at_most_and_has_no_unit(seen, target, unit):
    plain, scaled = TargetKL(target, 0.1), TargetKL(unit * target, 0.1)
    for value in seen:
        before = plain.beta
        plain.update(value)
        scaled.update(unit * value)
        assert abs(plain.beta / before - 1) <= 0.02 + 1e-12
        assert (plain.beta - before) * (value - target) >= 0
    assert scaled.beta == pytest.approx(plain.beta)


# ---- Pairs ----

IDS = st.lists(st.integers(0, 50), min_size=1, max_size=9)
PROMPTS = st.lists(st.integers(0, 50), max_size=9)
LIMITS = st.none() | st.integers(2, 14)


@given(PROMPTS, IDS, IDS, LIMITS, st.none() | st.integers(1, 8), st.sampled_from(["keep_end", "keep_start"]))
def test_a_cut_pair_fits_keeps_a_token_of_each_side_and_counts_what_it_lost(
    prompt, chosen, rejected, limit, prompt_limit, side
):
    assume(limit is None or prompt_limit is None or prompt_limit < limit)
    limits = {"max_length": limit, "max_prompt_length": prompt_limit, "prompt_truncation": side}
    cut = cut_pair(prompt, chosen, rejected, **limits)
    assert cut.prompt == (prompt[cut.n_cut_prompt :] if side == "keep_end" else prompt[: len(cut.prompt)])
    for whole, part, n_cut in ((chosen, cut.chosen, cut.n_cut_chosen), (rejected, cut.rejected, cut.n_cut_rejected)):
        assert part == whole[: len(whole) - n_cut] != []
        assert limit is None or len(cut.prompt) + len(part) <= limit
    again = cut_pair(cut.prompt, cut.chosen, cut.rejected, **limits)
    assert again == (*cut[:3], 0, 0, 0)
    exchanged = cut_pair(prompt, rejected, chosen, **limits)
    assert (exchanged.chosen, exchanged.rejected) == (cut.rejected, cut.chosen)


ROWS = st.lists(st.tuples(PROMPTS, IDS, IDS), min_size=1, max_size=4)


def examples_of(rows):
    return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows]


@given(ROWS, LIMITS, st.none() | st.integers(1, 8), ORDERS)
def test_a_batch_is_its_pairs_read_back_by_its_masks_in_any_order(rows, limit, multiple, order):
    collate = PairCollator(51, max_length=limit, pad_to_multiple_of=multiple, with_keys=True)
    moved = shuffled(rows, order)
    batch = collate(examples_of(moved))
    assert batch["input_ids"].shape[1] % (multiple or 1) == 0
    for number, (prompt, chosen, rejected) in enumerate(moved):
        cut = cut_pair(prompt, chosen, rejected, max_length=limit)
        for place, completion in ((number, cut.chosen), (number + len(rows), cut.rejected)):
            ids, real, of_completion = (
                batch[name][place] for name in ("input_ids", "attention_mask", "completion_mask")
            )
            assert ids[real.bool()].tolist() == [*cut.prompt, *completion]
            assert ids[of_completion.bool()].tolist() == completion
            assert (ids[real == 0] == 51).all()
            assert batch["row_keys"][place] == row_key(cut.prompt, completion)
        assert batch["n_cut"][number].tolist() == [cut.n_cut_prompt, cut.n_cut_chosen + cut.n_cut_rejected]


@given(st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=4))
def test_packed_rows_and_cut_batches_hold_the_same_completions(rows):
    batch = PairCollator(51, share_prefix=True)(examples_of(rows))
    packed = batch["packed"]
    if packed is None:
        return
    cut = cut_to_completions(batch)
    ids = packed.input_ids.flatten()[packed.index]
    real = cut["completion_mask"].bool()
    assert torch.equal(ids[real], cut["input_ids"][real])
    assert torch.equal(ids[:, 0], cut["input_ids"][:, 0])
    expected = [completion for p, c, _ in rows for completion in [c]] + [r for *_, r in rows]
    assert [row[mask].tolist() for row, mask in zip(cut["input_ids"], real, strict=True)] == expected
    assert cut["attention_mask"].sum() == batch["attention_mask"].sum()


@given(tensors(4, of=st.integers(-3, 3).map(float)), tensors(4, of=st.integers(-3, 3).map(float)), ORDERS)
def test_sums_of_log_ratios_turn_round_with_the_sides_and_a_tie_is_half_a_success(chosen, rejected, order):
    sums, turned = logratio_sums(chosen, rejected), logratio_sums(rejected, chosen)
    r_chosen, r_rejected, margin, right = sums.tolist()
    assert turned.tolist() == pytest.approx([r_rejected, r_chosen, -margin, 4 - right])
    places = shuffled([0, 1, 2, 3], order)
    assert logratio_sums(chosen[places], rejected[places]).tolist() == pytest.approx(sums.tolist())
    halves = logratio_sums(chosen[:2], rejected[:2]) + logratio_sums(chosen[2:], rejected[2:])
    assert halves.tolist() == pytest.approx(sums.tolist())


# ---- Sums of metrics, keys of rows ----


class OneProcess:
    """What `MetricSums` asks of accelerate in a training of one process."""

    @staticmethod
    def gather(values):
        return values


@given(st.lists(st.lists(st.floats(-100, 100), max_size=6), min_size=1, max_size=4))
def test_a_metric_is_the_mean_over_all_values_however_they_came_in_batches(batches):
    sums = MetricSums()
    for batch in batches:
        values = torch.tensor(batch, dtype=torch.float64)
        sums.add_mean("m", values.sum()[None], torch.tensor([len(batch)]))
        sums.add_total("t", values.sum()[None])
        low, high = (min(batch), max(batch)) if batch else (math.inf, -math.inf)
        sums.add_extremes("e", torch.tensor([low]), torch.tensor([high]))
    everything = [value for batch in batches for value in batch]
    found = sums.pop(OneProcess)
    assert found["t"] == pytest.approx([sum(everything)], abs=1e-9)
    if everything:
        assert found["m"] == pytest.approx([sum(everything) / len(everything)], abs=1e-9)
        assert found["min_e"] == pytest.approx([min(everything)])
        assert found["max_e"] == pytest.approx([max(everything)])
    else:
        assert math.isnan(found["m"][0])
    assert sums.pop(OneProcess) == {}


PARTS = st.lists(st.binary(max_size=4) | st.lists(st.integers(-9, 9), max_size=4), max_size=3)


@given(PARTS, PARTS)
def test_row_keys_are_equal_exactly_where_all_parts_are(first, second):
    assert (row_key(*first) == row_key(*second)) == (first == second)


@given(st.lists(st.integers(-(2**62), 2**62), max_size=5))
def test_a_row_key_does_not_depend_on_what_holds_the_numbers(numbers):
    held = [numbers, tuple(numbers), torch.tensor(numbers, dtype=torch.long), np.array(numbers, dtype=np.int64)]
    assert len({row_key(one) for one in held}) == 1
    assert len(row_key(numbers)) == 16
