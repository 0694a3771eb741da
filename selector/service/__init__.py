"""The REST service: budget queries over HTTP (CONTRACT.md, `/v1`). Errors are problem details (RFC 9457).

`create_app` makes the WSGI application of opened bundles, `serve` runs it on what `listening` gives. A file of `routes/` holds
one group of paths; what all of them share is in `state.py`, what goes in and out in `web/`, what runs inputs in `predict/`,
what generates text in `generate/`, what serves artefacts in `files/`, the store of profiles and tokens in `fleet/`, the
dashboard in `pages/`.
"""

from selector.service.app import create_app
from selector.service.fleet.rings import CANARY, parse_rules
from selector.service.generate import GenerateOptions, checked_rate
from selector.service.predict import PredictOptions
from selector.service.server import ListenError, listening, serve, shown_url
from selector.service.sockets import TlsError, checked_tls

__all__ = [
    "CANARY",
    "GenerateOptions",
    "ListenError",
    "PredictOptions",
    "TlsError",
    "checked_rate",
    "checked_tls",
    "create_app",
    "listening",
    "parse_rules",
    "serve",
    "shown_url",
]
