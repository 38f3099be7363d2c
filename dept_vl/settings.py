"""Settings: what defines a run, in typed sections with their defaults, and which values are allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from feature_extraction.errors import UsageError
from feature_extraction.settings import ExtractionSettings


@dataclass(frozen=True)
class BackboneSettings:
    """The frozen text model. With images it is a T5 (v1.0, v1.1 or Flan); text alone goes with other families too."""

    name: str = "t5-mini"  # "t5-mini" (embedded), a Hugging Face id, a local folder, or a .gguf file
    revision: str | None = None  # of a Hugging Face id; null: its main branch
    quantization: str = "none"  # of the frozen weights: none, 8bit or 4bit (by bitsandbytes)
    dropout: float | None = None  # in the frozen layers during training, 0 to 1; null: the model's own
    engine: str = "auto"  # of a T5: lean (fused layers), library, or auto (lean on a GPU, where the method allows it)
    compiled: bool | None = None  # the lean layers by torch.compile; null: on a GPU


@dataclass(frozen=True)
class MethodSettings:
    """What is trained."""

    name: str = "dept"  # one of configs/method
    budget_length: int = 100  # l: the prompt length whose parameters, l * H, may be spent; prompt tuning uses it whole
    budget: int | None = None  # parameters of the method's own, instead of l * H
    prompt_length: int = 40  # m: length of the short prompt of DePT, ADePT and P-tuning
    rank: int | None = None  # r of DePT and ADePT; null: the largest that the budget allows
    lora_rank: int | None = None  # r of LoRA; null: the largest that the budget allows
    width: int | None = None  # of adapters, P-tuning's network and the ladder; null: the largest in the budget
    placement: str | None = None  # of LoRA, (IA)3, adapters, prefixes: all layers or encoder; null: the most that fits
    adapter_places: str | None = None  # all (Houlsby) or feed_forward (Pfeiffer); null: the most that fits
    dropped_fraction: float = 0.4  # of AdapterDrop: lowest layers of each stack without adapters, 0 to 1
    lora_alpha: float = 16.0  # LoRA's update is multiplied by alpha / r
    lora_share: float = 0.5  # of DePT's budget that its LoRA takes (dept_lora), 0 to 1
    prompt_init: str = "vocabulary"  # vocabulary (sampled embeddings), text, or normal
    prompt_text: str | None = None  # for prompt_init: text; repeated and cut to the prompt length
    low_rank_init: str = "official"  # of A: official (uniform within 1/sqrt(r)) or paper (standard normal)
    low_rank_scale: str = "paper"  # of A·B: paper (1) or official (8/sqrt(r))
    token_dropout: float = 0.1  # in ADePT's network during training, 0 to 1
    prompt_sharing: str = "shared"  # among several tasks: shared, or per_task (each its own prompt, A and B)
    init_from: str | None = None  # a finished run, or its adapter folder, whose trained tensors this run starts from
    init_parts: str = "all"  # of it: prompt (P), prompt_a (P and A; B starts at zero), or all


@dataclass(frozen=True)
class VisualSettings:
    """How visual tokens enter the encoder."""

    position_rule: str = "joint"  # relative bias: joint (true positions) or vl_t5 (zero with visual tokens)
    area: str = "true"  # fifth box number: true, or vl_t5 (the published models' formula)


@dataclass(frozen=True)
class TaskSettings:
    """One task. ``max_text_length`` is DePT's s: texts are cut to it, and A has a row for each position."""

    name: str = "vqa"
    module: str = "vqa"  # in dept_vl.tasks
    prefix: str = ""  # put before every text
    vl_adapter_prefix: str | None = None  # where VL-Adapter's published runs have another; null: the same
    prefix_style: str = "vl_t5"  # vl_t5 (``prefix``), vl_adapter (its own), or none
    max_text_length: int = 20  # s, tokens
    max_target_length: int = 10  # L, tokens
    images_per_example: int = 1  # I
    head: str = "generation"  # generation, classification, or first_step (the labels' first tokens compared)
    constrained: bool = False  # generation gives only answers of the vocabulary
    answer_count: int | None = None  # A: so many of the most frequent training answers; null: all
    answer_file: str | None = None  # in the data folder, a JSON list of answers instead (LXMERT's label2ans)
    passes_per_epoch: int = 1  # over the examples; each pass draws one target of each
    loss: str = "example"  # example (mean over an example's tokens, then over examples) or token (over all tokens)
    num_beams: int = 1  # 1: greedy
    template: str = "dept"  # of text tasks: dept (fields, labels as digits) or t5 (T5's prefixes and label words)
    legacy: bool = False  # text tasks as ATTEMPT, MPT and DePT ran them, known defects included
    cue: str = " Answer:"  # what decoder-only backbones read between text and answer
    batch_size: int | None = None  # of this task's steps; null: data.batch_size
    selection_metric: str = "accuracy"  # the best checkpoint has the highest
    splits: dict[str, str] = field(default_factory=dict)  # our split name: the name in the data set's file names

    @property
    def chosen_prefix(self) -> str:
        """What is put before the task's texts."""
        if self.prefix_style == "none":
            return ""
        published = self.vl_adapter_prefix if self.prefix_style == "vl_adapter" else None
        return self.prefix if published is None else published


