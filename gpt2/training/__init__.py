"""What a training run needs around its loop: parallelism, precision, checkpoints, the run folder, signals."""
