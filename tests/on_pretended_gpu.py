"""What test_pretended_gpu.py has run, by CuPy itself: each line names what CuPy has taken whole."""

import warnings

import numpy as np

from npgpt import GPT, GPTConfig
from npgpt.cli.bench import training_step
from npgpt.inspection.examples import OPS, Sizes, as_type
from npgpt.kernels.cuda.biased_product import multiply_and_shift
from npgpt.layers import add_lora
from npgpt.tensor import to_device
from npgpt.tensor.precision import map_arrays
from npgpt.training.communication import Ranks
from npgpt.training.config import TrainConfig

TYPES = "float32", "float64", "bfloat16", "float16"
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False, "n_kv_head": 1,
         "tie_word_embeddings": False, "qk_norm": True}

warnings.simplefilter("ignore", RuntimeWarning)              # nothing is computed, so anything may come of it
for build in OPS.values():
    for dtype in TYPES:
        case = build(Sizes(B=2, T=8, S=8, H=2, D=8, C=16, V=32), np.random.default_rng(0), "cpu")
        here = map_arrays(lambda array: to_device(array, "cuda"), as_type(dtype, case.inputs))
        y, saved = case.forward(*here)
        case.backward(y, saved)
print("ops", len(OPS))

MODELS: tuple[tuple[str, dict], ...] = ("gpt2", {}), ("llama", LLAMA)
for name, options in MODELS:
    for dtype in TYPES:
        config = TrainConfig(vocab_size=65, batch_size=4, block_size=16, n_layer=2, n_head=2, n_embd=128,
                             dropout=0.1, attention_dropout=0.1, gradient_accumulation_steps=2, l2=0.1,
                             device="cuda", dtype=dtype, **options)
        model = GPT(config.model(65), config.seed, "cuda", dtype)
        step  = training_step(config, model, Ranks())
        step()
        step()
        model.generate(np.zeros((2, 4), np.int64), 3, do_sample=True, top_k=5, top_p=0.9, seed=1)
        print("steps", name, dtype)

model = GPT(GPTConfig(65, 16, 2, 2, 64), 0, "cuda", "bfloat16")
add_lora(model, 4, 8.0, ("c_attn", "c_fc"))
_, saved = model.loss(np.zeros((2, 8), np.int64), np.zeros((2, 8), np.int64),
                      attention_mask=np.arange(8)[None].repeat(2, 0) > 2)
model.backward(saved)
print("lora")

for dtype in "bfloat16", "float16":
    shapes = (4, 16), (16, 8), (8,), (4, 8)
    assert multiply_and_shift(*(to_device(np.zeros(shape, dtype), "cuda") for shape in shapes))
print("cublasLt")
