"""What all trainings have in common: going on from a checkpoint, and the artefact at the end, whole or not there."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from alignkit.evaluation.results import origin
from alignkit.experiments.run_folder import mark_complete, time_before
from alignkit.experiments.training import load_tokenizer, peak_memory_gib
from alignkit.reliability import check_process_count
from alignkit.rewards.hybrid import HybridReward
from alignkit.stages.artefacts import RECORD_FILE, StageFolder
from alignkit.stages.config import make_config
from alignkit.stages.tokens import METER_FILE, TokenMeter
from alignkit.storage import read_json, whole_folder, write_json

REWARD_FILE = "reward_state.json"  # in a checkpoint
MOST_ROWS = 400  # of a log


class Checkpoints(TrainerCallback):
    """Marks a checkpoint when all of it is written, and keeps beside it what trainers know nothing of."""

    def __init__(self, started: float, meter: TokenMeter | None, reward: HybridReward | None):
        self.started = started
        self.meter = meter
        self.reward = reward

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        totals = None if self.meter is None else self.meter.totals()
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if totals is not None:
            write_json(checkpoint / METER_FILE, totals)
        if self.reward is not None:
            write_json(checkpoint / REWARD_FILE, self.reward.state_dict())
        mark_complete(checkpoint, time.perf_counter() - self.started)

    def load(self, checkpoint: Path) -> None:
        """Go on from what `on_save` wrote."""
        if self.meter is not None:
            self.meter.load(checkpoint)
        if self.reward is not None:
            self.reward.load_state_dict(read_json(checkpoint / REWARD_FILE))


def stage_config(folder: StageFolder, config: dict[str, Any]) -> Any:
    """The trainer's config of a stage; TRL's own trainers would train alone where two processes were asked for."""
    args = make_config(
        config["config_name"],
        config["training"],
        output_dir=str(folder.trainer),
        seed=config["seed"],
        on_cpu=not torch.accelerator.is_available(),
    )
    check_process_count(args.device, args.world_size)
    return args


def stage_data(config: dict[str, Any]) -> Dataset:
    """The rows that the stages' own process has written."""
    dataset: Dataset = load_from_disk(config["data"])
    return dataset


def stage_tokenizer(config: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that a stage goes on from."""
    return load_tokenizer(config["model"], config["training"])


def train(
    trainer: Any,
    folder: StageFolder,
    save: Callable[[Path, Path], None],
    *,
    meter: TokenMeter | None = None,
    reward: HybridReward | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Train, from the last whole checkpoint if there is one, and leave the artefact.

    Args:
        trainer: of transformers.
        folder: of the stage.
        save: `save(saved, artefact)` makes the artefact's model of what the trainer saved.
        meter, reward: what a checkpoint has to keep beside the trainer's state.
        check: called after the training; an error means that there is no artefact.
    """
    started = time.perf_counter()
    whole = folder.checkpoints()
    checkpoint = whole[-1] if whole else None
    started -= time_before(checkpoint)
    notes = Checkpoints(started, meter, reward)
    if checkpoint is not None:
        notes.load(checkpoint)
    is_first = trainer.args.process_index == 0
    if is_first:
        _remove_unfinished(folder, whole)
    trainer.add_callback(notes)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if check is not None:
        check()
    trained_s = time.perf_counter() - started
    record = {**_record(trainer, meter), "training_s": trained_s}
    saved = folder.path / "saved"
    trainer.save_model(str(saved))
    if is_first:
        with whole_folder(folder.artefact) as partial:
            save(saved, partial)
            write_json(partial / RECORD_FILE, {**record, "wall_time_s": time.perf_counter() - started})
        for path in (saved, folder.trainer):
            shutil.rmtree(path, ignore_errors=True)


def save_policy(saved: Path, artefact: Path) -> None:
    """The model as one plain checkpoint, an adapter merged into it, with its tokenizer."""
    if (saved / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        merged = AutoPeftModelForCausalLM.from_pretrained(saved, dtype="auto").merge_and_unload()
        merged.save_pretrained(artefact)
        AutoTokenizer.from_pretrained(saved).save_pretrained(artefact)
        return
    shutil.copytree(saved, artefact, dirs_exist_ok=True)


def _remove_unfinished(folder: StageFolder, whole: list[Path]) -> None:
    for path in folder.trainer.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)


def _record(trainer: Any, meter: TokenMeter | None) -> dict[str, Any]:
    """Of one process; tokens and completions that were generated are over all of them."""
    state = trainer.state
    generated = (meter or TokenMeter()).totals()
    return {
        **origin(trainer.args.device),
        "steps": state.global_step,
        "peak_memory_gib": peak_memory_gib(trainer.args.device),
        "generated_tokens": generated["tokens"],
        "completions": generated["completions"],
        "history": _numbers(state.log_history),
    }


def _numbers(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Rows of the log with what are numbers in them; of many rows every k-th, and the last."""
    rows = [
        {key: float(value) for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
        for row in log_history
    ]
    stride = math.ceil(len(rows) / MOST_ROWS) or 1
    return [row for place, row in enumerate(rows) if place % stride == 0 or place == len(rows) - 1]
