"""Training: loop, optimizers, schedule, regularization, checkpoints, data parallelism, callbacks."""
