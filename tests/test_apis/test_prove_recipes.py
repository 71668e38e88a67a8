"""The proof of the recipes: which runs it asks for, in which order, and what it reports."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.test_cli.test_tools import load_tool

tool = load_tool("prove_recipes")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs that were asked for, in the order of their ends; none is done."""
    done = []

    def result_of(run, root, command, say):
        if "load_from" in run.options:
            source = run.options["load_from"].split("/")[-2]
            assert source in [one.directory for one in done], (
                f"{run.directory} starts from {source}"
            )
        if run.name == "frozen-probe" and run.seed == 7:
            raise ValueError(f"{run.directory} failed, see log.txt")
        done.append(run)
        iterations = run.options.get("train_cfg.max_iters", 800) if run.trains else 0
        metrics = {"coco/bbox_mAP": 0.5 + 0.1 * run.seed, "coco/segm_mAP": 0.4}
        seconds = iterations / (4 if "resnet" in run.config else 2)
        return dict(metrics=metrics, iterations=iterations, train_seconds=seconds)

    def pretrain(self):
        self.checkpoint = self.root / "birder.pt"

    monkeypatch.setattr(tool, "result_of", result_of)
    monkeypatch.setattr(tool.Proof, "make_data", lambda self: None)
    monkeypatch.setattr(tool.Proof, "pretrain", pretrain)
    monkeypatch.setattr(sys, "argv", ["prove_recipes.py", "--root", str(tmp_path), "--jobs", "2"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the tool sets it
    return done


def test_every_comparison_is_made_and_reported(asked, tmp_path, capsys):
    tool.main()
    report = (tmp_path / "report.md").read_text()
    assert capsys.readouterr().out.strip() == report.strip()
    sections = {part.partition("\n")[0]: part for part in report.split("## ")[1:]}
    rows = {title: part.count("\n| ") - 1 for title, part in sections.items()}
    assert rows == {
        "From scratch, transferred, frozen": 3,
        "Layer decay": 4,
        "448 pixels": 4,
        "Non-square images": 4,
        "Equal time": 2,
    }
    assert "| from scratch | 0.550 ± 0.050 | 0.400 ± 0.000 | 800 | 400 |" in report
    directories = [run.directory for run in asked]
    assert len(directories) == len(set(directories)), "a run was asked for twice"
    counts = {run.options["train_cfg.max_iters"] for run in asked if run.name == "resnet18"}
    assert counts == {1600}  # half the seconds an iteration: twice as many
    scratch = [run for run in asked if run.name == "from-scratch"]
    assert all("model.backbone.init_cfg" not in run.options for run in scratch)


def test_pretraining_goes_on_from_what_is_whole(monkeypatch, tmp_path):
    """birder writes in place, and may be killed in the middle of it."""
    models = tmp_path / "models"
    models.mkdir()
    for epoch in (1, 2, 3):
        for part in ("", "_states"):
            path = models / f"{tool.NETWORK}_shapes_{epoch}{part}.pt"
            torch.save(dict(weights=torch.rand(100)), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])  # the states of 3
    (models / f"{tool.NETWORK}_shapes_{tool.EPOCHS}.pt").write_bytes(whole[:-50])
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(tool.subprocess, "run", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit, match="birder's training failed"):
        tool.Proof(tmp_path, 1, 1).pretrain()
    (command,) = commands
    assert command[command.index("--resume-epoch") + 1] == "2"


@pytest.mark.parametrize("name", ["prove_recipes", "make_shapes", "benchmark"])
def test_without_the_package_the_doctor_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "ropevit_mmdet", None)
    with pytest.raises(SystemExit, match=r"more is said by: python tools/doctor\.py"):
        load_tool(name)


@pytest.mark.parametrize(
    ("title", "rows", "others"),
    [
        ("From scratch, transferred, frozen", 3, set()),
        ("Layer decay", 4, set()),
        ("448 pixels", 4, {"transferred"}),
        ("Non-square images", 4, {"transferred"}),
        ("Equal time", 2, {"trial-shapes_transfer", "trial-shapes_resnet18"}),
    ],
)
def test_a_table_comes_with_what_it_starts_from(asked, tmp_path, capsys, title, rows, others):
    sys.argv += ["--only", title]
    tool.main()
    report = capsys.readouterr().out
    assert report.count("## ") == 1 and f"## {title}\n" in report
    assert report.count("\n| ") - 1 == rows
    names = {run.name for run in asked}
    assert others <= names and len(names) == rows + len(others)
    assert not (tmp_path / "report.md").exists()


def test_a_run_that_fails_ends_the_proof(asked, monkeypatch):
    monkeypatch.setattr(tool.Proof, "padding", lambda self, title: pytest.fail("went on"))
    kept = tool.Proof.__init__

    def init(self, root, seeds, jobs):
        kept(self, root, seeds, jobs)
        self.seeds = (7,)

    monkeypatch.setattr(tool.Proof, "__init__", init)
    with pytest.raises(SystemExit, match="error: frozen-probe-seed7 failed, see log.txt"):
        tool.main()
