"""The notebook: without outputs, and its cells run one after another."""

import json

from tests.processes import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "demo.ipynb").read_text())
CODE = {c["id"]: "".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"}
SMALL = dict(
    images=dict(num_train=2, num_val=1, num_test=2, size=112, workers=1),
    iterations=1,
    options=[
        f"{split}_dataloader.{key}"
        for split in ("train", "val", "test")
        for key in ("num_workers=0", "persistent_workers=False")
    ],
)


def test_notebook_has_no_outputs():
    assert not any(c.get("outputs") or c.get("execution_count") for c in NOTEBOOK["cells"])


def test_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values: dict = {}
    for name, cell in CODE.items():
        exec(compile(cell, name, "exec"), values)
        if name == "settings":
            assert values.keys() >= SMALL.keys()
            values |= SMALL
    assert (tmp_path / "work_dirs" / "shapes_notebook" / "iter_1.pth").exists()
    assert len(values["samples"]) == 2 == len(values["overlays"])
    assert values["overlays"][0].shape[2] == 3
