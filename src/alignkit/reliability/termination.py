"""SIGTERM, which a cluster sends some time before it takes a machine away: the run saves a checkpoint and ends.

How this differs from transformers' `enable_jit_checkpoint`: the checkpoint is saved when the step is over, not between
its gradient and its update, so that the run goes on from it exactly; all ranks agree on the step; and the exit code
says that the training is not finished.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Termination:
    """Whether the process was asked to end.

    Attributes:
        is_asked (`bool`): it was.
    """

    def __init__(self) -> None:
        self.is_asked = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the context the first SIGTERM is noted; a second one ends the process.

        Nothing changes for a process that has a handler of its own, nor outside of the main thread, where Python
        allows none.
        """
        is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if not is_free or threading.current_thread() is not threading.main_thread():
            yield
            return
        owner = os.getpid()

        def note(signal_number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if os.getpid() == owner:
                self.is_asked = True
            else:  # a worker that was forked within the context
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
