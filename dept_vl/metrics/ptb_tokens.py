"""Captions as the tokens that COCO's official caption scores compare, without Java.

The official pipeline runs Stanford's Penn Treebank tokenizer (CoreNLP 3.4.1, ``-preserveLines -lowerCase``) over all
captions as one text, a caption a line, and then drops punctuation. The rules below were found by observing what comes
out of it. As there, the rule with the longest match wins, and of several the first. A rule's group is the token, and
the rest of its match only has to follow, if need be in the next caption: "vitamin C." keeps its period unless the next
caption begins with a word like "A".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

# What is dropped. Brackets, and signs that stick together ("!?", "-----"), are not.
PUNCTUATION = re.compile(r"['`.?!,:;]|''|``|-{1,4}|\.(?:\xa0?\.)+")
QUOTES = {
    **dict.fromkeys("\u2018\u201b\u2039\x91", "`"),
    **dict.fromkeys("\u2019\u203a\x92", "'"),
    **dict.fromkeys("\u00ab\u201c\x93", "``"),
    **dict.fromkeys("\u00bb\u201d\x94", "''"),
}
SIGNS = {
    **QUOTES,
    **dict.fromkeys("\u2013\u2014\u2015\x96\x97", "--"),
    **dict.fromkeys("\u00a4\u20a0\u20ac\x80", "$"),
    **dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True)),
    **dict(zip("\u00bc\u00bd\u00be\u2153\u2154", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True)),
    **dict(zip('"\u2026\u00a2\u00a3', ("''", "...", "cents", "#"), strict=True)),
}
WHOLE = str.maketrans(SIGNS)  # how a token of signs alone is written
WITHIN = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\xa0"})  # and signs in another
REWRITTEN = {"&amp;": "&", "&quot;": '"', "&apos;": "'", "&nbsp;": " ", "\xad": ""}  # before all else; soft hyphens too
LINE_BREAK = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")

APOSTROPHE = "['\u2019\x92]"
LOOSE_APOSTROPHE = "['`\u2018\u2019\u201b\x91\x92]"  # in O'Neil, Hawai'i, and don't
ENDINGS = ("s", "m", "d", "ll", "re", "ve")  # of he's, I'm, we'd, ...
SPELLINGS = {
    **{f"{quote}{ending}": f"'{ending}" for ending in ENDINGS for quote in "\u2019\x92"},
    **dict.fromkeys(("n\u2019t", "n\x92t"), "n't"),
    **dict.fromkeys(("n\u2018t", "n\u201bt", "n\x91t"), "n`t"),
    **dict(zip(("&lt;", "&gt;", "&md;", "&mdash;", "&ndash;"), ("<", ">", "--", "--", "--"), strict=True)),
}
UNDIVIDED = "(?i:cannot|gonna|gotta|gimme|lemme|wanna)"  # which come out as "can not", "gon na", ...

# Code points of the basic plane, hexadecimal. What is in no class vanishes and parts words, as emoji do.
YOUNG = """37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 cdd d04 d54-d56
d5f de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0
19c8-19c9 1b4c 1c80-1c88 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d
a78f a794-a79f a7ab-a7ca a7d0-a7d1 a7d3 a7d5-a7d9 a7f2-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69
ab70-abbf"""  # letters and digits that it does not know
MARKS = """2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7
615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983
9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03
c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd 1885-1886"""  # as good as letters within a word
SINGLE = """21-2f 3a-40 5b-60 7b-7e 80 91-94 96-97 a1-a9 ab-b1 b4 b6-b8 bb-be bf d7 f7 37e 387 589 5be 5c0 5c3 5c6
5f3-5f4 600-603 606-60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2013-2023 2026 2030-203b
203e-2042 2044 207a-207e 208a-208e 20a0 20a4 20ac 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129
212e 213a-213b 2140-2144 214a-214d 214f 2153-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65
ffe0-ffe1 ffe5-ffe6"""  # each a token of its own

# Abbreviations that keep their period. After one that may close a sentence, "x" or "-x" is another token.
TITLES = """adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen
govs? hon insp invt jos lieut lt maj messrs mlle mme mrs? ms msgr mt natl pfc ph pres profs? pvt reps? rev sens? sfc sgt
spc ste? supts? treas vs wm"""
CLOSING = r"""ala? apr ariz assn aug bancorp bhd bldg blvd bros calif colo conn corp cos? ct dak dec ed\.d esq est etc
ext feb fla fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn
ph\.d plc rd rt sept? seq sq sr sys tel tenn thu thurs tues? univ va vt wed wisc? wyo"""
CLOSING_CAPITALISED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
CLOSING_NOT_IN_CAPITALS = "[Pp]tes? [Pp]tys?"
TITLES_NOT_IN_CAPITALS = "[Mm]fg [Mm]tg"
BEFORE_NUMBERS = "art ca figs? nos? op pp prop"
SENTENCE_STARTS = """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
More Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet
You"""  # before which a single letter is no abbreviation
FILE_SUFFIXES = """bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov pdf php pl png ppt ps py sql
tar txt wav x xml zip"""


def ptb_tokens(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption, with single spaces between them.

    Captions are stripped, and their line breaks are spaces. All captions of a side (all references, or all candidates)
    belong into one call, image by image, as in the official pipeline.
    """
    text = "\n".join(LINE_BREAK.sub(" ", caption).strip() for caption in captions)
    text = re.sub("|".join(REWRITTEN), lambda found: REWRITTEN[found[0].lower()], text, flags=re.IGNORECASE)
    lines: list[list[str]] = [[] for _ in captions]
    line = 0
    for token in _tokens(text):
        if token == "\n":  # noqa: S105 - a token of text
            line += 1
            continue
        written = _written(token.lower())
        if written[0].isalnum() or not PUNCTUATION.fullmatch(written):
            lines[line].append(written)
    return [" ".join(tokens) for tokens in lines]


