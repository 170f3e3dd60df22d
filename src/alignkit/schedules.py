"""Values that change over training, as a function of the share of it that is done."""

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "cosine", "warmup"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def value_at(kind: Schedule, start: float, end: float, progress: float, *, warmup_share: float = 0.1) -> float:
    r"""Value of a schedule at a point of training.

        "constant":  start
        "linear":    (1 - u) start + u end,  u = progress
        "cosine":    the same,               u = (1 - cos(π progress)) / 2
        "warmup":    start · min(1, progress / warmup_share): from 0 up to start, then start

    Linear and cosine are exactly start at 0, exactly end at 1, and nowhere outside of the two. Source of the cosine:
    Loshchilov and Hutter (2017), eq. 5, with one period.

    Args:
        kind (`str`): see above.
        start (`float`): first value; of a warm-up the value it reaches.
        end (`float`): last value; constant and warm-up do not read it.
        progress (`float`): share of the training that is done, 0 to 1.
        warmup_share (`float`): share of the training that the warm-up takes, 0 to 1; only `"warmup"` reads it.

    Raises:
        ValueError: an unknown kind, or a progress or warm-up share outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it is the share of training that is done, from 0 to 1")
    if kind == "constant":
        return start
    if kind == "warmup":
        if not 0 <= warmup_share <= 1:
            raise ValueError(f"warmup_share is {warmup_share}; it is a share of the training, from 0 to 1")
        return start if progress >= warmup_share else start * (progress / warmup_share)
    if kind == "linear":
        share = progress
    elif kind == "cosine":
        share = (1 - math.cos(math.pi * progress)) / 2
    else:
        raise ValueError(f"schedule is {kind!r}; choose one of {', '.join(map(repr, SCHEDULES))}")
    # Rounding would carry it beyond the ends: with both at 49 to 49.00000000000001.
    return min(max((1 - share) * start + share * end, min(start, end)), max(start, end))
