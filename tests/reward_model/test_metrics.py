"""Hand-worked values of every metric, and what must not change them."""

import math

import numpy as np
import pytest
import torch

from alignkit.reward_model.metrics import EvaluationReport, calibration_error, evaluation_report
from alignkit.reward_model.separation import auroc, d_prime

# Four texts, two heads. Head a: 0 beats 1, 2 beats 1, 3 beats 0. Head b: 1 beats 2.
SCORES = [[1.0, 0.0], [0.0, 3.0], [2.0, 1.0], [-1.0, 2.0]]
EXAMPLE = {"winner": [0, 2, 3, 1], "loser": [1, 1, 0, 2], "head": [0, 0, 0, 1], "weight": [1.0, 2.0, 1.0, 1.0]}


def example_report(**changes) -> EvaluationReport:
    return evaluation_report(**{"scores": SCORES, **EXAMPLE, "head_names": ["a", "b"], **changes})


def random_evaluation(seed: int, n_texts: int = 60, n_heads: int = 4, n_comparisons: int = 500) -> dict:
    """Arguments of `evaluation_report`, with equal scores, equal lengths, tiers and comparisons without one."""
    generator = np.random.default_rng(seed)
    return {
        "scores": generator.integers(-6, 7, (n_texts, n_heads)) / 4,
        "winner": generator.integers(0, n_texts, n_comparisons),
        "loser": generator.integers(0, n_texts, n_comparisons),
        "head": generator.integers(0, n_heads, n_comparisons),
        "weight": generator.random(n_comparisons) + 0.1,
        "lengths": generator.integers(1, 9, n_texts),
        "tiers": [["soft", "furthest", None][code] for code in generator.integers(0, 3, n_comparisons)],
        "head_names": [f"head_{k}" for k in range(n_heads)],
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def right(gap: float) -> float:
    return 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0


def plain_auroc(positives: list[float], negatives: list[float]) -> float:
    return sum(right(p - n) for p in positives for n in negatives) / (len(positives) * len(negatives))


def plain_d_prime(positives: list[float], negatives: list[float]) -> float:
    def mean_and_variance(values: list[float]) -> tuple[float, float]:
        mean = sum(values) / len(values)
        return mean, sum((value - mean) ** 2 for value in values) / (len(values) - 1)

    (mean_p, var_p), (mean_n, var_n) = mean_and_variance(positives), mean_and_variance(negatives)
    return (mean_p - mean_n) / math.sqrt((var_p + var_n) / 2)


def plain_comparison_metrics(rows: list[dict]) -> dict[str, float]:
    total = sum(row["weight"] for row in rows)
    metrics = {
        "accuracy": sum(row["weight"] * right(row["gap"]) for row in rows) / total,
        "margin": sum(row["weight"] * row["gap"] for row in rows) / total,
        "length_accuracy": sum(row["weight"] * right(row["length_gap"]) for row in rows) / total,
    }
    bins: list[list[dict]] = [[] for _ in range(10)]
    for row in rows:
        bins[min(int((sigmoid(abs(row["gap"])) - 0.5) * 20), 9)].append(row)
    metrics["ece"] = 0.0
    for members in filter(None, bins):
        weight = sum(row["weight"] for row in members)
        accuracy = sum(row["weight"] * right(row["gap"]) for row in members) / weight
        confidence = sum(row["weight"] * sigmoid(abs(row["gap"])) for row in members) / weight
        metrics["ece"] += weight / total * abs(accuracy - confidence)
    for tier in {row["tier"] for row in rows} - {None}:
        members = [row for row in rows if row["tier"] == tier]
        weight = sum(row["weight"] for row in members)
        metrics[f"accuracy_{tier}"] = sum(row["weight"] * right(row["gap"]) for row in members) / weight
    return metrics


def plain_range_metrics(values: list[float]) -> dict[str, float]:
    low, high, mean = min(values), max(values), sum(values) / len(values)
    return {"min_score": low, "mean_score": mean, "max_score": high, "dynamic_range": high - low}


def plain_metrics(scores, winner, loser, head, weight, lengths, tiers, head_names) -> dict[str, float]:
    """`evaluation_report(...).flat("eval")` for heads that all have comparisons, one comparison at a time."""
    scores = [[float(value) for value in row] for row in scores]
    texts = range(len(scores))

    def rows_of(own_head: int, column: int) -> list[dict]:
        return [
            {
                "gap": scores[w][column] - scores[v][column],
                "length_gap": lengths[w] - lengths[v],
                "weight": c,
                "tier": tier,
                "winner": w,
                "loser": v,
            }
            for w, v, h, c, tier in zip(winner, loser, head, weight, tiers, strict=True)
            if h == own_head
        ]

    flat, pooled_rows, pooled_scores = {}, [], []
    for k, name in enumerate(head_names):
        rows = rows_of(k, k)
        winners = [scores[text][k] for text in texts if text in {row["winner"] for row in rows}]
        losers = [scores[text][k] for text in texts if text in {row["loser"] for row in rows}]
        sides = {row["winner"] for row in rows} | {row["loser"] for row in rows}
        correlations = [
            np.corrcoef([r[k] for r in scores], [r[j] for r in scores])[0, 1] for j in range(len(head_names))
        ]
        others = [j for j in range(len(head_names)) if j != k]
        metrics = plain_comparison_metrics(rows) | plain_range_metrics([scores[text][k] for text in sides])
        metrics["auroc"] = plain_auroc(winners, losers)
        metrics["d_prime"] = plain_d_prime(winners, losers)
        metrics["cross_correlation"] = max((correlations[j] for j in others), key=abs)
        metrics["cross_leakage"] = max(plain_comparison_metrics(rows_of(k, j))["accuracy"] for j in others)
        flat |= {f"eval_{name}/{metric}": value for metric, value in metrics.items()}
        pooled_rows += rows
        pooled_scores += [scores[text][k] for text in sides]
    overall = plain_comparison_metrics(pooled_rows) | plain_range_metrics(pooled_scores)
    return flat | {f"eval_{metric}": value for metric, value in overall.items()}


def test_a_head_worked_by_hand() -> None:
    # Gaps of head a: 1, 2, -2 with weights 1, 2, 1. Winners {0, 2, 3}: 1, 2, -1. Losers {0, 1}: 1, 0.
    metrics = example_report().heads["a"]
    assert metrics["accuracy"] == 3 / 4
    assert metrics["margin"] == (1 + 4 - 2) / 4
    assert (metrics["min_score"], metrics["max_score"], metrics["dynamic_range"]) == (-1, 2, 3)
    assert metrics["mean_score"] == 2 / 4
    assert metrics["auroc"] == (0.5 + 1 + 1 + 1 + 0 + 0) / 6
    assert metrics["d_prime"] == pytest.approx((2 / 3 - 1 / 2) / math.sqrt((7 / 3 + 1 / 2) / 2))


def test_overall_pools_the_comparisons_of_all_heads_each_by_its_own_column() -> None:
    # Gaps 1, 2, -2 of head a and 2 of head b; head b's texts 1 and 2 score 3 and 1.
    report = example_report()
    assert report.overall["accuracy"] == 4 / 5
    assert report.overall["margin"] == (1 + 4 - 2 + 2) / 5
    assert report.overall["max_score"] == 3
    assert report.overall["mean_score"] == (1 + 0 + 2 - 1 + 3 + 1) / 6
    assert not {"auroc", "d_prime", "cross_correlation", "cross_leakage"} & report.overall.keys()


def test_leakage_is_the_accuracy_of_the_column_head_on_the_row_heads_comparisons() -> None:
    # Head b's gaps on head a's comparisons: -3, -2, 2. Head a's gap on head b's comparison: -2.
    report = example_report()
    assert report.leakage.tolist() == [[3 / 4, 1 / 4], [0, 1]]
    assert report.heads["a"]["cross_leakage"] == 1 / 4
    assert report.heads["b"]["cross_leakage"] == 0


def test_cross_correlation_keeps_the_sign_of_the_strongest_other_head() -> None:
    column = np.array([0.0, 1.0, 2.0, 5.0])
    scores = np.stack([column, -3 * column, [0.0, 1.0, 0.0, 0.0]], axis=1)
    report = example_report(scores=scores, head_names=["a", "b", "c"])
    assert report.heads["a"]["cross_correlation"] == pytest.approx(-1)
    assert report.correlation[0, 2] == pytest.approx(np.corrcoef(column, scores[:, 2])[0, 1])


def test_equal_scores_count_half() -> None:
    report = example_report(scores=np.zeros((4, 2)))
    assert report.heads["a"]["accuracy"] == report.heads["a"]["auroc"] == report.overall["accuracy"] == 0.5


@pytest.mark.parametrize("score", [-5.0, 0.0, 0.3])
def test_a_labelled_tie_has_accuracy_half_and_margin_zero_whatever_the_scores(score: float) -> None:
    report = evaluation_report([[score], [0.0]], [0, 1], [1, 0], [0, 0], [0.5, 0.5], head_names=["a"])
    assert (report.overall["accuracy"], report.overall["margin"]) == (0.5, 0.0)
    assert report.heads["a"]["auroc"] == 0.5  # both texts are in both sets


def test_accuracy_is_weighted_within_each_tier_and_a_tier_that_a_head_lacks_is_absent() -> None:
    report = example_report(tiers=["soft", "furthest", "soft", None])
    assert report.heads["a"]["accuracy_soft"] == 1 / 2
    assert report.heads["a"]["accuracy_furthest"] == report.overall["accuracy_furthest"] == 1
    assert not any(metric.startswith("accuracy_") for metric in report.heads["b"])
    assert report.counts["a"] == {
        "comparisons": 3,
        "texts": 4,
        "winners": 3,
        "losers": 2,
        "comparisons_soft": 2,
        "comparisons_furthest": 1,
    }
    assert report.counts["b"] == {"comparisons": 1, "texts": 2, "winners": 1, "losers": 1}


def test_length_accuracy_does_not_look_at_the_scores() -> None:
    # Lengths: 0 > 1 (right), 2 = 1 (half, weight 2), 3 < 0 (wrong); head b: 1 = 2 (half).
    report = example_report(lengths=[9, 4, 4, 1])
    assert report.heads["a"]["length_accuracy"] == (1 + 2 * 0.5 + 0) / 4
    assert report.overall["length_accuracy"] == (1 + 2 * 0.5 + 0 + 0.5) / 5
    assert "length_accuracy" not in example_report().overall


def test_a_bradley_terry_judge_whose_sigmoid_is_right_is_calibrated() -> None:
    # Where sigmoid(gap) = 0.8 the winner scores higher in 4 of 5 comparisons: no error. Always right: 0.2 too shy.
    gap = math.log(4)
    assert calibration_error(np.array([gap, -gap]), np.array([4.0, 1.0])) == pytest.approx(0)
    assert calibration_error(np.array([gap]), np.array([3.0])) == pytest.approx(0.2)


def test_calibration_error_adds_up_over_bins_without_cancelling() -> None:
    # Bin of 0.5: two ties at confidence 0.5, no error. Bin of 1: confidence 1, half right, over-confident by 1/2.
    gap = np.array([0.0, 0.0, 50.0, -50.0])
    assert calibration_error(gap, np.ones(4)) == pytest.approx(2 / 4 * 0.5)


def test_auroc_and_d_prime_work_along_any_axis_of_many_sets() -> None:
    generator = np.random.default_rng(0)
    positives, negatives = generator.integers(0, 5, (3, 8)) * 1.0, generator.integers(0, 5, (3, 6)) * 1.0
    for measure, plain in ((auroc, plain_auroc), (d_prime, plain_d_prime)):
        expected = [plain(p, n) for p, n in zip(positives.tolist(), negatives.tolist(), strict=True)]
        assert measure(positives, negatives).tolist() == pytest.approx(expected)
        assert measure(positives.T, negatives.T, axis=0).tolist() == pytest.approx(expected)


def test_d_prime_is_undefined_for_one_score_and_for_two_constant_sets() -> None:
    assert np.isnan(d_prime(np.array([1.0]), np.array([0.0, 2.0])))
    assert np.isnan(d_prime(np.full(3, 0.1), np.full(7, 0.3)))
    assert d_prime(np.full(3, 1.0), np.array([-1.0, 1.0])) == pytest.approx(1)


def test_one_set_that_varies_is_enough_for_d_prime_however_little_and_others_do_not_count() -> None:
    # Variance 0.125 and 0: 0.5 / √(0.125 / 2) = 2.
    varying, constant = np.array([0.25, 0.75]), np.zeros(2)
    assert d_prime(varying, constant) == -d_prime(constant, varying) == pytest.approx(2)
    # Three times 0.1 have a variance of 3e-34 by rounding.
    rows, constants = np.array([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]]), np.full((2, 3), 0.1)
    for found in (d_prime(rows, constants), d_prime(constants, rows)):
        assert np.isnan(found).tolist() == [True, False]


