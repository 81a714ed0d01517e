"""What the loop is made of: state, step, optimizers, mesh, checkpoints, logs."""
