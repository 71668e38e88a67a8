"""The benchmark: operations counted, a report that is continued, printed and plotted."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from benchmarks import peers
from ropevit_mmdet.apis.benchmark import Bench, begin, is_measured, measure, replace_rows, table
from ropevit_mmdet.apis.benchmark.measure import count_flops
from tests.commands import fails, ropevit

SETTINGS = dict(device="a chip", threads=2, dtype="float32", batch=1, compiled=False, torch="2")
COMMAND = "ropevit benchmark"


def row(variant, pixels=56, mode="forward", seconds=1.0, peak=2**20):
    return dict(
        variant=variant, pixels=pixels, mode=mode, median=seconds, spread=0.1, runs=3,
        flops=5e9, peak_bytes=peak,
    )  # fmt: skip


@pytest.fixture
def report():
    report = begin(SETTINGS, None, command=COMMAND)
    replace_rows(report, [row("ours"), row("theirs", seconds=2.5, peak=3 * 2**20)], [])
    skipped = dict(variant="theirs", pixels=112, mode="forward", why="does not fit in memory")
    replace_rows(report, [row("ours", pixels=112, seconds=4.0)], [skipped])
    return report


def test_operations_include_fused_attention_and_windows():
    """2 blocks of 1 + 54 tokens, C = 192, windows of 4 x 4 patches in the first block."""
    arch = dict(patch_size=14, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
    settings = dict(arch=arch, window_size=4, global_attn_indices=(1,))
    model = MODELS.build(dict(type="RoPEViT", **settings)).eval()
    special = model.arch.num_special_tokens
    windows = [16, 8, 16, 8, 4, 2]  # patches: a grid of 9 x 6, ragged at both edges
    expected = 2 * 54 * 3 * 14 * 14 * 192  # patch embedding
    for tokens in [special + patches for patches in windows] + [special + 54]:
        expected += 2 * tokens * (4 * 192**2 + 2 * 192 * 768)  # linear layers
        expected += 2 * 2 * tokens**2 * 192  # q times k, weights times v
    images = torch.zeros(1, 3, 126, 84)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            assert count_flops(lambda: model(images)) == expected


def test_the_table_has_ratios_to_the_first_variant_and_skipped_ones(report):
    lines = table(report).splitlines()
    assert "1.00" in lines[2] and "2.50" in lines[3] and "3.00" in lines[3]
    assert [line.split()[6] for line in lines[2:4]] == ["1", "0.4"]  # images per second
    assert lines[-1].endswith("skipped: does not fit in memory")


def test_a_report_is_continued(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    again = begin(SETTINGS, path, command="ropevit benchmark --sizes 112")
    assert again["commands"] == [COMMAND, "ropevit benchmark --sizes 112"]
    assert is_measured(again, ["ours", "theirs"], 112, "forward")
    assert not is_measured(again, ["ours", "others"], 112, "forward")
    assert not is_measured(again, ["ours"], 112, "training")
    replace_rows(again, [row("ours", pixels=112, seconds=9.0)], [])
    assert [r["median"] for r in again["rows"]] == [1.0, 2.5, 9.0]
    assert again["skipped"] == []
    replace_rows(again, [row("ours") | dict(largest_batch={"24": 3})], [])
    assert is_measured(again, ["ours"], 56, "forward", gigabytes=[24])
    assert not is_measured(again, ["ours"], 56, "forward", gigabytes=[24, 80])
    with pytest.raises(ValueError, match="has figures of other settings, {'threads': 2}"):
        begin(SETTINGS | {"threads": 4}, path, command="")


def test_a_variant_that_fails_is_skipped(monkeypatch):
    errors = iter([MemoryError(), ImportError("no module named timm\nmore")])

    def peak_memory(bench):
        raise next(errors)

    monkeypatch.setattr(Bench, "peak_memory", peak_memory)
    benches = dict.fromkeys("ab", Bench(None, 56, "forward"))
    rows, skipped = measure(benches, runs=1, progress=lambda line: None)
    reasons = ["does not fit in memory", "ImportError: no module named timm"]
    assert rows == [] and [one["why"] for one in skipped] == reasons


def test_the_largest_batch_respects_the_memory_of_the_gpu(monkeypatch):
    """A fake GPU of 80 GB fits 37 images per GB; 1 GB is left to CUDA."""
    bench, shares = Bench(None, 56, "training", device="cuda:0"), []
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    fraction = "set_per_process_memory_fraction"
    monkeypatch.setattr(torch.cuda, fraction, lambda share, device: shares.append(share))
    bench.model = torch.nn.Identity()

    def step():
        if bench.batch > 37 * 80 * shares[-1]:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "step", step)
    assert bench.largest_batch(3) == 74
    assert shares == [2 / 80, 1.0]


def test_the_command_measures_and_plots(tmp_path, capsys):
    argv = ["--variants", "windows", "--sizes", "56", "--modes", "forward", "--runs", "1"]
    argv += ["--device", "cpu", "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"]
    ropevit("benchmark", *argv)
    (measured,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert measured["variant"] == "windows" and measured["median"] > 0
    assert measured["peak_bytes"] > 0 and measured["flops"] > 1e9
    assert f"{measured['median']:.4f}" in capsys.readouterr().out
    with Image.open(tmp_path / "r.png") as image:
        assert min(image.size) > 400


def test_the_command_checks_its_arguments_first(capsys):
    assert "times.pdf must end in .png" in fails(capsys, "benchmark", "--plot", "times.pdf")
    for argv in (["--sizes", "57"], ["--variants", "sam"]):
        assert "--variants must be of windows, " in fails(capsys, "benchmark", *argv)


def test_peers_have_the_flags_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["peers", "--variants", "nobody"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "windows-cp, global, birder, sam, eva02, dinov3" in capsys.readouterr().err
