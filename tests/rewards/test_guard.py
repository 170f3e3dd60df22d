"""The deadline of reward functions: real processes that hang, crash, raise, print, and never outlive the training."""

import functools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from alignkit.rewards.guard import GuardedReward, RewardFunctionError
from tests.rewards import guarded_functions

PROMPTS, COMPLETIONS = ["p", "pp", "ppp"], ["a", "bb", "cccc"]
LENGTHS = [1.0, 2.0, 4.0]
NEVER_REACHED_S = 60


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left_behind() -> Iterator[None]:
    """The tests end with the child processes that they began with."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.fixture(scope="module")
def patient() -> Iterator[GuardedReward]:
    """A guard that no test makes fail."""
    guard = GuardedReward(guarded_functions.obedient, NEVER_REACHED_S)
    yield guard
    guard.close()


@pytest.fixture
def strict() -> Iterator[GuardedReward]:
    """A guard with a short deadline."""
    guard = GuardedReward(guarded_functions.obedient, 0.5)
    guard(PROMPTS, COMPLETIONS)
    yield guard
    guard.close()


def order(guard: GuardedReward, words: str, **columns: object) -> list:
    return guard(prompts=["p"], completions=[words], **columns)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still running"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (guarded_functions.length, "length", LENGTHS),
        (functools.partial(guarded_functions.scaled_length, scale=3.0), "scaled_length", [3.0, 6.0, 12.0]),
        (guarded_functions.Weighted(0.5), "Weighted", [0.5, 1.0, 2.0]),
        (guarded_functions.judged_together, "judged_together", LENGTHS),
        (guarded_functions.AsynchronousJudge(), "AsynchronousJudge", LENGTHS),
        (guarded_functions.lazy, "lazy", LENGTHS),
    ],
)
def test_a_guarded_function_returns_what_the_function_returns_under_its_name(
    function: Callable, name: str, expected: list[float]
) -> None:
    guard = GuardedReward(function, NEVER_REACHED_S)
    assert guard.__name__ == name
    for _ in range(2):
        assert guard(prompts=PROMPTS, completions=COMPLETIONS, other_column=[1, 2, 3]) == expected
    assert guard.failed_calls == 0
    guard.close()


def test_prompts_dataset_columns_and_a_reward_of_none_pass_unchanged() -> None:
    guard = GuardedReward(guarded_functions.bonus_column, NEVER_REACHED_S)
    assert guard(PROMPTS, COMPLETIONS, bonus=[0.25, None, -1]) == [1.25, None, 2]
    guard.close()


def test_megabytes_pass_in_both_directions(patient: GuardedReward) -> None:
    completions = ["x" * 3_000_000, *["y"] * 200_000]
    assert patient(completions, completions) == [3e6, *[1.0] * 200_000]


@pytest.mark.parametrize("hang", ["sleep", "hold the interpreter"])
def test_a_hung_call_costs_one_deadline_and_no_later_reward(
    strict: GuardedReward, hang: str, caplog: pytest.LogCaptureFixture
) -> None:
    for failed_calls in (1, 2, 3):
        start = time.monotonic()
        rewards = strict(PROMPTS, [hang, "b", "c"])
        assert 0.5 <= time.monotonic() - start < 5
        assert len(rewards) == 3 and all(math.isnan(reward) for reward in rewards)
        assert strict.failed_calls == failed_calls
        assert "'obedient' took longer than timeout_s=0.5 and was killed; its 3 rows" in caplog.messages[-1]
        assert strict(PROMPTS, COMPLETIONS) == LENGTHS


def test_a_process_that_does_not_even_read_costs_one_deadline_too(strict: GuardedReward) -> None:
    (pid,) = order(strict, "process id")
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    assert math.isnan(order(strict, "x" * 5_000_000)[0])
    assert time.monotonic() - start < 5
    assert strict(PROMPTS, COMPLETIONS) == LENGTHS


def test_an_interrupted_call_does_not_answer_the_next_one(patient: GuardedReward) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        order(patient, "sleep")
    timer.join()
    assert patient(PROMPTS, COMPLETIONS) == LENGTHS


def test_a_generator_that_hangs_before_its_last_reward_is_late_too() -> None:
    guard = GuardedReward(guarded_functions.lazy, 0.3)
    assert all(math.isnan(reward) for reward in guard(PROMPTS, ["a", "b", "hang"]))
    assert guard(PROMPTS, COMPLETIONS) == LENGTHS
    guard.close()


def test_what_a_late_call_started_is_killed_with_it(strict: GuardedReward, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    assert math.isnan(order(strict, "start a child and sleep", note=note)[0])
    wait_until_gone(int(note.read_text()))


@pytest.mark.parametrize(
    ("crash", "how"), [("leave", "exit code 3"), ("segfault", f"signal {signal.SIGSEGV:d}: Segmentation fault")]
)
def test_a_crash_is_reported_in_words_and_only_its_own_rows_fail(
    patient: GuardedReward, crash: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed_calls = patient.failed_calls
    with caplog.at_level(logging.WARNING):
        rewards = patient(PROMPTS, [crash, "b", "c"])
    assert len(rewards) == 3 and all(math.isnan(reward) for reward in rewards)
    assert f"'obedient' ended its process ({how}); its 3 rows count as failed (NaN)" in caplog.text
    assert patient.failed_calls == failed_calls + 1
    assert patient(PROMPTS, COMPLETIONS) == LENGTHS


def test_a_process_that_was_killed_between_two_calls_costs_nothing(patient: GuardedReward) -> None:
    failed_calls = patient.failed_calls
    (pid,) = order(patient, "process id")
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert patient(PROMPTS, COMPLETIONS) == LENGTHS
    assert patient.failed_calls == failed_calls


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("raise", r"(?s)'obedient' failed in its process:.*guarded_functions.*KeyError: 'no such city'"),
        ("exit", "SystemExit: enough"),
        ("return a function", "lambda"),
        ("read", "EOFError"),
    ],
)
def test_an_exception_is_raised_here_with_its_traceback(patient: GuardedReward, words: str, complaint: str) -> None:
    with pytest.raises(RewardFunctionError, match=complaint):
        order(patient, words)
    assert patient(PROMPTS, COMPLETIONS) == LENGTHS


def test_what_the_function_prints_is_not_lost_even_if_it_is_killed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    guard = GuardedReward(guarded_functions.obedient, 0.5)
    assert order(guard, "print") == [5.0]
    assert math.isnan(order(guard, "print and sleep")[0])
    assert capfd.readouterr().out == "a whole line\nhalf a line"
    guard.close()


def test_metrics_and_extra_columns_are_logged_in_the_training_process() -> None:
    metrics, extra = {}, {}
    guard = GuardedReward(guarded_functions.logging_length, NEVER_REACHED_S)
    rewards = guard(
        PROMPTS,
        COMPLETIONS,
        log_metric=lambda name, value: metrics.update({name: value}),
        log_extra=lambda column, values: extra.update({column: values}),
    )
    guard.close()
    assert rewards == LENGTHS
    assert metrics == {"mean_length": pytest.approx(7 / 3)}
    assert extra == {"lengths": LENGTHS}


def test_calls_from_several_threads_get_their_own_rewards(patient: GuardedReward) -> None:
    rewards: dict[int, list] = {}

    def call(size: int) -> None:
        rewards[size] = patient(["p"], ["x" * size])

    threads = [threading.Thread(target=call, args=(size,)) for size in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == {size: [float(size)] for size in range(8)}


def test_the_process_ends_with_close_and_with_the_last_reference() -> None:
    closed, dropped = (GuardedReward(guarded_functions.obedient, NEVER_REACHED_S) for _ in range(2))
    pids = [order(guard, "process id")[0] for guard in (closed, dropped)]
    closed.close()
    closed.close()
    del dropped
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match=r"'obedient' is closed; make a new one"):
        closed(PROMPTS, COMPLETIONS)


def test_a_fork_of_the_training_process_leaves_the_reward_process_alone(patient: GuardedReward) -> None:
    (pid,) = order(patient, "process id")
    child = os.fork()
    if child == 0:
        patient.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert order(patient, "process id") == [pid]


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, 1e9, "5", None, True])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(timeout_s: object) -> None:
    with pytest.raises(ValueError, match=f"timeout_s={timeout_s!r} must be a number of seconds"):
        GuardedReward(guarded_functions.length, timeout_s)


def nested_function() -> Callable:
    def inner(prompts: list, completions: list) -> list:
        return []

    return inner


@pytest.mark.parametrize("function", [lambda prompts, completions: [], nested_function()])
def test_a_lambda_and_a_nested_function_are_refused_in_words(function: Callable) -> None:
    with pytest.raises(TypeError, match=r"cannot be sent to another process .* use a function of a module"):
        GuardedReward(function, 1)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="function is 'accuracy', which cannot be called"):
        GuardedReward("accuracy", 1)


def test_an_argument_that_cannot_be_sent_is_named(patient: GuardedReward) -> None:
    with pytest.raises(TypeError, match="the argument 'judge' of reward function 'obedient' cannot be sent"):
        patient(PROMPTS, COMPLETIONS, judge=[threading.Lock()])


def test_a_function_that_cannot_be_loaded_is_an_error_with_its_traceback() -> None:
    guard = GuardedReward(guarded_functions.Unloadable(), 5)
    for _ in range(2):
        with pytest.raises(
            RewardFunctionError, match=r"(?s)'Unloadable' failed .*RuntimeError: the model file is miss"
        ):
            guard(PROMPTS, COMPLETIONS)
    guard.close()


def test_a_process_that_ends_while_loading_is_an_error_and_not_a_lost_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARDED_FUNCTIONS_LEAVE", "1")
    guard = GuardedReward(guarded_functions.Unloadable(), 5)
    with pytest.raises(RewardFunctionError, match=r"ended before it had loaded the function \(exit code 5\)"):
        guard(PROMPTS, COMPLETIONS)
    guard.close()


SCRIPT = """
import os, sys, time
from alignkit.rewards.guard import GuardedReward

