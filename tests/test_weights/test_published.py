"""The table of published checkpoints is birder's."""

import pytest

from ropevit_mmdet.weights.architectures import ALIASES, resolve_arch
from ropevit_mmdet.weights.published import WEIGHTS


def test_weights_are_birders():
    pytest.importorskip("birder.net")
    from birder.common.lib import get_pretrained_model_url
    from birder.model_registry import registry

    published = {}
    detectors = registry.list_pretrained_models("lw_detr*pe_spatial*")
    for name in [*registry.list_pretrained_models("*rope*"), *detectors]:
        entry = registry.get_pretrained_metadata(name)
        network = entry.get("backbone", entry["net"])["network"]
        network = ALIASES.get(network, network)
        try:
            resolve_arch(network)
        except ValueError:
            continue
        assert list(entry["formats"]) == ["pt"] and entry["resolution"][0] == entry["resolution"][1]
        published[name] = (
            network,
            entry["net"]["tag"],
            entry["resolution"][0],
            entry["formats"]["pt"]["file_size"],
            entry["formats"]["pt"]["sha256"],
            *get_pretrained_model_url(name, "pt"),
        )
    ours = {
        name: (w.network, w.tag, w.side, w.megabytes, w.sha256, w.file_name, w.url)
        for name, w in WEIGHTS.items()
    }
    assert ours == published and len(ours) == 23