def test_d_prime_is_undefined_where_the_variance_is_too_small_for_a_number() -> None:
    assert np.isnan(d_prime(np.array([0.0, 1e-200]), np.zeros(2)))


def test_a_head_without_a_comparison_is_absent_and_never_zero() -> None:
    report = example_report(winner=[0], loser=[1], head=[0], weight=[1.0])
    assert report.heads.keys() == {"a"}
    assert report.counts["b"] == {"comparisons": 0, "texts": 0, "winners": 0, "losers": 0}
    assert np.isnan(report.leakage[1]).all()
    assert not any(key.startswith("eval_b/") for key in report.flat("eval"))


def test_a_comparison_of_weight_zero_is_as_if_it_were_not_there() -> None:
    extended = {name: [*values, 1] for name, values in EXAMPLE.items()} | {"weight": [*EXAMPLE["weight"], 0.0]}
    assert example_report(**extended).flat("eval") == example_report().flat("eval")
    assert example_report(**EXAMPLE | {"weight": [0.0] * 4}).flat("eval") == {}


def test_what_is_undefined_is_absent() -> None:
    one_pair = evaluation_report([[1.0, 7.0], [0.0, 7.0]], [0], [1], [0], [1.0], head_names=["a", "b"])
    assert not {"d_prime", "cross_correlation"} & one_pair.heads["a"].keys()  # one text a side; b is constant
    assert one_pair.heads["a"]["auroc"] == 1
    single = evaluation_report([[1.0], [0.0]], [0], [1], [0], [1.0], head_names=["a"])
    assert not {"cross_correlation", "cross_leakage"} & single.heads["a"].keys()
    nothing = evaluation_report(np.zeros((0, 2)), [], [], [], [], head_names=["a", "b"])
    assert nothing.flat("eval") == {}


