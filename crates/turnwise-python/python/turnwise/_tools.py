"""Descriptions of tools from functions with type hints and docstrings."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def tool_spec(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns name, description and JSON Schema of a function: Google-style docstring, type hints for all parameters.

    Raises:
        TypeError: For a parameter without a type hint, or with one that JSON has no schema for.
    """
    name = function.__name__
    hints = typing.get_type_hints(function)
    description, arguments = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in hints:
            raise TypeError(f"the parameter `{parameter.name}` of the tool `{name}` has no type hint")
        try:
            schema = _schema(hints[parameter.name])
        except TypeError as error:
            raise TypeError(f"the parameter `{parameter.name}` of the tool `{name}`: {error}") from None
        if parameter.name in arguments:
            schema["description"] = arguments[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        properties[parameter.name] = schema
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {"name": name, "description": description, "parameters": parameters}


def _schema(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _NAMES:
        return {"type": _NAMES[hint]}
    if hint is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return _union([_schema(one) for one in inner if one is not type(None)], type(None) in inner)
    if origin is typing.Literal:
        return _choice(list(inner))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice([member.value for member in hint])
    if hint in (list, tuple, set) or origin in (list, tuple, set):
        items = [one for one in inner if one is not Ellipsis]
        return {"type": "array", "items": _schema(items[0])} if items else {"type": "array"}
    if hint is dict or origin in (dict, Mapping):
        return {"type": "object"}
    if origin is typing.Annotated:
        return _schema(inner[0])
    raise TypeError(f"JSON has no schema for `{hint}`; use str, int, float, bool, list, dict, Literal or an Enum")


def _union(some: list[dict[str, Any]], is_optional: bool) -> dict[str, Any]:
    kinds = [one.get("type") for one in some]
    schema: dict[str, Any] = {"anyOf": some}
    if len(some) == 1:
        schema = some[0]
    elif all(isinstance(kind, str) and len(one) == 1 for kind, one in zip(kinds, some)):
        schema = {"type": sorted(str(kind) for kind in kinds)}
    return {**schema, "nullable": True} if is_optional else schema


def _choice(values: list[Any]) -> dict[str, Any]:
    kinds = {_NAMES[type(value)] for value in values if type(value) in _NAMES}
    schema: dict[str, Any] = {"enum": values}
    return {"type": kinds.pop(), **schema} if len(kinds) == 1 else schema


#: A section of a docstring: a word and a colon, alone on a line.
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$", re.MULTILINE)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Returns the description of a function, and those of its arguments."""
    parts = _SECTION.split(text)
    description = parts[0].strip()
    arguments: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2]):
        if title not in ("Args", "Arguments", "Parameters"):
            continue
        lines = [line for line in body.splitlines() if line.strip()]
        indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
        current = None
        for line in lines:
            begins = re.match(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$", line[indent:])
            if begins and len(line) - len(line.lstrip()) == indent:
                current = begins.group(1)
                arguments[current] = begins.group(2).strip()
            elif current is not None:
                arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return description, arguments
