"""The exportable form of backbone and neck computes what the modules compute."""

import pytest
import torch

from ropevit_mmdet.deploy.features import DynamicFeatures
from ropevit_mmdet.errors import UserError
from tests.exportable_models import SMALL_ARCH, WINDOWED, Encoder

INTERLEAVED = dict(rope_rot_type="interleaved", num_reg_tokens=0)
HMLP = dict(stem_type="hmlp", patch_size=16, pos_embed_antialias=True)
GATED = dict(mlp_layer_type="SwiGLU_FFN", norm_layer_type="RMSNorm", layer_scale_init_value=0.5)
GATED |= dict(attn_norm=True, rope_grid_indexing="xy", rope_grid_offset=1)
SIZES = [(56, 56), (56, 112), (70, 154), (14, 14), (1, 1), (57, 100), (200, 131), (20, 300)]
LEVELS = dict(scale_factors=(2, 1, 0.5), num_outs=5, add_extra_convs="on_output")


@pytest.mark.parametrize(
    ("backbone", "neck"),
    [
        (dict(), None),
        (dict(rope_interpolation=200, pos_embed_mode="tile"), dict()),
        (WINDOWED, dict()),
        (dict(WINDOWED, global_attn_indices=(), pos_embed_mode="tile"), LEVELS),
        (dict(WINDOWED, global_attn_indices=(0, 2), rope_interpolation="none"), None),
        (dict(WINDOWED, out_indices=(0, 1, 2)), dict(in_channels=[32] * 3, fuse="concat")),
        (
            dict(WINDOWED, out_indices=(0, 2)),
            dict(in_channels=[32, 32], fuse="sum", out_strides=(4, 8, 16, 32, 64)),
        ),
        (dict(WINDOWED, patch_size=16), dict(in_stride=16)),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "axial", **INTERLEAVED}), None),
        (dict(WINDOWED, pretrain_img_size=64, arch={**SMALL_ARCH, **HMLP}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, **GATED}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "centered_separate"}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "centered_periods"}), None),
        (dict(WINDOWED, arch={**SMALL_ARCH, "rope_style": "mixed", **INTERLEAVED}), None),
        (dict(arch={**SMALL_ARCH, "class_token": False, "num_reg_tokens": 0}, **WINDOWED), None),
        (dict(arch={**SMALL_ARCH, "pos_embed_special_tokens": False}, **WINDOWED), None),
        (dict(arch={**SMALL_ARCH, "qk_norm": True, **INTERLEAVED}), None),
    ],
)
def test_dynamic_features_equal_the_model(backbone, neck):
    model = Encoder(backbone, neck).double()
    graph = DynamicFeatures(model)
    for size in SIZES:
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected, actual = model.extract_feat(images), graph(images)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_torch_export_of_the_backbone_for_any_size_points_to_the_command():
    """For any batch, at one height and width, it works as it is."""
    backbone, images = Encoder(WINDOWED).backbone, torch.randn(2, 3, 70, 98)
    any_side = torch.export.Dim.DYNAMIC
    with pytest.raises(UserError, match="use `ropevit export --part features`"):
        torch.export.export(backbone, (images,), dynamic_shapes=({2: any_side, 3: any_side},))
    program = torch.export.export(backbone, (images,), dynamic_shapes=({0: any_side},)).module()
    images = torch.randn(3, 3, 70, 98)
    torch.testing.assert_close(program(images), backbone(images))
