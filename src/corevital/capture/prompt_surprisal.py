"""Surprisal of a prompt's tokens, from the hidden states that its forward pass shows."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from corevital.capture.chunk import bytes_together
from corevital.capture.division import processes
from corevital.capture.logits import surprisal, token_logits
from corevital.capture.transfer import moved

LOGITS_BYTES: Final = 12 * 2**20
_PRECISIONS: Final = (torch.float32, torch.bfloat16, torch.float16)
_LEAST_VOCABULARY: Final = 512
_FOLD: Final = 16


def needs_no_other_process(head: nn.Module, states: Tensor, vocabulary: int) -> bool:
    """Whether ``prompt_surprisal`` of states ``[B, P, D]`` is a matter of this process alone.

    Where processes share a model, one may have a part of the head, and calling a module may wait
    for all others to call it: for ever, where one of them is not observed.
    """
    if processes() == 1:
        return True
    if not isinstance(head, nn.Linear) or not _is_plain_product(head, states):
        return False
    weight = head.weight
    # Of weights that are gathered for a forward pass only, shape or memory is empty after it.
    whole = weight.shape == (vocabulary, states.shape[-1])
    return whole and weight.untyped_storage().nbytes() >= weight.nbytes


@torch.no_grad()
def prompt_surprisal(states: Tensor, head: nn.Module, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Surprisal of every prompt token given those before it.

    Args:
        states: ``[B, P, D]``, the decoder's last hidden states.
        head: the output embedding, ``D -> V``.
        token_ids: ``[B, P]``.

    Returns:
        Surprisal ``[B, P - 1]`` in bits, NaN of what is no token of the head's, and the head's
        logits ``[B, V]`` at the last position.
    """
    # Of a model on several devices, they are where its first layer is.
    token_ids = moved(token_ids, states.device)
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype in _PRECISIONS:
        # As models do whose last norm returns another precision than the head has.
        states = states.to(weight.dtype)
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
    positions = states.reshape(-1, width)
    predicted = nn.functional.pad(token_ids[:, 1:], (0, 1)).flatten()
    # Half of what goes well together: the product has as much beside it that it reads.
    most = bytes_together(states.device) // 8
    together = max(1, min(len(positions), most // _LEAST_VOCABULARY))
    part = max(_LEAST_VOCABULARY, most // together // _FOLD * _FOLD)
    # Of what is no token of the head's, it stays so.
    chosen = torch.full((len(positions),), torch.nan, dtype=torch.float32, device=states.device)
    newest = torch.empty(batch, vocabulary, dtype=torch.float32, device=states.device)
    sums: list[Tensor] = []
    for first in range(0, vocabulary, part):
        tokens = slice(first, min(first + part, vocabulary))
        size = tokens.stop - first
        sums_of_part: list[Tensor] = []
        for start in range(0, len(positions), together):
            some = slice(start, min(start + together, len(positions)))
            product = _product(weight[tokens], positions[some])
            if bias is not None:
                product += bias[tokens, None]
            logits = product.float()
            place = predicted[some] - first
            found = logits.gather(0, place.clamp(0, size - 1)[None])[0]
            torch.where((place >= 0) & (place < size), found, chosen[some], out=chosen[some])
            # The last position of each sequence.
            before = -(-(start + 1) // length) - 1
            last = logits[:, (before + 1) * length - 1 - start :: length]
            newest[before : before + last.shape[1], tokens] = last.T
            sums_of_part.append(_log_sum_exp(logits, 0, _folded_peak(logits)))
        sums.append(torch.cat(sums_of_part))
    log_normalizer = torch.logsumexp(torch.stack(sums), dim=0)
    bits = surprisal(chosen, log_normalizer).view(batch, length)
    return bits[:, :-1], newest


def _product(weight: Tensor, states: Tensor) -> Tensor:
    """``weight . states^T`` ``[n, m]`` of ``[n, D]`` and ``[m, D]``."""
    mkldnn = torch.backends.mkldnn
    if states.dtype == torch.float32 and states.device.type == "cpu" and mkldnn.is_available():
        # A convolution of n pixels is the same sum. oneDNN computes it with all that the processor
        # has, where the product's own library takes two to three times as long on an AMD EPYC.
        pixels = weight.reshape(1, len(weight), 1, -1).permute(0, 3, 1, 2)
        return nn.functional.conv2d(pixels, states[:, :, None, None])[0, :, :, 0].T
    return torch.mm(weight, states.T)


def _surprisal_of_part(states: Tensor, head: nn.Module, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The same of some tokens; a function, because its logits are to be gone before the next's."""
    # Not a call: hooks on the head are the application's, and not for this product.
    product = head.forward(states)
    logits = product.float()
    newest = logits[:, -1].clone()
    logits = logits[:, : predicted.shape[1]]
    predicted = moved(predicted, logits.device)
    chosen = token_logits(logits, predicted)
    # Nobody else holds what became float32 here.
    if product.dtype == torch.float32:
        logits = logits.clone()
    return surprisal(chosen, _log_sum_exp(logits, -1, logits.amax(-1))), newest


def _log_sum_exp(logits: Tensor, dim: int, peak: Tensor) -> Tensor:
    """Logarithm of the sum of exponents over ``dim`` of logits, which are overwritten."""
    # torch.logsumexp takes ten times as long on a CPU.
    return logits.sub_(peak.unsqueeze(dim)).exp_().sum(dim).log() + peak


def _folded_peak(logits: Tensor) -> Tensor:
    """The largest of each column ``[m]`` of ``[n, m]``."""
    count, columns = logits.shape
    # On a CPU, the largest along a first dimension takes ten times as long beside a short second.
    fold = math.gcd(count, _FOLD)
    folded = logits.reshape(count // fold, fold * columns).amax(0)
    return folded.view(fold, columns).amax(0)
