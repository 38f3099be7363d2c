"""One frozen T5 that answers, in one batch, for as many adapters as the batch has rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from dept_vl.model.answer_trie import AnswerTrie
from dept_vl.model.backbone import Backbone
from dept_vl.model.engine.choice import choose_engine
from dept_vl.model.heads import FirstStepHead, GenerationHead
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.serving.adapters import MergedPrompt, ServedAdapter, read_adapter
from dept_vl.serving.bank import AdapterBank, unknown_adapter
from dept_vl.serving.questions import Question, batch_of, question_of
from dept_vl.settings import Settings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError
from feature_extraction.store.layout import StoredImage

DEFAULT_SETTINGS = Settings()
LENGTH_STEP = 32  # encoder positions; with few shapes, lengths are multiples of it and batches powers of two


class States(NamedTuple):
    """What the encoder made of some rows of a batch; with few shapes, more rows follow that are no one's."""

    rows: list[int]
    states: Float[Tensor, "b S H"]
    mask: Bool[Tensor, "b S"]


class MixedModel:
    """A backbone with a bank of adapters; each row of a batch is answered as its adapter alone would answer it.

    Args:
        settings: of which the engine and the precision are used; with bf16, the backbone's weights should be bf16.
        features: identity of the feature store that images are read from; None where no task has images.
        few_shapes: whether to pad batches to few different shapes, as recorded CUDA graphs want them.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: torch.device,
        settings: Settings = DEFAULT_SETTINGS,
        features: Mapping[str, Any] | None = None,
        few_shapes: bool = False,
    ) -> None:
        """Take a backbone, whose weights are moved to the device.

        Raises:
            UsageError: it is no T5, or the lean engine is asked for and does not suit it.
        """
        kind = backbone.model.config.model_type
        if kind != "t5":
            raise UsageError(
                f"The text backbone {backbone.name!r} is of type {kind!r}, and mixed batches go with a T5 (v1.0, v1.1 "
                "or Flan). Choose one with --backbone, such as t5-mini"
            )
        self.backbone, self.device, self.features = backbone, device, features
        self._bf16, self._few_shapes = settings.training.precision == "bf16", few_shapes
        t5: Any = backbone.model
        dtype = t5.encoder.embed_tokens.weight.dtype
        self._encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=None, visual_embedding=None)
        head = GenerationHead(tokenizer=backbone.tokenizer, max_length=1)
        self._model = PromptedModel(backbone=backbone.model, encoder=self._encoder, heads={"any": head})
        self.notes = choose_engine(self._model, settings, backbone, changed=False)
        self._model.requires_grad_(False).eval().to(device)
        self.family = cast(Any, head.family)
        self._bank = AdapterBank(hidden_size=backbone.hidden_size, dtype=dtype, device=device)
        self._adapters: dict[str, ServedAdapter] = {}
        self._visual: dict[str, VisualEmbedding] = {}

    def names(self) -> list[str]:
        """The adapters that can be asked."""
        return list(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def adapter(self, name: str) -> ServedAdapter:
        """What is known of an adapter.

        Raises:
            UsageError: there is none of this name.
        """
        if name not in self._adapters:
            raise UsageError(unknown_adapter(name, self._adapters))
        return self._adapters[name]

    @property
    def bytes(self) -> int:
        """What all adapters take on the device: the bank's tensor, and each different visual embedding once."""
        visual = [tensor for one in self._visual.values() for tensor in one.state_dict().values()]
        return self._bank.bytes + sum(int(tensor.nbytes) for tensor in visual)

    def bytes_of(self, name: str) -> int:
        """What one adapter takes of the bank, without its visual embedding, which others may share."""
        return self._bank.bytes_of(name)

    def add(self, name: str, folder: Path) -> None:
        """Read an adapter folder and put it in under a name; see ``read_adapter`` for what is refused."""
        self.put(name, *read_adapter(folder, self.backbone, features=self.features, family=self.family))

    def put(self, name: str, merged: MergedPrompt, served: ServedAdapter) -> None:
        """Put an adapter in under a name.

        Raises:
            UsageError: there is one of this name.
        """
        self._bank.add(name, merged.prompt, merged.table)
        if served.visual is not None:
            shared = self._visual.setdefault(served.visual_key, served.visual)
            served = served._replace(visual=shared.to(self.device))
        served.head.to(self.device)
        self._adapters[name] = served

    def remove(self, name: str) -> None:
        """Take an adapter out.

        Raises:
            UsageError: there is none of this name.
        """
        self._bank.remove(name)
        key = self._adapters.pop(name).visual_key
        if key and all(one.visual_key != key for one in self._adapters.values()):
            del self._visual[key]

    def question(self, name: str, text: str, images: Sequence[StoredImage] = ()) -> Question:
        """What an adapter is asked, its text as its task reads it.

        Raises:
            UsageError: there is no adapter of this name.
            InputDataError: its task takes another number of images.
        """
        adapter = self.adapter(name)
        tokenizer = self.backbone.tokenizer
        return question_of(name, text, images, settings=adapter.settings, frame=adapter.head.frame, tokenizer=tokenizer)

    def batch(self, questions: Sequence[Question]) -> Batch:
        """The questions as one batch on the device."""
        return batch_of(questions, pad_id=self.backbone.tokenizer.pad_token_id).to(self.device)

    @torch.no_grad()
    def answer(self, batch: Batch, adapters: Sequence[str]) -> list[str]:
        """The answer to each row of a batch by its own adapter, as the adapter's task reads it.

        Args:
            batch: on the model's device; tasks may differ, and images beyond a task's own are left out.

        Raises:
            UsageError: there is no adapter of one of the names.
        """
        known = [self.adapter(name) for name in adapters]
        answers = [""] * len(known)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            for part in self.encode(batch, adapters):
                for row, text in self._decode(part, known):
                    answers[row] = known[row].task.parse(text)
        return answers

    @torch.no_grad()
    def encode(self, batch: Batch, adapters: Sequence[str]) -> Iterator[States]:
        """The encoder's states of all rows: in one piece, unless adapters differ in the rule of visual positions."""
        known = [self.adapter(name) for name in adapters]
        embedded, mask = self._bank.put_before(adapters, self._encoder.embeddings(batch.text_ids), batch.text_mask)
        visual, visual_mask = self._embed_images(batch, known)
        embedded, mask = torch.cat([embedded, visual], dim=1), torch.cat([mask, visual_mask], dim=1)
        if self._few_shapes:  # positions of padding may stand anywhere
            more = -mask.shape[1] % LENGTH_STEP
            embedded, mask = functional.pad(embedded, (0, 0, more, 0)), functional.pad(mask, (more, 0))
        rules = [adapter.vl_t5_positions and visual.shape[1] > 0 for adapter in known]
        for rule in dict.fromkeys(rules):
            rows = [row for row, one in enumerate(rules) if one == rule]
            self._encoder.vl_t5_positions = rule
            some, real = self._chosen(rows, embedded, mask)
            yield States(rows, *self._encoder.encode(some, real, visual.shape[1]))

    def _embed_images(
        self, batch: Batch, adapters: Sequence[ServedAdapter]
    ) -> tuple[Float[Tensor, "B N H"], Bool[Tensor, "B N"]]:
        """The visual tokens of each row by its adapter's visual embedding; none where no adapter has one."""
        rows_of: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row, adapter in enumerate(adapters):
            if adapter.visual is not None:
                rows_of[adapter.visual_key, adapter.settings.images_per_example].append(row)
        count, images, tokens = batch.visual_mask.shape
        images = max((own for _, own in rows_of), default=0)
        embedded = batch.boxes.new_zeros(count, images * tokens, self.backbone.hidden_size)
        mask = batch.visual_mask.new_zeros(count, images * tokens)
        for (key, own), rows in rows_of.items():
            features, boxes, real = self._chosen(rows, batch.visual_tokens, batch.boxes, batch.visual_mask, exact=True)
            chosen = torch.tensor(rows, device=self.device)
            embedded[chosen, : own * tokens] = self._visual[key](features[:, :own], boxes[:, :own]).to(embedded)
            mask[chosen, : own * tokens] = real[:, :own].flatten(1)
        return embedded, mask

    def _decode(self, part: States, adapters: Sequence[ServedAdapter]) -> Iterator[tuple[int, str]]:
        """The text that each row's head makes of its states, by row of the batch; one search for all that can share it.

        Greedy search goes on to the longest answer that any row may give, and each row is cut at its own: its first
        tokens do not depend on how long it goes on. Those of a beam search do.
        """
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, row in enumerate(part.rows):
            head = adapters[row].head
            one_length = head.max_length if head.num_beams > 1 else None
            groups[type(head), head.num_beams, head.trie is not None, one_length].append(place)
        for places in groups.values():
            heads = [adapters[part.rows[place]].head for place in places]
            states, mask = self._chosen(places, part.states, part.mask)
            first = [head for head in heads if isinstance(head, FirstStepHead)]
            texts = self._first_steps(first, states, mask) if first else self._generated(heads, states, mask)
            yield from zip((part.rows[place] for place in places), texts, strict=True)

    def _generated(self, heads: Sequence[GenerationHead], states: Tensor, mask: Tensor) -> list[str]:
        tries = [head.trie for head in heads]

        def allowed(row: int, ids: Tensor) -> list[int]:
            # Rows that are no one's stand behind the last.
            return cast(AnswerTrie, tries[row if row < len(tries) else 0]).allowed(row, ids)

        ids = self.family.generate(
            cast(Any, self._model.backbone),
            states,
            mask,
            max_length=max(head.max_length for head in heads),
            num_beams=heads[0].num_beams,
            allowed=None if tries[0] is None else allowed,
        )
        rows = [row[: head.max_length] for row, head in zip(ids.tolist(), heads, strict=False)]
        texts = self.backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            text.removeprefix(head.frame.target_prefix) if trie is None else trie.text(row)
            for text, row, head, trie in zip(texts, rows, heads, tries, strict=True)
        ]

    def _first_steps(self, heads: Sequence[FirstStepHead], states: Tensor, mask: Tensor) -> list[str]:
        logits = self.family.first_logits(cast(Any, self._model.backbone), states, mask)
        return [head.labels[int(row[head.first_tokens].argmax())] for row, head in zip(logits, heads, strict=False)]

    def _chosen(self, rows: Sequence[int], *tensors: Tensor, exact: bool = False) -> tuple[Tensor, ...]:
        """These rows of tensors; with few shapes, unless ``exact``, the first again until they are a power of two."""
        count = len(rows) if exact or not self._few_shapes else 1 << (len(rows) - 1).bit_length()
        wanted = [*rows, *[rows[0]] * (count - len(rows))]
        if wanted == list(range(len(tensors[0]))):
            return tensors
        index = torch.tensor(wanted, device=self.device)
        return tuple(tensor[index] for tensor in tensors)
