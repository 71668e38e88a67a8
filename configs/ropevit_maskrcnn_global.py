# As ropevit_maskrcnn.py, but every block attends over the whole image.
_base_ = "./ropevit_maskrcnn.py"
model = dict(backbone=dict(window_size=None, pos_embed_mode="interpolate"))
