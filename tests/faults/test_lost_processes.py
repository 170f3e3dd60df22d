"""Two processes were asked for and one came: no trainer of ours, and so no example, trains alone and says nothing."""

import re
from pathlib import Path

import pytest
from datasets import Dataset

from tests.contract.test_process_count import launcher_environment
from tests.faults.rows import GOOD, four, make

__all__ = ["launcher_environment"]

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = (
    "KLBarrierTrainer",
    "ScheduledDPOTrainer",
    "MultiHeadRewardTrainer",
    "ESLoRATrainer",
    "reward_model.quickstart",
)


@pytest.mark.parametrize("method", GOOD)
def test_a_trainer_that_was_to_be_one_of_two_refuses_to_train_alone(launcher_environment, tmp_path, method):
    rows = Dataset.from_dict(four(method))
    launcher_environment(1)
    make(method, tmp_path, rows)
    launcher_environment(2)
    with pytest.raises(
        ValueError, match=r"several CPU processes were asked for but this one trains alone; start them"
    ):
        make(method, tmp_path, rows)


def test_every_example_that_says_it_can_be_launched_trains_with_one_of_them():
    launched = [path for path in EXAMPLES.glob("*.py") if "or accelerate launch" in path.read_text()[:2000]]
    assert len(launched) >= 8
    for path in launched:
        assert re.search("|".join(map(re.escape, OURS)), path.read_text()), path.name
