"""For processes under libfaketime: its version 0.9.10 breaks the call by which `time.sleep` waits, where time spans are
to stay real. Python reads this file at its start, where its folder is on PYTHONPATH."""

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], max(seconds, 0))


time.sleep = _sleep
