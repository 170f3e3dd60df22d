"""A reward that hangs on some completions, in a module that a fresh process imports at once."""

import time
from typing import Any


def hangs_on_a_blank(completions: list[str], **columns: Any) -> list[float]:
    if any(text.startswith(" ") for text in completions):
        time.sleep(60)
    return [float(len(set(text))) for text in completions]


def hangs_once(
    completions: list[str], log_metric: Any, trainer_state: Any, flag: list[str], **columns: Any
) -> list[float]:
    """Hangs in its second call, whichever process makes it; the column `flag` names a file that counts them."""
    with open(flag[0], "a+") as file:
        file.write(".")
        file.seek(0)
        calls = len(file.read())
    if calls == 2:
        time.sleep(60)
    log_metric("step", float(trainer_state.global_step))
    return [float(len(set(text))) for text in completions]
