"""What the folder of a training holds beside the model: config.yaml, environment.txt and log.txt."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.command_line.environment import environment_text
from alignkit.reliability import newest_complete_checkpoint
from alignkit.storage import read_json, write_text

CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE = "config.yaml", "environment.txt", "log.txt"
STATE_FILE = "trainer_state.json"  # of transformers, in each checkpoint
LIBRARIES = ("alignkit", "transformers", "trl", "accelerate", "datasets", "peft")


def describe_run(folder: Path, config: str) -> None:
    """Write down what is run and where, before it is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG_FILE, config)
    write_text(folder / ENVIRONMENT_FILE, environment_text())


def checkpoint_to_resume(args: Any) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names; `true` is the newest complete one of the run.

    Raises:
        ValueError: there is none, or it is the end of the training, from which transformers would take one step more.
    """
    asked = args.resume_from_checkpoint
    if asked is None:
        return None
    checkpoint = str(newest_complete_checkpoint(args.output_dir)) if asked.lower() == "true" else asked
    if not (Path(checkpoint) / STATE_FILE).is_file():
        raise ValueError(f"resume_from_checkpoint is {asked}, which holds no {STATE_FILE}; give a checkpoint")
    state = read_json(Path(checkpoint) / STATE_FILE)
    is_over = (
        state["epoch"] >= args.num_train_epochs if args.max_steps <= 0 else state["global_step"] >= args.max_steps
    )
    if is_over:
        raise ValueError(
            f"{checkpoint} is the end of the training (step {state['global_step']}, epoch {state['epoch']}); raise "
            "max_steps or num_train_epochs to go on"
        )
    return checkpoint


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Within the context, what alignkit and the packages below it log goes to log.txt too, and so does an error."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()  # a logger without a handler shows warnings; with the file it would not
    shown.setLevel(logging.WARNING)
    own = logging.getLogger("alignkit")
    level = own.level
    own.setLevel(logging.INFO)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    handlers = [(logger, handler) for logger in loggers for handler in (file, shown)]
    handlers = [(logger, handler) for logger, handler in handlers if handler is file or not logger.handlers]
    for logger, handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    except BaseException:
        own.info("the command ends here", exc_info=True)
        raise
    finally:
        for logger, handler in handlers:
            logger.removeHandler(handler)
        own.setLevel(level)
        file.close()
