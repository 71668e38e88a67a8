"""What a run consists of besides its model: config, processes, checkpoints, ways to end."""
