from __future__ import annotations

import pickle
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feature_extraction.backbones import build_backbone
from feature_extraction.errors import UsageError
from feature_extraction.images.batches import decoded_batches, shard_batches
from feature_extraction.images.sources import list_images
from feature_extraction.settings import ExtractionSettings

# The whole contract: a user writes no more than this.
TOWER = """
    import numpy as np
    import torch
    from torch import nn

    class Stripes(nn.Module):
        def __init__(self, settings):
            super().__init__()
            torch.manual_seed(0)
            self.size = settings.image_size
            self.mix = nn.Linear(3, 5)

        def preprocess(self, image):
            rows = np.linspace(0, len(image) - 1, self.size).astype(int)
            return (image[rows, :4] / np.float32(255)).astype(np.float32)

        def forward(self, batch):
            return self.mix(batch.mean(dim=2))

    def build(settings):
        return Stripes(settings)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExtractionSettings]:
    """Writes a module into the current folder, and settings that name its ``build``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    number = 0

    def write(source: str = TOWER, *, replaced: tuple[str, str] = ("", ""), **settings: Any) -> ExtractionSettings:
        nonlocal number
        number += 1
        name = f"own_towers_{abs(hash(tmp_path))}_{number}"  # Python keeps modules by name
        text = textwrap.dedent(source)
        assert replaced[0] in text
        (tmp_path / f"{name}.py").write_text(text.replace(*replaced))
        return replace(
            ExtractionSettings(f"{name}:build", image_size=7, batch_size=2, workers=0),
            **settings,
        )

    return write


def test_tokens_are_stored_as_forward_gives_them(own: Callable[..., ExtractionSettings], pictures: Any) -> None:
    backbone = build_backbone(own())
    assert (backbone.visual_tokens, backbone.feature_width) == (7, 5)
    network = backbone._tower.network
    shown = np.stack([network.preprocess(picture) for picture in pictures])
    expected = network(torch.from_numpy(shown)).detach().numpy()
    found = backbone.encode(pictures)
    assert np.allclose(found["features"], expected, atol=1e-3)
    assert found["boxes"].tolist() == [[[0, 0, 1, 1]] * 7] * 5  # nobody knows their places


def test_a_feature_map_has_the_places_of_its_cells_and_can_be_pooled(
    own: Callable[..., ExtractionSettings], pictures: Any
) -> None:
    as_map = ("return self.mix(batch.mean(dim=2))", "return self.mix(batch).permute(0, 3, 1, 2)")
    found = build_backbone(own(replaced=as_map)).encode(pictures)
    assert found["features"].shape == (5, 28, 5)
    assert found["boxes"][0, 1].tolist() == pytest.approx([0.25, 0, 0.5, 1 / 7])
    assert build_backbone(own(replaced=as_map, grid=2)).visual_tokens == 4


