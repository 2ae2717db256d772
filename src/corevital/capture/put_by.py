"""What is put by inside a forward pass, to be looked at when it has returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from corevital.capture.attention_functions import AttentionFunction

LayerReturn = tuple[nn.Module, Any]
"""A layer and what it returned."""

AttentionReturn = tuple[nn.Module, Tensor, Tensor, tuple[Any, ...], dict[str, Any], Tensor | None]
"""A module, its query, key, further arguments and keywords, and the weights that it returned."""


class PutBy:
    """The part of a run that is asked for between two layers.

    There the caches hold the model's weights: every piece of code, and every line of memory, comes
    from far away. What is done there is next to nothing, and what it needs has slots, where a
    dictionary would be four lines more for each.

    Attributes:
        layers_put_by: what layers returned; ``None`` while each is to be looked at at once.
        attention_put_by: what attention functions were given; ``None`` as above.
        only_layer: the only one that is put by; ``None`` for all.
        known_attention: an interface, what it was asked for, and the answer to that.
    """

    __slots__ = ("attention_put_by", "known_attention", "layers_put_by", "only_layer")

    layers_put_by: list[LayerReturn] | None
    attention_put_by: list[AttentionReturn] | None
    only_layer: nn.Module | None
    known_attention: tuple[Any, tuple[Any, ...], AttentionFunction] | None

    def __init__(self) -> None:
        self.only_layer = None
        self.look_at_once()

    def put_by(self, only_layer: nn.Module | None) -> None:
        """Put by what follows, of all layers or only one."""
        self.layers_put_by, self.attention_put_by = [], []
        self.only_layer = only_layer

    def look_at_once(self) -> None:
        """Put nothing by; let go of what was, and of what is known."""
        self.layers_put_by = self.attention_put_by = self.known_attention = None
