"""Which errors commands print as one line, and in which process."""

import os
import signal

import pytest
import torch
from mmdet.registry import HOOKS
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from ropevit_mmdet.errors import UserError, one_line_errors, user_message


class Killed(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("ROPEVIT_DEBUG", raising=False)
    monkeypatch.delenv("RANK", raising=False)


@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("key"), UserError("a typo")])
def test_only_user_errors_lose_their_traceback(error, debug, monkeypatch, capsys):
    monkeypatch.setenv("ROPEVIT_DEBUG", debug)
    hides = isinstance(error, UserError) and debug == "0"
    with pytest.raises(SystemExit if hides else type(error)) as caught, one_line_errors():
        raise error
    if hides:
        assert caught.value.code == 2 and capsys.readouterr().err == "error: a typo\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("image a.png: no boxes"), "image a.png: no boxes"),
        (AssertionError("failed to load image: a.png"), "image a.png cannot be read"),
    ],
)
def test_errors_of_data_loader_workers(error, message):
    """Their text has the traceback of the worker."""
    try:
        raise error
    except Exception:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapper.reraise()
    assert user_message(caught.value).startswith(message)


def test_translated_errors():
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(Killed(), num_workers=1)))
    assert "probably because memory ran out" in user_message(caught.value)
    missing = ImportError("missing onnx: pip install 'ropevit-mmdet[export]'")
    failed = RuntimeError("the int8 file is not written: coco/bbox_mAP 0.1, PyTorch 0.5")
    assert [user_message(one) for one in (missing, failed)] == [str(missing), str(failed)]
    assert user_message(RuntimeError("mat1 and mat2 cannot be multiplied")) is None
    disk_full = OSError(28, "No space left on device", "vis_data")
    assert "No space left on device: 'vis_data'" in user_message(disk_full)
    one, two = (torch.nn.Parameter(torch.ones(size)) for size in (1, 2))
    state = torch.optim.SGD([one]).state_dict()
    with pytest.raises(ValueError) as caught:
        torch.optim.SGD([{"params": [one]}, {"params": [two]}]).load_state_dict(state)
    assert "other parameter groups" in user_message(caught.value)


def helper():
    pass


class Sized:
    def __init__(self, size=0):
        self.size = helper(size=size) if size else 0  # a bug


class Passing(Sized):
    def __init__(self, **settings):
        super().__init__(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(type="Gone"), "Gone is not in the mmdet::hook registry: is its name right, and its "),
        (dict(type=Sized, x=1), "Sized.__init__() got an unexpected keyword argument 'x'"),
        (dict(type=Passing, x=1), "Sized.__init__() got an unexpected keyword argument 'x'"),
        (dict(type=Passing, size=1), ""),
        (dict(x=1), '`cfg` or `default_args` must contain the key "type", but got {'),
    ],
)
def test_types_and_arguments_of_a_config(settings, message):
    with pytest.raises((KeyError, TypeError)) as caught:
        HOOKS.build(settings)
    assert (user_message(caught.value) or "").startswith(message)
    assert bool(user_message(caught.value)) == bool(message)


@pytest.mark.parametrize(
    ("initialized", "common", "printed"),
    [
        (False, False, ""),
        (True, False, "error: process 1: the error\n"),
        (True, True, ""),
    ],
)
def test_processes_after_the_first(initialized, common, printed, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: initialized)
    error = UserError("the error")
    error.of_all_processes = common
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == 2 and capsys.readouterr().err == printed
