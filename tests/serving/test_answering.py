"""Replies to batches of messages: right ones to those in order, and to each other one its own refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dept_vl import predict
from dept_vl.serving.answering import Answerer
from dept_vl.serving.messages import Ask, ListAdapters, ServiceSettings
from dept_vl.serving.mixed_model import MixedModel

CPU = torch.device("cpu")
TEXT = "is there any red shape ?"


@pytest.fixture(scope="module")
def answerer(served: Any) -> Answerer:
    settings = ServiceSettings(backbone=str(served.backbone), adapters=served.adapters, features=served.store.path)
    return Answerer(settings, CPU)


def picture(served: Any, number: int) -> bytes:
    return (served.pictures / f"{number}.png").read_bytes()


def test_a_mixed_batch_of_texts_stored_images_and_uploads_is_answered_as_by_each_alone(
    answerer: Answerer, served: Any
) -> None:
    asks = [
        (Ask("sentiment", TEXT), ()),
        (Ask("colors", TEXT, image_ids=("1",)), ("1",)),
        (Ask("colors", TEXT, uploads=(picture(served, 2),)), ("2",)),
        (Ask("pairs", TEXT, image_ids=("0", "3")), ("0", "3")),
        (Ask("pairs", TEXT, uploads=(picture(served, 3), picture(served, 0))), ("3", "0")),
        (Ask("plain", TEXT), ()),
    ]
    replies = answerer.replies([ask for ask, _ in asks])
    expected = [served.of(ask.adapter).answer(TEXT, images, served.store) for ask, images in asks]
    assert [reply.body["answer"] for reply in replies] == expected
    assert [reply.status for reply in replies] == [200] * 6
    assert [reply.answered for reply in replies] == [6, 0, 0, 0, 0, 0]
    assert replies[0].body == {
        "answer": expected[0],
        "adapter": "sentiment",
        "task": "sst2",
        "text_cut": False,
    }
    assert replies[0].adapters == 4
    assert replies[0].bytes > 0


def test_texts_that_are_cut_are_told_so(answerer: Answerer) -> None:
    (reply,) = answerer.replies([Ask("sentiment", "red " * 40)])
    assert reply.body["text_cut"]


BAD = [
    (Ask("sentimant", TEXT), 404, "No adapter is called 'sentimant'. Did you mean 'sentiment'? There are 4: colors, "),
    (Ask("colors", TEXT), 400, "0 images were given; adapter 'colors' is for task vqa, which takes 1. Send it as "),
    (Ask("pairs", TEXT, image_ids=("0",)), 400, "which takes 2. Send a list of 2 as 'image' or 'image_id'"),
    (Ask("plain", TEXT, image_ids=("0",)), 400, "which takes 0. Send neither 'image' nor 'image_id'"),
    (Ask("colors", TEXT, image_ids=("9",)), 404, "No features for image '9': the store has 4 images. Send 'image'"),
    (Ask("colors", TEXT, uploads=(b"nothing",)), 400, "The image cannot be used:  (7 bytes): none of the formats JPEG"),
]


def test_bad_requests_are_refused_one_by_one_and_the_others_answered(answerer: Answerer, served: Any) -> None:
    good = Ask("sentiment", TEXT)
    messages: list[Any] = [good]
    for bad, _, _ in BAD:
        messages += [bad, ListAdapters(), good]
    replies = answerer.replies(messages)
    expected = served.of("sentiment").answer(TEXT)
    for ask, reply in zip(messages, replies, strict=True):
        if ask == good:
            assert reply.body["answer"] == expected
    for (_, status, message), reply in zip(BAD, replies[1::3], strict=True):
        assert reply.status == status
        assert message in reply.body["error"]
    assert [reply.answered for reply in replies if reply.answered] == [len(BAD) + 1]


def test_the_list_of_adapters_tells_of_those_that_are_refused_too(served: Any, tmp_path: Path) -> None:
    shutil.copytree(served.adapters, tmp_path / "adapters")
    (tmp_path / "adapters" / "plain" / "adapter_model.safetensors").write_bytes(b"")
    made = Answerer(ServiceSettings(backbone=str(served.backbone), adapters=tmp_path / "adapters"), CPU)
    reply, refused = made.replies([ListAdapters(), Ask("plain", TEXT)])
    assert [one["name"] for one in reply.body["adapters"]] == ["sentiment"]
    assert reply.body["adapters"][0] == {
        "name": "sentiment",
        "task": "sst2",
        "method": "dept",
        "images": 0,
        "bytes": (3 + 9) * 16 * 4,
    }
    assert sorted(reply.body["refused"]) == ["colors", "pairs", "plain"]
    assert "SHA-256 expected" in reply.body["refused"]["plain"]
    assert refused.status == 409
    assert refused.body["error"].startswith("Adapter 'plain' cannot be served: ")
    assert made.describe().startswith("1 adapters in 0.1 MB; 3 are refused; no uploads: the service was started witho")


def test_adapters_that_are_put_into_the_folder_answer_and_those_taken_away_do_not(served: Any, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    settings = ServiceSettings(
        backbone=str(served.backbone), adapters=tmp_path / "adapters", features=served.store.path
    )
    made = Answerer(settings, CPU)
    ask = Ask("colors", TEXT, image_ids=("1",))
    (before,) = made.replies([ask])
    shutil.copytree(served.adapters / "colors", tmp_path / "colors")
    (tmp_path / "colors").rename(tmp_path / "adapters" / "colors")
    (there,) = made.replies([ask])
    shutil.rmtree(tmp_path / "adapters" / "colors")
    (after,) = made.replies([ask])
    assert [before.status, there.status, after.status] == [404, 200, 404]
    assert "There are 0: none" in after.body["error"]
    assert there.body["answer"] == served.of("colors").answer(TEXT, ["1"], served.store)


def test_uploads_are_refused_where_the_image_backbone_is_not_the_store_s(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = predict.build_backbone(served.store.settings, CPU)
    monkeypatch.setattr(built, "weight_digest", "1" * 64)
    monkeypatch.setattr(predict, "build_backbone", lambda settings, device: built)
    settings = ServiceSettings(backbone=str(served.backbone), adapters=served.adapters, features=served.store.path)
    made = Answerer(settings, CPU)
    by_id, upload = made.replies(
        [Ask("colors", TEXT, image_ids=("1",)), Ask("colors", TEXT, uploads=(picture(served, 1),))]
    )
    assert (by_id.status, upload.status) == (200, 400)
    assert upload.body["error"].startswith("Images cannot be uploaded: The image backbone is not the one that")
    assert upload.body["error"].endswith("Send 'image_id'")
    monkeypatch.setattr(predict, "build_backbone", lambda settings, device: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Answerer(settings, CPU)


def test_a_batch_that_fails_is_tried_in_halves_so_that_only_the_cause_fails(
    answerer: Answerer, served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = MixedModel.question

    def question(self: MixedModel, name: str, text: str, images: Any = ()) -> Any:
        if text == "poison":
            raise RuntimeError("out of memory")
        return whole(self, name, text, images)

    monkeypatch.setattr(MixedModel, "question", question)
    texts = [TEXT, "poison", "red", "any cat"]
    replies = answerer.replies([Ask("sentiment", text) for text in texts])
    assert [reply.status for reply in replies] == [200, 500, 200, 200]
    assert replies[1].body == {"error": "The service failed on this request (RuntimeError); its log says more"}
    assert replies[3].body["answer"] == served.of("sentiment").answer("any cat")
    shown = capsys.readouterr().err
    assert "A batch of 4 failed and is tried again in halves: RuntimeError: out of memory" in shown
    assert "Traceback" in shown


def test_a_fault_of_one_request_s_check_is_its_own(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Answerer, "_read", lambda self, image_id: 1 // 0)
    bad, good = answerer.replies([Ask("colors", TEXT, image_ids=("1",)), Ask("sentiment", TEXT)])
    assert (bad.status, good.status) == (500, 200)
    assert "ZeroDivisionError" in capsys.readouterr().err
