"""The page of all settings, made from the configuration's models.

python docs/settings.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autodisc.config import StudyConfig

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Every setting of a study, by the name that it has in a YAML file, in `--set NAME=VALUE` and in `make_config`. There is
no default for the teacher or the data: they are the experiment. This page is made by `docs/settings.py` from
`autodisc/config`.
"""
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    return "\n".join([HEAD, *_section("", StudyConfig)])


def _section(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """A heading and a table of the model's own settings, then its sections."""
    own = {name: field for name, field in model.model_fields.items() if _model(field) is None}
    yield f"## {prefix.rstrip('.')}\n" if prefix else "## study\n"
    if model.__doc__ and prefix:
        yield f"{model.__doc__.splitlines()[0]}\n"
    yield "| setting | default | values | |\n|---|---|---|---|"
    for name, field in own.items():
        default = "*required*" if field.is_required() else _text(field.default)
        cells = (f"`{prefix}{name}`", default, _values(field), _escaped(field.description or ""))
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for name, field in model.model_fields.items():
        if (inner := _model(field)) is not None:
            yield from _section(f"{prefix}{name}.", inner)


def _model(field: FieldInfo) -> type[BaseModel] | None:
    options = [field.annotation, *get_args(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _text(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{default}`"


def _values(field: FieldInfo) -> str:
    """The names that it takes, or its bounds."""
    names = [f"`{name}`" for name in dict.fromkeys(_names(field.annotation))]
    bounds = [
        (sign, value)
        for key, sign in SIGNS.items()
        for m in _metadata(field)
        if (value := getattr(m, key, None)) is not None
    ]
    return ", ".join([f"{sign} {value:g}" for sign, value in bounds] + names)


def _metadata(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    for option in get_args(field.annotation):  # Annotated[int, Field(ge=1)] | None
        for part in getattr(option, "__metadata__", ()):
            yield from getattr(part, "metadata", ())


def _names(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif annotation is not NoneType:
        for option in get_args(annotation):
            yield from _names(option)


def _escaped(text: str) -> str:
    return re.sub(r"([|*])", r"\\\1", text)


if __name__ == "__main__":
    main()
