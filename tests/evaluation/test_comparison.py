"""Verdicts: what is called an effect, a harm, and no evidence."""

from typing import Any

import pytest
from scipy import stats

from alignkit.evaluation.comparison import Analysis, analyse
from alignkit.evaluation.pareto import pareto_points
from alignkit.evaluation.results import Result, failed_result
from alignkit.evaluation.verdicts import Comparison, Verdict, judge
from tests.evaluation.records import ORIGIN, answers, baseline, general_baseline, nll, result

SAMPLED = {"do_sample": True, "temperature": 0.2}


def analysed(*results: Result) -> Analysis:
    return analyse(results, n_resamples=1000)


def only(analysis: Analysis) -> Comparison:
    [[change]] = analysis.changes
    assert change.comparison is not None
    return change.comparison


def summaries(means: list[float], n: int, unit: str = "proportion", **changes: Any) -> list[Result]:
    return [
        baseline(seed, mean=mean, n=n, unit=unit, decoding={**SAMPLED, "seed": seed}, **changes)
        for seed, mean in enumerate(means)
    ]


def test_the_gain_of_the_prior_systems_judge_is_within_the_noise_of_its_own_baselines() -> None:
    # 1.48 -> 1.86 of 50 answers was reported as a breakthrough.
    repeats = summaries([1.76, 1.48, 1.63, 1.72, 1.40], 50, "points")
    after = result(mean=1.86, n=50, unit="points", seed=1, decoding={**SAMPLED, "seed": 1})
    found = only(analysed(*repeats, after))
    assert found.difference == pytest.approx(0.38)
    assert found.band == pytest.approx(0.606, abs=5e-4)
    assert (found.verdict, found.reason) == (Verdict.NO_EVIDENCE, "within the noise band")
    assert found.interval is None


def test_the_gain_of_the_prior_system_on_1668_questions_is_an_effect() -> None:
    repeats = summaries([0.426, 0.435, 0.435, 0.430, 0.427], 1668)
    after = result(mean=0.489, n=1668, seed=1, decoding={**SAMPLED, "seed": 1})
    found = only(analysed(*repeats, after))
    assert (found.before, found.after, found.paired) == (0.435, 0.489, False)
    assert found.interval == pytest.approx((0.020, 0.088), abs=5e-4)
    assert found.band == pytest.approx(0.0168, abs=5e-5)
    assert found.verdict is Verdict.EFFECT


def test_three_items_of_32_are_no_evidence() -> None:
    # "+9.4 pp" on the count questions.
    found = only(analysed(baseline(items=answers(10, 32)), result(items=answers(13, 32))))
    assert (found.difference, found.verdict) == (pytest.approx(3 / 32), Verdict.NO_EVIDENCE)


def test_pairs_of_items_see_what_means_alone_cannot() -> None:
    before, after = answers(100), answers(110)
    assert only(analysed(baseline(items=before), result(items=after))).verdict is Verdict.EFFECT
    alone = only(analysed(baseline(mean=0.5, n=200), result(mean=0.55, n=200)))
    assert (alone.verdict, alone.reason) == (Verdict.NO_EVIDENCE, "the interval includes 0")


def test_more_of_what_should_be_less_is_a_harm() -> None:
    found = only(analysed(general_baseline(), nll(shift=0.1)))
    assert (found.difference, found.verdict) == (pytest.approx(0.11, abs=0.001), Verdict.HARM)
    assert only(analysed(general_baseline(), nll(shift=-0.1))).verdict is Verdict.EFFECT


def test_nothing_is_said_of_sampled_answers_without_three_baselines() -> None:
    sampled = {"decoding": SAMPLED}
    before = [baseline(seed, items=answers(50), **sampled) for seed in range(2)]
    found = only(analysed(*before, result(items=answers(150), **sampled)))
    assert (found.verdict, found.band) == (Verdict.NO_EVIDENCE, None)
    assert "fewer than 3 baselines" in found.reason


