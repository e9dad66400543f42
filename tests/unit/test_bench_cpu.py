import os
import subprocess
import sys

import pytest
from bench.cpu import Process, ProcessGone, parse_stat, per_request, read_cpu, sum_by_kind

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
BURN = "import time\nwhile time.process_time() < {}: pass\n"


def test_a_name_with_spaces_and_brackets_does_not_shift_the_fields() -> None:
    text = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 1 0 5 6 7"
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK")
    assert parse_stat(text) == Process(7, 150 * tick_us, 50 * tick_us)


def test_a_process_counts_for_the_nearest_root_above_it() -> None:
    processes = {
        1: Process(0, 1000.0, 1000.0),
        10: Process(1, 1.0, 0.0),
        11: Process(10, 2.0, 0.0),
        12: Process(10, 4.0, 8.0),
        13: Process(12, 16.0, 0.0),
        20: Process(1, 500.0, 0.0),
    }
    assert sum_by_kind(processes, {"up": [10], "api": [12]}) == {"up": 3.0, "api": 28.0}
    assert sum_by_kind(processes, {"api": [11, 12]}) == {"api": 30.0}


def test_a_root_that_ended_is_no_zero() -> None:
    with pytest.raises(ProcessGone, match=r"drain \(process 99\)"):
        sum_by_kind({1: Process(0, 0.0, 0.0)}, {"api": [1], "drain": [99]})


def test_what_ended_children_used_is_not_lost() -> None:
    """The child burns 0.2 s and ends between two readings; the parent waits for it and then idles."""
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(0.2)!r}])\n"
    code += "print('done', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        before = read_cpu({"api": [parent.pid]})
        assert parent.stdout.readline() == "done\n"
        after = read_cpu({"api": [parent.pid]})
        parent.stdin.close()
    used_us = per_request(before, after, 1000)["api"] * 1000
    assert 180_000 < used_us < 1_000_000
