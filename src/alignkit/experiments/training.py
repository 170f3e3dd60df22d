"""What one run does: load, train, evaluate, measure. A baseline is the same without the training."""

import json
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from alignkit.dpo.config import ScheduledDPOConfig
from alignkit.dpo.trainer import ScheduledDPOTrainer
from alignkit.evaluation.results import Result, origin
from alignkit.experiments.data import load_datasets
from alignkit.experiments.history import final_training_loss, trimmed
from alignkit.experiments.run_folder import FACTS_FILE, RunFolder, mark_complete, time_before
from alignkit.experiments.settings import LORA_KEYS, lora_fields
from alignkit.experiments.task import ItemScores, load_task
from alignkit.storage import write_json

QUIET = {"report_to": "none", "disable_tqdm": True}
PATHS = ("output_dir", "logging_dir", "run_name", "ref_cache_dir")  # of a config; they say nothing of the training
GIB = 2**30


def measure(folder: RunFolder) -> list[Result] | None:
    """Carry out the run of a folder up to its records; None in a process that is not the first of several."""
    started = time.perf_counter()
    config = folder.config()
    is_run = config["kind"] == "run"
    args = training_arguments(config, folder.trainer)
    is_first = args.process_index == 0
    record = {key: value for key, value in json.loads(args.to_json_string()).items() if key not in PATHS}
    facts = {**origin(args.device), "config": {**record, **lora_fields(_whole_lora(config["lora"]))}}
    if is_first:
        write_json(folder.path / FACTS_FILE, facts)
    checkpoint = next(reversed(folder.checkpoints()), None) if is_run else None
    started -= time_before(checkpoint)
    trainer = build_trainer(config, args, Progress(started, Path(config["cache"]) / "ready"))
    if is_run:
        if is_first:
            _remove_unfinished_checkpoints(folder)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    held_out = held_out_loss(trainer) if is_run else None
    model = model_to_measure(trainer, config, folder, is_first=is_first)
    if model is None:
        return None
    scores = scores_of(model, trainer, config)
    common = {
        **{key: facts[key] for key in ("commit", "versions", "device")},
        **{key: config[key] for key in ("run", "kind", "seed")},
        "decoding": {**config["decoding"], **({"seed": config["seed"]} if _samples(config["decoding"]) else {})},
        "config": facts["config"] if is_run else {},
        "wall_time_s": time.perf_counter() - started,
        "peak_memory_gib": peak_memory_gib(args.device),
        "train_loss": final_training_loss(trainer.state.log_history) if is_run else None,
        "eval_loss": held_out,
        "history": trimmed(trainer.state.log_history) if is_run else None,
    }
    return [Result(**vars(of_set), **common) for of_set in scores]


def training_arguments(config: dict[str, Any], output_dir: Path) -> ScheduledDPOConfig:
    """The training config of a run: what the specification says, on the CPU in float32 where there is no GPU."""
    on_cpu = {} if torch.accelerator.is_available() else {"use_cpu": True, "bf16": False}
    fixed = {
        "output_dir": str(output_dir),
        "seed": config["seed"],
        "run_name": config["run"],
        "ref_cache_dir": str(Path(config["cache"]) / "reference"),
    }
    with warnings.catch_warnings():
        # Of the two names of this switch, only the old one is known to every supported version of transformers.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
        return ScheduledDPOConfig(
            **{**QUIET, **on_cpu, **precomputed(config["training"]), **config["training"], **fixed}
        )


def precomputed(training: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the reference are read from the shared cache, unless the reference moves."""
    moves = training.get("ref") == "ema" or training.get("sync_ref_model", False)
    return {} if moves else {"precompute_ref_log_probs": True}


def load_tokenizer(model: str, training: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with the model.

    Raises:
        ValueError: there is none; names the model.
    """
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=training.get("trust_remote_code", False))
    except OSError as error:
        raise ValueError(
            f"the model {model!r} has no tokenizer that can be loaded ({str(error).splitlines()[0]}); "
            "give a folder, or a name on the hub"
        ) from error


