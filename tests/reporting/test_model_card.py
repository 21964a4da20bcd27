from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from autodisc.reporting.model_card import changed_settings, read_origin, render_card, write_card

LINES = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def values(make) -> dict[str, Any]:
    record = make.record("distill", "autodisc", {}, make.cost(training=(61.0, 2e12)))
    figures = {"split": "test", "standard_error": 0.01, "floor": 0.73, "metrics": {"accuracy": 0.79, "f1": 0.83}}
    sizes = {"params": 1_000_000, "total_params": 13_000_000, "macs": 140_000_000}
    models = {
        "teacher": {
            "metric": 0.834,
            "standard_error": 0.009,
            "validation_metric": 0.838,
            **sizes,
            "params": 10_000_000,
        },
        "assistant": {"metric": 0.82, "sparsity": 0.7, "validation_metric": 0.83, **figures, **sizes},
        "student": {"metric": 0.81, "sparsity": 0.9, "validation_metric": 0.8, **figures, **sizes},
    }
    return {**record, "role": "student", "has_code": True, "origin_folder": None, "models": models}


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_was_measured_and_how_sure(values):
    card = render_card(values)
    assert "| accuracy_f1 on test | 0.834 ± 0.018 | 0.820 ± 0.020 | 0.810 ± 0.020 |" in card
    assert "1.96 standard errors" in card
    assert "| floor on test | 0.730 | 0.730 | 0.730 |" in card
    assert "| encoder parameters | 10 M | 1 M | 1 M |" in card
    assert "10.0 % of its encoder's parameters are left" in card
    assert "teacher assistant of sparsity 0.7" in card
    assert "fingerprint aa11" in card
    assert "latency" not in card
    assert "cannot be told from its floor" not in card


def test_a_model_at_its_floor_is_said_to_be(values):
    values["models"]["student"] |= {"metric": 0.74}
    assert "cannot be told from its floor" in render_card(values)


def test_latencies_are_rows_where_they_were_measured(values):
    values["latency"] = [{"setting": "fp32, batch 1, length 16", "teacher": 8.123, "student": 1.5}]
    assert "| latency, fp32, batch 1, length 16 | 8.12 ms | – | 1.50 ms |" in render_card(values)


def test_a_hub_reads_the_front_matter(values, tmp_path):
    card = ModelCard.load(write_card(tmp_path, values))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert "autodisc" in card.data.tags
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"accuracy": 0.79, "f1": 0.83}
    assert card.data.eval_results[0].dataset_split == "test"
    values["models"]["student"].pop("metrics")
    assert "model-index" not in front(render_card(values))


def test_what_the_teacher_states_is_inherited_and_nothing_is_guessed(values, tmp_path):
    bare = front(render_card(values))
    assert not {"license", "language", "base_model"} & bare.keys()
    assert "states none" in render_card(values)
    (tmp_path / "README.md").write_text(
        "---\nlicense: cc-by-4.0\nlanguage: [en]\nbase_model: org/encoder\n---\n# Teacher"
    )
    stated = front(render_card({**values, "origin_folder": tmp_path}))
    assert (stated["license"], stated["language"], stated["base_model"]) == ("cc-by-4.0", ["en"], "org/encoder")
    values["teacher"]["model"] = "org/teacher"
    assert front(render_card(values))["base_model"] == "org/teacher"


def test_a_licence_that_was_not_read_is_not_said_to_be_missing(values):
    values["teacher"]["model"] = "org/teacher"
    card = render_card(values)
    assert "That of org/teacher, whose page on the hub states it; it was not read" in card
    assert "states none" not in card


