"""The reference of a policy: what it is, how to run it, and a digest of its weights."""

from .manager import REFERENCE_KINDS, ReferenceManager
from .switch import AdapterSwitch
from .weights import weights_fingerprint

__all__ = ["REFERENCE_KINDS", "AdapterSwitch", "ReferenceManager", "weights_fingerprint"]
