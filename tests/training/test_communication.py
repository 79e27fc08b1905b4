"""Ranks: what they give each other, that any number of them computes the same, and how they end."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
import tiny

from npgpt.errors import DeviceError, TrainingError
from npgpt.models import GPT
from npgpt.tensor import to_device, to_numpy
from npgpt.tensor.device import check_device
from npgpt.tensor.memory import shared
from npgpt.training import communication
from npgpt.training.communication import Ranks, run_on_threads
from npgpt.training.config import TrainConfig
from npgpt.training.forks import FORKS, run_on_processes
from npgpt.training.nccl import TYPES, NCCLRanks, own_device
from npgpt.training.trainer import Trainer
from npgpt.workers import physical_cores

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
SIZES = (1, 2, 4)
ONE_MEMORY = pytest.mark.parametrize("run", [run_on_threads, pytest.param(
    run_on_processes, marks=pytest.mark.skipif(not FORKS, reason="ranks are threads here"))])


def test_parts_are_neighbours_and_differ_by_one_at_most():
    for size in (1, 2, 3, 7):
        for length in (0, 1, 5, 7, 100):
            ranks = Ranks()
            ranks.size = size
            parts = [ranks.part(length, rank) for rank in range(size)]
            assert [n for part in parts for n in range(length)[part]] == list(range(length))
            lengths = [part.stop - part.start for part in parts]
            assert max(lengths) - min(lengths) <= 1


def exchange(ranks, device="cpu", one_array=None):
    """Every meeting, some times over, on arrays that tell who wrote what where; and what each must give.

    one_array: 11 float64 in the memory that all ranks have in common, if they have.
    """
    kept = []
    for turn, early in enumerate(((), (slice(3, 9),), (slice(8, 11), slice(2, 5)), (slice(0, 11),))):
        mine  = to_device(np.arange(11.0) + 100 * ranks.rank + turn, device)
        total = ranks.size * (np.arange(11.0) + turn) + 100 * sum(range(ranks.size))
        part  = ranks.part(11)
        if one_array is not None:
            ranks.in_turn(lambda mine=mine: np.add(0 if ranks.rank == 0 else one_array, mine, out=one_array))
            mine = one_array
        for stretch in early:
            ranks.reduce_early(mine, stretch)
        ranks.reduce_scatter(mine)
        assert np.array_equal(to_numpy(mine)[part], total[part])

        time.sleep(0.01 * ranks.rank)
        mine[part], total = -mine[part], -total
        ranks.all_gather(mine)
        assert np.array_equal(to_numpy(mine), total)

        if device != "cpu":
            values = mine[0] if ranks.rank else 0.0, mine[ranks.rank].astype("float32"), 1
            device_sums = ranks.all_reduce(*values)
            expected = total[0] * (ranks.size - 1), total[:ranks.size].sum(), ranks.size
            assert tuple(float(to_numpy(value)) for value in device_sums) == expected
            assert [value.dtype.name for value in device_sums] == ["float64", "float32", "float64"]
            for kind in TYPES:
                whole = to_device(np.arange(5.0) + ranks.rank, device).astype(kind)
                ranks.reduce_scatter(whole)
                ranks.all_gather(whole)
                assert np.array_equal(to_numpy(whole), ranks.size * np.arange(5.0) + sum(range(ranks.size)))

        sums = ranks.all_reduce(ranks.rank + 1, np.float32(0.5))
        assert sums == (sum(range(ranks.size + 1)), ranks.size / 2)
        assert type(ranks.all_reduce(np.float32(0.5))[0]) is np.float32

        parts = ranks.gather(np.arange(5, dtype=("float64", "float32")[turn % 2])[ranks.part(5)] + turn)
        assert np.array_equal(np.concatenate(parts or [[]]), [] if ranks.rank else np.arange(5.0) + turn)

        kept.append((turn, parts))
        assert ranks.broadcast(("from", ranks.rank)) == ("from", 0)
    for turn, parts in kept if ranks.rank == 0 else ():    # no later meeting writes into what one gave
        assert np.array_equal(np.concatenate(parts), np.arange(5.0) + turn)
    return ranks.rank, ranks.size


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@ONE_MEMORY
def test_ranks_of_one_memory_give_each_other_what_they_should(run, size):
    one_array = shared(11, "float64")
    assert run(size, lambda ranks: exchange(ranks, one_array=one_array)) == (0, size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_give_each_other_what_they_should(size, mpiexec):
    done = mpiexec(size, "exchange")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [f"(0, {size})", ""], "rank 0 alone has a standard output"


@ONE_MEMORY
def test_ranks_of_one_memory_act_by_number_and_in_their_own_order(run):
    """Whoever comes early: what a rank is to do in its turn makes of the digits 12 the digits 123."""
    digits = shared(9, "int64")

    def work(ranks):
        for late in range(3):
            time.sleep(0.02 * (ranks.rank == late))
            before = [0]
            for n in range(9):
                def add(n=n, before=before):
                    assert before.pop() == n
                    before.append(n + 1)
                    digits[n] = (10 * digits[n] if ranks.rank else 0) + ranks.rank + 1
                ranks.in_turn(add)
                time.sleep(0.002 * (ranks.rank == late))
            ranks.reduce_scatter(digits)
            assert before == [9] and (digits == 123).all()
            ranks.all_gather(digits)

    run(3, work)


@ONE_MEMORY
def test_a_rank_goes_on_before_its_turn_but_not_far(run):
    done, early = shared(7, "int64"), communication.LATE_TURNS
    gone_on     = shared(1, "int64")

    def work(ranks):
        until = time.monotonic() + 10
        while ranks.rank == 0 and not gone_on:
            assert time.monotonic() < until
            time.sleep(0.01)
        for n in range(7):
            ranks.in_turn(lambda n=n: done.__setitem__(n, ranks.rank + 1))
            if ranks.rank == 0:
                time.sleep(0.01)
                continue
            if n == early - 1:
                assert not done.any()
                gone_on[0] = 1
            assert (done[:max(0, n + 1 - early)] == 2).all() and not (done[n + 1:] == 2).any()
        ranks.reduce_scatter(done)
        assert (done == 2).all()

    run(2, work)


@ONE_MEMORY
def test_who_waits_for_its_turn_is_not_waited_for(run):
    def work(ranks):
        if ranks.rank == 0:
            time.sleep(0.1)
            raise TrainingError("this rank has failed")
        ranks.in_turn(int)
        ranks.reduce_scatter(np.zeros(3))

    begun = time.monotonic()
    with pytest.raises(TrainingError, match="this rank has failed"):
        run(3, work)
    assert time.monotonic() - begun < communication.WAIT_FOR_OTHERS / 2


def steps(ranks, model, dtype, count=20, device="cpu"):
    """Parameters and losses after some updates with dropout, accumulation, penalties, clipping, ignored
    targets and more sequences than some ranks have."""
    config = TrainConfig(**tiny.SETTINGS | {"dtype": dtype, "l1": 1e-4, "l2": 1e-3, "grad_clip": 0.5,
                                            "n_embd": 12, "batch_size": 5, "workers": None, "device": device})
    tokens = np.random.default_rng(0).integers(0, 11, 700)
    if model is None:
        model = GPT(config.model(11), config.seed, device, dtype)
    elif ranks.rank:
        model = model.replica()
    trainer = Trainer(config, model, tokens, tokens, ranks)
    losses = []
    for step in range(count):
        losses.append(trainer.update(step).loss)
    moments = trainer.optimizer.state()
    return model, losses, trainer.evaluate(), moments


def on_threads(size, dtype):
    config = TrainConfig(**tiny.SETTINGS | {"n_embd": 12})
    model = GPT(config.model(11), config.seed, dtype=dtype)
    _, losses, evaluated, moments = run_on_threads(size, lambda ranks: steps(ranks, model, dtype))
    return {"data": model.flat.data, "losses": np.array([*losses, evaluated]),
            **moments}


def assert_same(results, dtype):
    first = results[0]
    for other in results[1:]:
        assert first.keys() == other.keys()
        for name, value in first.items():
            scale = max(abs(value).max(), 1e-3 if "exp_avg" in name else 1)
            assert abs(value - other[name]).max() <= TOLERANCE[dtype] * scale, name


def by_mpiexec(mpiexec, size, folder, dtypes, *device):
    """{type: what rank 0 has in the end}. Each rank must have the same parameters."""
    done = mpiexec(size, *device, "steps", folder, *dtypes)
    assert done.returncode == 0, done.stderr
    results = {}
    for dtype in dtypes:
        results[dtype], *others = (dict(np.load(folder / f"{dtype}-{size}-{rank}.npz"))
                                   for rank in range(size))
        for other in others:
            assert np.array_equal(other["data"], results[dtype]["data"])
    return results


def test_any_number_of_ranks_computes_the_same(mpiexec, tmp_path):
    """Threads and processes, 20 updates with dropout. Of processes every rank's parameters are compared."""
    results = {dtype: [on_threads(size, dtype) for size in SIZES] for dtype in TOLERANCE}
    for size in SIZES[1:]:
        for dtype, result in by_mpiexec(mpiexec, size, tmp_path, TOLERANCE).items():
            results[dtype].append(result)
    for dtype in TOLERANCE:
        assert len(np.unique(results[dtype][0]["losses"])) > 20
        assert_same(results[dtype], dtype)


