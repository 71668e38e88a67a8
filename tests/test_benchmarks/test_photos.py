"""The benchmark on photos: its runs and their budget, its tables, peers, Penn-Fudan."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from PIL import Image

from benchmarks.photos import __main__ as photos
from benchmarks.photos import pennfudan
from benchmarks.photos.datasets import read_photos
from benchmarks.photos.detectors import PEERS
from ropevit_mmdet.apis import Detector
from ropevit_mmdet.engine.config import build_detector

SECTIONS = ["scratch", "peers", "pretrained", "recipes", "designs", "light", "large"]


@pytest.fixture
def data(tmp_path):
    """Annotations of boxes and of masks; nothing reads the images."""
    for name, shape in (("boxes", {}), ("masks", {"segmentation": [[0, 0, 40, 0, 40, 80]]})):
        one = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 40, 80], area=3200, **shape)
        image = dict(id=1, file_name="1.jpg", width=640, height=480)
        for split in ("train", "val") if shape else ("train", "val", "test"):
            path = tmp_path / name / "annotations" / f"instances_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = dict(images=[image], annotations=[one, dict(one, id=2, bbox=[1, 1, 0, 0])])
            path.write_text(json.dumps(content | dict(categories=[dict(id=1, name="a")])))
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """Collects runs; an iteration of DINO takes two seconds, of others one; twice by wall time."""
    done = {}

    def result_of(run, root, log):
        directory = root / run.directory
        directory.mkdir(parents=True, exist_ok=True)
        seconds = 1 + ("dino" in run.name)
        cost = dict(seconds=seconds, wall_seconds=2 * seconds, peak_mb=1000)
        (directory / "cost.json").write_text(json.dumps(cost))
        done[directory.relative_to(root.parent), run.trains] = run
        metrics = {f"coco/{key}": 0.5 + 0.1 * run.seed for key in ("bbox_mAP", "bbox_mAP_50")}
        if "segm" in run.config.test_evaluator.metric:
            metrics["coco/segm_mAP"] = 0.3
        return dict(metrics=metrics)

    monkeypatch.setattr(photos, "result_of", result_of)
    monkeypatch.setattr(photos, "latest_checkpoint", lambda directory: directory / "last.pth")
    monkeypatch.setattr(photos, "draw", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmark sets it
    return done


def test_every_detector_gets_the_same_time(runs, data, tmp_path, capsys):
    arguments = ["--data", str(data), "--minutes", "2", "--root", str(tmp_path / "root")]
    photos.main([*arguments, "--only", "scratch", "peers"])
    report = capsys.readouterr().out
    assert (tmp_path / "root" / "masks-320" / "peers.md").read_text().strip() in report
    boxes, _, masks, peers = (part.splitlines() for part in report.split("## ")[1:])
    assert boxes[2].startswith("| | val box AP | val AP50 | test box AP | iterations")
    assert "| RoPE ViT, RetinaNet | 55.0 ± 5.0 | 55.0 ± 5.0 | 55.0 ± 5.0 | 120 |" in boxes[4]
    assert "RoPE ViT, Faster R-CNN" in boxes[5] and "| 60 |" in boxes[6]  # DINO
    assert "| RoPE ViT, EoMT | 55.0 ± 5.0 | 55.0 ± 5.0 | 30.0 ± 0.0 | 120 |" in masks[7]
    assert "| RoPE ViT, RetinaNet | 55.0 ± 5.0 | 55.0 ± 5.0 |  | 120 |" in masks[4]
    assert len(peers[4:]) - 1 == len(PEERS)
    for run in (run for (_, trains), run in runs.items() if not trains):
        assert run.options["load_from"].endswith(f"-2min-seed{run.seed}/last.pth")
        assert run.config.test_dataloader.dataset.ann_file == "annotations/instances_test.json"
    photos.main([*arguments, "--only", "scratch", "--threads", "2", "--seeds", "1"])
    assert "| RoPE ViT, RetinaNet | 50.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 60 |" in (
        capsys.readouterr().out
    )


def test_sections_that_need_weights(data, capsys):
    with pytest.raises(SystemExit):
        photos.parse_args(["--data", str(data), "--only", "recipes"])
    assert "need --weights" in capsys.readouterr().err
    assert photos.parse_args(["--data", str(data)]).only == ["scratch", "peers"]


@pytest.mark.parametrize("name", ["boxes", "masks"])
@pytest.mark.parametrize("section", SECTIONS)
def test_every_config_builds(section, name, data):
    dataset, weights = read_photos(data / name, 160), Path("net.pt")
    for index, variant in enumerate(photos.variants(section, dataset, weights)):
        config = variant.config()
        hooks = [hook.type for hook in config.custom_hooks]
        averaged = variant.name == "EMA" or section == "designs"
        assert hooks == [*["EMAHook"] * averaged, "CostHook"]
        if section == "large":
            assert config.optim_wrapper.optimizer.lr == (1e-4, 5e-5)[index]
        if "Peer" in config.model.type:
            continue
        pretrained = config.model.backbone.get("init_cfg") == dict(
            type="Pretrained", checkpoint="net.pt"
        )
        assert pretrained == (section in ("pretrained", "recipes", "light", "large"))
        if index and section in ("recipes", "large"):
            continue  # the same model
        model = build_detector(config)
        masks = "segm" in config.test_evaluator.metric
        assert masks == (
            getattr(getattr(model, "roi_head", None), "with_mask", False)
            or hasattr(model, "panoptic_head")
        )


def test_anchors_follow_from_the_boxes(data):
    dataset = read_photos(data / "boxes", 320)
    assert (dataset.center, dataset.ratio, dataset.classes) == (28.3, 2.0, ("a",))
    assert dataset.has_test and not dataset.has_masks
    variant = next(photos.variants("scratch", dataset, None))
    anchors = variant.config().model.bbox_head.anchor_generator
    sizes = [anchors.octave_base_scale * s * 2**k for s in anchors.strides for k in (0, 0.5)]
    assert np.sqrt(sizes[0] * sizes[-1]) == pytest.approx(28.3) and anchors.ratios == [2.0]


@pytest.mark.slow  # of full size
@pytest.mark.parametrize("name", ["torchvision, Mask R-CNN", "birder, ViTDet"])
def test_peers_train_and_predict(name, data, tmp_path):
    """On two images of other sizes than their batch; boxes come back in pixels of the file.

    All weights of a peer are below `net.`, which loading must not take for a wrapper's prefix.
    """
    masks = not name.startswith("birder")
    config = PEERS[name](read_photos(data / "masks", 84)._replace(has_masks=masks))
    model = build_detector(config)
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=("a",)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "peer.pth")
    loaded = Detector(tmp_path / "peer.pth").model.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    samples = []
    for height, width in ((60, 84), (84, 40)):
        shapes = dict(img_shape=(height, width), ori_shape=(2 * height, 2 * width))
        sample = DetDataSample(metainfo=dict(shapes, img_id=0, scale_factor=(0.5, 0.5)))
        boxes, labels = torch.tensor([[5.0, 5, 30, 50]]), torch.zeros(1, dtype=torch.long)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        if masks:
            ones = np.ones((1, height, width), np.uint8)
            sample.gt_instances.masks = BitmapMasks(ones, height, width)
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *s.img_shape), dtype=torch.uint8) for s in samples]
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    loss, logged = model.train().parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert loss.isfinite() and all("loss" in key for key in logged)
    assert sum(p.grad is not None for p in model.parameters()) > 0
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), False)
    with torch.no_grad():
        found = model.eval()(**batch, mode="predict")
    for sample in found:
        (height, width), one = sample.ori_shape, sample.pred_instances
        assert (one.labels == 0).all() and ("masks" in one) == masks
        assert (one.bboxes <= torch.tensor([width, height] * 2) + 1e-3).all()
        assert not masks or one.masks.shape[1:] == (height, width)


def test_penn_fudan_archive(tmp_path, monkeypatch):
    """Persons are numbered in the masks; photos are copied as they are."""
    monkeypatch.setattr(pennfudan, "NUM_VAL", 1)
    pixels = np.zeros((8, 10), np.uint8)
    pixels[1:5, 2:4], pixels[2:8, 6:9] = 1, 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("PNGImages/P1.png", "PedMasks/P1_mask.png"):
            archive.write(tmp_path / "a.png", f"PennFudanPed/{name}")
            archive.write(tmp_path / "a.png", f"PennFudanPed/{name.replace('1', '2')}")
    pennfudan.main([str(tmp_path / "a.zip"), str(tmp_path / "out")])
    for split in ("train", "val"):
        text = (tmp_path / "out/annotations" / f"instances_{split}.json").read_text()
        document = json.loads(text)
        assert [one["bbox"] for one in document["annotations"]] == [[2, 1, 2, 4], [6, 2, 3, 6]]
        (image,) = document["images"]
        assert (tmp_path / "out" / split / image["file_name"]).is_file()
