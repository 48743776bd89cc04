"""Training of the models that the archiver ships, and what freezing one costs."""

from flowarchive.train.data import ClipConfig
from flowarchive.train.evaluate import Evaluation, evaluate
from flowarchive.train.loop import Config, TrainConfig, read_config, train, validate

__all__ = [
    "ClipConfig",
    "Config",
    "Evaluation",
    "TrainConfig",
    "evaluate",
    "read_config",
    "train",
    "validate",
]
