"""Words that are read as emotions, words that say "not known", and labels renamed by hand.

common_emotion("Ärger")      "anger"        a word of the corpora's languages
common_emotion("n/a")        ""             no label
common_emotion("Nostalgia ") "nostalgia"    a class of its own: nothing is thrown together
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from extractor.errors import SettingsError, unknown

Renames: TypeAlias = Mapping[str, str]  # OLD: NEW of ``--map``
NO_RENAMES: Renames = MappingProxyType({})

# By the common emotion they mean: English words and the codes that SER corpora share, then the words
# of German, French, Italian, Spanish, Portuguese, Polish, Turkish, transliterated Persian, Urdu and
# Greek, Russian, Persian and Urdu in their own letters, and Mandarin. Compared by `_bare`. Single letters
# are no words: what they mean depends on the corpus.
_WORDS = {
    "anger": """anger angry angrily ang mad rage fury furious irritated irritation annoyed annoyance
        hotanger coldanger
        ärger aerger ärgerlich wut wütend wuetend zorn zornig verärgert colère encolère fâché fâchée furieux
        rabbia rab arrabbiato ira enojo enojado enfado enfadado rabia raiva zangado
        złość zły zła gniew öfke öfkeli kızgın kızgınlık sinirli khashm asabani asabaniyat gussa ghussa
        thymos гнев злость злой خشم عصبانی غصہ غضب θυμός 生气 愤怒 shengqi fennu""",
    "happiness": """happiness happy happily hap joy joyful joyous glad elation elated delight delighted
        cheerful amused amusement excited excitement exc
        freude fröhlich froehlich glück glücklich gluecklich joie joyeux joyeuse heureux heureuse
        gioia gio felicità felice alegría alegre felicidad feliz alegria felicidade
        radość radosny radosna szczęście szczęśliwy szczęśliwa mutlu mutluluk neşe neşeli
        shadi shad khoshhali khoshhal khushi khush chara радость радостный счастье счастливый
        شادی شاد خوشحالی خوشی χαρά 高兴 快乐 开心 gaoxing kuaile""",
    "sadness": """sadness sad sadly sorrow sorrowful grief unhappy melancholy
        trauer traurig traurigkeit tristesse triste tristezza tri tristeza
        smutek smutny smutna üzgün üzüntü gham ghamgin narahat narahati udasi udaas lypi
        грусть грустный печаль печальный غم ناراحتی اداسی λύπη 悲伤 难过 伤心 beishang""",
    "neutral": """neutral neutrally neu neutrality
        neutre neutralité neutro neutrale neutralny neutralna neutralność neutralidad nötr tarafsız
        khonsa khonsi ghairjanibdar oudetero нейтральный нейтральная нейтрально
        خنثی غیرجانبدار ουδέτερο 中性 zhongxing""",
    "fear": """fear fearful fearfully fea afraid scared frightened terror terrified panic anxious anxiety
        angst ängstlich aengstlich furcht peur apeuré paura pau miedo medo
        strach przestraszony przestraszona korku korkmuş tars khauf fovos phobos
        страх испуг ترس خوف ڈر φόβος 恐惧 害怕 kongju haipa""",
    "disgust": """disgust disgusted disgusting dis
        ekel angeekelt dégoût dégoûté disgusto asco repugnancia nojo desgosto wstręt obrzydzenie
        tiksinti iğrenme aidia отвращение انزجار αηδία 厌恶 yanwu""",
    "surprise": """surprise surprised surprising sur suprise suprised ps pleasantsurprise
        pleasantsurprised pleasantlysurprised
        überraschung überrascht ueberraschung ueberrascht étonnement étonné surpris sorpresa sor sorpreso
        sorprendido surpresa surpreso zaskoczenie zaskoczony zaskoczona zdziwienie
        şaşkın şaşkınlık sürpriz taajob taajjob hairat ekplixi
        удивление تعجب حیرت έκπληξη 惊讶 惊奇 jingya""",
    "calm": """calm calmness calmly cal relaxed relaxation
        ruhig gelassen calme calma tranquillo tranquilo spokój spokojny sakin aram спокойствие спокойный
        آرام 平静""",
    "boredom": """boredom boredem bored boring bor
        langeweile gelangweilt ennui ennuyé noia annoiato aburrimiento aburrido tédio entediado
        nuda znudzony znudzona sıkılmış скука""",
    "other": "other others oth",
}

# Emotion words without a counterpart in the common set. They stay classes of their own; a folder that is
# called so is a folder of an emotion.
_BESIDE = """frustration frustrated contempt contemptuous sarcasm sarcastic pride proud disappointed
    disappointment confused confusion sleepy sleepiness worried worry apologetic assertive concerned
    encouraging enthusiasm enthusiastic tired shame ashamed guilt interest interested tenderness hate love
    admiration embarrassment embarrassed jealousy jealous hope relief relieved"""
BESIDE = frozenset(_BESIDE.split())

# What tables and annotators write where there is no label. Without case and spaces.
_NO_LABEL = """nan na n/a n.a. #n/a #na <na> n.a none null nil xxx - -- --- ? ?? ??? . ... … – — _ / \\ *
    unknown unk <unk> undefined unlabeled unlabelled unannotated missing noagreement no_agreement
    no-agreement nolabel no_label no-label notavailable not_available"""
_MISSING = {"", *_NO_LABEL.split()}

# Letters that Unicode does not part into a letter and its accent.
_LETTERS = str.maketrans("ıłøđ", "ilod")
# Names that a ZIP archive or an editor read in another encoding than they were written in.
_MISREAD = (("cp1252", "cp850"), ("cp1252", "utf-8"), ("latin-1", "utf-8"), ("cp437", "utf-8"))


def plain(label: str) -> str:
    """``label`` as labels are compared: one form of Unicode, no case, single spaces."""
    label = label.strip("\ufeff\u200b")
    return " ".join(unicodedata.normalize("NFC", label).lower().split()).strip("\ufeff\u200b")


@lru_cache(maxsize=65_536)
def is_missing(label: str) -> bool:
    """Whether a cell says that there is no label: empty, ``nan``, ``N/A``, ``None``, ``xxx``, ``?``."""
    word = plain(label).replace(" ", "").strip("'\"`")
    return word in _MISSING or (word[:1] in "([{<" and word.strip("()[]{}<>") in _MISSING)


def known(label: str) -> str:
    """``label``, or ``""`` where it says that there is none."""
    return "" if is_missing(label) else label


def _bare(word: str) -> str:
    """Without case, accents, punctuation and the digits around it: "03-Fröhlich" is "frohlich"."""
    parts = unicodedata.normalize("NFKD", word.casefold().translate(_LETTERS))
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "", letters).strip("0123456789")


SYNONYMS = {_bare(word): emotion for emotion, words in _WORDS.items() for word in words.split()}


@lru_cache(maxsize=65_536)
def emotion_word(word: str) -> str | None:
    """The common emotion that a word or code means, or ``None`` if it is no emotion word.

    A word of `BESIDE` means itself.
    """
    forms = [word]
    for wrong, right in _MISREAD if not word.isascii() else ():
        with suppress(UnicodeError):
            forms.append(word.encode(wrong).decode(right))
    for bare in map(_bare, forms):
        if bare in SYNONYMS:
            return SYNONYMS[bare]
        if bare in BESIDE:
            return bare
    return None


def common_emotion(raw: str) -> str:
    """``raw`` in the common set; what has no counterpart there is a class of its own, by its own text.

    ``""`` for no label.
    """
    return "" if is_missing(raw) else emotion_word(raw) or plain(raw)


# --- labels renamed by hand: --map


def parse_renames(given: Renames | str | Iterable[str] | None) -> dict[str, str]:
    """``OLD=NEW`` texts, or several with commas in one, as a mapping. Raises SettingsError."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    renames: dict[str, str] = {}
    for text in [given] if isinstance(given, str) else given:
        parts = text.split(",")
        # A label may hold a comma; several pairs have an equals sign each.
        for pair in parts if all("=" in part for part in parts) else [text]:
            old, equals, new = (word.strip() for word in pair.partition("="))
            if not (old and equals and new):
                raise SettingsError(f"--map {pair!r}: write OLD=NEW")
            if renames.setdefault(old, new) != new:
                raise SettingsError(f"--map: {old!r} is to be {renames[old]!r} and {new!r}")
    return renames


class Renamer:
    """``--map`` on one set of labels: a label as it is written, else in any case and spacing."""

    def __init__(self, renames: Renames, labels: Iterable[str]) -> None:
        """``labels``: all that there are. Raises SettingsError for a rename of none of them."""
        there = {label for label in labels if label}
        self._new = {old: new for old, new in renames.items() if old in there}
        for old, new in renames.items():
            alike = [label for label in there if plain(label) == plain(old)]
            if not alike:
                raise SettingsError(f"--map: {unknown('class', old, sorted(there))}")
            if old not in there:
                self._new |= {label: new for label in alike if label not in self._new}

    def __call__(self, label: str) -> str:
        return self._new.get(label, label)
