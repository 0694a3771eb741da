"""Generates token ids: the loop over a decoder's graph, its buffers of keys and values, and how a token is drawn. It knows no
text: tokenizer, templates and stop strings are in `selector.run.generate`.
"""

from selector.run.decode.buffers import Cache, DecoderSpec
from selector.run.decode.decoder import Decoder, Step
from selector.run.decode.options import GenerationOptions
from selector.run.decode.sampling import Sampler

__all__ = ["Cache", "Decoder", "DecoderSpec", "GenerationOptions", "Sampler", "Step"]
