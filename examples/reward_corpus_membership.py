"""Who wrote this? One head per author, trained on passages of one novel and tested on another by the same author.

    ALIGNKIT_DATA=/path/to/data python examples/reward_corpus_membership.py  # or accelerate launch

Seen on 2026-11-21 with 2 CPU cores, no GPU, about 13 minutes (8.5 of CPU time; 12 trainings of 100 steps, one thread):

    AUROC on the other novel, no regulariser, first seed [95 % bootstrap over passages]
               soft: other authors   semi_firm: stories   furthest: WikiText
    broughton  0.71 [0.65, 0.77]     1.00 [0.99, 1.00]    0.98 [0.96, 1.00]
    eliot      0.70 [0.65, 0.75]     1.00 [0.99, 1.00]    0.99 [0.97, 1.00]
    nesbit     0.51 [0.46, 0.57]     0.97 [0.94, 0.99]    0.97 [0.94, 0.99]
    ouida      0.63 [0.58, 0.69]     0.94 [0.90, 0.97]    0.98 [0.95, 1.00]
    trollope   0.37 [0.31, 0.42]     0.99 [0.97, 1.00]    0.97 [0.94, 0.99]
    ward       0.70 [0.64, 0.75]     0.98 [0.96, 0.99]    0.99 [0.98, 1.00]
    wells      0.73 [0.68, 0.78]     0.98 [0.95, 0.99]    0.97 [0.95, 0.99]

    Mean over heads, 3 seeds [± Student's 95 %]   soft             semi_firm        furthest         |own score|
    none                                          0.630 ± 0.030    0.970 ± 0.019    0.903 ± 0.164    2.638 ± 0.917
    log_square, own head                          0.571 ± 0.028    0.977 ± 0.012    0.852 ± 0.234    0.676 ± 0.389
    log_square, every head (the fault)            0.588 ± 0.049    0.979 ± 0.007    0.868 ± 0.198    0.578 ± 0.224
    squared_log_square, own head                  0.588 ± 0.052    0.978 ± 0.013    0.885 ± 0.025    1.295 ± 0.092
    own head - every head, paired                -0.017 ± 0.021   -0.002 ± 0.012   -0.016 ± 0.049    0.098 ± 0.176

The kind of text is recognised, the author only partly (Trollope's second novel, worst, is the one set in Australia).
Regularising every head instead of the own head made no difference that three seeds can show. Not regularising
separated authors better than the own head did (soft: +0.059 ± 0.030, paired). This is one tiny backbone and a short
training. Learning rate and passage length were chosen on passages of the first novels.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from author_passages import NOVELS, TIERS, data_folder, membership_data, scores_by_tier
from rich import print
from rich.table import Table
from scipy.stats import bootstrap, t
from trl import TrlParser

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.reward_model import RewardModel
from alignkit.reward_model.separation import auroc


@dataclass
class ScriptArguments:
    model: str | None = None  # any causal language model; None is $ALIGNKIT_DATA/models/stories260K
    words: int = 40  # length of a passage
    train_passages: int = 300  # per author
    eval_passages: int = 100  # per author
    n_seeds: int = 3
    threads: int = 1  # of the CPU; for a model this small one is enough


class EveryHeadRegularized(MultiHeadRewardTrainer):
    """A fault, made on purpose: the regulariser reads every head's score of a positive, not its own head's alone."""

    def compute_reward_loss(self, scores, batch, **step):
        n_heads = scores.shape[1]
        if step.get("positive_weight") is not None:
            step["positive_weight"] = step["positive_weight"].repeat_interleave(n_heads) / n_heads
        positive = batch["positive"].repeat_interleave(n_heads)
        every_head = torch.arange(n_heads, device=positive.device).repeat(len(batch["positive"]))
        return super().compute_reward_loss(
            scores, {**batch, "positive": positive, "positive_head": every_head}, **step
        )


VARIANTS = {
    "none": (MultiHeadRewardTrainer, None),
    "own head": (MultiHeadRewardTrainer, "log_square"),
    "every head": (EveryHeadRegularized, "log_square"),
    "own head, squared": (MultiHeadRewardTrainer, "squared_log_square"),
}


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, MultiHeadRewardConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/reward_corpus_membership", "max_length": 512, "overflow": "drop"},
        **{"max_steps": 100, "per_device_train_batch_size": 16, "negatives_per_tier": 6, "logging_steps": 50},
        **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 10, "save_strategy": "no"},
        **{"regularizer_weight": 0.03},
        **{"use_cpu": not has_gpu, "bf16": has_gpu, "gradient_checkpointing": has_gpu, "report_to": "none"},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    folder = data_folder()

    # 1. Model: the name of a backbone. The trainer gives it one row of `score` per head.
    model = script.model or str(folder / "models" / "stories260K")

    # 2. Data: nothing that is evaluated on was trained on, and every author is evaluated on another book.
    train, negatives = membership_data(folder, 0, script.train_passages, script.words)
    evaluation, eval_negatives = membership_data(folder, 1, script.eval_passages, script.words)
    data = {"train_dataset": train, "eval_dataset": evaluation}
    data |= {"negatives": negatives, "eval_negatives": eval_negatives}

    scores: dict[str, list] = {name: [] for name in VARIANTS}
    for seed in range(args.seed, args.seed + script.n_seeds):
        for name, (trainer_class, regularizer) in VARIANTS.items():
            # 3. Config: equal but for the seed and the regulariser.
            config = dataclasses.replace(args, head_names=list(NOVELS), seed=seed, regularizer=regularizer)

            # 4. Trainer
            trainer = trainer_class(model, config, **data)
            trainer.train()

            # 5. Evaluate
            reward_model = RewardModel(trainer.model, trainer.processing_class)
            scores[name].append(scores_by_tier(reward_model, evaluation, eval_negatives))

            # 6. Save the first model, with a card of every head's metrics.
            if (name, seed) == ("none", args.seed):
                trainer.evaluate()
                trainer.save_model()
                trainer.create_model_card()
    report(scores, Path(args.output_dir))


def report(scores: dict[str, list], folder: Path) -> None:
    """Print AUROC per head and tier, and the ablation over seeds; write the latter's numbers to results.json."""
    table = Table("head", *TIERS, title="AUROC on the other novel, no regulariser, first seed [95 % bootstrap]")
    for head, tiers in scores["none"][0].items():
        cells = []
        for sides in tiers.values():
            interval = bootstrap(sides, auroc, n_resamples=1000, method="percentile", rng=0).confidence_interval
            cells.append(f"{auroc(*sides):.2f} [{interval.low:.2f}, {interval.high:.2f}]")
        table.add_row(head, *cells)
    print(table)

    def over_seeds(values) -> str:
        """Mean and half-width of Student's 95 % interval."""
        error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        return f"{np.mean(values):.3f} ± {t.ppf(0.975, len(values) - 1) * error:.3f}"

    results = {
        name: {tier: [float(np.mean([auroc(*head[tier]) for head in run.values()])) for run in runs] for tier in TIERS}
        | {"|score|": [float(np.mean([abs(head["soft"][0]).mean() for head in run.values()])) for run in runs]}
        for name, runs in scores.items()
    }
    title = "Mean AUROC over heads, and mean |own score| of positives ± Student's 95 %"
    table = Table("regulariser", *results["none"], title=title)
    for name, columns in results.items():
        table.add_row(name, *map(over_seeds, columns.values()))
    gap = {k: np.subtract(results["own head"][k], results["every head"][k]) for k in results["none"]}
    table.add_row("own - every", *map(over_seeds, gap.values()))
    print(table, "A gap whose interval contains 0 shows no difference; the interval is over seeds, not over corpora.")
    (folder / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
