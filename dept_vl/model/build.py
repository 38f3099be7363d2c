"""Settings → model: the only place that branches on the method, the family of the backbone, and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch

from dept_vl.model.backbone import Backbone
from dept_vl.model.budget import solve_budget
from dept_vl.model.decomposed_prompt import make_prompt
from dept_vl.model.engine.choice import choose_engine
from dept_vl.model.families import DecoderOnly, EncoderDecoder, EncoderOnly, Family
from dept_vl.model.heads import ClassificationHead, FirstStepHead, GenerationHead, Head
from dept_vl.model.methods.bottleneck import insert_adapter
from dept_vl.model.methods.insertion import Insertion, Placement, choose_size
from dept_vl.model.methods.ladder import insert_ladder
from dept_vl.model.methods.lora import insert_ia3, insert_lora
from dept_vl.model.methods.multitask_prompt import make_multitask_prompt
from dept_vl.model.methods.own_parameters import train_all, train_biases, train_norms
from dept_vl.model.methods.prefix import insert_prefix
from dept_vl.model.methods.prompt_encoder import make_encoded_prompt
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import Encoder, PromptedModel
from dept_vl.model.prompted_text import CausalInput, PromptedEncoder
from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts, from_normal, from_text, from_vocabulary
from dept_vl.model.suitability import check_family, check_positions
from dept_vl.model.trainable import ParameterGroup, TrainableCount, count_trainable, select_trainable
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.settings import OFFSETS, TRAINS_BACKBONE, MethodSettings, Settings, TaskSettings
from feature_extraction.errors import UsageError

INSERTIONS = {
    "full": train_all,
    "bitfit": train_biases,
    "ln_tuning": train_norms,
    "lora": insert_lora,
    "dept_lora": insert_lora,
    "ia3": insert_ia3,
    "adapter": insert_adapter,
    "adapter_drop": insert_adapter,
    "prefix": insert_prefix,
    "lst": insert_ladder,
}
FIXED_SIZE = (*TRAINS_BACKBONE, "ia3")


class BuiltModel(NamedTuple):
    """A model, what trains in it, and what to tell the user about it."""

    model: PromptedModel
    groups: list[ParameterGroup]
    trainable: TrainableCount
    notes: list[str]


def build_model(
    settings: Settings,
    backbone: Backbone,
    *,
    visual_tokens: int,
    feature_width: int,
    seed: int,
    answers: Mapping[str, Sequence[str]] | None = None,
) -> BuiltModel:
    """Assemble the model of the settings around a loaded backbone, initialised from the seed.

    Args:
        visual_tokens: V of the feature store.
        feature_width: D of the feature store.
        answers: for each task that answers from a list, that list.

    Raises:
        UsageError: DePT's sizes overspend their budget, the backbone's family or a head does not suit the task, the
            lean engine does not suit the method, or nothing would train.
    """
    tasks = settings.tasks
    images = max(task.images_per_example for task in tasks.values())
    check_family(settings, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        insertions = _insert(settings.method, backbone)
        spent = sum(value.numel() for one in insertions if one.group == "adapter" for value in one.parameters)
        prompt, notes = _build_prompts(settings, backbone, spent, torch.Generator().manual_seed(seed))
    notes = [*(one.note for one in insertions if one.note), *notes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = None
        if images:
            visual = VisualEmbedding(
                feature_width=feature_width,
                hidden_size=backbone.hidden_size,
                images=images,
                tokens_per_image=visual_tokens,
                epsilon=backbone.model.config.layer_norm_epsilon,
                vl_t5_area=settings.visual.area == "vl_t5",
            )
        encoder = _build_encoder(settings, backbone, prompt, visual)
        check_positions(settings, backbone, encoder)
        heads = {name: _build_head(task, backbone, encoder, (answers or {}).get(name)) for name, task in tasks.items()}
    model = PromptedModel(backbone=backbone.model, encoder=encoder, heads=heads)
    groups = select_trainable(model, insertions, settings.optimizer)
    if not groups:
        raise UsageError(
            f"method {settings.method.name} trains nothing on {', '.join(tasks)}, which has no images. Choose another "
            "--method, such as dept"
        )
    count = count_trainable(model, groups)
    notes += choose_engine(model, settings, backbone, changed=bool(insertions))
    return BuiltModel(model, groups, count, [*notes, count.describe(settings.method.name)])


def _insert(method: MethodSettings, backbone: Backbone) -> list[Insertion]:
    """Change the backbone's layers as the method does, or choose what trains of its own."""
    insert = INSERTIONS.get(method.name)
    if insert is None:
        return []
    if method.name == "dept_lora":
        return [insert(backbone, method, allowed=int(_allowed(method, backbone) * method.lora_share))]
    return [insert(backbone, method, allowed=_limit(method, backbone))]


