"""This process's peak of memory, as the kernel counts it (`getrusage` inherits its peak from the parent process)."""

from collections.abc import Callable
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident size since the program began or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> int:
    """Start counting anew; returns the resident size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def allocated_peak_bytes(run: Callable[[], object]) -> int:
    """The largest sum of torch's live CPU allocations during `run`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