@dataclass(frozen=True)
class DataSettings:
    """Batching."""

    batch_size: int = 32  # examples an optimizer step sees, over all processes
    evaluation_batch_size: int = 256  # examples a process generates for at once
    bucket_width: int = 8  # tokens; texts of a batch differ in length by less than this
    workers: int = 0  # loader processes for each training process
    shots: int | None = None  # k: training examples in all, evenly over the labels; null: all there are
    shots_seed: int = 0  # which examples those are; apart from training.seed
    resident_features: str = "auto"  # visual features on the device: on, off, or auto (if a GPU has room)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW: a learning rate and a weight decay for each group of parameters."""

    prompt_lr: float = 0.3  # P
    low_rank_lr: float = 1e-3  # A and B, and ADePT's network
    visual_lr: float = 1e-3  # visual embedding
    head_lr: float = 1e-3  # classification head
    adapter_lr: float = 1e-3  # what is added to the layers: LoRA, (IA)3, adapters, prefixes, the ladder
    backbone_lr: float = 1e-4  # the text model's own, for methods full, bitfit and ln_tuning
    prompt_weight_decay: float = 1e-5
    low_rank_weight_decay: float = 1e-5
    visual_weight_decay: float = 0.01
    head_weight_decay: float = 0.01
    adapter_weight_decay: float = 0.01
    backbone_weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float = 1.0  # of all gradients together
    warmup_fraction: float = 0.1  # of all optimizer steps, 0 to 1; then linear decay to 0


@dataclass(frozen=True)
class TrainingSettings:
    """The loop. Give steps or epochs, not both."""

    steps: int | None = None  # optimizer steps
    epochs: float | None = None  # passes over the training examples
    evaluate_every: int = 1000  # steps between validations; the best is kept
    checkpoint_every: int = 1000  # steps between checkpoints; the two newest are kept
    log_every: int = 10  # steps that one line of the loss log averages over
    patience: int | None = None  # validations without a better score before stopping; null: never
    validation_examples: int | None = None  # a fixed random choice of so many; null: all
    mixing_temperature: float = 1.0  # of several tasks: shares go with size^(1/temperature); large: equal shares
    precision: str = "fp32"  # fp32 or bf16
    accumulation: int = 1  # parts that a step's batch is cut into, one after another, to save memory
    checkpoint_activations: bool = False  # compute layers again in the backward pass instead of keeping their states
    seed: int = 0
    tracker: str = "none"  # none, tensorboard, wandb or trackio; the local log.jsonl is always written


