"""tools/check_dataset.py: what it prints and writes, and its status. See also test_malformed_data."""

import json

import pytest

from tests.malformed_coco import document, write
from tests.test_configs import CONFIGS
from tools import check_dataset


def test_the_tool(tmp_path, capsys):
    content = document()
    content["annotations"][0]["bbox"][2] = 0
    content["images"].append(dict(content["images"][0], id=4, file_name="gone.png"))
    content["images"].append(dict(content["images"][0], id=5, file_name="gone too.png"))
    write(tmp_path, content)
    (tmp_path / "images" / "more.jpg").touch()
    files = ["--ann-file", tmp_path / "annotations.json", "--img-dir", tmp_path / "images"]
    argv = [*map(str, files), "--json", str(tmp_path / "report.json"), "--show", "1"]
    assert check_dataset.main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "5 images, 6 annotations, 5 categories" in lines[0]
    assert lines[1].split(maxsplit=1) == ["error", "image files that are not there (2)"]
    assert lines[2].strip() == "gone.png"
    assert "2 errors, 1 warning, 3 notes" in lines[-2] and "--decode" in lines[-1]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["errors"] == 2 and written["data_sets"][0]["images"] == 5
    kinds = {one["kind"]: one["places"] for one in written["data_sets"][0]["findings"]}
    assert kinds["missing"] == ["gone.png", "gone too.png"]
    assert kinds["not annotated"] == ["more.jpg"] and len(kinds["no objects"]) == 2

    content["images"] = content["images"][:3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert check_dataset.main([*map(str, files), "--decode"]) == 0
    assert "0 errors, 1 warning" in capsys.readouterr().out


def test_the_tool_reads_data_sets_from_configs(tmp_path, capsys):
    write(tmp_path, document())
    root = f"{tmp_path}/"
    options = [
        f"{split}_dataloader.dataset.{key}={value}"
        for split in ("train", "val", "test")
        for key, value in (
            ("data_root", root), ("ann_file", "annotations.json"), ("data_prefix.img", "images/")
        )
    ]  # fmt: skip
    argv = [str(CONFIGS / "shapes_maskrcnn.py"), "--cfg-options", *options]
    assert check_dataset.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("train: ") and "\nval, test: " in out and "nothing is wrong" in out
    classes = "train_dataloader.dataset.metainfo.classes=[star,ring]"
    assert check_dataset.main([*argv, classes]) == 1  # some of the classes alone
    assert "'square', 'triangle', with objects, beside" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check_dataset.main([str(tmp_path / "none.py")])
    assert capsys.readouterr().err.startswith("error: config file")
