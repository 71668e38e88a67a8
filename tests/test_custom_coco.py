"""configs/custom_coco.py: four lines on top are all that a data set of one's own needs."""

import re

import pytest

from ropevit_mmdet.data_checks.datasets import check_datasets
from ropevit_mmdet.run.config import load_config
from tests.test_configs import CONFIGS
from tests.tiny_coco import write_tiny


@pytest.fixture
def custom(tmp_path):
    """Writes the config with its four lines set to a tiny data set, some of them otherwise."""
    write_tiny(tmp_path)
    data = tmp_path / "data"
    (data / "pictures").rename(data / "photos")
    (data / "annotations.json").rename(data / "instances_photos.json")

    def write(**lines):
        ours = dict(data_root=f"{data}/", train_ann="instances_photos.json")
        ours |= dict(val_ann="instances_photos.json", classes=("dark", "light"))
        text = (CONFIGS / "custom_coco.py").read_text()
        for name, value in (ours | lines).items():
            text, count = re.subn(rf"^{name} = .*", f"{name} = {value!r}", text, flags=re.M)
            assert count == 1
        text = text.replace('"./ropevit', f'"{CONFIGS}/ropevit')
        path = tmp_path / "mine.py"
        path.write_text(text)
        return load_config(path)

    return write


def test_everything_follows_from_the_four_lines(custom):
    config = custom()
    check_datasets(config)
    head = config.model.roi_head
    assert head.bbox_head.num_classes == head.mask_head.num_classes == 2
    for split in ("train", "val", "test"):
        dataset = config[f"{split}_dataloader"].dataset
        assert dataset.metainfo.classes == ("dark", "light")
        assert dataset.data_prefix.img == "photos/"
        assert dataset.ann_file == "instances_photos.json"
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file
    assert config.val_evaluator.ann_file.endswith("data/instances_photos.json")


def test_as_it_stands_it_names_the_shapes():
    dataset = load_config(CONFIGS / "custom_coco.py").train_dataloader.dataset
    assert (dataset.data_root, dataset.data_prefix.img) == ("data/shapes/", "train/")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("dark", "bright"), "lack 'bright' of the config's classes"),
        (("cat",), "share no name with the config's classes"),
        (("dark",), "have 'light' beside the config's classes"),
        (("light", "dark"), "have another order than the config's classes"),
    ],
)
def test_classes_that_do_not_fit_are_one_clear_error(custom, classes, message):
    with pytest.raises(ValueError, match=message):
        check_datasets(custom(classes=classes))


def test_a_file_that_is_not_there_is_named(custom):
    with pytest.raises(ValueError, match="annotation file .*instances_nowhere.json does not exist"):
        check_datasets(custom(train_ann="instances_nowhere.json"))
