"""How many floating-point operations a training step cannot do without, and how long a device takes for them."""

from __future__ import annotations

from typing import Any

from transformers import T5Config

# With frozen weights there are no gradients of weights: a linear layer costs its forward pass twice. A product of two
# activations has two gradients: three times.
LINEAR, ATTENTION = 2, 3


def step_flops(config: T5Config, *, batch: int, encoder_length: int, target_length: int) -> float:
    """Of one training step: forward, and gradients of activations, of encoder, decoder and head."""
    decoder_layers: Any = config.num_decoder_layers  # as many as the encoder's, where they are not given
    width, inner = config.d_model, config.num_heads * config.d_kv
    encoder_tokens, decoder_tokens = batch * encoder_length, batch * target_length
    feed = (3 if config.is_gated_act else 2) * width * config.d_ff

    linear = encoder_tokens * config.num_layers * (4 * width * inner + feed)
    linear += encoder_tokens * decoder_layers * 2 * width * inner  # keys and values for the decoder
    linear += decoder_tokens * decoder_layers * (6 * width * inner + feed)
    linear += decoder_tokens * width * config.vocab_size

    products = encoder_tokens * encoder_length * config.num_layers
    products += decoder_tokens * (encoder_length + target_length) * decoder_layers
    operations: float = 2.0 * linear * LINEAR + 4.0 * inner * products * ATTENTION
    return operations
