import os
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgpt.data.batches import Batches
from npgpt.data.shards import open_shard, write_shard
from npgpt.errors import DataError

seeds = st.integers(0, 2**64 - 1)


@st.composite
def sizes(draw):
    """(number of tokens, block_size, batch_size), small, with the shortest data that will do among them."""
    block_size = draw(st.integers(1, 12))
    return draw(st.integers(block_size + 1, 8 * block_size + 20)), block_size, draw(st.integers(1, 9))


def at(batches, step):
    return batches.at(step)[:2]


def evaluation_batches(tokens, block_size, batch_size, max_batches):
    return (batch[:2] for batch in Batches(tokens, block_size, 1, 0).evaluation(batch_size, max_batches))


def examples(tokens, block_size, seed, count, batch_size=1):
    """Where each of the first examples begins; the tokens must be 0, 1, 2, …"""
    batches = Batches(tokens, block_size, batch_size, seed)
    starts = []
    for step in range(-(-count // batch_size)):
        x, y = at(batches, step)
        assert x.shape == y.shape == (batch_size, block_size) and x.dtype == y.dtype == np.int64
        assert np.array_equal(x, x[:, :1] + np.arange(block_size)) and np.array_equal(y, x + 1)
        assert y.max() < len(tokens)
        starts += x[:, 0].tolist()
    return starts[:count]


@given(sizes(), seeds)
def test_each_epoch_visits_each_window_once(size, seed):
    length, block_size, batch_size = size
    tokens = np.arange(length)
    windows = Batches(tokens, block_size, batch_size, seed).windows
    starts = np.array(examples(tokens, block_size, seed, 4 * windows, batch_size)).reshape(4, windows)
    for epoch in np.sort(starts, axis=1):
        assert (np.diff(epoch) == block_size).all()
    assert length - windows * block_size < 2 * block_size  # tokens that are no input in an epoch


def test_every_token_is_seen_and_every_offset_is_used():
    length, block_size = 103, 10
    starts = examples(np.arange(length), block_size, 3, 9 * 300)
    assert {min(starts[i:i + 9]) for i in range(0, len(starts), 9)} == set(range(13))
    assert {start + i for start in starts for i in range(block_size + 1)} == set(range(length))
    assert examples(np.arange(7), 4, 3, 200).count(0) not in (0, 200)  # one window, and it moves
    assert set(examples(np.arange(7), 4, 3, 200)) == {0, 1, 2}


def test_the_order_is_shuffled_anew_each_epoch():
    windows, epochs = 50, 30
    starts = np.array(examples(np.arange(510), 10, 3, windows * epochs)).reshape(epochs, windows) // 10
    assert len({tuple(order) for order in starts}) == epochs
    first = np.bincount(starts[:, 0], minlength=windows)
    assert first.max() <= 5  # not always the same window first
    assert abs(np.corrcoef(np.arange(windows), starts[0])[0, 1]) < 0.5


@given(sizes(), seeds, st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_a_batch_is_a_function_of_seed_and_step(size, seed, steps):
    """Not of what was asked before, of the batch size (but for its cuts), of NumPy's own generator."""
    length, block_size, batch_size = size
    tokens = np.arange(length)
    np.random.seed(seed % 2**32)
    batches = Batches(tokens, block_size, batch_size, seed)
    straight = examples(tokens, block_size, seed, batch_size * (max(steps) + 1))
    for step in steps:
        assert batches.at(step)[0][:, 0].tolist() == straight[batch_size * step:batch_size * (step + 1)]


def test_seeds_differ_even_the_largest():
    large = [2**63, 2**63 + 1, 2**64 - 1]  # as floats the first two are one number
    orders = {tuple(examples(np.arange(510), 10, seed, 20)) for seed in [*range(20), *large]}
    assert len(orders) == 23


def test_the_order_stays_what_it_was():
    """A run that is resumed under a later version must go on where it was."""
    assert examples(np.arange(100), 8, 1337, 24) == [
        69, 85, 21, 61, 53, 5, 77, 37, 29, 45, 13, 55, 63, 39, 23, 47, 7, 71, 79, 87, 31, 15, 48, 32]


@given(st.integers(10, 200), st.integers(1, 8), seeds)
def test_no_target_of_validation_is_trained_on(cut, block_size, seed):
    """Training sees the tokens that it is given and none beside them, even if the two lie in one array."""
    tokens = np.arange(cut + 50)
    for step in range(0, 60, 7):
        x, y = at(Batches(tokens[:cut], block_size, 5, seed), step)
        assert max(x.max(), y.max()) < cut
    for x, y in evaluation_batches(tokens[cut:], block_size, 5, 100):
        assert min(x.min(), y.min()) >= cut


def test_threads_may_share_the_batches():
    """Two threads in different epochs, which change places as often as Python lets them."""
    tokens = np.arange(12)
    batches = Batches(tokens, 4, 1, 5)
    straight = examples(tokens, 4, 5, 1000)
    wrong = []

    def walk(steps):
        wrong.extend(step for step in steps if batches.at(step)[0][0, 0] != straight[step])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=walk, args=(range(i, 1000, 4),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_batches_of_a_shard_are_arrays_of_their_own(tmp_path):
    write_shard(tmp_path / "a", [np.arange(100)], 50_000)
    tokens = open_shard(tmp_path / "a").tokens
    for x, y in (at(Batches(tokens, 8, 3, 0), 0), next(evaluation_batches(tokens, 8, 3, 1))):
        for array in (x, y):
            assert type(array) is np.ndarray and array.dtype == np.int64
            assert array.flags.c_contiguous and array.flags.writeable
        assert not np.shares_memory(x, y)
    assert np.array_equal(at(Batches(tokens, 8, 3, 0), 9), at(Batches(np.arange(100), 8, 3, 0), 9))


@given(sizes(), st.integers(0, 6))
def test_evaluation_windows(size, max_batches):
    length, block_size, batch_size = size
    batches = list(evaluation_batches(np.arange(length), block_size, batch_size, max_batches))
    assert len(batches) <= max_batches and all(len(x) == batch_size for x, _ in batches[:-1])
    windows = np.array([row for x, _ in batches for row in x]).reshape(-1, block_size)
    fit = (length - 1) // block_size
    assert len(windows) == min(fit, max_batches * batch_size)
    targets = np.array([row for _, y in batches for row in y]).reshape(-1, block_size)
    assert np.array_equal(targets, windows + 1) and len(np.unique(targets)) == targets.size
    if len(windows) > 1:  # spread evenly: gaps differ by one window at most, the ends are as near
        gaps = np.diff(windows[:, 0]) // block_size
        assert gaps.max() - gaps.min() <= 1 and windows[0, 0] == 0
        assert fit - 1 - windows[-1, 0] // block_size <= gaps.max()
    again = list(evaluation_batches(np.arange(length), block_size, batch_size, max_batches))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("length", [0, 1, 8])
def test_too_few_tokens(length):
    says = f"the data has {length} tokens, and one window of block_size 8 needs 9;"
    with pytest.raises(DataError, match=says):
        Batches(np.arange(length), 8, 1, 0)
    with pytest.raises(DataError, match=says):
        evaluation_batches(np.arange(length), 8, 1, 1)  # at once, not when the first batch is asked for
    assert Batches(np.arange(9), 8, 1, 0).at(5)[1].tolist() == [list(range(1, 9))]


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path):
    """Of less than a page: what is gone from that reads as zeros, and does not kill the test."""
    path = tmp_path / "a"
    write_shard(path, [np.arange(300)], 300)
    tokens  = open_shard(path).tokens
    batches = Batches(tokens, 4, 2, 0)
    copied  = Batches(tokens.copy(), 4, 2, 0)              # whose type is the same, but of no file
    batches.at(0)
    size = path.stat().st_size
    os.truncate(path, size - 2)
    copied.at(1)
    for read in (lambda: batches.at(1), lambda: next(batches.evaluation(2, 1))):
        with pytest.raises(DataError, match=f"{path} has become shorter while it was read"):
            read()
    os.truncate(path, size)
    batches.at(1)
    path.unlink()
    batches.at(1)
