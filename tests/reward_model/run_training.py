"""A small training run in a process of its own, for the tests of resuming, or on one of several ranks."""

import argparse
import json
from pathlib import Path

import torch
from datasets import IterableDataset
from safetensors.torch import save_file

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.tasks.toy import STYLES, byte_tokenizer, corpus_membership, preference_pairs, tiny_sequence_classifier
from tests.callbacks import KeepGradients, WaitAfter


def train(
    output: Path,
    data: str,
    *,
    batch_size: int = 4,
    regularizer: str | None = None,
    optim: str = "adamw_torch",
    wait_after: int = 0,
    resume: bool = False,
) -> None:
    """Eight steps with a checkpoint after four, all gradients kept, an evaluation, and the model saved in `final`."""
    if data == "pairs":
        heads, negatives = ["tidy", "short"], {}
        train_rows, evaluation = preference_pairs(48), preference_pairs(13, seed=1)
    else:
        heads = list(STYLES)
        train_rows, tiers, evaluation, held_out = corpus_membership(n_per_style=12)
        evaluation = evaluation.select(range(11))
        negatives = {"negatives": tiers, "eval_negatives": held_out}
    args = MultiHeadRewardConfig(
        str(output),
        head_names=heads,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        max_grad_norm=0.0,
        learning_rate=1e-3,
        optim=optim,
        regularizer=regularizer,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=3,
        max_steps=8,
        save_steps=4,
        logging_steps=1,
    )
    gradients = KeepGradients()
    trainer = MultiHeadRewardTrainer(
        tiny_sequence_classifier(heads, seed=1),
        args,
        train_dataset=train_rows,
        eval_dataset={"whole": evaluation, "streamed": IterableDataset.from_generator(evaluation.__iter__)},
        processing_class=byte_tokenizer(),
        callbacks=[gradients, *([WaitAfter(wait_after, output / "waiting")] if wait_after else [])],
        **negatives,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    metrics = trainer.evaluate()
    trainer.save_model(str(output / "final"))
    if trainer.is_world_process_zero():
        record = {
            "processes": trainer.accelerator.num_processes,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: value for name, value in metrics.items() if "second" not in name and "time" not in name},
        }
        save_file(gradients.by_step(), output / "gradients.safetensors")
        (output / "record.json").write_text(json.dumps(record))


def train_on_ranks(output: Path, run: str, batch_size: int) -> None:
    """The run `pairs` or `tiers` with a fixed global batch; plain SGD leaves rounding as small as it is."""
    train(output / run, run, batch_size=batch_size, regularizer="center" if run == "tiers" else None, optim="sgd")


def on_ranks(output: Path, run: str) -> None:
    """One of two ranks, each with half of the batch of `train_on_ranks(..., batch_size=8)`."""
    train_on_ranks(output, run, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", choices=["pairs", "tiers"], default="pairs")
    parser.add_argument("--wait-after", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.output, options.data, wait_after=options.wait_after, resume=options.resume)


if __name__ == "__main__":
    main()
