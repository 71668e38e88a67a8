"""The notebook: valid, without outputs, and its cells run one after another."""

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


def test_notebook_is_valid_and_has_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        extra = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source", *extra}
        assert not cell.get("outputs") and cell.get("execution_count") is None


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
