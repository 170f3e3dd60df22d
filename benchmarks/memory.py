"""Peak memory of a training step: the bytes that torch allocates, and what the process holds."""

import json
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback


class PeakRecorder:
    """Peak of the tensor bytes allocated between `start()` and `stop()` and alive at once.

    On a CPU the profiler writes down every allocation and release of torch's allocator; the running sum of their bytes
    is what is alive of what was allocated since the start. Unlike a count in a dispatch mode it sees what a kernel
    allocates inside, and unlike the resident size of the process it has no noise and forgets nothing that was freed.
    Releases of what was there before the start are not in it. On a GPU the caching allocator counts the same.
    """

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._baseline = torch.cuda.memory_allocated()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def stop(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self._baseline
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        alive = peak = 0
        for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
            alive += event["args"]["Bytes"]
            peak = max(peak, alive)
        return peak


def check_peak_recorder() -> dict[str, int]:
    """Compare the recorder with a case counted by hand, on the device that is measured.

    Raises:
        RuntimeError: they differ, say because a release of torch writes its trace otherwise.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recorder = PeakRecorder()
    before = torch.ones(1 << 20, device=device)
    recorder.start()
    first = torch.full((1 << 20,), 2.0, device=device)  # 4 MiB alive
    second = first.exp()  # 8 MiB
    del first, before  # 4 MiB: what was there before the start does not count
    third = torch.cat([second, second])  # 12 MiB, the peak
    del second, third
    torch.zeros(1 << 21, device=device)  # 8 MiB
    peak, by_hand = recorder.stop(), 12 << 20
    # On a GPU the tensor from before the start is in the baseline, so that its release lowers the rest by 4 MiB.
    by_hand -= (4 << 20) if device == "cuda" else 0
    if peak != by_hand:
        raise RuntimeError(f"the peak of a case counted by hand is {by_hand} bytes, and {peak} was recorded")
    return {"by_hand_bytes": by_hand, "recorded_bytes": peak}


class MicroBatchPeak(TrainerCallback):
    """Peak of tensor bytes during one micro-batch, above all that stays: weights, gradients, optimiser state.

    It looks at the second of two micro-batches of the second step. The optimiser state exists since the first step and
    the gradients since the first micro-batch, so that what is allocated from there on is activations and temporaries
    alone: the baseline is right by construction.

    Attributes:
        peak_bytes (`int`): the peak.
    """

    peak_bytes = -1

    def on_substep_end(self, args, state, control, **kwargs):
        if args.gradient_accumulation_steps != 2:
            raise ValueError(f"gradient_accumulation_steps is {args.gradient_accumulation_steps}; it must be 2 here")
        if state.global_step == 1:
            self._recorder = PeakRecorder()
            self._recorder.start()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.peak_bytes = self._recorder.stop()


class ResidentPeak(TrainerCallback):
    """Peak of the physical memory of this process above what it held when training began, up to the first step's end.

    Unlike [`PeakRecorder`] it sees what libraries allocate beside torch, and pages that an allocator keeps. It has the
    noise of both, and is of use only in a process that has done nothing else. Linux only.

    Attributes:
        peak_bytes (`int`): the peak.
    """

    peak_bytes = -1

    def on_train_begin(self, args, state, control, **kwargs):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far becomes what is resident now
        self._baseline = _process_bytes("VmRSS")

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.peak_bytes = _process_bytes("VmHWM") - self._baseline


def _process_bytes(name: str) -> int:
    """A number of kB that the kernel keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
