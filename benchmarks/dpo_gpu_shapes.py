"""DPO in the shape of Qwen3-1.7B with random weights and the low-memory preset: step time, peak memory, operations."""

import gc
import statistics
import tempfile
from dataclasses import replace
from typing import Any

import torch
from common import require_equal
from dpo_shapes import TATQA, TOY, TOY_ROWS, Lengths, Shape
from dpo_workloads import SIDES, Counted, Side, new_trainer, random_model
from memory import PeakRecorder
from timing import ratios, rounds, train_interleaved
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOTrainer

from alignkit.dpo.low_memory import low_memory_lora, low_memory_quantization, low_memory_settings

QWEN3_1_7B = Shape(
    "Qwen 3",
    151_936,
    hidden_size=2048,
    layers=28,
    intermediate_size=6144,
    heads=16,
    kv_heads=8,
    head_dim=128,
    dtype=torch.bfloat16,
)
# bfloat16 rounds at 2^-9, and the sides add up in another order.
TOLERANCE = 2e-2


class StepPeak(TrainerCallback):
    """Peak of tensor bytes during the second optimiser step, above all that was there when it began.

    Attributes:
        peak_bytes (`int`): the peak.
    """

    peak_bytes = -1

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self._recorder = PeakRecorder()
            self._recorder.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.peak_bytes = self._recorder.stop()


def measure_shapes(turns: int, *, small: bool) -> dict[str, Any]:
    """One entry for each shape; `small` replaces them by a toy, on any device.

    Raises:
        RuntimeError: loss or gradient differ by more than bfloat16 explains.
    """
    if small:
        return {"toy": _measure(replace(TOY, dtype=torch.bfloat16), TOY_ROWS, turns)}
    return {"Qwen3-1.7B": _measure(QWEN3_1_7B, replace(TATQA, pairs=1, batches=32), turns)}


def _measure(shape: Shape, lengths: Lengths, turns: int) -> dict[str, Any]:
    folder = tempfile.mkdtemp(dir=".")
    random_model(shape).save_pretrained(folder)
    rows, sides = lengths.rows(), SIDES[:2]
    counted = {side: Counted(_trainer(side, folder, rows, lengths, moves=False), 1) for side in sides}
    theirs, ours = counted.values()
    differences = {
        "loss": require_equal("loss with the preset", ours.loss, theirs.loss, TOLERANCE),
        "gradient": require_equal("gradient with the preset", ours.gradient, theirs.gradient, TOLERANCE),
    }
    peaks = {side: _peak(_trainer(side, folder, rows, lengths)) for side in sides}
    gc.collect()
    times = train_interleaved({side: _trainer(side, folder, rows, lengths) for side in sides}, turns)
    wall = {side: rounds(times[side].wall_s, 1) for side in sides}
    return {
        "setting": shape.setting()
        | lengths.setting()
        | {"preset": "low_memory", "lora_rank": low_memory_lora().r, "gradient_accumulation_steps": len(rows)},
        "relative_differences": differences,
        "time_of_a_step_trl_over_alignkit": ratios(wall["TRL"], wall["alignkit"]),
        "limit": theirs.flops / ours.flops,
        "peak_bytes_of_a_step": peaks,
        "median_step_s": {side: statistics.median(wall[side]) for side in sides},
        "flops_of_a_step": {side: counted[side].flops for side in sides},
        "raw_step_s": wall,
    }


def _trainer(side: Side, folder: str, rows: Any, lengths: Lengths, *, moves: bool = True) -> DPOTrainer:
    """A trainer with the preset's settings and LoRA.

    Args:
        side: TRL's has no limit for prompts, so the rows are cut already.
        folder: of the model, which is loaded in 4 bits.
        rows: as many as a step has.
        lengths: theirs.
        moves: False: no dropout and a learning rate of 0, so that both sides compute the same.
    """
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=low_memory_quantization(),
        dtype=torch.bfloat16,
        device_map={"": 0} if cuda else "cpu",
    )
    settings = low_memory_settings() | {
        "gradient_accumulation_steps": len(rows),
        "learning_rate": 5e-5 if moves else 0.0,
        "disable_dropout": not moves,
    }
    del settings["per_device_train_batch_size"]
    if not cuda:  # whose pages need CUDA
        del settings["optim"]
    if side == "TRL":
        del settings["max_prompt_length"]
    lora = low_memory_lora()
    lora.init_lora_weights = False
    return new_trainer(side, model, rows, pairs=lengths.pairs, lora=lora, **settings)


def _peak(trainer: DPOTrainer) -> int:
    peak = StepPeak()
    trainer.add_callback(peak)
    trainer.args.max_steps = 2
    trainer.train()
    return peak.peak_bytes
