"""What runs CUDA kernels on the CPU: CUDA's built-ins do as on a GPU, and mistakes that a GPU does not report
are errors.
"""

import cuda_on_cpu
import numpy as np
import pytest
import strict_cupy
from cuda_on_cpu import KernelError, RawModule, launcher

from npgpt.kernels.cuda import launch

pytestmark = pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="needs g++")

BEFORE = "extern __shared__ __align__(16) unsigned char shared_memory[];"
OF_16  = pytest.mark.parametrize("type_", ["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    strict_cupy.install(monkeypatch)


def run(body, *args, parameters="float* x", blocks=(1,), threads=(64,), shared=0, type_="float",
        before=BEFORE):
    """The body of a kernel, with these parameters, on these arguments."""
    code = f"{before}\ntemplate <typename T> __global__ void kernel({parameters}) {{ {body} }}"
    name = f"kernel<{type_}>"
    function = RawModule(code=code, name_expressions=(name,)).get_function(name)
    function(blocks, threads, args, shared_mem=shared)


def device(size, dtype="f4", fill=0):
    return strict_cupy.asarray(np.full(size, fill, dtype))


def test_every_thread_of_every_block_runs_once_with_its_place():
    x = device(4 * 3 * 2 * 96)
    run("long long block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);"
        "int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);"
        "x[block * 96 + thread] += block * 96 + thread;", x, blocks=(4, 3, 2), threads=(8, 6, 2))
    assert x.get().tolist() == list(range(4 * 3 * 2 * 96))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_blocks_alone_run_where_so_many_are_asked_for(monkeypatch, reverse):
    monkeypatch.setattr(launcher, "reversed", reverse)
    monkeypatch.setattr(launcher, "most_blocks", 2)
    x = device(5)
    run("x[blockIdx.x] += blockIdx.x;", x, blocks=(5,), threads=(1,))
    assert x.get().tolist() == [0, 0, 0, 3, 4]


@pytest.mark.parametrize("reverse", [False, True])
def test_barriers_and_shuffles(monkeypatch, reverse):
    monkeypatch.setattr(launcher, "reversed", reverse)
    x = device(64)
    run("float* s = (float*)shared_memory; s[threadIdx.x] = threadIdx.x; __syncthreads();"
        "float v = s[63 - threadIdx.x]; __syncwarp();"
        "x[threadIdx.x] = __shfl_xor_sync(~0u, v, 5) + 100 * __shfl_sync(~0u, v, 3);", x, shared=256)
    lane = np.arange(64)
    partner, third = (lane // 32 * 32) + (lane % 32 ^ 5), lane // 32 * 32 + 3
    assert x.get().tolist() == ((63 - partner) + 100 * (63 - third)).tolist()


def test_warps_need_not_be_in_step():
    x = device(64)
    run("float v = threadIdx.x;"
        "for (unsigned n = 0; n < 3 + threadIdx.x / 32; n++) v = __shfl_xor_sync(~0u, v, 1);"
        "__syncthreads(); x[threadIdx.x] = v;", x)
    assert x.get()[:2].tolist() == [1, 0] and x.get()[32:34].tolist() == [32, 33]


def test_64_bit_values_cross_a_warp_and_products_keep_their_high_half():
    x = device(64, "u8")
    run("unsigned long long v = ~0ull - threadIdx.x; v = __shfl_xor_sync(~0u, v, 1); x[threadIdx.x] ="
        "__umul64hi(v, v);", x, parameters="unsigned long long* x")
    assert [int(value) for value in x.get()[:2]] == [((2**64 - 1 - lane) ** 2) >> 64 for lane in (1, 0)]


@OF_16
def test_a_product_on_tensor_cores_takes_and_gives_numbers_where_nvidia_documents_them(type_):
    """PTX ISA, "Matrix fragments for mma.m16n8k16": of thread 4 g + q, the rows g and g + 8 of a (16 × 16)
    and c (16 × 8), the column g of b (16 × 8); pairs 2 q and 2 q + 1, of the inner index and of c's columns.
    """
    rng  = np.random.default_rng(0)
    a, b, c = (rng.integers(-5, 6, shape).astype("f4") for shape in ((16, 16), (16, 8), (16, 8)))
    g, q = np.divmod(np.arange(32), 4)
    pair = 2 * q[:, None] + [0, 1]                                            # (32, 2)
    of_a = np.stack([a[g[:, None] + row, pair + k] for k in (0, 8) for row in (0, 8)], 1)
    of_b = np.stack([b[pair + k, g[:, None]] for k in (0, 8)], 1)
    of_c = np.stack([c[g[:, None] + row, pair] for row in (0, 8)], 1)         # (32, 2, 2)
    x    = strict_cupy.asarray(np.concatenate([y.reshape(32, -1) for y in (of_a, of_b, of_c)], 1).ravel())
    run("float* own = x + 16 * threadIdx.x; unsigned a[4]; float c[4]; T t;"
        "for (int n = 0; n < 4; n++) a[n] = pair(own[2 * n], own[2 * n + 1], t), c[n] = own[12 + n];"
        "multiply(c, a, pair(own[8], own[9], t), pair(own[10], own[11], t), t);"
        "for (int n = 0; n < 4; n++) own[12 + n] = c[n];",
        x, threads=(32,), type_=type_, before=launch.source("attention_16_bits.cu"))
    expected = c + a @ b
    assert np.array_equal(x.get().reshape(32, 16)[:, 12:].reshape(32, 2, 2),
                          np.stack([expected[g[:, None] + row, pair] for row in (0, 8)], 1))


@OF_16
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_of_16_bits_come_from_shared_memory_as_nvidia_documents_it(type_, transposed):
    """PTX ISA, "ldmatrix": thread n names row n % 8 of matrix n/8, and gets of each matrix two of row n/4."""
    matrices = np.random.default_rng(0).integers(-99, 100, (4, 8, 8)).astype("f4")
    x, y     = strict_cupy.asarray(matrices.ravel()), device(32 * 8)
    run("T* row = (T*)shared_memory + 8 * threadIdx.x; x += 8 * threadIdx.x; y += 8 * threadIdx.x;"
        "for (int n = 0; n < 8; n++) row[n] = T(x[n]); __syncthreads();"
        f"unsigned m[4]; load_matrices{'_transposed' * transposed}(m, row);"
        "for (int n = 0; n < 8; n++) { T t; t.bits = m[n / 2] >> 16 * (n % 2); y[n] = t; }",
        x, y, parameters="float* x, float* y", threads=(32,), shared=512, type_=type_,
        before=launch.source("attention_16_bits.cu"))
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    row, q = np.divmod(np.arange(32), 4)
    expected = np.stack([matrices[:, row, 2 * q], matrices[:, row, 2 * q + 1]], 2)   # (4, 32, 2)
    assert np.array_equal(y.get().reshape(32, 4, 2), expected.swapaxes(0, 1))


def test_a_row_of_a_matrix_that_is_not_16_aligned_bytes_of_shared_memory_is_an_error():
    for place in (4, 512):
        with pytest.raises(KernelError, match="16 aligned bytes"):
            run(f"unsigned m[4]; load_matrices(m, shared_memory + {place});", device(64),
                threads=(32,), shared=512, before=launch.source("attention_16_bits.cu"))


def test_shared_memory_holds_no_number_when_a_block_begins():
    x = device(64)
    run("float* s = (float*)shared_memory; x[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];"
        "s[threadIdx.x] = 1;", x, shared=128, blocks=(2,), threads=(32,))
    assert np.isnan(x.get()).all()


def test_copies_to_shared_memory_arrive_at_once_or_when_waited_for(monkeypatch):
    """16 bytes and 4, zeros where nothing is there; one that nobody waits for is an error if it is late."""
    begin = """
        float* s = (float*)shared_memory;
        const bool there = threadIdx.x < 3;
        copy_16_bytes(s + 4 * threadIdx.x, x + 4 * threadIdx.x, there);
        copy_4_bytes(s + 16 + threadIdx.x, x + threadIdx.x, there);
        float early = s[4 * threadIdx.x];"""
    end = """
        wait_for_copies();
        __syncthreads();
        const unsigned other = 3 - threadIdx.x;
        x[threadIdx.x] = early;
        for (int n = 0; n < 2; n++) x[4 + 2 * threadIdx.x + n] = s[4 * other + n];
        x[12 + threadIdx.x] = s[16 + other];"""
    for late in (False, True):
        monkeypatch.setattr(launcher, "reversed", late)
        x = strict_cupy.asarray(np.arange(1, 17, dtype="f4"))
        run(begin + end, x, threads=(4,), shared=80)
        early, rows, numbers = np.split(x.get(), [4, 12])
        assert np.isnan(early).all() if late else early.tolist() == [1, 5, 9, 0]
        assert rows.tolist() == [0, 0, 9, 10, 5, 6, 1, 2] and numbers.tolist() == [0, 3, 2, 1]
    with pytest.raises(KernelError, match="under way"):
        run(begin + "x[0] = early;", device(16), threads=(4,), shared=80)


def test_a_missing_barrier_shows(monkeypatch):
    seen = []
    for reverse in (False, True):
        monkeypatch.setattr(launcher, "reversed", reverse)
        x = device(64)
        run("float* s = (float*)shared_memory; s[threadIdx.x] = threadIdx.x;"
            "x[threadIdx.x] = s[threadIdx.x ^ 1];", x, shared=256)
        seen.append(np.isnan(x.get()).any())
    assert all(seen)


def test_a_warp_that_runs_ahead_shows_what_others_still_read():
    """The second sum's first barrier is missing: its slots are those that the first is still read from."""
    x = device(64)
    run("float* s = (float*)shared_memory; float sum = 0;"
        "for (int n = 0; n < 2; n++) { if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = n; __syncthreads();"
        "sum += 10 * s[0] + s[1]; } x[threadIdx.x] = sum;", x, shared=8)
    assert x.get()[0] == 11 and x.get()[32] == 21


WAIT = "wait_for_copies();"
MISTAKES = {
    "a barrier that not all reach": ("if (threadIdx.x < 32) __syncthreads();", {}),
    "a thread that has left before": ("if (threadIdx.x == 63) return; __syncthreads();", {}),
    "a shuffle of half a warp": ("if (threadIdx.x % 2) x[0] = __shfl_xor_sync(~0u, 1.0f, 1);", {}),
    "a shuffle with a mask": ("x[0] = __shfl_xor_sync(0xffffu, 1.0f, 1);", {}),
    "more shared memory than asked for": ("((float*)shared_memory)[threadIdx.x] = 1;", {"shared": 252}),
    "shared memory without any": ("shared_memory[0] = 1;", {}),
    "a write after an array": ("x[64] = 1;", {}),
    "a write before an array": ("x[-1] = 1;", {}),
    "a read after an array": ("x[0] = x[64];", {}),
    "an address that is none": ("x[0] = *(float*)0;", {}),
    "more threads than a block has": ("", {"threads": (1025,)}),
    "a pack at an address that is none of 16 bytes":
        ("struct alignas(16) P { float n[4]; }; *(P*)(x + 1) = P();", {"threads": (1,)}),
    "a copy to such a place": ("copy_16_bytes(shared_memory + 4, x, true);" + WAIT, {"shared": 64}),
    "a copy from such a place": ("copy_16_bytes(shared_memory, x + 1, true);" + WAIT, {"shared": 16}),
    "a copy that is too long": ("copy_16_bytes(shared_memory, x, true);" + WAIT, {"shared": 12}),
    "no blocks": ("", {"blocks": (0,)}),
    "too many blocks": ("", {"blocks": (1, 65536)}),
    "too much shared memory": ("", {"shared": 49153}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_that_a_gpu_does_not_report_are_errors(mistake):
    body, options = MISTAKES[mistake]
    with pytest.raises(KernelError):
        run(body, device(64), **options)


def test_more_shared_memory_must_be_asked_for_and_there_is_an_end_to_it():
    body     = "shared_memory[60000] = 1; x[0] = 2;"
    code     = f"{BEFORE}\ntemplate <typename T> __global__ void f(T* x) {{ {body} }}"
    function = RawModule(code=code, name_expressions=("f<float>",)).get_function("f<float>")
    for asked, given in ((60001, 60002), (1 << 17, 1 << 17)):
        function.max_dynamic_shared_size_bytes = asked
        with pytest.raises(KernelError, match="need to be asked for"):
            function((1,), (32,), (device(1),), shared_mem=given)
    function.max_dynamic_shared_size_bytes = 60001
    x = device(1)
    function((1,), (32,), (x,), shared_mem=60001)
    assert x.get()[0] == 2


@pytest.mark.parametrize("size", [1, 3, 8, 1023, 1024, 5000])
def test_what_is_read_beside_an_array_is_an_error(monkeypatch, size):
    """In one order of blocks what is beyond the last 16 bytes that hold a part of it, in the other before."""
    for reverse, beside in (False, -(-size // 4) * 4), (True, -1):
        monkeypatch.setattr(launcher, "reversed", reverse)
        run(f"x[0] = x[{size - 1}];", device(size))
        with pytest.raises(KernelError, match="in no array"):
            run(f"x[0] = x[{beside}];", device(size))


@pytest.mark.parametrize(("parameters", "argument"), [
    ("float* x", np.ones(3, "f4")), ("float* x", 1), ("double* x", "f4"), ("float* x", "i4"),
    ("int* x", "u4"), ("long long* x", "i4"), ("bool* x", "i1"), ("int x", 1), ("float x", 1.0),
    ("double x", 1),
    ("long long x", 1.0), ("long long x", True), ("long long x", np.int64(1)), ("long long x", "i8"),
])
def test_an_argument_must_be_of_its_parameters_type(parameters, argument):
    with pytest.raises(KernelError):
        run("", device(3, argument) if isinstance(argument, str) else argument, parameters=parameters)


def test_arguments_of_their_types():
    x = device(64, "f8")
    run("x[threadIdx.x] = y[0] + n + d + b[0];", x, device(1, "i8", 2**40), 2**41, 0.5, device(1, "?", True),
        parameters="double* x, const long long* y, long long n, double d, const bool* b")
    assert (x.get() == 2**40 + 2**41 + 1.5).all()
    with pytest.raises(KernelError, match="takes 1"):
        run("", x, x, parameters="double* x")


def test_an_array_may_be_given_twice_and_a_view_stays_in_its_place():
    x = strict_cupy.asarray(np.arange(64, dtype="f4"))
    run("x[threadIdx.x] = y[threadIdx.x] + 1;", x, x, parameters="float* x, const float* y")
    view = x[32:]
    run("x[threadIdx.x] += 100;", view, threads=(32,))
    assert x.get().tolist() == [*range(1, 33), *range(133, 165)]
    run("x[threadIdx.x] = y[threadIdx.x] - 1;", x, view, parameters="float* x, const float* y", threads=(32,))
    assert x.get().tolist() == [*range(132, 164), *range(133, 165)]


def test_an_array_of_another_device_is_refused():
    x = device(64)
    with strict_cupy.Device(1), pytest.raises(KernelError, match="another device"):
        run("", x)


def test_what_does_not_compile_and_what_the_compiler_warns_of():
    for body in ("x[0] = nothing;", "int unused;"):
        with pytest.raises(KernelError):
            run(body, device(1))
    with pytest.raises(KernelError, match="none of the name expressions"):
        RawModule(code="", name_expressions=("f<float>",)).get_function("f<double>")
