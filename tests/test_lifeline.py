"""How a process ends."""

from __future__ import annotations

import signal
import subprocess
import sys

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
