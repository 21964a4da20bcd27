"""The model card: README.md in a saved model's folder, for people and (its YAML front matter) for model hubs.

The card says what was measured and what the teacher's own card states: where a licence, a language or a base model is
not known, the front matter has none. Paths and storage addresses of this machine stay out of it. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from autodisc.config import flatten, make_config
from autodisc.reporting import units
from autodisc.reporting.provenance import positive_class
from autodisc.reporting.tables import Table
from autodisc.reporting.texts import markdown_table, md, replace_all

CARD = "README.md"
ROLES = ("teacher", "assistant", "student")
Z = 1.96  # standard errors on either side: 95 % of a normal distribution
VERSIONS = ("autodisc", "revision", "torch", "transformers", "python", "hardware", "device", "precision", "threads")
OF_THIS_MACHINE = ("name", "task.data", "teacher.model", "student_model", "cache", "search.storage")
# What hubs call our metrics, where it is something else.
HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "f1_macro": "f1",
    "entity_f1": "f1",
    "word_accuracy": "accuracy",
}
PIPELINES = {  # what hubs call our kinds
    "classification": "text-classification",
    "regression": "text-classification",
    "tokens": "token-classification",
    "causal-lm": "text-generation",
}
AUTO_CLASSES = {"tokens": "AutoModelForTokenClassification", "causal-lm": "AutoModelForCausalLM"}
# The first words of a LICENSE file.
LICENCES = {"Apache License": "apache-2.0", "MIT License": "mit", "The MIT License": "mit"}
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def write_card(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write README.md into a model's ``folder``, whole or not at all; one that is there is replaced.

    ``values`` is a run record's (``config``, ``task``, ``teacher``, ``environment``, ``seed``, ``cost``, ``kind``) and

    - ``role``: "student" or "assistant", whose folder it is; ``has_code``: whether a file of code opens it;
    - ``origin_folder``: where the own card, config and licence are of what the weights are from (the teacher, or of a
      student of another architecture the model that it was); none on a hub;
    - ``models``: for each of teacher, assistant and student that there is, what is known of ``sparsity``, ``metric``
      with ``standard_error`` and ``metrics`` on the final split, ``validation_metric``, ``floor``, ``params`` (of the
      encoder), ``total_params``, ``macs`` (of 128 tokens);
    - ``latency``, optional: rows of ``setting``, such as "fp32, 1 thread, batch 1, length 16", and ms by role.
    """
    path = folder / CARD
    replace_all({path: render_card(values)})
    return path


def render_card(values: Mapping[str, Any]) -> str:
    origin = read_origin(values.get("origin_folder"))
    task, model = values["task"], values["models"][values["role"]]
    other = _other(values)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[task["kind"]],
        "tags": ["autodisc", *([] if other else ["pruned"]), "distillation"],
        **{key: origin[key] for key in ("license", "license_name", "license_link", "language") if key in origin},
        **_base_model(values, origin),
        **_model_index(values, model),
    }
    return (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000),
            title=title(values),
            role=values["role"],
            task=task,
            model=model,
            teacher=_name(values["teacher"]["model"]),
            other=None if other is None else _name(other),
            origin=_name(origin_of(values)),
            has_code=values["has_code"],
            on_hub=values.get("origin_folder") is None and _is_hub_name(origin_of(values)),
            assistant=values["models"].get("assistant"),
            kind=task["kind"],
            auto_class=AUTO_CLASSES.get(task["kind"], "AutoModelForSequenceClassification"),
            is_cut=values["kind"] == "export",
            license=origin.get("license"),
            licence_file=origin.get("licence_file"),
            max_length=values["config"]["task"]["max_length"],
            figures=markdown_table(_figures(values)),
            made=markdown_table(_made(values)),
            share=_share(values["models"].get("teacher", {}), model),
            at_floor=_at_floor(model),
            positive=positive_class(task),
        )
    )


def _other(values: Mapping[str, Any]) -> str | None:
    """The model of another architecture that a student was; none of one that was cut out of its teacher."""
    other: str | None = values["config"].get("student_model") if values["role"] == "student" else None
    return None if values["kind"] == "export" else other


def origin_of(values: Mapping[str, Any]) -> str:
    """The name of the model whose weights these were: the teacher, or what a student of another architecture was."""
    return _other(values) or str(values["teacher"]["model"])


def title(values: Mapping[str, Any]) -> str:
    sparsity = units.point_of(values["models"][values["role"]])
    return f"{values['task']['name']} {values['role']}, sparsity {sparsity}"


def read_origin(folder: Path | None) -> dict[str, Any]:
    """What a model's folder states of its licence, language and base model; nothing is guessed."""
    if folder is None or not folder.is_dir():
        return {}
    stated = {**_json(folder / "config.json"), **_front_matter(folder / CARD)}
    found: dict[str, Any] = {}
    for key in ("license", "license_name", "language", "base_model"):
        if _is_name(stated.get(key)):
            found[key] = stated[key]
    link = stated.get("license_link")
    if isinstance(link, str) and link.startswith("https://"):  # a file's name would lead nowhere from here
        found["license_link"] = link
    files = sorted(path for path in folder.glob("LICENSE*") if path.is_file())
    if "license" not in found and files:
        first = next((line.strip() for line in _read(files[0]).splitlines() if line.strip()), "")
        known = next((licence for words, licence in LICENCES.items() if first.startswith(words)), None)
        found |= {"license": known} if known else {"licence_file": first[:80] or files[0].name}
    return found