def _tokens(text: str) -> Iterator[str]:
    """The tokens as they stand in the text, line breaks among them."""
    plain, rules = _plain_rule(), _rules()
    place = 0
    while place < len(text):
        word = plain.match(text, place)
        if word:
            if word[1]:
                yield word[1]
            place = word.end()
            continue
        longest, end = place, place + 1
        for rule in rules:
            found = rule.match(text, place)
            if found and found.end() > longest:
                longest, end = found.end(), found.end(found.lastindex or 0)
        if longest > place:
            yield text[place:end]
        place = end


def _written(token: str) -> str:
    if len(token) == 1 or token[0] in QUOTES or token[-1] in QUOTES:
        written = token.translate(WHOLE)
        if len(token) == 1 or not written.strip("`'"):
            return written
    return SPELLINGS.get(token, token).translate(WITHIN)


@cache
def _plain_rule() -> re.Pattern[str]:
    """Spaces, or a word before a space: no other rule takes more of these, and captions are made of them mostly."""
    return re.compile(rf" +|(?!{UNDIVIDED}[ \n,])([A-Za-z]+)(?=[ \n]|, |\Z) *")


@cache
def _rules() -> tuple[re.Pattern[str], ...]:
    young = _code_points(YOUNG)
    letters = _inside(code for code in range(0x10000) if chr(code).isalpha() and code not in young)
    digits = _inside(code for code in range(0x10000) if chr(code).isdecimal() and code not in young)
    letter, digit, either = f"[{letters}]", f"[{digits}]", f"[{letters}{digits}]"
    word = f"(?:[{letters}{_inside(_code_points(MARKS))}]|&[aeiouAEIOU](?:acute|grave|uml);)"
    word = rf"{word}(?:{word}|{digit})*"
    rules = (
        r"\n",
        *_mark_up(),
        *_contractions(letter, either),
        rf"{word}(?:[.!?]{word})*",  # word.Word, with the space forgotten, is one token
        *_abbreviations(letter, digit, either),
        *_compounds(digit, either),
        *_addresses(letter, either),
        *_words_with_apostrophes(letter, digit, either),
        *_numbers(digit),
        *_signs(),
    )
    return tuple(re.compile(rule) for rule in rules)


