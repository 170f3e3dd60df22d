"""Runs on several ranks, one after another in the same processes: `run_on_ranks.py FOLDER MODULE:RUN ...`.

A module has `on_ranks(output, run)`, which trains and leaves in `output` what its tests compare. See `tests/ranks.py`.
"""

import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate import PartialState


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        module, run = name.split(":")
        output = Path(sys.argv[1]) / module
        output.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(f"{name}\n")
        import_module(module).on_ranks(output, run)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