def build_trainer(config: dict[str, Any], args: ScheduledDPOConfig, progress: "Progress") -> ScheduledDPOTrainer:
    """The trainer of a run. A baseline's differs in its data, of which there is one row: it does not train."""
    datasets = load_datasets(Path(config["cache"]))
    train = datasets.pop("train")
    held_out: dict[str, Dataset] | Dataset | None = {
        name.removeprefix("eval/"): dataset for name, dataset in datasets.items()
    }
    if "eval" in datasets:
        held_out = datasets["eval"]
    if config["kind"] == "baseline":
        train = train.select(range(1))
        held_out = train if held_out else None  # where `eval_strategy` asks for a set, there must be one
    set_seed(config["seed"])  # the adapter is drawn before the trainer seeds anything
    return ScheduledDPOTrainer(
        model=config["model"],
        args=args,
        train_dataset=train,
        eval_dataset=held_out or None,
        processing_class=load_tokenizer(config["model"], config["training"]),
        peft_config=None if config["lora"] is None else LoraConfig(**{"task_type": "CAUSAL_LM", **config["lora"]}),
        callbacks=[progress],
    )


class Progress(TrainerCallback):
    """Tells others how far a run is: `ready` when all runs can share its work, a mark in each whole checkpoint.

    The checkpoint of an epoch's last step is saved at the end of the epoch.
    """

    def __init__(self, started: float, ready: Path):
        self.started, self.ready = started, ready
        self.save_is_due = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.ready.touch()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What is logged and evaluated at the end of the epoch comes later, and a run that goes on from a checkpoint of
        # its last step would leave it out.
        if control.should_save and state.epoch is not None and state.epoch == int(state.epoch):
            control.should_save, self.save_is_due = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.save_is_due:
            control.should_save, self.save_is_due = True, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Called after all of the checkpoint is written, whatever trainers and callbacks add to it.
        if state.is_world_process_zero:
            assert args.output_dir is not None
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(checkpoint, time.perf_counter() - self.started)


def _remove_unfinished_checkpoints(folder: RunFolder) -> None:
    whole = folder.checkpoints()
    for path in folder.trainer.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)


def held_out_loss(trainer: ScheduledDPOTrainer) -> float | None:
    """Loss on the held-out set after the training; None without one, or with several, which the history has."""
    if trainer.eval_dataset is None:
        return None
    last = next((row for row in reversed(trainer.state.log_history) if any(k.startswith("eval_") for k in row)), {})
    if last.get("step") != trainer.state.global_step or trainer.args.load_best_model_at_end:
        last = trainer.evaluate()
    return last.get("eval_loss")


def model_to_measure(
    trainer: ScheduledDPOTrainer, config: dict[str, Any], folder: RunFolder, *, is_first: bool
) -> Any:
    """The trained model, whole and in evaluation mode, in the first process; None in the others, which may end."""
    is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    saved = folder.path / "model"
    if is_sharded or config["keep_model"]:
        trainer.save_model(str(saved))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not is_first:
        return None
    if is_sharded:
        settings: Any = trainer.args.model_init_kwargs or {}  # a string only before the config has parsed it
        loaded: Any = AutoModelForCausalLM.from_pretrained(saved, **settings)
        if not config["keep_model"]:
            shutil.rmtree(saved)
        return loaded.to(trainer.args.device).eval()
    # Without the wrapper that mixed precision puts around a model that is trained: a baseline has none.
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()


def scores_of(model: Any, trainer: ScheduledDPOTrainer, config: dict[str, Any]) -> list[ItemScores]:
    """What the task says of the model.

    Raises:
        ValueError: the task gives something else than a list of item sets, or one twice.
    """
    set_seed(config["seed"])
    tokenizer: Any = trainer.processing_class
    with torch.no_grad():
        scores = load_task(config["task"]).evaluate(
            model, tokenizer, decoding=dict(config["decoding"]), seed=config["seed"]
        )
    if not scores or not all(isinstance(of_set, ItemScores) for of_set in scores):
        raise ValueError(f"evaluate of {config['task']} gave {scores!r:.60}; it must be a list of ItemScores")
    names = [(of_set.item_set, of_set.metric) for of_set in scores]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"evaluate of {config['task']} gave {double} twice; give each item set its own name")
    return scores


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that was taken: of the GPU by tensors, else of the process by everything."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _samples(decoding: dict[str, Any]) -> bool:
    return decoding.get("do_sample", False)


def _whole_lora(lora: dict[str, Any] | None) -> dict[str, Any] | None:
    """All fields of a LoRA that hold something, those at their default included."""
    if lora is None:
        return None
    whole = LoraConfig(**{"task_type": "CAUSAL_LM", **lora}).to_dict()
    held = {key: whole[key] for key in LORA_KEYS if key in whole and whole[key] not in (None, {}, [])}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in held.items()}
