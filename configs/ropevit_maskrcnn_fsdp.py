# ropevit_maskrcnn.py with weights, gradients and optimizer states sharded over the GPUs (FSDP, one
# unit per block): for backbones that do not fit on one.
_base_ = "./ropevit_maskrcnn.py"
runner_type = "FlexibleRunner"
strategy = dict(type="BlockFSDPStrategy")
