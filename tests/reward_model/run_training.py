"""A small training run in a process of its own, for the tests of resuming and of several ranks."""

import argparse
import json
from pathlib import Path

import torch
from datasets import IterableDataset
from safetensors.torch import save_file

from alignkit import MultiHeadRewardConfig, MultiHeadRewardTrainer
from alignkit.tasks.toy import STYLES, byte_tokenizer, corpus_membership, preference_pairs, tiny_sequence_classifier
from tests.callbacks import KeepGradients, WaitAfter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", choices=["pairs", "tiers"], default="pairs")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--regularizer")
    parser.add_argument("--optim", default="adamw_torch")
    parser.add_argument("--wait-after", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.data == "pairs":
        heads, train, evaluation, negatives = ["tidy", "short"], preference_pairs(48), preference_pairs(13, seed=1), {}
    else:
        heads = list(STYLES)
        train, tiers, evaluation, held_out = corpus_membership(n_per_style=12)
        evaluation = evaluation.select(range(11))
        negatives = {"negatives": tiers, "eval_negatives": held_out}
    args = MultiHeadRewardConfig(
        str(options.output),
        head_names=heads,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        activation_checkpointing=False,
        max_grad_norm=0.0,
        learning_rate=1e-3,
        optim=options.optim,
        regularizer=options.regularizer,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=3,
        max_steps=8,
        save_steps=4,
        logging_steps=1,
    )
    gradients = KeepGradients()
    callbacks = [
        gradients,
        *([WaitAfter(options.wait_after, options.output / "waiting")] if options.wait_after else []),
    ]
    trainer = MultiHeadRewardTrainer(
        tiny_sequence_classifier(heads, seed=1),
        args,
        train_dataset=train,
        eval_dataset={"whole": evaluation, "streamed": IterableDataset.from_generator(evaluation.__iter__)},
        processing_class=byte_tokenizer(),
        callbacks=callbacks,
        **negatives,
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    metrics = trainer.evaluate()
    trainer.save_model(str(options.output / "final"))
    if trainer.is_world_process_zero():
        record = {
            "processes": trainer.accelerator.num_processes,
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "metrics": {name: value for name, value in metrics.items() if "second" not in name and "time" not in name},
        }
        save_file(gradients.by_step(), options.output / "gradients.safetensors")
        (options.output / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
