"""`alignkit plan`: the predicted peak of a training against the one that is counted, for every method.

    python benchmarks/plan.py              # minutes; writes benchmarks/results/<machine>.json
    python benchmarks/plan.py --quick      # does it run? one method, toy shapes

What is predicted is simulated without memory; what is measured is two steps of the real trainer with real weights, as
torch's allocator hands out bytes on a CPU, and as `torch.cuda.max_memory_allocated` says on a GPU.
"""

import os
from dataclasses import replace

# Set before torch and the Hub client are imported, because they read them then.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from typing import Any

import torch
from claims import Claim
from common import run_command
from plan_workloads import CASES, QUICK, Case, measured_bytes

from alignkit.plan.estimate import estimate

TOLERANCE = 0.15


def measure_case(case: Case) -> Claim:
    """How far the predicted peak is from the measured one, as a share of the latter."""
    config, request = case.config(), replace(case.request, is_for_gpu=torch.cuda.is_available())
    predicted = estimate(config, request)
    measured = measured_bytes(config, request)
    return Claim(
        name=f"peak bytes, |predicted / measured - 1|: {case.name}",
        measured_in="bytes",
        values=[abs(predicted.total_bytes / measured - 1)],
        relation="<=",
        target=TOLERANCE,
        limit=None,
        limit_is="none",
        setting=case.setting(),
        raw={"predicted_bytes": predicted.total_bytes, "measured_bytes": measured, "parts": predicted.parts},
        also={"predicted_over_measured": predicted.total_bytes / measured, "peak_is_in": predicted.peak_is_in},
    )


def measure(quick: bool) -> dict[str, Any]:
    """All measurements of this machine."""
    record: dict[str, Any] = {"claims": []}
    for case in QUICK if quick else CASES:
        claim = measure_case(case)
        claim.print()
        record["claims"].append(claim.record())
    return record


if __name__ == "__main__":
    run_command("plan", __doc__, measure)
