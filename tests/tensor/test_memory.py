"""Freed blocks are kept: a second training step faults in (almost) no new page."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from npgpt.tensor import keep_freed_blocks
from npgpt.tensor.memory import shared

# Pages faulted in by each of four training steps, all but the first in a thread of its own. NumPy is imported
# before the platform is changed for npgpt, and what it sets up for the first thread, once, is not a step's.
STEPS = """
import resource, sys, threading
import numpy as np
sys.platform = sys.argv[1] or sys.platform
from npgpt import GPT, GPTConfig

model  = GPT(GPTConfig(vocab_size=512, block_size=64, n_layer=2, n_head=4, n_embd=128))
tokens = np.random.default_rng(0).integers(0, 512, (8, 64))
other  = threading.Thread(target=np.matmul, args=2 * [np.ones((256, 256), "f")])
other.start(), other.join()
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
def step():
    model.zero_grad()
    loss, saved = model.loss(tokens, tokens)
    model.backward(saved)
    model.flat.data -= 0.1 * model.flat.grad

for thread in (None, *(threading.Thread(target=step) for _ in range(3))):
    step() if thread is None else (thread.start(), thread.join())
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(*(after - before for before, after in zip(faults, faults[1:])))
"""


def faults_by_step(platform=""):
    done = subprocess.run([sys.executable, "-c", STEPS, platform], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@glibc
def test_a_second_step_faults_in_no_new_page():
    first, *later = faults_by_step()
    assert first > 1000 and max(later) < first / 100, (first, later)


@glibc
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="too few faults")
def test_without_it_every_step_does():
    first, *later = faults_by_step("elsewhere")
    assert min(later) > first / 10, (first, later)


def test_no_room_for_shared_memory_is_told():
    with pytest.raises(MemoryError, match="no room for 4611686018427387904 numbers more"):
        shared(1 << 62, "float64")


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_blocks() is False


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("npgpt.tensor.memory.ctypes.CDLL", lambda name: object())    # no mallopt, as in musl
    assert keep_freed_blocks() is False


def test_a_refused_option_is_told(monkeypatch):
    class Refusing:
        def mallopt(self, option, value):
            return option != -1
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("npgpt.tensor.memory.ctypes.CDLL", lambda name: Refusing())
    assert keep_freed_blocks() is False
