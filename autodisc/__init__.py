"""autodisc: distil a fine-tuned transformer through the right teacher assistant, found in one cheap study.

``autodisc.load(path)`` opens a model that autodisc saved; ``autodisc.api`` holds what the commands do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autodisc.models.checkpoints import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``load``, imported when it is asked for: ``import autodisc`` costs no torch."""
    if name == "load":
        from autodisc.models.checkpoints import load

        return load
    raise AttributeError(f"module 'autodisc' has no attribute '{name}'")
