"""Checkpoints under weights_only=True: mmengine's training checkpoints load, nothing else runs."""

import functools
import http.server
import os
import pickle
import threading
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from torch.testing import assert_close

from ropevit_mmdet.compat import checkpoint
from ropevit_mmdet.compat.reading import read_torch_file
from tests.malformed_files import Payload


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


def test_a_training_checkpoint_loads(training_checkpoint):
    loaded = CheckpointLoader.load_checkpoint(str(training_checkpoint), map_location="cpu")
    expected = torch.load(training_checkpoint, weights_only=False)
    assert_close(loaded["state_dict"], expected["state_dict"])
    assert loaded["param_schedulers"] == expected["param_schedulers"]
    assert loaded["meta"] == expected["meta"]
    history, true_history = (c["message_hub"]["log_scalars"] for c in (loaded, expected))
    assert history.keys() == true_history.keys() >= {"train/loss", "val/AP"}
    for name, buffer in history.items():
        assert type(buffer) is HistoryBuffer
        for values, true_values in zip(buffer.data, true_history[name].data):
            np.testing.assert_array_equal(values, true_values)
            assert values.dtype == true_values.dtype
        assert buffer.mean() == true_history[name].mean()
        assert buffer.statistics("max") == true_history[name].max()
    assert loaded["message_hub"]["runtime_info"]["best_score"] == 0.25
    assert HistoryBuffer._statistics_methods["mean"] is HistoryBuffer.mean


def test_nothing_is_allowed_that_training_checkpoints_do_not_name(training_checkpoint):
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
    # the module of the other numpy, and the types that numpy.dtype makes without naming them
    for name in names - found:
        assert name.startswith(("numpy.core.", "numpy._core.", "numpy.dtypes."))


def test_training_resumes_from_it(training_checkpoint):
    runner = train(training_checkpoint.parent, 3, resume=True)
    assert runner.epoch == 3 and runner.iter == 6
    assert len(runner.message_hub.log_scalars["train/loss"].data[0]) == 6


def test_numpy_1_names_load_too(training_checkpoint, tmp_path):
    """A checkpoint written under numpy 1 names the same functions in `numpy.core`."""
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(training_checkpoint) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
            target.writestr(name, content)
    loaded = read_torch_file(old)
    assert loaded["message_hub"]["log_scalars"]["val/AP"].current() == 0.25


def statistics_payload(marker):
    """A log buffer whose registered statistic is the payload."""
    buffer = HistoryBuffer([1.0], [1])
    buffer._statistics_methods = dict(mean=Payload(os.mkdir, marker))
    return buffer


MALICIOUS = {
    "reduce": lambda marker: Payload(os.mkdir, marker),
    "beside tensors": lambda marker: dict(
        state_dict=dict(w=torch.ones(2)), x=Payload(os.mkdir, marker)
    ),
    "in an object array": lambda marker: np.array([Payload(os.mkdir, marker)], dtype=object),
    "in a log buffer": statistics_payload,
    "eval": lambda marker: Payload(eval, f"__import__('os').mkdir({marker!r})"),
    "getattr on a tensor": lambda marker: Payload(getattr, torch.ones(1), "numpy"),
    "getattr on a class": lambda marker: Payload(getattr, HistoryBuffer, "register_statistics"),
    "getattr for dunders": lambda marker: Payload(getattr, HistoryBuffer, "__init__"),
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("archive", [True, False])
def test_a_malicious_file_is_refused_and_does_not_run(name, archive, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "bad.pth"
    content = MALICIOUS[name](str(marker))
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match=r"bad\.pth is refused: .*state_dict") as caught:
        CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    if "getattr" not in name:  # the file is as bad as it looks
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "bad.pkl"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(Payload(os.mkdir, str(marker)), protocol=protocol))
        with pytest.raises(ValueError, match=r"bad\.pkl"):
            load_checkpoint(Model(), str(path), map_location="cpu")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False])
def test_a_damaged_file_is_named(archive, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(dict(w=torch.randn(50, 50)), path, _use_new_zipfile_serialization=archive)
    content = path.read_bytes()
    cuts = [content[:size] for size in (0, 10, 100, len(content) // 2, len(content) - 10)]
    for damaged in (*cuts, b"<html>not found</html>", b"version https://git-lfs.github.com/spec"):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"cut\.pth is truncated or not a torch file"
        ) as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        CheckpointLoader.load_checkpoint("nowhere.pth")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(directory, its URL): a web server on this machine, with an empty download cache."""
    directory = tmp_path / "www"
    directory.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    handler = functools.partial(QuietHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield directory, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_loads(served, training_checkpoint):
    directory, url = served
    (directory / "good.pth").write_bytes(training_checkpoint.read_bytes())
    model = Model()
    load_checkpoint(model, f"{url}/good.pth", map_location="cpu")
    expected = torch.load(training_checkpoint, weights_only=False)["state_dict"]
    assert_close(dict(model.state_dict()), dict(expected))


@pytest.mark.parametrize("scheme", ["http", "torchvision", "openmmlab", "mmcls"])
def test_a_malicious_url_does_not_run(scheme, served, tmp_path, monkeypatch):
    """Also through the schemes of mmengine that look a URL up first."""
    directory, url = served
    marker = tmp_path / "ran"
    torch.save(dict(state_dict=Payload(os.mkdir, str(marker))), directory / "bad.pth")
    for lookup in ("get_torchvision_models", "get_external_models", "get_mmcls_models"):
        monkeypatch.setattr(mmengine_checkpoint, lookup, lambda: dict(bad=f"{url}/bad.pth"))
    path = f"{url}/bad.pth" if scheme == "http" else f"{scheme}://bad"
    with pytest.raises(ValueError, match=r"checkpoints/bad\.pth is refused"):
        CheckpointLoader.load_checkpoint(path, map_location="cpu")
    assert not marker.exists()


def test_another_scheme_can_be_plugged_in(monkeypatch, training_checkpoint):
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))

    def load_from_zoo(filename, map_location=None):
        return dict(name=filename.removeprefix("zoo://"), device=map_location)

    checkpoint.register_scheme("zoo://", load_from_zoo)
    checkpoint.register_scheme("zoo://", load_from_zoo)  # again: no error
    assert CheckpointLoader.load_checkpoint("zoo://tiny", "cpu") == dict(name="tiny", device="cpu")
    assert "state_dict" in CheckpointLoader.load_checkpoint(str(training_checkpoint), "cpu")
