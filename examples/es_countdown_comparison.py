"""What ES-LoRA, random search, the prior update and GRPO make of countdown with the same number of completions.

    python examples/es_countdown_comparison.py
    python examples/es_countdown_comparison.py --tune  # what was tried: another seed, other problems

Seen on 2026-11-21 with 2 CPU cores, no GPU (3 seeds, one thread; about 8 minutes of CPU time), held-out reward of
greedy completions, mean and 95 % t-interval over seeds:

    start            0.379 +- 0.153
    ES               0.482 +- 0.111
    random search    0.394 +- 0.141
    prior update     0.379 +- 0.153
    GRPO             0.679 +- 0.301

ES learns and loses to GRPO, by 0.197 +- 0.196; GRPO takes 3.5 times as much time. More of it is in
docs/experiments/es_countdown.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from countdown_start import Rows, problems, taught_model
from datasets import Dataset
from es_comparison import HeldOut, Task, evolution, grpo, prior_update, random_search
from es_report import LABELS, interval, picture, table, tuning_table
from peft import LoraConfig
from trl import TrlParser

from alignkit import ESLoRAConfig
from alignkit.tasks.countdown import CountdownReward

METHODS = {"both": evolution, "random": random_search, "prior": prior_update, "grpo": grpo}
# Two settings for each of the two that have a chance, on a seed and problems that the comparison does not use.
TUNED: dict[str, list[dict[str, Any]]] = {
    "both": [{"rank": 1, "learning_rate": rate} for rate in (0.2, 0.3)],
    "grpo": [{"rank": 8, "learning_rate": rate} for rate in (1e-3, 5e-3)],
}
CHOSEN: dict[str, dict[str, Any]] = {
    "both": {"rank": 1, "learning_rate": 0.3},
    "random": {"rank": 1},
    "prior": {"rank": 1, "perturb_scale": 1.0},  # its own for countdown
    "grpo": {"rank": 8, "learning_rate": 1e-3},
}
TUNING_SEED = 100
SHOWN = ("greedy", "sampled")


@dataclass
class ScriptArguments:
    completions: int = 41280  # of a run: generated and rewarded
    evaluations: int = 4  # of the held-out problems, after the first
    numbers: list[int] = field(default_factory=lambda: [2])  # how many a problem may have
    n_train: int = 1200
    n_test: int = 400
    sft_steps: int = 400  # at most
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    arms: list[str] = field(default_factory=lambda: list(METHODS))
    tune: bool = False
    threads: int = 1  # of the CPU; for a model this small one is enough


class CountdownOfPrompt:
    """`CountdownReward` for callers that hand over the prompt alone. The same object judges all methods."""

    def __init__(self, rows: Rows):
        self._rows = {row["prompt"]: row for row in rows}
        self._reward = CountdownReward()

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        rows = [self._rows[prompt] for prompt in prompts]
        numbers, target = ([row[name] for row in rows] for name in ("numbers", "target"))
        return self._reward(prompts, completions, numbers, target)


def run(task: Task, arm: str, settings: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """One run, or what is left of it: a finished one is not repeated."""
    name = "_".join([arm, *(f"{key}={value}" for key, value in settings.items()), f"seed={seed}"])
    path = folder / f"{name}.json"
    if not path.exists():
        rank, others = settings["rank"], {key: value for key, value in settings.items() if key != "rank"}
        of_arm = replace(task, peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        seen: HeldOut = METHODS[arm](of_arm, seed, folder / "runs" / name, **others)
        record = {"arm": arm, "seed": seed, "settings": settings, "rows": seen.rows, "texts": seen.texts[:3]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1), "utf-8")
    return json.loads(path.read_text("utf-8"))


def report(runs: dict[str, list[dict[str, Any]]], seeds: list[int]) -> str:
    """Held-out rewards at the start and the end of each method, and ES against each other one, paired by seed."""
    text = f"Held-out problems, mean ± 95 % t-interval over the seeds {seeds}. Reward: 0.1 format + 1 if solved.\n\n"
    starts = [record["rows"][0] for record in next(iter(runs.values()))]
    rows = [["start (after SFT)", "0", *(interval([start[name] for start in starts]) for name in SHOWN), "", ""]]
    for arm, records in runs.items():
        ends = [record["rows"][-1] for record in records]
        gains = [end["greedy"] - start["greedy"] for start, end in zip(starts, ends, strict=True)]
        seconds = interval([end["cpu_seconds"] for end in ends])
        cells = (interval([end[name] for end in ends]) for name in SHOWN)
        rows.append([LABELS[arm], str(ends[0]["completions"]), *cells, interval(gains, sign="+"), seconds])
    text += table(["method", "completions", "greedy", "sampled (T = 1)", "gain, greedy", "CPU seconds"], rows)
    differences = [
        [LABELS[arm], *(interval(_differences(runs["both"], runs[arm], name), sign="+") for name in SHOWN)]
        for arm in runs
        if arm != "both" and "both" in runs
    ]
    return text + table(["ES minus", "greedy", "sampled (T = 1)"], differences)


def _differences(ours: list[dict[str, Any]], others: list[dict[str, Any]], name: str) -> list[float]:
    return [a["rows"][-1][name] - b["rows"][-1][name] for a, b in zip(ours, others, strict=True)]


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = TrlParser((ScriptArguments, ESLoRAConfig))
    parser.set_defaults(
        **{"output_dir": "outputs/es_countdown_comparison", "max_completion_length": 16, "temperature": 0.0},
        **{"population_size": 128, "prompts_per_step": 16, "sigma_mode": "output", "sigma": 0.1, "perturb": "both"},
        **{"save_strategy": "no", "logging_steps": 1000, "report_to": "none", "disable_tqdm": True},
        **{"use_cpu": not has_gpu},
    )
    script, args = parser.parse_args_and_config()
    torch.set_num_threads(script.threads)
    folder = Path(str(args.output_dir))

    # 1. Data: problems to train on, to choose settings on, and to evaluate on
    train, tuning, test = problems(script.numbers, script.n_train, script.n_test, script.n_test)
    reward = CountdownOfPrompt([*train, *tuning, *test])
    evaluated = Dataset.from_list(tuning if script.tune else test)

    # 2. Runs: the start of a seed is made once, and all methods go on from it
    def task_of(seed: int) -> Task:
        start = folder / "starts" / f"seed={seed}"
        model = taught_model(train, start, seed=seed, steps=script.sft_steps, use_cpu=args.use_cpu)
        budget = (script.completions, script.evaluations)
        return Task(model, reward, Dataset.from_list(train), evaluated, LoraConfig(), *budget, args)

    if script.tune:
        task, grid = task_of(TUNING_SEED), [(arm, one) for arm, several in TUNED.items() for one in several]
        records = [run(task, *one, TUNING_SEED, folder / "tuning") for one in grid]
        (folder / "tuning.md").write_text(text := tuning_table(records), "utf-8")
    else:
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in script.arms}
        for seed in script.seeds:
            task = task_of(seed)
            for arm in script.arms:
                runs[arm].append(run(task, arm, CHOSEN[arm], seed, folder))
        # 3. Report
        (folder / "comparison.md").write_text(text := report(runs, script.seeds), "utf-8")
        picture(folder / "comparison.png", [record for records in runs.values() for record in records])
    print(text)


if __name__ == "__main__":
    main()
