"""The embedded example: train, evaluate, save, reload and probe a small reward model, offline, in half a minute.

    python -m alignkit.reward_model.quickstart [--steps N] [--output DIR]

Four heads, one per writing style of [`alignkit.tasks.toy`], on a Llama of 100,000 parameters. The exit code is 1 when
a check fails: the loss is finite, a plain `AutoModelForSequenceClassification` gives the same scores, and after the
default number of steps every head tells its style from the negatives.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ProgressCallback

from alignkit.reward_model import RewardModel, probe, receptivity
from alignkit.reward_model.config import MultiHeadRewardConfig
from alignkit.reward_model.metrics import EvaluationReport
from alignkit.reward_model.trainer import MultiHeadRewardTrainer
from alignkit.tasks import toy

DEFAULT_STEPS = 60
LEAST_AUROC = 0.9
TOLERANCE = 1e-5
TIERS = ("soft", "semi_firm", "furthest")
COLUMNS = {"AUROC": "auroc", "d'": "d_prime", "accuracy": "accuracy", **{tier: f"accuracy_{tier}" for tier in TIERS}}


class LossOnBar(ProgressCallback):
    """The progress bar with loss and accuracy beside it, in place of a line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        bar: Any = self.training_bar
        if bar is not None and "loss" in logs:
            bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, or 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="alignkit.reward_model.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"optimiser steps (default {DEFAULT_STEPS})")
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for model and plots")
    options = parser.parse_args(arguments)
    console = Console()
    datasets.disable_progress_bars()  # of encoding a few hundred rows
    torch.set_num_threads(1)  # a second thread costs more than it brings on a model this small

    console.rule("train")
    train, negatives, evaluation, eval_negatives = toy.corpus_membership()
    model = RewardModel(toy.tiny_sequence_classifier(toy.STYLES), toy.byte_tokenizer())
    trainer = MultiHeadRewardTrainer(
        model.model,
        training_arguments(options.steps, options.output),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=model.tokenizer,
        negatives=negatives,
        eval_negatives=eval_negatives,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossOnBar)
    loss = trainer.train().training_loss

    console.rule("evaluate on held-out texts")
    trainer.evaluate()
    report = trainer.evaluation_report
    assert report is not None  # for the type checker: `evaluate` sets it
    console.print(metrics_table(report))
    scores_png = options.output / "scores.png"
    groups = labelled_groups(evaluation, eval_negatives)

    console.rule("save, reload without alignkit, probe")
    trainer.save_model()
    trainer.create_model_card()
    receptivity({"quickstart": model}, groups).plot(scores_png)
    difference = reload_difference(model, options.output, evaluation["text"][:16])
    probed = probe(model.model, model.tokenizer, evaluation[0]["text"])
    console.print(f"A {evaluation[0]['head']}, read from left to right: {evaluation[0]['text']}", markup=False)
    for head in probed.head_names:
        console.print(f"{head:>8} {probed.sparkline(head, width=48)}", markup=False)
    probed.heatmap(options.output / "probe.png")
    console.print(f"Model, card and plots ({scores_png.name}, probe.png) are in {options.output}", markup=False)

    console.rule("checks")
    checks = [
        (f"the loss is finite: {loss:.3f}", math.isfinite(loss)),
        (f"a plain reload gives equal scores: largest difference {difference:.1e}", difference <= TOLERANCE),
    ]
    if options.steps >= DEFAULT_STEPS:
        worst = min(values["auroc"] for values in report.heads.values())
        checks.append((f"every head has an AUROC of {LEAST_AUROC} or more: least {worst:.3f}", worst >= LEAST_AUROC))
    for name, passed in checks:
        console.print(f"{'ok    ' if passed else 'FAILED'} {name}", markup=False)
    return 0 if all(passed for _, passed in checks) else 1


def training_arguments(steps: int, output: Path) -> MultiHeadRewardConfig:
    """The settings of the example."""
    with warnings.catch_warnings():
        # Of the two names of this switch, only the old one is known to every supported version of transformers.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        return MultiHeadRewardConfig(
            str(output),
            head_names=list(toy.STYLES),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )


def metrics_table(report: EvaluationReport) -> Table:
    """A row for each head."""
    table = Table("head", *COLUMNS, caption="accuracy: share of comparisons won, in all and per tier of negatives")
    for head, values in report.heads.items():
        table.add_row(head, *(f"{values[name]:.3f}" for name in COLUMNS.values()))
    return table


def labelled_groups(positives: Dataset, negatives: Dataset) -> dict[str, dict[str, list[str]]]:
    """Evaluation texts per head: its positives, and the negatives of each tier that it meets."""
    groups: dict[str, dict[str, list[str]]] = {"positive": {}, **{tier: {} for tier in TIERS}}
    for style in toy.STYLES:
        groups["positive"][style] = [row["text"] for row in positives if row["head"] == style]
        for tier in TIERS:
            groups[tier][style] = [
                row["text"]
                for row in negatives
                if row["tier"] == tier and (row["heads"] is None or style in row["heads"])
            ]
    return groups


@torch.no_grad()
def reload_difference(model: RewardModel, folder: Path, texts: Sequence[str]) -> float:
    """Largest difference between the scores of `model` and those of its folder loaded by transformers alone."""
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    scores = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return (scores - model.score(texts)).abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
