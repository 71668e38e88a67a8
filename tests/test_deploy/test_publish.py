"""A published checkpoint is small and clean, and detects what the original does."""

import hashlib
import json

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from mmengine.config import Config
from mmengine.runner import Runner

from ropevit_mmdet.apis import Detector
from ropevit_mmdet.deploy import model_card, publish_checkpoint, publish_model
from ropevit_mmdet.engine.config import load_config
from ropevit_mmdet.errors import UserError
from tests.commands import fails
from tests.exportable_models import run_command
from tests.tiny_coco import write_tiny


@pytest.fixture(autouse=True)
def unformatted():
    """Configs are formatted in the module's fixtures, too: their texts are compared."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config and work dir of a run of two iterations with EMA and a checkpoint of each."""
    directory = tmp_path_factory.mktemp("run with EMA")
    path = write_tiny(directory)
    config = load_config(path, work_dir=str(directory / "run"))
    config.custom_hooks = [dict(type="EMAHook", momentum=0.3)]
    config.default_hooks.checkpoint.update(interval=1)
    config.default_hooks.logger = dict(type="LoggerHook", log_metric_by_epoch=False)
    Runner.from_cfg(config).train()
    return path, directory / "run"


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    return publish_checkpoint(
        trained[1] / "iter_2.pth", tmp_path_factory.mktemp("out") / "detector.pth"
    )


def test_name_has_the_hash_of_the_file(trained, published, tmp_path):
    digest = hashlib.sha256(published.path.read_bytes()).hexdigest()[:8]
    assert published.path.name == f"detector-{digest}.pth"
    assert list(published.path.parent.iterdir()) == [published.path]
    again = publish_checkpoint(trained[1] / "iter_2.pth", tmp_path / "new")
    assert again.path == tmp_path / "new" / f"iter_2-{digest}.pth"


def test_only_weights_and_meta_are_kept(trained, published):
    before = torch.load(trained[1] / "iter_2.pth", weights_only=False)
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # the file loads without our allow-list
    try:
        after = torch.load(published.path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    assert after.keys() == {"meta", "state_dict"}
    assert set(published.removed) == before.keys() - after.keys() >= {"optimizer", "message_hub"}
    assert after["meta"]["dataset_meta"]["classes"] == ("dark", "light")
    assert after["meta"]["iter"] == 2 and after["meta"].keys() < before["meta"].keys()


def test_no_path_is_kept(trained, published):
    directory = trained[0].parent
    assert str(directory).encode() in (trained[1] / "iter_2.pth").read_bytes()
    assert b"run with EMA" not in published.path.read_bytes()
    assert published.redacted[f"{directory}/data"] == "data"
    assert published.redacted[f"{directory}/data/annotations.json"] == "annotations.json"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/home/o'neil/my coco/", "my coco/"),
        ("/home/anna/coco/annotations/val.json", "val.json"),
        ("~anna/runs/a.pth", "a.pth"),
        ("file:///home/anna/a.pth", "a.pth"),
        ("sqlite:////home/anna/mlflow.db", "mlflow.db"),
        (r"C:\Users\Anna\a.pth", "a.pth"),
        (r"\\nas\share\a.pth", "a.pth"),
        ("https://me:secret@example.org/a.pth?X-Signature=abc", "https://example.org/a.pth"),
        ("s3://key:secret@bucket/a.pth", "s3://bucket/a.pth"),
        *((text, text) for text in ("birder://rope_vit_reg4_b14", "git+https://example.org/a/b")),
        *((text, text) for text in ("data/coco/", "./a.pth", "and/or", "/", "", "me@example.org")),
    ],
)
def test_config_is_kept_without_paths(old, new, tmp_path):
    _, after = published_config(dict(nested=[dict(file=old)], pair=(1, "x")), tmp_path)
    assert after.to_dict() == dict(nested=[dict(file=new)], pair=(1, "x"))


