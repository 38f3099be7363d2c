"""A model of each family behind a prompt: the formulas hold wherever padding stands and whoever wrote a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BartConfig, BartForSequenceClassification, DynamicCache, PreTrainedModel

pytest.importorskip("peft")
from peft import get_peft_model

from dept_vl.integrations.peft import DeptConfig
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from feature_extraction.errors import IncompatibleError, UsageError

Make = Callable[..., Any]
Texts = Callable[..., dict[str, Tensor]]
SEQ2SEQ, CAUSAL, CLASSIFIERS = ("t5", "bart"), ("gpt2", "llama", "qwen2"), ("bert", "roberta", "gpt2_classifier")
ALL = (*SEQ2SEQ, *CAUSAL, *CLASSIFIERS)
OFFSETS = ("none", "position", "token", "both")
TARGETS = torch.tensor([[5, 6, 1], [7, 1, -100]])


def prompt_of(model: Any) -> Any:
    return model.base_model.model.prompted_input.active


def run(model: nn.Module, kind: str, batch: dict[str, Tensor]) -> Tensor:
    """Logits of the targets, of the text, or of the classes; of real positions only."""
    if kind in SEQ2SEQ:
        return model(**batch, labels=TARGETS).logits
    if kind in CLASSIFIERS:
        return model(**batch).logits
    logits = model(**batch).logits[:, len(prompt_of(model).prompt) :]
    return logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("kind", ALL)
def test_a_fresh_adapter_without_prompt_is_the_model_itself(
    make_model: Make, make_prompted: Make, texts: Texts, kind: str
) -> None:
    model = make_prompted(kind, fresh=True, prompt_length=0, budget_length=100)
    batch = texts(left=2) if kind == "gpt2_classifier" else texts()
    if kind in CAUSAL:
        batch = {name: value[:1] for name, value in batch.items()}  # alone, it has no padding
    base = make_model(kind)
    more = {"labels": TARGETS} if kind in SEQ2SEQ else {}
    if kind == "gpt2_classifier":  # which counts positions of padding unless it is told otherwise
        more["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    torch.testing.assert_close(
        run(model, kind, batch), base(**batch, **more).logits.flatten(0, 1).view_as(run(model, kind, batch))
    )


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", [*SEQ2SEQ, *CAUSAL, "gpt2_classifier"])
def test_the_model_reads_the_prompt_and_then_embeddings_moved_by_the_formulas(
    make_model: Make, make_prompted: Make, texts: Texts, kind: str, offset: str
) -> None:
    model, batch = make_prompted(kind, offset=offset), {name: value[:1] for name, value in texts().items()}
    prompt, base = prompt_of(model), make_model(kind)
    if kind in CLASSIFIERS:
        base.score = model.base_model.model.score  # trained along, as PEFT does for this task
    owner = base.get_encoder() if kind in SEQ2SEQ else base
    embedded = owner.get_input_embeddings()(batch["input_ids"])
    moved = embedded.clone()
    if offset in ("position", "both"):
        moved += (prompt.a @ prompt.b)[:6]
    if offset in ("token", "both"):
        network = prompt.token_offset
        moved += (embedded @ network.w1 + network.b1).relu() @ network.w2 + network.b2
    whole = torch.cat([prompt.prompt[None], moved], dim=1)
    more = {"labels": TARGETS[:1]} if kind in SEQ2SEQ else {}
    expected = base(inputs_embeds=whole, **more).logits
    got = model(**batch, **more).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_s_first_token_stays_first_and_the_prompt_follows(
    make_model: Make, make_prompted: Make, texts: Texts
) -> None:
    model, batch = make_prompted("bert", offset="none"), {name: value[:1] for name, value in texts().items()}
    base = make_model("bert")
    base.classifier = model.base_model.model.classifier  # trained along, as PEFT does for this task
    embedded = base.get_input_embeddings()(batch["input_ids"])
    whole = torch.cat([embedded[:, :1], prompt_of(model).prompt[None], embedded[:, 1:]], dim=1)
    torch.testing.assert_close(model(**batch).logits, base(inputs_embeds=whole).logits)


@pytest.mark.parametrize("kind", ALL)
def test_padding_on_either_side_changes_nothing(make_prompted: Make, texts: Texts, kind: str) -> None:
    model = make_prompted(kind)
    expected = run(model, kind, texts())
    for batch in (texts(left=3), texts(right=3)):
        torch.testing.assert_close(run(model, kind, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", [*SEQ2SEQ, *CAUSAL])
def test_padding_on_either_side_changes_no_generated_token(
    make_prompted: Make, texts: Texts, kind: str, beams: int
) -> None:
    model = make_prompted(kind)

    def answers(batch: dict[str, Tensor]) -> Tensor:
        ids = model.generate(**batch, max_new_tokens=5, num_beams=beams)
        return ids[:, batch["input_ids"].shape[1] :] if kind in CAUSAL else ids

    expected = answers(texts())
    assert torch.equal(answers(texts(left=3)), expected)
    assert torch.equal(answers(texts(right=3)), expected)


@pytest.mark.parametrize("kind", [*SEQ2SEQ, *CAUSAL])
def test_beams_of_several_calls_do_not_meet(make_prompted: Make, texts: Texts, kind: str) -> None:
    model = make_prompted(kind)
    first, second = (model.generate(**texts(), max_new_tokens=4, num_beams=3) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [*SEQ2SEQ, *CAUSAL])
def test_rows_returned_for_each_text_begin_with_that_text(make_prompted: Make, texts: Texts, kind: str) -> None:
    model, batch = make_prompted(kind), texts(left=1)
    ids = model.generate(**batch, max_new_tokens=3, num_beams=4, num_return_sequences=2)
    assert len(ids) == 4
    if kind in CAUSAL:
        assert torch.equal(ids[:, :7], batch["input_ids"].repeat_interleave(2, dim=0))


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", CAUSAL)
def test_generated_tokens_get_the_offsets_of_teacher_forced_ones(
    make_prompted: Make, texts: Texts, kind: str, offset: str
) -> None:
    model, batch = make_prompted(kind, offset=offset), texts(left=1)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    output = model.generate(**batch, **options)
    stepwise = torch.stack(output.logits, dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 5, dtype=torch.int64)], dim=1)
    at_once = model(input_ids=output.sequences, attention_mask=mask).logits[:, -6:-1]
    torch.testing.assert_close(stepwise, at_once, rtol=1e-5, atol=1e-5)
    if offset in ("position", "both"):  # and they do matter
        prompt_of(model).trained_length.fill_(6)
        without = model(input_ids=output.sequences, attention_mask=mask).logits[:, -6:-1]
        assert (without - at_once).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_right_padded_text_goes_on_behind_its_last_token(make_prompted: Make, texts: Texts, kind: str) -> None:
    model, batch = make_prompted(kind), texts(right=2)
    ids = model.generate(**batch, max_new_tokens=1)
    last = model(**batch).logits[torch.arange(2), 4 + batch["attention_mask"].sum(dim=1) - 1]
    assert torch.equal(ids[:, :8], batch["input_ids"])
    assert torch.equal(ids[:, 8], last.argmax(dim=-1))


def test_without_a_mask_generation_takes_the_padding_token_for_padding(make_prompted: Make, texts: Texts) -> None:
    for kind in ("t5", "gpt2"):
        model, batch = make_prompted(kind), texts(right=2)
        ids = model.generate(input_ids=batch["input_ids"], max_new_tokens=4)
        assert torch.equal(ids, model.generate(**batch, max_new_tokens=4)), kind
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = 5
    everything = torch.ones_like(batch["input_ids"])
    ids = model.generate(input_ids=batch["input_ids"], max_new_tokens=4)
    assert torch.equal(ids, model.generate(batch["input_ids"], attention_mask=everything, max_new_tokens=4))


def test_lengths_given_to_generate_do_not_count_the_prompt(make_prompted: Make, texts: Texts) -> None:
    model, batch = make_prompted("llama"), texts(left=1)
    assert model.generate(**batch, max_length=9, min_length=9).shape == (2, 9)


@pytest.mark.parametrize("kind", ALL)
def test_embeddings_are_taken_in_place_of_ids(make_prompted: Make, texts: Texts, kind: str) -> None:
    model, batch = make_prompted(kind), texts(left=2)
    owner = model.get_encoder() if kind in SEQ2SEQ else model
    embedded = {**batch, "inputs_embeds": owner.get_input_embeddings()(batch["input_ids"])}
    del embedded["input_ids"]
    assert torch.equal(run(model, kind, embedded), run(model, kind, batch))
    if kind not in CLASSIFIERS:
        expected = model.generate(**batch, max_new_tokens=4)
        got = model.generate(**embedded, max_new_tokens=4)
        assert torch.equal(got, expected if kind in SEQ2SEQ else expected[:, 8:])


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_loss_of_a_causal_model_is_that_of_the_labelled_tokens(
    make_prompted: Make, texts: Texts, kind: str
) -> None:
    model, batch = make_prompted(kind), texts(right=1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels)
    logits = output.logits[:, 3:-1]  # the prompt's last position predicts the text's first token
    expected = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)
    left = texts(left=1)
    labels = left["input_ids"].masked_fill(left["attention_mask"] == 0, -100)
    torch.testing.assert_close(model(**left, labels=labels).loss, expected)


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_the_loss_of_an_encoder_decoder_is_that_of_its_labels(make_prompted: Make, texts: Texts, kind: str) -> None:
    output = make_prompted(kind)(**texts(), labels=TARGETS)
    expected = functional.cross_entropy(output.logits.transpose(1, 2), TARGETS, ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)


def test_types_of_tokens_go_with_their_tokens(make_prompted: Make, texts: Texts) -> None:
    model, outputs = make_prompted("bert"), []
    for left, right in ((0, 0), (3, 0), (0, 3)):
        batch = texts(left, right)
        second = batch["attention_mask"].cumsum(dim=1).gt(3) & batch["attention_mask"].bool()
        outputs.append(model(**batch, token_type_ids=second.long()).logits)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
    assert (outputs[0] - model(**texts()).logits).abs().max() > 1e-4


def test_a_causal_classifier_takes_labels_of_several_classes(make_prompted: Make, texts: Texts) -> None:
    model = make_prompted("gpt2_classifier")
    model.config.problem_type = "multi_label_classification"
    assert model(**texts(), labels=torch.tensor([[1.0, 0.0], [1.0, 1.0]])).loss.isfinite()


def test_tokens_beyond_the_longest_text_get_no_offset(make_prompted: Make, texts: Texts) -> None:
    model, batch = make_prompted("llama", offset="position", max_text_length=4), texts()
    prompt = prompt_of(model)
    batch = {name: value[:1] for name, value in batch.items()}
    prompt.trained_length.fill_(4)
    short = model(**batch).logits
    with torch.no_grad():
        prompt.a[3] += 1
    assert (model(**batch).logits - short).abs().max() > 1e-3
    embedded = model.get_input_embeddings()(batch["input_ids"])
    update = prompt.embed_text(embedded, batch["attention_mask"].bool()) - embedded
    assert not update[0, 4:].any()
    assert update[0, :4].any(dim=1).all()


def test_training_counts_the_longest_text_and_other_rows_have_no_gradient(make_prompted: Make, texts: Texts) -> None:
    model = make_prompted("t5", fresh=True, offset="position")
    prompt = prompt_of(model)
    with torch.no_grad():
        prompt.b += 1
    assert isinstance(prompt, DecomposedPrompt)
    model.train()(**texts(right=5), labels=TARGETS).loss.backward()
    assert prompt.trained_length == 6
    assert prompt.a.grad[:6].any(dim=1).all()
    assert not prompt.a.grad[6:].any()
    model.eval()(input_ids=torch.full((1, 9), 3), labels=TARGETS[:1])
    assert prompt.trained_length == 6


@pytest.mark.parametrize("kind", ALL)
def test_only_the_adapter_trains_and_disabling_it_gives_the_model_back_to_the_bit(
    make_model: Make, make_prompted: Make, texts: Texts, kind: str
) -> None:
    name = "lm_head" if kind in (*SEQ2SEQ, *CAUSAL) else "score" if kind == "gpt2_classifier" else "classifier"
    model = make_prompted(kind, modules_to_save=[name])
    base, batch = make_model(kind), texts(left=1)
    labels = TARGETS if kind in SEQ2SEQ else batch["input_ids"] if kind in CAUSAL else torch.tensor([0, 1])
    before = {key: value.clone() for key, value in base.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    model.train()(**batch, labels=labels).loss.backward()
    optimizer.step()
    model.eval()
    more = {"labels": labels}
    base.requires_grad_(False)  # which chooses other kernels
    with model.disable_adapter():
        assert torch.equal(model(**batch, **more).logits, base(**batch, **more).logits)
        if kind not in CLASSIFIERS:
            options = {"max_new_tokens": 4, "num_beams": 2}
            assert torch.equal(model.generate(**batch, **options), base.generate(**batch, **options))
    assert not torch.equal(
        run(model, kind, batch)[..., 0].flatten()[:2], base(**batch, **more).logits[..., 0].flatten()[:2]
    )
    unloaded = model.unload()
    assert not hasattr(unloaded, "prompted_input")
    after = unloaded.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_a_bf16_model_keeps_its_adapter_in_fp32(make_model: Make, move: Make, texts: Texts, kind: str) -> None:
    config = DeptConfig(
        task_type="SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM",
        prompt_length=4,
        budget_length=20,
        max_text_length=12,
        offset="both",
    )
    model = move(get_peft_model(make_model(kind).to(torch.bfloat16), config))
    assert {value.dtype for value in prompt_of(model).parameters()} == {torch.float32}
    batch = texts(left=1)
    loss = model(**batch, labels=TARGETS if kind == "t5" else batch["input_ids"]).loss
    loss.backward()
    assert prompt_of(model).b.grad.any()
    assert model.generate(**batch, max_new_tokens=3, min_new_tokens=3).shape[1] == (4 if kind == "t5" else 10)


def test_a_prompt_begins_with_embeddings_of_the_vocabulary_or_of_a_text(make_model: Make, make_prompted: Make) -> None:
    for kind in ("t5", "bart", "llama"):
        owner = make_model(kind).get_encoder() if kind in SEQ2SEQ else make_model(kind)
        rows = owner.get_input_embeddings()(torch.arange(40))
        sampled = prompt_of(make_prompted(kind, fresh=True)).prompt
        found = [(rows == vector).all(dim=1).nonzero().item() for vector in sampled]
        assert 0 not in found  # padding
        text = prompt_of(make_prompted(kind, fresh=True, prompt_init="text", prompt_ids=[7, 9, 8])).prompt
        assert torch.equal(text, rows[[7, 9, 8, 7]])
    drawn = [prompt_of(make_prompted("t5", fresh=True, prompt_init="normal", seed=seed)).prompt for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("scale", "expected"), [("paper", 1.0), ("official", 4.0), (0.25, 0.25)])
def test_the_scale_is_the_paper_s_the_official_one_or_a_number(
    make_prompted: Make, scale: str | float, expected: float
) -> None:
    assert prompt_of(make_prompted("t5", fresh=True, offset="position", rank=4, scale=scale)).scale == expected


def test_a_task_type_that_the_model_cannot_have_is_refused(make_model: Make, make_prompted: Make) -> None:
    for kind, given, needed in (
        ("t5", None, "SEQ_2_SEQ_LM"),
        ("gpt2", "SEQ_CLS", "CAUSAL_LM"),
        ("bert", None, "SEQ_CLS"),
    ):
        message = f"DeptConfig.task_type is {given}, but a .* needs {needed}. Set task_type='{needed}'"
        with pytest.raises(UsageError, match=message):
            make_prompted(kind, task_type=given)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    reader = BartForSequenceClassification(BartConfig(**sizes, **heads))
    with pytest.raises(UsageError, match=r"but a BartForSequenceClassification cannot be prompted\. Take another"):
        get_peft_model(reader, DeptConfig(task_type="SEQ_CLS"))


def test_adapters_of_images_heads_or_several_tasks_are_refused(make_model: Make) -> None:
    shapes = {"prompt.prompt": [4, 16], "visual_embedding.features.weight": [16, 6], "heads.vqa.weight": [2, 16]}
    config = DeptConfig(task_type="SEQ_2_SEQ_LM", dept_vl={"shapes": shapes})
    with pytest.raises(IncompatibleError) as raised:
        get_peft_model(make_model("t5"), config)
    assert str(raised.value) == (
        "The adapter holds 2 tensors that a Hugging Face model has no place for, such as heads.vqa.weight: those of "
        "images, of classification heads or of several tasks' prompts. Use it by dept_vl itself: "
        "python -m dept_vl.evaluate --run RUN, or dept_vl.Predictor"
    )


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert"])
def test_mixed_batches_of_adapters_are_refused_instead_of_ignored(make_prompted: Make, texts: Texts, kind: str) -> None:
    model = make_prompted(kind)
    message = (
        "adapter_names was given, but DePT cannot mix adapters in a batch. Make a batch for each adapter, and call"
    )
    with pytest.raises(UsageError, match=message):
        model(**texts(), adapter_names=["default", "default"])
    if kind != "bert":
        with pytest.raises(UsageError, match=message):
            model.generate(**texts(), adapter_names=["default", "default"])


@pytest.mark.parametrize("both", [True, False])
def test_ids_and_embeddings_exclude_each_other(make_prompted: Make, texts: Texts, both: bool) -> None:
    model, batch = make_prompted("t5"), texts()
    batch = {**batch, "inputs_embeds": torch.zeros(2, 6, 16)} if both else {}
    with pytest.raises(UsageError, match="Give either input_ids or inputs_embeds of the text; the prompt is put"):
        model(**batch, labels=TARGETS)


def test_a_mask_of_another_shape_is_refused(make_prompted: Make, texts: Texts) -> None:
    with pytest.raises(UsageError) as raised:
        make_prompted("t5")(**texts() | {"attention_mask": torch.ones(2, 10)}, labels=TARGETS)
    assert str(raised.value) == (
        "attention_mask has shape (2, 10), but the text has (2, 6). Give one of the text alone; the prompt's part is "
        "added here"
    )


@pytest.mark.parametrize("name", ["position_ids", "past_key_values"])
def test_what_would_contradict_the_mask_is_refused(make_prompted: Make, texts: Texts, name: str) -> None:
    value = torch.arange(6)[None] if name == "position_ids" else DynamicCache()
    with pytest.raises(UsageError, match=f"{name} was given, but DePT finds positions by attention_mask and reads a"):
        make_prompted("gpt2")(**texts(), **{name: value})


def test_a_static_cache_is_refused(make_prompted: Make, texts: Texts) -> None:
    model: PreTrainedModel = make_prompted("llama")
    message = "cache_implementation is 'static', with which positions of generated tokens cannot be told. Leave it out"
    with pytest.raises(UsageError, match=message):
        model.generate(**texts(), max_new_tokens=2, cache_implementation="static")
    model.generation_config.cache_implementation = "static"
    with pytest.raises(UsageError, match=message):
        model.generate(**texts(), max_new_tokens=2)


def test_merging_is_refused(make_prompted: Make) -> None:
    message = "DePT's prompt and offsets change the input, not the weights, and cannot be merged. Keep the adapter"
    for merge in ("merge_and_unload", "merge_adapter"):
        with pytest.raises(UsageError, match=message):
            getattr(make_prompted("t5"), merge)()