def test_flat_keys_are_prefix_metric_overall_and_prefix_head_slash_metric() -> None:
    report = example_report()
    flat = report.flat("test")
    assert flat["test_accuracy"] == report.overall["accuracy"]
    assert flat["test_b/accuracy"] == report.heads["b"]["accuracy"]
    assert len(flat) == len(report.overall) + sum(map(len, report.heads.values()))


@pytest.mark.parametrize("seed", range(3))
def test_the_report_equals_a_plain_loop(seed: int) -> None:
    arguments = random_evaluation(seed)
    flat = evaluation_report(**arguments).flat("eval")
    expected = plain_metrics(**arguments)
    assert flat.keys() == expected.keys()
    assert flat == pytest.approx(expected, abs=1e-12)


def test_the_order_of_texts_and_comparisons_changes_nothing() -> None:
    arguments = random_evaluation(3)
    generator = np.random.default_rng(3)
    texts, rows = generator.permutation(60), generator.permutation(500)
    new_index = np.argsort(texts)
    shuffled = arguments | {name: arguments[name][texts] for name in ("scores", "lengths")}
    shuffled |= {name: arguments[name][rows] for name in ("head", "weight")}
    shuffled |= {name: new_index[arguments[name][rows]] for name in ("winner", "loser")}
    shuffled["tiers"] = [arguments["tiers"][row] for row in rows]
    flat = evaluation_report(**arguments).flat("eval")
    assert evaluation_report(**shuffled).flat("eval") == pytest.approx(flat, abs=1e-12)


