"""β by hand: schedules, β-DPO's batch β, and the controller of a target divergence."""

import math

import pytest

from alignkit.dpo.beta import DynamicBeta, TargetKL, scheduled_beta

SHAPES = {"warmup_ratio": 0.2, "n_levels": 3}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.08, 0.06, 0.04, 0.02]),
        ("cosine", [0.1, 0.06 + 0.04 * math.cos(math.pi / 4), 0.06, 0.06 - 0.04 * math.cos(math.pi / 4), 0.02]),
        ("warmup", [0.1, 0.02, 0.02, 0.02, 0.02]),
        ("step", [0.1, 0.1, 0.06, 0.02, 0.02]),
    ],
)
def test_a_schedule_has_these_values_at_every_quarter(kind, values):
    found = [scheduled_beta(kind, 0.1, 0.02, quarter / 4, **SHAPES) for quarter in range(5)]
    assert found == pytest.approx(values, abs=1e-12)


def test_a_warmup_is_half_way_at_half_its_share():
    assert scheduled_beta("warmup", 0.1, 0.3, 0.1, **SHAPES) == pytest.approx(0.2)


def test_steps_change_at_equal_shares_of_the_training():
    levels = [
        scheduled_beta("step", 1.0, 4.0, progress / 100, warmup_ratio=0.1, n_levels=4) for progress in range(101)
    ]
    assert [levels.count(value) for value in (1.0, 2.0, 3.0, 4.0)] == [25, 25, 25, 26]


@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup", "step"])
def test_a_schedule_between_positive_ends_never_leaves_them(kind):
    values = [scheduled_beta(kind, 0.05, 0.3, progress / 999, **SHAPES) for progress in range(1000)]
    assert min(values) >= 0.05 and max(values) <= 0.3


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="beta_schedule is 'sine'"):
        scheduled_beta("sine", 0.1, 0.2, 0.0, **SHAPES)


def test_dynamic_beta_follows_the_published_rule():
    dynamic = DynamicBeta(alpha=0.6)
    found = []
    for margin in (2.0, 1.0, -1.0):
        dynamic.update(margin)
        found.append(dynamic.beta(0.1, margin))
    # averages 0.2, 0.28, 0.152
    assert found == pytest.approx([0.1 * (1 + 0.6 * 1.8), 0.1 * (1 + 0.6 * 0.72), 0.1 * (1 - 0.6 * 1.152)])


def test_dynamic_beta_never_falls_below_a_thousandth():
    dynamic = DynamicBeta(alpha=5.0)
    dynamic.update(-10.0)
    assert dynamic.beta(0.1, -10.0) == 1e-3


def test_a_divergence_above_its_target_raises_beta_and_one_below_lowers_it():
    control = TargetKL(target_nats=0.5, beta=0.1)
    control.update(0.55)
    assert control.beta == pytest.approx(0.1 * 1.01)
    control.update(5.0)
    assert control.beta == pytest.approx(0.1 * 1.01 * 1.02)
    control.update(0.0)
    assert control.beta == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_margin_or_divergence_that_is_no_number_changes_nothing(value):
    dynamic, control = DynamicBeta(0.5), TargetKL(0.5, 0.1)
    with pytest.raises(ValueError, match="margin"):
        dynamic.update(value)
    with pytest.raises(ValueError, match="divergence"):
        control.update(value)
    assert (dynamic.average_nats, control.beta) == (0.0, 0.1)
