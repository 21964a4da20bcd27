"""Tiny models, toy tasks and a silent workshop, all in memory; no network.

A model's LayerNorms and biases are random: unit gains and zero biases would hide an indexing error.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import contextlib
import csv
import gc
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)

from autodisc import api
from autodisc.config import StudyConfig, make_config
from autodisc.distillation.schedule import Workshop
from autodisc.models.checkpoints import save_model
from autodisc.models.layouts import LAYOUTS, base_shape
from autodisc.models.layouts_autodisc import Head
from autodisc.models.modeling_autodisc import plain_class
from autodisc.pruning.candidates import Ranking
from autodisc.runtime import Runtime
from autodisc.tasks.batches import batches
from autodisc.tasks.data import Split, Task
from autodisc.tasks.metrics import METRICS

VOCABULARY = 60
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", *(f"w{i}" for i in range(VOCABULARY - 6))]
BERT_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 140,  # MACs are counted on 128 tokens
    "pad_token_id": 0,
}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 3}
# Two queries of 4 share a key: a unit has 8 columns, as a head of the others.
LLAMA_LIKE = {**BERT_LIKE, **SPECIAL, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
T5_LIKE = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_heads": 4,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
DEBERTA = {
    **BERT_LIKE,
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "bert": lambda layers, **kw: BertConfig(**BERT_LIKE, num_hidden_layers=layers, **kw),
    "roberta": lambda layers, **kw: RobertaConfig(**BERT_LIKE, num_hidden_layers=layers, **kw),
    "electra": lambda layers, **kw: ElectraConfig(**BERT_LIKE, num_hidden_layers=layers, embedding_size=16, **kw),
    "distilbert": lambda layers, **kw: DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_heads=4,
        hidden_dim=32,
        n_layers=layers,
        max_position_embeddings=140,
        pad_token_id=0,
        **kw,
    ),
    "xlm-roberta": lambda layers, **kw: XLMRobertaConfig(**BERT_LIKE, num_hidden_layers=layers, **kw),
    "camembert": lambda layers, **kw: CamembertConfig(**BERT_LIKE, num_hidden_layers=layers, **kw),
    "deberta-v2": lambda layers, **kw: DebertaV2Config(**DEBERTA, num_hidden_layers=layers, share_att_key=True, **kw),
    "deberta-v2, own keys": lambda layers, **kw: DebertaV2Config(**DEBERTA, num_hidden_layers=layers, **kw),
    "mpnet": lambda layers, **kw: MPNetConfig(**BERT_LIKE, num_hidden_layers=layers, **kw),
    "modernbert": lambda layers, **kw: ModernBertConfig(
        **BERT_LIKE,
        **SPECIAL,
        cls_token_id=2,
        sep_token_id=3,
        num_hidden_layers=layers,
        global_attn_every_n_layers=2,
        local_attention=4,
        **kw,
    ),
    "t5": lambda layers, **kw: T5Config(**T5_LIKE, num_layers=layers, feed_forward_proj="gated-gelu", **kw),
    "t5, relu": lambda layers, **kw: T5Config(**T5_LIKE, num_layers=layers, **kw),
    "gpt2": lambda layers, **kw: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_inner=32,
        n_positions=140,
        pad_token_id=0,
        **SPECIAL,
        **kw,
    ),
    "llama": lambda layers, **kw: LlamaConfig(**LLAMA_LIKE, num_hidden_layers=layers, tie_word_embeddings=True, **kw),
    "mistral": lambda layers, **kw: MistralConfig(**LLAMA_LIKE, num_hidden_layers=layers, sliding_window=6, **kw),
    "qwen2": lambda layers, **kw: Qwen2Config(
        **{name: value for name, value in LLAMA_LIKE.items() if name != "head_dim"}, num_hidden_layers=layers, **kw
    ),
    "qwen3": lambda layers, **kw: Qwen3Config(**LLAMA_LIKE, num_hidden_layers=layers, **kw),
    "gemma": lambda layers, **kw: GemmaConfig(**LLAMA_LIKE, num_hidden_layers=layers, **kw),
    "vit": lambda layers, **kw: ViTConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=32,
        num_hidden_layers=layers,
        image_size=8,
        patch_size=2,
        **kw,
    ),
}


@pytest.fixture(scope="session", autouse=True)
def _begin_with_one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """After a test that opened more: the order of sums depends on it."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """What is imported by now is not looked through again by each full collection: a tenth of a run."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    """``tiny(family, layers=3, num_labels=2, attention="sdpa", head=None, seed=0)``: 4 heads of 8 columns, 32 neurons
    a layer. Families without sdpa are eager."""

    def make(
        family: str = "bert",
        *,
        layers: int = 3,
        num_labels: int = 2,
        attention: str = "sdpa",
        head: Head | None = None,
        seed: int = 0,
    ) -> PreTrainedModel:
        config = FAMILIES[family](layers, num_labels=num_labels)
        kind = plain_class(config.model_type, head or LAYOUTS[config.model_type].heads[0])
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = kind._from_config(config, attn_implementation=attention if kind._supports_sdpa else "eager")
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
                else:
                    is_norm = "norm" in name.lower() or "ln_" in name
                    parameter.normal_(float(is_norm and name.endswith("weight")), 0.3)
        return model.eval()

    return make


@pytest.fixture
def modules_elsewhere(tmp_path_factory, monkeypatch) -> None:
    """transformers copies a folder's code into a cache of its own: a new one."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    mine = [path for path in sys.path if not Path(path, "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", mine)
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(params=list(FAMILIES))
def any_family(request) -> str:
    return request.param


