"""DeepSpeed's ZeRO-2 and ZeRO-3 on two CPU processes train what one process trains, with the package's configurations.

They need `pip install deepspeed ninja` and a C++ compiler: the first start builds a part of DeepSpeed, which takes a
minute and must not be interrupted (a lock that is left in `~/.cache/torch_extensions` stops every later start).
"""

import shutil
from pathlib import Path

import pytest

from alignkit.command_line.launch import config_file
from tests import ranks
from tests.equivalence.comparing import assert_equal, assert_saved
from tests.equivalence.runs import in_one_process, read_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(ranks.SECONDS)]

RUNS = "tests.equivalence.runs"
BOTH = ["reward", "reward_by_name", "reward_new_heads", "reward_lora_by_name", "dpo_without_kl"]
ZERO2 = [*BOTH, "reward_lora", "barrier", "barrier_step", "barrier_lora", "barrier_moving", "dpo", "dpo_lora"]
ZERO3 = [*BOTH, "dpo_lora_without_kl"]
TRAINED = [*(("zero2", case) for case in ZERO2), *(("zero3", case) for case in ZERO3)]
REFUSED = {
    ("zero2", "es"): "FSDP and DeepSpeed shard the model",
    ("zero3", "es"): "FSDP and DeepSpeed shard the model",
    ("zero3", "barrier"): "DeepSpeed ZeRO-3 shows the output head to its own forward only",
    ("zero3", "dpo"): "DeepSpeed ZeRO-3 shows the output head to its own forward only",
    ("zero3", "reward_lora"): "the base model has no name or path",
}


@pytest.fixture(scope="module")
def on_zero(tmp_path_factory):
    """Folder of the runs of each stage; one start for all of a stage."""
    pytest.importorskip("deepspeed")
    if shutil.which("ninja") is None:
        pytest.skip("DeepSpeed needs ninja to build its part")
    folders: dict[str, Path] = {}

    def of(stage: str) -> Path:
        if stage not in folders:
            folders[stage] = tmp_path_factory.mktemp(stage)
            names = [case for of_stage, case in TRAINED if of_stage == stage]
            names += [f"refused_{case}" for of_stage, case in REFUSED if of_stage == stage]
            ranks.launch(folders[stage], [f"{RUNS}:{name}@zero" for name in names], config_file(stage))
        return folders[stage] / RUNS

    return of


@pytest.mark.parametrize(("stage", "case"), TRAINED)
def test_zero_shards_without_changing_losses_weights_or_a_resumed_run(tmp_path, on_zero, stage, case):
    folder = on_zero(stage)
    found, resumed = (read_record(folder / f"{case}@zero{end}.pt") for end in ("", ".resumed"))
    assert found.sharding == resumed.sharding == stage
    assert_equal(found, in_one_process(tmp_path, case))
    assert_saved(folder / f"{case}@zero" / "whole" / "checkpoint-4", found)
    assert_equal(resumed, found)


@pytest.mark.parametrize(("stage", "case"), REFUSED)
def test_what_zero_cannot_shard_is_refused_before_the_first_step(on_zero, stage, case):
    assert (on_zero(stage) / f"refused_{case}@zero.txt").read_text().startswith(REFUSED[stage, case])
