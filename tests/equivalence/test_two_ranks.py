"""Two ranks, started as `accelerate launch` does with the package's configuration, train what one process trains."""

import pytest

from tests.equivalence.comparing import assert_equal, assert_saved
from tests.equivalence.runs import CASES, in_one_process, read_record

ON_RANKS = "tests.equivalence.runs"
METHODS = ["reward", "barrier", "dpo", "es"]
REFUSED = {
    "es": "FSDP and DeepSpeed shard the model; start the ranks without them",
    "reward_lora": "the base model has no name or path",
}
FSDP2_CASES = [case for case in CASES if case not in (*REFUSED, "dpo_without_kl", "dpo_lora_without_kl")]


@pytest.mark.parametrize("run", [case for case in CASES if case.startswith("barrier")])
def test_the_barrier_of_every_run_is_open_in_some_of_its_steps(tmp_path, run):
    assert any(entry["barrier"] > 0 for entry in in_one_process(tmp_path, run).log)


@pytest.mark.parametrize("run", METHODS)
def test_two_ranks_have_the_losses_gradient_norms_and_weights_of_one_process(tmp_path, two_ranks, run):
    found = read_record(two_ranks / ON_RANKS / f"{run}.pt")
    assert found.sharding == ""
    assert_equal(found, in_one_process(tmp_path, run))


@pytest.mark.slow
@pytest.mark.parametrize("run", [f"{case}@fsdp2" for case in FSDP2_CASES])
def test_fsdp2_shards_without_changing_losses_weights_or_a_resumed_run(tmp_path, two_ranks, run):
    folder = two_ranks / ON_RANKS
    found, resumed = (read_record(folder / f"{run}{end}.pt") for end in ("", ".resumed"))
    assert found.sharding == resumed.sharding == "fsdp2"
    assert_equal(found, in_one_process(tmp_path, run))
    assert_saved(folder / run / "whole" / "checkpoint-4", found)
    assert resumed.log == found.log and resumed.metrics == found.metrics
    assert all((resumed.weights[name] == weight).all() for name, weight in found.weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("run", [f"refused_{case}@fsdp2" for case in REFUSED])
def test_what_cannot_be_sharded_is_refused_before_the_first_step(two_ranks, run):
    message = (two_ranks / ON_RANKS / f"{run}.txt").read_text()
    assert message.startswith(REFUSED[run.removeprefix("refused_").removesuffix("@fsdp2")])
