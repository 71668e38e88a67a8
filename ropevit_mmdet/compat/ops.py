"""Stand-in for `mmcv._ext`, the compiled half of mmcv 2.x, on operators of torch and torchvision.

mmcv-lite ships every `mmcv/ops/*.py` and lacks only this one module. `install` appends an import
hook that answers for it when nothing else does, so a compiled `_ext` always wins. Signatures and
in-place output arguments are those that `mmcv/ops/*.py` (2.1.0) calls with.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

EXT_NAME = "mmcv._ext"
# Marks by which a module and a function are known, also to another copy of this file.
FILLED = "ropevit_mmdet_standin"
RAISES = "ropevit_mmdet_unsupported"

# Everything that mmcv 2.1.0's `mmcv/ops/*.py` look up through `ext_loader.load_ext`; a name that
# is missing makes `import mmcv.ops` fail as a whole.
# fmt: off
EXT_FUNCTIONS: tuple[str, ...] = (
    "active_rotated_filter_backward", "active_rotated_filter_forward",
    "assign_score_withk_backward", "assign_score_withk_forward", "ball_query_forward",
    "bbox_overlaps", "bezier_align_backward", "bezier_align_forward", "bias_act",
    "border_align_backward", "border_align_forward", "box_iou_quadri", "box_iou_rotated",
    "carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward",
    "chamfer_distance_backward", "chamfer_distance_forward", "contour_expand", "convex_giou",
    "convex_iou", "correlation_backward", "correlation_forward", "deform_conv_backward_input",
    "deform_conv_backward_parameters", "deform_conv_forward", "deform_roi_pool_backward",
    "deform_roi_pool_forward", "diff_iou_rotated_sort_vertices_forward",
    "dynamic_point_to_voxel_backward", "dynamic_point_to_voxel_forward", "dynamic_voxelize_forward",
    "filtered_lrelu", "filtered_lrelu_act_", "furthest_point_sampling_forward",
    "furthest_point_sampling_with_dist_forward", "fused_bias_leakyrelu",
    "fused_indice_conv_forward", "gather_points_backward", "gather_points_forward",
    "get_compiler_version", "get_compiling_cuda_version", "get_indice_pairs_2d_backward",
    "get_indice_pairs_2d_forward", "get_indice_pairs_3d_backward", "get_indice_pairs_3d_forward",
    "get_indice_pairs_4d_forward", "group_points_backward", "group_points_forward",
    "hard_voxelize_forward", "indice_conv_backward", "indice_conv_forward",
    "indice_maxpool_backward", "indice_maxpool_forward", "iou3d_boxes_overlap_bev_forward",
    "iou3d_nms3d_forward", "iou3d_nms3d_normal_forward", "knn_forward", "masked_col2im_forward",
    "masked_im2col_forward", "min_area_polygons", "modulated_deform_conv_backward",
    "modulated_deform_conv_forward", "ms_deform_attn_backward", "ms_deform_attn_forward", "nms",
    "nms_match", "nms_quadri", "nms_rotated", "pixel_group", "points_in_boxes_all_forward",
    "points_in_boxes_cpu_forward", "points_in_boxes_part_forward", "points_in_polygons_forward",
    "prroi_pool_backward", "prroi_pool_coor_backward", "prroi_pool_forward", "psamask_backward",
    "psamask_forward", "riroi_align_rotated_backward", "riroi_align_rotated_forward",
    "roi_align_backward", "roi_align_forward", "roi_align_rotated_backward",
    "roi_align_rotated_forward", "roi_pool_backward", "roi_pool_forward",
    "roiaware_pool3d_backward", "roiaware_pool3d_forward", "roipoint_pool3d_forward",
    "rotated_feature_align_backward", "rotated_feature_align_forward",
    "sigmoid_focal_loss_backward", "sigmoid_focal_loss_forward", "softmax_focal_loss_backward",
    "softmax_focal_loss_forward", "softnms", "stack_ball_query_forward",
    "stack_group_points_backward", "stack_group_points_forward", "sync_bn_backward_data",
    "sync_bn_backward_param", "sync_bn_forward_mean", "sync_bn_forward_output",
    "sync_bn_forward_var", "three_interpolate_backward", "three_interpolate_forward",
    "three_nn_forward", "tin_shift_backward", "tin_shift_forward", "upfirdn2d",
)
# fmt: on

WAY_OUT = (
    "use a model that does without it, or install a compiled mmcv 2.1.0 in place of mmcv-lite "
    "(build it from source against torch 2.13 or older); a compiled mmcv is used by itself"
)


class StandInFinder:
    """Import hook, finder and loader in one, that provides `mmcv._ext` and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXT_NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=__name__)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None  # an ordinary module

    def exec_module(self, module: ModuleType) -> None:
        fill(module)


def install() -> None:
    """Let `import mmcv._ext` find the stand-in where mmcv has no compiled one. Idempotent."""
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())  # last: whatever finds a compiled module comes first


def fill(module: ModuleType) -> None:
    """Put every name of EXT_FUNCTIONS into an empty module, say that of `ops_file`."""
    from ropevit_mmdet.compat import (
        ops_boxes,
        ops_losses,
        ops_sampling,  # torch, only now
    )

    for name in EXT_FUNCTIONS:
        setattr(module, name, _unsupported(name))
    for part in (ops_boxes, ops_losses, ops_sampling):
        for function in part.OPS:
            setattr(module, function.__name__, function)
    module.get_compiler_version = lambda: "not compiled (torchvision stand-in)"
    module.get_compiling_cuda_version = lambda: "not compiled (torchvision stand-in)"
    setattr(module, FILLED, True)


def build_module() -> ModuleType:
    """A fresh stand-in module with a real `__spec__`, not entered in `sys.modules`."""
    spec = StandInFinder().find_spec(EXT_NAME)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_standin(module: ModuleType) -> bool:
    """Whether `module`, say `sys.modules['mmcv._ext']`, is the stand-in and not a compiled mmcv."""
    return hasattr(module, FILLED)


def unsupported_names(module: ModuleType) -> list[str]:
    """Those of EXT_FUNCTIONS that `module` lacks, or that only raise NotImplementedError."""
    functions = {name: getattr(module, name, None) for name in EXT_FUNCTIONS}
    return [name for name, call in functions.items() if call is None or hasattr(call, RAISES)]


def _unsupported(name: str) -> Callable:
    def raise_unsupported(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv op '{name}' was not compiled and has no stand-in: {WAY_OUT}"
        )

    raise_unsupported.__name__ = raise_unsupported.__qualname__ = name
    setattr(raise_unsupported, RAISES, True)
    return raise_unsupported
