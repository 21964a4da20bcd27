from __future__ import annotations

import numpy as np
import pytest
import torch

from autodisc.costs import Ledger, flop_counter
from autodisc.models.inference import count_forward, predict
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import Supernet, extract
from autodisc.tasks.batches import batches

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", STANDARD)
def test_one_counted_row_gives_the_flops_of_every_shape(tiny, random_ranking, family, attention):
    model = tiny(family, attention=attention).eval()
    supernet = Supernet(model, random_ranking(model))
    ids = torch.randint(4, 60, (5, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 6:] = 0

    def counted(active, B, T):
        with torch.inference_mode(), flop_counter() as counter:
            active(input_ids=ids[:B, :T], attention_mask=mask[:B, :T])
        return counter.get_total_flops()

    with supernet.active(UNEVEN) as sliced:
        for active in (model, sliced, extract(model, random_ranking(model), UNEVEN)):
            found = count_forward(active, {"input_ids": ids[:1, :7], "attention_mask": mask[:1, :7]})
            for B, T in ((1, 7), (1, 40), (5, 9), (4, 24)):
                assert found.of(B, T) == counted(active, B, T)


def test_what_a_prediction_books_is_what_all_its_batches_count(tiny, make_task, make_runtime):
    model, task, ledger = tiny().eval(), make_task(validation=150), Ledger()
    with ledger.stage("evaluation"):
        predict(model, task.validation, task=task, runtime=make_runtime(), ledger=ledger)
    flops = tokens = 0
    for batch in batches(task.validation, batch_size=64, pad_token_id=0, generator=None):
        with torch.inference_mode(), flop_counter() as counter:
            model(**batch.inputs)
        flops, tokens = flops + counter.get_total_flops(), tokens + batch.padded_tokens
    cost = ledger.stages["evaluation"]
    assert (cost.flops, cost.tokens) == (flops, tokens)


def test_a_batch_that_memory_is_too_short_for_is_run_in_halves(tiny, make_task, make_runtime):
    model, task = tiny().eval(), make_task(validation=150)
    whole, ledger, short = Ledger(), Ledger(), []
    settings = {"task": task, "runtime": make_runtime()}
    expected = predict(model, task.validation, ledger=whole, **settings)

    def refuse(module, arguments, named):
        if len(named["input_ids"]) > 20:
            short.append(len(named["input_ids"]))
            raise MemoryError

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = predict(model, task.validation, ledger=ledger, **settings)
    handle.remove()
    assert short
    assert np.allclose(found, expected, atol=1e-5)
    assert ledger.total.tokens == whole.total.tokens
