"""The tensor layer: which array module an array belongs to, devices, twins, memory, keyed randomness."""

from npgpt.tensor.device import array_module, device_of, synchronize, to_device, to_numpy
from npgpt.tensor.memory import keep_freed_blocks
from npgpt.tensor.random import Key
from npgpt.tensor.twins import accelerated

__all__ = ["Key", "accelerated", "array_module", "device_of", "keep_freed_blocks", "synchronize", "to_device",
           "to_numpy"]

keep_freed_blocks()    # before the first large array: glibc reads these settings when it hands out memory
