"""The machine: meshes, processes, compiled programs, shapes.

In: host arrays, logical axes, functions. Out: arrays laid out over the devices, compiled programs,
results shared between processes.
The lowest room: it knows nothing of models or of training.
"""
