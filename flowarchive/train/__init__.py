"""Training of the models that the archiver ships."""

from flowarchive.train.loop import Config, TrainConfig, read_config, train, validate

__all__ = ["Config", "TrainConfig", "read_config", "train", "validate"]