@pytest.mark.parametrize("size", [2, 3])
def test_gpus_give_each_other_what_they_should(size, mpiexec):
    done = mpiexec(size, "cuda", "exchange")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"(0, {size})\n"


def test_gpus_compute_what_one_does(mpiexec, tmp_path, monkeypatch):
    """By formulas, on stand-ins for CuPy and NCCL, 10 updates."""
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr(strict_cupy.machine, "order", "C")
    dtypes  = [*TOLERANCE, "bfloat16"]
    results = {}
    for dtype in dtypes:
        model, losses, evaluated, moments = steps(Ranks(), None, dtype, 10, "cuda")
        results[dtype] = [{"data": to_numpy(model.flat.data), "losses": np.array([*losses, evaluated])}
                          | moments]
    for size in SIZES[1:]:
        for dtype, result in by_mpiexec(mpiexec, size, tmp_path, dtypes, "cuda").items():
            results[dtype].append(result)
    for dtype in TOLERANCE:
        assert_same(results[dtype], dtype)
    one, *others = results["bfloat16"]
    for other in others:                   # of gradients next to nothing Adam makes steps of one size
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-3)


def test_without_nccl_it_is_one_sentence(monkeypatch):
    strict_cupy.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nccl=SimpleNamespace(available=False)))
    with pytest.raises(DeviceError, match="several GPUs need NCCL, which this CuPy does not find: pip"):
        NCCLRanks(SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 2))


