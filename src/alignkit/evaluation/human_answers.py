"""Answers that an evaluation recorded, for people to rate."""

from collections.abc import Sequence
from pathlib import Path

from alignkit.evaluation.suites.prompts import as_text
from alignkit.storage import read_lines

FIELDS = ("run", "suite", "item", "prompt", "completion")


def answers_of(
    path: Path, suite: str, runs: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Answers by run and item, and prompts by item, of one suite in `answers.jsonl`.

    Args:
        runs: whose; None for all.

    Raises:
        ValueError: a row that is no answer, a run without answers in the suite, one that answered an item twice (the
            suite was run with two settings), or runs that were asked something else under the same item.
        OSError: a file that cannot be read.
    """
    answers: dict[str, dict[str, str]] = {run: {} for run in runs or ()}
    prompts: dict[str, str] = {}
    for number, row in enumerate(read_lines(path), 1):
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise ValueError(f"{path}, line {number} has no {missing[0]!r}; give answers.jsonl of `alignkit evaluate`")
        wrong = [name for name in FIELDS if name != "prompt" and not isinstance(row[name], str)]
        if wrong:
            raise ValueError(f"{path}, line {number}: {wrong[0]} is {row[wrong[0]]!r:.60}; it must be a text")
        run, item = row["run"], row["item"]
        if row["suite"] != suite or (runs is not None and run not in runs):
            continue
        try:
            prompt = as_text(row["prompt"]).removesuffix("\n\nAssistant:")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: the prompt is no text and no messages with role and content ({error!r})"
            ) from error
        if prompts.setdefault(item, prompt) != prompt:
            raise ValueError(f"{path}, line {number}: {run} was asked something else than others as {item!r}")
        if item in answers.setdefault(run, {}):
            raise ValueError(
                f"{path}, line {number}: {run} answers {item!r} a second time; keep one evaluation of each"
            )
        answers[run][item] = row["completion"]
    empty = [run for run, of_run in answers.items() if not of_run]
    if empty or not answers:
        raise ValueError(f"{path} has no answers of {empty[0] if empty else 'anyone'} in {suite!r}; name what it has")
    return answers, prompts
