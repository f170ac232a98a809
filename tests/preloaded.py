"""Python processes that begin with their packages loaded, which saves each command the seconds that torch or vLLM take.

A server imports the packages once. For each command it forks a process, which gets the caller's standard streams,
environment and folder. Callers start `[*python, "-c", code, …]` as they would `[sys.executable, "-c", code, …]`. What
they start is a small process that hands over its streams, passes on SIGINT and SIGTERM, and ends as the forked one
does; if it is killed, the forked one is.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import NoReturn

LARGEST_MESSAGE_BYTES = 1 << 20


@contextlib.contextmanager
def preloaded(*modules: str, **environment: str) -> Iterator[list[str]]:
    """The words that start Python with these modules loaded, in place of `sys.executable`."""
    with tempfile.TemporaryDirectory(prefix="arwkv-") as folder:
        address = f"{folder}/socket"
        words = [sys.executable, __file__, "serve", address, *modules]
        path = os.pathsep.join(filter(None, sys.path))
        server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, **environment}
        )
        assert server.stdin is not None
        assert server.stdout is not None
        with server.stdout, server.stdin:  # closed, it ends the server
            assert server.stdout.readline() == b"listening\n"
            yield [sys.executable, "-I", "-S", __file__, "ask", address]
        server.wait(timeout=60)


def serve(address: str, modules: list[str]) -> list[str]:
    """Fork for each caller. Returns in each forked process, with the caller's words after its `python`."""
    for module in modules:
        __import__(module)
    gc.freeze()  # no collection looks at them again
    atexit.register(gc.unfreeze)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        print("listening", flush=True)
        while True:
            if sys.stdin in select.select([listening, sys.stdin], [], [])[0]:
                sys.exit()  # whoever started this is gone
            caller, _ = listening.accept()
            if os.fork() == 0:
                break
            caller.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(caller, LARGEST_MESSAGE_BYTES, 3)
    pid = os.fork()
    if pid:
        _follow(pid, caller)
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    asked = json.loads(message)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    words: list[str] = asked["words"]
    return words


def _follow(pid: int, caller: socket.socket) -> NoReturn:
    """Tell the caller how the process ends; kill it if the caller goes away."""
    caller.send(str(pid).encode())
    ends = os.pidfd_open(pid)
    if ends not in select.select([ends, caller], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        caller.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def ask(address: str, words: list[str]) -> int:
    """Have `words` run by the server; the exit code, or minus the signal that ended the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        pid = int(server.recv(64))
        for number in signals:
            signal.signal(number, lambda received, _: os.kill(pid, received))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        for stream in (0, 1, 2):
            os.close(stream)  # whoever reads learns of the end from the forked process alone
        return int(server.recv(64))


def run(words: list[str]) -> None:
    """Do what `python` does with these words."""
    kind, *rest = words
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _, role, address, *words = sys.argv
    if role == "ask":
        code = ask(address, words)
        if code < 0:
            with contextlib.suppress(OSError):  # SIGKILL cannot be set
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
    run(serve(address, words))
