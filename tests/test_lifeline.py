"""How a process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

PROGRAM = """
import sys
from broker.lifeline import StopSignal
stop_signal = StopSignal()
print("ready", flush=True)
stop_signal.wait()
print("stopping", flush=True)
sys.stdin.read()
"""
SIGNALS = 300
"""So many at once reach the process at every point of its waiting and waking."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_many_stop_signals_end_a_process_as_one_does(number: signal.Signals) -> None:
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(SIGNALS):
                process.send_signal(number)
            try:
                said, _ = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, said) == (0, "stopping\n")


BUSY = """
import threading
from broker.lifeline import StopSignal
stop_signal = StopSignal()

def work():
    while True:
        sum(range(1000))
        threading.Event().wait(0.001)

for _ in range(6):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
stop_signal.wait()
"""
BUSY_ONES = 5


def test_a_process_that_has_just_been_resumed_hears_its_stop_signal() -> None:
    # While its main thread still wakes, the signal goes to another one.
    for _ in range(4):
        with ExitStack() as stack:
            busy = [
                stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE))
                for _ in range(BUSY_ONES)
            ]
            for process in busy:
                stack.callback(process.kill)
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            for process in busy:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            for process in busy:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            assert [process.wait(timeout=30) for process in busy] == [0] * BUSY_ONES
