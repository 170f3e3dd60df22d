"""Receptivity on models whose scores are known: written down, or computed from the text."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from alignkit.reward_model.export import RewardModel
from alignkit.reward_model.receptivity_report import ALL_GROUPS, ReceptivityReport, receptivity
from alignkit.reward_model.separation import auroc, d_prime
from alignkit.tasks.toy import byte_tokenizer, tiny_sequence_classifier


@dataclass
class NumberModel:
    """Reads a text as a number x and gives head k the score `factors[k] * x`."""

    factors: dict[str, float]
    scored: list[str] = field(default_factory=list)

    @property
    def head_names(self) -> list[str]:
        return list(self.factors)

    def score(self, texts: Sequence[str], *, batch_size: int = 16) -> torch.Tensor:
        self.scored += texts
        return torch.tensor([[factor * float(text) for factor in self.factors.values()] for text in texts])


def texts_around(mean: float, n: int, seed: int) -> list[str]:
    return [f"{value:.4f}" for value in np.random.default_rng(seed).normal(mean, 1, n)]


GROUPS = {"positive": texts_around(1, 30, 0), "soft": texts_around(0.5, 20, 1), "furthest": texts_around(-2, 25, 2)}


def row_of(report: ReceptivityReport, **where: str) -> dict:
    (row,) = [row for row in report.rows if all(row[key] == value for key, value in where.items())]
    return row


def test_range_mean_and_separation_worked_by_hand() -> None:
    # Head b turns the scores round, so its AUROC is the complement and its d' the negative.
    models = {"m": NumberModel({"a": 1.0, "b": -2.0})}
    report = receptivity(models, {"positive": ["3", "1", "2"], "soft": ["0", "2"]}, n_resamples=50)
    soft = row_of(report, head="a", group="soft")
    assert (soft["n"], soft["min"], soft["max"], soft["range"], soft["mean"]) == (2, 0, 2, 2, 1)
    assert soft["auroc"] == (1 + 1 + 1 + 0.5 + 1 + 0) / 6
    assert soft["d_prime"] == pytest.approx((2 - 1) / math.sqrt((1 + 2) / 2))
    turned = row_of(report, head="b", group="soft")
    assert turned["auroc"] == pytest.approx(1 - soft["auroc"])
    assert turned["d_prime"] == pytest.approx(-soft["d_prime"])
    assert turned["range"] == 4


def test_the_positives_are_not_separated_from_themselves() -> None:
    row = row_of(receptivity({"m": NumberModel({"a": 1.0})}, GROUPS, n_resamples=50), group="positive")
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert {row[name + end] for name in ("auroc", "d_prime") for end in ("", "_low", "_high")} == {None}


def test_overall_is_the_range_over_the_distinct_texts_of_all_groups() -> None:
    groups = {"positive": ["3", "1"], "soft": ["-4", "1"]}
    report = receptivity({"m": NumberModel({"a": 2.0})}, groups, n_resamples=50)
    expected = {"model": "m", "head": "a", "group": ALL_GROUPS, "n": 3, "min": -8, "max": 6, "range": 14}
    assert report.overall == [expected]


def test_each_distinct_text_is_scored_once_per_model() -> None:
    model = NumberModel({"a": 1.0, "b": 1.0})
    receptivity({"m": model}, {"positive": ["1", "2", "2"], "soft": ["2", "3"]}, n_resamples=50)
    assert sorted(model.scored) == ["1", "2", "3"]


def test_a_list_holds_for_every_head_and_a_mapping_for_the_heads_that_it_names() -> None:
    groups = {"positive": {"a": ["1", "2"], "b": ["5", "7"]}, "soft": {"a": ["0", "1"]}, "furthest": ["-1", "-2"]}
    report = receptivity({"m": NumberModel({"a": 1.0, "b": 1.0})}, groups, n_resamples=50)
    assert [(row["head"], row["group"], row["mean"]) for row in report.rows] == [
        ("a", "positive", 1.5), ("a", "soft", 0.5), ("a", "furthest", -1.5),
        ("b", "positive", 6.0), ("b", "furthest", -1.5),
    ]  # fmt: skip


def test_models_may_have_different_heads_and_score_only_the_texts_of_their_own() -> None:
    one, two = NumberModel({"a": 1.0}), NumberModel({"b": 1.0, "a": 2.0})
    groups = {"positive": {"a": ["1", "2"], "b": ["3", "4"]}, "soft": ["0", "-1"]}
    report = receptivity({"one": one, "two": two}, groups, n_resamples=50)
    assert [(total["model"], total["head"]) for total in report.overall] == [("one", "a"), ("two", "b"), ("two", "a")]
    assert "3" not in one.scored


def test_scaling_a_head_scales_its_range_and_leaves_its_separation_alone() -> None:
    models = {"small": NumberModel({"a": 1.0}), "large": NumberModel({"a": 8.0})}
    report = receptivity(models, GROUPS, n_resamples=200)
    for group in ("soft", "furthest"):
        small, large = (row_of(report, model=model, group=group) for model in models)
        assert large["range"] == pytest.approx(8 * small["range"])
        for name in ("auroc", "auroc_low", "auroc_high", "d_prime", "d_prime_low", "d_prime_high"):
            assert large[name] == pytest.approx(small[name])


def test_intervals_are_those_of_a_plain_percentile_bootstrap() -> None:
    report = receptivity({"m": NumberModel({"a": 1.0})}, GROUPS, n_resamples=4000)
    positives, others = (np.array([float(text) for text in GROUPS[group]]) for group in ("positive", "soft"))
    generator = np.random.default_rng(9)
    draws = []
    for _ in range(4000):
        p, n = generator.choice(positives, len(positives)), generator.choice(others, len(others))
        draws.append((n.mean(), auroc(p, n), d_prime(p, n)))
    lows, highs = np.percentile(draws, [2.5, 97.5], axis=0)
    row = row_of(report, group="soft")
    for name, low, high in zip(("mean", "auroc", "d_prime"), lows, highs, strict=True):
        assert row[f"{name}_low"] == pytest.approx(low, abs=0.05)
        assert row[f"{name}_high"] == pytest.approx(high, abs=0.05)


def test_the_same_seed_gives_the_same_rows_and_more_models_or_groups_change_none() -> None:
    model, other = NumberModel({"a": 1.0}), NumberModel({"a": 3.0})
    few = receptivity({"m": model}, {name: GROUPS[name] for name in ("positive", "furthest")}, n_resamples=100)
    many = receptivity({"other": other, "m": model}, GROUPS, n_resamples=100)
    another_seed = receptivity({"m": model}, GROUPS, n_resamples=100, seed=1)
    for group in ("positive", "furthest"):
        assert row_of(few, group=group) == row_of(many, model="m", group=group)
        assert row_of(few, group=group) != row_of(another_seed, group=group)


def test_a_group_of_one_text_has_values_without_intervals() -> None:
    report = receptivity({"m": NumberModel({"a": 1.0})}, {"positive": ["1", "2"], "soft": ["0"]}, n_resamples=50)
    row = row_of(report, group="soft")
    assert (row["mean"], row["auroc"]) == (0, 1)
    assert {row[name] for name in ("mean_low", "mean_high", "auroc_low", "d_prime", "d_prime_low")} == {None}


def test_groups_of_equal_scores_have_auroc_half_and_no_d_prime() -> None:
    report = receptivity({"m": NumberModel({"a": 0.0})}, GROUPS, n_resamples=50)
    row = row_of(report, group="soft")
    assert (row["auroc"], row["auroc_low"], row["auroc_high"], row["d_prime"]) == (0.5, 0.5, 0.5, None)


def test_table_and_markdown_hold_every_row_and_total_and_escape_markup() -> None:
    report = receptivity({"[m|n]": NumberModel({"a": 1.0})}, GROUPS, n_resamples=50)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    soft = row_of(report, group="soft")
    interval = f"{soft['auroc']:.3f} [{soft['auroc_low']:.3f}, {soft['auroc_high']:.3f}]"
    assert interval in capture.get()
    assert "[m|n]" in capture.get()
    lines = report.markdown().splitlines()
    assert len(lines) == 2 + 3 + 1
    assert lines[3].startswith(f"| [m\\|n] | a | soft | 20 | {soft['min']:.3f} |")
    assert interval in lines[3]


def test_the_json_form_survives_json_and_names_the_bootstrap() -> None:
    report = receptivity({"m": NumberModel({"a": 1.0})}, GROUPS, n_resamples=50, seed=3)
    document = json.loads(json.dumps(report.to_json()))
    assert document["rows"] == report.rows
    assert document["overall"] == report.overall
    assert (document["n_resamples"], document["seed"], document["confidence"]) == (50, 3, 0.95)


@pytest.mark.parametrize("groups", [GROUPS, {"positive": ["1"]}])
def test_a_plot_is_drawn_for_models_with_different_heads(tmp_path: Path, groups: dict) -> None:
    models = {"$one$": NumberModel({"a": 1.0}), "two": NumberModel({"b": 1.0, "中": 2.0})}
    receptivity(models, groups, n_resamples=50).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_reward_model_is_scored_as_it_scores_by_itself() -> None:
    model = RewardModel(tiny_sequence_classifier(["kind", "brief"]), byte_tokenizer())
    report = receptivity({"m": model}, {"positive": ["Warm a kettle.", "Hi."], "soft": ["x", "yy"]}, n_resamples=50)
    expected = model.score(["Warm a kettle.", "Hi."])[:, 1]
    assert row_of(report, head="brief", group="positive")["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"soft": ["1"]}, r"no group 'positive' among \['soft'\]"),
        ({"positive": ["1"], "soft": []}, "group 'soft' is empty"),
        ({"positive": ["1"], "soft": {"a": []}}, "group 'soft' is empty"),
        ({"positive": ["1"], "soft": {}}, "group 'soft' is empty"),
        ({"positive": ["1"], "soft": {"c": ["2"]}}, r"group 'soft', head 'c': no model has this head.*\['a', 'b'\]"),
        ({"positive": ["1"], "soft": "2"}, "group 'soft': give a list of strings"),
        ({"positive": ["1"], "soft": ["2", 3]}, "group 'soft': give a list of strings"),
        ({"positive": {"a": ["1"]}, "soft": ["2"]}, "'positive' has no texts for head 'b'"),
    ],
)
def test_groups_that_do_not_fit_are_an_error_that_names_them(groups: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        receptivity({"m": NumberModel({"a": 1.0, "b": 1.0})}, groups)


def test_no_models_and_a_model_without_texts_are_errors() -> None:
    with pytest.raises(ValueError, match="models is empty"):
        receptivity({}, GROUPS)
    models = {"m": NumberModel({"a": 1.0}), "other": NumberModel({"b": 1.0})}
    with pytest.raises(ValueError, match="no group holds texts for a head of model 'other'"):
        receptivity(models, {"positive": {"a": ["1"]}})


def test_a_score_that_is_not_finite_is_an_error_that_names_model_head_and_text() -> None:
    with pytest.raises(ValueError, match=r"model 'm', head 'b' gives nan to the text '1\.5'"):
        receptivity({"m": NumberModel({"a": 1.0, "b": math.nan})}, {"positive": ["1.5"]})
