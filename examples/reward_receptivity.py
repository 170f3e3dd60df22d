"""Which decides how well a head separates its texts: the backbone, or the number of heads that share it?

    ALIGNKIT_DATA=/path/to/data python examples/reward_receptivity.py  # or accelerate launch

Seen on 2026-11-21 with 2 CPU cores, no GPU, about 8 minutes (20 trainings of 100 steps, one thread):

    measure                       factor            share of variance  leaving one seed out  effect ± 95 %
    score range                   backbone          0.08               0.05 to 0.13          +1.530 ± 1.149
                                  heads             0.63               0.59 to 0.71          -4.287 ± 1.555
                                  backbone x heads  0.01               0.00 to 0.02
                                  seed and author   0.18               0.01 to 0.22
                                  rest              0.10               0.06 to 0.13
    d' against soft negatives     backbone          0.04               0.01 to 0.09          -0.193 ± 0.463
                                  heads             0.12               0.07 to 0.25          -0.356 ± 0.554
                                  backbone x heads  0.00               0.00 to 0.00
                                  seed and author   0.58               0.45 to 0.68
                                  rest              0.26               0.17 to 0.38
    AUROC against soft negatives  backbone          0.05               0.02 to 0.11          -0.055 ± 0.127
                                  heads             0.07               0.03 to 0.19          -0.068 ± 0.138
                                  backbone x heads  0.00               0.00 to 0.00
                                  seed and author   0.59               0.45 to 0.68
                                  rest              0.29               0.19 to 0.42

The effects are those of the trained over the untrained backbone, and of seven heads over one. A head alone, and a
trained backbone, spread scores wider, but no better separation can be shown to come with it: a range says nothing
about quality. Separation depends on the author first; with five seeds no effect of backbone or head count on it can be
told from chance. This holds for one tiny backbone and a short training.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from author_passages import NOVELS, TIERS, data_folder, membership_data
from datasets import Dataset
from matplotlib.figure import Figure
from rich import print
from rich.table import Table
from scipy.stats import t
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import TrlParser

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.reward_model import RewardModel, receptivity

MEASURES = {"range": "score range", "d_prime": "d' against soft negatives", "auroc": "AUROC against soft negatives"}
N_HEADS = (1, len(NOVELS))


@dataclass
class ScriptArguments:
    models: list[str] = field(default_factory=list)  # backbones; none is $ALIGNKIT_DATA/models/stories260K
    words: int = 40  # length of a passage
    train_passages: int = 300  # per author
    eval_passages: int = 100  # per author
    positives_per_head: int = 2  # in a step, so that a head sees as many texts beside six others as alone
    n_seeds: int = 5  # each with another author as the head that is measured
    threads: int = 1  # of the CPU; for a model this small one is enough


def untrained_copy(model: str, seed: int, folder: Path) -> str:
    """A backbone of the same shape with random weights, saved, so that it takes the same way into the trainer."""
    set_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def data_for(head: str, n_heads: int, positives: Dataset, negatives: Dataset) -> tuple[Dataset, Dataset]:
    """All the data, or that of one head."""
    if n_heads > 1:
        return positives, negatives
    met = negatives.filter(lambda row: row["heads"] is None or head in row["heads"])
    return positives.filter(lambda row: row["head"] == head), met.remove_columns("heads")


def shares_of_variance(values: np.ndarray) -> dict[str, float]:
    """Eta squared of each factor of `(backbones, head counts, seeds)`: its sum of squares over the total."""
    centred = values - values.mean()
    backbone, heads, seed = (centred.mean(axes, keepdims=True) for axes in ((1, 2), (0, 2), (0, 1)))
    both = centred.mean(2, keepdims=True) - backbone - heads
    parts = {"backbone": backbone, "heads": heads, "backbone x heads": both, "seed and author": seed}
    parts["rest"] = centred - backbone - heads - both - seed
    total = (centred**2).sum()
    return {name: float((np.broadcast_to(part, values.shape) ** 2).sum() / total) for name, part in parts.items()}


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, MultiHeadRewardConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/reward_receptivity", "max_length": 512, "overflow": "drop", "logging_steps": 100},
        **{"max_steps": 100, "negatives_per_tier": 4, "save_strategy": "no", "report_to": "none"},
        **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 10},
        **{"use_cpu": not has_gpu, "bf16": has_gpu, "gradient_checkpointing": has_gpu},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    folder, output = data_folder(), Path(args.output_dir)

    # 1. Models: the backbones, and for each seed the shape of the first with random weights.
    sources = script.models or [str(folder / "models" / "stories260K")]

    # 2. Data
    train, negatives = membership_data(folder, 0, script.train_passages, script.words)
    evaluation, eval_negatives = membership_data(folder, 1, script.eval_passages, script.words)

    runs = []
    for number, head in enumerate(list(NOVELS)[: script.n_seeds]):
        seed = args.seed + number
        backbones = {Path(source).name: source for source in sources}
        backbones["untrained"] = untrained_copy(sources[0], seed, output / f"untrained-{seed}")
        models = {}
        for (backbone, source), n_heads in product(backbones.items(), N_HEADS):
            # 3. Config: equal steps, equal negatives, equally many positives of the measured head.
            config = dataclasses.replace(
                args,
                seed=seed,
                head_names=list(NOVELS) if n_heads > 1 else [head],
                per_device_train_batch_size=script.positives_per_head * n_heads,
            )

            # 4. Trainer
            positives, met = data_for(head, n_heads, train, negatives)
            trainer = MultiHeadRewardTrainer(source, config, train_dataset=positives, negatives=met)
            trainer.train()
            models[f"{backbone}, heads: {n_heads}"] = RewardModel(trainer.model, trainer.processing_class)

        # 5. Evaluate: the same head on the same texts under all models
        groups = {"positive": evaluation.filter(lambda row, head=head: row["head"] == head)["text"]}
        for tier in TIERS:
            usable = [r for r in eval_negatives if r["tier"] == tier and (r["heads"] is None or head in r["heads"])]
            groups[tier] = [row["text"] for row in usable]
        report = receptivity(models, {name: {head: list(texts)} for name, texts in groups.items()}, seed=seed)
        report.plot(output / f"scores-{head}.png")
        soft = [row for row in report.rows if row["group"] == "soft"]
        for row, overall in zip(soft, report.overall, strict=True):
            runs.append({"seed": seed, **row, "range": overall["range"]})

    # 6. Save: tables, picture and every number in them
    (output / "results.json").write_text(json.dumps(runs, indent=2))
    shape = (script.n_seeds, len(backbones), len(N_HEADS))
    values = {m: np.array([run[m] for run in runs]).reshape(shape).transpose(1, 2, 0) for m in MEASURES}
    show(values, list(backbones), output)


def show(values: dict[str, np.ndarray], backbones: list[str], output: Path) -> None:
    """Shares of variance with their range when one seed is left out, effects with Student's interval, and a plot."""
    table = Table("measure", "factor", "share of variance", "leaving one seed out", "effect ± 95 %")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    n_seeds = next(iter(values.values())).shape[2]
    for panel, (measure, label) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        y = values[measure]
        # Of the first backbone over the last (untrained), and of all heads over one, per seed.
        effects = {"backbone": (y[0] - y[-1]).mean(0), "heads": (y[:, -1] - y[:, 0]).mean(0)}
        subsets = [shares_of_variance(np.delete(y, seed, axis=2)) for seed in range(n_seeds)] if n_seeds > 1 else []
        for factor, share in shares_of_variance(y).items():
            others = [subset[factor] for subset in subsets]
            effect = ""
            if factor in effects and n_seeds > 1:
                half = t.ppf(0.975, n_seeds - 1) * effects[factor].std(ddof=1) / n_seeds**0.5
                effect = f"{effects[factor].mean():+.3f} ± {half:.3f}"
            span = f"{min(others):.2f} to {max(others):.2f}" if others else ""
            table.add_row(label, factor, f"{share:.2f}", span, effect, end_section=factor == "rest")
        for number, (backbone, rows) in enumerate(zip(backbones, y, strict=True)):
            style = {"color": ("#0072B2", "#D55E00", "#009E73", "#CC79A7")[number % 4], "marker": "osD^"[number % 4]}
            places = np.arange(len(N_HEADS)) + 0.06 * (number - (len(backbones) - 1) / 2)
            panel.plot(places, rows.mean(1), label=f"{backbone}: mean, and each seed", **style)
            panel.plot(places, rows, color=style["color"], marker=style["marker"], linestyle="", alpha=0.35)
        panel.set_xticks(range(len(N_HEADS)), [f"{n} head{'s' * (n > 1)}" for n in N_HEADS])
        panel.set_title(label, fontsize=10)
        panel.margins(x=0.25)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(output / "receptivity.png", dpi=150)
    print(table)


if __name__ == "__main__":
    main()