def test_a_comparison_split_into_parts_of_its_weight_changes_nothing() -> None:
    arguments = random_evaluation(4)
    doubled = {name: np.concatenate([arguments[name]] * 2) for name in ("winner", "loser", "head")}
    doubled["weight"] = np.concatenate([0.25 * arguments["weight"], 0.75 * arguments["weight"]])
    doubled["tiers"] = arguments["tiers"] * 2
    flat = evaluation_report(**arguments).flat("eval")
    assert evaluation_report(**arguments | doubled).flat("eval") == pytest.approx(flat, abs=1e-12)


def test_a_permutation_of_the_heads_permutes_the_report() -> None:
    arguments = random_evaluation(5)
    order = np.array([2, 0, 3, 1])
    permuted = arguments | {
        "scores": arguments["scores"][:, order],
        "head": np.argsort(order)[arguments["head"]],
        "head_names": [arguments["head_names"][k] for k in order],
    }
    report, other = evaluation_report(**arguments), evaluation_report(**permuted)
    assert other.flat("eval") == pytest.approx(report.flat("eval"), abs=1e-12)
    assert other.counts == report.counts
    np.testing.assert_allclose(other.leakage, report.leakage[np.ix_(order, order)])
    np.testing.assert_allclose(other.correlation, report.correlation[np.ix_(order, order)])


