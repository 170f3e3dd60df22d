"""What every test shares: one thread, no network, and the folder of real data."""

import os

# Set before torch, transformers and datasets are imported, because they read them at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# A shell that starts the tests in the background has SIGINT ignored, by every process that they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that tests start import the tests' helpers too.
ROOT = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

from tests import ranks  # noqa: E402  # once the environment is set


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for `data_dir`, so that `-m data` selects exactly them; give two ranks time to start."""
    for item in items:
        if ranks.on_ranks(item):
            item.add_marker(pytest.mark.timeout(ranks.SECONDS))
        if isinstance(item, pytest.Function) and "data_dir" in item.fixturenames:
            item.add_marker("data")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that ALIGNKIT_DATA names; without it the test is skipped."""
    folder = os.environ.get("ALIGNKIT_DATA", "")
    if not folder:
        pytest.skip("ALIGNKIT_DATA is not set: set it to the folder of real data to run this test")
    if not Path(folder).is_dir():
        pytest.fail(f"ALIGNKIT_DATA names {folder!r}, which is not a folder: correct it or unset it")
    return Path(folder)


@pytest.fixture(scope="session")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the selected runs on two ranks have left their results, each module in its own."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "two_ranks"
    folder.mkdir(exist_ok=True)
    ranks.launch_once(folder, ranks.asked_for(request.session.items))
    return folder
