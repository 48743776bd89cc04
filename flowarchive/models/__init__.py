"""The models an archive can be coded with, by the name of their kind."""

from flowarchive.models.idf import IdfModel

MODELS: dict[str, type[IdfModel]] = {"idf": IdfModel}
"""Kind, as a model file names it, to class. The kinds of released formats stay."""

__all__ = ["MODELS", "IdfModel"]
