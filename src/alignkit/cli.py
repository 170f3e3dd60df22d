"""The command line: `alignkit COMMAND`.

Heavy packages are imported inside the commands.
"""

import argparse
import sys
from collections.abc import Sequence

from alignkit._version import __version__
from alignkit.command_line.one_line import BAD_INPUT, OneLineParser, unknown_word
from alignkit.command_line.training import run_training
from alignkit.evaluation.ratings_command import add_ratings_commands
from alignkit.evaluation.report_command import add_report_arguments, run_report
from alignkit.evaluation.suites.command import add_evaluate_arguments, run_evaluate
from alignkit.experiments.command import add_experiment_commands
from alignkit.kl_barrier.rounds.command import add_barrier_commands
from alignkit.plan.command import add_plan_arguments, run_plan
from alignkit.quiet import ignore_missing_kernels
from alignkit.reward_model.probe_command import add_probe_arguments, run_probe
from alignkit.stages.command import add_stages_commands
from alignkit.stages.demo import add_demo_arguments, run_demo
from alignkit.versions import UntestedVersionError

TRAINING = {
    "reward": "train a multi-head reward model",
    "barrier": "fine-tune under a KL barrier; `barrier rounds` and `barrier report`: rounds of self-training",
    "es": "train a LoRA by evolution strategies, with any reward",
    "dpo": "train on preferences, with a beta that may change",
}
COMMANDS = {
    "probe": ("score every head of a reward model at every token of a text", add_probe_arguments, run_probe),
    "evaluate": ("measure a model: one result for each suite and metric", add_evaluate_arguments, run_evaluate),
    "report": ("what results show: Markdown, and one HTML file", add_report_arguments, run_report),
    "plan": ("memory and time of a training before it runs", add_plan_arguments, run_plan),
    "demo": ("all of it in a few minutes, on a model made here", add_demo_arguments, run_demo),
}
GROUPS = {
    "ratings": ("blind sheets for human raters, and their agreement", add_ratings_commands),
    "experiment": ("many trainings with their settings, each in a process", add_experiment_commands),
    "stages": ("from fine-tuning to evaluation, stage by stage, resumable", add_stages_commands),
}
INTERRUPTED = 130  # as shells have it
BESIDE_TRAINING = {"barrier": ("rounds", "report")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is 0 or, with one line on standard error, 2 for bad input and 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else ""
    beside = BESIDE_TRAINING.get(command, ())
    ignore_missing_kernels()
    try:
        if beside and given[1:2] and given[1] not in beside and not given[1].startswith("-"):
            raise ValueError(unknown_word(given[1], beside, "command"))
        if command in TRAINING and given[1:2] not in [[name] for name in beside]:
            run_training(command, given[1:])
        else:
            args = build_parser().parse_args(given)
            args.run(args)
    except (OSError, ValueError, UntestedVersionError) as error:
        # Everywhere in alignkit these say what was wrong, which value, and what to do. Others are bugs: traceback.
        return _refuse(command, error)
    except ImportError as error:
        if "alignkit[" not in str(error):  # the extra to install
            raise
        return _refuse(command, error)
    except KeyboardInterrupt:
        print(f"alignkit {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _refuse(command: str, error: Exception) -> int:
    print(f"alignkit {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


class CommandParser(OneLineParser):
    """The parser of the commands, which answers an unknown one with the nearest."""

    def parse_known_args(self, args=None, namespace=None):
        for action in self._actions if args else ():
            if isinstance(action, argparse._SubParsersAction) and args[0][:1] != "-" and args[0] not in action.choices:
                self.error(unknown_word(args[0], action.choices, "command"))
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run` to the function that carries it out."""
    parser = CommandParser(prog="alignkit", description="Align language models beyond what TRL has.")
    parser.add_argument("--version", action="version", version=f"alignkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of_training = {name: commands.add_parser(name, help=text) for name, text in TRAINING.items()}
    add_barrier_commands(of_training["barrier"])
    for name, (text, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        add_arguments(command)
        command.set_defaults(run=run)
    for name, (text, add_commands) in GROUPS.items():
        add_commands(commands.add_parser(name, help=text))
    environment = commands.add_parser("env", help="print what a bug report needs: versions, devices, extras")
    environment.set_defaults(run=run_env)
    return parser


def run_env(args: argparse.Namespace) -> None:
    """Print what a bug report needs to say of the machine and its packages."""
    from alignkit.command_line.environment import print_environment

    print_environment()


if __name__ == "__main__":
    sys.exit(main())
