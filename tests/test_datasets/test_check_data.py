"""`ropevit check-data`: report, JSON file and exit status."""

import argparse
import json
from pathlib import Path

import pytest

from ropevit_cli import check_data
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.malformed_coco import document, write

CONFIG = Path(__file__).parents[2] / "configs" / "shapes_maskrcnn.py"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    check_data.add_arguments(parser)
    return check_data.run(parser.parse_args(argv))


def test_an_annotation_file(tmp_path, capsys):
    content = document()
    content["annotations"][0]["bbox"][2] = 0
    content["images"].append(dict(content["images"][0], id=4, file_name="gone.png"))
    content["images"].append(dict(content["images"][0], id=5, file_name="gone too.png"))
    write(tmp_path, content)
    files = ["--ann-file", tmp_path / "annotations.json", "--img-dir", tmp_path / "images"]
    argv = [*map(str, files), "--json", str(tmp_path / "report.json"), "--show", "1"]
    assert main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "5 images, 6 annotations, 5 categories" in lines[0]
    assert lines[1].split(maxsplit=1)[0] == "error" and "image is missing (2); fix" in lines[1]
    assert lines[2].strip() == "gone.png"
    assert "2 errors, 1 warning, 2 notes" in lines[-2] and "--decode" in lines[-1]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["errors"] == 2 and written["datasets"][0]["images"] == 5
    places = {one["check"]: one["places"] for one in written["datasets"][0]["findings"]}
    assert places["missing"] == ["gone.png", "gone too.png"] and len(places["no objects"]) == 2

    content["images"] = content["images"][:3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert main([*map(str, files), "--decode"]) == 0
    assert "0 errors, 1 warning" in capsys.readouterr().out


def test_the_datasets_of_a_config(tmp_path, capsys):
    write(tmp_path, document())
    config = load_config(CONFIG)
    for split in ("train", "val", "test"):
        files = dict(data_root=f"{tmp_path}/", ann_file="annotations.json")
        files["data_prefix"] = dict(img="images/")
        config[f"{split}_dataloader"].dataset.update(files)
    config.dump(tmp_path / "config.py")
    argv = [str(tmp_path / "config.py")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("train: ") and "\nval, test: " in out and "no findings" in out
    config.train_dataloader.dataset.metainfo.classes = ("star", "moon")
    config.dump(tmp_path / "config.py")
    assert main(argv) == 1
    assert "and include 'square', 'triangle'" in capsys.readouterr().out


def test_findings_of_every_dataset_of_a_split_count(tmp_path, capsys):
    config, parts = load_config(CONFIG), []
    for name, image_id in (("bad", 99), ("good", 1)):
        content = document()
        content["annotations"][0].update(image_id=image_id, id=2 if name == "bad" else 1)
        write(tmp_path / name, content)
        part = dict(config.train_dataloader.dataset, data_root=f"{tmp_path / name}/")
        parts.append(part | dict(ann_file="annotations.json", data_prefix=dict(img="images/")))
    config.train_dataloader.dataset = dict(type="ConcatDataset", datasets=parts)
    config.pop("val_dataloader")
    config.dump(tmp_path / "config.py")
    main([str(tmp_path / "config.py"), "--split", "train", "--json", str(tmp_path / "r.json")])
    content = json.loads((tmp_path / "r.json").read_text())
    assert [one["split"] for one in content["datasets"]] == ["train", "train"]
    assert content["warnings"] + content["errors"] == 2
    path = tmp_path / "bad" / "annotations.json"  # --split would mean both
    assert f"to fix: ropevit check-data --ann-file {path}" in capsys.readouterr().out
    with pytest.raises(UserError, match="no val_dataloader"):
        main([str(tmp_path / "config.py"), "--split", "val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--img-dir", "x"], "--img-dir belongs to --ann-file"),
        (["--fix", "x.json"], "--fix corrects one of the 3 annotation files"),
    ],
)
def test_arguments_that_exclude_each_other(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(CONFIG), *options])
    assert message in capsys.readouterr().err
