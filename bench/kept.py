"""The files in which figures are kept: JSON, and Markdown beside it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path


def result_file(text: str) -> Path:
    """
    Read where to write JSON, and make the directory: what cannot be written must not be found out after an hour.

    Raises:
        ArgumentTypeError: It cannot be written, or would be overwritten by the Markdown beside it.
    """
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text} does not end in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"there is no directory {path.parent}: {exc.strerror}") from exc
    try:  # not asked of os.access, which promises root everything
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"nothing can be written in {path.parent}: {exc.strerror}") from exc
    for each in (path, path.with_suffix(".md")):
        if each.is_dir():
            raise argparse.ArgumentTypeError(f"{each} is a directory")
    return path


def keep(path: Path, values: object, markdown: str) -> bool:
    """
    Write both files, each whole or not at all; where that fails say so, for what is measured later is not lost by it.

    Returns:
        Whether they are written.
    """
    try:
        for each, text in ((path, json.dumps(values, indent=1)), (path.with_suffix(".md"), markdown)):
            unfinished = each.with_name(f".{each.name}.{os.getpid()}")
            unfinished.write_text(f"{text.rstrip()}\n")
            unfinished.replace(each)
    except OSError as exc:
        print(f"the figures could not be written to {path}: {exc.strerror}", file=sys.stderr)
        return False
    return True
