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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for `data_dir`, so that `-m data` selects exactly them."""
    for item in items:
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
