"""The recipes benchmark: which runs it starts, in which order, and its report."""

import zipfile
from types import SimpleNamespace

import pytest

from benchmarks import recipes

TITLES = {  # title -> rows, other runs that it starts from
    "From scratch, transferred, frozen": (3, set()),
    "Frozen backbones: one map or four": (3, set()),
    "Layer decay": (4, set()),
    "448 pixels": (4, {"transferred"}),
    "Non-square images": (4, {"transferred"}),
    "Equal time": (2, {"trial-shapes_transfer", "trial-shapes_resnet18"}),
}


@pytest.fixture
def runs(monkeypatch):
    """Collects the runs in the order of their ends instead of executing them."""
    done = []

    def result_of(run, root, log):
        if "load_from" in run.options:
            source = run.options["load_from"].split("/")[-2]
            assert source in [earlier.directory for earlier in done]
        done.append(run)
        iterations = run.options.get("train_cfg.max_iters", 800) if run.trains else 0
        metrics = {"coco/bbox_mAP": 0.5 + 0.1 * run.seed, "coco/segm_mAP": 0.4}
        seconds = iterations / (4 if "resnet" in run.config else 2)
        return dict(metrics=metrics, iterations=iterations, train_seconds=seconds)

    monkeypatch.setattr(recipes, "result_of", result_of)
    monkeypatch.setattr(recipes.Recipes, "make_data", lambda self: None)
    monkeypatch.setattr(recipes.Recipes, "pretrain", lambda self: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmark sets it
    return done


def rows_of(report: str) -> dict[str, int]:
    sections = {part.partition("\n")[0]: part for part in report.split("## ")[1:]}
    return {title: part.count("\n| ") - 1 for title, part in sections.items()}


def test_every_comparison_is_reported(runs, tmp_path, capsys):
    recipes.main(["--root", str(tmp_path), "--jobs", "2"])
    report = (tmp_path / "report.md").read_text()
    assert capsys.readouterr().out.strip() == report.strip()
    assert rows_of(report) == {title: rows for title, (rows, _) in TITLES.items()}
    assert "| from scratch | 0.550 ± 0.050 | 0.400 ± 0.000 | 800 | 400 |" in report
    directories = [run.directory for run in runs]
    assert len(directories) == len(set(directories)), "a run was started twice"
    counts = {run.options["train_cfg.max_iters"] for run in runs if run.name == "resnet18"}
    assert counts == {1600}  # half the seconds per iteration: twice as many
    scratch = [run for run in runs if run.name == "from-scratch"]
    assert all("model.backbone.init_cfg" not in run.options for run in scratch)


@pytest.mark.parametrize("title", TITLES)
def test_single_section_starts_what_it_needs(runs, tmp_path, capsys, title):
    rows, others = TITLES[title]
    recipes.main(["--root", str(tmp_path), "--only", title])
    assert rows_of(capsys.readouterr().out) == {title: rows}
    names = {run.name for run in runs}
    assert others <= names and len(names) == rows + len(others)
    assert not (tmp_path / "report.md").exists()


def test_pretraining_resumes_from_the_last_intact_checkpoint(monkeypatch, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for epoch in (1, 2, 3, recipes.EPOCHS):
        for part in ("", "_states"):
            path = models / f"{recipes.NETWORK}_shapes_{epoch}{part}.pt"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("data", b"1" * 100)
            if (epoch, part) in ((3, "_states"), (recipes.EPOCHS, "")):
                path.write_bytes(path.read_bytes()[:-50])
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(recipes.subprocess, "run", run)
    with pytest.raises(SystemExit, match="birder's training failed"):
        recipes.Recipes(tmp_path, seeds=1, jobs=1).pretrain()
    (command,) = commands
    assert command[command.index("--resume-epoch") + 1] == "2"
