"""Nothing that a file can make us run, nowhere that a name can lead us, nothing secret that we write down."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import autodisc
from autodisc import api
from autodisc.cli import main
from autodisc.config import make_config, read_yaml
from autodisc.errors import ConfigError, ModelError

ROOT = Path(autodisc.__file__).parent
PASSWORD = "swordfish-4711"
# Functions that run what they read, by the last two parts of their name, and the modules that hold nothing else.
RUN_WHAT_THEY_READ = {"torch.load", "joblib.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "hub.load"}
MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def calls() -> list[tuple[str, ast.Call, str]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node, ast.unparse(node.func)))
    return found


CALLS = calls()


def test_no_pickle_is_ever_loaded():
    assert len(CALLS) > 2000
    runs = [place for place, _, name in CALLS if ".".join(name.split(".")[-2:]) in RUN_WHAT_THEY_READ]
    runs += [place for place, _, name in CALLS if name in ("eval", "exec")]
    assert not runs
    imported = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [(path.name, name) for name in names if name.split(".")[0] in MODULES]
    assert not imported


def test_arrays_are_read_without_pickle_and_code_of_others_is_not_trusted():
    keywords = {(kw.arg, ast.unparse(kw.value)) for _, call, _ in CALLS for kw in call.keywords}
    assert ("allow_pickle", "True") not in keywords
    assert ("trust_remote_code", "True") not in keywords
    assert ("weights_only", "False") not in keywords
    opened = [(place, call) for place, call, name in CALLS if name.endswith(".from_pretrained") and "Auto" in name]
    assert len(opened) >= 2
    unsafe = [place for place, call in opened if "**SAFE" not in ast.unparse(call)]
    assert not unsafe


def test_a_teacher_that_is_a_pickle_is_refused_and_not_opened(furnished, tmp_path, config):
    teacher = tmp_path / "teacher"
    shutil.copytree(furnished / "teacher", teacher)
    (teacher / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weights": Trap()}, teacher / "pytorch_model.bin")
    with pytest.raises(ModelError, match="teacher"):
        api.search(config(teacher={"model": str(teacher)}), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_folder_s_own_code_is_not_run(furnished, tmp_path, config):
    teacher = tmp_path / "teacher"
    shutil.copytree(furnished / "teacher", teacher)
    values = json.loads((teacher / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": "trap.Trap", "AutoModelForSequenceClassification": "trap.Trap"}
    values["model_type"] = "trap"
    (teacher / "config.json").write_text(json.dumps(values))
    (teacher / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    with pytest.raises(ModelError, match="teacher"):
        api.search(config(teacher={"model": str(teacher)}), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "study.yaml").write_text("task: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "", "/etc", "a\\b", "a\nb", "a\x00b"])
def test_a_name_that_could_lead_out_of_a_folder_is_refused_in_one_line(name):
    values = {"task": {"name": "mine", "metric": "accuracy"}, "teacher": {"model": "x"}}
    for wrong in ({**values, "name": name}, {**values, "task": {"name": name, "metric": "accuracy"}}):
        with pytest.raises(ConfigError, match="name: got") as refused:
            make_config(wrong)
        assert "\n" not in str(refused.value)


def test_a_password_in_a_storage_s_url_is_in_no_file_and_in_no_message(config, tmp_path, capsys):
    # SQLite ignores what it does not know of a file's URI: a database that answers, with a secret in its URL.
    url = f"sqlite:///file:{tmp_path}/study.db?mode=rwc&uri=true&password={PASSWORD}"
    out = tmp_path / "out"
    settings = config(search={"storage": url, "recovery": {"steps": 2}})
    found = api.search(settings, out)
    assert PASSWORD not in json.dumps(found)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    main(["report", str(out), "--out", str(out / "report.html")])
    # Each of these fails, and says so.
    wrong = [f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x", f"nosql://ann:{PASSWORD}@x", f"postgres:/ann:{PASSWORD}@x"]
    for bad in wrong:
        line = ["search", "--config", str(tmp_path / "study.yaml"), "--storage", bad, "--out", str(tmp_path / "other")]
        assert main(line) == 2
        if "127.0.0.1" not in bad:  # a worker would wait for that one for a minute
            assert main(["worker", "--study", "x", "--storage", bad, "--out", str(out)]) == 2
        assert main(["doctor", "--storage", bad]) == 1
    said = "".join(capsys.readouterr())
    assert "cannot be opened" in said
    assert PASSWORD not in said
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not kept


def test_servers_listen_on_the_loopback_unless_told_otherwise():
    import inspect

    from autodisc.commands.results import dashboard
    from autodisc.reporting.dashboard import serve

    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    assert inspect.signature(dashboard).parameters["host"].default == "127.0.0.1"
    assert not [place for place, call, _ in CALLS if "0.0.0.0" in ast.unparse(call)]


def test_every_help_is_there_without_the_heavy_libraries():
    heavy = ["torch", "transformers", "optuna", "datasets", "plotly", "pandas", "sklearn", "scipy", "numpy", "ray"]
    code = (
        "import sys; from autodisc.cli import app, main\n"
        "import typer\n"
        "names = sorted(typer.main.get_command(app).commands)\n"
        "assert len(names) >= 15, names\n"
        "for name in names:\n"
        "    assert main([name, '--help']) == 0, name\n"
        "assert main(['--help']) == 0\n"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
