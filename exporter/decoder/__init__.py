"""Graphs of language models that a device decodes with: written from the configuration, about ten nodes a layer, not traced.

`shape` says what a model of the LLaMA kind looks like, `matrices` how its weights lie in the file of a precision, `graph`
writes a size over that file, `check` compares it with torch, `export` makes the bundle.
"""

from exporter.decoder.shape import DecoderShape, shape_of
from exporter.decoder.write import PRECISIONS, DecoderFiles, write_decoder

__all__ = ["PRECISIONS", "DecoderFiles", "DecoderShape", "shape_of", "write_decoder"]