@pytest.mark.gpu
def test_one_gpu_alone_is_all_ranks_of_nccl():
    MPI = pytest.importorskip("mpi4py.MPI", exc_type=ImportError)     # libmpi may be missing
    try:
        check_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    ranks = NCCLRanks(MPI.COMM_SELF)
    assert exchange(ranks, "cuda") == (0, 1)
    (model, losses, *_), (other, others, *_) = (steps(each, None, "float32", device="cuda")
                                                for each in (ranks, Ranks()))
    assert losses == others and np.array_equal(to_numpy(model.flat.data), to_numpy(other.flat.data))


def test_a_blocks_gradients_are_two_stretches_and_complete():
    model = GPT(TrainConfig(**tiny.SETTINGS).model(11), 0)
    flat  = model.flat
    flat.grad[...] = np.nan                                # what was there before
    model.zero_grad()
    model.h[1].ln_1.bias.add_grad(np.ones(8))
    found = flat.settle(model.h[1])
    assert len(found) == 2 and all(grad is found[0][0] for grad, _ in found)
    own   = [place for name, place in flat.places.items() if name.startswith("h.1.")]
    assert [stretch.stop - stretch.start for _, stretch in found] == \
        [sum(place.stop - place.start for place in own if (place.start < flat.decayed) == matrices)
         for matrices in (True, False)]
    assert sum(grad[stretch].sum() for grad, stretch in found) == 8
    assert {n for _, stretch in found for n in range(stretch.start, stretch.stop)} == \
        {n for place in own for n in range(place.start, place.stop)}


