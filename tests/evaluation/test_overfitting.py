"""Signs of overfitting in histories, and between trainings of different length."""

from typing import Any

import pytest

from alignkit.evaluation.comparison import analyse
from alignkit.evaluation.overfitting import Overfitting, OverfittingVerdict, curve, signs_of_overfitting
from alignkit.evaluation.results import Result
from tests.evaluation.records import answers, baseline, result

FALLING = [{"step": step, "loss": 0.7 - 0.01 * step} for step in range(0, 40, 5)]


def held_out(*losses: float) -> list[dict[str, Any]]:
    return [{"step": 10 * (place + 1), "eval_loss": loss} for place, loss in enumerate(losses)]


def judged(*results: Result) -> list[Overfitting]:
    return [*signs_of_overfitting(analyse(results, n_resamples=100))]


def of_history(*rows: dict[str, Any], **changes: Any) -> Overfitting:
    [found] = judged(result(history=[*rows], **changes))
    return found


def test_a_held_out_loss_that_turns_up_while_the_training_loss_falls_is_overfitting() -> None:
    found = of_history(*FALLING, *held_out(0.65, 0.6, 0.68))
    assert found.verdict is OverfittingVerdict.OVERFITTING
    assert found.signs[0] == "the held-out loss rose from 0.6 at step 20 to 0.68, while the training loss fell"


def test_a_held_out_loss_that_falls_or_wobbles_is_none() -> None:
    assert of_history(*FALLING, *held_out(0.65, 0.5, 0.35)).verdict is OverfittingVerdict.NONE_SEEN
    assert of_history(*FALLING, *held_out(0.5, 0.36, 0.37)).verdict is OverfittingVerdict.NONE_SEEN


def test_losses_that_rise_together_are_no_overfitting() -> None:
    rising = [{"step": step, "loss": 0.3 + 0.01 * step} for step in range(0, 40, 5)]
    assert of_history(*rising, *held_out(0.3, 0.4, 0.5)).verdict is OverfittingVerdict.NONE_SEEN


def test_a_gap_alone_is_to_be_watched() -> None:
    found = of_history(train_loss=0.5, eval_loss=0.6)
    assert (found.verdict, found.signs) == (
        OverfittingVerdict.WATCH,
        ("the held-out loss ends 0.1 above the training loss",),
    )
    assert of_history(train_loss=0.5, eval_loss=0.54).verdict is OverfittingVerdict.NONE_SEEN


def test_chosen_completions_that_become_unlikely_are_to_be_watched_from_the_step_on() -> None:
    rows = [{"step": step, "eval_logratio/chosen": -0.1 * step, "eval_loss": 0.6} for step in range(0, 60, 10)]
    found = of_history(*rows)
    assert found.verdict is OverfittingVerdict.WATCH
    assert found.signs == ("chosen completions are 5 nats less likely (over 1 from step 20 on)",)
    assert found.chosen_change_nats == pytest.approx(-5)


def test_absolute_log_probs_count_from_where_they_start() -> None:
    rows = [{"step": step, "eval_logps/chosen": -90 - 0.1 * step} for step in range(0, 60, 10)]
    assert of_history(*rows).chosen_change_nats == pytest.approx(-5)


def test_without_any_held_out_loss_nothing_is_known() -> None:
    assert of_history(*FALLING).verdict is OverfittingVerdict.NOT_KNOWN
    [found] = judged(result())
    assert (found.verdict, found.train_loss, found.eval_loss) == (OverfittingVerdict.NOT_KNOWN, None, None)


def test_a_named_evaluation_set_counts_as_held_out() -> None:
    rows = [{"step": step, "eval_dev_loss": loss} for step, loss in ((10, 0.6), (20, 0.5))]
    assert of_history(*FALLING, *rows).eval_loss == 0.5


def test_losses_that_are_no_numbers_are_counted() -> None:
    assert of_history({"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}).not_numbers == 1


def test_a_curve_is_the_mean_over_the_seeds_that_reached_the_step() -> None:
    short, long = [{"step": 1, "loss": 0.6}], [{"step": 1, "loss": 0.4}, {"step": 2, "loss": 0.3}]
    analysis = analyse([result("a", seed=0, history=short), result("b", seed=1, history=long)], n_resamples=100)
    found = curve(analysis.experiment.settings[0], "loss")
    assert found is not None
    assert (found.steps, found.values) == ((1, 2), (pytest.approx(0.5), 0.3))


def test_a_longer_training_with_lower_loss_and_worse_answers_is_overfitting() -> None:
    # The prior system: one epoch 0.623 and +5.4 pp, two epochs 0.509 and +2.7 pp.
    one = result("one", config={"num_train_epochs": 1}, items=answers(120), train_loss=0.623)
    two = result("two", config={"num_train_epochs": 2}, items=answers(100), train_loss=0.509)
    first, second = judged(baseline(items=answers(90)), one, two)
    assert first.verdict is OverfittingVerdict.NOT_KNOWN
    assert second.verdict is OverfittingVerdict.OVERFITTING
    assert second.signs == (
        "tatqa_dev is worse than in #1, which trained less, while the training loss fell from 0.623 to 0.509",
    )
    equal = result("two", config={"num_train_epochs": 2}, items=answers(120), train_loss=0.509)
    assert judged(baseline(items=answers(90)), one, equal)[1].verdict is OverfittingVerdict.NOT_KNOWN
    harder = result("two", config={"num_train_epochs": 2}, items=answers(100), train_loss=0.7)
    assert judged(baseline(items=answers(90)), one, harder)[1].signs == ()
