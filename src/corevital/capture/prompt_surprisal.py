"""Surprisal of a prompt's tokens, from the hidden states that its forward pass shows."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from corevital.capture.chunk import bytes_together
from corevital.capture.logits import surprisal

LOGITS_BYTES: Final = 12 * 2**20
_LEAST_VOCABULARY: Final = 1024


@torch.no_grad()
def prompt_surprisal(states: Tensor, head: nn.Module, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Surprisal of every prompt token given those before it.

    Args:
        states: ``[B, P, D]``, the decoder's last hidden states.
        head: the output embedding, ``D -> V``.
        token_ids: ``[B, P]``.

    Returns:
        Surprisal ``[B, P - 1]`` in bits, and the head's logits ``[B, V]`` at the last position.
    """
    if isinstance(head, nn.Linear) and _is_plain_product(head, states):
        return _surprisal_by_vocabulary(states, head.weight, head.bias, token_ids)
    batch, length, _ = states.shape
    vocabulary = getattr(head, "weight", states).shape[0]
    most = max(1, LOGITS_BYTES // (4 * batch * vocabulary))
    # Each part reads all of the head's weights: as few parts as fit, and even ones.
    parts = -(-length // most)
    bits: list[Tensor] = []
    start = 1
    for part in states.tensor_split(parts, dim=1):
        of_part, newest = _surprisal_of_part(
            part, head, token_ids[:, start : start + part.shape[1]]
        )
        bits.append(of_part)
        start += part.shape[1]
    return torch.cat(bits, dim=1), newest


def _is_plain_product(head: nn.Linear, states: Tensor) -> bool:
    """Whether the head's logits are a product with its weights, as nobody changed it."""
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and type(head.weight.data) is Tensor
        and (head.weight.dtype, head.weight.device) == (states.dtype, states.device)
        and not torch.is_autocast_enabled(states.device.type)
    )


def _surprisal_by_vocabulary(
    states: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """``prompt_surprisal``, a part of the vocabulary at a time.

    Each part's logits are summed up before they leave the cache, and the weights are read once.
    """
    batch, length, width = states.shape
    vocabulary = weight.shape[0]
    rows = states.reshape(-1, width)
    predicted = nn.functional.pad(token_ids[:, 1:], (0, 1)).reshape(-1, 1)
    most = bytes_together(states.device) // 4
    rows_together = max(1, min(len(rows), most // _LEAST_VOCABULARY))
    part = max(_LEAST_VOCABULARY, most // rows_together)
    memory = torch.empty(rows_together * part, dtype=states.dtype, device=states.device)
    chosen = torch.zeros(len(rows), 1, dtype=torch.float32, device=states.device)
    newest = torch.empty(batch, vocabulary, dtype=torch.float32, device=states.device)
    sums: list[Tensor] = []
    for first in range(0, vocabulary, part):
        columns = slice(first, min(first + part, vocabulary))
        size = columns.stop - first
        sums_of_part: list[Tensor] = []
        for start in range(0, len(rows), rows_together):
            some = slice(start, min(start + rows_together, len(rows)))
            product = memory[: (some.stop - start) * size].view(-1, size)
            torch.mm(rows[some], weight[columns].T, out=product)
            if bias is not None:
                product += bias[columns]
            logits = product.float()
            place = predicted[some] - first
            found = logits.gather(-1, place.clamp(0, size - 1))
            torch.where((place >= 0) & (place < size), found, chosen[some], out=chosen[some])
            # The last position of each sequence.
            before = -(-(start + 1) // length) - 1
            last = logits[(before + 1) * length - 1 - start :: length]
            newest[before : before + len(last), columns] = last
            sums_of_part.append(_log_sum_exp(logits))
        sums.append(torch.cat(sums_of_part))
    log_normalizer = torch.logsumexp(torch.stack(sums), dim=0)
    bits = surprisal(chosen.squeeze(-1), log_normalizer).view(batch, length)
    return bits[:, :-1], newest


def _surprisal_of_part(states: Tensor, head: nn.Module, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The same of some tokens; a function, because its logits are to be gone before the next's."""
    # Not a call: hooks on the head are the application's, and not for this product.
    product = head.forward(states)
    logits = product.float()
    newest = logits[:, -1].clone()
    logits = logits[:, : predicted.shape[1]]
    chosen = logits.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    # Nobody else holds what became float32 here.
    if product.dtype == torch.float32:
        logits = logits.clone()
    return surprisal(chosen, _log_sum_exp(logits)), newest


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exponents ``[...]`` of ``[..., V]``, which are overwritten."""
    peak = logits.amax(-1, keepdim=True)
    # torch.logsumexp takes ten times as long on a CPU.
    return logits.sub_(peak).exp_().sum(-1).log() + peak.squeeze(-1)