def test_nan_on_one_rank_skips_the_update_on_all(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 11, 700)
    config = TrainConfig(**tiny.SETTINGS | {"workers": 3})
    model  = GPT(config.model(11), config.seed)
    before = model.flat.data.copy()

    def work(ranks):
        own = model.replica() if ranks.rank else model
        trainer = Trainer(config, own, tokens, tokens, ranks)
        if ranks.rank == 1:
            loss = own.loss

            def poisoned(*arguments):
                value, saved = loss(*arguments)
                own.parameters["h.1.mlp.c_fc.weight"].grad[2, 3] = np.nan
                return value, saved
            own.loss = poisoned
        update = trainer.update(0)
        return ranks.gather(np.array([update.norm, trainer.optimizer.updates,
                                      "gradient of h.1.mlp.c_fc.weight" in trainer.name_non_finite(update)]))

    for norm, updates, named in run_on_threads(3, work):
        assert np.isnan(norm) and updates == 0 and named
    assert np.array_equal(model.flat.data, before)


def test_each_window_of_an_evaluation_is_one_ranks():
    tokens, seen = np.arange(700) % 11, []
    config = TrainConfig(**tiny.SETTINGS)
    model  = GPT(config.model(11), config.seed)

    def work(ranks):
        trainer = Trainer(config, model.replica(), tokens, tokens, ranks)
        loss = trainer.model.loss
        trainer.model.loss = lambda tokens, *others: seen.append(len(tokens)) or loss(tokens, *others)
        trainer.evaluate()

    run_on_threads(4, work)
    assert sum(seen) == config.eval_iters * config.batch_size and min(seen) > 0


def test_a_rank_that_fails_ends_all_and_its_error_is_told():
    def work(ranks):
        if ranks.rank == 1:
            raise TrainingError("this rank has failed")
        ranks.broadcast()
        return "never"

    begun = time.monotonic()
    with pytest.raises(TrainingError, match="this rank has failed"):
        run_on_threads(3, work)
    assert time.monotonic() - begun < 5


def test_the_error_is_told_when_the_others_have_left():
    left = []
    with pytest.raises(ZeroDivisionError):
        run_on_threads(2, lambda ranks: left.append(time.sleep(0.2)) if ranks.rank else 1 / 0)
    assert left == [None]


def test_a_rank_that_is_busy_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(communication, "WAIT_FOR_OTHERS", 0.2)
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run_on_threads(2, lambda ranks: time.sleep(20) if ranks.rank else 1 / 0)
    assert time.monotonic() - begun < 10


