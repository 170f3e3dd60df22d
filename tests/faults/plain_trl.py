"""What TRL's own trainers do under the faults that alignkit makes promises about, measured in real processes.

    python -m tests.faults.plain_trl benchmarks/results/plain_trl_faults.json

Tiny models, LoRA, 8 steps, a checkpoint after each. It prints a table and writes what was measured as JSON, with the
versions. The same faults are put to alignkit's trainers by the tests beside this file.
"""

import argparse
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import load_file

from alignkit.provenance import git_commit, package_versions
from alignkit.storage import read_json, write_json
from tests.faults.four_bit import BETWEEN_EVALUATIONS, NF4, give_same_weights, gradients_of, saved_and_loaded
from tests.faults.pickles import write_touching_pickle
from tests.faults.plain_trainings import BEGUN, METHODS, OUTCOME, WEIGHTS, make_plain_trainer, model_of, rows_of, train
from tests.faults.processes import finish, start

KILLS = 8
FLIPS = 4
DAMAGED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
Measured = dict[str, Any]


class Runs:
    """Trainings of one of TRL's trainers in processes of their own, below one folder."""

    def __init__(self, method: str, folder: Path):
        self.method, self.folder, self._number = method, folder, 0
        self.whole = self.new()
        code, said = self.run(self.whole)
        if code != 0:
            raise RuntimeError(f"the training without a fault failed: {said}")

    def new(self) -> Path:
        self._number += 1
        return self.folder / f"run-{self._number}"

    def begin(self, output: Path, **settings: Any) -> Any:
        return start(train, self.method, output, output=output.with_suffix(".log"), **settings)

    def run(self, output: Path, **settings: Any) -> tuple[int, str]:
        """Exit code of a training, and the last line that it printed."""
        output.with_suffix(".log").unlink(missing_ok=True)
        code = finish(self.begin(output, **settings), timeout_s=120)
        return code, last_line(output.with_suffix(".log")).replace(str(self.folder), "")

    def stopped(self, step: int = 4) -> Path:
        """A run of which nothing is left but its checkpoint of a step."""
        output = self.new()
        shutil.copytree(self.whole / f"checkpoint-{step}", output / f"checkpoint-{step}")
        return output

    def outcome_of(self, output: Path) -> Measured:
        return read_json(output / OUTCOME)

    def equals_whole(self, output: Path) -> bool:
        expected, found = load_file(self.whole / WEIGHTS), load_file(output / WEIGHTS)
        return all(torch.equal(found[name], expected[name]) for name in expected)

    def resumed(self, output: Path) -> str:
        """How a resumed run ended: `exact`, `another run`, or its error."""
        code, said = self.run(output, resume=True)
        if code != 0:
            return said
        return "exact" if self.equals_whole(output) else "another run"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


def counted(outcomes: list[str]) -> dict[str, int]:
    kinds = [outcome if outcome in ("exact", "another run") else "error" for outcome in outcomes]
    return {kind: kinds.count(kind) for kind in ("exact", "another run", "error")}


# ---- Checkpoints ----


def kills_during_a_save(runs: Runs) -> Measured:
    """SIGKILL at a random moment of a save, and another start with `resume_from_checkpoint=True`.

    How long a save takes is seen at the first one of the same process.
    """
    draw, outcomes, saves_s = random.Random(0), [], []
    for _ in range(KILLS):
        output, step, share = runs.new(), draw.randint(2, 6), draw.random()
        process = runs.begin(output)
        wait_for(output / "checkpoint-1", process)
        begun_s = time.monotonic()
        wait_for(output / "checkpoint-1" / "trainer_state.json", process)  # the last file of a save
        saves_s.append(time.monotonic() - begun_s)
        wait_for(output / f"checkpoint-{step}", process)
        time.sleep(share * saves_s[-1])
        process.kill()
        finish(process)
        outcomes.append(runs.resumed(output))
    errors = [outcome for outcome in outcomes if outcome not in ("exact", "another run")]
    return {"kills": KILLS, "save_s": round(median(saves_s), 4), **counted(outcomes), "errors": errors}


def wait_for(path: Path, process: Any) -> None:
    while not path.exists():
        if process.exitcode is not None:
            raise RuntimeError(f"the process ended with {process.exitcode} before {path} was there")
        time.sleep(0.0005)


def a_missing_file(runs: Runs) -> Measured:
    found = {}
    for name in DAMAGED:
        output = runs.stopped()
        (output / "checkpoint-4" / name).unlink()
        found[name] = runs.resumed(output)
        if name == "optimizer.pt":
            found["learning rate of step 5, then and without the fault"] = [
                runs.outcome_of(folder)["learning_rates"][4] for folder in (output, runs.whole)
            ]
    return found


def a_flipped_byte(runs: Runs) -> Measured:
    draw, found = random.Random(1), {}
    for name in DAMAGED:
        outcomes = []
        for _ in range(FLIPS):
            output = runs.stopped()
            path = output / "checkpoint-4" / name
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            outcomes.append(runs.resumed(output))
            shutil.rmtree(output)
        found[name] = counted(outcomes)
    return found


def a_full_disk(runs: Runs) -> Measured:
    """No file may be larger than 4,000 bytes, which the config files are not, and the adapter is."""
    output = runs.new()
    shutil.copytree(runs.whole / "checkpoint-2", output / "checkpoint-2")
    code, said = runs.run(output, resume=str(output / "checkpoint-2"), largest_file=4000)
    left = {path.name: sorted(file.name for file in path.iterdir()) for path in sorted(output.glob("checkpoint-*"))}
    return {"exit_code": code, "said": said, "left": left, "then_resumed": runs.resumed(output)}


