"""Training of the models that the archiver ships, and what freezing one costs."""

from flowarchive.train.config import Config, PartConfig, TrainConfig, read_config
from flowarchive.train.data import ClipConfig
from flowarchive.train.evaluate import Evaluation, evaluate
from flowarchive.train.loop import train

__all__ = [
    "ClipConfig",
    "Config",
    "Evaluation",
    "PartConfig",
    "TrainConfig",
    "evaluate",
    "read_config",
    "train",
]