def _limit(method: MethodSettings, backbone: Backbone) -> int | None:
    """As ``_allowed``; but what has one size, or is given it, keeps to a budget only where one is asked for."""
    size = method.lora_rank if method.name == "lora" else method.width
    if method.budget is None and (method.name in FIXED_SIZE or size is not None):
        return None
    return _allowed(method, backbone)


def _allowed(method: MethodSettings, backbone: Backbone) -> int:
    """Parameters that the method's own may be."""
    return method.budget_length * backbone.hidden_size if method.budget is None else method.budget


def _build_encoder(
    settings: Settings, backbone: Backbone, prompt: SoftPrompt | TaskPrompts | None, visual: VisualEmbedding | None
) -> Encoder:
    model: Any = backbone.model
    if model.config.model_type == "t5":
        return MultimodalEncoder(
            t5_encoder=model.encoder,
            prompt=prompt,
            visual_embedding=visual,
            vl_t5_positions=settings.visual.position_rule == "vl_t5",
        )
    embeddings: Any = backbone.embeddings
    dtype = embeddings.weight.dtype  # the library's norms take no other than their own
    if backbone.family == "decoder":
        return CausalInput(embeddings=embeddings, prompt=prompt, dtype=dtype)
    encoder = model if backbone.family == "encoder" else model.get_encoder()
    return PromptedEncoder(encoder=encoder, embeddings=embeddings, prompt=prompt, dtype=dtype)


def _build_prompts(
    settings: Settings, backbone: Backbone, spent: int, generator: torch.Generator
) -> tuple[SoftPrompt | TaskPrompts | None, list[str]]:
    """The prompt that all tasks share, or one for each, and what to tell the user about it.

    ``spent`` is what the method has put into the layers, out of the same budget.
    """
    method, texts = settings.method, {name: task.max_text_length for name, task in settings.tasks.items()}
    if spent:
        method = replace(method, budget=_allowed(method, backbone) - spent)
    if method.name == "mpt":
        initial = partial(_initial_prompt, method, backbone, generator=generator)
        multitask, note = make_multitask_prompt(
            initial, hidden_size=backbone.hidden_size, tasks=list(texts), allowed=_allowed(method, backbone)
        )
        return multitask, [note]
    if method.prompt_sharing == "shared":
        return _build_prompt(method, backbone, max(texts.values()), generator)
    built = {name: _build_prompt(method, backbone, length, generator) for name, length in texts.items()}
    prompts = {name: prompt for name, (prompt, _) in built.items() if prompt is not None}
    return (
        TaskPrompts(prompts) if prompts else None,
        [f"{name}: {note}" for name, (_, notes) in built.items() for note in notes],
    )


