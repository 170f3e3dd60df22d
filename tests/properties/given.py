"""`given` of hypothesis with the settings of these tests, which no other test of the suite sees.

The examples are the same in every run and are kept nowhere. `ALIGNKIT_EXAMPLES=1000` asks for more of them.
"""

import os
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("ALIGNKIT_EXAMPLES", "25"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,  # of one example, which a busy machine breaks
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def given(*arguments: Any, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test over `EXAMPLES` draws of the strategies."""
    return lambda test: SETTINGS(hypothesis.given(*arguments, **strategies)(test))
