# The protocol of tools/compare_backbones.py on the embedded shapes: fine-tuning, with its curves.
_base_ = "./shapes_transfer.py"
train_cfg = dict(val_interval=200)
