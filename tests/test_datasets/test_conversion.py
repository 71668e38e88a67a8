"""Conversion: one tiny dataset, written in every format, gives the same annotations in COCO's."""

import base64
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from mmdet.registry import DATASETS
from PIL import Image
from pycocotools import mask as rle

from ropevit_mmdet._images import SUFFIXES
from ropevit_mmdet.datasets import check_datasets
from ropevit_mmdet.datasets.conversion import convert
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.commands import fails, ropevit

NAMES = ("disk", "box")  # not sorted
SIZE = WIDTH, HEIGHT = 100, 80
# Objects of each image: name, polygon, whether it is difficult. The last image has none.
IMAGES = {
    "train": {"a": [("box", [10, 20, 50, 20, 50, 60, 10, 60], False),
                    ("disk", [60, 10, 90, 10, 75, 40], True)],
              "b c": [("disk", [0, 0, 100, 0, 100, 80, 0, 80], False)], "d": []},
    "val": {"e": [("box", [5, 5, 25, 5, 25, 45], False)]},
}  # fmt: skip


def box(polygon):
    xs, ys = polygon[::2], polygon[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def image(path, *, rotated=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    Image.new("RGB", SIZE[::-1] if rotated else SIZE).save(path, "JPEG", exif=exif)


def yolo_line(name, polygon, segments):
    x, y, w, h = box(polygon)
    values = polygon if segments else [x + w / 2, y + h / 2, w, h]
    scaled = [value / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(values)]
    return " ".join(map(str, [NAMES.index(name), *scaled]))


def write_yolo(root, segments=False, **content):
    """`content` replaces keys of its data.yaml."""
    for split, images in IMAGES.items():
        for name, objects in images.items():
            image(root / f"images/{split}/{name}.JPG", rotated=name == "a")
            lines = [yolo_line(one, polygon, segments) for one, polygon, _ in objects]
            path = root / f"labels/{split}/{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if lines:
                path.write_text("\n".join(lines) + "\n")
    default = dict(path="/content/elsewhere", train="images/train", val=["images/val"])
    default["names"] = dict(enumerate(NAMES))
    (root / "data.yaml").write_text(yaml.safe_dump(default | content))


def write_yolo_roboflow(root):
    paths = {split: f"../{split}/images" for split in ("train", "valid", "test")}
    write_yolo(root, names=list(NAMES), **paths, val=paths["valid"])
    for split, name in (("train", "train"), ("val", "valid")):
        (root / name).mkdir()
        for part in ("images", "labels"):
            (root / part / split).rename(root / name / part)


def write_yolo_lists(root):
    write_yolo(root, train="train.txt", val="val.txt")
    for split in IMAGES:
        paths = sorted((root / "images" / split).glob("*"))
        (root / f"{split}.txt").write_text("".join(f"./images/{split}/{p.name}\n" for p in paths))


def write_darknet(root):
    """As CVAT exports it; images are next to their labels."""
    for split, images in IMAGES.items():
        for name, objects in images.items():
            image(root / f"obj_{split}_data/{name}.jpg")
            lines = [yolo_line(one, polygon, False) for one, polygon, _ in objects]
            (root / f"obj_{split}_data/{name}.txt").write_text("\n".join(lines))
    (root / "obj.names").write_text("\n".join(NAMES))


def write_darknet_lists(root):
    """As its own manual has it: one directory, and lists."""
    write_darknet(root)
    (root / "obj").mkdir()
    for split, images in IMAGES.items():
        for path in (root / f"obj_{split}_data").iterdir():
            path.rename(root / "obj" / path.name)
        lines = [f"data/obj/{name}.jpg\n" for name in images]
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\n")


def write_voc(root):
    for images in IMAGES.values():
        for name, objects in images.items():
            image(root / f"JPEGImages/{name}.jpg")
            rows = []
            for one, polygon, difficult in objects:
                x, y, w, h = box(polygon)
                rows.append(
                    f"<object><name> {one}\n</name><difficult>{int(difficult)}</difficult><bndbox>"
                    f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}.0</ymax>"
                    "</bndbox></object>"
                )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            path = root / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"<annotation><filename>{name}.jpg</filename>{size}"
                            f"{''.join(rows)}</annotation>")  # fmt: skip
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, images in IMAGES.items():
        lines = [name.replace(" ", "_") for name in images]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(lines) + "\n")
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / f"b c.{suffix}").rename(root / folder / f"b_c.{suffix}")
    (root / "ImageSets/Main/trainval.txt").write_text("a\nb_c\nd\ne\n")


