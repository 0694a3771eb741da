"""Generates text: `Generator` chooses a size for every text, and in the middle of one, and makes text of the token ids that
`selector.run.decode` gives. Tokenizer, chat templates and stop strings are here.
"""

from selector.run.decode.options import GenerationOptions
from selector.run.generate.generation import Generation, Piece, Switch
from selector.run.generate.generator import BusyError, Generator

__all__ = ["BusyError", "Generation", "GenerationOptions", "Generator", "Piece", "Switch"]
