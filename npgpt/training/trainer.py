"""One step of training, and one evaluation: `Trainer`. The loop around them is npgpt/training/loop.py.

A step is: a batch by its number, loss and gradients, the gradients' norm clipped, AdamW.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from npgpt.data.batches import Batch, Batches
from npgpt.data.examples import Examples
from npgpt.data.packing import ExampleBatches
from npgpt.errors import ConfigError, DataError
from npgpt.layers import Module
from npgpt.models.decoder import IGNORE_INDEX
from npgpt.ops.penalty import penalty_backward
from npgpt.ops.sum_of_squares import sum_of_squares
from npgpt.ranges import is_whole
from npgpt.tensor import Key, array_module, to_numpy
from npgpt.training.communication import Ranks
from npgpt.training.config import StepSettings
from npgpt.training.loss_scale import LossScale
from npgpt.training.optimizer import AdamW, clip_scale
from npgpt.training.run_data import Config


class Update(NamedTuple):
    """What one step found: mean loss in nats, norm of the gradients before clipping, learning rate; how many
    tokens it read; and whether it is to be made again, with a smaller loss scale.
    """

    loss: float
    norm: float
    lr: float
    tokens: int
    again: bool = False


class Trainer:
    """A model, its optimiser and its data: one update, one evaluation.

    train, val: tokens, Examples, or what makes its own batches (npgpt.data.batches.Batch): with `at(step)`,
    all sequences of a step at once, and `evaluation(batch_size, max_batches)`, an iterator.
    `optimizer` is AdamW, until another with `step(lr, grad_scale)` is put in its place.
    The learning rate is config.rate(step): a subclass of TrainConfig may have a schedule of its own.
    ranks: each of several has a Trainer, and all call the same methods; each works on its share of the
    sequences, and what they return is of all.
    """

    def __init__(self, config: Config, model: Any, train: Any, val: Any, ranks: Ranks | None = None):
        self.config, self.model, self.val, self.ranks = config, model, val, ranks or Ranks()
        if not isinstance(config, StepSettings):
            raise ConfigError(f"a Trainer takes a TrainConfig, and not a {type(config).__name__}")
        self.batches   = self._batches(train)
        self.optimizer = AdamW(model, config.learning_rate, (config.beta1, config.beta2),
                               weight_decay=config.weight_decay, ranks=self.ranks, seed=config.seed)
        self.scale     = LossScale(model.flat.data.dtype.name)

    def update(self, step: int) -> Update:
        """Step number `step`, from 0. Where loss or gradients are not finite, nothing is updated."""
        if not (is_whole(step) and step >= 0):
            raise ConfigError(f"step must be a whole number, at least 0, not {step!r}")
        scale = self.scale.value
        c, flat = self.config, self.model.flat
        lr = c.rate(step)
        batch = self.batches.at(step)
        loss  = self.loss_and_gradients(step, batch)
        self.ranks.in_turn(flat.settle)
        self.ranks.reduce_scatter(grad := flat.grad)
        mine = self.ranks.part(flat.size)
        if c.l1 or c.l2:
            self._add_penalty(mine)
        loss, square = self.ranks.all_reduce(loss, sum_of_squares(grad[mine]))
        xp   = array_module(grad)
        norm = xp.sqrt(square) / scale
        clip = (clip_scale(norm, c.grad_clip) if c.grad_clip else 1.0) / scale
        told = to_numpy(xp.stack([loss, norm])).tolist()      # a GPU is waited for, and has all but AdamW
        result = Update(told[0], told[1], lr, batch.real)
        if math.isfinite(result.loss) and math.isfinite(result.norm):
            self.optimizer.step(lr, clip)
            self.scale.succeeded()
        elif math.isfinite(result.loss) and self.scale.overflowed():
            return result._replace(again=True)
        return result

    def loss_and_gradients(self, step: int, batch: Batch):
        """batch: all N sequences of the step  →  mean loss over counted targets, 0-d; its gradients are
        multiplied by the loss scale

        This rank's share of them goes through the model, batch_size at a time on all ranks together. Each
        part's loss is divided by the targets counted in all N, so that the sums over parts and ranks are the
        loss and the gradients of one large batch, and dropout is told each sequence's number in it.
        """
        c = self.config
        self.model.zero_grad()
        counted = int((batch.targets != IGNORE_INDEX).sum())
        loss, mine, at_once = 0.0, self.ranks.part(len(batch.tokens)), -(-c.batch_size // self.ranks.size)
        early = len(batch.tokens) >= self.ranks.size       # then every rank has a last part
        for first in range(mine.start, mine.stop, at_once):
            part = slice(first, min(first + at_once, mine.stop))
            loss = loss + self._accumulate(batch.rows(part), Key(c.seed, step=step, example=first), counted,
                                           early and part.stop == mine.stop)
        return loss

    def _accumulate(self, batch: Batch, key: Key, counted: int, last: bool):
        loss, saved = self.model.loss(batch.tokens, batch.targets, key, counted, batch.attention_mask)
        self.model.backward(saved, self.scale.value, self._reduce_early if last else None)
        return loss                     # and `saved` is gone before the next part's forward

    def _reduce_early(self, block: Module) -> None:
        """A block's gradients are complete: they are added up over the ranks while backward goes on."""
        def add() -> None:
            for grad, stretch in self.model.flat.settle(block):
                self.ranks.reduce_early(grad, stretch)

        self.ranks.in_turn(add)

    def _add_penalty(self, mine: slice) -> None:
        """The penalties' gradient, to what is this rank's part of the matrices."""
        c, flat = self.config, self.model.flat
        part = slice(mine.start, min(mine.stop, flat.decayed))
        dy   = array_module(flat.data).full((), self.scale.value, flat.grad_dtype)
        flat.grad[part] += penalty_backward(dy, (flat.data[part], c.l1, c.l2))

    def evaluate(self) -> float:
        """Mean loss over the validation data's counted targets, in nats; dropout is off. Raises DataError if
        there are none.
        """
        c, total, count = self.config, 0.0, 0
        for batch in self._batches(self.val).evaluation(c.batch_size, c.eval_iters):
            mine = self.ranks.part(len(batch.tokens))
            if mine.start < mine.stop:
                part  = batch.rows(mine)
                loss, _ = self.model.loss(part.tokens, part.targets, None, 1, part.attention_mask)
                total += float(to_numpy(loss))
                count += int((part.targets != IGNORE_INDEX).sum())
        total, count = self.ranks.all_reduce(total, count)
        if not count:
            raise DataError("the validation data has no target that counts: there is nothing to evaluate on")
        return total / count

    def _batches(self, tokens: Any) -> Any:
        c = self.config
        if hasattr(tokens, "at") and hasattr(tokens, "evaluation"):
            return tokens
        if isinstance(tokens, Examples):
            return ExampleBatches(tokens, c.block_size, c.sequences_per_update, c.seed, c.packing)
        return Batches(tokens, c.block_size, c.sequences_per_update, c.seed)

    def name_non_finite(self, update: Update) -> str:
        """Which tensor is not finite: a parameter, the loss, or a gradient (the first of each, in forward's
        order)."""
        gradients = self.model.flat.grad
        self.ranks.all_gather(gradients)                       # each has added up only its own part of them
        for name, parameter in self.model.parameters.items():
            if not np.isfinite(to_numpy(parameter.data)).all():
                return f"NaN or Inf in the parameter {name}"
        if not math.isfinite(update.loss):
            return f"the loss is {update.loss}"
        views = self.model.flat.views(gradients)
        for name in self.model.parameters:
            if name in views and not np.isfinite(to_numpy(views[name])).all():
                return f"NaN or Inf in the gradient of {name}"
        return f"the norm of the gradients is {update.norm}"
