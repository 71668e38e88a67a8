"""FrozenBackbone: the plain backbone's maps, computed once and then read from the disk."""

import multiprocessing
import os
import time
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock, Timeout
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from ropevit_mmdet import FrozenBackbone
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.models.backbones.frozen_backbone import MapCache
from ropevit_mmdet.visualization.run_log import read_run
from tests.processes import ROOT
from tests.tiny_coco import write_tiny

PLAIN = dict(type="RoPEViT", arch="rope_vit_t14", window_size=4, out_indices=(5, 11))


def frozen(directory=None, **changes):
    torch.manual_seed(0)
    return FrozenBackbone(PLAIN, cache_dir=directory, **changes).train()


def spied(model):
    """The batch sizes of the calls of the wrapped backbone, filled as it is called."""
    calls = []
    model.backbone.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    return calls


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 70, generator=torch.Generator().manual_seed(1))


def test_it_gives_the_maps_of_the_plain_backbone_without_gradients(images):
    model = frozen()
    torch.manual_seed(0)
    plain = MODELS.build(PLAIN).eval()
    with torch.no_grad():
        expected = plain(images)
    for ours, theirs in zip(model(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert not ours.requires_grad
    assert not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_names_of_its_weights_are_those_of_the_plain_backbone(images):
    model, plain = frozen(), MODELS.build(PLAIN).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    detector = torch.nn.ModuleDict({"backbone": model})
    assert set(detector.state_dict()) == {f"backbone.{key}" for key in plain.state_dict()}
    detector.load_state_dict({f"backbone.{k}": v for k, v in plain.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)


def test_a_image_is_computed_once(images, tmp_path):
    model = frozen(tmp_path)
    calls = spied(model)
    first = model(images[:2])
    again = model(images[[1, 2, 0]])  # two are known, in another order
    assert calls == [2, 1]
    for level in range(2):
        torch.testing.assert_close(again[level][[2, 0]], first[level], rtol=0, atol=0)
    other = frozen(tmp_path)  # another run of the same weights
    calls = spied(other)
    for ours, theirs in zip(other(images), frozen()(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert calls == []


def test_other_weights_settings_or_pixels_are_computed_anew(images, tmp_path):
    frozen(tmp_path)(images)
    model = frozen(tmp_path)
    calls = spied(model)
    model(images + 1e-6)
    model(images[:, :, :, :56])
    assert calls == [3, 3]
    changed = frozen(tmp_path)
    with torch.no_grad():
        changed.backbone.blocks[0].norm1.bias[0] += 1e-6
    calls = spied(changed)
    changed(images)
    windows = FrozenBackbone({**PLAIN, "window_size": 2}, cache_dir=tmp_path)
    windows.load_state_dict(model.state_dict())
    more = spied(windows)
    windows(images)
    assert calls == [3] and more == [3]


def test_weights_that_change_later_are_noticed(images, tmp_path):
    model = frozen(tmp_path)
    before = model(images)
    weights = {key: 1.1 * value for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    plain = MODELS.build(PLAIN).eval()
    plain.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(images)[0], before[0], atol=1e-2)
    again = frozen(tmp_path)
    calls = spied(again)
    torch.testing.assert_close(again(images), before, rtol=0, atol=0)
    assert calls == []


def test_images_of_mixed_sizes_are_known_in_whatever_batch_they_come_again(tmp_path):
    """By the padding of shapes_frozen.py: the keys are of padded images."""
    config = load_config(ROOT / "configs" / "shapes_frozen.py").model
    preprocessor = MODELS.build(config.data_preprocessor)
    backbone = {**config.backbone.backbone, "init_cfg": None}
    model = FrozenBackbone(backbone, cache_dir=tmp_path).train()
    calls = spied(model)
    generator = torch.Generator().manual_seed(0)
    sizes = [(224, 168), (168, 224), (224, 224), (140, 224)]
    images = [torch.rand(3, *size, generator=generator) * 255 for size in sizes]
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 0, 2, 1]):
        for pair in (order[:2], order[2:]):
            samples = [DetDataSample(gt_instances=InstanceData(), metainfo={}) for _ in pair]
            for i, sample in zip(pair, samples, strict=True):
                sample.gt_instances.masks = BitmapMasks([], *sizes[i])
            data = dict(inputs=[images[i] for i in pair], data_samples=samples)
            batch = preprocessor(data, True)["inputs"]
            assert batch.shape == (2, 3, 224, 224)
            model(batch)
    assert calls == [2, 2]


def test_under_autocast_maps_are_kept_apart(images, tmp_path):
    model = frozen(tmp_path)
    model(images)
    calls = spied(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
        again = model(images)
    assert calls == [3] and half[0].dtype == again[0].dtype
    torch.testing.assert_close(half, again, rtol=0, atol=0)


def test_a_full_cache_keeps_no_more_and_says_so_once(images, tmp_path, monkeypatch):
    size = frozen()(images[:1])
    bytes_of_one = sum(level.numel() * 4 for level in size)
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", said.append)
    model = frozen(tmp_path, max_gb=2.5 * bytes_of_one / 1e9)
    calls = spied(model)
    for _ in range(2):
        model(images)
    assert calls == [3, 1]
    assert len(list(tmp_path.rglob("*.maps"))) == 2
    assert len(said) == 1 and "is full" in said[0]


def test_a_disk_that_is_full_ends_no_training(images, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", said.append)

    def write_bytes(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    model = frozen(tmp_path)
    expected = frozen()(images)
    monkeypatch.setattr("pathlib.Path.write_bytes", write_bytes)
    for _ in range(2):
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert len(said) == 1 and "cannot be written to ([Errno 28] No space left on" in said[0]
    assert not [path for path in tmp_path.rglob("*.*") if path.suffix in (".maps", ".partial")]


@pytest.mark.parametrize("below", ["", "maps"])
def test_a_directory_that_cannot_be_made_ends_no_training(images, tmp_path, monkeypatch, below):
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", said.append)
    (tmp_path / "file").touch()
    model = frozen(tmp_path / "file" / below)
    calls = spied(model)
    for _ in range(2):
        torch.testing.assert_close(model(images), frozen()(images), rtol=0, atol=0)
    assert calls == [3, 3]
    assert len(said) == 1 and "cannot be written to ([Errno " in said[0]


def test_a_disk_that_cannot_be_read_ends_no_training(images, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "warning", said.append)
    model = frozen(tmp_path)
    expected = model(images)
    for file in tmp_path.rglob("*.maps"):
        file.unlink()
        file.mkdir()
    for _ in range(2):
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert len(said) == 1 and "cannot be read ([Errno 21] Is a directory" in said[0]


def test_what_a_killed_process_left_behind_is_removed(tmp_path):
    MapCache(tmp_path, "ours", 10**6)
    old, new = (tmp_path / "ours" / f".{name}.1.partial" for name in ("old", "new"))
    for file in (old, new):
        file.touch()
    os.utime(old, (1e9, 1e9))
    MapCache(tmp_path, "others", 10**6)
    assert new.exists() and not old.exists()


def test_files_may_vanish_while_they_are_counted(tmp_path):
    """Renamed or removed by another process, after the directory was listed."""
    for name in (".new.1.partial", "old.maps"):
        (tmp_path / name).symlink_to("nowhere")
    cache = MapCache(tmp_path, "ours", 10**6)
    cache.write("image", [torch.zeros(3)])
    torch.testing.assert_close(cache.read("image"), [torch.zeros(3)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: b"[1]\n" + content,
        lambda content: content.replace(b"[4, ", b"[3, ") + b"12",
        lambda content: content.replace(b"float32", b"float33"),
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_computed_again(images, tmp_path, damage):
    model = frozen(tmp_path)
    expected = model(images[:1])
    (file,) = tmp_path.rglob("*.maps")
    file.write_bytes(damage(file.read_bytes()))
    torch.testing.assert_close(model(images[:1]), expected, rtol=0, atol=0)
    assert file.stat().st_size > 1000
    assert not list(tmp_path.rglob("*.partial"))


def test_weights_are_those_of_the_backbone_in_it():
    with pytest.raises(TypeError, match="unexpected keyword argument 'init_cfg'"):
        FrozenBackbone(PLAIN, init_cfg=dict(checkpoint="x.pt"))  # would not be looked at


def test_max_gb_must_be_positive():
    with pytest.raises(ValueError, match="max_gb must be positive, got 0"):
        FrozenBackbone(PLAIN, max_gb=0)


def test_the_limit_counts_what_was_there_before(tmp_path):
    level = torch.zeros(10, 10)
    MapCache(tmp_path, "other", 10**6).write("image", [level])
    size = next(tmp_path.rglob("*.maps")).stat().st_size  # its first line, too
    for limit, kept in ((2 * size - 1, False), (2 * size, True)):
        cache = MapCache(tmp_path, "ours", limit)
        cache.write("image", [level])
        assert (cache.read("image") is not None) == kept


def write_many(cache, name):
    for i in range(30):
        cache.write(f"{name}{i}", [torch.zeros(1000)])


def test_the_limit_is_that_of_all_processes_together(tmp_path):
    fork = multiprocessing.get_context("fork")
    caches = [MapCache(tmp_path, "ours", 200_000) for _ in range(4)]
    writers = [fork.Process(target=write_many, args=(cache, i)) for i, cache in enumerate(caches)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    sizes = [file.stat().st_size for file in tmp_path.rglob("*.maps")]
    assert 200_000 - max(sizes) < sum(sizes) <= 200_000


@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), Timeout("held")])
def test_without_a_lock_the_limit_is_counted_all_the_same(tmp_path, monkeypatch, error):
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=error))
    one, other = (MapCache(tmp_path, "ours", 10_000) for _ in range(2))
    for i in range(3):
        one.write(f"one{i}", [torch.zeros(500)])
        other.write(f"other{i}", [torch.zeros(500)])
    assert len(list(tmp_path.rglob("*.maps"))) == 4


def test_a_count_that_is_lost_is_made_again(tmp_path):
    cache = MapCache(tmp_path, "ours", 5_000)
    cache.write("first", [torch.zeros(500)])
    (tmp_path / ".bytes").write_text("")
    for name in ("second", "third"):
        cache.write(name, [torch.zeros(500)])
    assert len(list(tmp_path.rglob("*.maps"))) == 2


def test_a_cached_run_has_the_losses_of_one_that_is_not(tmp_path):
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
        calls = spied(runner.model.backbone)
        runner.train()
        assert calls.count(2) == (6 if directory is None else 2)  # single ones are validation
        losses.append([entry["loss"] for entry in read_run(tmp_path / name).train])
    assert len(losses[0]) == 6 and losses[0][0] != losses[0][4]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)


def test_the_cache_takes_away_nine_tenths_of_the_backbones_time(tmp_path):
    """Epochs of 80 images through the backbone of shapes_frozen.py; -s shows the times."""
    settings = load_config(ROOT / "configs" / "shapes_frozen.py").model.backbone.backbone
    model = FrozenBackbone({**settings, "init_cfg": None}, cache_dir=tmp_path).train()
    batches = torch.randn(40, 2, 3, 224, 224)
    model(torch.randn(2, 3, 224, 224))  # the first call reads the weights
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for images in batches:
            model(images)
        seconds.append(time.perf_counter() - start)
    computed, read = seconds[0], min(seconds[1:])
    print(f"an epoch of 80 images: {computed:.3f} s computed, {read:.3f} s read")
    assert read < 0.1 * computed
