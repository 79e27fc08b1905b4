"""Packing: every example once, rows full, and loss and gradients as if each example stood alone."""

from bisect import insort

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from npgpt import GPT, BPETokenizer, GPTConfig
from npgpt.data import packing
from npgpt.data.batches import epoch_random
from npgpt.data.examples import encode_records
from npgpt.data.packing import ExampleBatches, pack
from npgpt.data.records import Labelled, Pair
from npgpt.inspection.draw import Draw
from npgpt.ops import cross_entropy_backward, cross_entropy_forward

TOKENIZER = BPETokenizer(())
END = TOKENIZER.eos_token_id


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Pair("p" * rng.integers(1, 5) + str(n), ("c" * rng.integers(1, 7),)) for n in range(count)]


def examples(count, block_size=16):
    found, left_out = encode_records(pairs(count), TOKENIZER, block_size, [END], None)
    assert not left_out
    return found


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 10))
def test_every_example_is_in_one_row_and_no_two_rows_could_be_one(lengths, room):
    size = max(lengths) + room
    rows = pack(lengths, size)
    assert sorted(n for row in rows for n in row.tolist()) == list(range(len(lengths)))
    used = sorted(sum(lengths[n] for n in row) for row in rows)
    assert used[-1] <= size and (len(rows) == 1 or used[0] + used[1] > size)


def test_the_fullest_row_with_room_takes_an_example():
    assert [row.tolist() for row in pack([5, 7, 3, 4, 1], 10)] == [[1, 2], [0, 3, 4]]
    assert [row.tolist() for row in pack([2, 3, 2], 0)] == [[1], [0], [2]]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_of_rows_with_as_much_room_the_first_takes_an_example(lengths):
    rows, size = [], 12
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        rooms = [size - sum(lengths[m] for m in row) for row in rows]
        fits  = [(room, row) for row, room in enumerate(rooms) if room >= lengths[n]]
        if fits:
            rows[min(fits)[1]].append(n)
        else:
            rows.append([n])
    assert [row.tolist() for row in pack(lengths, size)] == rows


def test_looking_for_a_row_goes_through_sizes_not_rows(monkeypatch):
    """Rows in one sorted list made packing quadratic: each example moved all rows behind its own."""
    seen = []
    monkeypatch.setattr(packing, "insort", lambda rooms, room: (seen.append(len(rooms)), insort(rooms, room)))
    assert len(pack([17] * 500 + [6] * 500, 32)) == 500
    assert seen and max(seen) < 32


def test_of_examples_of_one_length_the_first_comes_first():
    """Whatever the machine sorts by: rows and their order are the same on all, or no run could move."""
    rows = pack([1 + n % 2 for n in range(200)], 0)
    assert [row.tolist() for row in rows] == [[n] for first in (1, 0) for n in range(first, 200, 2)]


def test_a_row_holds_its_examples_one_after_the_other():
    found   = examples(9)
    batches = ExampleBatches(found, 16, 3, seed=1)
    assert any(len(row) > 1 for row in batches.rows)
    seen = []
    for batch in batches.evaluation(2, 100):
        for tokens, targets, mask in zip(*batch, strict=True):
            for number in range(1, mask.max() + 1):
                here  = np.flatnonzero(mask == number)
                whole = [*tokens[here].tolist(), END]                         # the last is a target only
                assert (np.diff(here) == 1).all()
                n = next(n for n in range(9) if found.tokens[found.starts[n]:found.starts[n + 1]].tolist()
                         == whole)
                counted = found.counted[found.starts[n]:found.starts[n + 1]]
                assert targets[here].tolist() == np.where(counted, whole, -100)[1:].tolist()
                seen.append(n)
            assert (targets[mask == 0] == -100).all()
    assert sorted(seen) == list(range(9))


