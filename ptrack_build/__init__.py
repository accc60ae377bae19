"""The build line of ptrack: from a PostgreSQL major to a running server that tracks its blocks.

One module owns each step, as a function from one frozen dataclass to the next:

    matrix.Major -> source.SourceTree -> patch.PatchedTree -> compile.Prefix -> tests, packages
"""

from pathlib import Path

__version__ = "3.0.0"

#: The checkout this package is run from; it is never installed.
REPO = Path(__file__).resolve().parent.parent
