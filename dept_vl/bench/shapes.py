"""What is measured: models of T5's sizes with random weights, and batches of several shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from dept_vl.data.order import epoch_batches
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.settings import BackboneSettings, MethodSettings, OptimizerSettings, Settings, TaskSettings
from dept_vl.types import Batch

VOCABULARY = 32_128
BUDGET_LENGTH = 100  # l: at every m, A and B take the rest of l * d parameters
BUCKET_WIDTH = 8  # tokens
SIZES = {  # d_model, d_kv, d_ff, layers of each stack, heads
    "tiny": (32, 8, 64, 2, 4),
    "mini": (256, 32, 1024, 6, 8),
    "small": (512, 64, 2048, 6, 8),
    "base": (768, 64, 3072, 12, 12),
    "large": (1024, 64, 4096, 24, 16),
    "3b": (1024, 128, 16384, 24, 32),
}


@dataclass(frozen=True)
class Workload:
    """Shapes of inputs. Of ``mean_length`` the texts' lengths vary as GLUE's do; otherwise all are ``text_length``."""

    name: str
    text_length: int  # s: what texts are padded to where they are not bucketed
    target_length: int
    mean_length: float | None = None
    visual_tokens: int = 0
    feature_width: int = 0
    bucketed: bool = False  # whether we batch texts of similar length, as training does

    def lengths(self, count: int) -> np.ndarray:
        """So many texts' lengths, the same at every call."""
        if self.mean_length is None:
            return np.full(count, self.text_length)
        spread = 0.6  # of the logarithm: most of GLUE's sentences and pairs lie between 15 and 90 tokens
        generator = np.random.default_rng(0)
        drawn = generator.lognormal(np.log(self.mean_length) - spread**2 / 2, spread, count)
        return np.clip(drawn.round(), 3, self.text_length).astype(int)


WORKLOADS = {
    "padded": Workload("padded", 256, 8, mean_length=190.0),
    "glue": Workload("glue", 256, 4, mean_length=38.0, bucketed=True),
    "vl": Workload("vl", 20, 4, visual_tokens=36, feature_width=2048),
}


def shrunk(workload: Workload) -> Workload:
    """The same in small, to try the benchmark itself."""
    return replace(
        workload,
        text_length=min(workload.text_length, 32),
        mean_length=None if workload.mean_length is None else workload.mean_length / 8,
        visual_tokens=min(workload.visual_tokens, 4),
        feature_width=min(workload.feature_width, 16),
    )


def config_of(size: str, *, dropout: float = 0.1) -> T5Config:
    """The configuration of a T5 v1.0 of a size."""
    width, key, inner, layers, heads = SIZES[size]
    config: T5Config = cast(Any, T5Config)(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=key,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        decoder_start_token_id=0,
    )
    return config


def random_t5(
    size: str, *, dtype: torch.dtype, device: torch.device, eager: bool = False
) -> T5ForConditionalGeneration:
    """A T5 with random weights, frozen; ``eager`` has attention written out, as older libraries do."""
    torch.manual_seed(0)
    config = config_of(size)
    if eager:
        config._attn_implementation = "eager"
    with device:
        model = T5ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = config.decoder_start_token_id
    frozen: T5ForConditionalGeneration = cast(Any, model).to(dtype).requires_grad_(False)
    return frozen


def batches_of(workload: Workload, *, size: int, count: int, bucketed: bool) -> list[Batch]:
    """So many batches of the same examples, padded to the text length, or in buckets of similar length."""
    generator = torch.Generator().manual_seed(0)
    lengths = workload.lengths(size * count)
    ids = torch.randint(3, 30_000, (len(lengths), workload.text_length), generator=generator)
    order: Sequence[np.ndarray]
    if bucketed:
        order = epoch_batches(lengths, seed=0, epoch=0, batch_size=size, bucket_width=BUCKET_WIDTH)
    else:
        order = np.split(np.arange(len(lengths)), count)
    batches = []
    for rows in order:
        own = torch.from_numpy(lengths[rows])
        longest = -(-int(own.max()) // BUCKET_WIDTH) * BUCKET_WIDTH if bucketed else workload.text_length
        longest = min(longest, workload.text_length)
        visual = (size, 1, workload.visual_tokens)
        batches.append(
            Batch(
                task="vqa",
                example_ids=tuple(map(str, rows.tolist())),
                text_ids=ids[torch.from_numpy(rows), :longest],
                text_mask=torch.arange(longest) < own[:, None],
                visual_tokens=torch.randn(*visual, workload.feature_width, generator=generator),
                boxes=torch.rand(*visual, 4, generator=generator),
                visual_mask=torch.ones(visual, dtype=torch.bool),
                target_ids=torch.randint(3, 30_000, (size, workload.target_length), generator=generator),
                target_mask=torch.ones(size, workload.target_length, dtype=torch.bool),
                target_weights=torch.ones(size),
                answer_scores=torch.zeros(size, 0),
            )
        )
    return batches


def our_model(
    t5: T5ForConditionalGeneration,
    workload: Workload,
    *,
    prompt_length: int,
    engine: str,
    compiled: bool | None = None,
    answer_length: int = 8,
) -> BuiltModel:
    """Our model around a T5, DePT with a prompt of so many vectors; with ``BUDGET_LENGTH`` it is prompt tuning."""
    method = "prompt" if prompt_length == BUDGET_LENGTH else "dept"
    settings = Settings(
        backbone=BackboneSettings(engine=engine, compiled=compiled),
        method=MethodSettings(name=method, budget_length=BUDGET_LENGTH, prompt_length=prompt_length),
        tasks={
            "vqa": TaskSettings(
                max_text_length=workload.text_length,
                max_target_length=answer_length,
                images_per_example=int(workload.visual_tokens > 0),
            )
        },
        optimizer=OptimizerSettings(),
    )
    return build_model(
        settings,
        random_backbone(t5),
        visual_tokens=workload.visual_tokens,
        feature_width=workload.feature_width,
        seed=0,
    )


def random_backbone(t5: T5ForConditionalGeneration) -> Backbone:
    """A T5 as a loaded backbone."""
    return Backbone("random", t5, _tokenizer(), "", "")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Words that nobody reads: texts here are random ids."""
    from tokenizers import Tokenizer, models

    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{one}" for one in range(200))])}
    made: PreTrainedTokenizerFast = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),  # noqa: S106 - no password
        pad_token="<pad>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )
    return made
