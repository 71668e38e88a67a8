"""Checkpoints that survive a kill, and runs that continue from them as if nothing had happened.

mmengine 0.10 removes the old checkpoint before it writes the new one, writes in place, and keeps
neither random states nor half-accumulated gradients. With this hook in the place of its own
(`default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook', ...))`) a resumed run ends
with the weights of one that never stopped: on a CPU to the bit, in one process.
"""

import itertools
import logging
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from ropevit_mmdet._output import atomic_file
from ropevit_mmdet.compat.log_text import seen_from_here
from ropevit_mmdet.compat.reading import archive_is_whole

POINTER = "last_checkpoint"  # mmengine's name for the file that names the newest checkpoint
CHECKPOINT_PATHS = ("last_ckpt", "best_ckpt")  # in the message hub
INTERIM = "interim_checkpoint"  # in the message hub: the name of one saved within an epoch
WITHIN_EPOCH = "within_epoch"  # in such a checkpoint: batches trained on, batches of the epoch
CHECKPOINT_NAME = re.compile(r"(iter|epoch)_\d+\.pth")
EPOCH_SEED_STEP = 100_003  # between the seeds of two epochs: more than there are worker processes


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose checkpoints also hold what a resumed run needs.

    Takes the arguments of mmengine's. A checkpoint is written whole (`stack.writing`) before the
    outdated one is removed. It holds in addition

    - `random_states`: of Python, numpy and torch, of every process;
    - `gradients`: of parameters in the middle of an accumulation. In a distributed run they are
      not kept; a warning says so.

    It names no absolute path (`stack.log_text`). The files of the run are called by their names
    alone, in `last_checkpoint` too: a work dir can be moved, and resumed from there.

    Validation leaves the random numbers of training alone. In an EpochBasedTrainLoop, worker
    processes are started and seeded again for every epoch, by its number, and a run that is resumed
    within an epoch skips the batches of it that were trained on.
    """

    _states: list[dict[str, Any]] | None = None  # of a checkpoint to be written, by rank
    _resumed: dict[str, Any] | None = None
    _before_val: dict[str, Any] | None = None
    _position: dict[str, int] | None = None  # `epoch` and `iter` of a checkpoint to be written
    _saved_iter: int | None = None  # iterations behind the newest checkpoint to resume from
    _epoch: tuple[int, int, int] = (-1, 0, 0)  # its number, its first iteration, its batches

    def before_run(self, runner: Runner) -> None:
        # mmengine would trust `last_checkpoint`, whatever has become of the file that it names.
        if runner._resume and runner._load_from is None:
            newest = latest_checkpoint(runner.work_dir)
            runner._resume, runner._load_from = newest is not None, newest and str(newest)
        if get_world_size() > 1:  # the first process has looked while nobody else could write
            chosen = [runner._resume, runner._load_from]
            broadcast_object_list(chosen)
            runner._resume, runner._load_from = chosen

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.save_best and len(self.key_indicators) == 1:
            self.best_ckpt_path = self._found(self.best_ckpt_path)
        elif self.save_best:
            paths = self.best_ckpt_path_dict.items()
            self.best_ckpt_path_dict = {key: self._found(path) for key, path in paths}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            kept = ("random_states", "gradients", WITHIN_EPOCH)
            self._resumed = {key: checkpoint.get(key) for key in kept}
            if self._resumed["random_states"] is None:
                print_log(
                    "the checkpoint holds no random states: the resumed run draws other numbers "
                    "than one that never stopped",
                    "current",
                    logging.WARNING,
                )

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            _renew_workers(runner.train_dataloader, runner.epoch)
            batches = len(runner.train_dataloader)
            done = self._done_of_epoch(batches)
            self._epoch = (runner.epoch, runner.iter - done, batches)
            if done > 0:
                _skip_batches(loop, done, partial(self._restore, runner))
            else:
                self._restore(runner)
        elif self._resumed is not None:
            # The loop skips the batches that were trained on; states belong behind the last one.
            loop.dataloader_iterator = _call_after(
                loop.dataloader_iterator, runner.iter, partial(self._restore, runner)
            )

    def save_now(self, runner: Runner, done: int) -> None:
        """Save out of turn, `done` iterations behind the start, unless that is saved already.

        Within an epoch of a run whose checkpoints count epochs the file is called by the iteration
        all the same, and removed behind the next one.
        """
        if self._saved_iter == done:
            return
        meta = dict(epoch=runner.epoch, iter=done)
        if not self.by_epoch:
            self._save_checkpoint_with_step(runner, done, meta)
        elif done == runner.iter:  # a validation stands between two epochs
            self._save_checkpoint_with_step(runner, runner.epoch, meta)
        else:
            self._save_within_epoch(runner, done, meta)

    def save_within_val(self, runner: Runner) -> None:
        """Save out of turn what training continues with behind the validation that is running."""
        averaging = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in averaging:
            hook.after_val_epoch(runner)  # takes the averaged weights out of the model
        self.save_now(runner, runner.iter)
        for hook in averaging:
            hook.before_val_epoch(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        self._before_val = random_states()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        # mmengine saves the best checkpoint, and the last one again, from here.
        if self._before_val is not None:
            set_random_states(self._before_val)
            self._before_val = None
        self._replace_best(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        _leave_out_machine(checkpoint)
        if self._position is not None:  # FlexibleRunner writes its own over it, one too many
            checkpoint["meta"].update(self._position)
        if self._states is None:
            return  # a best checkpoint: not to resume from
        checkpoint["random_states"] = self._states
        epoch, first, batches = self._epoch
        if self._position["epoch"] == epoch:
            checkpoint[WITHIN_EPOCH] = [self._position["iter"] - first, batches]
        if runner.optim_wrapper.should_update():
            return
        if get_world_size() > 1:
            print_log(
                "saved in the middle of an accumulation of gradients: a resumed run drops its first"
                " part. Choose an interval that accumulative_counts divides.",
                "current",
                logging.WARNING,
            )
            return
        checkpoint["gradients"] = {
            name: parameter.grad.cpu()
            for name, parameter in runner.model.named_parameters()
            if parameter.grad is not None
        }

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = [self._outdated(runner, step), runner.message_hub.pop_info(INTERIM)]
        self._write(runner, step, meta)
        for name in filter(None, outdated):
            self._remove(self.file_backend.join_path(self.out_dir, name))

    def _save_within_epoch(self, runner: Runner, done: int, meta: dict[str, Any]) -> None:
        """Save a checkpoint that counts iterations, which the next one replaces."""
        kept, outdated = self.filename_tmpl, runner.message_hub.pop_info(INTERIM)
        self.by_epoch, self.filename_tmpl = False, "iter_{}.pth"
        runner.message_hub.update_info(INTERIM, self.filename_tmpl.format(done))
        try:
            self._write(runner, done, meta)
        finally:
            self.by_epoch, self.filename_tmpl = True, kept
        if outdated is not None:
            self._remove(self.file_backend.join_path(self.out_dir, outdated))

    def _write(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """mmengine's way to save a checkpoint, without its removal of old ones before that."""
        self._states = all_gather_object(self._before_val or random_states())
        self._position = dict(meta)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._states, self._position = None, None
        self._saved_iter = meta["iter"]  # in every process: the first alone writes
        if is_main_process():
            pointer = name if self.out_dir == runner.work_dir else self.last_ckpt
            with atomic_file(os.path.join(runner.work_dir, POINTER)) as file:
                file.write(pointer.encode())

    def _outdated(self, runner: Runner, step: int) -> str | None:
        """Note `step` as the newest checkpoint; the name of the one that it makes too many."""
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return None
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft()) if full else None
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        return outdated

    def _replace_best(self, runner: Runner, metrics: dict[str, float] | None) -> None:
        """Save a new best checkpoint, and remove the one before it after that, not before."""
        if not self.save_best:
            return super().after_val_epoch(runner, metrics)
        single = len(self.key_indicators) == 1
        before = {"": self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        if single:
            self.best_ckpt_path = None
        else:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        self._position = dict(epoch=runner.epoch, iter=runner.iter)
        super().after_val_epoch(runner, metrics)
        self._position = None
        after = {"": self.best_ckpt_path} if single else self.best_ckpt_path_dict
        for key, path in before.items():
            if after[key] is None:
                after[key] = path
            elif path is not None and path != after[key]:
                self._remove(path)
        if single:
            self.best_ckpt_path = after[""]

    def _found(self, path: str | None) -> str | None:
        """Where the best checkpoint is that a resumed run was told of; None: not in its directory."""
        path = path and self.file_backend.join_path(self.out_dir, os.path.basename(path))
        return path if path and self.file_backend.isfile(path) else None

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _done_of_epoch(self, batches: int) -> int:
        """How many batches of the epoch that begins now a resumed run was trained on already.

        Raises ValueError where they were batches of other sizes or data.
        """
        done, of = (self._resumed or {}).get(WITHIN_EPOCH) or (0, batches)
        if done and of != batches:
            raise ValueError(
                f"the checkpoint was saved behind {done} batches of an epoch of {of}, which has "
                f"{batches} of them now: give the batch size, the data and the number of processes "
                "that it was saved with, or resume from the end of an epoch"
            )
        return done

    def _restore(self, runner: Runner) -> None:
        """Put random states, and gradients half accumulated, back where the checkpoint had them."""
        if self._resumed is None:
            return
        states, gradients = self._resumed["random_states"], self._resumed["gradients"]
        self._resumed = None
        if states is not None and len(states) == get_world_size():
            set_random_states(states[get_rank()])
        for name, parameter in runner.model.named_parameters():
            if gradients is not None and name in gradients:
                parameter.grad = gradients[name].to(parameter.device, copy=True)


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, numpy, torch and its GPU, as plain data."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Undo every draw since `random_states()` returned `states`."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def latest_checkpoint(directory: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a work dir that is whole; None if there is none.

    The one that `last_checkpoint` names comes first, then `iter_*.pth` and `epoch_*.pth` by time. A
    file that was truncated is passed over with a warning.
    """
    directory = Path(directory)
    pointer = directory / POINTER
    text = pointer.read_text(encoding="utf-8", errors="replace") if pointer.is_file() else ""
    named = directory / text.strip("\0 \n")  # mmengine writes absolute paths
    files = [file for file in directory.glob("*.pth") if CHECKPOINT_NAME.fullmatch(file.name)]
    files = [file for file in files if file.is_file()]  # not links to what is gone
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    if os.path.isfile(named):  # also of names that no file can have, which Path would raise for
        files = [named, *(file for file in files if file.name != named.name)]
    for file in files:
        if archive_is_whole(file):
            return file
        print_log(f"{file} is damaged, passed over", "current", logging.WARNING)
    return None


def _leave_out_machine(checkpoint: dict[str, Any]) -> None:
    """Take absolute paths and secrets out of the texts that mmengine puts beside the weights."""
    hub = checkpoint["message_hub"]["runtime_info"]
    for key in hub:
        if isinstance(hub[key], str) and key.startswith(CHECKPOINT_PATHS):
            hub[key] = os.path.basename(hub[key])
    for texts in (checkpoint["meta"], hub):
        for key, value in texts.items():
            if isinstance(value, str):
                texts[key] = seen_from_here(value)


def _call_after(batches: Iterator[Any], count: int, action: Callable[[], None]) -> Iterator[Any]:
    """The same batches; `action` is called once, after `count` of them and before the next."""
    yield from itertools.islice(batches, count)
    action()
    yield from batches


def _skip_batches(loop: EpochBasedTrainLoop, count: int, action: Callable[[], None]) -> None:
    """Have the loop pass over the first `count` batches of an epoch; `action` is called behind."""
    batches = len(loop.dataloader)
    print_log(f"skipping {count} of {batches} batches, which were trained on", "current")

    def skip(index: int, batch: Any) -> None:
        if index + 1 == count:
            del loop.run_iter  # its class has it again
            action()

    loop.run_iter = skip


def _renew_workers(dataloader: torch.utils.data.DataLoader, epoch: int) -> None:
    """End worker processes of the last epoch; those of this one are seeded by its number.

    Persistent workers carry their random states from epoch to epoch, where no checkpoint sees them.
    """
    dataloader._iterator = None
    seeding = dataloader.worker_init_fn
    if isinstance(seeding, partial) and isinstance(seeding.keywords.get("seed"), int):
        first = getattr(dataloader, "first_epoch_seed", seeding.keywords["seed"])
        dataloader.first_epoch_seed = first
        seed = (first + EPOCH_SEED_STEP * epoch) % 2**32
        dataloader.worker_init_fn = partial(seeding, seed=seed)
