"""onnxruntime-genai and llama.cpp over the same prompts, each with the best guesses that its release has.

llama.cpp: `LlamaPromptLookupDecoding` with 2 and with 10 tokens, whichever is faster. onnxruntime-genai: plain decoding where
the installed release has no speculation. It runs in the environment of the peer (`benchmarks.llm.peers`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

ROOM = 1536
GUESSED = (2, 10)


def processor_seconds(name: str, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Of all tokens after each text's first, with one thread."""
    from benchmarks.llm import peers
    from benchmarks.llm.measured import measured

    entrant = peers.genai(measured(), "fp32") if name == "genai" else peers.llamacpp(measured(), "f32")
    best = float("inf")
    for guessed in GUESSED if name == "llamacpp" else (0,):
        asked = json.dumps({"prompts": list(map(list, prompts)), "tokens": tokens, "guessed": guessed})
        command = [str(peers.environment(name)), __file__, name, entrant.model]
        done = subprocess.run(command, input=asked, check=True, capture_output=True, text=True)
        best = min(best, json.loads(done.stdout.splitlines()[-1])["processor"])
    return best


def _llamacpp(model: str, prompts: list[list[int]], tokens: int, guessed: int) -> float:
    import llama_cpp  # type: ignore[import-not-found]
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # type: ignore[import-not-found]

    llama = llama_cpp.Llama(
        model,
        n_ctx=ROOM,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=guessed),
    )
    took = 0.0
    for ids in prompts:
        text = llama.generate(ids, temp=0.0, reset=True)
        next(text)
        begun = time.process_time()
        for _ in range(tokens - 1):
            next(text)
        took += time.process_time() - begun
    return took


def _genai(model: str, prompts: list[list[int]], tokens: int) -> float:
    import numpy as np
    import onnxruntime_genai as og  # type: ignore[import-not-found]

    config = og.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    opened, took = og.Model(config), 0.0
    for ids in prompts:
        parameters = og.GeneratorParams(opened)
        parameters.set_search_options(max_length=len(ids) + tokens, min_length=len(ids) + tokens, do_sample=False)
        text = og.Generator(opened, parameters)
        text.append_tokens(np.array(ids, dtype=np.int32))
        text.generate_next_token()
        begun = time.process_time()
        for _ in range(tokens - 1):
            text.generate_next_token()
        took += time.process_time() - begun
    return took


if __name__ == "__main__":
    given = json.load(sys.stdin)
    if sys.argv[1] == "genai":
        seconds = _genai(sys.argv[2], given["prompts"], given["tokens"])
    else:
        seconds = _llamacpp(sys.argv[2], given["prompts"], given["tokens"], given["guessed"])
    print(json.dumps({"processor": seconds}))
