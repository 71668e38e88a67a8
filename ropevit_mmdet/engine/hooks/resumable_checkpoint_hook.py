"""ResumableCheckpointHook: runs that continue from a checkpoint as if they had never stopped."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ropevit_mmdet.engine.hooks._checkpoint_files import atomic_checkpoints, latest_checkpoint
from ropevit_mmdet.engine.hooks._training_state import (
    call_after_batches,
    random_states,
    restart_workers,
    set_random_states,
    skip_batches,
)
from ropevit_mmdet.errors import UserError

INTERIM = "interim_checkpoint"  # in the message hub: the name of one saved within an epoch
WITHIN_EPOCH = "within_epoch"  # in a checkpoint: batches trained on, batches of the epoch


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with what a resumed run needs to end with the same weights.

    On a CPU, in one process, they are the same to the bit. Takes the arguments of mmengine's hook.
    Outdated files are removed only after the new one is complete. A run that another hook ends,
    such as EarlyStoppingHook, saves its last checkpoint too. Checkpoints also contain

    - `random_states`: of Python, numpy and torch, of every process;
    - `gradients`: those accumulated so far, in the middle of an accumulation. A distributed run
      does not save them and warns.

    Validation leaves the random numbers of training unchanged. An EpochBasedTrainLoop starts and
    seeds its workers again for every epoch; a run resumed within an epoch skips the batches that
    were trained on, and needs the same number of batches per epoch.
    """

    _states: list[dict[str, Any]] | None = None  # by rank, for a checkpoint being written
    _position: dict[str, int] = {}  # `epoch` and `iter` of a checkpoint being written
    _resumed: dict[str, Any] | None = None  # what is restored before the first step
    _before_val: dict[str, Any] | None = None  # random states
    _saved_iter: int | None = None  # iterations before the newest checkpoint
    _epoch: tuple[int, int, int] = (-1, 0, 0)  # its index, its first iteration, its batches

    def before_run(self, runner: Runner) -> None:
        # mmengine would use the file that `last_checkpoint` names without checking it.
        if runner._resume and runner._load_from is None:
            latest = latest_checkpoint(runner.work_dir)
            runner._resume, runner._load_from = latest is not None, latest and str(latest)
        if get_world_size() > 1:  # the first process chose when no other run could be saving
            chosen = [runner._resume, runner._load_from]
            broadcast_object_list(chosen)
            runner._resume, runner._load_from = chosen

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            keys = ("random_states", "gradients", WITHIN_EPOCH)
            self._resumed = {key: checkpoint.get(key) for key in keys}

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            restart_workers(runner.train_dataloader, runner.epoch)
            batches = len(runner.train_dataloader)
            done = self._batches_done(batches)
            self._epoch = (runner.epoch, runner.iter - done, batches)
            if done > 0:
                skip_batches(loop, done, partial(self._restore, runner))
            else:
                self._restore(runner)
        elif self._resumed is not None:
            # The loop itself skips the batches that were trained on; states apply after those.
            call_after_batches(loop, runner.iter, partial(self._restore, runner))

    def after_train(self, runner: Runner) -> None:
        if self.save_last and getattr(runner.train_loop, "stop_training", False):
            self.save_now(runner, runner.iter)
        super().after_train(runner)

    def save_now(self, runner: Runner, done: int) -> None:
        """Saves a checkpoint after `done` iterations, outside of the interval, unless it exists."""
        if self._saved_iter == done:
            return
        meta = dict(epoch=runner.epoch, iter=done)
        if self.by_epoch and done != runner.iter:  # not between two epochs
            self._save_within_epoch(runner, done, meta)
        else:
            self._save_checkpoint_with_step(runner, runner.epoch if self.by_epoch else done, meta)

    def save_within_val(self, runner: Runner) -> None:
        """Saves, during a validation, the state from which training continues after it."""
        averaging = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in averaging:
            hook.after_val_epoch(runner)  # exchanges averaged for trained weights
        self.save_now(runner, runner.iter)
        for hook in averaging:
            hook.before_val_epoch(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        self._before_val = random_states()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self._before_val is not None:
            set_random_states(self._before_val)
            self._before_val = None
        if not self.save_best:
            return super().after_val_epoch(runner, metrics)
        # 'auto' is the first figure; those of classes come first in mmdet's CocoMetric.
        figures = (metrics or {}).items()
        metrics = dict(sorted(figures, key=lambda figure: figure[0].endswith("_precision")))
        # mmengine saves the best checkpoint, and the last one again, from here.
        self._position = dict(epoch=runner.epoch, iter=runner.iter)
        with atomic_checkpoints(), self._removing_last():
            super().after_val_epoch(runner, metrics)
        self._position = {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"].update(self._position)  # FlexibleRunner counts one iteration too many
        if self._states is None:
            return  # a best checkpoint, which no run resumes from
        checkpoint["random_states"] = self._states
        epoch, first, batches = self._epoch
        if self._position["epoch"] == epoch:
            checkpoint[WITHIN_EPOCH] = [self._position["iter"] - first, batches]
        if runner.optim_wrapper.should_update():
            return
        if get_world_size() > 1:
            runner.logger.warning(
                "saved in the middle of a gradient accumulation, which a resumed run repeats: "
                "choose an interval that is a multiple of accumulative_counts"
            )
            return
        checkpoint["gradients"] = {
            name: parameter.grad.cpu()
            for name, parameter in runner.model.named_parameters()
            if parameter.grad is not None
        }

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any], interim: str | None = None
    ) -> None:
        """mmengine's method; `interim` is the file's name if the next checkpoint replaces it."""
        outdated = runner.message_hub.pop_info(INTERIM)
        if interim:
            runner.message_hub.update_info(INTERIM, interim)
        self._states = all_gather_object(self._before_val or random_states())
        self._position = dict(meta)
        with atomic_checkpoints(), self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)
            if outdated and is_main_process():
                self.file_backend.remove(outdated)
        self._saved_iter = self._position["iter"]
        self._states, self._position = None, {}

    def _save_within_epoch(self, runner: Runner, done: int, meta: dict[str, Any]) -> None:
        """Names the file by the iteration; the next checkpoint replaces it."""
        settings = dict(by_epoch=False, filename_tmpl="iter_{}.pth", max_keep_ckpts=-1)
        by_epoch = {key: getattr(self, key) for key in settings}
        self.__dict__.update(settings)
        self._save_checkpoint_with_step(runner, done, meta, interim=f"iter_{done}.pth")
        self.__dict__.update(by_epoch)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Removes the files that mmengine's code removes in this context at its end.

        Only in the directory of this run's checkpoints: a copied or moved work dir names those of
        the original.
        """
        backend: Any = self.file_backend
        outdated: list[str] = []
        self.file_backend: Any = copy.copy(backend)
        self.file_backend.isfile = lambda path: not backend.isdir(path)  # DeepSpeed's are
        self.file_backend.remove = outdated.append
        yield
        self.file_backend = backend
        for name in map(os.path.basename, outdated):
            path = backend.join_path(self.out_dir, name)
            if backend.isfile(path):
                backend.remove(path)

    def _batches_done(self, batches: int) -> int:
        """How many batches of the epoch that starts now were trained on before a resume."""
        done, before = (self._resumed or {}).get(WITHIN_EPOCH) or (0, batches)
        if done and before != batches:
            raise UserError(
                f"the checkpoint was saved after {done} of {before} batches of an epoch, which now "
                f"has {batches}: resume with the batch size, dataset and processes of before"
            )
        return done

    def _restore(self, runner: Runner) -> None:
        """Restores random states and accumulated gradients of the checkpoint, once."""
        if self._resumed is None:
            return
        states, gradients = self._resumed["random_states"], self._resumed["gradients"] or {}
        self._resumed = None
        if states is not None and len(states) == get_world_size():
            set_random_states(states[get_rank()])
        for name, parameter in runner.model.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter.device, copy=True)
