from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# Of alignkit's own lines: per micro-batch with the fetching of its batch, and in the rest of an optimiser step, where
# the look at loss and gradients is the only one. docs/scale.md says what each is for.
MOST = {
    "MultiHeadRewardTrainer": 2,
    "KLBarrierTrainer": 2.5,
    "ScheduledDPOTrainer": 1,
    "ESLoRATrainer": 6,
}


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MOST)
def test_alignkits_own_lines_wait_for_the_device_no_more_often_than_stated(
    benchmark_modules, tmp_path, monkeypatch, name
):
    from dpo_workloads import head_at_completions
    from host_syncs import HostSyncs
    from profile_workloads import MICRO_BATCHES, sides

    monkeypatch.chdir(tmp_path)
    [new_trainer] = [new for (_, side), new in sides(quick=True).items() if side == name]
    with head_at_completions():
        syncs = HostSyncs(new_trainer())
        syncs.train()
    ours = [sync for sync in syncs.of_package("alignkit") if sync.phase != "log"]
    in_micro_batches = [sync for sync in ours if sync.phase in ("fetch", "micro_batch")]
    assert len(in_micro_batches) <= MOST[name] * MICRO_BATCHES, in_micro_batches
    rest = [sync for sync in ours if sync not in in_micro_batches]
    assert [sync.line.split()[1] for sync in rest] == ["_agree_to_go_on"]


@pytest.fixture
def counted(benchmark_modules):
    """Counts the syncs of a function of a tensor `(4,)` on the device, by kind."""
    from host_syncs import HostSyncs

    def count(function):
        trainer = SimpleNamespace(
            args=SimpleNamespace(gradient_accumulation_steps=1), state=SimpleNamespace(global_step=1)
        )
        syncs = HostSyncs(trainer)
        x = syncs.put(torch.arange(4.0))
        with syncs.watching():
            function(x)
        return [sync.kind for sync in syncs.syncs]

    return count


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 1).any()),
        lambda x: x.tolist(),
        lambda x: x[1:].cpu(),
        lambda x: (2 * x).to("cpu"),
        lambda x: torch.equal(x, x),
    ],
)
def test_a_number_or_a_tensor_that_comes_to_the_host_is_a_read(counted, function):
    assert counted(function) == ["read"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_a_shape_that_depends_on_values_is_waited_for(counted, function):
    assert counted(function) == ["shape"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x[[0, 2]],
        lambda x: x.__setitem__(x.long(), 1.0),
    ],
)
def test_a_copy_to_the_device_that_does_not_say_non_blocking_is_an_upload(counted, function):
    assert counted(function) == ["upload"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.new_full((1,), 3),
        lambda x: torch.zeros(3, device=x.device).index_fill_(0, x.long()[:2], True),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: x.where(x > 1, 0.0) + x.masked_fill(x > 1, 2.0),
        lambda x: x[x.long()] + x.index_select(0, x.long()),
        lambda x: x.cpu,
        lambda x: torch.arange(3).tolist() and torch.ones(2).sum().item(),
    ],
)
def test_what_stays_on_the_device_or_on_the_host_is_not_counted(counted, function):
    assert counted(function) == []


def test_what_was_read_is_on_the_host_from_then_on(counted):
    assert counted(lambda x: (x.cpu() + 1).sum().item()) == ["read"]


def test_a_backward_pass_is_followed(counted):
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            gradient.sum().item()
            return torch.zeros(4, device=gradient.device) + gradient.new_tensor([1.0])

    assert counted(lambda x: Waits.apply(x.requires_grad_()).sum().backward()) == ["read", "upload"]
