"""Training under FSDP2 (gloo) and under DDP: equal losses and gradients.

Run by torchrun on two ranks, with a folder and the names of cases.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from alignkit import KLBarrierConfig, KLBarrierTrainer
from alignkit.tasks.toy import byte_tokenizer
from tests.callbacks import KeepGradients
from tests.kl_barrier.conftest import QUIET, prompts_and_completions
from tests.kl_barrier.run_training import FSDP, LORA
from tests.tiny_models import lively_lm

# torch.distributed.checkpoint does not load an optimiser without a state, such as plain SGD.
SAVED = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "kept_copy": {"precompute_ref": "hidden"},
    "moving_copy": {"ref": "ema", "ema_decay": 0.5, **SAVED},
    "moving_adapter": {"peft_config": LORA, "ref": "ema", "ema_decay": 0.5, **SAVED},
}
SAME = ("loss", "nll", "kl/divergence", "kl/max", "barrier", "entropy", "mean_token_accuracy", "grad_norm")


def train(
    folder: str, case: dict[str, Any], resume: str | None = None, **settings: Any
) -> tuple[dict, list[dict], dict]:
    """Gradients and log of three steps, and the metrics of an evaluation."""
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        **settings,
        **case,
    }
    lora, keep = options.pop("peft_config", None), KeepGradients()
    args = KLBarrierConfig(folder, **{**QUIET, **options}, tau_nats=0.0, aggregate="rmse", barrier_weight=2.0)
    if args.fsdp:
        # accelerate turns FSDP on for GPUs alone, though it works between processes on the CPU as well.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    trainer = KLBarrierTrainer(
        lively_lm(1),
        args,
        train_dataset=prompts_and_completions(16),
        eval_dataset=prompts_and_completions(7, seed=1),
        processing_class=byte_tokenizer(),
        peft_config=None if lora is None else LoraConfig(**lora),
        callbacks=[keep],
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.is_fsdp_enabled == bool(args.fsdp)
    if args.fsdp:
        assert any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    return keep.by_step(), [entry for entry in trainer.state.log_history if "loss" in entry], trainer.evaluate()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, gradient in expected.items():
        bound = 1e-6 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=bound)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        case = CASES[name]
        expected, log, metrics = train(str(folder / f"whole_{name}"), case)
        found, sharded_log, sharded_metrics = train(str(folder / f"sharded_{name}"), case, **FSDP)
        assert_equal(found, expected)
        for ours, theirs in zip(sharded_log, log, strict=True):
            for metric in SAME:
                assert abs(ours[metric] - theirs[metric]) < 1e-5 * max(1, theirs[metric]), (name, metric)
        for metric in ("eval_nll", "eval_kl/divergence", "eval_forward_kl/max"):
            assert abs(sharded_metrics[metric] - metrics[metric]) < 1e-5, (name, metric)
        assert metrics["eval_kl/divergence"] > 0
        if "save_steps" in case:  # the third step again, from the checkpoint of the second
            checkpoint = str(folder / f"sharded_{name}" / "checkpoint-2")
            resumed, _, _ = train(str(folder / f"resumed_{name}"), case, resume=checkpoint, **FSDP)
            assert_equal(resumed, {key: value for key, value in found.items() if key.startswith("2.")})
        PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
