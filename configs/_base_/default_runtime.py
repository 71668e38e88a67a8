default_scope = "mmdet"
custom_imports = dict(imports=["ropevit_mmdet"], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    # By epoch, the metrics of an IterBasedTrainLoop would all be logged at step 0.
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="ResumableCheckpointHook", by_epoch=False, interval=5000, max_keep_ckpts=2
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="DetVisualizationHook"),
    non_finite=dict(type="NonFiniteGuard", action="stop"),  # or "skip", with a count
    preemption=dict(type="PreemptionHook"),  # SIGTERM: saves and exits with 75
    checks=dict(type="RoPEViTChecks"),  # before the first iteration
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="DetLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)

# The sampler is seeded before a checkpoint is loaded: without a fixed seed a resumed run would see
# its data in another order.
randomness = dict(seed=0)
log_level = "INFO"
load_from = None
resume = False
