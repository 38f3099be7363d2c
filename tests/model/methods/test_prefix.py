"""Prefixes: what an attention computes with them, in every family of models, with caches, padding and beams."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from dept_vl.model.backbone import Backbone
from dept_vl.model.build import build_model
from dept_vl.model.methods.insertion import Insertion
from dept_vl.model.methods.prefix import Prefix, insert_prefix, prefixed_attention
from dept_vl.settings import MethodSettings, Settings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

Tiny = Callable[..., Backbone]
GENERATING = ("t5", "bart", "gpt2", "llama", "qwen2")
KINDS = (*GENERATING, "bert", "roberta")
PREFIX = MethodSettings(name="prefix")
IDS = torch.tensor([[5, 7, 9, 11, 3], [4, 6, 8, 10, 12], [13, 4, 9, 5, 20]])


def insert(backbone: Backbone, length: int = 3, **changes: Any) -> Insertion:
    """Prefixes of a length whose numbers are as large as other keys and values, as after training."""
    method = MethodSettings(name="prefix", **changes)
    found = insert_prefix(backbone, method, allowed=10**6).parameters
    insertion = insert_prefix(backbone, method, allowed=length * sum(value.shape[1] for value in found))
    backbone.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for value in insertion.parameters:
        value.requires_grad_(True).data.copy_(torch.randn(value.shape, generator=generator))
    return insertion


def outputs(backbone: Backbone, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    """Logits, or the last states of an encoder. A padded text is numbered by its own tokens."""
    mask = torch.ones_like(ids) if mask is None else mask
    more: dict[str, Any] = {"decoder_input_ids": IDS[: len(ids), :3]} if backbone.family == "encoder_decoder" else {}
    if backbone.family == "decoder":
        more = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    output = backbone.model(input_ids=ids, attention_mask=mask, **more)
    values: Tensor = output.last_hidden_state if backbone.family == "encoder" else output.logits
    return values


def by_hand(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, *, scale: float = 1.0) -> Tensor:
    """softmax(scale · q kᵀ + bias) v of one head."""
    return (scale * query @ keys.T + bias).softmax(dim=-1) @ values


def test_t5_attends_to_the_prefix_without_a_position_bias(tiny: Tiny) -> None:
    backbone = tiny("t5")
    insert(backbone)
    attention: Any = backbone.model.get_submodule("encoder.block.0.layer.0.SelfAttention")
    hidden = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    got, bias, _ = attention(hidden)
    query, key, value = (part(hidden)[0] for part in (attention.q, attention.k, attention.v))
    keys, values = torch.cat([attention.prefix.keys, key]), torch.cat([attention.prefix.values, value])
    heads = [
        by_hand(query[:, part], keys[:, part], values[:, part], torch.cat([torch.zeros(5, 3), bias[0, head]], dim=1))
        for head, part in ((head, slice(4 * head, 4 * head + 4)) for head in range(4))
    ]
    assert bias.shape == (1, 4, 5, 5)  # what the next layers get is as it was
    torch.testing.assert_close(got[0], attention.o(torch.cat(heads, dim=1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "causal"), [(4, True), (4, False), (1, True)])
def test_every_query_sees_the_prefix_and_what_its_own_mask_or_causality_lets_it_see(
    queries: int, causal: bool, masked: bool
) -> None:
    """Four query heads share two key heads; without a mask, one query alone sees all that came before it."""
    generator = torch.Generator().manual_seed(0)
    module: Any = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = causal, 2
    module.prefix = Prefix(3, key_width=10, value_width=12)
    query = torch.randn(2, 4, queries, 5, generator=generator)
    key, value = (torch.randn(2, 2, 4, width, generator=generator) for width in (5, 6))
    mask = torch.ones(2, 1, queries, 4, dtype=torch.bool)
    if causal and queries > 1:
        mask = mask.tril()
    mask[1, :, :, 0] &= not masked
    got, _ = prefixed_attention(module, query, key, value, mask if masked else None, scaling=0.3)
    for row, head in ((0, 0), (0, 3), (1, 1), (1, 2)):
        shared = slice(5 * (head // 2), 5 * (head // 2) + 5), slice(6 * (head // 2), 6 * (head // 2) + 6)
        keys = torch.cat([module.prefix.keys[:, shared[0]], key[row, head // 2]])
        values = torch.cat([module.prefix.values[:, shared[1]], value[row, head // 2]])
        bias = torch.cat([torch.zeros(queries, 3), torch.where(mask[row, 0], 0.0, -math.inf)], dim=1)
        expected = by_hand(query[row, head], keys, values, bias, scale=0.3)
        torch.testing.assert_close(got[row, :, head], expected, rtol=1e-6, atol=1e-6)


def test_a_mask_of_numbers_leaves_the_prefix_visible() -> None:
    module: Any = torch.nn.Module()
    module.prefix = Prefix(2, key_width=4, value_width=4)
    query, key, value = torch.randn(3, 1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min)
    got, _ = prefixed_attention(module, query, key, value, hidden, scaling=1.0)
    expected = by_hand(query[0, 0], module.prefix.keys, module.prefix.values, torch.zeros(3, 2))
    torch.testing.assert_close(got[0, :, 0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_it_is_the_librarys_own_cache_of_keys_and_values_that_no_text_made(tiny: Tiny, kind: str) -> None:
    plain, backbone = tiny(kind), tiny(kind)
    insert(backbone)
    prefixes = [module for module in backbone.model.modules() if isinstance(module, Prefix)]
    cache = DynamicCache()
    for layer, prefix in enumerate(prefixes):
        rows = [value.view(1, 3, 2, -1).transpose(1, 2).expand(3, -1, -1, -1) for value in prefix.parameters()]
        cache.update(rows[0], rows[1], layer)
    positions = torch.arange(5).expand(3, -1)
    mask = torch.ones(3, 8, dtype=torch.long)
    expected = plain.model(input_ids=IDS, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    torch.testing.assert_close(outputs(backbone), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(tiny: Tiny, kind: str) -> None:
    backbone = tiny(kind)
    insert(backbone)
    left = backbone.family == "decoder"
    padded = torch.nn.functional.pad(IDS[:1, :4], (1, 0) if left else (0, 1))
    ids, mask = torch.cat([padded, IDS[1:2]]), torch.ones(2, 5, dtype=torch.long)
    mask[0, 0 if left else 4] = 0
    whole, alone = outputs(backbone, ids, mask)[0], outputs(backbone, IDS[:1, :4])[0]
    real = whole if backbone.family == "encoder_decoder" else whole[mask[0].bool()]
    torch.testing.assert_close(real, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", GENERATING)
def test_what_is_generated_with_a_cache_of_either_kind_is_what_is_generated_without(
    tiny: Tiny, kind: str, beams: int
) -> None:
    backbone, plain = tiny(kind), tiny(kind)
    insert(backbone)
    ids = torch.nn.functional.pad(IDS, (2, 0) if backbone.family == "decoder" else (0, 2))
    common = {"input_ids": ids, "attention_mask": ids.ne(0).long(), "max_new_tokens": 6, "min_new_tokens": 6}
    common |= {"num_beams": beams, "do_sample": False}

    def generate(model: Any, **options: Any) -> list[list[int]]:
        return cast("list[list[int]]", model.generate(**common, **options).tolist())

    expected = generate(backbone.model, use_cache=False)
    assert generate(backbone.model) == expected
    assert generate(backbone.model, cache_implementation="static") == expected
    assert generate(plain.model) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_prefixes_alone_and_the_note_counts_them(tiny: Tiny, kind: str) -> None:
    backbone = tiny(kind)
    own = set(backbone.model.parameters())
    insertion = insert(backbone)
    cast(Any, outputs(backbone).pow(3).sum()).backward()
    assert insertion.group == "adapter"
    assert set(insertion.parameters) == set(backbone.model.parameters()) - own
    assert all(value.grad is not None and value.grad.any() for value in insertion.parameters)
    size = sum(value.numel() for value in insertion.parameters)
    where = "every attention of every layer"
    assert insertion.note == f"Prefix tuning: prefix length 3 in {where}: {size:,} of {size:,} parameters"


@pytest.mark.parametrize(
    ("kind", "places", "width"),
    [
        ("t5", {"encoder.SelfAttention", "decoder.SelfAttention", "decoder.EncDecAttention"}, 16),
        ("bart", {"encoder.self_attn", "decoder.self_attn", "decoder.encoder_attn"}, 16),
        ("gpt2", {"attn"}, 16),
        ("llama", {"self_attn"}, 8),  # two of four heads have keys of their own
        ("bert", {"encoder.attention.self"}, 16),
    ],
)
def test_each_attention_has_keys_and_values_of_its_own_width(
    tiny: Tiny, kind: str, places: set[str], width: int
) -> None:
    backbone = tiny(kind)
    insert(backbone)
    named = {name: tuple(value.shape) for name, value in backbone.model.named_parameters() if ".prefix." in name}
    assert set(named.values()) == {(3, width)}
    assert {
        re.sub(r"(^|\.)(model|transformer|block|layers?|h|\d+)(?=\.)", "", name.partition(".prefix.")[0]).strip(".")
        for name in named
    } == places
    assert len(named) == 2 * 2 * len(places)  # keys and values in two layers of each
    assert {name.rpartition(".prefix.")[2] for name in named} == {"keys", "values"}


@pytest.mark.parametrize(
    ("allowed", "placement", "size", "note"),
    [
        (76_800, None, 55_296, "1 in every attention of every layer: 55,296 of 76,800"),
        (110_592, None, 110_592, "2 in every attention of every layer: 110,592 of 110,592"),
        (55_295, None, 36_864, "2 in every attention of the encoder's layers: 36,864 of 55,295"),
        (76_800, "encoder", 73_728, "4 in every attention of the encoder's layers: 73,728 of 76,800"),
    ],
)
def test_t5_base_within_a_budget(
    meta_t5_base: Callable[[], Backbone], allowed: int, placement: str | None, size: int, note: str
) -> None:
    insertion = insert_prefix(meta_t5_base(), MethodSettings(name="prefix", placement=placement), allowed=allowed)
    assert sum(value.numel() for value in insertion.parameters) == size
    assert insertion.note == f"Prefix tuning: prefix length {note} parameters"


def test_the_encoders_prefixes_leave_a_decoder_as_it_was(tiny: Tiny) -> None:
    plain, backbone = tiny("bart"), tiny("bart")
    insert(backbone, placement="encoder")
    states = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    before, after = (
        one.model(encoder_outputs=(states,), decoder_input_ids=IDS[:, :3]).logits for one in (plain, backbone)
    )
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert (outputs(backbone) - outputs(plain)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "changes", "allowed", "message"),
    [
        (
            "t5",
            {},
            63,
            "Prefix tuning cannot meet the budget of 63 parameters: the nearest setting, prefix length 1 in every "
            "attention of the encoder's layers, costs 64. Raise method.budget to that or choose another method",
        ),
        (
            "gpt2",
            {"placement": "encoder"},
            1000,
            "method.placement is 'encoder', but 'gpt2' (gpt2) is no encoder-decoder: all its layers are of one kind. "
            "Set method.placement=all",
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, kind: str, changes: dict[str, str], allowed: int, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        insert_prefix(tiny(kind), MethodSettings(name="prefix", **cast(Any, changes)), allowed=allowed)
    assert str(raised.value) == message


@pytest.mark.parametrize("kind", ["bloom", "gemma2"])
def test_an_attention_that_the_library_lets_nobody_extend_is_refused(tiny: Tiny, kind: str) -> None:
    sizes = {"bloom": {"n_layer": 1, "n_head": 2}, "gemma2": {"num_hidden_layers": 1, "head_dim": 4}}[kind]
    config = AutoConfig.for_model(kind, vocab_size=29, hidden_size=16, **sizes)
    backbone = tiny("gpt2")._replace(name=kind, model=cast(Any, AutoModelForCausalLM).from_config(config))
    with pytest.raises(UsageError) as raised:
        insert_prefix(backbone, PREFIX, allowed=1000)
    assert str(raised.value) == (
        f"Prefix tuning needs a backbone whose attention can be extended, and that of {kind!r} ({kind}) cannot. Choose "
        "another method, such as --method dept or --method lora, or another backbone, such as a T5, BART, GPT-2, "
        "Llama, Qwen, BERT or RoBERTa"
    )


def test_prefixes_start_small_and_different_by_the_seed(tiny: Tiny) -> None:
    def draw(seed: int) -> Sequence[Tensor]:
        backbone = tiny("t5")
        torch.manual_seed(seed)
        return insert_prefix(backbone, PREFIX, allowed=100_000).parameters

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.cat(list(first)).std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(first[0][0], first[0][1])


def test_a_model_with_prefixes_comes_back_from_its_tensors(tiny: Tiny) -> None:
    backbone, fresh = tiny("llama"), tiny("llama")
    insert(backbone)
    insert_prefix(fresh, PREFIX, allowed=3 * 32)
    named = {name: value.detach() for name, value in backbone.model.named_parameters() if ".prefix." in name}
    fresh.model.load_state_dict(load(save(named)), strict=False)
    assert torch.equal(outputs(fresh), outputs(backbone))


def test_other_models_are_left_alone(tiny: Tiny) -> None:
    plain = tiny("bart")
    before = outputs(plain)
    insert(tiny("bart"))
    assert plain.model.config._attn_implementation == "sdpa"
    assert torch.equal(outputs(plain), before)


def test_a_bf16_backbone_takes_prefixes_of_fp32(tiny: Tiny) -> None:
    whole, half = tiny("t5"), tiny("t5", torch.bfloat16)
    insert(whole)
    insertion, expected = insert(half), outputs(whole)
    got = outputs(half)
    cast(Any, got.float().sum()).backward()
    assert got.dtype == torch.bfloat16
    assert {value.grad.dtype for value in insertion.parameters if value.grad is not None} == {torch.float32}
    assert (got.float() - expected).norm() < 0.05 * expected.norm()


def test_texts_with_images_are_read_and_answered_whatever_their_padding(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    settings = Settings(method=MethodSettings(name="prefix", budget=3 * 36 * 16))
    model = build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0).model.eval()
    for name, value in model.backbone.named_parameters():
        if ".prefix." in name:
            value.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    batch, padded = make_batch(), make_batch(pad=3)
    torch.testing.assert_close(model.loss(padded).loss, model.loss(batch).loss, rtol=1e-5, atol=1e-5)
    assert model.answer(padded) == model.answer(batch)
