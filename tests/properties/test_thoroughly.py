"""The properties over a thousand examples each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("test_*_properties.py"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_property_holds_for_a_thousand_examples(file):
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=3000", "--show-capture=no", str(file)],
        env={**os.environ, "ALIGNKIT_EXAMPLES": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-4000:]
