"""`alignkit reward`, `barrier`, `es` and `dpo`: train, evaluate, save. Run as a module by `accelerate launch`."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from alignkit.command_line.one_line import BAD_INPUT
from alignkit.quiet import ignore_old_names, switch_bars_off
from alignkit.versions import check_versions


def run_training(name: str, arguments: Sequence[str]) -> None:
    """Carry out a training command, here or through `accelerate launch`.

    Args:
        name: `reward`, `barrier`, `es` or `dpo`.
        arguments: what follows it on the command line.

    Raises:
        ValueError, OSError: bad input, in words.
        SystemExit: after --help, after a flag that the parser refuses, and with the exit code of `accelerate launch`.
    """
    parsed = parse(name, arguments)
    if parsed.run.dry_run:
        sys.stdout.write(parsed.to_yaml())
        return
    run = parsed.run
    if run.accelerate_config is not None:
        from alignkit.command_line.launch import launch, launch_command

        launch(launch_command(name, arguments, run.accelerate_config, run.num_processes))
        return
    if run.num_processes is not None:
        raise ValueError(f"num_processes is {run.num_processes} without accelerate_config, which says how; add it")
    train_here(name, parsed)


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The arguments of a training command, checked as far as nothing has to be loaded."""
    check_versions()  # before the configs of TRL are imported
    from alignkit.command_line.methods import parser_of

    ignore_old_names()
    parsed = parser_of(name).parse(arguments)
    if parsed.model.model_name_or_path is None:
        raise ValueError(f"model_name_or_path is missing; give it here or in a --config file: alignkit {name} --help")
    return parsed


def train_here(name: str, parsed: Any) -> None:
    """Train in this process, which may be one of several, evaluate where there is a test set, and save.

    Raises:
        ValueError, OSError: bad input, in words.
    """
    from rich.console import Console
    from transformers import PrinterCallback, ProgressCallback, set_seed

    from alignkit.command_line.data import train_and_test
    from alignkit.command_line.methods import build_trainer
    from alignkit.command_line.progress import ShowProgress, plain, show_metrics
    from alignkit.command_line.run_folder import checkpoint_to_resume, describe_run, logged

    args, console = parsed.training, Console()
    folder, is_first = Path(args.output_dir), args.process_index == 0
    if not console.is_terminal:
        switch_bars_off()
    train, test = train_and_test(parsed.data)
    checkpoint = checkpoint_to_resume(args)
    set_seed(args.seed)  # the adapter is drawn before the trainer seeds anything
    is_new = not folder.exists()
    try:
        trainer = build_trainer(name, parsed, train, test)
    except (OSError, ValueError):
        if is_new and is_first and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # which the Trainer makes before all is checked
        raise
    if is_first:
        describe_run(folder, parsed.to_yaml())
    with logged(folder) if is_first else nullcontext():
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        progress = ShowProgress(console, bar=not args.disable_tqdm)
        trainer.add_callback(progress)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except FloatingPointError as error:
            raise ValueError(f"the training diverged: {error}") from error
        finally:
            progress.stop()
        metrics = trainer.evaluate() if test is not None else {}
        if metrics:
            trainer.save_metrics("eval", metrics)
        trainer.save_model()
        trainer.save_state()
        trainer.create_model_card()
    if is_first:
        show_metrics(console, metrics)
        plain(console, f"model, card, config.yaml, environment.txt and log.txt are in {folder}")
    trainer.end()


def main(arguments: Sequence[str]) -> int:
    """One process of several: the command and its arguments, of which those of the launch are done with."""
    name, *rest = arguments
    try:
        train_here(name, parse(name, rest))
    except (OSError, ValueError) as error:
        print(f"alignkit {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
