"""Configs in packages: `_base_ = "PACKAGE::..."`, `read_base()` and the names of commands."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.compat.config import CONFIGS, packaged_config, type_name


def load(tmp_path, text):
    file = tmp_path / "config.py"
    file.write_text(text)
    return Config.fromfile(file)


@pytest.mark.parametrize("name", ["ropevit_maskrcnn", "ropevit_eomt-panoptic", "custom_coco"])
def test_base_of_this_package_is_the_file_by_its_path(name, tmp_path):
    config = load(tmp_path, f'_base_ = "ropevit_mmdet::{name}.py"').to_dict()
    assert config == Config.fromfile(CONFIGS / f"{name}.py").to_dict()
    assert "_scope_" not in str(config)


def test_base_of_mmdet(tmp_path):
    config = load(
        tmp_path,
        '_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"]\n'
        "model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))",
    )
    assert config.model.type == "MaskRCNN" and config.model.backbone.depth == 50
    assert config.model.roi_head.bbox_head.num_classes == 3
    assert config.default_scope == "mmdet"


def test_base_of_a_source_tree(tmp_path, monkeypatch):
    """An editable install, in which pip no longer runs what makes `.mim`."""
    (tmp_path / "lab_sources").mkdir()
    (tmp_path / "lab_sources" / "__init__.py").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "detector.py").write_text("depth = 18")
    monkeypatch.syspath_prepend(tmp_path)
    assert load(tmp_path, '_base_ = "lab_sources::detector.py"').depth == 18


def test_python_style_base_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "lab_configs"
    (package / "configs" / "_base_").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('loading a config imports nothing')")
    (package / "configs" / "_base_" / "model.py").write_text(
        "from ropevit_mmdet import RoPEViT\nbackbone = dict(type=RoPEViT, arch='rope_vit_b14')\n"
    )
    (package / "configs" / "detector.py").write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from ._base_.model import *\n"
        "model = dict(backbone=backbone)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load(
        tmp_path,
        "from mmengine.config import read_base\n"
        "with read_base():\n    from lab_configs.configs.detector import *\n"
        "model.update(neck=dict(type='FPN'))\n",
    )
    assert config.model.backbone.type is RoPEViT
    assert config.model.neck.type == "FPN"


@pytest.mark.parametrize(
    ("base", "error"),
    [
        ("ropevit_mmdet::no_such.py", FileNotFoundError),
        ("mmdet::no_such/config.py", FileNotFoundError),
        ("no_such_package::config.py", ModuleNotFoundError),
        ("./no_such.py", FileNotFoundError),
    ],
)
def test_missing_base_is_named(base, error, tmp_path):
    with pytest.raises(error, match="no_such"):
        load(tmp_path, f'_base_ = "{base}"')


def test_packaged_config_by_name():
    file = CONFIGS / "ropevit_maskrcnn.py"
    assert packaged_config("ropevit_maskrcnn") == packaged_config("ropevit_maskrcnn.py") == file
    assert packaged_config("backbones/resnet18") == CONFIGS / "backbones" / "resnet18.py"
    assert packaged_config("no_such") is None


@pytest.mark.parametrize(
    "given", ["Pretrained", "mmengine.Pretrained", "mmengine.model.Pretrained", PretrainedInit]
)
def test_type_name_of_every_spelling(given):
    assert type_name(ConfigDict(type=given)) == "Pretrained"
    assert type_name(ConfigDict(type=dict)) == "dict" and type_name({}) == type_name(None) == ""