def _build_prompt(
    method: MethodSettings, backbone: Backbone, max_text_length: int, generator: torch.Generator
) -> tuple[SoftPrompt | None, list[str]]:
    if method.name == "p_tuning":
        initial = _initial_prompt(method, backbone, method.prompt_length, generator)
        encoded, note = make_encoded_prompt(initial, width=method.width, allowed=_limit(method, backbone))
        return encoded, [note]
    offset = OFFSETS.get(method.name)
    if offset is None:
        return None, []
    if offset == "none":
        plain = Placement("a plain prompt", (), lambda length: length * backbone.hidden_size)
        _, length = choose_size(
            method="Prompt tuning",
            unit="prompt length",
            placements=[plain],
            size=None,
            allowed=_allowed(method, backbone),
        )
        return SoftPrompt(_initial_prompt(method, backbone, length, generator)), []
    budget = solve_budget(
        budget_length=method.budget_length,
        prompt_length=method.prompt_length,
        max_text_length=max_text_length,
        hidden_size=backbone.hidden_size,
        rank=method.rank,
        offset=offset,
        parameters=method.budget,
    )
    initial = _initial_prompt(method, backbone, budget.prompt_length, generator)
    return make_prompt(
        initial,
        budget,
        official_scale=method.low_rank_scale == "official",
        official_init=method.low_rank_init == "official",
        token_dropout=method.token_dropout,
        generator=generator,
    ), [budget.describe()]


def _build_head(
    task: TaskSettings,
    backbone: Backbone,
    encoder: Encoder,
    answers: Sequence[str] | None,
) -> Head:
    if (task.head == "classification" or task.constrained) and not answers:
        raise UsageError(
            f"Task {task.name} is to answer from a list (task.head={task.head}, task.constrained="
            f"{str(task.constrained).lower()}), but none is given. Training makes it from the training examples"
        )
    if isinstance(encoder, PromptedEncoder) and backbone.family == "encoder":
        prompt = None if encoder.prompt is None else encoder.prompt.for_task(task.name)
        reader = EncoderOnly(prompt_length=0 if prompt is None else len(prompt.prompt))
        return ClassificationHead(answers=answers or (), hidden_size=_state_size(backbone), family=reader)
    family = DecoderOnly(encoder, task=task.name) if isinstance(encoder, CausalInput) else EncoderDecoder()
    if task.head == "classification":
        return ClassificationHead(answers=answers or (), hidden_size=_state_size(backbone), family=family)
    return generating_head(task, backbone, family=family, answers=answers)


def generating_head(
    task: TaskSettings, backbone: Backbone, *, family: Family, answers: Sequence[str] | None
) -> GenerationHead:
    """The head of a task whose answers are generated, or are labels told apart by their first token."""
    frame = backbone.frame(task.cue)
    if task.head == "first_step":
        return FirstStepHead(
            tokenizer=backbone.tokenizer,
            max_length=task.max_target_length,
            labels=answers or (),
            family=family,
            frame=frame,
        )
    return GenerationHead(
        tokenizer=backbone.tokenizer,
        max_length=task.max_target_length,
        num_beams=task.num_beams,
        token_mean=task.loss == "token",
        answers=answers if task.constrained else None,
        family=family,
        frame=frame,
    )


def _state_size(backbone: Backbone) -> int:
    """The width of the last states, which some models have wider than their embeddings."""
    return cast(int, backbone.model.config.hidden_size)


def _initial_prompt(
    method: MethodSettings, backbone: Backbone, length: int, generator: torch.Generator
) -> torch.Tensor:
    embeddings = _embedding_rows(backbone)
    if method.prompt_init == "normal":
        return from_normal(length, embeddings.shape[1], generator=generator)
    if method.prompt_init == "text":
        return from_text(embeddings, length, token_ids=backbone.tokenizer(method.prompt_text)["input_ids"])
    special = [*backbone.tokenizer.all_special_ids]
    # Rows past the tokenizer's vocabulary only pad the table.
    return from_vocabulary(embeddings[: len(backbone.tokenizer)], length, special_ids=special, generator=generator)


@torch.no_grad()
def _embedding_rows(backbone: Backbone) -> torch.Tensor:
    """The embeddings of all tokens as the first layer takes them."""
    table: Any = backbone.embeddings
    ids = torch.arange(table.num_embeddings, device=table.weight.device)
    return cast(torch.Tensor, table(ids)).float().cpu()
