"""JSON Schemas of the files that operators write, from the pydantic models that read them."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from agent.config.settings import Settings
from agent.config.values import format_duration
from agent.entries.schema import EntriesFile, EntryConfig

if TYPE_CHECKING:
    from pydantic_core.core_schema import ModelSchema, WithDefaultSchema

SCHEMAS: dict[str, type[BaseModel]] = {
    "agent": Settings,
    "entries": EntriesFile[EntryConfig],
}
"""The model of each file, by the name of its schema in config/schema."""


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model, with the docstring below each field as its description."""
    schema = _without_fillers(model.model_json_schema(schema_generator=_Generator))
    schema["title"] = model.__name__.partition("[")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Generator(GenerateJsonSchema):
    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        models = itertools.takewhile(lambda each: each is not BaseModel, schema["cls"].__mro__)
        for model in (
            each for each in models if each.__name__.isidentifier()
        ):  # no generic classes such as A[B]
            for name, text in _described(model).items():
                made["properties"][name].setdefault("description", text)
        return made

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        # The only number written as text is a file mode.
        if made.get("type") == "string" and isinstance(made.get("default"), int):
            made["default"] = f"{made['default']:04o}"
        return made

    def encode_default(self, dft: Any) -> Any:
        match dft:
            case timedelta():
                return format_duration(dft)
            case PurePath():
                return str(dft)
            case tuple():
                return [self.encode_default(item) for item in dft]
            case BaseModel():
                return {name: self.encode_default(value) for name, value in dft}
            case _:
                return super().encode_default(dft)


def _described(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field; pydantic would read the source at each start."""
    module = ast.parse(textwrap.dedent(inspect.getsource(model)))
    fields = [part for each in module.body if isinstance(each, ast.ClassDef) for part in each.body]
    found = {}
    for field, below in itertools.pairwise(fields):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                found[name] = inspect.cleandoc(text)
    return found


def _without_fillers(schema: Any) -> Any:
    """Remove None and "", the models' defaults for absent keys: a file cannot contain them."""
    if isinstance(schema, list):
        return [_without_fillers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    fillers = (("default", None), ("default", ""))
    kept = {key: value for key, value in schema.items() if (key, value) not in fillers}
    return {key: _without_fillers(value) for key, value in kept.items()}