def _mark_up() -> Iterator[str]:
    name = "[A-Za-z][A-Za-z0-9:.-]*"
    yield r"<[!?][A-Za-z-][^>\n]*>"  # <!-- x -->
    yield rf"</{name} *>"
    yield rf"<{name}(?: +{name}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?)* */?>"  # <a href="x">


def _contractions(letter: str, either: str) -> Iterator[str]:
    """What is split off a word, and before it what it is split off from."""
    endings = "|".join(ENDINGS)
    ending = rf"(?i:'(?:{endings})(?![A-Za-z])|[\u2019\x92](?:{endings}))"
    negation = f"[nN]{LOOSE_APOSTROPHE}[tT]"
    yield f"([A-Za-z]*[A-MO-Za-mo-z]){negation}"
    yield f"({letter}+){ending}"
    yield f"((?i:can))(?i:not)(?!{either})"
    yield f"((?i:gon|wan))(?i:na)(?!{either})"
    yield f"((?i:got))(?i:ta)(?!{either})"
    yield f"((?i:gim|lem))(?i:me)(?!{either})"
    yield negation
    yield ending
    yield "('[tT])(?i:is|was)"


def _abbreviations(letter: str, digit: str, either: str) -> Iterator[str]:
    yield r"[A-Za-z](?:\.[A-Za-z])*\."  # a.m.
    yield rf"([A-Za-z])\.\s+(?:(?=[A-Z])(?i:{_any(SENTENCE_STARTS)})\s|</?[A-Za-z])"
    closing = f"(?i:{_any(CLOSING)})|{_any(CLOSING_CAPITALISED)}|{_any(CLOSING_NOT_IN_CAPITALS)}"
    yield rf"((?:{closing})\.)[\s\S]{{0,2}}"
    yield rf"(?:(?i:{_any(TITLES)})|{_any(TITLES_NOT_IN_CAPITALS)})\."
    yield rf"((?i:{_any(BEFORE_NUMBERS)})\.)\s?{digit}"
    # Before a comma, a period does not end a sentence, so it ends an abbreviation.
    yield rf"((?:{either}+(?:[-_]{either}+)*|{letter}{either}*(?:\.{letter}{either}*)+)\.)[,;:]"


def _compounds(digit: str, either: str) -> Iterator[str]:
    """Words with hyphens, slashes, digits or other signs in them."""
    elided = f"[dDoOlL]{LOOSE_APOSTROPHE}{either}{either}+"
    start = rf"(?:{elided}|{digit}+(?:[.,]{digit}+)+|{either}+(?:\.(?=-))?|[A-Za-z](?:\.[A-Za-z])*\.(?=-))"
    part = rf"(?:[A-Za-z](?:\.[A-Za-z])+\.|{elided}|{either}+)"
    yield f"{either}+"
    yield rf"{start}(?:[-_\u058a\u2010\u2011]{part})+"  # T-shirt, 5-year-old, U.S.-based
    yield rf"{either}+(?:\.{either}+)+\.?(?:-{part})+"
    piece = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    yield rf"{piece}(?:\\?/{piece}){{1,2}}"  # and/or
    yield r"[A-Z]+(?:[+&][A-Z]+)+|[Cc]\+\+|[CcFf]#|(?i:anti|pro)-"  # AT&T


