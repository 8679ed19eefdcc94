"""Paths in attestors' options. They are absolute: only the agent knows where its file lies."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _absolute(path: str) -> str:
    if path.startswith("/"):
        return path
    if path.startswith("unix:/"):
        path_alone = "/" + path.removeprefix("unix:").lstrip("/")
        raise ValueError(f"write the path alone: {path_alone}")
    raise ValueError(f"{path!r} is not an absolute path")


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
