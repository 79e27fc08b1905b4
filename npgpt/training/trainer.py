"""The training loop, to be read from top to bottom: `train`.

A step is: a batch by its number, loss and gradients, the gradients' norm clipped, AdamW. Everything it does
is a function of (configuration, step, parameters, moments), so a run that was stopped goes on bit for bit.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npgpt.data.batches import Batches, evaluation_batches
from npgpt.errors import TrainingError
from npgpt.models import GPT
from npgpt.models.gpt import IGNORE_INDEX
from npgpt.ops.penalty import penalty_backward
from npgpt.tensor import Key, array_module, to_numpy
from npgpt.training.checkpoint import (
    list_checkpoints,
    load_latest,
    lock_run,
    prune_checkpoints,
    save_checkpoint,
)
from npgpt.training.config import TrainConfig
from npgpt.training.monitor import Monitor
from npgpt.training.optimizer import AdamW, clip_grad_norm
from npgpt.training.runs import Run
from npgpt.training.schedule import learning_rate

NON_FINITE_IN_A_ROW = 3         # updates skipped for NaN or Inf before the run gives up


class Update(NamedTuple):
    """What one step found: mean loss in nats, norm of the gradients before clipping, learning rate."""

    loss: float
    norm: float
    lr: float


def train(run: Run, monitor: Monitor, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> bool:
    """Trains the run's model to max_iters updates, or until `stop` says so; returns whether it ended.

    After every evaluation, and when stopped, a checkpoint is saved; kept are the latest two and the best.
    resume: go on from the latest sound checkpoint, if there is any yet.  Raises TrainingError,
    CheckpointError, DataError, DeviceError.
    """
    with lock_run(run.path):
        return _train(run, monitor, resume, stop)


def _train(run: Run, monitor: Monitor, resume: bool, stop: Callable[[], bool]) -> bool:
    config  = run.config
    model   = GPT(config.model(run.tokenizer.vocab_size), config.seed, config.device, config.dtype)
    trainer = Trainer(config, model, run.train, run.val)
    state: dict[str, Any] = {"step": 0, "evaluated": False, "tokens": 0, "seconds": 0.0, "updates": 0,
                             "best_step": None, "best_val_loss": None, "non_finite_in_a_row": 0}
    if resume and list_checkpoints(run.path):
        checkpoint = load_latest(run.path, monitor.warn)
        model.flat.load(checkpoint.tensors["model"])
        trainer.optimizer.load_state(checkpoint.tensors["optimizer"], checkpoint.state["updates"])
        state |= checkpoint.state
        monitor.note(f"going on at step {checkpoint.step}")
    monitor.rewind(state["step"])
    saved_at  = state["step"]
    begun     = time.perf_counter() - state["seconds"]
    logged_at = (time.perf_counter(), state["tokens"])

    def save() -> None:
        state["updates"] = trainer.optimizer.updates
        tensors = {"model": {name: to_numpy(parameter.data) for name, parameter in model.parameters.items()},
                   "optimizer": trainer.optimizer.state()}
        save_checkpoint(run.path, state["step"], tensors, state)
        prune_checkpoints(run.path, keep={state["step"], saved_at, state["best_step"]} - {None})

    while True:
        step = state["step"]
        if not state["evaluated"] and (step % config.eval_interval == 0 or step >= config.max_iters):
            val_loss = trainer.evaluate()
            if not math.isfinite(val_loss):
                raise TrainingError(f"the validation loss is {val_loss} at step {step}: "
                                    "lower the learning rate or look at the data")
            best = state["best_val_loss"] is None or val_loss < state["best_val_loss"]
            if best:
                state |= {"best_step": step, "best_val_loss": val_loss}
            state |= {"evaluated": True, "seconds": time.perf_counter() - begun}
            monitor.evaluation({"step": step, "tokens": state["tokens"],
                                "seconds": round(state["seconds"], 3), "val_loss": val_loss}, best)
            if config.sample_tokens:
                monitor.sample(*sample_text(run, model, config.sample_tokens))
            save()
            saved_at  = step
            logged_at = (time.perf_counter(), state["tokens"])
        if step >= config.max_iters or stop():
            break
        update = trainer.update(step)
        state |= {"step": step + 1, "evaluated": False, "seconds": time.perf_counter() - begun,
                  "tokens": state["tokens"] + trainer.tokens_per_update}
        monitor.advance(step + 1)
        if not (math.isfinite(update.loss) and math.isfinite(update.norm)):
            state["non_finite_in_a_row"] += 1
            where = trainer.name_non_finite(update)
            monitor.warn(f"step {step + 1}: {where}; no update was made")
            if state["non_finite_in_a_row"] == NON_FINITE_IN_A_ROW:
                raise TrainingError(f"{where}, {NON_FINITE_IN_A_ROW} steps in a row up to step {step + 1}: "
                                    "lower the learning rate or look at the data; "
                                    f"the last checkpoint in {run.path} is good")
            continue
        state["non_finite_in_a_row"] = 0
        if (step + 1) % config.log_interval == 0 or step + 1 == config.max_iters:
            now = time.perf_counter()
            monitor.log({"step": step + 1, "tokens": state["tokens"], "seconds": round(state["seconds"], 3),
                         "train_loss": update.loss, "learning_rate": update.lr, "grad_norm": update.norm,
                         "tokens_per_second": round((state["tokens"] - logged_at[1]) / (now - logged_at[0]))})
            logged_at = (now, state["tokens"])
    if state["step"] != saved_at:
        save()
    return state["step"] >= config.max_iters


class Trainer:
    """A model, its optimiser and its data: one update, one evaluation."""

    def __init__(self, config: TrainConfig, model: GPT, train: np.ndarray, val: np.ndarray):
        self.config, self.model, self.val = config, model, val
        sequences = config.batch_size * config.gradient_accumulation_steps
        self.tokens_per_update = sequences * config.block_size
        self.batches   = Batches(train, config.block_size, sequences, config.seed)
        self.optimizer = AdamW(model, config.learning_rate, (config.beta1, config.beta2),
                               weight_decay=config.weight_decay)

    def update(self, step: int) -> Update:
        """Step number `step`, from 0. Where loss or gradients are not finite, nothing is updated."""
        c = self.config
        lr = learning_rate(step, c.learning_rate, c.warmup_iters, c.lr_decay_iters or c.max_iters,
                           c.learning_rate / 10 if c.min_lr is None else c.min_lr)
        loss = self.loss_and_gradients(step, *self.batches.at(step))
        norm = clip_grad_norm(self.model, c.grad_clip or math.inf)
        result = Update(float(to_numpy(loss)), float(to_numpy(norm)), lr)
        if math.isfinite(result.loss) and math.isfinite(result.norm):
            self.optimizer.step(lr)
        return result

    def loss_and_gradients(self, step: int, tokens: np.ndarray, targets: np.ndarray):
        """tokens, targets: all sequences of the step, (N, T)  →  mean loss over counted targets, 0-d

        They go through the model batch_size at a time. Each part's loss is divided by the targets counted in
        all of them, so that the sums are the loss and the gradients of one large batch, and dropout is told
        each sequence's number in it.
        """
        c = self.config
        self.model.zero_grad()
        counted = int((targets != IGNORE_INDEX).sum())
        loss = 0.0
        for first in range(0, len(tokens), c.batch_size):
            part = slice(first, first + c.batch_size)
            key  = Key(c.seed, step=step, example=first) if c.dropout else None
            loss = loss + self._accumulate(tokens[part], targets[part], key, counted)
        if c.l1 or c.l2:
            flat = self.model.flat
            one  = array_module(flat.data).ones((), flat.data.dtype)
            flat.grad[:flat.decayed] += penalty_backward(one, (flat.data[:flat.decayed], c.l1, c.l2))
        return loss

    def _accumulate(self, tokens: np.ndarray, targets: np.ndarray, key: Key | None, counted: int):
        loss, saved = self.model.loss(tokens, targets, key, counted)
        self.model.backward(saved)
        return loss                     # and `saved` is gone before the next part's forward

    def evaluate(self) -> float:
        """Mean loss over the validation windows, in nats a token; dropout is off."""
        total, count = 0.0, 0
        c = self.config
        for tokens, targets in evaluation_batches(self.val, c.block_size, c.batch_size, c.eval_iters):
            loss, _ = self.model.loss(tokens, targets)
            total += float(to_numpy(loss)) * targets.size
            count += targets.size
        return total / count

    def name_non_finite(self, update: Update) -> str:
        """Which tensor is not finite: a parameter, the loss, or a gradient (the first of each, in forward's
        order)."""
        for name, parameter in self.model.parameters.items():
            if not np.isfinite(to_numpy(parameter.data)).all():
                return f"NaN or Inf in the parameter {name}"
        if not math.isfinite(update.loss):
            return f"the loss is {update.loss}"
        for name, parameter in self.model.parameters.items():
            if not np.isfinite(to_numpy(parameter.grad)).all():
                return f"NaN or Inf in the gradient of {name}"
        return f"the norm of the gradients is {update.norm}"


def sample_text(run: Run, model: GPT, tokens: int) -> tuple[str, str]:
    """The first 16 tokens of the validation text, and so many that the model writes after them."""
    prompt = np.array(run.val[None, :16], np.int64)
    ids = model.generate(prompt, tokens, do_sample=True, temperature=0.8, top_k=50, seed=run.config.seed)
    return run.tokenizer.decode(prompt[0].tolist()), run.tokenizer.decode(ids[0, prompt.size:].tolist())
