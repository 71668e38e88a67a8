"""Windowed attention: what it must equal, window by window, on complete and ragged grids."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from ropevit_mmdet import RoPEViT, SimpleFeaturePyramid
from tests.oracle import (
    SMALL,
    birder_map,
    birder_net,
    fill,
    relative_error,
    seeded_images,
    write_checkpoint,
)

RECIPE = dict(window_size=16, pos_embed_mode="tile")
STYLES = {
    "default": {},
    "interleaved": dict(rope_rot_type="interleaved", rope_grid_indexing="xy", rope_grid_offset=1),
    "axial": dict(rope_style="axial", rope_rot_type="interleaved"),
    "centered_separate": dict(rope_style="centered_separate"),
    "no special tokens": dict(num_reg_tokens=0, class_token=False),
}


def small(arch=SMALL, **arguments) -> RoPEViT:
    return fill(RoPEViT(arch, **arguments)).double().eval()


def run(model: RoPEViT, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)[0]


@pytest.mark.parametrize("style", STYLES)
def test_windows_equal_birder_on_the_crops(tmp_path, style):
    pytest.importorskip("birder")
    arch = SMALL | STYLES[style]
    net = birder_net(config=arch)
    init_cfg = dict(type="Pretrained", checkpoint=str(write_checkpoint(net, tmp_path)))
    model = RoPEViT(arch, **RECIPE, global_attn_indices=(), init_cfg=init_cfg)
    model.init_weights()
    images = seeded_images((1, 3, 896, 672))
    actual = run(model.double().eval(), images)
    for top in range(0, 896, 224):
        for left in range(0, 672, 224):
            crop = images[..., top : top + 224, left : left + 224]
            expected = birder_map(net, crop, final_norm=True)
            window = actual[..., top // 14 : top // 14 + 16, left // 14 : left // 14 + 16]
            assert relative_error(window, expected) <= 1e-9


@pytest.mark.parametrize("size", [(280, 224), (910, 1190), (100, 500)])
def test_a_ragged_window_attends_only_within_itself(size):
    """Each window equals an image of only that window, at the edges too."""
    model = small(**RECIPE, global_attn_indices=())
    images = seeded_images((2, 3, *size))
    full = run(model, images)
    for top in range(0, size[0], 224):
        for left in range(0, size[1], 224):
            single = run(model, images[..., top : top + 224, left : left + 224])
            rows, columns = single.shape[-2:]
            window = full[..., top // 14 : top // 14 + rows, left // 14 : left // 14 + columns]
            assert relative_error(window, single) <= 1e-12


@pytest.mark.parametrize("size", [(448, 448), (280, 364), (98, 546)])
@pytest.mark.parametrize("style", STYLES)
def test_windows_and_global_blocks_against_a_plain_recomputation(style, size):
    """The residual stream, window by window with Python loops, special tokens merged by mean."""
    model = small(SMALL | STYLES[style], **RECIPE, global_attn_indices=(1, 3), final_norm=False)
    images = seeded_images((1, 3, *size))
    assert relative_error(run(model, images), plain_windows(model, images)) <= 1e-12


@torch.no_grad()
def plain_windows(model: RoPEViT, images: torch.Tensor) -> torch.Tensor:
    grid_map = model.patch_embed(images)
    grid = tuple(grid_map.shape[1:3])
    patches = grid_map[0] + (model.grid_pos_embed(grid)[0])
    num_special = model.arch.num_special_tokens
    special = torch.zeros(0, model.arch.hidden_dim, dtype=torch.float64)
    if num_special:
        special = torch.cat((model.reg_tokens, model.cls_token), dim=1)[0]
        special = special + model.pos_embed[0, :num_special]
    tables = model.rope_tables
    corners = [(r, c) for r in range(0, grid[0], 16) for c in range(0, grid[1], 16)]
    copies = [special] * len(corners)
    for i, block in enumerate(model.blocks):
        if i in model.global_attn_indices:
            merged = torch.stack(copies).mean(0)
            table = tables.global_rope.table(grid)
            out = attend(block, merged, patches.flatten(0, 1), table)
            copies = [out[:num_special]] * len(corners)
            patches = out[num_special:].view(patches.shape)
            continue
        patches = patches.clone()
        for n, (top, left) in enumerate(corners):
            window = patches[top : top + 16, left : left + 16]
            table = [
                t.view(16, 16, -1)[: window.shape[0], : window.shape[1]].flatten(0, 1)
                for t in tables.window_rope.table((16, 16))
            ]
            out = attend(block, copies[n], window.flatten(0, 1), table)
            copies[n] = out[:num_special]
            patches[top : top + 16, left : left + 16] = out[num_special:].view(window.shape)
    return patches.permute(2, 0, 1)[None]


def attend(block, special, patches, table) -> torch.Tensor:
    """One block over one window, with attention by einsum."""
    attn, x = block.attn, torch.cat((special, patches))
    q, k, v = attn.qkv(block.norm1(x)).view(len(x), 3, attn.num_heads, -1).unbind(1)
    cos, sin = (t[:, None] for t in table)
    q, k = (
        torch.cat((t[: len(special)], rotate(t[len(special) :], cos, sin, attn.rotation)))
        for t in (q, k)
    )
    logits = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
    x = x + attn.proj(torch.einsum("hij,jhd->ihd", logits.softmax(-1), v).flatten(1))
    return x + block.mlp(block.norm2(x))


def rotate(x, cos, sin, rotation):
    """Channel pairs one by one; ``sin`` carries the sign of the first of each pair."""
    out, half = torch.empty_like(x), x.shape[-1] // 2
    for i in range(half):
        a, b = (i, i + half) if rotation == "standard" else (2 * i, 2 * i + 1)
        out[..., a] = x[..., a] * cos[..., a] + x[..., b] * sin[..., a]
        out[..., b] = x[..., b] * cos[..., b] + x[..., a] * sin[..., b]
    return out


@pytest.mark.parametrize(
    ("windows", "graphs"), [({}, 3), (dict(window_size=4, global_attn_indices=(1,)), 6)], ids=bool
)
def test_few_graphs_are_compiled_for_all_sizes(windows, graphs):
    """Two of a fixed height or width, then one, or one per kind of ragged windows.

    With windows it takes 10 to 30 s, of six compilations; a graph that breaks is a silent loss.
    """
    torch._dynamo.reset()
    counters.clear()
    backbone = small(SMALL | dict(num_layers=2), **windows)
    neck = fill(SimpleFeaturePyramid(backbone.arch.hidden_dim, out_channels=8)).double().eval()
    model = torch.nn.Sequential(backbone, neck)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    sizes = ((8, 8), (8, 10), (12, 8), (16, 14), (10, 14), (14, 16), (22, 10), (24, 28))
    for rows, columns in sizes:  # patches
        images = seeded_images((1, 3, 14 * rows, 14 * columns))  # tables are float32
        assert relative_error(run(compiled, images), run(model, images)) <= 1e-6
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "windows", [{}, dict(window_size=16, global_attn_indices=(1, 3))], ids=bool
)
def test_inductor_equals_eager_up_to_rounding(windows):
    model = small(**windows).float()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    for size in ((224, 224), (448, 672), (280, 364)):
        images = seeded_images((1, 3, *size)).float()
        assert relative_error(run(compiled, images), run(model, images)) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_equals_float32_up_to_its_rounding(dtype):
    model = small(**RECIPE, global_attn_indices=(1, 3)).float()
    images = seeded_images((1, 3, 280, 364)).float()
    with torch.autocast("cpu", dtype=dtype):
        actual = run(model, images)
    assert relative_error(actual.float(), run(model, images)) <= 8 * torch.finfo(dtype).eps * 4