def _base_model(values: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The origin where it has a hub's name, else what its own card says that it was made of."""
    name = origin_of(values)
    if values.get("origin_folder") is None and _is_hub_name(name):
        return {"base_model": name}
    return {"base_model": origin["base_model"]} if "base_model" in origin else {}


def _model_index(values: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A hub's results table: of the final split alone, since the model was chosen by validation."""
    if not model.get("metrics"):
        return {}
    name, pipeline = str(values["task"]["name"]), PIPELINES[values["task"]["kind"]]
    metrics = [
        {"type": HUB_METRICS.get(metric, metric), "name": metric, "value": round(float(value), 6)}
        for metric, value in model["metrics"].items()
    ]
    result = {
        "task": {"type": pipeline, "name": pipeline.replace("-", " ").title()},
        "dataset": {"type": name, "name": name, "split": model["split"]},
        "metrics": metrics,
    }
    return {"model-index": [{"name": title(values), "results": [result]}]}


def _figures(values: Mapping[str, Any]) -> Table:
    models, task = values["models"], values["task"]
    there = [role for role in ROLES if role in models]
    split = models[values["role"]].get("split") or task["final_split"]
    rows = [
        (f"{task['metric']} on {split}", [_interval(models[role]) for role in there]),
        (f"{task['metric']} on validation", [units.fixed(models[role].get("validation_metric")) for role in there]),
        (f"floor on {split}", [units.fixed(models[values["role"]].get("floor"))] * len(there)),
        ("sparsity", ["0" if role == "teacher" else units.point_of(models[role]) for role in there]),
        ("encoder parameters", [units.scaled(models[role].get("params")) for role in there]),
        ("parameters with embeddings and head", [units.scaled(models[role].get("total_params")) for role in there]),
        ("MACs of 128 tokens", [units.scaled(models[role].get("macs")) for role in there]),
    ]
    for timed in values.get("latency", ()):
        cells = [units.NONE if timed.get(role) is None else f"{timed[role]:.2f} ms" for role in there]
        rows.append((f"latency, {timed['setting']}", cells))
    known = [(name, *cells) for name, cells in rows if set(cells) - {units.NONE, "0"}]
    return Table("", ("", *there), tuple(known))


def _interval(model: Mapping[str, Any]) -> str:
    error = model.get("standard_error")
    return units.plus_minus(model.get("metric"), None if error is None else Z * error)


def _share(teacher: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """What is left of the teacher's encoder parameters."""
    if not teacher.get("params") or not model.get("params"):
        return None
    return units.share(model["params"] / teacher["params"])


def _at_floor(model: Mapping[str, Any]) -> bool:
    """Whether the metric cannot be told from the best constant prediction's."""
    if None in (model.get("metric"), model.get("floor"), model.get("standard_error")):
        return False
    return bool(model["metric"] - Z * model["standard_error"] <= model["floor"])


def _made(values: Mapping[str, Any]) -> Table:
    """Everything that another would need to make it again."""
    task, cost = values["task"], values["cost"]
    rows = [
        ("run", str(values["kind"]) + (f" {values['strategy']}" if values.get("strategy") else "")),
        ("teacher fingerprint", str(values["teacher"]["fingerprint"])),
        *((f"{split} data", _data(task, split)) for split in task["fingerprints"]),
        ("seed", str(values["seed"])),
        ("cost of this run", f"{units.duration(cost['seconds'])}, {units.scaled(cost['flops'], 'FLOPs')}"),
        *((name, str(values["environment"][name])) for name in VERSIONS if values["environment"].get(name) is not None),
        *changed_settings(values["config"]),
    ]
    return Table("", ("what", "value"), tuple(rows), words=(0, 1))


def changed_settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that differ from the defaults, but for paths and addresses of this machine."""
    bare = make_config({"task": {"name": config["task"]["name"]}, "teacher": {"model": config["teacher"]["model"]}})
    defaults = flatten(bare.model_dump(mode="json"))
    return [
        (key, json.dumps(value, ensure_ascii=False))
        for key, value in flatten(dict(config)).items()
        if value != defaults.get(key) and not key.startswith(OF_THIS_MACHINE)
    ]


def _data(task: Mapping[str, Any], split: str) -> str:
    examples = task["examples"].get(split)
    count = f"{examples:,} examples, " if examples is not None else ""
    return f"{count}fingerprint {task['fingerprints'][split]}"


def _name(model: str) -> str:
    """A hub's name as it is; of a folder its last part, since the rest is the maker's own affair."""
    return model if _is_hub_name(model) or model.startswith("package:") else Path(model).name


def _is_hub_name(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)) and not Path(model).exists()


def _is_name(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the head of a card; nothing where there is none, or it is not valid."""
    found = _FRONT.match(_read(path))
    try:
        values = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path) or "{}")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autodisc.reporting"),
        autoescape=False,  # Markdown: every name goes through the filter md
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda value: md(str(value))
    return environment
