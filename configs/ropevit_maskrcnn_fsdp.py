# ropevit_maskrcnn.py with weights, gradients and optimizer states spread over the GPUs (FSDP, a
# unit per block): for backbones that do not fit otherwise.
_base_ = "./ropevit_maskrcnn.py"
runner_type = "FlexibleRunner"
strategy = dict(type="BlockFSDPStrategy")
