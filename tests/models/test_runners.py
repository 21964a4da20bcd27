"""Ways to run a model, where there is one."""

from __future__ import annotations

import pytest
import torch

from autodisc.models.runners import Absent, runners

IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.mark.parametrize(("family", "head"), [("llama", "sequence"), ("modernbert", "sequence"), ("bert", "token")])
def test_a_model_whose_layers_are_not_written_out_runs_eagerly(tiny, make_runtime, tmp_path, family, head):
    model = tiny(family, head=head)
    with pytest.raises(Absent, match=f"student: a {family} with a {head} head has no layers written out; eager"):
        runners("written", {"student": model}, [IDS], make_runtime(), tmp_path)
    run = runners("eager", {"student": model}, [IDS], make_runtime(), tmp_path)["student"]
    with torch.no_grad():
        assert torch.equal(run(IDS).logits, model(**IDS).logits)
        assert getattr(run(IDS), "past_key_values", None) is None


def test_standard_layers_are_written_out(tiny, make_runtime, tmp_path):
    for family in ("bert", "camembert", "xlm-roberta"):
        model = tiny(family)
        run = runners("written", {"student": model}, [IDS], make_runtime(), tmp_path)["student"]
        with torch.no_grad():
            torch.testing.assert_close(run(IDS), model(**IDS).logits)
