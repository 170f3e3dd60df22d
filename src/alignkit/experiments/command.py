"""`alignkit experiment run SPEC.yaml`, `launch SPEC.yaml` and `status SPEC.yaml`."""

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

INTERRUPTED = 130  # what shells give a process that Ctrl-C ended

EXAMPLE = """\
example of a SPEC.yaml:

  name: tables_beta
  output_dir: runs/tables_beta          # results.jsonl, runs/, cache/
  method: dpo
  task: examples/tables_task.py:task    # or package.module:name
  model: Qwen/Qwen3-0.6B
  training: {num_train_epochs: 1, learning_rate: 5e-5}
  lora: {r: 16, lora_alpha: 32, target_modules: all-linear}
  seeds: [0, 1, 2]
  grid: {beta: [0.02, 0.03, 0.05], num_train_epochs: [1, 2]}
  arms:                                 # beside the grid
    - {beta: 0.02, learning_rate: 2.5e-5}
    - {beta: 0.02, lora.r: 32, lora.lora_alpha: 64}
  decoding: {do_sample: false, max_new_tokens: 32}
  baselines: {decodings: [{do_sample: true, temperature: 0.7}], seeds: [0, 1, 2, 3, 4]}
  processes: 1                          # runs at a time
  keep_models: false

in place of grid and arms:

  search:
    n_trials: 20
    sampler: tpe                        # or random
    storage: sqlite:///study.db         # any that Optuna takes; by default study.db in output_dir
    parameters: {beta: {low: 0.01, high: 0.5, log: true}, lora.r: {choices: [8, 16, 32]}}
    objective: {item_set: tables_held_out, metric: exact_match, direction: maximize}

for `launch`, one of:

  launch: {num_processes: 2, mixed_precision: bf16}          # options of accelerate launch, or config_file
  launch: {executor: slurm, timeout_min: 120, gpus_per_node: 1, slurm_partition: gpu}

`training` takes the fields of ScheduledDPOConfig, `lora` those of peft.LoraConfig (none: full fine-tuning), `decoding`
those of GenerationConfig. Paths count from the current folder. A task is an object with `train_dataset(tokenizer)`,
`eval_dataset(tokenizer)` and `evaluate(model, tokenizer, *, decoding, seed)`: see alignkit.experiments.task.

Given again, the command skips finished runs, resumes interrupted ones and tries failed ones again.
"""


def add_experiment_commands(parser: ArgumentParser) -> None:
    """Declare `run`, `launch` and `status`; each sets `run` to the function that carries it out."""
    commands = parser.add_subparsers(dest="experiment_command", required=True, metavar="COMMAND")
    helps = {
        "run": "carry out all runs that are not finished, each in a plain process of this machine",
        "launch": "the same through `accelerate launch` or a cluster, as `launch` in the file says",
        "status": "say of each run whether it is finished, failed, running, interrupted or still to do",
    }
    for name, text in helps.items():
        command = commands.add_parser(
            name, help=text, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("spec", type=Path, metavar="SPEC.yaml", help="what to run")
        command.set_defaults(run=run_status if name == "status" else run_experiment)


def run_experiment(args: Namespace) -> None:
    """Carry out a specification and say what came of each run.

    Raises:
        ValueError, OSError: as `read_experiment` and `Experiment` say.
        SystemExit: with code 1 if a run failed, 130 if the experiment was interrupted.
    """
    from alignkit.experiments.experiment import Experiment
    from alignkit.experiments.spec import read_experiment

    spec = read_experiment(args.spec)
    experiment = Experiment(spec, launched=args.experiment_command == "launch", say=_say)
    try:
        experiment.carry_out()
    except KeyboardInterrupt:
        _say(f"interrupted. {experiment.summary()}; give the command again to go on")
        raise SystemExit(INTERRUPTED) from None
    _say(experiment.summary())
    if "failed" in experiment.outcome.values():
        raise SystemExit(1)


def _say(line: str) -> None:
    print(line, flush=True)


def run_status(args: Namespace) -> None:
    """Print a line for each run.

    Raises:
        ValueError, OSError: as `read_experiment` says.
    """
    from alignkit.experiments.spec import read_experiment
    from alignkit.experiments.status import states

    for job, state in states(read_experiment(args.spec)):
        settings = "start model" if job.kind == "baseline" else job.settings.flat()
        print(f"{job.run}  {state:<11}  {settings}")
