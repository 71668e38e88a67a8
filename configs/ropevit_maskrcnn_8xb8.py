# ropevit_maskrcnn.py on one machine with 8 GPUs, 8 pictures each:
#     bash tools/dist_train.sh configs/ropevit_maskrcnn_8xb8.py 8 --amp
_base_ = "./ropevit_maskrcnn.py"
train_dataloader = dict(batch_size=8)
