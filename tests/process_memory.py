"""This process's peak of memory, as the kernel counts it (`getrusage` inherits its peak from the parent process)."""

from pathlib import Path


def peak_bytes() -> int:
    """Largest resident size since the program began or since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> int:
    """Start counting anew; returns the resident size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