def test_an_interrupt_ends_the_threads_and_waits_for_none(monkeypatch):
    """One of them waits for a rank that will not come, another is busy."""
    monkeypatch.setattr(communication, "WAIT_FOR_OTHERS", 60.0)
    begun, over = threading.Event(), threading.Event()

    def work(ranks):
        if ranks.rank == 0:
            begun.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
        elif ranks.rank == 1:
            ranks.broadcast()
        else:
            begun.set()
            over.wait(20)

    before, clock = threading.enumerate(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_on_threads(3, work)
    assert time.monotonic() - clock < 15
    over.set()
    assert_ended(set(threading.enumerate()) - set(before))


def test_where_a_thread_cannot_be_started_the_others_end(monkeypatch):
    start, before = threading.Thread.start, threading.enumerate()

    def refuse(thread):
        if thread.name == "rank 1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_on_threads(2, lambda ranks: ranks.broadcast())
    assert_ended(set(threading.enumerate()) - set(before))


def assert_ended(threads):
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("of_gpus", [(), ("cuda",)], ids=["processes", "GPUs"])
def test_a_process_that_fails_ends_all_and_its_error_is_told(mpiexec, of_gpus):
    """That of a GPU does not wait for the others to be done with NCCL, which they never are."""
    begun = time.monotonic()
    done = mpiexec(3, *of_gpus, "fail")
    assert done.returncode != 0 and "TrainingError: this rank has failed" in done.stderr
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("rank", [0, 1])
def test_what_ends_a_process_ends_all_once_it_is_told(monkeypatch, capsys, rank):
    """Rank 0 tells first, for it may have befallen all; and mpiexec has time to hand on what each says."""
    done, at_exit = [], []
    world = SimpleNamespace(rank=rank, size=2, Get_rank=lambda: rank, Get_size=lambda: 2,
                            Abort=lambda status: done.append(("end all", status)))
    world.Split_type = lambda kind: world
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(
        MPI=SimpleNamespace(COMM_WORLD=world, COMM_TYPE_SHARED=0)))
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(communication, "time", SimpleNamespace(
        sleep=lambda seconds: done.append(("wait", seconds))))
    monkeypatch.setattr(communication, "atexit", SimpleNamespace(
        register=lambda *call: at_exit.insert(0, call)))               # the last comes first
    monkeypatch.setattr(communication, "physical_cores", lambda: 2)
    with pytest.raises(SystemExit), communication.processes():
        assert blas_threads() == {1}                                   # the two share the cores out
        sys.exit(1)
    assert not done and not at_exit                                    # each leaves by itself
    for error in (TrainingError, KeyboardInterrupt):
        with pytest.raises(error), communication.processes() as ranks:
            assert (ranks.rank, ranks.size) == (rank, 2)
            print("this")
            raise error
        assert capsys.readouterr().out == ("" if rank else "this\n")
        assert done == rank * [("wait", 1.0)]
        for function, *arguments in at_exit:
            function(*arguments)
        assert done[rank:] == [("wait", 0.25), ("end all", 1)]
        done.clear()
        at_exit.clear()


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_what_mpich_or_open_mpi_starts_needs_mpi4py(monkeypatch, name):
    for other in communication.LAUNCHERS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with communication.processes() as ranks:
        assert ranks.size == 1
    monkeypatch.setenv(name, "1")
    with pytest.raises(DeviceError, match=r"needs mpi4py .*'npgpt\[mpi\]'"), communication.processes():
        pytest.fail("without mpi4py")


def blas_threads(ranks=None):
    from threadpoolctl import threadpool_info
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_threads_share_the_cores_out(monkeypatch):
    before = blas_threads()
    monkeypatch.setattr(communication, "physical_cores", lambda: 2)
    assert run_on_threads(2, blas_threads) == run_on_threads(5, blas_threads) == {1}
    assert run_on_threads(1, blas_threads) == blas_threads() == before


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    everything = os.sched_getaffinity(0)
    assert 1 <= physical_cores() <= len(everything)
    one = min(everything)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {one})
    assert physical_cores() == 1


def test_a_rank_touches_no_gpu_but_its_own(monkeypatch):
    """On each that it made current, it has told cuBLAS how to compute."""
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr(communication.MPIRanks, "__init__", lambda self: None)
    monkeypatch.setattr(communication.MPIRanks, "number_on_machine", lambda self: 1)
    monkeypatch.setattr(communication.MPIRanks, "all_reduce", lambda self, *values: values)
    assert own_device(communication.MPIRanks(), "cpu") == own_device(Ranks(), "cpu") == "cpu"
    assert own_device(communication.MPIRanks(), "cuda") == "cuda:1"
    assert strict_cupy.machine.math_modes.keys() == {1}
    assert own_device(Ranks(), "cuda") == "cuda" and strict_cupy.machine.math_modes.keys() == {0, 1}
