"""Conciseness: answer a question in as many characters as its shortest correct answer has.

Two training questions show within minutes whether a method moves a model at all, and whether it exploits a reward:
what is judged is a length alone.

How this differs from the published experiment on such questions:

1. The length is that of the completion. Decoding prompt and completion together makes the empty answer the best one.
2. An empty answer can be given the worst reward (`worst_reward`). The length alone puts it close to the best.
3. The questions are our own.
"""

import math
from collections.abc import Sequence
from typing import Any

from alignkit.rewards.completions import check_columns, completion_text

_INSTRUCTION = "Answer with as few characters as you can."

_TRAINING_ITEMS = (
    ("How many wheels does a bicycle have?", "2"),
    ("Is ice colder than steam?", "Yes"),
)
_TEST_ITEMS = (
    ("How many hours are there in a day?", "24"),
    ("What is the chemical symbol of gold?", "Au"),
    ("Which letter follows K in the English alphabet?", "L"),
    ("What is 15 times 4?", "60"),
    ("What do bees make from nectar?", "Honey"),
    ("Of which country is Nairobi the capital?", "Kenya"),
    ("What is the opposite of wet?", "Dry"),
    ("Which ocean lies between Portugal and Canada?", "Atlantic"),
)


def conciseness_splits() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The 2 training and the 8 test rows, with `prompt` and `answer`, the shortest correct answer.

    The prompt is complete for a base model to go on from, and fit to be the content of a chat message.
    """
    train, test = (
        [{"prompt": f"{_INSTRUCTION}\nQuestion: {question}\nAnswer:", "answer": answer} for question, answer in items]
        for items in (_TRAINING_ITEMS, _TEST_ITEMS)
    )
    return train, test


class ConcisenessReward:
    """Reward function: minus the difference in length between a completion and the shortest correct answer.

        reward = -|len(completion) - len(answer)|                            in characters (code points)
        reward = max(that, worst_reward), and worst_reward for a blank one   if `worst_reward` is given

    Whether the answer is right is not judged.

    Args:
        worst_reward (`float`, *optional*): the reward of a completion that is empty or white space, and a bound from
            below for all others, so that none is worse; a number below 0, for example -1000.

    Raises:
        ValueError: a `worst_reward` that is not below 0 or not finite.
    """

    def __init__(self, worst_reward: float | None = None):
        if worst_reward is not None and not -math.inf < worst_reward < 0:
            raise ValueError(f"worst_reward={worst_reward} must be a finite number below 0")
        self.worst_reward = worst_reward

    def __call__(self, prompts: Any, completions: Any, answer: Sequence[str], **columns: Any) -> list[float]:
        """One reward per completion, in TRL's signature. The prompts and further columns are not read.

        Args:
            completions (list of `str`, or of lists of messages): what the model wrote, without the prompt.
            answer (list of `str`): column of the rows.

        Raises:
            TypeError: a completion or an answer that is no text.
            ValueError: a column with another number of values than there are completions.
        """
        check_columns(completions, answer=answer)
        pairs = zip(map(completion_text, completions), answer, strict=True)
        return [self._reward(text, shortest) for text, shortest in pairs]

    def _reward(self, text: str, shortest: str) -> float:
        if not isinstance(shortest, str):
            raise TypeError(f"answer holds {shortest!r}, a {type(shortest).__name__}; give the answer as a string")
        reward = float(-abs(len(text) - len(shortest)))
        if self.worst_reward is None:
            return reward
        return max(reward, self.worst_reward) if text.strip() else float(self.worst_reward)
