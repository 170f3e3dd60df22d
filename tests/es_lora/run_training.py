"""Small training runs in a process of their own, for the tests of resuming and of several ranks.

python run_training.py FOLDER RUN --kill-in STEP
"""

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from alignkit import ESLoRATrainer
from tests.es_lora.conftest import make_es_trainer, mean_code, prompts, trained

# What differs from run to run.
RUNS: dict[str, dict[str, Any]] = {
    "both": {"eval_steps": 2},
    "momentum": {
        "optim": "adamw_torch",
        "perturb": "B",
        "sigma_mode": "output",
        "sigma_schedule": "linear",
        "sigma_end": 0.01,
        "lr_scheduler_type": "linear",
        "anchor_decay": 0.1,
        "gradient_accumulation_steps": 2,
    },
    "lowrank": {"perturb": "lowrank", "completions_steps": 1},
    "odd": {
        "population_size": 5,
        "antithetic": False,
        "rollouts_per_prompt": 2,
        "perturb": "B",
        "completions_steps": 1,
    },
}


class FailingAndSlow:
    """A reward that fails for the completions of one member, and is slow on the second rank."""

    __name__ = "failing_and_slow"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        time.sleep(0.05 * int(os.environ.get("RANK", "0")))
        rewards: list[float | None] = list(mean_code(completions))
        return [
            float("nan") if sum(map(ord, text)) % 29 == 0 else reward
            for text, reward in zip(completions, rewards, strict=True)
        ]


class KillIn:
    """A reward in whose call of a step the process dies, as by `kill -9`."""

    def __init__(self, step: int):
        self.__name__ = "mean_code"
        self._step = step

    def __call__(self, completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        if trainer_state.global_step + 1 == self._step:
            os.kill(os.getpid(), signal.SIGKILL)
        return mean_code(completions)


def run(output: Path, name: str, reward: Any = mean_code, resume: bool = False) -> ESLoRATrainer:
    """Six steps, a checkpoint after each second."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
    trainer = make_es_trainer(
        output, **settings, **RUNS[name], reward_funcs=reward, eval_dataset=prompts(3), train_dataset=prompts(5)
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def on_ranks(output: Path, name: str) -> None:
    """One of two ranks; the first leaves the weights."""
    trainer = run(output / name, name, FailingAndSlow())
    if trainer.is_world_process_zero():
        torch.save(trained(trainer), output / f"{name}.pt")
        (output / f"{name}.processes").write_text(str(trainer.accelerator.num_processes))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--kill-in", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.output / options.run, options.run, KillIn(options.kill_in))


if __name__ == "__main__":
    main()
