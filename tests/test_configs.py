"""Every config builds, loads a birder checkpoint, takes two optimizer steps and a test step."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from ropevit_mmdet.apis.adaptation.check import synthetic_batch
from ropevit_mmdet.engine.hooks.rope_vit_checks import check_normalization, check_strides
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from tests import oracle

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
COCO = [p for p in FILES if p.stem.startswith("ropevit_") and "eomt" not in p.stem]
QUERIES = [path for path in COCO if re.search("dino|detr|ddq|mask2former", path.stem)]
SMALL = "rope_vit_t14"
SAME_MODEL = [p for p in COCO if re.search("(dino|maskrcnn)_(12e|fsdp)$", p.stem)]
TRAINED = [p for p in FILES if p not in SAME_MODEL and p.stem != "ropevit_maskrcnn_aspect"]
TRAINED = [p for p in TRAINED if p.stem not in ("shapes_compare", "shapes_transfer_448")]
COCO_IMAGES = 118_000  # of train2017, as ViTDet's 184,375 iterations of 64 for 100 epochs count


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function that has birder write a checkpoint file of an architecture, once each."""
    pytest.importorskip("birder")
    directory = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(name, settings, side):
        config = dict(settings) or None
        net = oracle.birder_net(name, config, size=(side, side))
        name = f"net{side}_{abs(hash(settings))}"
        return oracle.write_checkpoint(net, directory, name, config=config)

    return write


def load(path: Path, checkpoints: Callable[..., Path] | None = None) -> Config:
    """The config with a small architecture, fewer proposals or queries and two passes per step."""
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    backbone = backbone_of(config)
    if backbone.type != "RoPEViT":
        return config
    config.model.backbone.pop("cache_dir", None)
    if isinstance(backbone.arch, str):
        backbone.arch = SMALL
        (config.model.neck or config.model.panoptic_head).in_channels = 192
        config.model.data_preprocessor.batch_augments = None
    backbone.init_cfg = None
    if checkpoints is not None:
        named = isinstance(backbone.arch, str)
        name, settings = (backbone.arch, {}) if named else ("rope_vit_reg4_b14", backbone.arch)
        side = backbone.get("pretrain_img_size", 224)
        checkpoint = str(checkpoints(name, tuple(settings.items()), side))
        backbone.init_cfg = dict(type="Pretrained", checkpoint=checkpoint)
    if "roi_head" in config.model:  # less work for the heads
        config.model.train_cfg.rpn_proposal.max_per_img = 50
        config.model.test_cfg.rpn.max_per_img = 50
        heads = config.model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64
        stages = config.model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
    if "num_queries" in config.model:
        config.model.num_queries = 40  # test images have 20 cells in the coarsest levels
        config.model.encoder.num_layers, config.model.decoder.num_layers = 1, 2
        config.model.test_cfg.max_per_img = 10
    if "panoptic_head" in config.model:
        head = config.model.panoptic_head
        head.num_queries = config.model.test_cfg.max_per_image = 10
        if "pixel_decoder" in head:
            head.pixel_decoder.encoder.num_layers, head.transformer_decoder.num_layers = 1, 2
        else:
            head.num_blocks = 2
            config.model.data_preprocessor.pad_size_divisor = 32
        config.model.train_cfg.num_points = 64
    if config.optim_wrapper.get("accumulative_counts", 1) > 2:
        config.optim_wrapper.accumulative_counts = 2
    return config