def test_a_student_of_another_architecture_is_no_copy_of_its_teacher(values, tmp_path):
    values["config"]["student_model"] = "/home/me/narrow"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    card = render_card({**values, "has_code": False, "origin_folder": tmp_path})
    assert "It was narrow, and was distilled" in card
    assert "mit, as the folder of narrow states it" in card
    assert 'from_pretrained(".")\n```' in card
    for said_of_cuts in ("/home", "pruned", "copy of the teacher", "trust_remote_code", "modeling_autodisc"):
        assert said_of_cuts not in card
    for others in ({"role": "assistant"}, {"kind": "export"}):  # these are cut out of the teacher
        assert "pruned" in front(render_card({**values, **others}))["tags"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"LICENSE": "\n   Apache License\n  Version 2.0"}, {"license": "apache-2.0"}),
        ({"LICENSE.txt": "MIT License\n\nCopyright"}, {"license": "mit"}),
        ({"LICENSE": "Our own terms | of <use>\n"}, {"licence_file": "Our own terms | of <use>"}),
        ({"config.json": '{"license": "mit"}'}, {"license": "mit"}),
        ({"README.md": "---\nlicense: [unclosed\n---\n", "config.json": "not JSON"}, {}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n"},
            {"license": "other", "license_name": "ours"},
        ),
        ({"README.md": "no front matter\n---\nlicense: mit\n---\n"}, {}),
    ],
)
def test_a_licence_is_read_where_teachers_state_it(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_origin(tmp_path) == expected


@pytest.mark.parametrize("name", ["a: b", "---", "# | `x` <script> [a](b) *b* _c_", "- 'q' \"r\" {z}", "yes", "é"])
def test_no_name_breaks_yaml_or_markdown(values, name):
    values["task"]["name"] = values["config"]["task"]["name"] = name
    values["models"]["student"]["split"] = name
    card = render_card(values)
    assert card.startswith("---\n")
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    data = yaml.safe_load(head)
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert "<script>" not in body
    assert "[a](b)" not in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    borders = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(borders) == {5, 3}  # the columns of the two tables, and no more


def test_paths_and_addresses_of_the_makers_machine_stay_out(values):
    values["config"]["search"]["storage"] = "postgresql://me:secret@host/db"
    values["config"]["cache"]["dir"] = "/home/me/cache"
    values["config"]["distillation"]["epochs"] = 7
    card = render_card(values)
    assert "| distillation.epochs | 7 |" in card
    for hidden in ("secret", "/home", "/models", "/data"):
        assert hidden not in card
    assert changed_settings(values["config"]) == [("distillation.epochs", "7")]


def test_a_card_replaces_the_one_before(values, tmp_path):
    (tmp_path / "README.md").write_text("old")
    assert write_card(tmp_path, values) == tmp_path / "README.md"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert "old" not in (tmp_path / "README.md").read_text().split()


def test_the_lines_that_load_a_model_do_so(
    values, tmp_path, tiny, random_ranking, word_tokenizer, monkeypatch, modules_elsewhere
):
    import torch

    from autodisc.models.checkpoints import save_model
    from autodisc.pruning.candidates import candidate
    from autodisc.pruning.supernet import Supernet

    teacher = tiny("bert")
    ranking = random_ranking(teacher)
    student = Supernet(teacher, ranking).extract(candidate(ranking, 0.5)).eval()
    folder = tmp_path / "student"
    for _ in range(2):  # a card is no obstacle to a model that takes the place of another
        save_model(student, word_tokenizer, folder)
        write_card(folder, values)
    monkeypatch.chdir(folder)
    blocks = LINES.findall((folder / "README.md").read_text())
    assert [len(block.splitlines()) for block in blocks] == [3, 2]
    inputs = word_tokenizer(["good w1 w2", "bad"], padding=True, return_tensors="pt")
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        with torch.inference_mode():
            assert torch.equal(names["model"](**inputs).logits, student(**inputs).logits)
    assert Path("modeling_autodisc.py").is_file()


def test_the_class_that_f1_is_of_is_named(values):
    assert "F1 is of" not in render_card(values)
    assert "F1 is of the class ham." in render_card(
        {**values, "task": {**values["task"], "label_names": ["spam", "ham"]}}
    )
    other = {**values["task"], "label_names": ["spam", "ham"], "metric": "accuracy"}
    assert "F1 is of" not in render_card({**values, "task": other})


def test_figures_on_what_the_teacher_may_have_seen_are_said_to_be(values):
    said = "may have been trained on these texts"
    assert said not in render_card(values)
    assert said in render_card({**values, "task": {**values["task"], "final_is_doubtful": True}})
