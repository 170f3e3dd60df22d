"""Agreement of raters, by hand-worked values and on the verdicts that come with PandaLM's test set."""

import json
import math
import sys

import krippendorff
import numpy as np
import pytest

from alignkit.evaluation.agreement import cohens_kappa, judge_agreement, krippendorff_alpha, majority

NAN = math.nan


def test_alpha_is_one_minus_observed_over_expected_disagreement():
    # 8 values of 4 units: coincidences 00: 4, 11: 2, 01 and 10: 1 each; D_o = 2/8, D_e = 2 · 5 · 3 / (8 · 7).
    ratings = np.array([[0, 0, 1, 0], [0, 0, 1, 1.0]])
    found = krippendorff_alpha(ratings, "nominal", n_resamples=0)
    assert found.alpha == pytest.approx(1 - (2 / 8) / (30 / 56))
    assert (found.n_units, found.n_raters, found.interval) == (4, 2, None)


def test_names_that_differ_all_differ_alike():
    # 00, 11, 22 and 02: D_o = 2/8, D_e = (8² − 3² − 2² − 3²) / (8 · 7), while by distance 02 counts four times.
    ratings = np.array([[0, 1, 2, 0], [0, 1, 2, 2.0]])
    assert krippendorff_alpha(ratings, "nominal", n_resamples=0).alpha == pytest.approx(1 - (2 / 8) / (42 / 56))
    by_distance = krippendorff_alpha(ratings, "interval", n_resamples=0).alpha
    assert by_distance == pytest.approx(1 - (8 / 8) / (96 / 56))


def test_alpha_by_order_and_by_distance_weigh_how_far_ratings_are_apart():
    near, far = np.array([[1, 2, 3, 4, 5], [2, 2, 3, 4, 5.0]]), np.array([[1, 2, 3, 4, 5], [5, 2, 3, 4, 5.0]])
    for level in ("ordinal", "interval"):
        values = [krippendorff_alpha(ratings, level, n_resamples=0).alpha for ratings in (near, far)]
        assert values[0] > 0.9 > 0.5 > values[1]


def test_units_that_one_rater_left_out_are_not_counted():
    whole = np.array([[0, 1, 1, 0], [0, 1, 0, 0.0]])
    with_gap = np.hstack([whole, [[1.0], [NAN]]])
    assert krippendorff_alpha(with_gap, "nominal", n_resamples=0) == krippendorff_alpha(
        whole, "nominal", n_resamples=0
    )


def test_the_interval_is_seeded_and_wider_where_units_come_in_clusters():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 30), 4)
    noisy = np.where(np.repeat(rng.random(30) < 0.3, 4), 1 - truth, truth)  # a rater errs on whole clusters
    ratings = np.array([truth, noisy], dtype=float)
    alone = krippendorff_alpha(ratings, "nominal", n_resamples=200)
    again = krippendorff_alpha(ratings, "nominal", n_resamples=200)
    clustered = krippendorff_alpha(ratings, "nominal", n_resamples=200, clusters=[place // 4 for place in range(120)])
    assert alone == again and alone.interval[0] < alone.alpha < alone.interval[1]
    assert clustered.interval[1] - clustered.interval[0] > 1.5 * (alone.interval[1] - alone.interval[0])


def test_the_interval_holds_the_middle_95_of_100_alphas_of_units_drawn_with_replacement():
    ratings = np.array([[0, 1, 2, 0, 1, 2, 0, 0], [0, 1, 2, 2, 1, 0, 0, 1.0]])
    generator = np.random.default_rng(3)
    draws = [
        krippendorff.alpha(ratings[:, generator.integers(0, 8, 8)], level_of_measurement="nominal") for _ in range(40)
    ]
    found = krippendorff_alpha(ratings, "nominal", n_resamples=40, seed=3)
    assert found.interval == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert (found.n_units, found.n_raters, found.undefined) == (8, 2, 0)


def test_the_share_of_resamples_without_an_alpha_is_told():
    # Two units of different ratings: half of the draws of two have the same unit twice.
    found = krippendorff_alpha(np.array([[0, 1], [0, 1.0]]), "nominal", n_resamples=400)
    assert found.undefined == pytest.approx(0.5, abs=0.1)
    assert found.interval == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"^no resample has two different ratings; leave out the interval"):
        krippendorff_alpha(np.array([[0, 1], [0, 1.0]]), "nominal", n_resamples=1, seed=0)


def test_a_thousand_resamples_of_seed_0_are_drawn_unless_others_are_asked_for():
    ratings = np.array([[0, 1], [0, 1.0]])
    assert krippendorff_alpha(ratings, "nominal") == krippendorff_alpha(ratings, "nominal", n_resamples=1_000, seed=0)


def test_what_has_no_alpha_is_an_error():
    with pytest.raises(ValueError, match=r"^all ratings are the same"):
        krippendorff_alpha(np.ones((2, 5)), "nominal")
    with pytest.raises(ValueError, match=r"^no unit has the ratings of two raters"):
        krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]]), "nominal")
    with pytest.raises(ValueError, match="level is 'ratio'; it must be one of nominal, ordinal, interval"):
        krippendorff_alpha(np.ones((2, 5)), "ratio")


