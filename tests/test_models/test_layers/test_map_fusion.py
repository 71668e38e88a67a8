"""MapFusion: a norm for each map, then concatenation or sum, then one projection."""

import pytest
import torch

from ropevit_mmdet import FrozenBackbone, RoPEViT, SimpleFeaturePyramid
from ropevit_mmdet.models.layers.map_fusion import MapFusion

BACKBONE = dict(
    arch=dict(patch_size=14, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32),
    pretrain_img_size=56, window_size=4, global_attn_indices=(1,), out_indices=(0, 1, 2, 3),
)  # fmt: skip


@pytest.mark.parametrize("grid", [(5, 9), (12, 7), (1, 3)])
@pytest.mark.parametrize(("channels", "mode"), [((8, 4, 6), "concat"), ((6, 6, 6), "sum")])
def test_fusion_equals_a_plain_computation_cell_by_cell(channels, mode, grid):
    torch.manual_seed(0)
    fusion = MapFusion(channels, mode).double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    maps = [100**i * torch.randn(2, c, *grid).double() + i for i, c in enumerate(channels)]
    actual = fusion(maps)
    weight, bias = fusion.projection.weight[:, :, 0, 0], fusion.projection.bias
    assert actual.shape == (2, channels[-1], *grid)
    for image in range(2):
        for row, column in ((0, 0), (grid[0] - 1, grid[1] - 1), (grid[0] // 2, grid[1] // 2)):
            vectors = []
            for norm, one in zip(fusion.norms, maps):
                x = one[image, :, row, column]
                x = (x - x.mean()) / (((x - x.mean()) ** 2).mean() + 1e-6) ** 0.5
                vectors.append(x * norm.weight + norm.bias)
            joined = (
                torch.cat(vectors) if mode == "concat" else vectors[0] + vectors[1] + vectors[2]
            )
            expected = torch.stack([(w * joined).sum() for w in weight]) + bias
            cell = actual[image, :, row, column]
            torch.testing.assert_close(cell, expected, rtol=1e-12, atol=1e-12)


class Encoder(torch.nn.Module):
    """Backbone and pyramid of a detector."""

    def __init__(self, fuse, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = RoPEViT(**BACKBONE | changes)
        self.neck = SimpleFeaturePyramid([16] * 4, 8, fuse=fuse, num_outs=4)

    def forward(self, images):
        return self.neck(self.backbone(images))


@pytest.mark.parametrize("fuse", ["concat", "sum"])
def test_checkpointing_changes_no_gradient(fuse):
    plain, checkpointed = Encoder(fuse).double(), Encoder(fuse, with_cp=True).double()
    images = torch.randn(2, 3, 70, 98, dtype=torch.float64)
    for model in (plain, checkpointed):
        sum(level.square().mean() for level in model.train()(images)).backward()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        actual = checkpointed.get_parameter(name).grad
        torch.testing.assert_close(actual, parameter.grad, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("fuse", ["concat", "sum"])
def test_fusion_and_pyramid_compile_as_one_graph(fuse):
    neck = SimpleFeaturePyramid([16] * 4, 8, fuse=fuse, num_outs=4)
    maps = [torch.randn(1, 16, 5, 7) for _ in range(4)]
    compiled = torch.compile(neck, backend="eager", fullgraph=True)
    for actual, expected in zip(compiled(maps), neck(maps), strict=True):
        torch.testing.assert_close(actual, expected)


def test_maps_of_a_frozen_backbone_are_fused_from_its_cache(tmp_path):
    model = Encoder("concat")
    backbone = FrozenBackbone(dict(BACKBONE, type="RoPEViT"), cache_dir=tmp_path)
    backbone.load_state_dict(model.backbone.state_dict())
    images = torch.randn(2, 3, 70, 98)
    model.eval()
    with torch.no_grad():
        expected = model(images)
    for _ in range(2):  # computes, then reads
        levels = model.neck(backbone(images))
        for actual, level in zip(levels, expected, strict=True):
            torch.testing.assert_close(actual, level)
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None for p in model.neck.parameters())
    assert len([*tmp_path.rglob("*.safetensors")]) == 2
