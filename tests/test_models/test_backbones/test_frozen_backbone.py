"""FrozenBackbone: the plain backbone's features, computed once and then read from disk."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ropevit_mmdet import FrozenBackbone
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.models.backbones.frozen_backbone import FeatureCache
from ropevit_mmdet.visualization import read_run
from tests.tiny_coco import write_tiny

PLAIN = dict(type="RoPEViT", arch="rope_vit_t14", window_size=4, out_indices=(5, 11))
FILES = "*.safetensors"


def frozen(directory=None, **changes):
    torch.manual_seed(0)
    return FrozenBackbone(PLAIN, cache_dir=directory, **changes).train()


def spy(model):
    """The batch sizes of the calls of the wrapped backbone, filled as it is called."""
    calls = []
    model.backbone.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    return calls


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 70, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", messages.append)
    return messages


def test_features_are_those_of_the_plain_backbone_without_gradients(images):
    model = frozen()
    torch.manual_seed(0)
    plain = MODELS.build(PLAIN).eval()
    with torch.no_grad():
        expected = plain(images)
    for actual, level in zip(model(images), expected, strict=True):
        torch.testing.assert_close(actual, level, rtol=0, atol=0)
        assert not actual.requires_grad
    assert not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Detector(BaseModule):
    """Builds its parts as mmdet's detectors do."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck = MODELS.build(backbone), nn.Linear(2, 2)


def test_weights_are_named_as_in_the_plain_backbone(images):
    detector, plain = Detector(dict(type="FrozenBackbone", backbone=PLAIN)), Detector(PLAIN)
    names = list(plain.state_dict())
    assert list(detector.state_dict()) == [name for name, _ in detector.named_parameters()] == names
    assert list(get_model_state_dict(detector)) == names
    detector.load_state_dict(plain.state_dict())
    changed = copy.deepcopy(detector)
    changed.half().float()
    changed.load_state_dict({name: 2 * value for name, value in plain.state_dict().items()})
    with torch.no_grad():
        expected = plain.eval().backbone(images)
    torch.testing.assert_close(detector.backbone(images), expected, rtol=0, atol=0)
    assert not torch.allclose(changed.backbone(images)[0], expected[0])
    for name, parameter in detector.named_parameters():
        assert detector.get_parameter(name) is parameter


def test_buffers_and_weights_of_another_backbone_are_its_own(tmp_path):
    """ResNet initializes itself, and has running statistics."""
    resnet = dict(type="ResNet", depth=18, norm_eval=False, init_cfg=None)
    detector, plain = Detector(dict(type="FrozenBackbone", backbone=resnet)), Detector(resnet)
    detector.init_weights()
    assert list(detector.state_dict()) == list(plain.state_dict())
    assert not hasattr(detector.backbone.backbone, "_params_init_info")
    plain.load_state_dict(detector.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain.eval().backbone(images)
    torch.testing.assert_close(detector.train().backbone(images), expected, rtol=0, atol=0)


def test_a_checkpoint_of_init_cfg_is_loaded(tmp_path):
    torch.save({"state_dict": MODELS.build(PLAIN).state_dict()}, tmp_path / "weights.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"))
    detector = Detector(dict(type="FrozenBackbone", backbone={**PLAIN, "init_cfg": init_cfg}))
    detector.init_weights()
    expected = torch.load(tmp_path / "weights.pth")["state_dict"]
    assert all(map(torch.equal, detector.backbone.state_dict().values(), expected.values()))


def test_threads_write_the_same_image_once(images, tmp_path, warnings):
    model, expected = frozen(tmp_path), frozen()(images[:1])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: model(images[:1]), range(8)))
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert len(list(tmp_path.rglob("*.*"))) == 1 and not warnings


@pytest.mark.filterwarnings("ignore:.*(is deprecated|might cause the trace)")
def test_a_trace_passes_the_cache_by(images, tmp_path):
    model = frozen(tmp_path)
    traced = torch.jit.trace(model, images, check_trace=False)
    assert not list(tmp_path.iterdir())  # a check of the trace would call the model itself
    torch.testing.assert_close(traced(images + 1), model(images + 1), rtol=1e-4, atol=1e-5)


def test_an_image_is_computed_once(images, tmp_path):
    model = frozen(tmp_path)
    calls = spy(model)
    first = model(images[:2])
    again = model(images[[1, 2, 0]])  # two are known, in another order
    assert calls == [2, 1]
    for level in range(2):
        torch.testing.assert_close(again[level][[2, 0]], first[level], rtol=0, atol=0)
    other = frozen(tmp_path)  # another run of the same weights
    calls = spy(other)
    for actual, level in zip(other(images), frozen()(images), strict=True):
        torch.testing.assert_close(actual, level, rtol=1e-6, atol=1e-6)
    assert calls == []


