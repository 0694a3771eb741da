"""What a fleet has sent, in one database for all processes and replicas: profiles with their versions, tokens, rate limits, and
what follows for a model of device from all its profiles.
"""

from selector.service.fleet.store import Store

__all__ = ["Store"]
