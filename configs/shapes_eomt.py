# EoMT with a tiny RoPE ViT on the shapes dataset, from scratch, on a CPU: it shows that the head
# trains. This schedule gave 5.4 box and 8.0 mask AP, 7,325 iterations on a pretrained backbone 17.4
# and 24.0 (docs/recipes.md). The paper (arXiv 2503.19108) starts from strongly pretrained ViTs.
# Queries, blocks and schedule are ours.
_base_ = [
    "./_base_/default_runtime.py",
    "./_base_/models/eomt.py",
    "./_base_/models/shapes_parts.py",
    "./_base_/datasets/shapes.py",
    "./_base_/schedules/shapes.py",
]
classes = dict(num_things_classes=5)
model = dict(
    data_preprocessor=_base_.shapes_preprocessor,
    backbone=dict(_base_.shapes_backbone, patch_size=7),
    panoptic_head=dict(
        in_channels=_base_.embed_dim, patch_size=7, num_queries=20, num_blocks=2, **classes
    ),
    panoptic_fusion_head=classes,
    train_cfg=dict(num_points=1024),
    test_cfg=dict(max_per_image=50),
)
default_hooks = dict(
    checkpoint=dict(interval=500, max_keep_ckpts=1),
    mask_annealing=dict(type="MaskAnnealingHook"),
)