def write_voc_devkit(root):
    """The parent of VOC2007, unpacked by macOS."""
    write_voc(root / "VOC2007")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX/._a.xml").write_bytes(b"\0\5")


def write_voc_subsets(root):
    """As CVAT exports it: lists name directories, which have files of one name."""
    write_voc(root)
    for split in IMAGES:
        path = root / f"ImageSets/Main/{split}.txt"
        names = path.read_text().split()
        path.write_text("".join(f"{split}/{name}\n" for name in names))
        for directory, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            for name in names:
                (root / directory / split).mkdir(exist_ok=True)
                file = root / directory / f"{name}{suffix}"
                file.rename(root / directory / split / file.name)
    image(root / "JPEGImages/other/e.jpg")


def write_voc_renamed(root):
    """The file names inside are those of before."""
    write_voc(root)
    for name, other in (("a", "e"), ("e", "a"), ("d", "gone")):
        path = root / f"Annotations/{name}.xml"
        path.write_text(path.read_text().replace(f">{name}.jpg", f">{other}.jpg"))


def write_yolo_links(root):
    """Its directories are on another disk."""
    write_yolo(root.with_name("disk"))
    root.mkdir()
    for name in ("images", "labels", "data.yaml"):
        (root / name).symlink_to(root.with_name("disk") / name)
    (root / "loop").symlink_to(root)


def write_labelme(root):
    for split, images in IMAGES.items():
        for name, objects in images.items():
            image(root / f"{split}/{name}.jpg")
            shapes = [
                dict(label=one, shape_type="polygon", group_id=None, flags=dict(difficult=flag),
                     points=[polygon[i : i + 2] for i in range(0, len(polygon), 2)])
                for one, polygon, flag in objects
            ]  # fmt: skip
            content = dict(shapes=shapes, imagePath=f"..\\{split}\\{name}.jpg", imageData=None)
            content |= dict(imageHeight=HEIGHT, imageWidth=WIDTH)
            (root / f"{split}/{name}.json").write_text(json.dumps(content))


def write_createml(root, keys=("image", "annotations"), space=" "):
    for split, directory in (("train", "train"), ("val", "valid")):
        rows = []
        for name, objects in IMAGES[split].items():
            image(root / directory / f"{name}.jpg")
            labels = []
            for one, polygon, _ in objects:
                x, y, w, h = box(polygon)
                coordinates = dict(x=x + w / 2, y=y + h / 2, width=w, height=h)
                labels.append(dict(label=one, coordinates=coordinates))
            rows.append({keys[0]: f"{name}.jpg".replace(" ", space), keys[1]: labels})
        path = root / directory / "_annotations.createml.json"
        path.write_text(json.dumps(rows), encoding="utf-8-sig")  # as programs on Windows write it


def write_createml_of_2018(root):
    write_createml(root, ("imagefilename", "annotation"), "%20")


# Writer, and whether the format has polygons, flags of difficult objects, an order of classes.
FORMATS = {
    "yolo": (write_yolo, False, False, True),
    "yolo segments": (partial(write_yolo, segments=True), True, False, True),
    "yolo of Roboflow": (write_yolo_roboflow, False, False, True),
    "yolo of ultralytics": (partial(write_yolo, path="../src"), False, False, True),
    "yolo with lists": (write_yolo_lists, False, False, True),
    "yolo of Darknet": (write_darknet, False, False, True),
    "yolo of Darknet, lists": (write_darknet_lists, False, False, True),
    "yolo of Windows": (partial(write_yolo, train=r"images\train"), False, False, True),
    "yolo with links": (write_yolo_links, False, False, True),
    "voc": (write_voc, False, True, False),
    "voc of a devkit": (write_voc_devkit, False, True, False),
    "voc in subsets": (write_voc_subsets, False, True, False),
    "voc of renamed files": (write_voc_renamed, False, True, False),
    "labelme": (write_labelme, True, True, False),
    "createml": (write_createml, False, False, False),
    "createml of 2018": (write_createml_of_2018, False, False, False),
}