def reward(prompts, completions, **columns):
    if completions == ["hang"]:
        import re
        re.match("(a+)+b", "a" * 60)
    return [os.getpid()]
"""
TRAINING = """
guard = GuardedReward(reward, 60)
print(guard(["p"], ["c"])[0], flush=True)
"""
HANG = """
guard(["p"], ["hang"])
"""


def below_the_main_line(text: str) -> str:
    return 'if __name__ == "__main__":' + text.replace("\n", "\n    ")


def run_script(tmp_path: Path, text: str, how: tuple[str, ...] = ("script.py",)) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, *how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)


@pytest.mark.parametrize("how", [("script.py",), ("-m", "script")])
def test_a_function_of_the_script_is_imported_from_it_and_no_process_outlives_the_script(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    with run_script(tmp_path, SCRIPT + below_the_main_line(TRAINING), how) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert int(output) != process.pid
    wait_until_gone(int(output))


def test_a_script_that_trains_when_it_is_imported_is_told_so(tmp_path: Path) -> None:
    with run_script(tmp_path, SCRIPT + TRAINING) as process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert 'put what the script runs below `if __name__ == "__main__":`' in errors


def test_a_script_that_guards_a_function_of_a_module_needs_no_main_line(tmp_path: Path) -> None:
    text = f"import sys\nprint('run')\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    text += "from alignkit.rewards.guard import GuardedReward\nfrom guarded_functions import length\n"
    with run_script(tmp_path, text + "print(GuardedReward(length, 60)(['p'], ['four']))") as process:
        assert process.communicate(timeout=60) == ("run\n[4.0]\n", "")


def test_a_function_of_a_session_without_a_file_is_refused_in_words() -> None:
    code = "from alignkit.rewards.guard import GuardedReward\ndef f(): pass\nGuardedReward(f, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: reward function 'f' is defined in a session without a file" in done.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_training_ends_a_function_that_holds_the_interpreter(
    tmp_path: Path, ending: signal.Signals
) -> None:
    with run_script(tmp_path, SCRIPT + below_the_main_line(TRAINING + HANG)) as process:
        pid = int(process.stdout.readline())
        time.sleep(0.2)
        assert is_running(pid)
        os.kill(process.pid, ending)
        assert process.wait(timeout=10) == -ending
        wait_until_gone(pid)
