"""Chooses how a call of ``generate`` is observed, by how it decodes."""

from __future__ import annotations

from corevital.capture.assisted_run import AssistedRun
from corevital.capture.beam_run import BeamRun
from corevital.capture.chunked_prefill import ChunkedPrefill
from corevital.capture.codebook_run import CodebookRun
from corevital.capture.decoding import Decoding, GenerateCall, decoding_of
from corevital.capture.layers import DecoderLayers, EncoderLayers, is_encoder_decoder
from corevital.capture.loop_run import LoopRun
from corevital.capture.plan import CapturePlan
from corevital.capture.run import GenerationRun


def start_run(
    call: GenerateCall,
    layers: DecoderLayers | None,
    plan: CapturePlan,
    encoder_layers: EncoderLayers | None = None,
) -> GenerationRun:
    """The run of a call; ``layers`` are ``None`` when its inside is not observed."""
    decoding, length = decoding_of(call), call.prompt_length
    if call.codebooks is not None:
        return CodebookRun(
            call.model,
            layers,
            plan,
            codebooks=call.codebooks,
            guided=call.is_guided,
            encoder_layers=encoder_layers,
        )
    if is_encoder_decoder(call.model):
        # What it is given is the encoder's; what the decoder begins with shows when it begins.
        length = None
    if decoding is Decoding.CUSTOM:
        embedded = call.arguments.get("inputs_embeds") is not None
        known = 0 if embedded and not is_encoder_decoder(call.model) else length
        return LoopRun(call.model, layers, plan, known, call.end_tokens, encoder_layers)
    if decoding is Decoding.ASSISTED:
        return AssistedRun(call.model, layers, plan, length or 0, encoder_layers)
    chunks = ChunkedPrefill(length) if call.setting("prefill_chunk_size") else None
    if decoding is Decoding.BEAMS:
        beams = call.setting("num_beams")
        return BeamRun(call.model, layers, plan, beams, chunks, encoder_layers)
    return GenerationRun(call.model, layers, plan, chunks, encoder_layers)
