"""A tiny run of rounds, and a way to have it killed again and again, for the tests of the loop and of resuming.

As a script: `run_loop.py FOLDER whole` or `run_loop.py FOLDER killed`. The second runs in children of this process,
each of which kills itself with SIGKILL, at a rename or a training step, until one gets to the end.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import Trainer

from alignkit import KLBarrierConfig
from alignkit.kl_barrier.rounds import (
    ActivationSteering,
    AnswerProbe,
    FilterSettings,
    Proposal,
    Proposer,
    RoundProbes,
    TraitProbe,
    run_rounds,
)
from alignkit.tasks.toy import byte_tokenizer, tiny_causal_lm

FIRST_RENAMES = 2

FILTERS = FilterSettings(perplexity_limit=1e6, repetition_limit=2.0, keep_at_most=6, min_kept=4)
STEERING = ActivationSteering(
    "Be glad.",
    "Be sad.",
    contexts=["The day", "My hat"],
    prompts=["The sea is", "A fox"],
    layer_band=(0.0, 1.0),
    strengths=(0.5, 1.0),
    max_new_tokens=8,
    target_pass_rate=None,
    filters=FILTERS,
)
PROBES = RoundProbes(
    coherence=AnswerProbe(["Is it {options}?"], [[" red", " blue"]]),
    trait=TraitProbe(["I am", "We are"], [" glad"], [" sad"]),
    sample_prompts=["The sea", "A fox"],
    sample_tokens=8,
    held_out=["The sea is calm.", "A fox ran."],
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def proposer_of(*completions: str) -> Proposer:
    """Any callable proposes: here always the same texts, given by name so that runs of the tests compare."""

    def propose(model: Any, tokenizer: Any, round_index: int, seed: int) -> list[Proposal]:
        return [Proposal("I am", completion) for completion in completions]

    return propose


GLAD = proposer_of(" glad", " glad and well", " glad to be", " glad, so glad")


def training(**settings: Any) -> KLBarrierConfig:
    quiet = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "ref": "previous",
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
    }
    return KLBarrierConfig("unused", **{**quiet, **settings})


def run_tiny(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Two rounds on a tiny model. `changes` are arguments of `run_rounds`, and `model` and `tokenizer`."""
    arguments: dict[str, Any] = {
        "training": training(),
        "peft_config": LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        "proposer": STEERING,
        "filters": FILTERS,
        "probes": PROBES,
        "rounds": 2,
        "coherence_floor": 0.0,
        **changes,
    }
    model = arguments.pop("model", None) or tiny_causal_lm(hidden_size=32)
    tokenizer = arguments.pop("tokenizer", None) or byte_tokenizer()
    return run_rounds(model, tokenizer, output_dir=folder, **arguments)


def results_of(folder: Path) -> list[dict[str, Any]]:
    """The records in `results.jsonl`, without the commit, which a developer may change between two runs."""
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "git_commit"} for record in records]


def kill_at_rename(number: int, *, done: bool) -> None:
    """Have this process killed at its rename `number`, when it is `done` or just before."""
    count = 0

    def renaming(rename: Any) -> Any:
        def rename_or_die(*paths: Any) -> None:
            nonlocal count
            count += 1
            if count == number and not done:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return rename_or_die

    os.rename, os.replace = renaming(os.rename), renaming(os.replace)


def kill_in_training() -> None:
    """Have this process killed at the second training step that it makes."""
    steps, step = 0, Trainer.training_step

    def step_or_die(self: Any, *arguments: Any, **keywords: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **keywords)

    Trainer.training_step = step_or_die  # type: ignore[method-assign]


def run_killed(folder: Path) -> int:
    """The number of attempts that were killed before one came to the end."""
    for attempt in range(100):
        child = os.fork()
        if child == 0:
            if attempt == 6:
                kill_in_training()
            else:
                kill_at_rename(FIRST_RENAMES + attempt, done=attempt % 2 == 0)
            run_tiny(folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError("the run failed by itself")
            return attempt
    raise RuntimeError("no attempt came to the end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "whole":
        run_tiny(Path(sys.argv[1]))
    else:
        print(run_killed(Path(sys.argv[1])))