def test_greedy_answers_have_no_noise_band() -> None:
    assert only(analysed(baseline(items=answers(100)), result(items=answers(110)))).band == 0


def test_equal_scores_are_no_difference() -> None:
    found = only(analysed(baseline(), result()))
    assert (found.verdict, found.reason, found.p) == (Verdict.NO_EVIDENCE, "no difference", 1)


def test_two_items_that_both_improve_are_no_effect() -> None:
    found = only(analysed(baseline(items={"a": 0, "b": 0}), result(items={"a": 1, "b": 1})))
    assert (found.verdict, found.reason) == (Verdict.NO_EVIDENCE, "p is 0.5")


def test_one_item_has_no_interval() -> None:
    found = only(analysed(baseline(items={"a": 0}), result(items={"a": 1})))
    assert (found.interval, found.reason) == (None, "one item has no interval")


def test_summaries_whose_items_do_not_vary_have_no_interval() -> None:
    before, after = (dict(mean=mean, n=5, std=0.0, unit="points") for mean in (1.0, 2.0))
    assert only(analysed(baseline(**before), result(**after))).reason == "scores that do not vary have no interval"


def test_a_weak_effect_must_hold_for_the_number_of_settings_but_a_harm_need_not() -> None:
    # 10 of 13 changed answers for the better: p = 0.05 of one test, not of twenty.
    changed = {**answers(100), **{f"q{100 + n}": 1.0 for n in range(11)}, **{f"q{n}": 0.0 for n in range(2)}}
    same = [result(f"same{n}", items=answers(100), config={"beta": n}) for n in range(1, 20)]
    weak = result("weak", items=changed, config={"beta": 0})
    assert only(analysed(baseline(items=answers(100)), weak)).verdict is Verdict.EFFECT
    [first, *_] = analysed(baseline(items=answers(100)), weak, *same).changes[0]
    assert first.comparison is not None
    assert first.comparison.p_holm == pytest.approx(20 * (first.comparison.p or 0))
    assert "for 20 comparisons (Holm)" in first.comparison.reason
    same = [result(f"same{n}", items=changed, config={"beta": n}) for n in range(1, 20)]
    weak = result("weak", items=answers(100), config={"beta": 0})
    [first, *_] = analysed(baseline(items=changed), weak, *same).changes[0]
    assert first.comparison is not None
    assert (first.comparison.p_holm or 0) > 0.05
    assert first.comparison.verdict is Verdict.HARM


def test_a_run_is_compared_with_the_baseline_of_its_own_seed_else_with_the_mean_of_all() -> None:
    before = [baseline(0, items=answers(100)), baseline(1, items=answers(120))]
    assert only(analysed(*before, result(seed=1, items=answers(130)))).before == 0.6
    assert only(analysed(*before, result(seed=7, items=answers(130)))).before == pytest.approx(0.55)


def test_baselines_of_another_decoding_do_not_count() -> None:
    [[change]] = analysed(baseline(decoding=SAMPLED), result()).changes
    assert change.comparison is None


def test_greedy_baselines_that_differ_are_noticed() -> None:
    [measure] = analysed(
        baseline(0, items=answers(99)), baseline(1, items=answers(100)), result(items=answers(9))
    ).measures
    assert measure.baselines_differ


def test_seeds_are_aggregated_and_their_spread_is_in_the_interval() -> None:
    before = baseline(items=answers(100))
    alike = [result(f"s{n}", seed=n, items=answers(120)) for n in range(3)]
    apart = [result(f"s{n}", seed=n, items=answers(100 + 20 * n)) for n in range(3)]
    close, wide = only(analysed(before, *alike)), only(analysed(before, *apart))
    assert close.difference == wide.difference == pytest.approx(0.1)
    assert (close.n_seeds, close.n) == (3, 200)
    assert close.verdict is Verdict.EFFECT and wide.verdict is Verdict.NO_EVIDENCE


