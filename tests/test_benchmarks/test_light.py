"""The light config's share of operations, and the table of what each choice buys."""

import pytest
from PIL import Image

from benchmarks import light, recipes
from ropevit_mmdet.engine.config import load_config

HALF = {"model.backbone.global_attn_indices": (5, 11)}


@pytest.fixture(scope="module")
def published():
    return light.gflop(load_config("ropevit_maskrcnn"), (896, 896), 100)


@pytest.mark.parametrize(("options", "bar"), [({}, 0.70), (HALF, 0.65)])
def test_light_config_has_seven_tenths_of_the_operations(options, bar, published):
    counts = light.gflop(load_config("ropevit_maskrcnn_light", options), (896, 896), 100)
    assert sum(published.values()) == pytest.approx(1655.9, abs=1)  # as `ropevit benchmark`
    assert bar - 0.02 < sum(counts.values()) / sum(published.values()) <= bar


def test_every_choice_is_a_row_with_its_cost(tmp_path, monkeypatch, capsys):
    done = []

    def result_of(run, root, log):
        if not run.trains:  # tests weights of a run that has ended
            assert run.options["load_from"].split("/")[-2] in done
        done.append(run.directory)
        metrics = {"coco/bbox_mAP": 0.5 + 0.1 * run.seed, "coco/segm_mAP": 0.4}
        metrics["coco/bbox_mAP_50"] = 0.9  # not a column
        return dict(metrics=metrics, iterations=800, train_seconds=10.0 * run.trains)

    def measure_costs(directories, progress):
        assert [one.name for one in directories if one.name not in done] == []
        return [{"parameters, M": 2.0, "images/s": 5.0 + i} for i, _ in enumerate(directories)]

    monkeypatch.setattr(recipes, "result_of", result_of)
    monkeypatch.setattr(recipes.Recipes, "start_from", lambda self, weights: None)
    monkeypatch.setattr(light, "measure_costs", measure_costs)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the benchmark sets it
    light.main(["--root", str(tmp_path), "--plot", str(tmp_path / "light.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(done) == 2 * len(light.VARIANTS) == 2 * (len(lines) - 2)
    heads, _, first, *_, last = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert heads[1:3] == ["box AP", "mask AP"]
    assert first[:3] == ["published", "55.0 ± 5.0", "40.0 ± 0.0"]
    assert first[5:] == ["100", "5", "10"] and last[0] == "light, half the global blocks"
    assert Image.open(tmp_path / "light.png").size[0] > 400
