"""Checkpoints under weights_only=True: mmengine's training checkpoints load, nothing else runs."""

import math
import os
import zipfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from torch.testing import assert_close

from ropevit_mmdet.compat import checkpoint
from ropevit_mmdet.errors import UserError
from tests.malformed_files import Payload, saved
from tests.processes import ROOT

pytestmark = pytest.mark.usefixtures("mmengine_instances")


@pytest.fixture(autouse=True)
def unformatted():
    """Configs are formatted, as users' are."""


class Samples(torch.utils.data.Dataset):
    # what BaseDataset makes of a config that nests something in its metainfo
    metainfo = dict(classes=("a", "b"), palette=[(1, 2, 3)], source=ConfigDict(name="shapes"))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.full((3,), float(index)), data_samples=index)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        output = self.linear(torch.stack(inputs))
        return dict(loss=output.square().mean()) if mode == "loss" else list(output)


class Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return dict(AP=np.float64(0.25), single=np.float32(0.5), count=np.int64(sum(results)))


def train(work_dir, epochs, *, resume=False):
    """Train with everything that leaves something in a checkpoint, and return the runner."""
    loader = dict(
        batch_size=2, dataset=Samples(), sampler=dict(type="DefaultSampler", shuffle=True)
    )
    runner = Runner(
        Model(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_dataloader=loader,
        val_cfg=dict(),
        val_evaluator=[Metric()],
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3),
            dict(type="MultiStepLR", milestones=[1]),
            dict(type="OneCycleLR", by_epoch=False, eta_max=0.1, total_steps=9),
        ],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", save_best="AP", rule="greater")),
        custom_hooks=[dict(type="EMAHook")],
        resume=resume,
        experiment_name=f"{work_dir.name}-{epochs}",
    )
    runner.train()
    return runner


@pytest.fixture(scope="module")
def training_checkpoint(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("run")
    train(work_dir, 2)
    return work_dir / "epoch_2.pth"


def test_load_training_checkpoint(training_checkpoint):
    loaded = CheckpointLoader.load_checkpoint(str(training_checkpoint), map_location="cpu")
    expected = torch.load(training_checkpoint, weights_only=False)
    assert_close(loaded["state_dict"], expected["state_dict"])
    assert loaded["param_schedulers"] == expected["param_schedulers"]
    assert loaded["meta"] == expected["meta"]
    history, true_history = (c["message_hub"]["log_scalars"] for c in (loaded, expected))
    assert history.keys() == true_history.keys() >= {"train/loss", "val/AP"}
    for name, buffer in history.items():
        for values, true_values in zip(buffer.data, true_history[name].data):
            np.testing.assert_array_equal(values, true_values, strict=True)
        assert buffer.statistics("max") == true_history[name].max()
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.25


def test_training_globals_are_no_more_than_needed(training_checkpoint):
    names = {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in checkpoint.training_globals()
    }
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(training_checkpoint))
    finally:
        torch.serialization.add_safe_globals(before)
    assert found <= names
    # the module of the other numpy; types that numpy.dtype creates without naming them
    for name in names - found:
        assert name.startswith(("numpy.core.", "numpy._core.", "numpy.dtypes."))


def test_load_names_of_numpy_1(training_checkpoint, tmp_path):
    """A checkpoint written under numpy 1 names the same functions in `numpy.core`."""
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(training_checkpoint) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
            target.writestr(name, content)
    loaded = checkpoint.read_checkpoint_file(old)
    assert loaded["message_hub"]["log_scalars"]["val/AP"].current() == 0.25


MALICIOUS = {
    "next to tensors": lambda marker: dict(
        state_dict=dict(w=torch.ones(2)), x=Payload(os.mkdir, marker)
    ),
    "in an object array": lambda marker: np.array([Payload(os.mkdir, marker)], dtype=object),
    "eval": lambda marker: Payload(eval, f"__import__('os').mkdir({marker!r})"),
    "getattr on a tensor": lambda marker: Payload(getattr, torch.ones(1), "numpy"),
    "getattr on a class": lambda marker: Payload(getattr, HistoryBuffer, "register_statistics"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_file(name, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "bad.pth"
    content = MALICIOUS[name](str(marker))
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"bad\.pth is refused: .*state_dict") as caught:
        CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    if "getattr" not in name:  # the file is as bad as it looks
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_malicious_url(server, tmp_path, monkeypatch):
    """Also through the schemes of mmengine that look a URL up first."""
    url, marker = f"{server.url}/bad.pth", tmp_path / "ran"
    server.files["/bad.pth"] = saved(dict(state_dict=Payload(os.mkdir, str(marker))))
    monkeypatch.setattr(mmengine_checkpoint, "get_torchvision_models", lambda: dict(bad=url))
    for path in (url, "torchvision://bad"):
        with pytest.raises(ValueError, match=r"checkpoints/bad-\w+\.pth is refused"):
            CheckpointLoader.load_checkpoint(path, map_location="cpu")
    assert not marker.exists()


CONFIG = """
default_scope = 'mmengine'
model = dict(hidden=[-1, 2.5, None], name='x', nested=dict({'a.b': dict(c=(1, True))}))
"""


def test_literal_config():
    config = checkpoint.literal_config(CONFIG, "x.pth")
    assert config.to_dict() == Config.fromstring(CONFIG, ".py").to_dict()
    config = Config.fromfile(ROOT / "configs" / "ropevit_maskrcnn.py")
    read = checkpoint.literal_config(config.pretty_text, "x.pth")  # as mmengine saves it
    assert read.to_dict() == config.to_dict()
    infinite = dict(end=[math.inf, -math.inf], clip_grad=dict(max_norm=math.inf))
    assert checkpoint.literal_config(Config(infinite).pretty_text, "x.pth").to_dict() == infinite


CODE = ["import os", "a = b", "a = dict([(1, 2)])", "a = dict(**{'b': 1})", "a.b = 1", "a =", 3]


@pytest.mark.parametrize("text", ["a = __import__('os').getcwd()", *CODE])
def test_literal_config_refuses_code(text):
    with pytest.raises(UserError, match=r"checkpoint x\.pth: its config is more than assignments"):
        checkpoint.literal_config(text, "x.pth")


def test_config_in_a_resumed_checkpoint_does_not_run(training_checkpoint, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "epoch_2.pth"
    content = torch.load(training_checkpoint, weights_only=True)
    content["meta"]["config"] = f"import os\nos.mkdir({str(marker)!r})\n"
    torch.save(content, path)
    (tmp_path / "last_checkpoint").write_text(str(path))
    assert train(tmp_path, 3, resume=True).epoch == 3
    assert not marker.exists()


def test_a_file_system_without_mmap(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"w": torch.ones(1)}))
    error = RuntimeError("unable to mmap 9 bytes from file <a.pth>: No such device (19)")
    monkeypatch.setattr(torch.UntypedStorage, "from_file", Mock(side_effect=error))
    assert checkpoint.read_checkpoint_file(path) == {"w": 1}


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), MemoryError(), OSError(5, "I/O error")]
)
def test_errors_of_the_machine_do_not_blame_the_file(error, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"w": torch.ones(1)}))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match="cannot be loaded"):
        checkpoint.read_checkpoint_file(path)