def test_the_spread_over_seeds_is_pooled_over_settings() -> None:
    before = baseline(items=answers(100))
    lone = result("lone", config={"beta": 0}, items=answers(120))
    others = [result(f"s{n}", seed=n, config={"beta": 1}, items=answers(80 + 20 * n)) for n in range(4)]
    [with_others, _] = analysed(before, lone, *others).changes[0]
    assert only(analysed(before, lone)).verdict is Verdict.EFFECT
    assert with_others.comparison is not None and with_others.comparison.verdict is Verdict.NO_EVIDENCE


def test_summaries_over_seeds_have_wider_intervals_where_seeds_differ() -> None:
    before = baseline(mean=0.4, n=1000)
    alike = only(analysed(before, *[result(f"s{n}", seed=n, mean=0.5, n=1000) for n in range(3)]))
    apart = only(analysed(before, *[result(f"s{n}", seed=n, mean=0.4 + 0.1 * n, n=1000) for n in range(3)]))
    assert alike.interval is not None and apart.interval is not None
    assert alike.interval[0] > 0 > apart.interval[0]
    assert (alike.verdict, apart.verdict) == (Verdict.EFFECT, Verdict.NO_EVIDENCE)


def test_items_that_cannot_be_paired_are_an_error_that_names_runs_and_items() -> None:
    with pytest.raises(ValueError, match=r"baseline-seed0 cannot be compared with beta0\.02: 1 ids are .* \('c'\)"):
        analysed(baseline(), result(items={"a": 1.0, "b": 1.0}))
    with pytest.raises(ValueError, match=r"baseline-seed1 and baseline-seed0 were scored on other items"):
        analysed(baseline(0), baseline(1, items={"a": 1.0}), result(seed=5))


def test_a_measure_that_runs_disagree_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="unlike other runs"):
        analysed(result("a", config={"beta": 1}), result("b", role="general", config={"beta": 2}))


def test_results_without_a_finished_run_are_an_error() -> None:
    with pytest.raises(ValueError, match="no finished run"):
        analysed(baseline())
    dead = failed_result(run="dead", error="out of memory", config={}, seed=0, wall_time_s=1.0, **ORIGIN)
    with pytest.raises(ValueError, match="dead failed: out of memory"):
        analysed(dead)


def test_between_settings_worse_must_hold_for_the_number_as_better_must() -> None:
    fewer = {**answers(100), **{f"q{n}": 0.0 for n in range(7)}}  # 7 of 7 changes for the worse: p about 0.008
    runs = [setting(f"r{n}", 100, beta=n) for n in range(10)]
    [table] = analysed(*runs, result("r10", items=fewer, config={"beta": 10})).tables
    [(_, rows)] = table.blocks
    last = rows[-1].contrasts[0]
    assert last is not None and last.p is not None
    assert last.p < 0.05 < 10 * last.p
    assert (last.verdict, last.p_holm) == (Verdict.NO_EVIDENCE, pytest.approx(10 * last.p))


def setting(name: str, right: int, **config: Any) -> Result:
    return result(name, items=answers(right), config=config)


def test_the_table_of_a_field_holds_all_other_fields_fixed() -> None:
    runs = [
        setting("a", 100, beta=0.02, epochs=1),
        setting("b", 110, beta=0.03, epochs=1),
        setting("c", 90, beta=0.02, epochs=2),
        setting("d", 120, beta=0.05, epochs=3),
    ]
    beta, epochs = analysed(baseline(items=answers(100)), *runs).tables
    assert (beta.fields, epochs.fields) == (("beta",), ("epochs",))
    [(fixed, rows)] = beta.blocks
    assert fixed == {"epochs": 1}
    assert [row.value for row in rows] == [(0.02,), (0.03,)]
    assert rows[0].contrasts == (None,)
    contrast = rows[1].contrasts[0]
    assert contrast is not None and contrast.difference == pytest.approx(0.05)
    [(fixed, rows)] = epochs.blocks
    assert fixed == {"beta": 0.02} and [row.value for row in rows] == [(1,), (2,)]


