"""autodisc: distil a fine-tuned transformer through the right teacher assistant, found in one cheap study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodisc.api import baseline, distill, evaluate, finetune, load, run, search
    from autodisc.config import make_config, read_config

__version__ = "0.1.0"
__all__ = ["baseline", "distill", "evaluate", "finetune", "load", "make_config", "read_config", "run", "search"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import autodisc`` costs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'autodisc' has no attribute '{name}'")
    if name in ("make_config", "read_config"):
        from autodisc import config

        return getattr(config, name)
    from autodisc import api

    return getattr(api, name)
