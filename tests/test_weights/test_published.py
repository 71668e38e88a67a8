"""The table of published checkpoints: birder's facts, and the tool that prints them."""

import importlib.util
import json
from pathlib import Path

import pytest

from ropevit_mmdet.weights.architectures import resolve_arch
from ropevit_mmdet.weights.published import WEIGHTS


def test_table_is_birders():
    pytest.importorskip("birder.net")
    from birder.common.lib import get_pretrained_model_url
    from birder.model_registry import registry

    published = {}
    for name in registry.list_pretrained_models("*rope*"):
        facts = registry.get_pretrained_metadata(name)
        try:
            resolve_arch(facts["net"]["network"])
        except ValueError:
            continue
        assert list(facts["formats"]) == ["pt"] and facts["resolution"][0] == facts["resolution"][1]
        published[name] = (
            facts["net"]["network"],
            facts["net"]["tag"],
            facts["resolution"][0],
            facts["formats"]["pt"]["file_size"],
            facts["formats"]["pt"]["sha256"],
            *get_pretrained_model_url(name, "pt"),
        )
    ours = {
        name: (w.network, w.tag, w.side, w.megabytes, w.sha256, w.file_name, w.url)
        for name, w in WEIGHTS.items()
    }
    assert ours == published and len(ours) == 21


def test_table_is_consistent():
    for name, entry in WEIGHTS.items():
        assert entry.name == name and entry.trained_on
        assert entry.side % resolve_arch(entry.network).patch_size == 0
        assert entry.file_name == f"{name}.pt" and entry.url.startswith("https://")
        assert len(bytes.fromhex(entry.sha256)) == 32


def test_list_weights(capsys):
    path = Path(__file__).parents[2] / "tools" / "list_weights.py"
    spec = importlib.util.spec_from_file_location("list_weights", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 120
    name = "rope_vit_reg4_b14_capi-places365"
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert set(WEIGHTS) < set(rows)
    assert rows[name].split() == [name, "224", "328.1", "CAPI,", "then", "Places365"]
    tool.main(["--json", "PE-core"])
    listed = json.loads(capsys.readouterr().out)
    assert [e["name"] for e in listed] == [n for n in WEIGHTS if "pe-core" in n]
    assert listed[0]["url"] == WEIGHTS[listed[0]["name"]].url and not listed[0]["downloaded"]
    with pytest.raises(SystemExit) as stop:
        tool.main(["nothing"])
    assert stop.value.code == 2
