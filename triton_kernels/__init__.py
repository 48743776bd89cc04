"""Room for GPU kernels: a leaf package that may import torch and triton, never flowarchive.

There is no kernel here yet; every archive is packed and unpacked on the CPU. The CPU path in
`flowarchive` is the definition, and a kernel that moves in must equal it bit for bit.
"""
