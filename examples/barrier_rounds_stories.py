"""Does a tail aggregate hold coherence where the mean lets it collapse? The same ref and comparable tau for every arm.

    ALIGNKIT_DATA=/path/to/data python examples/barrier_rounds_stories.py
    ALIGNKIT_DATA=/path/to/data python examples/barrier_rounds_stories.py --rounds 2 --seeds 0  # a look

Seen on 2026-11-21 with 2 CPU cores, no GPU (8 rounds, 6 arms, 3 seeds, one thread; one to three minutes a run), after
round 5, mean and 95 % t-interval over seeds:

    arm       tau      trait (nats)     answer mass      held-out NLL (nats)
    none               4.85 +- 1.85     0.602 +- 0.221   1.851 +- 0.142
    mean      0.101    2.50 +- 0.51     0.861 +- 0.016   1.362 +- 0.008
    rmse      0.180    2.80 +- 0.28     0.828 +- 0.051   1.378 +- 0.007
    p95       0.358    2.49 +- 0.43     0.846 +- 0.024   1.372 +- 0.011
    max       1.023    3.13 +- 0.76     0.764 +- 0.071   1.415 +- 0.022
    cvar95    0.542    2.74 +- 0.18     0.812 +- 0.037   1.384 +- 0.022

Two of the three runs without a barrier stopped in round 6 or 7: the original model no longer accepted what they wrote.
docs/kl_barrier.md says what can be concluded from it.
"""

import copy
import json
import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from peft import LoraConfig
from scipy.stats import t as student_t
from story_rounds import filters, probes, steering
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import TrlParser

from alignkit import KLBarrierConfig
from alignkit.kl_barrier import AGGREGATES, calibrate_tau
from alignkit.kl_barrier.rounds import run_rounds
from alignkit.kl_barrier.rounds.filters import filter_proposals
from alignkit.kl_barrier.rounds.stages import training_rows