def test_fields_that_always_change_together_share_a_table() -> None:
    runs = [setting("a", 100, r=16, alpha=32), setting("b", 110, r=32, alpha=64)]
    [table] = analysed(*runs).tables
    assert table.fields == ("r", "alpha")


def test_a_field_that_never_changes_alone_has_no_table_and_is_named() -> None:
    # The fault of the prior system: a comparison that changed three settings at once.
    runs = [
        setting("a", 100, beta=0.02, epochs=1, rate=1),
        setting("b", 110, beta=0.03, epochs=2, rate=1),
        setting("c", 110, beta=0.02, epochs=3, rate=2),
    ]
    analysis = analysed(*runs)
    assert analysis.tables == ()
    assert analysis.never_alone == ("beta", "epochs", "rate")


def test_settings_are_contrasted_on_the_seeds_that_both_have() -> None:
    runs = [
        result("a0", seed=0, config={"beta": 1}, items=answers(100)),
        result("a1", seed=1, config={"beta": 1}, items=answers(150)),
        result("b1", seed=1, config={"beta": 2}, items=answers(160)),
        result("c2", seed=2, config={"beta": 3}, items=answers(160)),
    ]
    [table] = analysed(*runs).tables
    [(_, rows)] = table.blocks
    contrasts = [row.contrasts[0] for row in rows]
    assert contrasts[1] is not None and contrasts[1].difference == pytest.approx(0.05)
    assert contrasts[2] is None


def test_a_point_is_on_the_front_unless_another_beats_it() -> None:
    runs, texts = [], []
    for number, (right, shift) in enumerate([(120, 0.0), (140, 0.2), (110, 0.1), (140, 0.3)]):
        runs.append(setting(f"r{number}", right, beta=number))
        texts.append(nll(f"r{number}", shift=shift, config={"beta": number}))
    analysis = analysed(baseline(items=answers(100)), general_baseline(), *runs, *texts)
    (task, general), (task_changes, general_changes) = analysis.measures, analysis.changes
    points = pareto_points(task, task_changes, general, general_changes)
    assert [point.on_front for point in points] == [True, True, False, False]
    assert points[1].task == pytest.approx(20)
    assert points[1].general == pytest.approx(-0.22, abs=0.002)
    assert points[1].general_interval is not None
    assert points[1].general_interval[0] < points[1].general < points[1].general_interval[1]


def test_the_contrast_of_two_settings_has_root_two_times_the_spread_of_one() -> None:
    def run(beta: float, seed: int, score: float) -> Result:
        same = dict.fromkeys(("a", "b"), score)
        return result(f"{beta}-{seed}", unit="points", items=same, seed=seed, config={"beta": beta})

    # Over seeds 1, 2, 3 and 6, 7, 8: s = 1 with 2 + 2 degrees of freedom, and items that do not vary.
    runs = [run(beta, seed, start + seed) for beta, start in ((0.1, 1.0), (0.2, 6.0)) for seed in range(3)]
    (table,) = analyse([baseline(unit="points", items={"a": 0.0, "b": 0.0}), *runs], n_resamples=100_000).tables
    ((_, (_, row)),) = table.blocks
    (contrast,) = row.contrasts
    assert contrast is not None and contrast.interval is not None
    reach = float(stats.t.ppf(0.975, 4)) * 2**0.5 / 3**0.5
    assert contrast.interval == pytest.approx((5 - reach, 5 + reach), abs=0.05)


def test_an_interval_that_ends_at_zero_does_not_exclude_it() -> None:
    at_zero = Comparison(1.0, 1.5, 0.5, (0.0, 1.0), 0.04, None, n=9, n_seeds=1, paired=True, band=0.0)
    (judged,) = judge([at_zero], higher_is_better=True, against_start=True)
    assert judged.verdict is Verdict.NO_EVIDENCE and judged.reason == "the interval includes 0"
