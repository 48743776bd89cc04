"""Flows and entropy models joined: what is coded in which order."""

from flowarchive.models.idf import IdfModel
from flowarchive.models.video import VideoModel

Model = IdfModel | VideoModel

MODELS: dict[str, type[Model]] = {"idf": IdfModel, "video": VideoModel}
"""The kinds of models, by the name that model files and configs give them."""

__all__ = ["MODELS", "IdfModel", "Model", "VideoModel"]
