"""Invertible maps of integers, and the networks that steer them."""

from flowarchive.flows.integer import FlowConfig, IntegerFlow, Latent

__all__ = ["FlowConfig", "IntegerFlow", "Latent"]