def test_other_weights_settings_versions_or_pixels_are_computed(images, tmp_path, monkeypatch):
    frozen(tmp_path)(images)
    model = frozen(tmp_path)
    calls = spy(model)
    model(images + 1e-6)
    model(images[:, :, :, :56])
    assert calls == [3, 3]
    changed = frozen(tmp_path)
    with torch.no_grad():
        changed.backbone.blocks[0].norm1.bias[0] += 1e-6
    windows = FrozenBackbone({**PLAIN, "window_size": 2}, cache_dir=tmp_path)
    windows.load_state_dict(model.state_dict())
    for other in (changed, windows):
        calls = spy(other)
        other(images)
        assert calls == [3]
    monkeypatch.setattr("ropevit_mmdet.__version__", "another")
    calls = spy(updated := frozen(tmp_path))
    updated(images)
    assert calls == [3]


def test_weights_that_are_loaded_later_are_noticed(images, tmp_path):
    model = frozen(tmp_path)
    before = model(images)
    weights = {key: 1.1 * value for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    plain = MODELS.build(PLAIN).eval()
    plain.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(images)[0], before[0], atol=1e-2)


def test_features_under_autocast_are_separate(images, tmp_path):
    model = frozen(tmp_path)
    model(images)
    calls = spy(model)
    with torch.autocast("cpu", torch.bfloat16):
        half, again = model(images), model(images)
    assert calls == [3] and half[0].dtype == again[0].dtype
    torch.testing.assert_close(half, again, rtol=0, atol=0)


def test_a_full_cache_stores_no_more_and_warns_once(images, tmp_path, warnings):
    bytes_of_one = sum(level.numel() * 4 for level in frozen()(images[:1]))
    model = frozen(tmp_path, max_gb=2.5 * bytes_of_one / 1e9)
    calls = spy(model)
    for _ in range(2):
        model(images)
    assert calls == [3, 1]
    assert len(list(tmp_path.rglob(FILES))) == 2
    assert len(warnings) == 1 and "is full" in warnings[0]


def test_a_full_disk_does_not_stop_the_training(images, tmp_path, monkeypatch, warnings):
    def write_bytes(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    model, expected = frozen(tmp_path), frozen()(images)
    monkeypatch.setattr("pathlib.Path.write_bytes", write_bytes)
    for _ in range(2):
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert len(warnings) == 1 and "[Errno 28] No space left on" in warnings[0]
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".partial"]


def test_a_damaged_file_is_written_again(tmp_path):
    cache = FeatureCache(tmp_path, "weights", 10**6)
    (cache.directory / "a.safetensors").write_bytes(b"")
    assert cache.read("a") is None
    cache.write("a", [torch.ones(2, 3, 3)])
    assert torch.equal(cache.read("a")[0], torch.ones(2, 3, 3))


def test_the_limit_counts_files_of_other_weights(tmp_path):
    level = torch.zeros(10, 10)
    FeatureCache(tmp_path, "other", 10**6).write("image", [level])
    size = next(tmp_path.rglob(FILES)).stat().st_size
    for limit, stored in ((2 * size - 1, False), (2 * size, True)):
        cache = FeatureCache(tmp_path, "ours", limit)
        cache.write("image", [level])
        assert (cache.read("image") is not None) == stored


@pytest.mark.slow  # of wall time: other programs disturb it
def test_reading_takes_less_than_a_tenth_of_the_time_of_computing(tmp_path):
    """20 batches through the backbone of shapes_frozen.py."""
    settings = load_config("shapes_frozen").model.backbone.backbone
    model = FrozenBackbone({**settings, "init_cfg": None}, cache_dir=tmp_path).train()
    batches = torch.randn(20, 2, 3, 224, 224)
    model(torch.randn(2, 3, 224, 224))  # the first call hashes the weights
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for images in batches:
            model(images)
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 0.1 * seconds[0]


def test_a_run_with_cache_has_the_losses_of_one_without(tmp_path):
    config = write_tiny(tmp_path)
    losses = []
    for name, directory in (("plain", None), ("cached", str(tmp_path / "maps"))):
        backbone = dict(PLAIN, out_indices=1, window_size=None)
        changes = {
            "model.backbone": dict(
                _delete_=True, type="FrozenBackbone", backbone=backbone, cache_dir=directory
            ),
            "model.neck": dict(
                _delete_=True,
                type="SimpleFeaturePyramid",
                in_channels=192,
                out_channels=16,
                scale_factors=(1, 0.5),
                num_outs=2,
            ),
            "model.bbox_head.anchor_generator.strides": [14, 28],
            "train_cfg.max_iters": 6,  # three times through the four images
            "default_hooks.logger": dict(type="LoggerHook", interval=1),
        }
        loaded = load_config(config, changes, work_dir=str(tmp_path / name))
        runner = Runner.from_cfg(loaded)
        calls = spy(runner.model.backbone)
        runner.train()
        assert calls.count(2) == (6 if directory is None else 2)  # single ones are validation
        losses.append([entry["loss"] for entry in read_run(tmp_path / name).train])
    assert len(losses[0]) == 6 and losses[0][0] != losses[0][4]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
