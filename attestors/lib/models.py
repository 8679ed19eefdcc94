"""Models of JSON answers, which contain only the fields that an attestor needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pydantic import ValidationError


class Part(BaseModel):
    """Base of a part of an answer. It ignores other fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def first_fault(error: ValidationError) -> str:
    """Return place and reason of the first fault, without the value: it may be a secret."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"


def _absolute(path: str) -> str:
    if path.startswith("/"):
        return path
    if path.startswith("unix:/"):
        path_alone = "/" + path.removeprefix("unix:").lstrip("/")
        raise ValueError(f"write the path alone: {path_alone}")
    raise ValueError(f"{path!r} is not an absolute path")


AbsolutePath = Annotated[
    str, AfterValidator(_absolute), Field(json_schema_extra={"format": "path"})
]
