"""The trainer under FSDP2 (gloo), compared with the same rows on the whole model. Run by torchrun on two ranks."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.tasks.toy import byte_tokenizer
from tests.kl_barrier.conftest import QUIET, lively_lm, prompts_and_completions

FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
CASES: dict[str, dict[str, Any]] = {
    "a copy of a fully trained model": {},
    "the base of an adapter": {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)},
}


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if (gradient := parameter.grad) is not None:
                full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()
                self.gradients[f"{state.global_step}.{name}"] = full


def train(folder: str, case: dict[str, Any], batch_size: int, **settings: Any):
    case, keep = dict(case), KeepGradients()
    torch.manual_seed(0)
    trainer = KLBarrierTrainer(
        lively_lm(1),
        KLBarrierConfig(
            str(Path(folder) / "out"),
            **{**QUIET, "per_device_train_batch_size": batch_size, "max_steps": 2, "optim": "sgd", **settings},
            tau_nats=0.0,
            aggregate="rmse",
            learning_rate=0.1,
        ),
        train_dataset=prompts_and_completions(16),
        eval_dataset=prompts_and_completions(7, seed=1),
        peft_config=case.pop("peft_config", None),
        processing_class=byte_tokenizer(),
        callbacks=[keep],
        **case,
    )
    trainer.train()
    return trainer, keep.gradients, [entry for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    torch.set_num_threads(1)
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            sharded, found, log = train(folder, case, batch_size=4, **FSDP)
            print(name, log[-1], list(found)[:3])
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