def test_config_is_kept_without_secrets(tmp_path):
    service = dict(api_key="a1'b2", access_key_id="a1b2", tokens=["a1b2"], num_tokens=4, key="img")
    done, after = published_config(dict(service=service, tokenizer="bert"), tmp_path)
    hidden = dict(api_key="<secret>", access_key_id="<secret>", tokens=["<secret>"])
    assert after.to_dict() == dict(service=service | hidden, tokenizer="bert")
    assert b"b2" not in done.path.read_bytes() and "b2" not in str(done.redacted)


def test_config_with_code_is_removed(tmp_path):
    _, after = published_config("a = print('x')", tmp_path)
    assert after is None


def published_config(config, tmp_path):
    """What publishing a checkpoint with a config did, and the config in the new file."""
    text = config if isinstance(config, str) else Config(config).pretty_text
    weights = {"backbone.w": torch.ones(1), "bbox_head.w": torch.ones(1)}
    meta = dict(cfg=text, dataset_meta=dict(classes=("a", "b")))
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "a.pth")
    done = publish_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    text = torch.load(done.path, weights_only=True)["meta"].get("cfg")
    return done, text and Config.fromstring(text, ".py")


def test_views_of_a_large_storage_are_copied(tmp_path):
    large = torch.arange(1_000_000.0)
    weights = {"backbone.w": large[:10], "bbox_head.w": large[10:20].view(2, 5)}
    torch.save({"state_dict": weights}, tmp_path / "views.pth")
    done = publish_checkpoint(tmp_path / "views.pth", tmp_path / "small.pth")
    assert done.path.stat().st_size < 10_000


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (dict(backbone=1.0, head=1.0), "contains no detector, only backbone, head"),
        (dict(backbone=1.0, bbox_head=float("nan")), "bbox_head.w"),
    ],
)
def test_unsuitable_checkpoints(weights, message, tmp_path):
    weights = {f"{name}.w": torch.full((3,), value) for name, value in weights.items()}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        publish_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_publish_model_writes_a_directory_with_a_card(trained, published, tmp_path):
    """The run validates at its end: iteration 2, with the averaged weights."""
    (log,) = trained[1].glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    (expected,) = [one["coco/bbox_mAP"] for one in logged if "coco/bbox_mAP" in one]
    source = trained[1] / "iter_2.pth"
    done = publish_model(source, tmp_path / "out", license="mit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {done.path.name, "README.md"}
    assert done.path.read_bytes() == published.path.read_bytes()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and card.data.pipeline_tag == "object-detection"
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("coco/bbox_mAP", expected)
    assert result.dataset_name == "annotations.json"
    for words in (
        "| classes | 2: dark, light |",
        "| backbone | ResNet 18 |",
        "| training data | annotations.json |",
        "| trained for | 0 epochs, 2 iterations |",
        f'Detector("{done.path.name}")',
    ):
        assert words in card.text, words
    assert str(trained[0].parent) not in str(card)
    publish_model(source, tmp_path / "out")  # replaces its own card


@pytest.mark.parametrize(
    ("name", "meta", "expected"),
    [
        ("iter_300.pth", dict(epoch=0, iter=300), 0.3),
        ("epoch_3.pth", dict(epoch=3, iter=900), 0.2),
        ("best_coco_bbox_mAP_epoch_3.pth", dict(epoch=3, iter=900), 0.2),
        ("iter_3.pth", dict(epoch=0, iter=3), None),
        ("iter_900.pth", dict(epoch=3, iter=900), None),
    ],
)
def test_logged_metrics_by_iteration_and_epoch(name, meta, expected, tmp_path):
    entries = [dict(loss=1.0, step=250), {"coco/bbox_mAP": 0.3, "step": 300}]
    entries += [dict(loss=1.0, step=850), {"coco/bbox_mAP": 0.2, "step": 3}]
    log = tmp_path / "20260101" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"trunc')
    found = model_card.logged_metrics(tmp_path / name, meta)
    assert found == ({} if expected is None else {"coco/bbox_mAP": expected})


@pytest.mark.parametrize(
    ("checkpoint", "base", "row"),
    [
        ("birder://rope_vit_reg4_b14_capi", *["birder-project/rope_vit_reg4_b14_capi"] * 2),
        ("hf://me/encoder@v2/a.pt", "me/encoder", "me/encoder"),
        ("https://example.org/net.pt", None, "net.pt"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_card_names_the_base_model(checkpoint, base, row, frozen):
    backbone = dict(type="mmdet.RoPEViT", arch="rope_vit_reg4_b14")
    weights = dict(type="PretrainedInit", checkpoint=checkpoint)
    backbone["init_cfg"] = [dict(type="TruncNormal", layer="Linear"), weights]
    backbone = dict(type="FrozenBackbone", backbone=backbone) if frozen else backbone
    coco = dict(dataset=dict(ann_file="annotations/instances_val2017.json"))
    config = dict(model=dict(type="MaskRCNN", backbone=backbone), val_dataloader=coco)
    config["val_evaluator"] = dict(type="CocoMetric", metric=["bbox", "segm"])
    meta = dict(cfg=Config(config).pretty_text, dataset_meta=dict(classes=("a|b",)))
    text = model_card.model_card(meta, "a.pth", {"coco/bbox_mAP": 0.5}, repository="me/mine")
    card = ModelCard(text)
    assert card.data.get("base_model") == base
    assert card.data.pipeline_tag == "image-segmentation" and card.data.get("license") is None
    assert f"| base model | {row} |" in text and "| backbone | RoPEViT rope_vit_reg4_b14 |" in text
    assert r"| 1: a\|b |" in text and 'Detector("hf://me/mine/a.pth")' in text


def test_upload_and_load_from_the_hub(trained, hf_hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    run_command("publish", trained[1] / "iter_2.pth", "--hub", "me/tiny")
    text = capsys.readouterr().out
    assert "averaged (EMA)" in text and "-> 'annotations.json'" in text
    source = text.split("predict ")[1].split()[0]
    assert hf_hub.files["/me/tiny/resolve/main/README.md"].startswith(b"---\nlibrary_name: ropevit")
    image = trained[0].parent / "data" / "images" / "1.png"
    first = Detector(source, device="cpu")(image).pred_instances
    second = Detector(trained[1] / "iter_2.pth", device="cpu")(image).pred_instances
    for key in ("bboxes", "labels", "scores"):
        assert len(first) == 10 and torch.equal(first[key], second[key])


HUB = ["--hub", "me/tiny"]


@pytest.mark.parametrize(
    ("token", "arguments", "error", "words"),
    [
        ("", HUB, None, "no token: log in with `hf auth login` or set HF_TOKEN"),
        ("hf_x", ["--hub", "tiny"], None, "--hub tiny: expected OWNER/NAME"),
        ("hf_x", HUB, (401, ""), "refuses the token (401)"),
        ("hf_x", HUB, (500, ""), "upload to me/tiny failed: "),
    ],
)
def test_upload_that_fails_writes_nothing(
    token, arguments, error, words, trained, hf_hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token or None)
    monkeypatch.setenv("HF_TOKEN", token)
    hf_hub.errors = {"/api/repos/create": error} if error else {}
    argv = ["publish", trained[1] / "iter_2.pth", tmp_path / "out", *arguments]
    assert words in fails(capsys, *argv)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert not any("/resolve/" in path for path in hf_hub.files)


def test_publish_refuses_what_it_would_overwrite(trained, tmp_path, capsys):
    (tmp_path / "README.md").write_text("my project")
    line = fails(capsys, "publish", trained[1] / "iter_2.pth", tmp_path)
    assert "README.md is not a model card" in line
    assert (tmp_path / "README.md").read_text() == "my project"
    for argv in ([], [tmp_path / "a.pth", *HUB]):
        assert "a directory, --hub" in fails(capsys, "publish", trained[1] / "iter_2.pth", *argv)
