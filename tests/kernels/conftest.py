"""CuPy or its stand-in, and what was launched there."""

import importlib

import cuda_on_cpu
import pytest
import strict_cupy

from npgpt.errors import DeviceError
from npgpt.kernels.cuda import launch
from npgpt.tensor.device import AMPERE, capability, check_device


def real_gpu():
    try:
        return bool(check_device("cuda"))
    except DeviceError:
        return False


@pytest.fixture(params=[
    pytest.param("CPU", marks=pytest.mark.skipif(not cuda_on_cpu.COMPILER, reason="needs g++")),
    pytest.param("GPU", marks=[pytest.mark.gpu, pytest.mark.skipif(not real_gpu(), reason="needs a GPU")])])
def cupy(request, monkeypatch):
    """CuPy or its stand-in. BLOCKS are so few that each has several rows."""
    monkeypatch.setattr(launch, "BLOCKS", 3)
    if request.param == "GPU":
        cupy = importlib.import_module("cupy")
        if "bfloat16" in request.node.name and capability(cupy.empty(1)) < AMPERE:
            pytest.skip("this GPU has no bfloat16")
        return cupy
    return strict_cupy.install(monkeypatch, with_twins=True)


@pytest.fixture
def launches(monkeypatch):
    """What has been launched, (kernel, blocks) each."""
    launched, original = [], launch.launch

    def recording(file, kernel, blocks, *args, **options):
        launched.append((kernel, blocks))
        original(file, kernel, blocks, *args, **options)

    monkeypatch.setattr(launch, "launch", recording)
    return launched
