"""A supernet whose layers are spread over processes (torch's FSDP2, gloo on a CPU) has the gradients of a whole one.

FSDP gathers a layer's weights when the layer is called, so candidates slice whole weights; and it takes ``grad`` of
these, where slices have added up theirs, to spread it again. A whole training: tests/services/test_sharding.py.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from autodisc.models.layouts import blocks, embeddings
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.supernet import Supernet
from autodisc.pruning.surgery import own_memory

pytestmark = pytest.mark.timeout(900)  # processes, beside those of other tests
PROCESSES = 2
Case = tuple[object, Ranking, tuple[Candidate, ...], bool]


def supernet(model, ranking: Ranking, checkpointing: bool) -> Supernet:
    net = Supernet(model, ranking, checkpointing=checkpointing)
    for module in embeddings(net.model):
        module.requires_grad_(False)
    own_memory(net.model.parameters())
    return net


def spread(net: Supernet, mesh) -> None:
    for block in blocks(net.model):
        fully_shard(block.layer, mesh=mesh)
    fully_shard(net.model, mesh=mesh)
    for module in net.model.modules():
        if isinstance(module, FSDPModule):  # rows are shared out: their gradients add up
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply on the way
            module.set_gradient_divide_factor(1.0)


def add_gradients(net: Supernet, chain: tuple[Candidate, ...], ids: torch.Tensor) -> None:
    for candidate in chain:
        with net.active(candidate) as model:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits.square().sum().backward()


def compare(rank: int, cases: list[Case], store: str) -> None:
    """In each process: of its own rows, spread out; and of all rows, whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    ids = torch.randint(1, 60, (4, 8), generator=torch.Generator().manual_seed(1))
    for model, ranking, chain, checkpointing in cases:
        whole, net = (supernet(model, ranking, checkpointing) for _ in range(2))
        spread(net, mesh)
        add_gradients(whole, chain, ids)
        add_gradients(net, chain, ids.chunk(PROCESSES)[rank])
        held = sum(parameter.to_local().numel() for parameter in net.model.parameters())
        assert held < 0.6 * sum(parameter.numel() for parameter in whole.model.parameters())
        for (name, expected), found in zip(whole.model.named_parameters(), net.model.parameters(), strict=True):
            assert (found.grad is None) == (expected.grad is None), name
            if expected.grad is not None:
                scale = float(expected.grad.abs().max())
                torch.testing.assert_close(
                    found.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4 * scale + 1e-6, msg=name
                )
    dist.barrier()  # who leaves while the other still talks may abort it
    dist.destroy_process_group()


def test_layers_spread_over_two_processes_have_the_gradients_of_whole_ones(tiny, random_ranking, tmp_path):
    chain = (
        Candidate(0.0, (4, 4, 4), (32, 32, 32)),
        Candidate(0.5, (3, 1, 2), (16, 8, 24)),
        Candidate(0.8, (1, 0, 1), (8, 8, 0)),
    )
    cases = []
    for family in ("bert", "llama"):
        model = tiny(family)
        cases += [(model, random_ranking(model), chain, checkpointing) for checkpointing in (False, True)]
    mp.spawn(compare, (cases, str(tmp_path / "store")), nprocs=PROCESSES)
