"""A finished run of two rounds, made once, for the tests that read or damage one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kl_barrier.rounds.run_loop import run_tiny


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: `a_copy` gives one to change."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    run_tiny(folder)
    return folder


@pytest.fixture
def a_copy(finished_run: Path, tmp_path: Path) -> Callable[[], Path]:
    def copy() -> Path:
        return Path(shutil.copytree(finished_run, tmp_path / "copy"))

    return copy
