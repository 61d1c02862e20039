"""Reading our own code."""

from __future__ import annotations

import ast
import gc


def tree(text: str) -> ast.Module:
    """
    Parse Python.

    CPython 3.11 takes what finalizers do meanwhile for its own recursion, and gives up with a SystemError: nothing is
    collected meanwhile.
    """
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()
