"""A sweep over β in which the reference's log-probabilities are computed before training, by each side in its way."""

import tempfile
import time
from typing import Any

import torch
from claims import Claim
from common import require_equal
from dpo_shapes import Shape, Workload
from dpo_workloads import SIDES, ReferenceForwards, Side, new_trainer, random_model
from flops import flop_counter
from trl import DPOTrainer

TARGETS: dict[Side, float] = {"alignkit, unshared": 1.2, "alignkit": 2.2}


class Sweep:
    """One side's runs, one after the other.

    Attributes:
        cpu_s, losses (`list[float]`): of each run; a run is the making of its trainer, tokenising included, and its
            training.
        reference_forwards (`list[int]`): of each run.
    """

    def __init__(self, side: Side, shape: Shape, work: Workload):
        self.side, self.shape, self.work = side, shape, work
        self.rows = work.sweep.rows()
        self.settings: dict[str, Any] = {"precompute_ref_log_probs": True}
        if side != "TRL":
            self.settings["ref_cache_dir"] = tempfile.mkdtemp(dir=".")
        self.cpu_s: list[float] = []
        self.losses: list[float] = []
        self.reference_forwards: list[int] = []

    def run(self, beta: float) -> None:
        """Train an epoch with this β and take its numbers."""
        model = random_model(self.shape)
        forwards = ReferenceForwards(model)
        start = time.process_time()
        trainer = self._trainer(model, beta)
        self.losses.append(trainer.train().training_loss)
        self.cpu_s.append(time.process_time() - start)
        self.reference_forwards.append(forwards.n)

    def flops(self) -> int:
        """Floating-point operations of the whole sweep, from two more runs: a first one and another."""
        counts = []
        again = Sweep(self.side, self.shape, self.work)  # with an empty folder
        for beta in (0.7, 0.8):  # not among those of the sweep, whose log-probabilities TRL would find again
            with flop_counter() as counter:
                again.run(beta)
            counts.append(counter.get_total_flops())
        return counts[0] + (len(self.work.betas) - 1) * counts[1]

    def _trainer(self, model: Any, beta: float) -> DPOTrainer:
        return new_trainer(
            self.side, model, self.rows, pairs=self.work.sweep.pairs, beta=beta, num_train_epochs=1, **self.settings
        )


def measure_sweep(work: Workload) -> list[Claim]:
    """Time of all runs, TRL's over ours, without and with shared prompts.

    Raises:
        RuntimeError: losses differ, or ours ran the reference more often than ceil(rows / batch) in the whole sweep.
    """
    shape = work.backbones[0]
    sweeps = {side: Sweep(side, shape, work) for side in SIDES}
    for beta in work.betas:
        for sweep in sweeps.values():
            sweep.run(beta)
    theirs = sweeps["TRL"]
    for side in TARGETS:
        require_equal(f"losses of the sweep, {side}", *(torch.tensor(sweeps[name].losses) for name in (side, "TRL")))
        _require_forwards(sweeps[side], work.sweep.batches)
    flops = {side: sweep.flops() for side, sweep in sweeps.items()}
    return [
        Claim(
            name=f"time of {len(work.betas)} runs over beta, both with precomputed log-probabilities, TRL / {side}",
            measured_in="CPU time",
            values=[sum(theirs.cpu_s) / sum(sweeps[side].cpu_s)],
            relation=">=",
            target=target,
            limit=flops["TRL"] / flops[side],
            limit_is="floating-point operations of all runs; TRL computes the reference again for every beta",
            setting=shape.setting()
            | work.sweep.setting()
            | {"betas": work.betas, "steps_per_run": work.sweep.batches},
            raw={name: {"cpu_s": sweeps[name].cpu_s} for name in ("TRL", side)},
            also={"reference_forwards": {name: sweeps[name].reference_forwards for name in ("TRL", side)}},
        )
        for side, target in TARGETS.items()
    ]


def _require_forwards(sweep: Sweep, batches: int) -> None:
    if sum(sweep.reference_forwards) != batches:
        raise RuntimeError(f"{sweep.side}: {sweep.reference_forwards} reference forwards; {batches} are enough")
