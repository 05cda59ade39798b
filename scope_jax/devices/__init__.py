"""The machine: meshes, processes, compiled programs, shapes.

In: host arrays, logical axes. Out: arrays laid out over the devices, results shared between processes.
The lowest room: it knows nothing of models or of training.
"""
