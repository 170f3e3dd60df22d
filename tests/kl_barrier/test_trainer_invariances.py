"""The barrier's gradient does not depend on how an optimiser step is split."""

import pytest
import torch

from tests.callbacks import KeepGradients
from tests.tiny_models import lively_lm


def assert_equal_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-6 of the largest entry, which is what float32 can tell where large terms cancel."""
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6 * max(1.0, largest))


@pytest.fixture
def one_step(make_trainer):
    """Gradients and log of one optimiser step on the same sixteen rows against another model, gate partly open."""

    def run(batch_size: int, *, accepts_loss_kwargs: bool = True, **settings):
        keep = KeepGradients()
        trainer = make_trainer(
            model=lively_lm(1),
            ref_model=lively_lm(2),
            callbacks=[keep],
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=16 // batch_size,
            max_steps=1,
            barrier_weight=2.0,
            **settings,
        )
        trainer.model_accepts_loss_kwargs = accepts_loss_kwargs
        trainer.train()
        return keep.last, next(entry for entry in trainer.state.log_history if "loss" in entry)

    return run


def middle_tau(one_step, aggregate: str) -> float:
    """A threshold between the divergences of the sequences."""
    _, log = one_step(16, aggregate=aggregate, tau_nats=0.0)
    return log["kl/divergence"]


@pytest.mark.parametrize("scope", ["sequence", "step"])
def test_models_without_a_token_count_have_the_same_barrier(one_step, scope):
    # Their NLL is a mean of micro-batch means, so that only the part of the barrier can be compared.
    tau_nats = middle_tau(one_step, "rmse") * (1.0 if scope == "sequence" else 0.5)
    settings = {"aggregate": "rmse", "aggregate_scope": scope}
    parts = []
    for accepts in (True, False):
        opened, _ = one_step(4, accepts_loss_kwargs=accepts, tau_nats=tau_nats, **settings)
        shut, _ = one_step(4, accepts_loss_kwargs=accepts, tau_nats=1e6, **settings)
        parts.append({name: opened[name] - shut[name] for name in opened})
    assert_equal_gradients(parts[1], parts[0])


@pytest.mark.parametrize("scope", ["micro_batch", "rank_global"])
def test_scopes_of_one_micro_batch_average_over_equal_splits(one_step, scope):
    whole, _ = one_step(16, aggregate_scope=scope, tau_nats=0.0)
    pooled, _ = one_step(16, aggregate_scope="step", tau_nats=0.0)
    assert_equal_gradients(whole, pooled)
    _, split_log = one_step(4, aggregate_scope=scope, tau_nats=0.0)
    assert split_log["barrier"] == pytest.approx(2.0 * split_log["kl/divergence"], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*(flash|Packing|packing|attention).*")
@pytest.mark.parametrize("aggregate", ["rmse", "cvar95"])
def test_a_packed_document_is_a_sequence(one_step, aggregate):
    tau_nats = middle_tau(one_step, aggregate)
    padded, log = one_step(16, aggregate=aggregate, tau_nats=tau_nats)
    free, free_log = one_step(16, aggregate=aggregate, tau_nats=tau_nats, padding_free=True, max_length=None)
    assert_equal_gradients(free, padded)
    for name in ("kl/divergence", "kl/gate_open", "barrier"):
        assert free_log[name] == pytest.approx(log[name], rel=1e-5)
