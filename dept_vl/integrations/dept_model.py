"""Any Hugging Face language model behind DePT's or ADePT's prompt, as PEFT wants it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from jaxtyping import Bool, Float, Int64, Shaped
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from dept_vl.integrations.base_weights import BaseWeights
from dept_vl.integrations.dept_config import DeptConfig
from dept_vl.integrations.initial_prompt import initial_prompt
from dept_vl.model.adapter import FORMAT, TASK_TYPES, foreign_tensors
from dept_vl.model.backbone import family_of
from dept_vl.model.prompted_text import CausalInput, pack
from dept_vl.model.soft_prompt import SoftPrompt
from feature_extraction.errors import IncompatibleError, UsageError

INPUT = "prompted_input"  # the submodule that a model gets
# PEFT's task types by the family of the model, and whether it generates.
TASK_TYPES_OF = {(family, family != "encoder"): kind for family, kind in TASK_TYPES.items()} | {
    ("decoder", False): "SEQ_CLS"
}


class PromptedInput(nn.Module, BaseTunerLayer):
    """The prompts of all adapters, by name."""

    adapter_layer_names = ("dept_prompts",)
    anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.dept_prompts = nn.ModuleDict()
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # moves with the model

    @property
    def active(self) -> SoftPrompt | None:
        """The prompt in use, if adapters are."""
        if self.disable_adapters or not self.active_adapters:
            return None
        return cast(SoftPrompt, self.dept_prompts[self.active_adapters[0]])

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the adapter in use, and let it train unless ``inference_mode``.

        Raises:
            UsageError: there are several.
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise UsageError(
                f"Adapters {', '.join(adapter_names)} cannot be active together, since a text has one prompt. Set one"
            )
        super().set_adapter(adapter_names, inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        self.dept_prompts[adapter_name].to(device or self.anchor.device)


class DeptModel(BaseTuner):
    """A language model behind the prompt and the offsets of the active adapter."""

    prefix = "dept_"
    tuner_layer_cls = PromptedInput
    uses_shared_state = True  # PEFT refuses to put such a method into a model without this class around it

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter's prompt to the model, which is frozen with the first."""
        config = cast(DeptConfig, self.peft_config[adapter_name])
        if not hasattr(self, "base_weights"):
            self.base_weights = BaseWeights(self.model, added=INPUT)
        self._check(config)
        budget = config.budget(self._embeddings.embedding_dim)
        config.rank = budget.rank
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            prompt = initial_prompt(config, budget, self._embeddings, self.model.config)
        if not hasattr(model, INPUT):
            model.requires_grad_(False)
            model.add_module(INPUT, PromptedInput().to(self._embeddings.weight.device))
            self._input.set_adapter(self.active_adapters)
        active = adapter_name in self.active_adapters
        prompt.requires_grad_(active and not config.inference_mode)
        self._input.dept_prompts[adapter_name] = prompt.train(model.training)
        if not any(value.is_meta for value in prompt.parameters()):
            self._input._move_adapter_to_device_of_base_layer(adapter_name)
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(model),
            adapter_name=adapter_name,
            activate_adapter=active,
        )

    def forward(
        self,
        input_ids: Int64[Tensor, "B T"] | None = None,
        attention_mask: Shaped[Tensor, ...] | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 - the model's own
    ) -> Any:  # noqa: ANN401
        """The model's output for [prompt | text]."""
        prompt = self._input.active
        if prompt is None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
            return self.model(**given, labels=labels, **kwargs)
        text, mask = self._text(prompt, input_ids, inputs_embeds, attention_mask)
        if self._family == "decoder":
            return self._causal(prompt, text, mask, labels, kwargs)
        if self._family == "encoder":
            return self._classified(prompt, text, mask, labels=labels, **kwargs)
        embedded, real = pack(*_insert(prompt, text, mask), last=False)
        return self.model(inputs_embeds=embedded, attention_mask=real.long(), labels=labels, **kwargs)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """What the model generates after [prompt | text], with all options of its own ``generate``.

        As with the model alone, the ids begin with the text where it is decoder-only and its input was ids.
        """
        prompt = self._input.active
        if prompt is None:
            return self.model.generate(inputs, **kwargs)
        ids = kwargs.pop("input_ids", inputs)
        given = kwargs.pop("attention_mask", None)
        if given is None and ids is not None:
            given = self._likely_mask(ids)
        embedded, mask = _insert(prompt, *self._text(prompt, ids, kwargs.pop("inputs_embeds", None), given))
        causal = self._family == "decoder"
        embedded, mask = pack(embedded, mask, last=causal)
        if not causal:
            return self.model.generate(inputs_embeds=embedded, attention_mask=mask.long(), **kwargs)
        self._refuse_static_cache(kwargs)
        for key in ("max_length", "min_length"):  # of the text and the answer; the library counts the prompt too
            if kwargs.get(key) is not None:
                kwargs[key] += len(prompt.prompt)
        text = CausalInput(embeddings=self._embeddings, prompt=prompt, dtype=self._embeddings.weight.dtype)
        with text.while_generating(self.model, task=""):
            output = self.model.generate(inputs_embeds=embedded, attention_mask=mask.long(), **kwargs)
        return output if ids is None else _with_text(output, ids)

    def unload(self) -> nn.Module:
        """The base model as it was, but frozen."""
        for name, module in list(self.model.named_modules(remove_duplicate=False)):
            if isinstance(module, AuxiliaryTrainingWrapper):  # not PEFT's way, which leaves trained weights in
                self.model.set_submodule(name, module.original_module)
        delattr(self.model, INPUT)
        del self.model.peft_config
        return cast(nn.Module, self.model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:  # noqa: ANN401
        if kwargs.get("adapter_names") is not None:
            raise UsageError(
                "adapter_names was given, but DePT cannot mix adapters in a batch. "
                "Make a batch for each adapter, and call set_adapter before it"
            )
        yield

    def _causal(
        self,
        prompt: SoftPrompt,
        text: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "B T"],
        labels: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401
        for name in ("position_ids", "past_key_values"):
            if kwargs.pop(name, None) is not None:
                raise UsageError(
                    f"{name} was given, but DePT finds positions by attention_mask and reads a text at once. "
                    "Leave it out; to generate, call generate"
                )
        embedded, real = _insert(prompt, text, mask)
        if not self.model.can_generate():
            embedded, real = pack(embedded, real, last=True)  # the classification head reads the last column
        elif labels is not None:
            labels = labels.masked_fill(_leading(mask), -100)  # where the prompt ends now
            labels = torch.cat([labels.new_full((len(labels), len(prompt.prompt)), -100), labels], dim=1)
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        return self.model(
            inputs_embeds=embedded, attention_mask=real.long(), position_ids=positions, labels=labels, **kwargs
        )

    def _classified(
        self,
        prompt: SoftPrompt,
        text: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "B T"],
        *,
        token_type_ids: Int64[Tensor, "B T"] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if token_type_ids is not None:  # packed like their tokens; the prompt is of the first token's type
            types = pack(token_type_ids.unsqueeze(-1).to(text.dtype), mask, last=False)[0].squeeze(-1).long()
            kwargs["token_type_ids"] = torch.cat([types[:, :1].expand(-1, len(prompt.prompt)), types], dim=1)
        text, mask = pack(text, mask, last=False)
        embedded, real = _insert(prompt, text[:, 1:], mask[:, 1:])
        # The first token ([CLS], <s>) stays first, since the head reads it.
        embedded, real = torch.cat([text[:, :1], embedded], dim=1), torch.cat([mask[:, :1], real], dim=1)
        return self.model(inputs_embeds=embedded, attention_mask=real.long(), **kwargs)

    def _text(
        self,
        prompt: SoftPrompt,
        ids: Int64[Tensor, "B T"] | None,
        embedded: Float[Tensor, "B T H"] | None,
        mask: Shaped[Tensor, ...] | None,
    ) -> tuple[Float[Tensor, "B T H"], Bool[Tensor, "B T"]]:
        """The text's embeddings with what the prompt adds to them, and which are real."""
        if (ids is None) == (embedded is None):
            raise UsageError("Give either input_ids or inputs_embeds of the text; the prompt is put before it here")
        embedded = self._embeddings(ids) if embedded is None else embedded
        real = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device) if mask is None else mask.bool()
        if real.shape != embedded.shape[:2]:
            raise UsageError(
                f"attention_mask has shape {tuple(real.shape)}, but the text has {tuple(embedded.shape[:2])}. "
                "Give one of the text alone; the prompt's part is added here"
            )
        return prompt.embed_text(embedded, real).to(embedded.dtype), real

    def _likely_mask(self, ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Which ids are real as the library guesses it: all but the padding token, unless it also ends texts."""
        pad, ends = (getattr(self.model.generation_config, f"{name}_token_id") for name in ("pad", "eos"))
        if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
            return torch.ones_like(ids, dtype=torch.bool)
        return ids.ne(pad)

    def _refuse_static_cache(self, kwargs: dict[str, Any]) -> None:
        options = kwargs.get("generation_config") or self.model.generation_config
        cache = kwargs.get("cache_implementation") or options.cache_implementation
        if cache is not None and "static" in cache:
            raise UsageError(
                f"cache_implementation is {cache!r}, with which positions of generated tokens cannot be told. "
                "Leave it out, or choose 'dynamic'"
            )

    @property
    def _input(self) -> PromptedInput:
        return cast(PromptedInput, getattr(self.model, INPUT))

    @property
    def _family(self) -> str:
        return family_of(self.model.config)

    @property
    def _embeddings(self) -> nn.Embedding:
        """What turns the text's token ids into the first layer's input."""
        owner = self.model.get_encoder() if self._family == "encoder_decoder" else self.model
        return cast(nn.Embedding, owner.get_input_embeddings())

    def _check(self, config: DeptConfig) -> None:
        """Refuse an adapter that does not go with the model.

        Raises:
            UsageError: the task type is missing, or not one of the model.
            IncompatibleError: the adapter has parts that need dept_vl's own model, or is of another base model.
        """
        record = config.dept_vl or {}
        foreign = foreign_tensors(record.get("shapes", {}))
        if foreign:
            raise IncompatibleError(
                f"The adapter holds {len(foreign)} tensors that a Hugging Face model has no place for, such as "
                f"{foreign[0]}: those of images, of classification heads or of several tasks' prompts. "
                "Use it by dept_vl itself: python -m dept_vl.evaluate --run RUN, or dept_vl.Predictor"
            )
        needed = TASK_TYPES_OF.get((self._family, self.model.can_generate()))
        if needed is None or config.task_type != needed:
            what = f"needs {needed}. Set task_type={needed!r}" if needed else "cannot be prompted. Take another class"
            raise UsageError(f"DeptConfig.task_type is {config.task_type}, but a {type(self.model).__name__} {what}")
        if record:
            self.base_weights.refuse_others(
                record["identity"], replaced=config.modules_to_save or (), source="The adapter"
            )

    def _create_and_replace(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Nothing inside the model is replaced."""

    def _check_merge_allowed(self) -> None:
        raise UsageError(
            "DePT's prompt and offsets change the input, not the weights, and cannot be merged. "
            "Keep the adapter beside the model, or take it away by unload"
        )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The adapter's tensors as they lie in the model; empty ones (m or r is 0) are left out."""
        # Saving passes here alone with both model and configuration in hand.
        tuner = next(one for one in model.modules() if isinstance(one, DeptModel))
        config = cast(DeptConfig, config)
        method = config._method()["name"]
        config.saved_identity = {"format": FORMAT, "task": None, "method": method} | tuner.base_weights.identity(
            replaced=config.modules_to_save or ()
        )
        place = next(name for name, one in model.named_modules() if isinstance(one, PromptedInput))
        own = tuner._input.dept_prompts[adapter_name].state_dict(prefix=f"{place}.dept_prompts.{adapter_name}.")
        # Not those of state_dict alone: another adapter may be called like a tensor, and then lacks there.
        return {name: state_dict.get(name, value) for name, value in own.items() if value.numel()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The names of dept_vl's own adapters: prompt.a, prompt.b, prompt.w1, ..."""
        _, mark, name = key.partition(f"{INPUT}.dept_prompts.{adapter_name}.")
        if mark:
            return f"prompt.{name.removeprefix('token_offset.')}"
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The inverse, with the empty tensors that were left out.

        Raises:
            IncompatibleError: others are missing.
        """
        mark = f".dept_prompts.{adapter_name}."
        own = {name: value for name, value in model.state_dict().items() if mark in name}
        names = {name: cls._remove_adapter_name_from_key(name, adapter_name) for name in own}
        missing = [names[name] for name, value in own.items() if value.numel() and names[name] not in state_dict]
        if missing:
            raise IncompatibleError(
                f"The adapter lacks {', '.join(missing)}, so it is not whole, or of other settings than its "
                "configuration says. Take it again from where it was saved"
            )
        empty = {name: value for name, value in own.items() if not value.numel()}
        return empty | super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _insert(
    prompt: SoftPrompt, text: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
    """[padding | prompt | text | padding] with padding where it was, and which positions are real.

    So the token of input column c stands in column P + c, and the prompt right before the text's first.
    """
    before = prompt.prompt.to(text.dtype).expand(len(text), -1, -1)
    whole = torch.cat([before, text], dim=1), torch.cat([mask.new_ones(before.shape[:2]), mask], dim=1)
    place = torch.cat([mask.new_ones(before.shape[:2]).long(), 2 * (~_leading(mask)).long()], dim=1)
    order = place.argsort(dim=1, stable=True)
    return whole[0].gather(1, order.unsqueeze(-1).expand_as(whole[0])), whole[1].gather(1, order)


def _leading(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Padding before the text."""
    return mask.cumsum(dim=1) == 0


def _with_text(output: Any, ids: Int64[Tensor, "B T"]) -> Any:  # noqa: ANN401 - ids, or a record with them
    """Generated ids behind those of the text, which several rows may belong to."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    text = ids.repeat_interleave(len(sequences) // len(ids), dim=0)
    joined = torch.cat([text, sequences], dim=1)
    if isinstance(output, Tensor):
        return joined
    output.sequences = joined
    return output
