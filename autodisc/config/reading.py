"""Settings read, checked, written and compared: a mistake is one line, with the nearest valid name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from autodisc.config.fields import Section
from autodisc.config.searching import BudgetConfig
from autodisc.config.study import StudyConfig, TaskConfig, TeacherConfig
from autodisc.errors import ConfigError
from autodisc.files import write_text

CONFIG, JOURNAL = "config.yaml", "journal.log"  # in a study's folder: its configuration, its Optuna storage


def make_config(values: dict[str, Any], *, source: str = "") -> StudyConfig:
    """A validated configuration; raises ConfigError, one line, naming the field and the nearest valid key."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise explained(error, StudyConfig, source=source) from None


class _Budgeted(Section):
    budget: BudgetConfig


def make_budget(values: dict[str, Any]) -> BudgetConfig:
    """A budget alone; ConfigError says of it what it would say of a study's."""
    try:
        return _Budgeted.model_validate({"budget": values}).budget
    except ValidationError as error:
        raise explained(error, _Budgeted) from None


def explained(error: ValidationError, model: type[BaseModel], *, source: str = "") -> ConfigError:
    """What is wrong with settings of ``model``, in one line."""
    prefix = f"{source}: " if source else ""
    items = error.errors()
    inside = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}  # what holds it only follows
    return ConfigError(prefix + "; ".join(_explain(dict(item), model) for item in items if item["loc"] not in inside))


def read_config(path: Path) -> StudyConfig:
    """Read a study's YAML. Relative paths in it are relative to the working folder."""
    return make_config(read_yaml(path), source=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a study's YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of before `search.examples` came, with what they had of it: trials were scored on all rows."""
    return {**values, "search": {"examples": "all", **values.get("search", {})}}


def write_config(config: StudyConfig, path: Path) -> None:
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def differences(ours: StudyConfig | dict[str, Any], theirs: StudyConfig, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Fields that differ, as ``search.lam: 0.2 -> 0.1``; names in ``ignore`` and below them are left out.

    ``ours`` may be what a record holds: a setting that it lacks, of an earlier version, had its default.
    """
    right = flatten(theirs.model_dump(mode="json"))
    if isinstance(ours, dict):
        plain = StudyConfig(task=TaskConfig(name="plain"), teacher=TeacherConfig(model=""), student_sparsity=None)
        left = {**flatten(plain.model_dump(mode="json")), **flatten(ours)}
    else:
        left = flatten(ours.model_dump(mode="json"))
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and not any(key == name or key.startswith(name + ".") for name in ignore)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: ``{"search": {"lam": 0.2}}`` is ``{"search.lam": 0.2}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _explain(item: dict[str, Any], model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(item["loc"][:-1], model)
        near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.5)
        way_out = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(valid)}"
        return f"{field}: unknown setting; {way_out}"
    if item["type"] == "missing":
        return f"{field}: missing; it has no default, since it is the experiment"
    if not field or item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: got {item['input']!r}; {message[0].lower()}{message[1:]}"


def _valid_keys(location: tuple[Any, ...], section: type[BaseModel]) -> list[str]:
    for part in location:
        if isinstance(part, int):  # of a list, whose members have been looked up
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
