"""The command line tools: whole small runs, and one clear line for what a user gets wrong."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from ropevit_mmdet.engine.config import load_config, use_tta
from ropevit_mmdet.errors import one_line_errors
from tests.malformed_files import Payload
from tests.tiny_coco import write_tiny

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, test, predict = map(load_tool, ("train", "test", "predict"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny config in a directory of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROPEVIT_DEBUG", raising=False)
    return write_tiny(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config and checkpoint of a run of two iterations."""
    directory = tmp_path_factory.mktemp("trained")
    config = write_tiny(directory)
    train.main([str(config), "--work-dir", str(directory / "run")])
    return config, directory / "run" / "iter_2.pth"


def fails(capsys, main, *argv):
    """The one line that a tool ends with; exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in argv])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_train_writes_a_checkpoint_of_the_detector(trained):
    config, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=False)
    assert saved["meta"]["iter"] == 2
    assert tuple(saved["meta"]["dataset_meta"]["classes"]) == ("dark", "light")
    assert (checkpoint.parent / config.name).exists()


def test_resume_takes_what_was_saved_until_the_directory_was_free(trained, tmp_path, monkeypatch):
    config, checkpoint = trained
    options = [str(config), "--work-dir", str(tmp_path), "--cfg-options"]
    train.main([*options, "train_cfg.max_iters=4", "default_hooks.checkpoint.interval=4"])
    late = (tmp_path / "iter_4.pth").rename(tmp_path / "late")
    shutil.copy(checkpoint, tmp_path / "iter_2.pth")
    lock_work_dir = train.lock_work_dir

    def last_saved(*args):
        late.rename(tmp_path / "iter_4.pth")
        return lock_work_dir(*args)

    monkeypatch.setattr(train, "lock_work_dir", last_saved)
    train.main([*options, "train_cfg.max_iters=6", "--resume"])
    logs = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "iter_4.pth" in logs and "resumed epoch: 0, iter: 4" in logs


def test_resume_goes_on_and_options_apply(trained, tmp_path):
    config, checkpoint = trained
    options = ["--cfg-options", "train_cfg.max_iters=4"]
    train.main([str(config), "--work-dir", str(tmp_path), "--resume", str(checkpoint), *options])
    saved = torch.load(tmp_path / "iter_4.pth", weights_only=False)
    first = torch.load(checkpoint, weights_only=False)
    assert saved["meta"]["iter"] == 4
    assert not (tmp_path / "iter_2.pth").exists()
    name = "bbox_head.retina_cls.weight"
    step = (saved["state_dict"][name] - first["state_dict"][name]).abs().max()
    assert 0 < step < 0.05  # from where it was, not from another random start


def test_resume_with_nothing_to_resume_keeps_load_from(trained, tmp_path):
    """A job that is started again and again always gives --resume."""
    config, checkpoint = trained
    options = ["--resume", "--cfg-options", f"load_from={checkpoint}"]
    args = train.parse_args([str(config), "--work-dir", str(tmp_path / "new"), *options])
    prepared = train.prepare(args)
    assert (prepared.resume, prepared.load_from) == (False, str(checkpoint))


def test_an_optimizer_of_other_groups_is_said(trained, tmp_path, capsys):
    config, checkpoint = trained
    options = ["--cfg-options", "train_cfg.max_iters=4"]
    options += ["optim_wrapper.paramwise_cfg.bias_lr_mult=2"]
    argv = [config, "--work-dir", tmp_path, "--resume", checkpoint, *options]
    assert "optimizer has other parameter groups" in fails(capsys, train.main, *argv)


def test_test_reports_metrics_with_out_and_show_dir(trained, tmp_path):
    config, checkpoint = trained
    out = tmp_path / "results.pkl"
    argv = [str(config), str(checkpoint), "--work-dir", str(tmp_path)]
    metrics = test.main([*argv, "--out", str(out), "--show-dir", "drawn"])
    assert 0 <= metrics["coco/bbox_mAP"] <= 1
    results = pickle.loads(out.read_bytes())
    assert len(results) == 4 and results[0]["pred_instances"]["bboxes"].shape == (10, 4)
    assert len(list(tmp_path.glob("*/drawn/*.png"))) == 4


def test_tta_merges_views(trained, tmp_path):
    """Twice the same view must give what one view gives; a mirrored one must change it."""
    config, checkpoint = trained
    argv = ["--work-dir", str(tmp_path), "--out", str(tmp_path / "results.pkl")]
    scores = {}
    for name, extra in (("plain", []), ("mirrored", ["--tta"]), ("twice", ["--tta"])):
        path = config
        if name == "twice":
            path = config.with_name("twice.py")
            steps = load_config(config).test_dataloader.dataset.pipeline
            flips = [{"type": "RandomFlip", "prob": 0.0}] * 2
            packs = [{**steps[-1], "meta_keys": (*steps[-1].meta_keys, "flip", "flip_direction")}]
            steps[-1] = {"type": "TestTimeAug", "transforms": [flips, packs]}
            path.write_text(f"_base_ = './{config.name}'\ntta_pipeline = {steps!r}\n")
        test.main([str(path), str(checkpoint), *argv, *extra])
        results = pickle.loads((tmp_path / "results.pkl").read_bytes())
        scores[name] = results[0]["pred_instances"]["scores"][:5]
    torch.testing.assert_close(scores["twice"], scores["plain"])
    assert (scores["mirrored"] != scores["plain"]).any()


def test_predict_writes_overlays_and_coco_results(trained, tmp_path, capsys):
    config, checkpoint = trained
    images = config.parent / "data" / "images"
    argv = [str(config), str(checkpoint), str(images), "--out-dir", str(tmp_path / "out")]
    predict.main([*argv, "--score-thr", "0", "--batch-size", "3", "--device", "cpu"])
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["width"] for image in results["images"]] == [64] * 4
    assert len(results["annotations"]) == 40
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == 4
    said = capsys.readouterr().out
    assert "40 objects in 4 images, scores of 0.0 and up" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    predict.main([*argv, "--score-thr", "0", "--cfg-options", "model.test_cfg.score_thr=1.0"])
    said = capsys.readouterr().out
    assert "0 objects in 4 images, scores of 1.0 and up" in said
    assert "the config's score_thr leaves out those below 1.0" in said


def test_missing_and_broken_configs(tiny, capsys):
    assert "config file nowhere.py does not exist" in fails(capsys, train.main, "nowhere.py")
    tiny.write_text("a = 1\nb = = 2\n")
    assert "tiny.py, line 2: " in fails(capsys, train.main, tiny)
    tiny.write_text("a = undefined_name\n")
    assert "undefined_name" in fails(capsys, train.main, tiny)
    tiny.write_text("_base_ = './gone.py'\n")
    assert "gone.py" in fails(capsys, train.main, tiny)
    tiny.write_text("a = 1\n")
    assert "defines no model" in fails(capsys, train.main, tiny)
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.backbone.type=RoPEVit", "RoPEVit is not in the mmdet::model registry"),
        ("model.backbone.sort=1", "unexpected keyword argument 'sort'"),
        ("work_dir.x=1", "--cfg-options work_dir.x=1"),
        ("pipeline=[]", "--cfg-options pipeline: "),
        ("optim_wrapper.dtype=bfloat16", "optim_wrapper.dtype is a setting of mixed precision"),
        ("load_from=gone.pth", "checkpoint gone.pth does not exist"),
    ],
)
def test_bad_options_leave_nothing_behind(tiny, capsys, option, said):
    tiny.write_text(tiny.read_text() + "work_dir = 'work_dirs/tiny'\n")
    assert said in fails(capsys, train.main, tiny, "--cfg-options", option)
    assert not Path("work_dirs").exists()


def test_unknown_architecture(tiny, capsys):
    tiny.write_text(tiny.read_text().replace("type='ResNet', depth=18, base_channels=8, "
                                             "out_indices=(2, 3)",
                                             "type='RoPEViT', arch='rope_vit_x99'"))  # fmt: skip
    assert "rope_vit_x99" in fails(capsys, train.main, tiny)
    assert not Path("work_dirs").exists()


def test_backbone_checkpoint_is_read_before_anything_is_written(tiny, capsys):
    Path("cut.pt").write_bytes(b"PK\x03\x04 truncated")
    tiny.write_text(tiny.read_text().replace("type='ResNet', depth=18, base_channels=8, "
                                             "out_indices=(2, 3)",
                                             "type='RoPEViT', init_cfg=dict(type='Pretrained', "
                                             "checkpoint='cut.pt')"))  # fmt: skip
    assert "cut.pt" in fails(capsys, train.main, tiny)
    assert not Path("work_dirs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_amp_needs_a_gpu(tiny, capsys):
    assert "--amp needs a GPU" in fails(capsys, train.main, tiny, "--amp")


def test_auto_scale_lr_needs_a_base(tiny, capsys):
    assert "base_batch_size" in fails(capsys, train.main, tiny, "--auto-scale-lr")


def test_auto_scale_lr_does_not_know_of_passes(tiny, capsys):
    tiny.write_text(tiny.read_text() + "auto_scale_lr = dict(base_batch_size=64, passes=1)\n")
    argv = [tiny, "--auto-scale-lr", "--cfg-options", "optim_wrapper.accumulative_counts=4"]
    assert "accumulative_counts=4 is not the 1" in fails(capsys, train.main, *argv)


@pytest.mark.parametrize(
    ("root", "ann_file", "fix"),
    [
        ("data/coco/", "annotations/instances_train2017.json", "cocodataset.org/#download"),
        ("data/shapes/", "annotations/instances_train.json", "python tools/make_shapes.py"),
        ("mine/", "boxes.json", "set data_root, ann_file and data_prefix"),
    ],
)
def test_missing_data_says_where_to_get_it(tiny, capsys, root, ann_file, fix):
    dataset = "train_dataloader.dataset"
    options = [f"{dataset}.data_root={root}", f"{dataset}.ann_file={ann_file}"]
    line = fails(capsys, train.main, tiny, "--cfg-options", *options)
    assert f"train dataset: annotation file {root}{ann_file} does not exist" in line
    assert fix in line
    assert not Path("work_dirs").exists()


def test_missing_and_empty_image_directories(tiny, capsys):
    for path in Path("data/images").iterdir():
        path.unlink()
    assert "images is empty" in fails(capsys, train.main, tiny)
    Path("data/images").rmdir()
    assert "image directory" in fails(capsys, train.main, tiny)


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (("red", "blue"), "share no name"),
        (("dark", "blue"), "lack 'light'"),
        (("light", "dark"), "another order"),
    ],
)
def test_categories_that_do_not_fit(tmp_path, monkeypatch, capsys, categories, said):
    monkeypatch.chdir(tmp_path)
    config = write_tiny(tmp_path, categories=categories)
    line = fails(capsys, train.main, config)
    assert said in line and repr(categories[0]) in line and "metainfo = dict(classes" in line
    assert not Path("work_dirs").exists()


def test_bad_checkpoints(trained, tmp_path, monkeypatch, capsys):
    config, good = trained
    monkeypatch.chdir(tmp_path)
    whole = good.read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("empty.pth").write_bytes(b"")
    Path("text.pth").write_text("not a checkpoint")
    torch.save({"state": {"norm.weight": torch.ones(3)}, "task": "x"}, "birder.pth")
    torch.save(torch.load(good, weights_only=False)["state_dict"]["backbone.conv1.weight"], "t.pth")
    Path("code.pth").write_bytes(pickle.dumps({"state_dict": Payload(open, "ran.txt", "w")}))
    said = {
        "gone.pth": "does not exist",
        "cut.pth": "truncated",
        "empty.pth": "truncated",
        "text.pth": "not a torch file",
        "birder.pth": "init_cfg = dict(type='Pretrained', checkpoint='birder.pth')",
        "t.pth": "holds a Tensor",
        "code.pth": "more than weights and plain data",
    }
    for name, words in said.items():
        line = fails(capsys, test.main, config, name)
        assert words in line and name in line
        assert words in fails(capsys, train.main, config, "--resume", name)
        assert words in fails(capsys, predict.main, config, name, config.parent / "data/images")
    assert not Path("ran.txt").exists()
    assert not Path("work_dirs").exists() and not Path("outputs").exists()


def test_checkpoint_of_another_architecture(trained, tmp_path, monkeypatch, capsys):
    config, checkpoint = trained
    monkeypatch.chdir(tmp_path)
    options = ["--cfg-options", "model.backbone.depth=34", "model.bbox_head.num_classes=3"]
    line = fails(capsys, test.main, config, checkpoint, *options)
    assert "of the model's weights are not in it: backbone.layer1.2." in line
    assert "bbox_head.retina_cls.weight is (2, 16, 3, 3), the model has (3, 16, 3, 3)" in line
    assert not Path("work_dirs").exists()


def test_unreadable_image_in_training_is_named(tiny, capsys):
    Path("data/images/1.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit):
        train.main([str(tiny)])
    assert "error: image" in (line := capsys.readouterr().err) and "1.png" in line


def test_bad_images_leave_no_output(trained, tmp_path, monkeypatch, capsys):
    config, checkpoint = trained
    monkeypatch.chdir(tmp_path)
    good = config.parent / "data" / "images" / "1.png"
    Path("cut.png").write_bytes(good.read_bytes()[:-2000])
    Path("text.jpg").write_text("not an image")
    nan = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(nan).save("nan.tiff")
    Path("nothing").mkdir()
    said = {
        "gone.png": "image gone.png does not exist",
        "cut.png": "image cut.png cannot be read",
        "text.jpg": "image text.jpg cannot be read: not an image",
        "nan.tiff": "image nan.tiff holds NaN",
        "nothing": "directory nothing holds no images",
    }
    for name, words in said.items():
        assert words in fails(capsys, predict.main, config, checkpoint, good, name)
    assert not Path("outputs").exists()
    line = fails(capsys, predict.main, config, checkpoint, good, "--device", "tpu9")
    assert "device 'tpu9'" in line


def test_tta_drops_the_mask_head():
    evaluators = [{"type": "CocoMetric", "metric": ["bbox", "segm"]}]
    pack = {"type": "PackDetInputs", "meta_keys": ("img_id", "flip_direction_not")}
    config = Config(
        {
            "model": {"roi_head": {"mask_head": {"type": "M"}, "mask_roi_extractor": {}}},
            "test_evaluator": evaluators,
            "test_dataloader": {"dataset": {"pipeline": [{"type": "Load"}, pack]}},
        }
    )
    assert use_tta(config)
    assert config.model.type == "DetTTAModel"
    assert config.model.module.roi_head.mask_head is None
    assert config.test_evaluator[0].metric == "bbox"
    flips, packs = config.test_dataloader.dataset.pipeline[-1].transforms
    assert [flip.prob for flip in flips] == [1.0, 0.0]
    assert packs[0].meta_keys[-2:] == ("flip", "flip_direction")
    assert not use_tta(Config({**config.to_dict(), "model": {"bbox_head": {}}}))


def test_only_errors_addressed_to_the_user_are_cut_to_a_line(monkeypatch, capsys):
    monkeypatch.delenv("ROPEVIT_DEBUG", raising=False)
    with pytest.raises(ValueError, match="invalid literal"), one_line_errors():
        int("not raised by the package: a bug until shown otherwise")
    with pytest.raises(KeyError), one_line_errors():
        {}["key"]
    with pytest.raises(SystemExit), one_line_errors():
        load_config("gone.py")
    worker = "Caught AssertionError in DataLoader worker process 0.\nfailed to load image: a.png\n"
    with pytest.raises(SystemExit), one_line_errors():
        raise AssertionError(worker)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: image a.png cannot be")
    monkeypatch.setenv("ROPEVIT_DEBUG", "1")
    with pytest.raises(ValueError, match=r"gone\.py"), one_line_errors():
        load_config("gone.py")
    monkeypatch.delenv("ROPEVIT_DEBUG")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), one_line_errors():
        load_config("gone.py")
    assert capsys.readouterr().err == ""


def test_flags_that_contradict_themselves(capsys):
    for main, argv in (
        (test.main, ["c.py", "x.pth", "--out", "results.txt"]),
        (predict.main, ["c.py", "x.pth", "a.png", "--batch-size", "0"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2 and argv[-2] in capsys.readouterr().err


def test_ema_and_clipping_are_one_switch_each(tiny):
    switches = ["default_hooks.ema.type=EMAHook", "optim_wrapper.clip_grad.max_norm=1e-7"]
    switches.append("default_hooks.checkpoint.interval=1")
    train.main([str(tiny), "--work-dir", "run", "--cfg-options", *switches])
    saved = torch.load("run/iter_2.pth", weights_only=False)
    assert set(saved["ema_state_dict"]) >= {f"module.{key}" for key in saved["state_dict"]}
    start = torch.load("run/iter_1.pth", weights_only=False)["state_dict"]
    moved = [(saved["state_dict"][key] - value).abs().max() for key, value in start.items()]
    assert max(map(float, moved)) < 1e-7  # SGD at 0.01, gradients of norm 1e-7