def area(polygon):
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_dataset(name, tmp_path, monkeypatch):
    write, polygons, flags, ordered = FORMATS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "src")
    arguments = ["convert", name.split()[0], "src", "-o", "out", "--config", "my.py"]
    assert ropevit(*arguments, *([] if ordered else ["--classes", *NAMES])) == 0
    for split, expected in IMAGES.items():
        content = json.loads(Path(f"out/annotations/instances_{split}.json").read_text())
        categories = {one["id"]: one["name"] for one in content["categories"]}
        assert tuple(categories.values()) == NAMES and [*categories] == [1, 2]
        ids = [one["id"] for one in content["annotations"]]
        assert ids == [*range(1, len(ids) + 1)]
        found = {}
        for one in content["images"]:
            found[one["id"]] = Path(one["file_name"]).stem.replace("_", " "), []
            assert Path("out", split, one["file_name"]).is_file()
            assert (one["width"], one["height"]) == SIZE
        for one in content["annotations"]:
            shape = one.get("segmentation", [box_polygon(one["bbox"])])[0]
            label = categories[one["category_id"]], shape, bool(one["iscrowd"])
            found[one["image_id"]][1].append(label)
            assert one["bbox"] == pytest.approx(box(shape))
            assert one["area"] == pytest.approx(area(shape))
        wanted = {
            key: [(one, pytest.approx(p if polygons else box_polygon(box(p))), flags and flag)
                  for one, p, flag in objects]
            for key, objects in expected.items()
        }  # fmt: skip
        assert dict(found.values()) == wanted
    config = load_config("my.py")
    check_datasets(config)
    assert ("mask_head" in config.model.get("roi_head", {})) == polygons
    assert len(DATASETS.build(config.train_dataloader.dataset)) == 2  # without the empty one
    images = [path for path in Path("out").rglob("*") if path.suffix.lower() in SUFFIXES]
    assert {os.stat(path).st_nlink for path in images} == {2}  # hard links


