"""A pool of processes with environment variables of their own, of which none outlives the process that started it.

It differs from ``concurrent.futures.ProcessPoolExecutor`` in two ways: a process that dies costs one call and not the
pool, and a process ends when its driver does, even by SIGKILL, since it then loses the connection to it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from retrieval_bench.progress import replace_unknown_signs

GRACE = 60
"""Seconds that a process has to end when it is stopped."""
PACKAGE = str(Path(__file__).parents[2])
SERVE = "import sys; from retrieval_bench.experiments.processes import serve; serve(int(sys.argv[1]))"


class Processes(ThreadPoolExecutor):
    """Calls functions in processes; a thread of this process waits for each. A call whose process dies raises
    ChildProcessError, and the next one starts another process.

    Args:
        environments: variables of each process, beside those of this one.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]):
        super().__init__(len(environments))
        self._all = [_Process(environment) for environment in environments]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def submit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, function: Callable[..., Any], /, *arguments: Any
    ) -> Future[Any]:
        return super().submit(self._call, function, *arguments)

    def _call(self, *call: Any) -> Any:
        process = self._idle.get()
        try:
            return process.call(*call)
        finally:
            self._idle.put(process)

    def __exit__(self, *_: object) -> None:
        """Interrupts what is under way, and waits until it has ended."""
        self.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.interrupt()
        for process in self._all:
            process.wait()


class _Process:
    def __init__(self, environment: Mapping[str, str]):
        self.environment, self.is_stopped = environment, False
        self.running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def call(self, *call: Any) -> Any:
        process, connection = self.running = self.running or self._start()
        if self.is_stopped:
            process.terminate()
        try:
            connection.send(call)
            return connection.recv()
        except (EOFError, OSError):
            code, self.running = process.wait(), None
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise ChildProcessError(f"its process ended: {reason}") from None

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        paths = os.pathsep.join(filter(None, (PACKAGE, os.environ.get("PYTHONPATH"))))
        ours, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment, "PYTHONPATH": paths},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C of the terminal reaches the driver alone, which passes it on
            )
        return process, ours

    def interrupt(self) -> None:
        self.is_stopped = True
        if self.running:
            self.running[0].terminate()

    def wait(self) -> None:
        if running := self.running:
            try:
                running[0].wait(GRACE)
            except subprocess.TimeoutExpired:
                running[0].kill()


def serve(descriptor: int) -> None:
    """What a process of the pool does: it makes the calls that come through the connection, and answers. SIGTERM, or
    the end of the connection, interrupts it as Ctrl-C does."""
    connection, calls = Connection(descriptor), SimpleQueue[bytes]()
    main = threading.main_thread().ident or 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    replace_unknown_signs()

    def listen() -> None:
        try:
            while True:
                calls.put(connection.recv_bytes())
        except (EOFError, OSError):
            signal.pthread_kill(main, signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    try:
        while True:
            function, *arguments = pickle.loads(calls.get())
            connection.send(function(*arguments))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(128 + signal.SIGTERM)
