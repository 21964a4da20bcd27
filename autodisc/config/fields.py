"""What settings are made of: their names, their checked types, and the section that all are."""

from __future__ import annotations

import contextlib
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Kind = Literal["classification", "regression", "tokens", "causal-lm"]
MetricName = Literal[
    "accuracy",
    "f1",
    "f1_macro",
    "accuracy_f1",
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",
    "entity_f1",
    "word_accuracy",
    "bits_saved",
]
BINARY: tuple[MetricName, ...] = ("f1", "accuracy_f1")  # defined by a positive class, 1
Strategy = Literal["maxidisc", "direct"]
Sampler = Literal["tpe", "gp"]  # of Optuna
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
FEWEST_SCORED = 10  # that may be asked for: fewer have no standard error


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _count(value: Any) -> Any:
    """A number as tables print it: 1.2M is 1200000."""
    if isinstance(value, str) and value[-1:] in _PREFIXES:
        with contextlib.suppress(ValueError, OverflowError):
            return round(float(value[:-1]) * _PREFIXES[value[-1]])
    return value


_PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]


def _examples(value: Any) -> Any:
    count = _count(value)
    if isinstance(count, str) and count.isdecimal():
        count = int(count)
    if count is None or count == "all" or (isinstance(count, int) and count >= FEWEST_SCORED):
        return count
    raise ValueError(f"got {value!r}; expected a number of rows, at least {FEWEST_SCORED}, or all")


Examples = Annotated[Annotated[int, Field(ge=FEWEST_SCORED)] | Literal["all"] | None, BeforeValidator(_examples)]


def check_name(value: str) -> str:
    """``value``, which names a folder or a part of one; raises ValueError where it could lead out of it."""
    if value in ("", ".", "..") or not value.isprintable() or "/" in value or "\\" in value:
        raise ValueError(f"got {value!r}; expected a name without / and \\, since folders are named after it")
    return value


def check_sparsity(value: float, *, zero: bool = True) -> float:
    """``value``, a removed fraction in [0, 1) ((0, 1) where ``zero`` is false); raises ValueError otherwise."""
    if 0.0 < value < 1.0 or (zero and value == 0.0):
        return value
    hint = f" For {value:g} % removed write {value / 100:g}." if 1.0 < value < 100.0 else ""
    raise ValueError(f"got {value:g}; expected a removed fraction in {'[' if zero else '('}0, 1).{hint}")


def _backend(value: str) -> str:
    if not re.fullmatch(r"loky|ray|dask://[^\s/@]+:\d+", value):
        raise ValueError(f"got {value!r}; expected loky (processes here), dask://HOST:PORT or ray")
    return value


Backend = Annotated[str, AfterValidator(_backend)]  # of joblib


def check_device_map(value: Any) -> Any:
    """``value``, a name of ``Spreading`` or a mapping of modules to places; raises ValueError otherwise."""
    if value is None or value in get_args(Spreading):
        return value
    places = r"cpu|disk|mps|\d+|cuda(:\d+)?"
    if isinstance(value, dict) and value and all(isinstance(name, str) for name in value):
        if "" in value and len(value) > 1:
            raise ValueError("got '' beside other names; it names the whole model. Name every module, or '' alone")
        wrong = [place for place in value.values() if not re.fullmatch(places, str(place))]
        if not wrong:
            return {name: int(place) if str(place).isdigit() else place for name, place in value.items()}
        value = wrong[0]
    raise ValueError(
        f"got {value!r}; expected {', '.join(get_args(Spreading))}, or a mapping of all modules' names to 0, cuda:1,"
        " cpu or disk"
    )


Spreading = Literal["auto", "balanced", "balanced_low_0", "sequential"]  # of accelerate: by what fits where
DeviceMap = Spreading | dict[str, int | str]