def test_schedules_have_the_model_of_another_config():
    for path in SAME_MODEL:
        other = path.with_stem(re.sub("_(12e|fsdp)$", "", path.stem))
        one, base = Config.fromfile(path), Config.fromfile(other)
        assert one.model == base.model and one.optim_wrapper == base.optim_wrapper


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_loads_takes_two_optimizer_steps_and_a_test_step(path, checkpoints):
    config = load(path, checkpoints)
    model = MODELS.build(config.model)
    model.init_weights()
    check_strides(model)
    if path.stem.startswith("ropevit_"):
        check_normalization(model)
    backbone = backbone_of(config)
    if backbone.type == "RoPEViT":
        key = "blocks.0.attn.qkv.weight"
        state = read_checkpoint(backbone.init_cfg.checkpoint).state
        assert torch.equal(model.backbone.state_dict()[key], state[key])

    passes = config.optim_wrapper.get("accumulative_counts", 1)
    optim_wrapper = build_optim_wrapper(model, config.optim_wrapper)
    optim_wrapper.initialize_count_status(model, 0, 2 * passes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = synthetic_batch(config, ((120, 150), (112, 100)))
    for sample in data["data_samples"] if num_stuff(config) else ():
        sample.gt_sem_seg.sem_seg.fill_(80 + num_stuff(config) - 1)
    model.train()
    for _ in range(2 * passes):
        losses = model.train_step(data, optim_wrapper)
        assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
        else:  # without a gradient DDP fails
            assert parameter in optim_wrapper.optimizer.state, name
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert any(name.startswith(("neck.", "panoptic_head.")) for name in moved)
    assert any(name.startswith("backbone.") for name in moved) != ("frozen" in path.stem)

    with torch.no_grad():
        results = model.eval().test_step(data)
    assert [r.pred_instances.bboxes.shape[-1] for r in results] == [4, 4]
    assert ("masks" in results[0].pred_instances) == has_masks(config)
    assert ("pred_panoptic_seg" in results[0]) == bool(num_stuff(config))


def backbone_of(config: Config) -> dict:
    return config.model.backbone.get("backbone", config.model.backbone)  # in a FrozenBackbone


def num_stuff(config: Config) -> int:
    return config.model.get("panoptic_head", {}).get("num_stuff_classes", 0)


def has_masks(config: Config) -> bool:
    model = config.model
    return "roi_head" in model or "panoptic_head" in model or "Ins" in model.bbox_head.type


def epochs_of(path: Path) -> int:
    special = {"ropevit_maskrcnn_aspect": 12}
    return special.get(path.stem) or next((n for n in (12, 15) if f"{n}e" in path.stem), 100)


@pytest.mark.parametrize("path", sorted({*COCO} - {*QUERIES}), ids=lambda path: path.stem)
def test_schedules_match_the_batch_size_of_the_learning_rate(path):
    config = Config.fromfile(path)
    per_pass = config.auto_scale_lr.base_batch_size  # mmengine scales by the batch of one pass
    passes = config.optim_wrapper.get("accumulative_counts", 1)
    per_step = per_pass * passes
    gpus = 1 if "1xb2" in path.stem else 8
    assert gpus * config.train_dataloader.batch_size == per_pass
    interval = config.default_hooks.checkpoint.interval
    assert interval % passes == config.train_cfg.val_interval % passes == 0  # between steps
    assert config.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * per_step / 64)
    epochs = config.train_cfg.max_iters * per_pass / COCO_IMAGES
    assert epochs == pytest.approx(epochs_of(path), rel=1e-3)
    warmup, steps = config.param_scheduler
    assert warmup.end == 250 * passes
    assert steps.end == config.train_cfg.max_iters
    parts = [milestone / steps.end for milestone in steps.milestones]
    assert parts == pytest.approx([8 / 9, 26 / 27], abs=1e-3)


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_published_recipes_of_heads_with_queries(path):
    """detrex's projects/dino_eva; mmdet's mask2former_r50_8xb2-lsj-50e_coco.py."""
    config, masks = Config.fromfile(path), "mask2former" in path.stem
    epochs = 12 if re.search("12e|ddq", path.stem) else 50
    assert config.train_cfg.max_iters == (368750 if masks else 7500 * epochs)
    (steps,) = config.param_scheduler
    parts = [milestone / config.train_cfg.max_iters for milestone in steps.milestones]
    expected = [8 / 9, 26 / 27] if masks else [{12: 11 / 12, 50: 40 / 50}[epochs]]
    assert parts == pytest.approx(expected, abs=1e-3) and steps.end == config.train_cfg.max_iters
    assert 8 * config.train_dataloader.batch_size == config.auto_scale_lr.base_batch_size == 16
    wrapper = config.optim_wrapper
    assert wrapper.clip_grad == dict(max_norm=0.01 if masks else 0.1)
    assert (wrapper.optimizer.lr, wrapper.paramwise_cfg.layer_decay_rate) == (1e-4, 0.7)
    assert wrapper.optimizer.weight_decay == (0.05 if masks else 1e-4)


