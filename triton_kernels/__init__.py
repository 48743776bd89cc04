"""The hot operations as GPU kernels: a leaf that imports torch and triton, never flowarchive.

The CPU path in `flowarchive` is the definition, and a kernel equals it bit for bit. One file an
operation: device helpers, kernels, launchers; docs/kernels.md has the list, and what has been shown
of them without a GPU.
"""