@pytest.fixture(params=[family for family in FAMILIES if family != "vit"])
def text_family(request) -> str:
    return request.param


@pytest.fixture(params=["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma"])
def decoder(request) -> str:
    return request.param


@pytest.fixture(params=["right", "left"])
def batch(request) -> dict[str, torch.Tensor]:
    """(4, 9) tokens, padded on either side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (4, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 7, 1])[:, None]
    if request.param == "left":
        mask = mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.fixture
def inputs_of(batch) -> Callable[[PreTrainedModel], dict[str, torch.Tensor]]:
    """What a model reads: ``batch``, or images."""
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return lambda model: {"pixel_values": pixels} if model.main_input_name == "pixel_values" else batch


@pytest.fixture(scope="session")
def random_ranking() -> Callable[..., Ranking]:
    """A removal order drawn by a seed."""

    def make(model: PreTrainedModel, seed: int = 0) -> Ranking:
        L, H, N = base_shape(model.config)
        generator = random.Random(seed)
        heads = [(layer, i) for layer in range(L) for i in range(H)]
        neurons = [(layer, i) for layer in range(L) for i in range(N)]
        generator.shuffle(heads)
        generator.shuffle(neurons)
        return Ranking(tuple(heads), tuple(neurons), L)

    return make


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    """Sentences of random words with "good" or "bad" among them, which is the label (or 0.0 and 1.0)."""

    def make(rows: int, *, seed: int = 0, regression: bool = False, name: str = "train") -> Split:
        generator = np.random.default_rng(seed)
        lengths = generator.integers(4, 13, rows)
        labels = generator.integers(0, 2, rows)
        tokens = []
        for length, label in zip(lengths, labels, strict=True):
            words = generator.integers(6, VOCABULARY, length)
            words[0] = 2
            words[generator.integers(1, length)] = 5 - label
            tokens.append(words.tolist())
        features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
        return Split(
            name,
            datasets.Dataset.from_dict({"input_ids": tokens}, features=features),
            lengths.astype(np.int64),
            labels.astype(np.float32 if regression else np.int64),
            f"toy-{rows}-{seed}-{regression}-{name}",
        )

    return make


@pytest.fixture(scope="session")
def make_task(make_split: Callable[..., Split]) -> Callable[..., Task]:
    def make(train: int = 32, validation: int = 24, *, regression: bool = False) -> Task:
        train_split, validation_split, final = (
            make_split(rows, seed=seed, regression=regression, name=name)
            for rows, seed, name in ((train, 1, "train"), (validation, 2, "validation"), (16, 3, "test"))
        )
        metric = METRICS["pearson" if regression else "accuracy"]
        names = None if regression else ("bad", "good")
        number = 1 if regression else 2
        return Task("toy", metric.kind, metric, names, number, train_split, validation_split, final, "test", {}, 0)

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[..., np.ndarray]:
    """The logits (N, V) of a model on a split of sentences, in its order, a row at a time."""

    def call(model: PreTrainedModel, split: Split) -> np.ndarray:
        passed = batches(split, batch_size=1, pad_token_id=0, generator=None)
        with torch.inference_mode():
            found = {int(batch.rows[0]): model.eval()(**batch.inputs).logits[0].numpy() for batch in passed}
        return np.stack([found[row] for row in range(len(split))])

    return call


@pytest.fixture(scope="session")
def make_runtime() -> Callable[..., Runtime]:
    return lambda seed=0, **others: Runtime(torch.device("cpu"), "fp32", 1, seed, **others)


@pytest.fixture
def make_workshop(tmp_path: Path, make_task, make_runtime) -> Callable[..., Workshop]:
    """``make_workshop(task, seed=0, progress=...)``, caching under ``tmp_path``; a new ledger each."""

    def make(task: Task | None = None, *, seed: int = 0, max_gib: float = 1.0, **others: Any) -> Workshop:
        runtime = others.pop("runtime", None) or make_runtime(seed)
        return Workshop(task or make_task(), runtime, tmp_path / "cache", max_gib, **others)

    return make


class Listener:
    """A progress that remembers what it was told; after ``after`` advances in a stage it raises KeyboardInterrupt."""

    def __init__(self, interrupt_in: str | None = None, after: int = 0) -> None:
        self.said: list[str] = []
        self.stages: list[tuple[str, int | None]] = []
        self.interrupt_in, self.left = interrupt_in, after

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Any]:
        self.stages.append((name, total))
        yield _ListenerBar(self, name)

    def say(self, text: str) -> None:
        self.said.append(text)

    def spending(self, cost: Callable[[], Any]) -> None:
        self.cost = cost


class _ListenerBar:
    def __init__(self, listener: Listener, name: str) -> None:
        self.listener, self.name = listener, name

    def advance(self, steps: int = 1) -> None:
        if self.name == self.listener.interrupt_in and steps:
            self.listener.left -= steps
            if self.listener.left <= 0:
                raise KeyboardInterrupt

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="session")
def make_listener() -> Callable[..., Listener]:
    return Listener


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )


SETTINGS: dict[str, Any] = {
    "search": {
        "sparsities": [0.25, 0.5, 0.75],
        "importance": {"examples": 32},
        "recovery": {"steps": 12, "lr": 3e-3},
    },
    "distillation": {"epochs": 1, "student_epochs": 1, "batch_size": 32, "lr": 3e-3},
    "runtime": {"threads": 1, "precision": "fp32"},
}


@pytest.fixture(scope="session")
def furnished(tmp_path_factory, tiny, word_tokenizer) -> Path:
    """data/ (the label is whether "good" or "bad" is said), encoder/, teacher/, which has learnt it, and a cache/."""
    home = tmp_path_factory.mktemp("furnished")
    generator = random.Random(1)
    (home / "data").mkdir()
    for split, count in (("train", 160), ("validation", 80), ("test", 60)):
        with (home / "data" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence", "label"])
            for i in range(count):
                words = [f"w{generator.randrange(50)}" for _ in range(generator.randrange(3, 8))]
                words[generator.randrange(len(words))] = "good" if i % 2 else "bad"
                rows.writerow([" ".join(words), i % 2])
    save_model(tiny(layers=2), word_tokenizer, home / "encoder")
    values = {
        "task": {"name": "mine", "metric": "accuracy", "data": str(home / "data")},
        "teacher": {"model": str(home / "encoder"), "finetune": {"epochs": 6, "batch_size": 16, "lr": 3e-3}},
        "cache": {"dir": str(home / "cache")},
        **SETTINGS,
    }
    assert api.finetune(make_config(values), home / "teacher")["metric"] > 0.9
    return home


@pytest.fixture(scope="session")
def config(furnished) -> Callable[..., StudyConfig]:
    """The settings of a study on ``furnished``; sections are merged: ``config(search={"lam": 0.5})``."""

    def call(**changes: Any) -> StudyConfig:
        values: dict[str, Any] = {
            "task": {"name": "mine", "metric": "accuracy", "data": str(furnished / "data")},
            "teacher": {"model": str(furnished / "teacher")},
            "cache": {"dir": str(furnished / "cache")},
            **SETTINGS,
        }
        for key, change in changes.items():
            values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
        return make_config(values)

    return call


@pytest.fixture(scope="session")
def searched(config, tmp_path_factory) -> Path:
    """The folder of a finished search, not to be changed."""
    out = tmp_path_factory.mktemp("searched") / "study"
    assert api.search(config(), out)["best"] is not None
    return out


@pytest.fixture(scope="session")
def same_weights() -> Callable[[PreTrainedModel, PreTrainedModel], bool]:
    """Bit for bit."""

    def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
        left, right = a.state_dict(), b.state_dict()
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    return same
