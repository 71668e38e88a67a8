"""EoMTHead and the last blocks of a RoPEViT against a float64 reference that is written here."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData

from ropevit_mmdet.errors import UserError
from ropevit_mmdet.models.layers.windows import to_grid
from tests.oracle import SMALL, relative_error, seeded_images
from tests.test_configs import CONFIGS

QUERIES, CLASSES = 6, 3
ARCHS = {
    "registers and class token": {},
    "layer scale, SwiGLU": dict(layer_scale_init_value=0.5, mlp_layer_type="SwiGLU_FFN"),
    "no special tokens, query and key norm": dict(
        num_reg_tokens=0, class_token=False, qk_norm=True
    ),
    "RMSNorm, interleaved": dict(norm_layer_type="RMSNorm", rope_rot_type="interleaved"),
    "learned frequencies": dict(rope_style="mixed", rope_rot_type="interleaved"),
    "no final norm": dict(num_layers=5),
    "windows": {},
}
BACKBONES = {
    "no final norm": dict(final_norm=False),
    "windows": dict(window_size=3, global_attn_indices=(), pos_embed_mode="tile"),  # ragged
}


def small_config(arch=None, *, head=None, stuff=0, **backbone):
    """A small EoMT of four blocks, the last two with queries."""
    init_default_scope("mmdet")
    config = Config.fromfile(CONFIGS / "shapes_eomt.py").model
    classes = dict(num_things_classes=CLASSES, num_stuff_classes=stuff)
    config.backbone = dict(type="RoPEViT", arch=SMALL | (arch or {}), pretrain_img_size=56)
    config.backbone.update(backbone)
    config.panoptic_head.update(in_channels=32, patch_size=14, num_queries=QUERIES)
    config.panoptic_head.update(classes | (head or {}))
    config.panoptic_fusion_head.update({key: config.panoptic_head[key] for key in classes})
    config.train_cfg.num_points = 64
    config.test_cfg.update(max_per_image=QUERIES, panoptic_on=stuff > 0)
    return config


def build(*args, **kwargs):
    """The model of `small_config` with random weights."""
    model = MODELS.build(small_config(*args, **kwargs))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def samples(images, sides, *, stuff=0):
    """Two objects per image, none in the last; masks have the size of their image."""
    result = []
    for i, (height, width) in enumerate(sides):
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[0, : height // 2], masks[1, :, width // 2 :] = 1, 1
        masks = masks[: 0 if i == len(sides) - 1 else 2]
        instances = InstanceData(
            labels=torch.arange(len(masks)) % CLASSES,
            masks=BitmapMasks(masks.numpy(), height, width),
            bboxes=masks.new_zeros(len(masks), 4),
        )
        shape = dict(img_shape=(height, width), ori_shape=(2 * height, 2 * width))
        sample = DetDataSample(
            metainfo=dict(shape, batch_input_shape=tuple(images.shape[-2:])),
            gt_instances=instances,
        )
        if stuff:
            labels = torch.full((1, height, width), 255)
            labels[:, : height // 3] = CLASSES
            sample.gt_sem_seg = PixelData(sem_seg=labels)
        result.append(sample)
    return result


# The reference: a loop over images, heads and queries, with row-major patches and no windows.


def reference_attention(attn, x, cos, sin, hidden):
    """One image, [T, C]; `hidden` [T, T] is True where a token must not be seen."""
    dim = attn.head_dim
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, dim)).unbind(1)
    q, k = attn.q_norm(q), attn.k_norm(k)
    outputs = []
    columns, rows = cos, sin
    for head in range(attn.num_heads):
        rotated = []
        if attn.rope is not None:  # a learned angle per position; 0 for all but patches
            of_column, of_row = attn.rope.freqs[:, head].float()
            angles = (columns.float() * of_column + rows.float() * of_row).repeat_interleave(2, 1)
            cos, sin = angles.cos(), angles.sin() * torch.tensor([-1, 1]).repeat(dim // 2)
        for one in (q[:, head], k[:, head]):
            if attn.rotation == "standard":
                partner = torch.cat((one[:, dim // 2 :], one[:, : dim // 2]), 1)
            else:
                partner = torch.stack((one[:, 1::2], one[:, ::2]), -1).flatten(1)
            rotated.append(one * cos + partner * sin)
        logits = rotated[0] @ rotated[1].T / dim**0.5
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(weights @ v[:, head])
    return attn.proj(attn.norm(torch.cat(outputs, 1)))


def reference_prediction(head, tokens, grid):
    queries, patches = tokens[:QUERIES], tokens[-grid[0] * grid[1] :]
    fine = patches.T.reshape(1, -1, *grid)
    for scale in head.upscale:
        fine = F.gelu(F.conv_transpose2d(fine, scale.conv1.weight, scale.conv1.bias, stride=2))
        fine = F.conv2d(fine, scale.conv2.weight, padding=1, groups=fine.shape[1])
        mean, var = fine.mean(1, keepdim=True), fine.var(1, keepdim=True, unbiased=False)
        fine = (fine - mean) / (var + 1e-6).sqrt()
        fine = fine * scale.norm.weight[:, None, None] + scale.norm.bias[:, None, None]
    embedded = queries
    for i in (0, 2, 4):
        embedded = F.linear(embedded, head.mask_head[i].weight, head.mask_head[i].bias)
        embedded = F.gelu(embedded) if i < 4 else embedded
    masks = (embedded[:, :, None, None] * fine).sum(1)
    return F.linear(queries, head.class_head.weight, head.class_head.bias), masks


def reference(model, image, *, masked):
    """Predictions of one image; `masked` per block: whether queries are restricted."""
    backbone, head = model.backbone, model.panoptic_head
    special, first = backbone.arch.num_special_tokens, len(backbone.blocks) - head.num_blocks
    (x,), _, groups = backbone.encode(image[None], (first - 1,))
    patches = to_grid(x[:, special:], groups).flatten(1, 2)
    grid = tuple(-(-side // 14) for side in image.shape[-2:])
    cos, sin = backbone.rope_tables.global_rope.table(grid, period=backbone.rope_tables.period)
    identity = 0.0 if backbone.arch.rope_style == "mixed" else 1.0
    cos = F.pad(cos.double(), (0, 0, QUERIES + special, 0), value=identity)
    sin = F.pad(sin.double(), (0, 0, QUERIES + special, 0))
    x = torch.cat((head.q.weight, x[0, :special], patches[0]))
    predictions = []
    for block, restricted in zip(backbone.blocks[first:], masked):
        hidden = torch.zeros(len(x), len(x), dtype=torch.bool)
        predictions.append(reference_prediction(head, backbone.norm(x), grid))
        if restricted:
            coarse = F.interpolate(predictions[-1][1][None], size=grid, mode="bilinear")[0]
            hidden[:QUERIES, QUERIES + special :] = coarse.flatten(1) <= 0
        x = x + block.ls1(reference_attention(block.attn, block.norm1(x), cos, sin, hidden))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return [*predictions, reference_prediction(head, backbone.norm(x), grid)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("probs", [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_training_equals_the_reference(arch, probs):
    model = build(ARCHS[arch], **BACKBONES.get(arch, {})).double().train()
    model.panoptic_head.attn_mask_probs.copy_(torch.tensor(probs))
    images = seeded_images((2, 3, 70, 110))  # a grid of 5 x 8
    outputs = list(zip(*model(images)))
    restricted = False
    for i, image in enumerate(images):
        expected = reference(model, image, masked=[prob == 1 for prob in probs])
        assert len(outputs) == len(expected) == 3
        for actual, others in zip(outputs, expected):
            for one, other in zip(actual, others):
                assert relative_error(one[i], other) <= 1e-12
        inside = (expected[0][1] > 0).double().mean()
        restricted |= bool(0.1 < inside < 0.9)
    assert restricted


def test_probability_is_sampled_per_query():
    head = build().panoptic_head
    x = build().last_blocks(torch.zeros(2, 3, 56, 56))
    logits = torch.full((2, QUERIES, 8, 8), -1.0)
    free = torch.zeros(2, QUERIES)
    for _ in range(300):
        mask = head.attention_mask(logits, torch.tensor(0.3), x)
        patches = mask[:, 0, :QUERIES, -x.num_patches :]
        assert torch.equal(patches.all(-1), patches.any(-1))  # of all patches or none
        assert mask[:, :, QUERIES:].all() and mask[..., : -x.num_patches].all()
        free += patches.all(-1)
    assert ((free / 300 - 0.7).abs() < 0.15).all()


@pytest.mark.parametrize("stuff", [0, 2])
def test_every_parameter_has_a_gradient_without_objects_too(stuff):
    model = build(dict(layer_scale_init_value=0.5), stuff=stuff).train()
    images = torch.randn(2, 3, 84, 70)
    for sides in ([(84, 70), (56, 60)], [(56, 60)]):  # the second batch has no objects
        model.zero_grad()
        losses = model.loss(images[: len(sides)], samples(images, sides, stuff=stuff))
        assert len(losses) == 9 and all(value.isfinite() for value in losses.values())
        sum(losses.values()).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_masks_cover_complete_patches():
    """80 x 50 pixels are 6 x 4 patches: predictions are cut, targets padded."""
    model = build().eval()
    images = torch.randn(1, 3, 80, 50)
    batch = samples(images, [(80, 50), (1, 1)])[:1]
    x = model.last_blocks(images)
    with torch.no_grad():
        _, masks = model.panoptic_head.predict(x, batch)
        raw = model.panoptic_head(x)[1][-1]
    assert raw.shape[-2:] == (12, 8)
    assert torch.equal(masks, F.interpolate(raw, size=(84, 56), mode="bilinear")[..., :80, :50])

    targets = []
    model.panoptic_head._loss_by_feat_single = lambda *args: targets.append(args[2]) or [0.0] * 3
    model.train().loss(images, batch)
    (instances,) = targets[0]
    assert instances.masks.shape == (2, 84, 56)
    assert torch.equal(
        instances.masks[0, :80, :50].bool(), torch.arange(80)[:, None].expand(80, 50) < 40
    )
    assert not instances.masks[:, 80:].any() and not instances.masks[..., 50:].any()


def test_nan_reaches_the_losses():
    model = build().train()
    images = torch.randn(1, 3, 56, 56)
    torch.nn.init.constant_(model.panoptic_head.q.weight, torch.nan)
    losses = model.loss(images, samples(images, [(56, 56), (1, 1)])[:1])
    assert losses["loss_cls"].isnan()


def test_published_number_of_scale_blocks():
    counts = {patch: len(build_head(patch).upscale) for patch in (7, 8, 14, 16, 32)}
    assert counts == {7: 1, 8: 1, 14: 1, 16: 2, 32: 3}


def build_head(patch_size):
    config = Config.fromfile(CONFIGS / "ropevit_eomt.py").model.panoptic_head
    return MODELS.build({**config, "in_channels": 8, "patch_size": patch_size})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (dict(in_channels=16), r"panoptic_head\.in_channels must be 32, got 16"),
        (dict(patch_size=16), r"panoptic_head\.patch_size must be 14, got 16"),
        (dict(num_blocks=4), r"panoptic_head\.num_blocks must be 1 to 3, got 4"),
    ],
)
def test_head_that_does_not_fit_the_backbone(head, message):
    with pytest.raises(UserError, match=message):
        build(head=head)


def test_checkpointing_changes_no_gradient():
    images, gradients = torch.randn(2, 3, 56, 56), []
    for with_cp in (False, True):
        torch.manual_seed(3)
        model = build(with_cp=with_cp).train()
        torch.manual_seed(4)
        model.panoptic_head.attn_mask_probs.fill_(0.5)
        losses = model.loss(images, samples(images, [(56, 56)] * 2))
        sum(losses.values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
