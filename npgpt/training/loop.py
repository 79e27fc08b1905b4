"""The training loop, to be read from top to bottom: `train`.

Each turn is an evaluation where one is due, and a step (npgpt/training/trainer.py). All that it does is a
function of (configuration, step, parameters, moments), so a run that was stopped goes on bit for bit.
Every rank (npgpt/training/communication.py) goes through the same loop, each on its share of the sequences;
the first alone says, records and saves.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npgpt.data.examples import Examples, prompts_and_answers
from npgpt.errors import CheckpointError, ConfigError, TrainingError
from npgpt.files import sweep
from npgpt.tensor import to_numpy
from npgpt.tensor.device import allow_tf32
from npgpt.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_latest,
    lock_run,
    prune_checkpoints,
    save_checkpoint,
)
from npgpt.training.communication import MPIRanks, Ranks
from npgpt.training.forks import run_on_processes
from npgpt.training.monitor import Monitor, Silence
from npgpt.training.nccl import gpu_ranks
from npgpt.training.run_data import Config
from npgpt.training.runs import Run, new_model
from npgpt.training.trainer import Trainer
from npgpt.workers import physical_cores

NON_FINITE_IN_A_ROW = 3         # updates skipped for NaN or Inf before the run gives up


def train(run: Run, monitor: Monitor, resume: bool = False, stop: Callable[[], bool] = lambda: False,
          processes: Ranks | None = None) -> bool:
    """Trains the run's model to max_iters updates, until early_stopping_patience evaluations in a row were no
    better than one before, or until `stop` says so; returns whether it ended.

    After every evaluation, and when stopped, a checkpoint is saved; kept are the latest two and the best.
    resume: go on from the latest sound checkpoint, if there is any yet.  processes: the ranks that mpiexec
    started, where there are several; else `workers` forked ones are the ranks.  Raises TrainingError,
    CheckpointError, ConfigError, DataError, DeviceError.
    """
    config, first = run.config, processes is None or processes.rank == 0
    if config.tf32:
        allow_tf32()
    if isinstance(processes, MPIRanks) and config.device != "cpu":
        processes, device = gpu_ranks(processes, config.device)
        run = run._replace(config=(config := replace(config, device=device)))
    with lock_run(run.path) if first else contextlib.nullcontext():
        if first:
            sweep(run.path)
        model = new_model(run.path, config, run.tokenizer.vocab_size)
        checkpoint = None
        if resume and list_checkpoints(run.path):
            checkpoint = load_latest(run.path, monitor.warn if first else lambda text: None)
            model.flat.load(checkpoint.tensors["model"])

        workers = number_of_workers(config) if processes is None or processes.size == 1 else 1
        models  = model.replicas(workers)

        def work(ranks: Ranks) -> bool:
            if ranks.rank == 0:
                return _train(run, monitor, model, checkpoint, stop, ranks)
            own = models[ranks.rank] if ranks is not processes else model
            return _train(run, Silence(), own, checkpoint, lambda: False, ranks)

        if processes is None or processes.size == 1:
            return run_on_processes(workers, work)
        check_ranks(config, processes)
        return work(processes)


def _train(run: Run, monitor: Monitor | Silence, model: Any, checkpoint: Checkpoint | None,
           stop: Callable[[], bool], ranks: Ranks) -> bool:
    config  = run.config
    trainer = Trainer(config, model, run.train, run.val, ranks)
    state: dict[str, Any] = {"step": 0, "evaluated": False, "tokens": 0, "seconds": 0.0, "updates": 0,
                             "best_step": None, "best_val_loss": None, "non_finite_in_a_row": 0,
                             "evaluations_since_best": 0, "train_loss_sum": 0.0, "train_loss_count": 0,
                             "train_loss_at_best": None, "loss_scale": trainer.scale.value, "good_steps": 0}
    size = sum(math.prod(parameter.shape) for parameter in model.parameters.values())
    monitor.note(f"model: {size:,} parameters"
                 f"{f', of which {model.flat.size:,} learn' * (model.flat.size < size)}; "
                 f"a step: {config.sequences_per_update:,} sequences of up to {config.block_size:,} tokens")
    if checkpoint:
        trainer.optimizer.load_state(checkpoint.tensors["optimizer"], checkpoint.state["updates"])
        state |= checkpoint.state
        trainer.scale.value, trainer.scale.good_steps = state["loss_scale"], state["good_steps"]
        monitor.note(f"going on at step {checkpoint.step}" if checkpoint.step < config.max_iters else
                     f"this run is at step {checkpoint.step}, and max_iters is {config.max_iters}: a larger "
                     "--max-iters goes on")
    monitor.rewind(state["step"], state["evaluated"])
    saved_at  = state["step"]
    begun     = time.perf_counter() - state["seconds"]
    logged_at = (time.perf_counter(), state["tokens"])

    def save() -> None:
        state.update(updates=trainer.optimizer.updates, loss_scale=trainer.scale.value,
                     good_steps=trainer.scale.good_steps)
        tensors = {"model": {name: to_numpy(parameter.data)
                             for name, parameter in model.flat.parameters.items()},
                   "optimizer": trainer.optimizer.state()}
        if ranks.rank == 0:
            save_checkpoint(run.path, state["step"], tensors, state)
            if state["step"] != saved_at:                  # else it took the place of one not yet evaluated
                try:
                    prune_checkpoints(run.path, keep={state["step"], saved_at, state["best_step"]} - {None})
                except CheckpointError as error:           # nothing is lost but room on the disk
                    monitor.warn(str(error))

    while True:
        step = state["step"]
        if not state["evaluated"] and (step % config.eval_interval == 0 or step >= config.max_iters):
            val_loss = trainer.evaluate()
            if not math.isfinite(val_loss):
                raise TrainingError(f"the validation loss is {val_loss} at step {step}: "
                                    "lower the learning rate or look at the data")
            best = state["best_val_loss"] is None or val_loss < state["best_val_loss"]
            train_loss = state["train_loss_sum"] / max(state["train_loss_count"], 1) or None
            if best:
                state |= {"best_step": step, "best_val_loss": val_loss, "evaluations_since_best": 0,
                          "train_loss_at_best": train_loss}
            else:
                state["evaluations_since_best"] += 1
            monitor.evaluation({"step": step, "tokens": state["tokens"],
                                "seconds": round(state["seconds"], 3), "val_loss": val_loss}, best)
            if overfits(state, train_loss):
                monitor.note(f"overfitting: since step {state['best_step']} the loss on the training data "
                             f"fell from {state['train_loss_at_best']:.4f} to {train_loss:.4f}, and on the "
                             f"validation data it rose from {state['best_val_loss']:.4f} to {val_loss:.4f}")
            state |= {"evaluated": True, "seconds": time.perf_counter() - begun, "train_loss_sum": 0.0,
                      "train_loss_count": 0}
            if config.sample_tokens and ranks.rank == 0 and (sample := sample_text(run, model)):
                monitor.sample(*sample)
            save()
            saved_at  = step
            logged_at = (time.perf_counter(), state["tokens"])
        asked, = ranks.all_reduce(float(stop()))                              # one rank stops, all stop
        if step >= config.max_iters or asked:
            break
        if 0 < config.early_stopping_patience <= state["evaluations_since_best"]:
            monitor.note(f"stopped early: {state['evaluations_since_best']} evaluations in a row were no "
                         f"better than that at step {state['best_step']}")
            break
        update = trainer.update(step)
        if update.again:
            monitor.note(f"step {step + 1}: a gradient is beyond float16; the loss scale is now "
                         f"{trainer.scale.value:g}")
            continue
        state |= {"step": step + 1, "evaluated": False, "seconds": time.perf_counter() - begun,
                  "tokens": state["tokens"] + update.tokens}
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
        state |= {"non_finite_in_a_row": 0, "train_loss_sum": state["train_loss_sum"] + update.loss,
                  "train_loss_count": state["train_loss_count"] + 1}
        if (step + 1) % config.log_interval == 0 or step + 1 == config.max_iters:
            now = time.perf_counter()
            monitor.log({"step": step + 1, "tokens": state["tokens"], "seconds": round(state["seconds"], 3),
                         "train_loss": update.loss, "learning_rate": update.lr, "grad_norm": update.norm,
                         "tokens_per_second": round((state["tokens"] - logged_at[1]) / (now - logged_at[0]))})
            logged_at = (now, state["tokens"])
    if state["step"] != saved_at:
        save()
    return state["step"] >= config.max_iters or not asked


def overfits(state: dict[str, Any], train_loss: float | None) -> bool:
    """Whether, since the best evaluation, the loss fell on the training data and rose on the other, twice."""
    return state["evaluations_since_best"] >= 2 and train_loss is not None \
        and state["train_loss_at_best"] is not None and train_loss < state["train_loss_at_best"]


def check_ranks(config: Config, processes: Ranks) -> None:
    """Raises ConfigError where mpiexec started more ranks than a step has sequences, or there are workers."""
    most = config.sequences_per_update
    if processes.size > 1 and (processes.size > most or config.workers not in (None, 1)):
        raise ConfigError("mpiexec's processes are the ranks: leave workers out, and start at most "
                          f"{most}, a sequence of the step for each")


def number_of_workers(config: Config) -> int:
    """How many processes share the step: as the configuration says, or the cores there are work for."""
    if config.workers is not None or config.device != "cpu":
        return config.workers or 1
    return min(physical_cores(), config.sequences_per_update)


def sample_text(run: Run, model: Any, tokens: int | None = None) -> tuple[str, str] | None:
    """What the model writes after the first 16 tokens of the validation text, or as the answer of its first
    example; None of a classifier.  tokens: how many, by default sample_tokens.
    """
    tokens   = run.config.sample_tokens if tokens is None else tokens
    settings: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 50, "seed": run.config.seed}
    if not isinstance(run.val, Examples):
        prompt = np.array(run.val[None, :16], np.int64)
    elif run.val.labels.size:
        return None
    else:
        prompt   = np.array([next(prompts_and_answers(run.val))[0]], np.int64)
        settings = {"do_sample": False, "eos_token_id": run.tokenizer.eos_token_id}
    ids = model.generate(prompt, tokens, tokenizer=run.tokenizer, **settings)
    return run.tokenizer.decode(prompt[0].tolist()), run.tokenizer.decode(ids[0, prompt.size:].tolist())
