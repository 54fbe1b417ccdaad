"""A pass of one's own: say who made the file. Nothing else in the model changes."""

from __future__ import annotations

from onnxprune import Model


def run(model: Model, *, producer: str) -> Model:
    """Return the model with another producer name.

    Parameters
    ----------
    model : Model
    producer : str
    """
    renamed = model.fork()  # independent, but shares the weights
    renamed.proto.producer_name = producer
    return renamed