def test_documented_commands_have_the_batch_size_of_the_learning_rate():
    pages = [CONFIGS.parent / "README.md", *CONFIGS.parent.glob("docs/*.md"), *CONFIGS.glob("*.py")]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    runs = re.findall(r"^.*(?:train\.py|dist_train\.sh) configs/(?:ropevit|custom).*", text, re.M)
    assert len(runs) > 3
    for run in runs:
        path, gpus = re.search(r"(configs/\w+\.py)(?: (\d+))?", run).groups()
        nodes = re.search(r"NNODES=(\d+)", run)
        processes = int(gpus or 1) * int(nodes[1] if nodes else 1)
        config = Config.fromfile(CONFIGS.parent / path)
        given = re.search(r"train_dataloader\.batch_size=(\d+)", run)
        batch = int(given[1]) if given else config.train_dataloader.batch_size
        assert processes * batch == config.auto_scale_lr.base_batch_size, run


@pytest.mark.parametrize("path", COCO, ids=lambda path: path.stem)
def test_image_sizes_match_rope_interpolation(path):
    config = Config.fromfile(path)
    backbone, preprocessor = backbone_of(config), config.model.data_preprocessor
    side = backbone.rope_interpolation
    pads = preprocessor.batch_augments or ()
    assert len(pads) == (path.stem != "ropevit_maskrcnn_aspect")
    for pad in pads:
        assert pad.size == (side, side) and pad.get("pad_mask", False) == preprocessor.pad_mask
    assert side // backbone.get("patch_size", 14) == 64  # 4096 tokens
    assert side % preprocessor.pad_size_divisor == 0
    train, test = (config[f"{split}_dataloader"].dataset.pipeline for split in ("train", "test"))
    if num_stuff(config):
        assert train[1].type == test[2].type == "LoadPanopticAnnotations"
    else:
        assert train[1].with_mask == test[2].with_mask == has_masks(config)
    cropped = [train[3].crop_size] if pads else []
    assert [train[2].scale, test[1].scale, *cropped] == [(side, side)] * (2 + len(cropped))
    neck = MODELS.build(config.model.neck)
    assert preprocessor.pad_size_divisor % neck.strides[-1] == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_uses_registered_types(path):
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert DATASETS.get(loader.dataset.type)
    metric = "CocoPanopticMetric" if num_stuff(config) else "FastCocoMetric"
    assert config.test_evaluator.type == config.val_evaluator.type == metric
    assert METRICS.get(config.test_evaluator.type)
    assert config.randomness.seed is not None  # a resumed run needs it
    assert config.default_hooks.checks.type == "RoPEViTChecks" and "custom_hooks" not in config


def test_the_coco_recipe_is_windowed():
    backbone = Config.fromfile(CONFIGS / "ropevit_maskrcnn.py").model.backbone
    model = MODELS.build(dict(backbone, init_cfg=None, arch="rope_vit_t14"))
    assert model.window_size == model.pretrain_grid[0] == 16
    assert model.global_attn_indices == (2, 5, 8, 11)
    backbone = Config.fromfile(CONFIGS / "ropevit_maskrcnn_global.py").model.backbone
    assert backbone.window_size is None and backbone.pos_embed_mode == "interpolate"
