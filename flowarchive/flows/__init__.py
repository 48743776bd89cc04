"""Invertible maps of integers, and the networks that steer them.

integer     FlowConfig, IntegerFlow, Latent: the flow of `idf`, in tensors
phases      Shape, PhaseNet: the networks of `video`, in bytes
"""
