"""Which SIGTERM is heeded."""

import os
import signal
import threading
import time

import pytest

from alignkit.reliability.termination import Termination


def test_the_first_signal_is_noted_and_the_old_behaviour_comes_back():
    termination = Termination()
    with termination.heeded():
        assert not termination.is_asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.is_asked and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_users_stays():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        termination = Termination()
        with termination.heeded():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM] and not termination.is_asked
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 in a process with threads
def test_a_process_forked_within_it_ends_at_the_first_signal():
    with Termination().heeded():
        ready, is_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(is_ready, b"1")  # before which Python would forget the signal: it clears those of its parent
            while True:  # and not signal.pause(), before which the signal may arrive
                time.sleep(0.01)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
    os.close(ready)
    os.close(is_ready)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


def test_another_thread_goes_on_without_it():
    failures = []

    def enter():
        try:
            with Termination().heeded():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failures == []
