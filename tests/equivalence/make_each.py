"""Make a trainer of each method, and print what it says of the number of processes: `make_each.py FOLDER`."""

import sys
from pathlib import Path

from tests.equivalence.trainings import METHODS, make_trainer

for method in METHODS:
    try:
        make_trainer(method, Path(sys.argv[1]) / method)
    except ValueError as error:
        sys.stdout.write(f"{method}: {error}\n")
