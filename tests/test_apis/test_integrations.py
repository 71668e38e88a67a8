"""The snippets of docs/integrations.md run: those of packages that are not installed compile."""

import importlib
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from torch.testing import assert_close

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.apis import Detector
from tests import peft_substitute
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "integrations.md").read_text()
SNIPPETS = {
    title.strip(): re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"(?ms)^##? (.+?)\n(.*?)(?=^##? |\Z)", PAGE)
}
PACKAGES = {"supervision": "supervision", "Tracking": "trackers", "Tiled inference": "sahi"}
ARCH = dict(arch="rope_vit_t14", out_indices=1)
LAYERS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def test_every_snippet_compiles():
    assert {*PACKAGES, "Integrations", "FiftyOne", "LoRA"} <= SNIPPETS.keys()
    for title, snippets in SNIPPETS.items():
        assert snippets or title == "Experiment trackers"
        for snippet in snippets:
            compile(snippet, title, "exec")


@pytest.mark.parametrize("title", PACKAGES)
def test_snippet_runs(title, saved, tmp_path, monkeypatch, capsys):
    pytest.importorskip(PACKAGES[title])
    monkeypatch.chdir(tmp_path)
    config, checkpoint = saved
    image = np.random.default_rng(0).integers(0, 256, (56, 64, 3), dtype=np.uint8)
    cv2.imwrite("photo.jpg", image)
    clip = cv2.VideoWriter("clip.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 56))
    for _ in range(3):
        clip.write(image)
    clip.release()
    (snippet,) = SNIPPETS[title]
    for old, new in (("CHECKPOINT", checkpoint), ("CONFIG.py", config), ("=896", "=48")):
        snippet = snippet.replace(old, str(new))
    snippet = re.sub(r"(score_thr|threshold)=0\.\d", r"\1=0.0", snippet)
    values = dict(detector=Detector(checkpoint, device="cpu"))
    exec(snippet, values)
    if title == "supervision":
        assert len(values["detections"]) == len(values["labels"]) > 0
        assert (cv2.imread("drawn.png") != image).any()
    elif title == "Tracking":
        assert len(capsys.readouterr().out.split("[[")) == 4
    else:
        names = {one.category.name for one in values["result"].object_prediction_list}
        assert names and names <= {"dark", "light"}


@pytest.fixture
def lora(tmp_path, monkeypatch):
    """`lora.py` of the page on peft, or on a substitute where it is not installed."""
    try:
        importlib.import_module("peft")
    except ImportError:
        for name, module in peft_substitute.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "lora.py").write_text(SNIPPETS["LoRA"][0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(MODELS, "_module_dict", MODELS._module_dict.copy())
    monkeypatch.delitem(sys.modules, "lora", raising=False)
    yield importlib.import_module("lora").LoRARoPEViT
    sys.modules.pop("lora", None)


def test_lora_adapters_train_and_merge(lora, tmp_path):
    torch.manual_seed(0)
    plain = RoPEViT(**ARCH).double()
    start = dict(type="Pretrained", checkpoint=str(tmp_path / "start.pth"))
    torch.save({"state_dict": plain.state_dict()}, start["checkpoint"])
    model = lora(rank=2, init_cfg=start, **ARCH).double().train()
    images = torch.randn(2, 3, 28, 42, dtype=torch.float64)
    (before,) = plain(images)
    assert_close(model(images)[0], before, rtol=0, atol=1e-12)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    places = {re.sub(r"\.lora_[AB].*", "", name) for name in trained}
    assert places == {f"blocks.{i}.{layer}" for i in range(2) for layer in LAYERS}
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    first = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(images)[0].square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(value, first[name]) for name, value in trained.items())
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in frozen.items())
    model.eval()
    (adapted,) = model(images)
    assert (adapted - before).abs().max() > 1e-3
    exec(merge_loop(), {"backbone": model})
    assert_close(model(images)[0], adapted, rtol=0, atol=1e-9)
    plain.load_state_dict(model.state_dict())  # strict: a plain RoPEViT again
    assert_close(plain.eval()(images)[0], adapted, rtol=0, atol=1e-9)


def merge_loop() -> str:
    """The last snippet with a `backbone` of its own: its imports, and from its loop to the file."""
    imports, loop = SNIPPETS["LoRA"][2].split("detector = ")
    return imports + loop[loop.index("for name") : loop.index("meta =")]
