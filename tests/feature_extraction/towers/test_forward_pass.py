from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feature_extraction.errors import UsageError
from feature_extraction.images.preprocessing import Preprocessing
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.forward_pass import ForwardPass
from feature_extraction.towers.tower import FeatureMaps, Tower

SETTINGS = ExtractionSettings("a test", image_size=4, batch_size=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.75)


class Watched(nn.Module):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 2)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(images)
        found: Tensor = self.convolution(images)
        return found


def tower(network: nn.Module) -> Tower:
    return Tower(network, lambda images: FeatureMaps(network(images)), Preprocessing(4, "bicubic", MEAN, STD))


def forward_pass(network: nn.Module, **settings: Any) -> ForwardPass:
    return ForwardPass(tower(network), ExtractionSettings(**{**vars(SETTINGS), **settings}), torch.device("cpu"))


def test_every_pass_has_the_shape_of_a_whole_batch_filled_up_with_black() -> None:
    network = Watched()
    forward = forward_pass(network)
    assert forward(PIXELS).cells.shape == (3, 5, 3, 3)
    (seen,) = network.seen
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.allclose(seen[2], black.view(3, 1, 1).expand(3, 4, 4))


def test_pixels_are_normalised_as_the_network_wants_them() -> None:
    network = Watched()
    forward_pass(network)(PIXELS)
    expected = (PIXELS / 255 - np.array(MEAN)) / np.array(STD)
    assert np.allclose(network.seen[0][:2].permute(0, 2, 3, 1), expected, atol=1e-5)
    assert network.seen[0].is_contiguous(memory_format=torch.channels_last)
    assert network.convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_and_arithmetic_are_of_the_precision_but_not_the_normalisation(
    precision: str, dtype: torch.dtype
) -> None:
    full, low = Watched(), Watched()
    forward_pass(full)(PIXELS)
    maps = forward_pass(low, precision=precision)(PIXELS)
    assert {maps.cells.dtype, low.convolution.weight.dtype, low.seen[0].dtype} == {dtype}
    assert torch.equal(low.seen[0], full.seen[0].to(dtype))  # rounded once


def test_the_network_is_frozen_and_in_evaluation_mode() -> None:
    network = Watched().train()
    forward_pass(network)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_pixels_that_may_not_be_written_are_read_without_a_warning() -> None:
    pixels = PIXELS.copy()
    pixels.flags.writeable = False
    forward_pass(Watched())(pixels[::-1])


def test_another_kind_of_input_comes_to_the_network_as_it_is() -> None:
    class Sums:
        def apply(self, image: np.ndarray) -> tuple[np.ndarray, Any]:
            return image.sum(axis=(0, 1), dtype=np.int64), None

        def identity(self) -> dict[str, Any]:
            return {}

    network = nn.Embedding(800_000, 2)
    maps = Tower(network, lambda sums: FeatureMaps(network(sums).transpose(1, 2)[..., None]), Sums())
    forward = ForwardPass(maps, SETTINGS, torch.device("cpu"))
    assert forward(np.ones((1, 3), np.int64)).cells.shape == (3, 2, 3, 1)


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace but make no code, which would take long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("without_code")
def test_a_compiled_pass_gives_the_same_feature_maps() -> None:
    network = Watched()
    assert torch.equal(forward_pass(network, compile=True)(PIXELS).cells, forward_pass(network)(PIXELS).cells)


def test_compiling_without_a_compiler_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(_graph: Any, _inputs: Any) -> Callable[..., Any]:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    with pytest.raises(
        UsageError,
        match=r"features\.compile is true, but torch\.compile failed: .*No working C\+\+ compiler.* compiler \(g\+\+\)",
    ):
        forward_pass(Watched(), compile=True)(PIXELS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_gives_nearly_the_same_features() -> None:
    network = Watched()
    compiled = forward_pass(network, compile=True)(PIXELS).cells
    assert torch.allclose(compiled, forward_pass(network)(PIXELS).cells, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_features_of_a_cpu() -> None:
    network = Watched()
    expected = forward_pass(network)(PIXELS).cells
    forward = ForwardPass(tower(network), SETTINGS, torch.device("cuda"))
    for _ in range(3):  # with memory that was used before
        assert torch.allclose(forward(PIXELS).cells.cpu(), expected, atol=1e-2)


def test_a_network_that_gives_no_map_says_with_which_settings() -> None:
    forward = forward_pass(nn.Linear(5, 5))
    with pytest.raises(
        UsageError,
        match=r"a test gives no feature map with features\.image_size=4, features\.layer=None and features\.precision="
        r"fp32: RuntimeError: .* Change one of the four",
    ):
        forward.probe()
