"""Settings of the whole suite.

Ctrl-C interrupts, also where the suite itself was started as a shell's background job, which ignores it.
No test fetches anything from Hugging Face's hub.

Hypothesis draws the same examples in every run: a failure then says something about the code, not the day.
To look further than the suite does: HYPOTHESIS_PROFILE=explore pytest tests/ops
"""

import os
import signal
import tempfile

import cuda_on_cpu
import hypothesis

os.environ["HF_HUB_OFFLINE"] = "1"                       # read when huggingface_hub is imported

signal.signal(signal.SIGINT, signal.default_int_handler)

# The first call of an op imports its twin, the next ones do not: single examples are not timed.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=12)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_configure(config):
    """The kernels that g++ compiles lie in one folder for all processes of a run, and go with it."""
    if not hasattr(config, "workerinput"):                       # which those have that this one starts
        folder = tempfile.TemporaryDirectory(prefix="cuda-on-cpu-")
        os.environ[cuda_on_cpu.FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)