def a_file_in_place_of_the_folder(runs: Runs) -> Measured:
    output = runs.new()
    output.write_text("")
    code, said = runs.run(output, save_steps=4)
    return {"exit_code": code, "said": said}


def a_pickle_that_runs_code(runs: Runs) -> Measured:
    found = {}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        output = runs.stopped()
        marker = output / "touched"
        write_touching_pickle(output / "checkpoint-4" / name, marker)
        resumed = runs.resumed(output)
        found[name] = {"code_ran": marker.exists(), "resumed": resumed}
    return found


# ---- The process ----


def a_sigterm(runs: Runs) -> Measured:
    """After the first step of a run that saves at its end alone, as TRL's defaults do for the first 500 steps."""
    output = runs.new()
    process = runs.begin(output, save_steps=500, max_steps=4000)
    wait_for(output / BEGUN, process)
    process.terminate()
    code = finish(process)
    return {"exit_code": code, "signal": signal.Signals(-code).name, "checkpoints": len(list(output.glob("check*")))}


# ---- NaN ----


def a_nan(runs: Runs) -> Measured:
    found = {}
    for fault, settings in {"one NaN weight": {"nan_in": "lora_A"}, "lr=1e30": {"learning_rate": 1e30}}.items():
        output = runs.new()
        code, said = runs.run(output, **settings)
        if code == 0:
            outcome = runs.outcome_of(output)
            saved = [load_file(path / "adapter_model.safetensors") for path in output.glob("checkpoint-*")]
            with_nan = sum(any(weight.isnan().any() for weight in weights.values()) for weights in saved)
            kept = {name: outcome[name] for name in ("losses", "tensors", "tensors_with_nan")}
            found[fault] = {"exit_code": code, **kept, "checkpoints_with_nan": with_nan}
        else:
            found[fault] = {"exit_code": code, "said": said}
    return found


def four_bits(runs: Runs) -> Measured:
    """Relative error of the gradient against that of the dequantised weights, before and after an evaluation."""
    if not has_avx512bf16():
        return {"not measured": "this CPU has no AVX512-BF16"}
    folder = runs.new()
    settings = {"eval_dataset": rows_of(runs.method), "lora": {"lora_dropout": 0.0}, **BETWEEN_EVALUATIONS}
    model = model_of(runs.method, hidden_size=64)
    quantised = saved_and_loaded(model, folder / "model", quantization_config=NF4)
    trainer = make_plain_trainer(runs.method, folder / "4 bits", model=quantised, **settings)
    whole = make_plain_trainer(runs.method, folder / "float32", model=model, **settings)
    give_same_weights(trainer.model, whole.model)
    found, expected = gradients_of(trainer), gradients_of(whole)
    errors = [relative_error(found[step], gradients) for step, gradients in expected.items()]
    return {"before_an_evaluation": errors[0], "after_one": errors[1], "after_two": errors[2]}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    joined = [torch.cat([gradients[name].flatten() for name in sorted(expected)]) for gradients in (found, expected)]
    return float(f"{(joined[0] - joined[1]).norm() / joined[1].norm():.2g}")


# ---- Rows ----


def bad_rows(runs: Runs) -> Measured:
    rows = rows_of(runs.method).to_list()
    column = "completion" if runs.method == "SFTTrainer" else "rejected"
    without = [{name: value for name, value in row.items() if name != column} for row in rows]
    faults = {
        "None in a row": [*rows[:3], {**rows[3], column: None}, *rows[4:]],
        "no rows": [],
        "a column is missing": without,
        "an empty text": [*rows[:3], {**rows[3], column: ""}, *rows[4:]],
    }
    if runs.method != "SFTTrainer":
        faults["chosen is rejected"] = [*rows[:3], {**rows[3], "rejected": rows[3]["chosen"]}, *rows[4:]]
    found = {}
    for fault, given in faults.items():
        code, said = runs.run(runs.new(), rows=given)
        found[fault] = {"exit_code": code, "said": said if code else "trained without a word"}
    return found


FAULTS: dict[str, Callable[[Runs], Measured]] = {
    "SIGKILL during a save": kills_during_a_save,
    "a missing file": a_missing_file,
    "a flipped byte": a_flipped_byte,
    "a full disk": a_full_disk,
    "a file in place of the output folder": a_file_in_place_of_the_folder,
    "a pickle that runs code": a_pickle_that_runs_code,
    "SIGTERM": a_sigterm,
    "NaN": a_nan,
    "4 bits": four_bits,
    "bad rows": bad_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="the rest stays as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = {"commit": git_commit(), "versions": package_versions()}
    measured: Measured = read_json(options.output)["faults"] if options.output.exists() else {}
    for method in METHODS:
        with TemporaryDirectory() as folder:
            runs = Runs(method, Path(folder))
            for fault in options.faults:
                measured.setdefault(fault, {})[method] = FAULTS[fault](runs)
                write_json(options.output, {**origin, "faults": measured})
                print(f"{method}: {fault}: measured", flush=True)
    print(f"\n| fault | {' | '.join(METHODS)} |\n|{'---|' * (1 + len(METHODS))}")
    for fault, found in measured.items():
        print(f"| {fault} | {' | '.join(in_words(found[method]) for method in METHODS)} |")


def in_words(found: Any) -> str:
    if isinstance(found, dict):
        return "; ".join(f"{name}: {in_words(value)}" for name, value in found.items())
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found).replace("|", "/")


if __name__ == "__main__":
    main()
