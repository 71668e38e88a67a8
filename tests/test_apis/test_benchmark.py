"""The benchmark: operations counted, a report that is printed."""

import json
import os
from importlib import import_module

import pytest
import torch
from mmdet.registry import MODELS

from benchmarks import peers
from ropevit_mmdet import RoPEViT
from ropevit_mmdet.apis.benchmark import (
    VARIANTS,
    Bench,
    Variant,
    count_flops,
    in_new_process,
    measure,
    table,
)
from tests.commands import fails, ropevit


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


def test_the_table_has_ratios_to_the_first_variant_and_skipped_ones():
    common = dict(pixels=56, mode="forward", spread=0.1, flops=5e9)
    rows = [
        dict(common, variant="ours", median=1.0, peak_bytes=2**20),
        dict(common, variant="theirs", median=2.5, peak_bytes=3 * 2**20),
    ]
    settings = dict(device="a chip", threads=2, dtype="float32", batch=1, torch="2", date="today")
    skipped = [dict(variant="theirs", pixels=112, mode="forward", why="MemoryError: ")]
    lines = table(settings | dict(rows=rows, skipped=skipped)).splitlines()
    assert "1.00" in lines[2] and "2.50" in lines[3] and "3.00" in lines[3]
    assert [line.split()[6] for line in lines[2:4]] == ["1", "0.4"]  # images per second
    assert lines[4].endswith("skipped: MemoryError: ")


def test_a_variant_that_fails_is_skipped(monkeypatch):
    monkeypatch.setattr(Bench, "peak_memory", lambda bench: import_module("no_timm"))
    rows, skipped = measure({"a": Bench(None, 56, "forward")}, runs=1, progress=str)
    assert rows == [] and skipped[0]["why"] == "ModuleNotFoundError: No module named 'no_timm'"


def test_the_command_measures(tmp_path, capsys, monkeypatch):
    """In this process: another one imports everything again."""
    small = dict(patch_size=14, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    variant = Variant(lambda side: RoPEViT(small, window_size=4, global_attn_indices=(1,)), 14)
    monkeypatch.setitem(VARIANTS, "windows", variant)
    monkeypatch.setattr(
        f"{Bench.__module__}.in_new_process", lambda function, *args: function(*args)
    )
    argv = ["--variants", "windows", "--sizes", "56", "--modes", "forward", "--runs", "1"]
    argv += ["--device", "cpu", "--json", tmp_path / "r.json"]
    ropevit("benchmark", *argv)
    (measured,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert measured["variant"] == "windows" and measured["median"] > 0
    assert measured["peak_bytes"] >= 0 and measured["flops"] > 1e6
    assert f"{measured['median']:.4f}" in capsys.readouterr().out


def test_memory_is_measured_in_a_new_process():
    assert in_new_process(os.getpid) != os.getpid()


def test_the_commands_check_their_arguments_first(monkeypatch, capsys):
    for argv in (["--sizes", "57"], ["--variants", "sam"]):
        assert "--variants must be of windows, " in fails(capsys, "benchmark", *argv)
    monkeypatch.setattr("sys.argv", ["peers", "--variants", "nobody"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "windows-cp, global, birder, sam, eva02, dinov3" in capsys.readouterr().err