ARMS = ("none", *AGGREGATES)
CALIBRATION_SEEDS = (1000, 1001, 1002)
SHOWN = {
    "trait_nats": "trait (nats)",
    "allowed_answer_mass": "answer mass",
    "held_out_nll_nats": "held-out NLL (nats)",
    "repetition": "repetition",
    "perplexity": "perplexity",
}
COLOURS = dict(zip(ARMS, ("0.35", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True))
MARKERS = dict(zip(ARMS, "sovD^P", strict=True))


@dataclass
class ScriptArguments:
    model: str | None = None  # any causal language model; None is $ALIGNKIT_DATA/models/stories260K
    rounds: int = 8
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    open_share: float = 0.05  # of the sequences of a first round, trained without a barrier, that exceed tau
    threads: int = 1  # of the CPU; for a model this small one is enough
    report_only: bool = False


def data_folder() -> Path:
    if not os.environ.get("ALIGNKIT_DATA"):
        raise SystemExit("set ALIGNKIT_DATA to the folder with tinystories_1000 and models/stories260K")
    return Path(os.environ["ALIGNKIT_DATA"])


def calibrated_taus(
    model: str, tokenizer, training: KLBarrierConfig, peft_config: LoraConfig, open_share: float, path: Path
) -> dict[str, float]:
    """One tau per aggregate, exceeded by the same share of sequences in first rounds of seeds that no arm uses."""
    if not path.exists():
        base = AutoModelForCausalLM.from_pretrained(model)
        rounds = []
        for seed in CALIBRATION_SEEDS:
            proposals = steering()(base, tokenizer, 1, seed)
            kept = filter_proposals(base, tokenizer, proposals, filters(), seed=seed).kept
            # A training for each, of as many steps as a round has, on the tokens that a round trains on.
            rounds.append(
                calibrate_tau(
                    base,
                    training_rows(tokenizer, kept),
                    args=training,
                    processing_class=tokenizer,
                    peft_config=peft_config,
                    open_share=open_share,
                )
            )
        pooled = {
            part: {how: np.concatenate([getattr(found, part)[how] for found in rounds]) for how in AGGREGATES}
            for part in ("normal", "loop")
        }
        calibration = replace(rounds[0], **pooled)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(calibration.to_markdown(), "utf-8")
        path.write_text(json.dumps(calibration.tau_nats, indent=2), "utf-8")
    return json.loads(path.read_text("utf-8"))


def at_trait(records: list[dict], level: float, name: str) -> float:
    """A signal where the trait first reaches a level, between two rounds by straight line; NaN where it never does.

    `name` is that of a signal, or "round" for the round itself.
    """
    for before, after in pairwise(records):
        low, high = before["means"]["trait_nats"], after["means"]["trait_nats"]
        if low < level <= high:
            share = (level - low) / (high - low)
            if name == "round":
                return before["round"] + share
            return (1 - share) * before["means"][name] + share * after["means"][name]
    return float("nan")


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval over seeds."""
    n = len(values)
    if np.isnan(values).any() or n == 0:
        return f"not reached by {int(np.isnan(values).sum())} of {n}"
    if n == 1:
        return f"{values[0]:.3f}"
    half = student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return f"{np.mean(values):.3f} ± {half:.3f}"


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [title, "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), "", ""])


def after(records: list[dict], number: int, name: str) -> float:
    """A signal after a round; NaN where the run had stopped before."""
    return records[number]["means"][name] if number < len(records) else float("nan")


def report(runs: dict[str, dict[int, list[dict]]], taus: dict[str, float], open_share: float) -> str:
    """Every arm after the same round, and every arm at the same trait; differences are paired by seed."""
    seeds = sorted(runs["none"])
    lengths = [len(records) for of_seed in runs.values() for records in of_seed.values()]
    base = {name: float(np.mean([runs["none"][seed][0]["means"][name] for seed in seeds])) for name in SHOWN}
    text = f"Base: {', '.join(f'{label} {base[name]:.3f}' for name, label in SHOWN.items())}. Seeds {seeds}.\n\n"
    for number in sorted({min(lengths) - 1, max(lengths) - 1}):
        rows = [
            [
                arm,
                "-" if arm == "none" else f"{taus[arm]:.3f}",
                *(interval([after(of_seed[seed], number, name) for seed in seeds]) for name in SHOWN),
            ]
            for arm, of_seed in runs.items()
        ]
        text += table(
            f"After round {number}, mean ± 95 % t-interval over seeds:", ["arm", "tau", *SHOWN.values()], rows
        )
    signals = ("allowed_answer_mass", "held_out_nll_nats", "repetition")
    highest = min(max(r["means"]["trait_nats"] for r in records) for arm in runs.values() for records in arm.values())
    for share in (0.8, 0.98):
        level = base["trait_nats"] + share * (highest - base["trait_nats"])
        rows = []
        for arm, of_seed in runs.items():
            found = {name: [at_trait(of_seed[seed], level, name) for seed in seeds] for name in ("round", *signals)}
            without = {name: [at_trait(runs["none"][seed], level, name) for seed in seeds] for name in signals}
            differences = [list(np.subtract(found[name], without[name])) for name in signals]
            rows.append([arm, interval(found["round"]), *map(interval, differences)])
        header = ["arm", "in round", *(f"{SHOWN[name]}, minus no barrier" for name in signals)]
        text += table(f"Where the trait first reaches {level:.2f} nats:", header, rows)
    rows = [
        [
            arm,
            interval([of_seed[seed][1]["training"]["kl/gate_open"] for seed in seeds]),
            interval([np.mean([r["training"]["kl/gate_open"] for r in of_seed[seed][1:]]) for seed in seeds]),
        ]
        for arm, of_seed in runs.items()
        if arm != "none"
    ]
    title = f"Share of sequences whose gate was open (calibrated, without a barrier: {open_share:.0%}):"
    text += table(title, ["arm", "round 1", "all rounds"], rows)
    stops = [
        f"- {arm}, seed {seed}: {records[-1]['stop_reason']}"
        for arm, of_seed in runs.items()
        for seed, records in of_seed.items()
        if len(records) < max(lengths)
    ]
    return text + "\n".join(["Stopped early:" if stops else "No run stopped early.", "", *stops, ""])


def picture(path: Path, runs: dict[str, dict[int, list[dict]]]) -> None:
    """Trait, answer mass and held-out NLL by round; the last two against the trait, the first of them also near by."""
    figure = Figure(figsize=(13, 7), dpi=130, layout="constrained")
    panels = figure.subplots(2, 3)
    against_trait = ("allowed_answer_mass", "held_out_nll_nats")
    near: list[tuple[np.ndarray, np.ndarray]] = []
    for arm, of_seed in runs.items():
        n = min(map(len, of_seed.values()))
        means = {
            name: np.mean([[r["means"][name] for r in records[:n]] for records in of_seed.values()], axis=0)
            for name in ("trait_nats", *against_trait)
        }
        style = {"color": COLOURS[arm], "marker": MARKERS[arm], "markersize": 5, "label": arm}
        for panel, name in zip(panels[0], means, strict=True):
            for records in of_seed.values():
                panel.plot([r["means"][name] for r in records], color=COLOURS[arm], linewidth=0.6, alpha=0.4)
            panel.plot(means[name], **style)
            panel.set(xlabel="round (0: base model)", ylabel=SHOWN[name])
        for panel, name in zip(panels[1], (*against_trait, against_trait[0]), strict=True):
            panel.plot(means["trait_nats"], means[name], **style)
            panel.set(xlabel=SHOWN["trait_nats"], ylabel=SHOWN[name])
        if arm != "none":
            near.append((means["trait_nats"], means[against_trait[0]]))
    for place, values in enumerate(np.hstack(near)):
        margin = 0.05 * np.ptp(values)
        (panels[1][2].set_ylim if place else panels[1][2].set_xlim)(values.min() - margin, values.max() + margin)
    panels[1][2].set_title("the same, where the arms with a barrier are", fontsize="medium")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="aggregate\n(none: no barrier)", loc="outside right center", frameon=False)
    figure.savefig(path)


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, KLBarrierConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/barrier_rounds_stories", "barrier_weight": 1.0, "ref": "base", "max_length": 256},
        **{"num_train_epochs": 3, "learning_rate": 3e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.1},
        **{"per_device_train_batch_size": 8, "logging_steps": 1000, "report_to": "none", "disable_tqdm": True},
        **{"use_cpu": not has_gpu, "bf16": has_gpu, "gradient_checkpointing": has_gpu, "pressure_steps": 0},
    )
    script, training = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    data, folder = data_folder(), Path(training.output_dir)

    # 1. Model, and the adapter of each round
    model = script.model or str(data / "models" / "stories260K")
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")

    # 2. One tau per aggregate, from the same trainings
    taus_file = folder / f"taus_open_{script.open_share:g}.json"
    taus = calibrated_taus(model, tokenizer, training, peft_config, script.open_share, taus_file)

    # 3. Rounds: every arm differs from the others in its aggregate and that aggregate's tau alone
    runs: dict[str, dict[int, list[dict]]] = {}
    for seed in script.seeds:
        for arm in script.arms:
            arm_folder = folder / arm / f"seed_{seed}"
            if script.report_only:
                records = [json.loads(line) for line in (arm_folder / "results.jsonl").open(encoding="utf-8")]
            else:
                of_arm = copy.copy(training)
                if arm == "none":
                    of_arm.barrier_weight = 0.0
                else:
                    of_arm.aggregate, of_arm.tau_nats = arm, taus[arm]
                records = run_rounds(
                    model,
                    tokenizer,
                    output_dir=arm_folder,
                    training=of_arm,
                    peft_config=peft_config,
                    proposer=steering(),
                    filters=filters(),
                    probes=probes(data),
                    rounds=script.rounds,
                    coherence_floor=0.0,
                    seed=seed,
                )
            runs.setdefault(arm, {})[seed] = records

    # 4. Report: every arm against no barrier
    if "none" in runs and len(runs) > 1:
        text = report(runs, taus, script.open_share)
        (folder / "comparison.md").write_text(text, "utf-8")
        picture(folder / "comparison.png", runs)
        print(text)


if __name__ == "__main__":
    main()
