"""`alignkit barrier rounds SPEC.yaml` and `alignkit barrier report DIR`."""

import argparse
import logging
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

EXAMPLE = """\
example of a SPEC.yaml:

  model: Qwen/Qwen2.5-0.5B-Instruct
  output_dir: runs/cheerful
  rounds: 8                 # at most
  coherence_floor: 0.5      # stop when the mean mass on allowed answers is below it: see below
  seed: 0
  personas:
    positive: You are cheerful and see the bright side of everything.
    negative: You are gloomy and see the dark side of everything.
  contexts: contexts.txt    # a list of texts, or a file beside this one with one a line
  prompts: prompts.txt
  steering: {layer_band: [0.45, 0.55], strengths: [0.5, 0.75, 1.0], max_new_tokens: 128}
  filters: {perplexity_limit: 50, repetition_limit: 0.3, keep_at_most: 64, min_kept: 30}
  probes:
    coherence:
      prefixes: ["Is the sky blue? Answer {options}.\\nAnswer:"]
      answers: [" yes", " no"]
    trait:
      prefixes: ["How was your day? It was"]
      positive: [" great", " lovely"]
      negative: [" awful", " terrible"]
    sample_prompts: ["Tell me about your week."]
  lora: {r: 32, lora_alpha: 64, target_modules: all-linear}
  training: {ref: previous, tau_nats: 0.5, aggregate: cvar95, learning_rate: 1e-4, num_train_epochs: 6}

`steering` takes the fields of ActivationSteering, `filters` those of FilterSettings, `probes` those of RoundProbes,
`lora` those of peft.LoraConfig that plain LoRA has, `training` those of KLBarrierConfig. A run that was interrupted
goes on when the command is given again.

What mass a coherent model has depends on the probe. Look at that of round 0 before you choose `coherence_floor`: give
--rounds 1, read report.md, set the floor below the mass of the base, and give the command again without --rounds.
A run also stops when its samples repeat themselves as much as `repetition_limit` forbids a completion.
"""


def add_barrier_commands(parser: ArgumentParser) -> None:
    """Declare `rounds` and `report`; each sets `run` to the function that carries it out."""
    commands = parser.add_subparsers(dest="barrier_command", required=True, metavar="COMMAND")
    rounds = commands.add_parser(
        "rounds",
        help="propose, filter, heal and measure, round after round",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rounds.add_argument("spec", type=Path, metavar="SPEC.yaml", help="what to run")
    rounds.add_argument("--output-dir", metavar="DIR", help="in place of output_dir in the file")
    rounds.add_argument("--rounds", type=int, metavar="N", help="in place of rounds in the file")
    rounds.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one; cpu means float32")
    rounds.set_defaults(run=run_rounds_command)
    report = commands.add_parser("report", help="make report.md and the pictures again from results.jsonl")
    report.add_argument("folder", type=Path, metavar="DIR", help="output_dir of a run of rounds")
    report.set_defaults(run=run_report_command)


def run_rounds_command(args: Namespace) -> None:
    """Run the rounds of a specification and print one line per round.

    Raises:
        ValueError, OSError: as `read_spec` and `run_rounds` say.
    """
    import torch

    from alignkit.kl_barrier.rounds.spec import read_spec

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda but torch sees no GPU; leave it out or give cpu")
    on_cpu = args.device == "cpu" or not torch.accelerator.is_available()
    spec = read_spec(args.spec, output_dir=args.output_dir, rounds=args.rounds, on_cpu=on_cpu)

    from transformers import AutoTokenizer

    from alignkit.kl_barrier.rounds.loop import run_rounds

    _show_progress()
    try:
        records = run_rounds(
            spec.model,
            AutoTokenizer.from_pretrained(spec.model),
            output_dir=spec.output_dir,
            training=spec.training,
            peft_config=spec.peft_config,
            proposer=spec.proposer,
            filters=spec.filters,
            probes=spec.probes,
            **spec.options,
        )
    except FloatingPointError as error:
        raise ValueError(f"the training diverged: {error}") from error
    for record in records:
        print(_line(record))
    print(f"stopped: {records[-1]['stop_reason']}")
    print(f"report: {Path(spec.output_dir) / 'report.md'}")


def _show_progress() -> None:
    logger = logging.getLogger("alignkit.kl_barrier.rounds")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))


def _line(record: dict[str, Any]) -> str:
    means = record["means"]
    repetition, perplexity = (
        "none" if means[name] is None else f"{means[name]:.3g}" for name in ("repetition", "perplexity")
    )
    return (
        f"round {record['round']}: trait {means['trait_nats']:+.3f} nats, mass {means['allowed_answer_mass']:.4f}, "
        f"repetition {repetition}, perplexity {perplexity}"
    )


def run_report_command(args: Namespace) -> None:
    """Make the report and the pictures of a folder again.

    Raises:
        ValueError, OSError: as `write_report` says.
    """
    from alignkit.kl_barrier.rounds.report import write_report

    write_report(args.folder)
    print(args.folder / "report.md")
