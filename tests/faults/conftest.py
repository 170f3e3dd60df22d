"""What an uninterrupted training of each method ends in, found once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from tests.faults.trainings import log_of, make_trainer, state_of


@dataclass(frozen=True)
class Ended:
    """An uninterrupted training: its folder, with the checkpoints of all 8 steps, and what it ended in."""

    folder: Path
    state: dict[str, Tensor]
    log: list[dict[str, float]]

    def assert_equals(self, trainer: Trainer) -> None:
        """Every tensor bit for bit, and every number that was logged."""
        found = state_of(trainer)
        assert found.keys() == self.state.keys()
        different = [name for name, tensor in self.state.items() if not torch.equal(found[name], tensor)]
        assert not different
        assert log_of(trainer) == self.log


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """The uninterrupted training of a method, of a LoRA or in full."""
    ended: dict[tuple[str, bool], Ended] = {}

    def find(method: str, *, full: bool = False) -> Ended:
        if (method, full) not in ended:
            folder = tmp_path_factory.mktemp("uninterrupted") / method
            trainer = make_trainer(method, folder, full=full)
            trainer.train()
            ended[method, full] = Ended(folder, state_of(trainer), log_of(trainer))
            assert len(ended[method, full].log) == 8
        return ended[method, full]

    return find
