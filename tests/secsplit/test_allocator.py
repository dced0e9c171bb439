"""Large blocks are kept: the second time a block is asked for, no page of it faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from secsplit.allocator import keep_large_blocks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(10 << 20) for _ in range(3)]  # 40 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert {call}
faults()
print(faults())
"""


def faults(call: str) -> int:
    command = [sys.executable, "-c", PROGRAM.replace("{call}", call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is changed there")
def test_a_large_block_is_mapped_once() -> None:
    assert faults("keep_large_blocks()") < 1000 < 10_000 < faults("True")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from secsplit import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not allocator.keep_large_blocks()
