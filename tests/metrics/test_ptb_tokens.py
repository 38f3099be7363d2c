"""What Stanford's tokenizer does, recorded from it, so that no Java is needed here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dept_vl.metrics.ptb_tokens import ptb_tokens

CASES = {
    "contractions": [
        (
            "He doesn't know what they're doing, I'm sure we'd say.",
            "he does n't know what they 're doing i 'm sure we 'd say",
        ),
        ("DON'T ain't can't won't I'LL IT'S", "do n't ai n't ca n't wo n't i 'll it 's"),
        ("it\u2019s don\u2019t we\u2019ll man\u2019s", "it 's do n't we 'll man 's"),
        (
            "I cannot say; you're gonna, gotta or wanna go. Gimme, lemme!",
            "i can not say you 're gon na got ta or wan na go gim me lem me",
        ),
        ("cannots gonnas wannabe", "cannots gonnas wannabe"),
        ("'Tis the season, 'twas said", "'t is the season 't was said"),
        ("couldn't've she'd've y'all o'clock ma'am", "could n't 've she 'd 've y' all o'clock ma'am"),
        ("rock 'n' roll, rock'n'roll, salt 'n vinegar", "rock 'n' roll rock 'n' roll salt 'n vinegar"),
        ("let 'em wait 'til 5 'cause they're late", "let 'em wait 'til 5 'cause they 're late"),
        ("O'Neil, D'Angelo, Hawai'i, Qur'an, L'Oreal, d'or", "o'neil d'angelo hawai'i qur an l'oreal d'or"),
    ],
    "possessives": [
        ("the dog's bone and the dogs' bones", "the dog 's bone and the dogs bones"),
        (
            "a 5's chance, the 1980's, the '80s, 80s and '98 games",
            "a 5 's chance the 1980 's the '80s 80s and '98 games",
        ),
        ("Ross's James' one's-self", "ross 's james one 's self"),
    ],
    "periods": [
        ("at 5 a.m. or 5:30 p.m.", "at 5 a.m. or 5:30 p.m."),
        ("Mr. Smith, Mrs. Jones and Dr. Who on Main St.", "mr. smith mrs. jones and dr. who on main st."),
        ("vs. etc. e.g. i.e. al. approx. no. one", "vs. etc. e.g. i.e. al. approx no one"),
        ("no. 5, No. 7, fig. 3, pp. 10", "no. 5 no. 7 fig. 3 pp. 10"),
        ("in the U.S. and the U.K.", "in the u.s. and the u.k."),
        ("a U.S.-based T.V. show", "a u.s.-based t.v. show"),
        ("Jan. 5, Sept. 15, Wed. night", "jan. 5 sept. 15 wed. night"),
        ("Mass. and mass. or Ore. and ore.", "mass. and mass or ore. and ore"),
        ("word.Word and a.b with hello!world", "word.word and a.b with hello!world"),
        ("a dog., cats., etc.,", "a dog. cats. etc."),
        ("J. K. Rowling, A. The, B. and", "j. k. rowling a. the b. and"),
    ],
    "ends": [
        ("A dog.", "a dog"),
        ("A dog!", "a dog"),
        ("A dog?!", "a dog ?!"),
        ("what!? no!! ok??", "what !? no !! ok ??"),
        ("wait... well.... so. . . yes …", "wait well so yes"),
        ("a dog .", "a dog"),
        ("on the grass ,", "on the grass"),
    ],
    "hyphens": [
        ("black-and-white co-op T-shirt e-mail", "black-and-white co-op t-shirt e-mail"),
        ("a - b -- c --- d ----- e", "a b c d ----- e"),
        ("\u2013 and \u2014 and \u2015", "and and"),
        ("a 5-year-old, x-ray, F-16s, 9-11", "a 5-year-old x-ray f-16s 9-11"),
        ("anti- pro- pre- fix", "anti- pro- pre fix"),
        ("a\u2010b a\u2011b", "a\u2010b a\u2011b"),
    ],
    "slashes": [
        ("and/or, his/her, w/o b/c a/b/c/d", "and/or his/her w/o b/c a/b/c / d"),
        ("1/2 3 1/2 24/7 1/1/2014", "1/2 3\xa01/2 24/7 1/1/2014"),
        ("½ 1½ ¼ ⅔ ⅛", "1/2 1 1/2 1/4 2/3 ⅛"),
    ],
    "brackets": [
        ("(a) [b] {c} ( d )", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- d -rrb-"),
        ("a(s) :) :-( ;D :Dog (650) 555-1234", "a -lrb- s -rrb- :-rrb- :--lrb- ;d dog -lrb-650-rrb-\xa0555-1234"),
    ],
    "quotes": [
        (
            "\"quoted\" 'single' ``tex'' \u201ccurly\u201d \u2018curly\u2019 «x» \u201elow\u201d",
            "quoted single tex curly curly x \u201e low",
        ),
        ("5'10\" and 6' 2\"", "5 10 and 6 2"),
    ],
    "numbers": [
        ("1,000 1.5 .5 -5 +5 5% 10,000.50 1,00", "1,000 1.5 .5 -5 +5 5 % 10,000.50 1,00"),
        ("5:30 10:30am 10.30 3:2", "5:30 10:30 am 10.30 3:2"),
        ("5kg 5.5kg 5th 2nd 6x6 3D", "5kg 5.5 kg 5th 2nd 6x6 3d"),
        ("650-555-1234 1990 1991 1992", "650-555-1234\xa01990 1991 1992"),
        ("No.5 and Fig.2", "no. 5 and fig. 2"),
    ],
    "money": [
        ("$5 $5.00 US$5 £5 €5 ¥5 5¢ ₩5", "$ 5 $ 5.00 us$ 5 # 5 $ 5 ¥ 5 5 cents 5"),
        ("#1 # 1 #tag @user C# C++", "# 1 # 1 #tag @user c# c++"),
    ],
    "signs": [
        ("AT&T R&D a & b a&b &amp; &lt; &gt; Q&A", "at&t r&d a & b a & b & < > q&a"),
        ("a*b ** *** _ __ ~ ^ | \\ = + < >", "a * b ** *** _ __ ~ ^ | \\ = + < >"),
        ("5° 5°C m² H₂O © ™ •", "5 ° 5 ° c m ² h ₂ o © ™ •"),
        ('<b>bold</b> <a href="x"> a < b <3 <person>', '<b> bold </b> <a\xa0href="x"> a < b < 3 <person>'),
    ],
    "addresses": [
        (
            "see http://www.a.com/b?c=d. or www.foo.com, foo.com's",
            "see http://www.a.com/b?c=d or www.foo.com foo.com 's",
        ),
        ("mail me@foo.com. or <me@foo.com>", "mail me@foo.com or <me@foo.com>"),
        ("photo.jpg 01.jpg a_b_c IMG_0001", "photo.jpg 01.jpg a_b_c img_0001"),
    ],
    "unicode": [
        ("a dog \U0001f600 runs", "a dog runs"),
        ("wow\U0001f600wow", "wow wow"),
        ("café naïve Zürich ÉCOLE", "café naïve zürich école"),
        ("日本語 русский Ελληνικά עִבְרִית", "日本語 русский ελληνικά עִבְרִית"),
        ("soft\xadhyphen zero\u200bwidth no\xa0break\u3000wide", "softhyphen zero width no break wide"),
        ("x\u0301 café cafe\u0301", "x\u0301 café cafe\u0301"),
        ("\U0001d4b3 \U00020bb7", ""),
    ],
}
# SHA-256 of the official tokens, a caption a line, recorded from the Java tokenizer and the official punctuation list.
RECORDED = {
    "flickr8k": "95ef676c2f0fab7ce3a8e09248ce4708f84fb5d7a6f52eef8c9a766e9ae74ac4",
    "references": "0747fc5a2049b461d3cc73a44598bab448bf3fa5812e3cbd6b187c6f6d4ef0de",
    "candidates": "8e0dfaabc269d1b6b04889bcb0e72e064fd9b4e42a8503781bbcd85ace51ed2a",
}


@pytest.mark.parametrize(("caption", "tokens"), [case for cases in CASES.values() for case in cases])
def test_a_caption_has_the_tokens_of_the_java_tokenizer(caption: str, tokens: str) -> None:
    assert ptb_tokens([caption, "then"]) == [tokens, "then"]


def test_every_caption_has_one_line_of_tokens() -> None:
    assert ptb_tokens([]) == []
    assert ptb_tokens(["", " . ", "a dog", ""]) == ["", "", "a dog", ""]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029", "\x1c"])
def test_line_breaks_are_spaces_and_shift_no_other_caption(line_break: str) -> None:
    assert ptb_tokens([f"{line_break}a dog{line_break}runs ", "a cat"]) == ["a dog runs", "a cat"]


def test_how_the_next_caption_begins_decides_about_a_single_letter() -> None:
    assert ptb_tokens(["vitamin C.", "a man"]) == ["vitamin c.", "a man"]
    assert ptb_tokens(["vitamin C.", "A man"]) == ["vitamin c", "a man"]
    assert ptb_tokens(["vitamin C."]) == ["vitamin c."]


def test_abbreviations_keep_their_period_at_the_end() -> None:
    assert ptb_tokens(["at 5 p.m.", "The end of Main St."]) == ["at 5 p.m.", "the end of main st."]


def test_half_a_character_vanishes() -> None:
    assert ptb_tokens(["a \ud83d dog"]) == ["a dog"]


@pytest.mark.shared
@pytest.mark.parametrize("name", RECORDED)
def test_all_real_captions_have_the_tokens_of_the_java_tokenizer(name: str, shared: Path) -> None:
    captions = read_captions(shared / "data")[name]
    assert hashlib.sha256("\n".join(ptb_tokens(captions)).encode()).hexdigest() == RECORDED[name]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_nearly_all_other_texts_have_the_tokens_of_the_java_tokenizer(shared: Path, tmp_path: Path) -> None:
    content = json.loads((shared / "data" / "vqa" / "val_text_20k.json").read_text())
    texts = [text for row in content for text in strings(row) if " " in text]
    assert len(texts) > 20_000
    ours, official = ptb_tokens(texts), java_tokens(texts, tmp_path)
    different = [text for text, one, other in zip(texts, ours, official, strict=True) if one != other]
    assert len(different) <= len(texts) / 1000, different[:20]


def read_captions(data: Path) -> dict[str, list[str]]:
    images = json.loads((data / "flickr8k-1000" / "dataset.json").read_text())["images"]
    coco = {
        name: [row["caption"] for row in rows]
        for name, rows in (
            (
                "references",
                json.loads((data / "coco_caption/captions_val2014_80_subset.json").read_text())["annotations"],
            ),
            ("candidates", json.loads((data / "coco_caption/captions_val2014_fakecap_results.json").read_text())),
        )
    }
    return {"flickr8k": [one["raw"] for image in images for one in image["sentences"]], **coco}


def strings(value: object) -> list[str]:
    if isinstance(value, dict | list):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in strings(one)]
    return [value] if isinstance(value, str) else []


def java_tokens(texts: list[str], folder: Path) -> list[str]:
    """The tokens by the Java program, without the punctuation of the official list."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    lines = folder / "lines.txt"
    lines.write_text("\n".join(" ".join(text.splitlines()).strip() for text in texts), encoding="utf-8")
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    output = subprocess.run([*command, str(lines)], capture_output=True, check=True).stdout.decode()
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in dropped)
        for line in output.split("\n")[: len(texts)]
    ]
