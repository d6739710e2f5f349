"""The language of a prompt as a code such as en, or ``und`` where too little of it is text to tell."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

UNKNOWN = "und"
LANGUAGES = (
    "ar bn bg ca cs da de el en es fa fi fr he hi hr hu id it ja ko lt lv ms nb nl no pl pt ro ru sk sl sr sv sw ta th"
    " tr uk ur vi zh"
)
SURE = 0.25  # below, a few letters of anything would be a language
_PLACEHOLDER = re.compile(r"<[A-Z]+>")
_KANA = re.compile("[\u3040-\u30ff]")
_HANGUL = re.compile("[\uac00-\ud7af]")
_HAN = re.compile("[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")


def detect(text: str) -> str:
    """By script where that decides, else by py3langid over the languages of this file."""
    text = _PLACEHOLDER.sub(" ", text)[:2000]
    letters = len(_LETTER.findall(text))
    for code, script, share in (("ja", _KANA, 0.1), ("ko", _HANGUL, 0.3), ("zh", _HAN, 0.15)):
        if letters and len(script.findall(text)) / letters >= share:
            return code
    if letters < 2:
        return UNKNOWN
    code, probability = _identifier().classify(text)
    return str(code) if probability >= SURE else UNKNOWN


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in LANGUAGES.split() if code in set(identifier.labels)])
    return identifier
