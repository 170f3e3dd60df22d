"""A NaN or an infinity stops a run before the optimiser touches the weights; a spike does not."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from alignkit.kl_barrier.trainer import KLBarrierTrainer
from alignkit.reliability import NonFiniteError, check_checkpoint
from alignkit.reward_model.trainer import MultiHeadRewardTrainer
from tests.es_lora.conftest import mean_code
from tests.faults.processes import finish, start, start_ranks
from tests.faults.trainings import make_trainer

WITH_GRADIENTS = ("reward", "barrier", "dpo")
SLOW = pytest.mark.slow
BAD = (math.nan, math.inf)
STEP = 3  # in which things go wrong; the two before it are saved


class InStep(TrainerCallback):
    """Does something at the beginning of the third step, once."""

    def __init__(self, act: Callable[[], Any]):
        self._act = act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == STEP:
            self._act()


def weight_of(model: Any, part: str) -> tuple[str, Tensor]:
    """The first weight of the LoRA, or the first of the head."""
    return next(item for item in model.named_parameters() if part in item[0])


def stopped_in_step(trainer: Any, folder: Path, *named: str, step: int = STEP) -> None:
    """Train: an error that names step and tensor, weights as before it, good checkpoints alone, no NaN in the log."""
    before: dict[str, Tensor] = {}
    weights = dict(trainer.model.named_parameters())
    trainer.add_callback(
        InStep(lambda: before.update({name: weight.detach().clone() for name, weight in weights.items()}))
    )
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    for part in (f"step {step}: ", *named):
        assert part in str(error.value)
    for name, weight in before.items():
        assert torch.equal(weights[name].nan_to_num(7.0), weight.nan_to_num(7.0)), name
    assert bool(before) == (step == STEP)
    saved = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert saved == [f"checkpoint-{number}" for number in range(1, step)]
    for name in saved:
        check_checkpoint(folder / name)
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


# ---- Weights ----


@pytest.mark.parametrize(
    ("method", "part", "bad"),
    [
        ("reward", "head", math.inf),
        ("barrier", "lora_B", math.nan),
        ("es", "head", math.inf),
        ("dpo", "lora_B", math.nan),
        *(pytest.param(method, "lora_B", bad, marks=SLOW) for method in ("reward", "es") for bad in BAD),
        *(pytest.param(method, "head", bad, marks=SLOW) for method in ("barrier", "dpo") for bad in BAD),
    ],
)
def test_a_weight_that_is_not_finite_stops_the_run_in_its_step_by_name(tmp_path, method, part, bad):
    trainer = make_trainer(method, tmp_path)
    head = "score.modules_to_save" if method == "reward" else "lm_head"
    name, weight = weight_of(trainer.model, head if part == "head" else part)

    def spoil() -> None:
        weight.data[0, 0] = bad

    trainer.add_callback(InStep(spoil))
    stopped_in_step(
        trainer, tmp_path, f"the first weight that is not finite is {name} (1 of {weight.numel():,} values)"
    )


@pytest.mark.parametrize("method", ["es", *(pytest.param(method, marks=SLOW) for method in WITH_GRADIENTS)])
def test_a_learning_rate_that_breaks_the_weights_stops_the_run_in_the_next_step(tmp_path, method):
    stopped_in_step(make_trainer(method, tmp_path, learning_rate=1e30), tmp_path, step=2)


def test_weights_that_the_last_step_broke_are_not_saved(tmp_path):
    trainer = make_trainer("dpo", tmp_path, max_steps=1, learning_rate=math.inf)
    with pytest.raises(NonFiniteError, match=r"step 1: before a checkpoint a weight is not finite: .*it is not saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    unsaved = make_trainer("dpo", tmp_path, max_steps=1, learning_rate=math.inf, save_strategy="no")
    with pytest.raises(NonFiniteError, match="step 1: at the end of the training a weight is not finite"):
        unsaved.train()


# ---- Losses, through what a user may override ----


def after_calls(n: int, bad: float, factor: float = 0.0) -> Iterator[float]:
    """What to add to the n + 1st loss, and to no other."""
    yield from [0.0] * n
    yield bad
    while True:
        yield factor


@pytest.mark.parametrize(
    ("micro_batch", "bad"),
    [(0, math.nan), (1, math.inf), *(pytest.param(*pair, marks=SLOW) for pair in ((1, math.nan), (0, math.inf)))],
)
def test_a_loss_of_the_users_own_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, bad, micro_batch):
    added = after_calls(2 * (STEP - 1) + micro_batch, bad)
    original = MultiHeadRewardTrainer.compute_reward_loss

    def compute(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = original(self, *arguments, **keywords)
        return replace(output, loss=output.loss + next(added))

    monkeypatch.setattr(MultiHeadRewardTrainer, "compute_reward_loss", compute)
    stopped_in_step(make_trainer("reward", tmp_path), tmp_path, f"the loss is {bad}")


def test_a_barrier_of_the_users_own_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    added = after_calls(2 * (STEP - 1), math.nan)
    original = KLBarrierTrainer.compute_barrier

    def compute(self: Any, *arguments: Any) -> Any:
        barrier = original(self, *arguments)
        return replace(barrier, value=barrier.value + next(added))

    monkeypatch.setattr(KLBarrierTrainer, "compute_barrier", compute)
    stopped_in_step(make_trainer("barrier", tmp_path), tmp_path, "the loss is nan")


def test_a_beta_of_the_users_own_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make_trainer("dpo", tmp_path, target_kl=None, beta=0.1)
    trainer.compute_beta = lambda margin, column: math.nan if trainer.state.global_step == STEP - 1 else 0.1
    stopped_in_step(trainer, tmp_path, "the loss is nan")


@pytest.mark.parametrize("method", ["dpo", *(pytest.param(method, marks=SLOW) for method in ("reward", "barrier"))])
def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(tmp_path, method):
    trainer = make_trainer(method, tmp_path)
    name, weight = weight_of(trainer.model, "lora_B")

    def spoil() -> None:
        weight.register_hook(lambda gradient: gradient * math.nan)

    trainer.add_callback(InStep(spoil))
    of = f"the first gradient that is not finite is that of {name} ({weight.numel():,} of {weight.numel():,} values)"
    stopped_in_step(trainer, tmp_path, "the loss is finite, every weight is finite", of)


def test_a_gradient_is_looked_at_where_none_is_clipped_too(tmp_path):
    trainer = make_trainer("dpo", tmp_path, max_grad_norm=0.0)
    _, weight = weight_of(trainer.model, "lora_B")
    trainer.add_callback(InStep(lambda: weight.register_hook(lambda gradient: gradient * math.nan)))
    stopped_in_step(trainer, tmp_path, "the loss is finite, every weight is finite")


def test_a_scaler_of_float16_skips_a_step_whose_gradient_overflows_and_the_run_goes_on(tmp_path):
    trainer = make_trainer("dpo", tmp_path, max_steps=STEP + 1, save_strategy="no", max_grad_norm=0.0)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    _, weight = weight_of(trainer.model, "lora_B")
    weight.register_hook(lambda gradient: gradient * math.inf if trainer.state.global_step + 1 == STEP else gradient)
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() == 2.0
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


# ---- Rewards of ES ----


def rewards_in_step(bad: list[float | None]) -> Callable[..., list[float | None]]:
    """A reward function that gives `bad`, over and over, for the completions of the third step."""

    def reward(completions: list[str], trainer_state: Any, **columns: Any) -> list[float | None]:
        if trainer_state.global_step + 1 < STEP:
            return list(mean_code(completions))
        return (bad * len(completions))[: len(completions)]

    return reward


@pytest.mark.parametrize(
    "bad", [math.nan, None, *(pytest.param(value, marks=SLOW) for value in (math.inf, -math.inf))]
)
def test_rewards_of_which_none_is_a_number_stop_the_run(tmp_path, bad):
    trainer = make_trainer("es", tmp_path, reward_funcs=rewards_in_step([bad]))
    stopped_in_step(trainer, tmp_path, "no member has a fitness", "reward")


# ---- The process, and what goes on ----


def train_with_a_bad_weight(method: str, folder: Path) -> None:
    trainer = make_trainer(method, folder)
    weight_of(trainer.model, "lora_B")[1].data[0, 0] = math.nan
    trainer.train()


def test_the_process_ends_with_an_error_code(tmp_path):
    process = start(train_with_a_bad_weight, "reward", tmp_path / "out", output=tmp_path / "output")
    assert finish(process) == 1
    last = (tmp_path / "output").read_text().strip().splitlines()[-1]
    assert last.startswith("alignkit.reliability.not_finite.NonFiniteError: step 1: the loss is nan")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_a_bad_gradient_of_one_of_two_ranks_stops_both(tmp_path, method):
    ranks = start_ranks(2, train_with_a_bad_rank, method, tmp_path / "out", output=tmp_path / "output")
    assert [finish(process) for process in ranks] == [1, 1]
    for rank in (0, 1):
        lines = (tmp_path / f"output-{rank}").read_text().splitlines()
        assert any(f"NonFiniteError: step {STEP}: " in line and f"(on rank {rank})" in line for line in lines)
    for name in ("checkpoint-1", "checkpoint-2"):
        check_checkpoint(tmp_path / "out" / name)
    assert not (tmp_path / "out" / "checkpoint-3").exists()


def train_with_a_bad_rank(method: str, folder: Path) -> None:
    trainer = make_trainer(method, folder)
    _, weight = weight_of(trainer.model, "lora_B")

    def spoil() -> None:
        weight.register_hook(lambda gradient: gradient * math.nan)

    if trainer.args.process_index == 1:
        trainer.add_callback(InStep(spoil))
    trainer.train()


@pytest.mark.parametrize("method", ["barrier", *(pytest.param(method, marks=SLOW) for method in ("reward", "dpo"))])
def test_a_spike_of_the_loss_and_of_a_gradient_lets_the_run_go_on(tmp_path, method):
    trainer = make_trainer(method, tmp_path, max_steps=STEP + 1, save_strategy="no")
    original = trainer.compute_loss
    _, weight = weight_of(trainer.model, "lora_B")
    is_spike = False

    def compute(*arguments: Any, **keywords: Any) -> Tensor:
        return original(*arguments, **keywords) * (1e6 if is_spike else 1.0)

    def begin() -> None:
        nonlocal is_spike
        is_spike = True

    trainer.compute_loss = compute
    weight.register_hook(lambda gradient: gradient.fill_(1e20) if is_spike else gradient)
    trainer.add_callback(InStep(begin))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEP + 1 and abs(losses[STEP - 1]) > 1e4 * abs(losses[0])
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
