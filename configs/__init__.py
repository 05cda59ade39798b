"""What runs are made of: methods, tasks, checkpoints, sweeps. Installed as `scope_jax.configs`."""