def box_polygon(bbox):
    x, y, w, h = bbox
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def test_masks_are_kept(tmp_path):
    """VOC's numbered pixels and LabelMe's PNG within its JSON."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 20:50] = 1
    mask[20:60, 60:70] = 2
    write_voc(tmp_path / "voc")
    (tmp_path / "voc/SegmentationObject").mkdir()
    Image.fromarray(mask).save(tmp_path / "voc/SegmentationObject/a.png")
    write_labelme(tmp_path / "labelme")
    shapes = []
    for index, (top, left, bottom, right) in enumerate([(10, 20, 30, 50), (20, 60, 60, 70)], 1):
        file = io.BytesIO()
        part = mask[top:bottom, left:right] == index
        Image.fromarray(part.astype(np.uint8) * 255).save(file, "PNG")
        points = [[left, top], [right - 1, bottom - 1]]
        text = base64.b64encode(file.getvalue()).decode()
        shapes.append(dict(label="box", shape_type="mask", points=points, mask=text))
    path = tmp_path / "labelme/train/a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(shapes=shapes)))
    for name in ("voc", "labelme"):
        convert(name, tmp_path / name, tmp_path / f"{name}_out")
        path = tmp_path / f"{name}_out/annotations/instances_train.json"
        first, second = json.loads(path.read_text())["annotations"][:2]
        np.testing.assert_array_equal(rle.decode(first["segmentation"]), mask == 1)
        np.testing.assert_array_equal(rle.decode(second["segmentation"]), mask == 2)
        assert (first["area"], second["area"]) == (600, 400)
    assert first["bbox"] == [20, 10, 30, 20]


def test_shapes_of_labelme(tmp_path):
    write_labelme(tmp_path / "src")
    path = tmp_path / "src/val/e.json"
    content = json.loads(path.read_text())
    square = [[10, 10], [20, 10], [20, 20], [10, 20]]
    other = [[30, 30], [40, 30], [40, 40]]
    content["shapes"] = [
        dict(label="box", shape_type="rectangle", group_id=2, points=[[50, 60], [20, 10]]),
        dict(label="box", shape_type="rectangle", group_id=2, points=[[1, 2], [4, 6]]),
        dict(label="box", shape_type="polygon", group_id=1, points=square),
        dict(label="box", shape_type="polygon", group_id=1, points=other),
        dict(label="disk", shape_type="circle", points=[[40, 40], [50, 40]]),
    ]
    path.write_text(json.dumps(content))
    result = convert("labelme", tmp_path / "src", tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    rectangle, other, grouped = content["annotations"]
    assert rectangle["bbox"] == [20, 10, 30, 50] and "segmentation" not in rectangle
    assert other["bbox"] == [1, 2, 3, 4]
    assert grouped["bbox"] == [10, 10, 30, 30] and grouped["area"] == 150
    assert "2 of 6 objects have a box only" in result.notes[0]
    assert result.notes[-1] == "1 circle shapes are skipped"
    assert "ropevit_retinanet" in result.config()


def test_voc_corners_are_taken_as_they_are_and_boxes_without_size_reported(tmp_path, capsys):
    write_voc(tmp_path / "src")
    path = tmp_path / "src/Annotations/e.xml"
    text = path.read_text().replace("<xmax>25</xmax>", "<xmax>5</xmax>")
    path.write_text(text)
    assert ropevit("convert", "voc", tmp_path / "src", "-o", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "e.jpg, annotation 1: bbox [5, 5, 0, 40], area 0" in out
    assert "note: 1 difficult or ignored objects are crowds, not" in out
    assert "classes = ('box', 'disk')" in out  # the config is printed


@pytest.mark.parametrize(
    ("write", "label_format", "file", "text", "message"),
    [
        (write_yolo, "yolo", "data.yaml", None, "has no class names: add data.yaml"),
        (write_yolo, "yolo", "data.yaml", "names: [a", "src has no valid yolo labels: ParserError"),
        (write_yolo, "yolo", "labels/train/lost.txt", "0 .5 .5 .1 .1", "1 label .*/lost.txt"),
        (write_yolo, "yolo", "labels/train/a.txt", "0 .5 .5 .1", "a.txt: '0 .5 .5 .1' is not"),
        (write_yolo, "yolo", "labels/train/a.txt", "7 .5 .5 .1 .1", "a.txt: .* one of 2 classes"),
        (write_yolo, "yolo", "labels/train/a.txt", "-1 .5 .5 .1 .1", "a.txt: .* is not `class x y"),
        (write_voc, "voc", "JPEGImages/a.jpg", None, "1 label files have no image in .*a.xml"),
        (write_voc, "voc", "Annotations/old/a.xml", "", "a in .*train.txt, which has 2 XML files"),
        (write_voc, "voc", "JPEGImages", None, "has no images: name their directory by --images"),
        (write_voc, "voc", "Annotations/a.xml", "<annotation><object>", "a.xml has no valid voc"),
        (write_createml, "createml", "train/x.json", '[{"image": "a.jpg", "annotations": [{}]}]',
         "x.json has no valid createml labels: KeyError"),
        (write_createml, "createml", "train/x.json", '[{"image": "a.jpg"}, {"image": "a.jpg"}]',
         "1 images have labels twice in a split, such as .*a.jpg"),
        (write_createml, "labelme", "x.json", "{}", "has no labelme labels with objects"),
    ],
)  # fmt: skip
def test_invalid_labels_are_named_and_nothing_is_written(
    write, label_format, file, text, message, tmp_path, capsys
):
    write(tmp_path / "src")
    src, out = tmp_path / "src", tmp_path / "out"
    path = src / file
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        convert(label_format, src, out)
    assert len(fails(capsys, "convert", label_format, src, "-o", out)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_notes_say_what_is_lost(tmp_path):
    root = tmp_path / "src"
    write_yolo_lists(root)
    write_yolo(root, train="train.txt", val=None)
    listed, label = root / "train.txt", root / "labels/train/a.txt"
    listed.write_text(listed.read_text() + "images/train/gone.jpg\n")
    label.write_text(2 * (label.read_text().splitlines()[0] + "\n"))
    result = convert("yolo", root, tmp_path / "out")
    assert result.images == dict(train=3) and result.objects.total() == 2
    notes = "; ".join(result.notes)
    assert "trains and evaluates on the same images: the only splits are train" in notes
    assert "1 images of" in notes and "train.txt that do not exist are skipped" in notes
    assert "1 objects that repeat another are skipped" in notes


def test_classes_and_the_directory_must_fit(tmp_path):
    write_voc(tmp_path / "src")
    with pytest.raises(UserError, match=r"the labels have box \(2\), disk \(2\)"):
        convert("voc", tmp_path / "src", tmp_path / "out", classes=["box"])
    with pytest.raises(UserError, match="is not an empty directory"):
        convert("voc", tmp_path / "src", tmp_path / "src")
