"""Text that is generated: requests wait for their turn, and what comes of them goes out token by token.

`generating` has the generators and the gate before them, `streams` sends events until the text ends or the client goes,
`schemas` says what goes in and out, `openai` translates for clients of that interface.
"""

from selector.service.generate.generating import GenerateOptions, checked_rate

__all__ = ["GenerateOptions", "checked_rate"]