def test_a_missing_package_is_called_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    with pytest.raises(ImportError, match="this metric needs krippendorff, which cannot be imported"):
        krippendorff_alpha(np.array([[0, 1], [0, 1.0]]), "nominal")


def test_kappa_is_agreement_beyond_chance():
    # p_o = 3/4; p_e = (2 · 3 + 2 · 1) / 16 = 1/2.
    assert cohens_kappa([1, 1, 0, 0], [1, 1, 1, 0]) == pytest.approx((0.75 - 0.5) / 0.5)
    assert cohens_kappa("aabb", "aabb") == 1
    for ratings in ([1, 1], [1]):
        with pytest.raises(ValueError, match="both raters always say 1, of which there is no kappa"):
            cohens_kappa(ratings, ratings)
    with pytest.raises(ValueError, match=r"^there are no ratings"):
        cohens_kappa([], [])
    with pytest.raises(ValueError, match="there are 2 a, 3 b"):
        cohens_kappa([1, 2], [1, 2, 2])


def test_a_split_vote_has_no_majority():
    assert [majority(votes, undecided=0) for votes in ([1, 1, 2], [2, 2, 2], [0, 1, 2], [1, 2])] == [1, 2, 0, 0]


def test_a_missing_verdict_is_a_wrong_one_and_in_no_kappa():
    found = judge_agreement([1, 2, None, 0], [[1, 1, 1], [2, 2, 1], [1, 1, 2], [0, 1, 2]])
    assert (found.accuracy, found.n, found.n_without_verdict, len(found.kappas)) == (0.75, 4, 1, 3)
    assert found.kappas[0] == 1


def test_two_items_are_enough_for_a_judge_that_says_what_people_say():
    found = judge_agreement([1, 2], [[1, 1], [2, 2]])
    assert (found.accuracy, found.kappas, found.human_alpha, found.joint_alpha) == (1, (1, 1), 1, 1)
    # People alone: 11, 22 and 12, D_o = 2/6, D_e = (6² − 3² − 3²) / (6 · 5).
    found = judge_agreement([1, 2, 1], [[1, 1], [2, 2], [1, 2]])
    assert found.human_alpha == pytest.approx(1 - (2 / 6) / (18 / 30))


@pytest.mark.parametrize(
    ("verdicts", "annotations", "complaint"),
    [
        ([1, 2], [[1, 1]], "^there are 2 verdicts, 1 annotations"),
        ([], [], "^give at least one item, and every item the annotations of the same people$"),
        ([1, 2], [[1, 1], [2]], "^give at least one item, and every item the annotations of the same people$"),
    ],
)
def test_items_without_the_same_annotators_are_refused(verdicts, annotations, complaint):
    with pytest.raises(ValueError, match=complaint):
        judge_agreement(verdicts, annotations)


@pytest.mark.parametrize(
    ("judge", "verdict", "reading", "accuracy"),
    [
        ("pandalm-7b", "pandalm_result", {}, 0.6677),
        ("gpt-3.5-turbo", "gpt_result", {}, 0.6977),
        ("gpt-3.5-turbo", "gpt_result", {"Tie": None}, 0.6927),  # its 5 right ties not read as such
        ("gpt-3.5-turbo", "gpt_result", {"garbage": 0}, 0.7107),  # what is no verdict taken for a tie
    ],
)
def test_what_the_stored_verdicts_agree_to_depends_on_how_ties_and_garbage_are_read(
    data_dir, judge, verdict, reading, accuracy
):
    folder = data_dir / "pandalm_testset"
    rows = json.loads((folder / "testset-v1.json").read_text())
    said = {row["idx"]: str(row[verdict]) for row in json.loads((folder / f"{judge}-testset-v1.json").read_text())}
    classes = {"0": 0, "Tie": 0, "1": 1, "2": 2, "garbage": None, **reading}
    found = judge_agreement(
        [classes[said[row["idx"]]] for row in rows], [[row[f"annotator{n}"] for n in (1, 2, 3)] for row in rows]
    )
    assert found.accuracy == pytest.approx(accuracy, abs=5e-5)
    assert found.human_alpha == pytest.approx(0.8642, abs=5e-5) and found.human_alpha > found.joint_alpha


def test_no_verdict_is_no_rating_of_the_judge_in_the_joint_alpha():
    annotations = [[1, 1], [2, 2], [1, 2], [2, 1]]
    expected = krippendorff_alpha(np.array([[1, 2, 1, 2], [1, 2, 2, 1], [1, 2, 1, np.nan]]), "nominal", n_resamples=0)
    assert judge_agreement([1, 2, 1, None], annotations).joint_alpha == pytest.approx(expected.alpha)