@dataclass(frozen=True)
class Settings:
    """Everything that defines a run, of one task or of several that are trained together."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    features: ExtractionSettings = field(default_factory=ExtractionSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    tasks: dict[str, TaskSettings] = field(default_factory=lambda: {"vqa": TaskSettings()})
    visual: VisualSettings = field(default_factory=VisualSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def task(self) -> TaskSettings:
        """The task of a run of one, or of ``of``.

        Raises:
            UsageError: there are several.
        """
        if len(self.tasks) > 1:
            raise UsageError(f"One task is needed here, but {', '.join(self.tasks)} are named. Name one of them")
        return next(iter(self.tasks.values()))

    def of(self, task: str) -> Settings:
        """The settings as one of the tasks sees them."""
        return replace(self, tasks={task: self.tasks[task]})


SECTIONS = {name: value for name, value in vars(Settings()).items() if name != "tasks"} | {"task": TaskSettings()}
KEYS = {name: [key.name for key in fields(section)] for name, section in SECTIONS.items()}

# What each method adds to the frozen token embeddings beside its prompt: by position (DePT), by token (ADePT), or both.
OFFSET_KINDS = ("none", "position", "token", "both")
OFFSETS = {"prompt": "none", "dept": "position", "adept": "token", "dept_adept": "both", "dept_lora": "position"}
INIT_PARTS = ("prompt", "prompt_a", "all")
TRAINS_BACKBONE = ("full", "bitfit", "ln_tuning")  # the methods that train weights of its own
METHODS = (
    *("dept", "prompt", "adept", "dept_adept", "dept_lora", "p_tuning", "mpt", "prefix"),
    *("lora", "ia3", "adapter", "adapter_drop", "lst", "bitfit", "ln_tuning", "visual_only", "full"),
)

CHOICES = {
    "method.name": METHODS,
    "method.placement": (None, "all", "encoder"),
    "method.adapter_places": (None, "all", "feed_forward"),
    "method.init_parts": INIT_PARTS,
    "backbone.quantization": ("none", "8bit", "4bit"),
    "backbone.engine": ("auto", "library", "lean"),
    "data.resident_features": ("auto", "on", "off"),
    "method.prompt_init": ("vocabulary", "text", "normal"),
    "method.low_rank_init": ("official", "paper"),
    "method.low_rank_scale": ("official", "paper"),
    "method.prompt_sharing": ("shared", "per_task"),
    "visual.position_rule": ("joint", "vl_t5"),
    "visual.area": ("true", "vl_t5"),
    "task.prefix_style": ("vl_t5", "vl_adapter", "none"),
    "task.head": ("generation", "classification", "first_step"),
    "task.loss": ("example", "token"),
    "task.template": ("dept", "t5"),
    "training.precision": ("fp32", "bf16"),
    "training.tracker": ("none", "tensorboard", "wandb", "trackio"),
}

AT_LEAST = {
    **dict.fromkeys(("method.budget_length", "method.budget", "method.width", "method.lora_rank"), 1),
    **dict.fromkeys(("task.max_text_length", "task.num_beams"), 1),
    **dict.fromkeys(("task.batch_size", "task.passes_per_epoch"), 1),
    **dict.fromkeys(("method.prompt_length", "method.rank", "task.images_per_example"), 0),
    "task.answer_count": 2,
    "task.max_target_length": 2,  # a token and </s>
    **dict.fromkeys(("data.batch_size", "data.evaluation_batch_size", "data.bucket_width"), 1),
    **dict.fromkeys(("data.workers", "backbone.dropout"), 0),
    **{f"optimizer.{name}": 0 for name in KEYS["optimizer"]},
    "optimizer.clip_norm": 1e-6,
    **dict.fromkeys(("training.steps", "training.patience", "training.validation_examples"), 1),
    "training.accumulation": 1,
    **dict.fromkeys(("training.evaluate_every", "training.checkpoint_every", "training.log_every"), 1),
    "training.epochs": 0.001,
    "training.mixing_temperature": 0.01,
    "training.seed": 0,
    "data.shots": 1,
    "data.shots_seed": 0,
    **dict.fromkeys(("method.token_dropout", "method.dropped_fraction", "method.lora_alpha"), 0),
    "method.lora_share": 0.01,
}

AT_MOST = {
    **dict.fromkeys(("backbone.dropout", "optimizer.warmup_fraction", "method.token_dropout"), 1),
    **dict.fromkeys(("method.dropped_fraction", "method.lora_share"), 0.99),
    **dict.fromkeys(("optimizer.beta1", "optimizer.beta2"), 0.999999),
    "training.epochs": 1e6,
}


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that asks whether the most similar known name was meant, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def wrong_values(settings: Settings) -> Iterator[str]:
    """What is wrong with the values of settings, a sentence each."""
    for key, allowed in CHOICES.items():
        for name, value in _look_up(settings, key):
            if value not in allowed:
                names = ["null" if one is None else one for one in allowed]
                yield f"{name} is {value!r}.{nearest(str(value), names)} It is one of: {', '.join(names)}"
    for key in {**AT_LEAST, **AT_MOST}:
        least, most = AT_LEAST.get(key, -math.inf), AT_MOST.get(key, math.inf)
        for name, value in _look_up(settings, key):
            if value is not None and not least <= value <= most:  # NaN is refused too
                limits = f"at least {least}" if most == math.inf else f"{least} to {most}"
                yield f"{name} is {value}; it must be {limits}"
    training, method = settings.training, settings.method
    if (training.steps is None) == (training.epochs is None):
        yield (
            f"training.steps is {training.steps} and training.epochs is {training.epochs}; set exactly one, "
            "as in training.steps=600 training.epochs=null"
        )
    short = OFFSETS.get(method.name, "none") != "none" and method.budget is None
    if short and method.prompt_length > method.budget_length:
        yield (
            f"method.prompt_length (m) is {method.prompt_length} but method.budget_length (l) is "
            f"{method.budget_length}; {method.name} needs m <= l: lower m or raise l"
        )
    if method.name in TRAINS_BACKBONE and settings.backbone.quantization != "none":
        yield (
            f"backbone.quantization is {settings.backbone.quantization!r}, but method {method.name} trains the "
            "backbone's own weights, which are quantised. Set backbone.quantization=none"
        )
    if method.name == "lst" and training.checkpoint_activations:
        yield (
            "training.checkpoint_activations is true, but the backward pass of method lst does not enter the "
            "backbone's layers, so there is nothing to save. Set training.checkpoint_activations=false"
        )
    if method.prompt_init == "text" and not method.prompt_text:
        yield "method.prompt_init is 'text' but method.prompt_text is empty; give the text to start from"


def _look_up(settings: Settings, key: str) -> Iterator[tuple[str, Any]]:
    """A setting's full name and its value, for each task where it is a task's."""
    section, name = key.split(".")
    if section != "task":
        yield key, getattr(getattr(settings, section), name)
    else:
        for task, values in settings.tasks.items():
            yield key if len(settings.tasks) == 1 else f"tasks.{task}.{name}", getattr(values, name)