def test_prompts_add_exactly_nothing_to_the_loss_and_its_gradient_packed_or_not():
    """The loss is that of the answers' tokens alone, each foretold from its own example's beginning."""
    found = examples(7)
    model = GPT(GPTConfig(vocab_size=257, block_size=16, n_layer=2, n_head=2, n_embd=8), dtype="float64")
    Draw(np.random.default_rng(0)).parameters(model)
    total, gradient = 0, 0
    for start, stop in zip(found.starts[:-1], found.starts[1:], strict=True):
        tokens, counted = found.tokens[start:stop].astype(int), found.counted[start:stop]
        targets = np.where(counted, tokens, -100)[1:]
        logits, saved = model.forward(tokens[None, :-1])
        loss, s = cross_entropy_forward(logits, targets[None], 1)
        dlogits = cross_entropy_backward(1.0, s)
        assert not dlogits[0, ~counted[1:]].any() and dlogits[0, counted[1:]].any(-1).all()
        model.zero_grad()
        model.backward_logits(dlogits, saved)
        total, gradient = total + loss, gradient + model.flat.grad
    for packed in (True, False):
        batches = ExampleBatches(found, 16, 2, seed=0, packed=packed)
        assert (len(batches.rows) < 7) == packed
        model.zero_grad()
        loss = 0
        for batch in batches.evaluation(2, 100):
            part, saved = model.loss(batch.tokens, batch.targets, None, 1, batch.attention_mask)
            model.backward(saved)
            loss += part
        assert abs(loss - total) < 1e-12 * total
        np.testing.assert_allclose(model.flat.grad, gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())


def test_each_epoch_visits_each_row_once_in_an_order_of_its_own():
    batches = ExampleBatches(examples(40), 16, 4, seed=5)
    count, orders = len(batches.rows), []
    assert count % 4

    def rows_of(some):
        return [np.pad(row, (0, 16 - len(row))).tobytes() for batch in some for row in batch.tokens]

    rows = rows_of(map(batches.at, range(3 * count)))
    for epoch in range(12):
        orders.append(tuple(rows[epoch * count:(epoch + 1) * count]))
        assert len(set(orders[-1])) == count
    assert len(set(orders)) == 12
    whole = rows_of(batches.evaluation(4, count))
    assert orders[2] == tuple(whole[n] for n in epoch_random(5, 2).permutation(count))    # as in pretraining
    again = ExampleBatches(examples(40), 16, 4, seed=5).at(7)
    assert all(np.array_equal(a, b) for a, b in zip(batches.at(7), again, strict=True))
    assert not np.array_equal(ExampleBatches(examples(40), 16, 4, seed=6).at(7).tokens, again.tokens)


def test_rows_are_as_wide_as_they_must_be():
    """To a multiple of 8, and never wider than the context."""
    found, _ = encode_records([Pair("a", ("b",)), Pair("a" * 9, ("b" * 4,))], TOKENIZER, 13, [END], None)
    batches  = ExampleBatches(found, 13, 1, seed=0, packed=False)
    assert sorted(batch.tokens.shape[1] for batch in batches.evaluation(1, 2)) == [8, 13]
    assert sorted(batch.real for batch in batches.evaluation(1, 2)) == [2, 13]


def test_classes_have_a_row_each_and_evaluation_spreads_over_all():
    records  = [Labelled("x" * (n + 1), "ab"[n % 2]) for n in range(10)]
    found, _ = encode_records(records, TOKENIZER, 16, [END], None, ["a", "b"])
    batches  = ExampleBatches(found, 16, 2, seed=0)
    whole    = list(batches.evaluation(4, 100))
    assert [len(batch.tokens) for batch in whole] == [4, 4, 2]
    assert all(batch.targets[n] == (batch.attention_mask[n].sum() - 1) % 2
               for batch in whole for n in range(len(batch.targets)))
    few = next(batches.evaluation(3, 1))
    assert few.attention_mask.sum(1).tolist() == [10, 7, 4]               # rows 0, 3 and 6, the longest first
