"""The folder of runs: results that are whole or absent, found again by fingerprint; no torch."""

from kdrun.store.checkpoints import Checkpoint
from kdrun.store.files import FORMAT, read_json, write_json
from kdrun.store.fingerprints import fingerprint, first_difference
from kdrun.store.runs import Result, Store, Workplace
from kdrun.store.shelf import Form, Kept, Shelf

__all__ = [
    "FORMAT",
    "Checkpoint",
    "Form",
    "Kept",
    "Result",
    "Shelf",
    "Store",
    "Workplace",
    "fingerprint",
    "first_difference",
    "read_json",
    "write_json",
]
