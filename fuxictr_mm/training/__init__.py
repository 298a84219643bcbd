"""Training: loop, checkpoints, optimizers, data parallelism, callbacks."""