def _addresses(letter: str, either: str) -> Iterator[str]:
    path = r"[^ \t\n\"<>|()]+[^ \t\n\"<>|.!?(){},-]"
    yield rf"(?i:https?)://{path}"
    yield rf"(?i:www)\.(?:[^ \t\n\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{path})?"
    yield rf"(?:[^ \t\n\"`'<>|.!?(){{}},-_$]+\.)+(?i:com|net|org|edu)(?:/{path})?"
    mail = r"[a-zA-Z0-9][^ \t\n\"<>|()\xa0]*@(?:[^ \t\n\"<>|().\xa0]+\.)*[^ \t\n\"<>|().\xa0]+"
    yield f"<{mail}>|{mail}"
    yield f"@[A-Za-z_][A-Za-z_0-9]*|#{letter}+"
    yield rf"({either}+(?:\.{either}+)*\.(?i:{_any(FILE_SUFFIXES)}))(?:[\s.?!,]|\Z)"


def _words_with_apostrophes(letter: str, digit: str, either: str) -> Iterator[str]:
    a, loose = APOSTROPHE, LOOSE_APOSTROPHE
    yield rf"(?i:{a}n{a}|[ld]{a}|ol{a}|dunkin{a}|somethin{a}|{a}em|{a}till?|{a}cause|c{a}est|cap{a}n|o{loose}o)"
    yield r"(?i:c'mon|cont'd\.?|nor'easter|n?e'er|o'er|s'mores|ev'ry|li'l|nat'l)"
    yield rf"({a}[nN])\s|[\u2019\x92][nN]"
    yield f"[yY]{a}(?={letter})(?![dmsDMS])|[jJ]{a}(?![dmsDMS]{letter})"
    yield f"{a}[2-9]0[sS]"
    yield rf"({a}{digit}{digit})\s"
    yield f"[A-HJ-XZn]{loose}{letter}{letter}+|[dDoOlL]{loose}{either}{either}+"  # O'Neil, d'or
    yield f"{letter}+[aeiouyAEIOUY]{loose}[aeiouA-Z]{letter}*"  # Hawai'i


def _numbers(digit: str) -> Iterator[str]:
    comma = r"[.:,\u066b\u066c]"
    yield rf"[-+]?(?:{digit}+(?:{comma}{digit}+)*|(?:{comma}{digit}+)+)"
    yield rf"(?:{digit}{{1,4}}[- \xa0])?{digit}{{1,4}}(?:\\?/|\u2044){digit}{{1,4}}"  # 3 1/2
    yield f"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}"
    area = rf"\({digit}{{2,3}}\)[ \xa0]?|(?:\+\+?)?(?:{digit}{{2,4}}[- \xa0])?{digit}{{2,4}}[- \xa0]"
    yield rf"(?:{area}){digit}{{3,4}}[- \xa0]?{digit}{{3,5}}"  # of a telephone
    yield r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"


def _signs() -> Iterator[str]:
    yield r"[A-Z]*\$"
    yield r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])"  # :-)
    yield r"[-^=~<>x']_[-^=~<>x']|\([-^=~<>x'][_.]?[-^=~<>x']\)|\([\^=~<>x']-[\^=~<>x']\)"  # (^_^)
    yield r"&(?i:md|[mn]dash|[lg]t|ht|tl|ur|lr|qc|ql|qr|odq|cdq|#\d+);|-[LR][CRS]B-"
    yield r"\.{3,}|\.(?:[ \xa0]\.){2,}|[!?]{2,}|-{2,}|\*+|_+|@+|#+|<<|>>|\\\*|''"
    yield f"[`{''.join(QUOTES)}]{{2}}"
    yield f"[{_inside(_code_points(SINGLE))}]"


def _any(words: str) -> str:
    return "|".join(words.split())


def _code_points(ranges: str) -> set[int]:
    ends = (one.split("-") for one in ranges.split())
    return {code for one in ends for code in range(int(one[0], 16), int(one[-1], 16) + 1)}


def _inside(code_points: Iterable[int]) -> str:
    """The code points as the inside of a character class."""
    runs: list[list[int]] = []
    for code in sorted(code_points):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in runs)