@pytest.mark.parametrize(
    "form",
    [
        "self.boxes = [[0.1] * 4] * 7",
        "self.boxes = lambda: torch.full((7, 4), 0.1)",
        "self.register_buffer('boxes', torch.full((7, 4), 0.1))",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tokens_can_have_boxes_of_their_own(
    own: Callable[..., ExtractionSettings], pictures: Any, form: str, precision: str
) -> None:
    settings = own(replaced=("self.mix =", f"{form}; self.mix ="), precision=precision)
    boxes = build_backbone(settings).encode(pictures)["boxes"]
    assert np.array_equal(boxes, np.full((5, 7, 4), 0.1, np.float32))


def test_whole_numbers_come_to_forward_as_they_are_and_others_in_the_precision(
    own: Callable[..., ExtractionSettings], pictures: Any
) -> None:
    look = (
        "return self.mix(batch.mean(dim=2))",
        "seen.append(batch.dtype); return self.mix.weight[None].repeat(len(batch), 1, 1)",
    )
    plain = TOWER + "\n    seen = []\n"
    backbone = build_backbone(own(plain, replaced=look, precision="bf16"))
    backbone.encode(pictures[:1])
    module = __import__(backbone.settings.backbone.partition(":")[0])
    assert set(module.seen) == {torch.bfloat16}
    whole = plain.replace("(image[rows, :4] / np.float32(255)).astype(np.float32)", "image[rows, :4]")
    backbone = build_backbone(own(whole, replaced=look, precision="bf16"))
    module = __import__(backbone.settings.backbone.partition(":")[0])
    assert set(module.seen) == {torch.uint8}


def test_an_own_backbone_s_identity_notices_other_weights_and_another_preprocessing(
    own: Callable[..., ExtractionSettings],
) -> None:
    first = build_backbone(own()).identity()
    assert first["backbone"].endswith(":build")
    assert first["preprocessing"]["shape"] == [7, 4, 3]
    assert first["preprocessing"]["dtype"] == "float32"
    assert "image_size" not in first  # the shape says it
    weights = build_backbone(own(replaced=("manual_seed(0)", "manual_seed(1)"))).identity()
    assert weights["weight_digest"] != first["weight_digest"]
    assert weights["preprocessing"] == first["preprocessing"]
    for change in [("255", "256"), ("[rows, :4]", "[rows, :4, ::-1]"), ("image[rows", "image[rows[::-1]")]:
        other = build_backbone(own(replaced=change)).identity()
        assert other["preprocessing"]["sample"] != first["preprocessing"]["sample"]
        assert other["weight_digest"] == first["weight_digest"]


def test_the_preprocessing_travels_to_workers_without_the_network(
    own: Callable[..., ExtractionSettings], make_images: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    wide = ("self.mix = nn.Linear(3, 5)", "self.mix = nn.Linear(3, 5); self.large = nn.Linear(1000, 100)")
    settings = own(replaced=wide, workers=1)
    backbone = build_backbone(settings)
    assert len(pickle.dumps(backbone.preparation)) < 5_000
    images = list_images(make_images(tmp_path / "images", 5))
    decoded = list(decoded_batches(shard_batches(0, images, 2), backbone.preparation, workers=1))
    alone = list(decoded_batches(shard_batches(0, images, 2), backbone.preparation, workers=0))
    for there, here in zip(decoded, alone, strict=True):
        assert there.inputs is not None
        assert here.inputs is not None
        assert np.array_equal(there.inputs.pixels, here.inputs.pixels)


def test_preprocess_may_use_buffers_and_parts_without_weights(own: Callable[..., ExtractionSettings]) -> None:
    uses = ("self.mix =", "self.shift = nn.Identity(); self.register_buffer('mean', torch.zeros(3)); self.mix =")
    source = TOWER.replace("/ np.float32(255)", "/ np.float32(255) - self.shift(self.mean).numpy()")
    assert build_backbone(own(source, replaced=uses)).visual_tokens == 7


def test_preprocess_cannot_use_weights(own: Callable[..., ExtractionSettings]) -> None:
    uses = ("/ np.float32(255)", "* self.mix.weight[0, 0].item()")
    with pytest.raises(UsageError, match=r"preprocess failed with AttributeError: .*'mix'.*without the module's param"):
        build_backbone(own(replaced=uses))


def test_a_preprocess_that_cannot_be_sent_is_refused_where_there_are_workers(
    own: Callable[..., ExtractionSettings],
) -> None:
    hidden = ("self.size =", "self.odd = lambda: 0; self.size =")
    with pytest.raises(UsageError, match=r"preprocess cannot be sent .*no lambdas.* or set features\.workers to 0"):
        build_backbone(own(replaced=hidden, workers=1))
    assert build_backbone(own(replaced=hidden)).visual_tokens == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return Stripes(settings)", "return 3"), r":build gives an int; it must give a torch\.nn\.Module with pre"),
        (("def preprocess", "def prepare"), r"gives a Stripes without the method preprocess\. Write preprocess\(image"),
        (("def forward", "def go"), r"without the method forward\. Write"),
        (("def build", "def make"), r"has no function 'build'\. Write build\(settings\), which gives a torch\.nn\.Mod"),
        (("return (image", "return None; (image"), r"preprocess gives a NoneType; it must give an array of numbers"),
        (("return (image", "return np.array(['a']); (image"), r"preprocess gives <U1 \(1,\); it must give an array of"),
        (
            ("rows = np.linspace(0, len(image) - 1, self.size).astype(int)", "rows = slice(None)"),
            r"preprocess makes fl",
        ),
        (("return self.mix", "return [], self.mix"), r"forward gives a tuple for a batch of 1 images; it must give fl"),
        (("self.mix(batch.mean(dim=2))", "batch.mean(dim=(1, 2))"), r"forward gives float32 \(1, 3\) for a batch of"),
        (("self.mix(batch.mean(dim=2))", "batch.mean(dim=2).long()"), r"forward gives int64 \(1, 7, 3\) for a batch"),
        (("self.mix(batch.mean(dim=2))", "batch[:0, 0]"), r"gives float32 \(0, 4, 3\) for .*; the first axis must be"),
        (("self.mix(batch.mean(dim=2))", "1 / self.nothing"), r":build gives no feature map with .* AttributeError"),
        (("self.size =", "self.boxes = [[0] * 4]; self.size ="), r"boxes is float32 \(1, 4\) for 7 visual tokens; it"),
        (
            ("self.size =", "self.boxes = [[9] * 4] * 7; self.size ="),
            r"boxes is float32 \(7, 4\) .*must be \[7 4\], fo",
        ),
    ],
)
def test_what_is_not_as_the_contract_says_is_refused(
    own: Callable[..., ExtractionSettings], change: tuple[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(own(replaced=change))


def test_an_image_of_which_preprocess_makes_another_shape_is_refused(
    own: Callable[..., ExtractionSettings], pictures: Any
) -> None:
    odd = ("rows =", "self.size = 8 if image.shape[0] == 21 else self.size; rows =")
    backbone = build_backbone(own(replaced=odd))
    with pytest.raises(UsageError, match=r"preprocess makes float32 \(8, 4, 3\) of an image of 30 x 21 pixels, but fl"):
        backbone.encode(pictures)


def test_a_module_that_is_not_there_is_refused(own: Callable[..., ExtractionSettings]) -> None:
    with pytest.raises(UsageError, match=r"the module no_such_towers can be imported neither from the current folder"):
        build_backbone(replace(own(), backbone="no_such_towers:build"))
    broken = own(replaced=("import numpy as np", "import no_such_library"))
    with pytest.raises(UsageError, match=r"installed packages: No module named 'no_such_library'\. Run the command in"):
        build_backbone(broken)


def test_tokens_without_places_can_be_neither_pooled_nor_cut_into_regions(
    own: Callable[..., ExtractionSettings],
) -> None:
    with pytest.raises(UsageError, match=r"features\.grid needs a feature map, but own_.* gives 7 visual tokens in no"):
        build_backbone(own(grid=2))


def test_the_current_folder_is_searched_as_by_python_m(
    own: Callable[..., ExtractionSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = own()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    assert build_backbone(settings).visual_tokens == 7
    assert sys.path[0] == str(Path.cwd())
