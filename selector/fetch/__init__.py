"""Brings a bundle, or what a device needs of one, from a service: `transfer` is the HTTP that survives a bad network, `pull`
what is asked for, checked and put in place.
"""

from selector.fetch.transfer import Client, PullError

__all__ = ["Client", "PullError"]