def test_a_constant_added_to_a_head_moves_its_scores_and_nothing_else() -> None:
    arguments = random_evaluation(6)
    moved = arguments | {"scores": arguments["scores"] + np.array([0, 8.0, 0, 0])}
    before, after = evaluation_report(**arguments).heads["head_1"], evaluation_report(**moved).heads["head_1"]
    for metric, value in before.items():
        shift = 8 if metric in ("min_score", "mean_score", "max_score") else 0
        assert after[metric] == pytest.approx(value + shift, abs=1e-12)


def test_tensors_of_any_float_type_are_computed_in_float64() -> None:
    tensors = {name: torch.tensor(values) for name, values in EXAMPLE.items()}
    scores = torch.tensor(SCORES, dtype=torch.bfloat16, requires_grad=True)
    assert example_report(**tensors, scores=scores).flat("eval") == example_report().flat("eval")
    # In float32 the two gaps of 1e-4 on 1e4 would both be rounded to about 9.8e-4.
    report = evaluation_report(
        torch.tensor([[1e4 + 1e-4], [1e4]], dtype=torch.float64), [0], [1], [0], [1], head_names=["a"]
    )
    assert report.overall["margin"] == pytest.approx(1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error_that_names_head_and_text(value: float) -> None:
    scores = np.array(SCORES)
    scores[2, 1] = value
    with pytest.raises(ValueError, match=rf"head 'b' for text 2 is {value}"):
        example_report(scores=scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_names": ["a"]}, r"shape \(4, 2\); 1 head names"),
        ({"head_names": ["a", "a"]}, "must be distinct"),
        ({"winner": [0, 2, 4, 1]}, r"winner of comparison 2 is 4: it must be in \[0, 4\)"),
        ({"loser": [1, 1, 0]}, "loser has shape"),
        ({"head": [0, 0, -1, 1]}, r"head of comparison 2 is -1: it must be in \[0, 2\)"),
        ({"weight": [1.0, -2.0, 1.0, 1.0]}, "weight must be"),
        ({"weight": [1.0, math.nan, 1.0, 1.0]}, "weight must be"),
        ({"lengths": [1, 2, 3]}, r"lengths have shape \(3,\), scores have 4 texts"),
        ({"tiers": ["soft"]}, "tiers have 1 entries, weight has 4"),
    ],
)
def test_input_that_does_not_fit_is_an_error_that_names_it(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_report(**changes)
