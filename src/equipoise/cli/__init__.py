"""The command line: thin verbs over the library, one a file, each imported when it is typed.

Exit 0 on success, 1 when something falls short, 2 on bad input.
"""

from equipoise.cli.app import app, main

__all__ = ["app", "main"]
