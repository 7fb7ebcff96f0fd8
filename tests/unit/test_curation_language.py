"""Letters decide what they can, model and word lists the rest; nothing without letters has a language."""

from __future__ import annotations

import hashlib
import itertools
import struct
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.config import fingerprint, resolved, semantic
from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language import scripts
from altdiffusion.curation.language import vectorised_engine as language_module
from altdiffusion.curation.language.caption_words import WordTable, code_points, tokens, words_of
from altdiffusion.curation.language.fasttext_engine import FastTextEngine
from altdiffusion.curation.language.fasttext_model import FastTextModel
from altdiffusion.curation.language.guess import UNKNOWN
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.language.markers import MARKERS
from altdiffusion.curation.language.word_lists import FLOOR, LISTS, UNIT, WordLists, nearest, own_list
from altdiffusion.diffusion.pinned_files import local_pinned, read_pinned
from altdiffusion.errors import AltDiffusionError
from benchmarks.brand_titles import LATIN, LONG, SHORT, titles

SENTENCES = {
    "en": "A red bicycle leans against the wall of an old house in the village",
    "zh": "一辆红色的自行车靠在村里老房子的墙上",
    "ja": "村の古い家の壁に立てかけられた赤い自転車",
    "th": "จักรยานสีแดงพิงกำแพงบ้านเก่าในหมู่บ้าน",
    "ko": "마을의 오래된 집 벽에 기대어 있는 빨간 자전거",
    "hi": "गाँव के एक पुराने घर की दीवार के सहारे खड़ी लाल साइकिल",
    "uk": "Червоний велосипед стоїть біля стіни старого будинку в селі",
    "ar": "دراجة حمراء تستند إلى جدار بيت قديم في القرية",
    "tr": "Köydeki eski bir evin duvarına yaslanmış kırmızı bir bisiklet",
    "vi": "Chiếc xe đạp màu đỏ dựa vào tường một ngôi nhà cũ trong làng",
    "pl": "Czerwony rower oparty o ścianę starego domu we wsi",
    "nl": "Een rode fiets staat tegen de muur van een oud huis in het dorp",
    "pt": "Uma bicicleta vermelha encostada na parede de uma casa velha da aldeia",
    "it": "Una bicicletta rossa appoggiata al muro di una vecchia casa del paese",
    "es": "Una bicicleta roja apoyada en la pared de una casa vieja del pueblo",
    "de": "Ein rotes Fahrrad lehnt an der Mauer eines alten Hauses im Dorf",
    "fr": "Un vélo rouge appuyé contre le mur d'une vieille maison du village",
    "ru": "Красный велосипед стоит у стены старого дома в деревне",
}
OTHERS = {
    "sv": "En röd cykel står lutad mot väggen på ett gammalt hus i byn",
    "el": "Ένα κόκκινο ποδήλατο ακουμπά στον τοίχο ενός παλιού σπιτιού",
    "he": "אופניים אדומים נשענים על קיר של בית ישן בכפר",
    "fi": "Punainen polkupyörä nojaa vanhan talon seinään kylässä",
    "cs": "Červené kolo opřené o zeď starého domu ve vesnici",
    "hu": "Egy piros kerékpár támaszkodik egy régi ház falának a faluban",
    "fa": "یک دوچرخه قرمز به دیوار خانه ای قدیمی در روستا تکیه داده است",
    "ro": "O bicicletă roșie sprijinită de peretele unei case vechi din sat",
    "bg": "Червено колело, облегнато на стената на стара къща в селото, където няма никой",
    "bn": "গ্রামের একটি পুরানো বাড়ির দেয়ালে হেলান দেওয়া লাল সাইকেল",
}


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier(LanguageConfig())


def languages(
    identifier: LanguageIdentifier, texts: list[str], labels: list[str | None] | None = None
) -> list[str | None]:
    found, _, _ = identifier.identify(pa.array(texts), pa.array(labels or [None] * len(texts), pa.string()))
    return found.to_pylist()


def test_a_sentence_of_each_of_the_18_is_identified(identifier: LanguageIdentifier) -> None:
    assert languages(identifier, list(SENTENCES.values())) == list(SENTENCES)


def test_a_sentence_of_another_language_is_accepted_as_none(identifier: LanguageIdentifier) -> None:
    assert languages(identifier, list(OTHERS.values())) == [None] * len(OTHERS)


def test_the_guess_for_the_rejects_names_the_language(identifier: LanguageIdentifier) -> None:
    _, score, guess = identifier.identify(pa.array(list(OTHERS.values())), pa.nulls(len(OTHERS), pa.string()))
    assert guess.to_pylist() == list(OTHERS)
    assert all(0 < value <= 1 for value in score.to_pylist())


@pytest.mark.parametrize(
    "text", ["", " ", "12345", "20130714 184502", "!!! ... ???", "🐘🐢", "DSC_0001.JPG", "http://a.b/c"]
)
def test_nothing_to_read_is_unknown_not_english(identifier: LanguageIdentifier, text: str) -> None:
    found, score, guess = identifier.identify(pa.array([text]), pa.array(["en"]))
    assert found.to_pylist() == [None] and guess.to_pylist() == [UNKNOWN] and score.to_pylist() == [0.0]


def test_capitals_and_file_names_do_not_change_the_answer(identifier: LanguageIdentifier) -> None:
    texts = [SENTENCES[code].upper() for code in ("de", "fr", "pl", "uk", "tr")]
    assert languages(identifier, texts) == ["de", "fr", "pl", "uk", "tr"]
    noisy = [f"{SENTENCES[code]} IMG_2231.jpg https://example.com/a?b=c 1024x768" for code in ("es", "ja", "th")]
    assert languages(identifier, noisy) == ["es", "ja", "th"]


def test_the_sources_label_helps_where_it_agrees_and_hinders_where_it_does_not(
    identifier: LanguageIdentifier,
) -> None:
    guess = identifier.guess(pa.array(["Zeichnung: Elefant", "Zeichnung: Elefant und Giraffe unter Bäumen"]))
    assert guess.code.tolist() == ["de", "de"] and guess.letters.tolist() == [16, 37]
    plain, agrees, differs, elsewhere = (
        identifier.needed(guess, pa.array([label] * 2, pa.string())) for label in (None, "de", "fr", "sv")
    )
    config = identifier.config
    short = config.short_penalty * (1 - 16 / config.short_letters)
    assert plain == pytest.approx([config.thresholds["de"] + short, config.thresholds["de"]])
    assert agrees == pytest.approx(plain - config.agreement_bonus)
    assert differs == pytest.approx(np.minimum(plain + config.difference_penalty, 1.0))
    assert elsewhere == pytest.approx(plain)  # a label that is not one of the configured languages has no effect


def test_other_languages_than_the_18_can_be_named() -> None:
    nordic = LanguageIdentifier(LanguageConfig(languages=("sv", "fi", "el", "he")))
    assert languages(nordic, [OTHERS["sv"], OTHERS["fi"], OTHERS["el"], OTHERS["he"], SENTENCES["en"]]) == [
        "sv", "fi", "el", "he", None,
    ]  # fmt: skip


def test_every_label_of_the_model_can_be_configured(identifier: LanguageIdentifier) -> None:
    labels = identifier.engine.labels
    assert len(labels) == 176
    every = LanguageIdentifier(LanguageConfig(languages=labels, thresholds={}))
    assert languages(every, list((SENTENCES | OTHERS).values())) == [*SENTENCES, *OTHERS]


def test_an_unknown_language_and_a_wrong_model_are_errors() -> None:
    with pytest.raises(AltDiffusionError, match="languages xx: are not labels"):
        LanguageIdentifier(LanguageConfig(languages=("en", "xx")))
    with pytest.raises(AltDiffusionError, match="has SHA-256 8f3472cf"):
        LanguageIdentifier(LanguageConfig(model_sha256="0" * 64))
    with pytest.raises(AltDiffusionError, match="package 'no_such_package' is not installed"):
        LanguageIdentifier(LanguageConfig(model="package://no_such_package/lid.ftz"))


def test_wrong_word_lists_are_errors_and_it_works_without_them(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match=r"word lists .* have SHA-256 dd4a7a86"):
        LanguageIdentifier(LanguageConfig(words_sha256="0" * 64))
    missing = str(tmp_path / "{language}.gz")
    with pytest.raises(AltDiffusionError, match=r"word list .*/ar.gz: is not there\..*words_sha256: null"):
        LanguageIdentifier(LanguageConfig(words=missing))
    for wrong in ({"words": "lists.gz"}, {"words_sha256": "abc"}, {"short_letters": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LanguageConfig(**wrong)  # type: ignore[arg-type]
    without = LanguageIdentifier(LanguageConfig(words_sha256=None))
    assert languages(without, list(SENTENCES.values())) == list(SENTENCES)


TEXTS = [
    *SENTENCES.values(), *OTHERS.values(), *(text.upper() for text in SENTENCES.values()), "", "x", "123", "東京", "山",
    "a@b.com IMG_1.JPG", "<b>Haus</b> &amp; Hof", "x" * 5000, "Müller " * 900, "iPhone 用ケース 2個", "é", "e\u0301",
    "Чехол для Samsung Galaxy S10 Plus черный", "手工陶瓷茶杯 Lord of the Rings", "傳統市場", "Li Bai (李白) "
    "of the Tang",
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_where_a_batch_is_cut_changes_nothing(identifier: LanguageIdentifier, data: st.DataObject) -> None:
    anything = st.one_of(st.none(), st.sampled_from(TEXTS), st.text(max_size=40))
    texts = data.draw(st.lists(anything, max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    together = identifier.guess(pa.array(texts, pa.string()))
    edges = [0, *cuts, len(texts)]
    parts = [identifier.guess(pa.array(texts, pa.string())[a:b]) for a, b in itertools.pairwise(edges)]
    for name in ("number", "score", "letters", "open"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(together, name))
    assert all((score > 0) == (code != UNKNOWN) for code, score in zip(together.code, together.score, strict=True))


def test_answers_do_not_depend_on_the_neighbours(identifier: LanguageIdentifier, monkeypatch: Any) -> None:
    texts = pa.array(TEXTS)
    together = identifier.guess(texts)
    monkeypatch.setattr(language_module, "_AT_ONCE", 7)
    monkeypatch.setattr(language_module, "_COLUMNS", 2)
    blocks = identifier.guess(texts)
    for at in range(len(texts)):
        alone = identifier.guess(texts.slice(at, 1))
        for name in ("number", "score", "letters", "open"):
            assert getattr(alone, name)[0] == getattr(together, name)[at] == getattr(blocks, name)[at]


def test_other_arrow_types_of_text_and_no_text_at_all(identifier: LanguageIdentifier) -> None:
    for kind in (pa.large_string(), pa.string_view()):
        assert identifier.guess(pa.array([SENTENCES["de"], None], kind)).code.tolist() == ["de", UNKNOWN]
    assert identifier.guess(pa.nulls(2)).code.tolist() == [UNKNOWN] * 2
    assert identifier.guess(pa.array([], pa.string())).code.tolist() == []


def test_a_foreign_name_does_not_rule_a_language_out(identifier: LanguageIdentifier) -> None:
    texts = {
        "The old town of Zürich seen from the lake at sunset": "en",
        "Ein Blick auf die Straßen von São Paulo bei Nacht": "de",
        "Une rue de Malmö en Suède sous la neige": "fr",
        "El partido del Beşiktaş contra el Real Madrid": "es",
    }
    assert languages(identifier, list(texts)) == list(texts.values())


@pytest.mark.parametrize(("phrases", "least"), [(SHORT, 0.8), (LONG, 0.9), (LATIN, 0.9)], ids=["3", "5", "Latin"])
def test_titles_with_a_brand_in_latin_letters_are_identified_by_their_own(
    identifier: LanguageIdentifier, phrases: dict[str, str], least: float
) -> None:
    texts, truth, _ = zip(*titles(phrases), strict=True)
    found, true = np.array(languages(identifier, list(texts)), object), np.array(truth)
    for code in phrases:
        assert np.mean(found[true == code] == code) >= least, code
        assert np.mean(true[found == code] == code) >= 0.97, code


def test_a_foreign_name_in_its_own_letters_does_not_change_the_language(identifier: LanguageIdentifier) -> None:
    texts = {
        "Portrait of the poet Li Bai (李白) in the style of the Tang dynasty": "en",
        "View of the Moscow Kremlin (Кремль) and the river at night": "en",
        "Das Wort für Frieden auf Russisch (мир) an der Wand und in dem Buch": "de",
        "Une affiche de la ville de Tokyo (東京) pour les enfants et les parents": "fr",
    }
    assert languages(identifier, list(texts)) == list(texts.values())


NEIGHBOURS = {
    "af": "Die kinders speel elke dag in die tuin agter die huis en hulle ma kyk vir hulle deur die venster. "
    "Wanneer dit "
    "begin reën, hardloop hulle almal vinnig binne toe, want hulle wil nie nat word nie, en daarna drink hulle "
    "saam koffie.",
    "gl": "Os nenos xogan todos os días no xardín que hai detrás da casa e a súa nai mira para eles dende a "
    "ventá. Cando "
    "comeza a chover, corren todos para dentro, porque non queren mollarse, e despois toman xuntos un café moi "
    "quente.",
    "ast": "Los neños xueguen tolos díes nel xardín que ta detrás de la casa y la so ma mira pa ellos dende la "
    "ventana. "
    "Cuando entama a llover, corren toos pa dientro, porque nun quieren moyase, y dempués tomen xuntos un café "
    "bien caliente.",
    "sco": "The bairns play ilka day in the gairden ahint the hoose and thair mither watches thaim frae the "
    "windae. Whan it "
    "stairts tae rain, thay aw rin ben the hoose, acause thay dinna want tae get wat, and efter thay drink a "
    "wee coffee.",
    "nds": "De Kinner speelt elkeen Dag in’n Goorn achter dat Huus un ehr Moder kickt ehr ut dat Finster to. "
    "Wenn dat "
    "anfangt to regen, denn loopt se all gau na binnen, vun wegen dat se nich natt warrn wüllt, un drinkt denn "
    "Koffie.",
    "lb": "D'Kanner spillen all Dag am Gaart hannert dem Haus an hir Mamm kuckt hinnen aus der Fënster no. "
    "Wann et ufänkt "
    "ze reenen, da lafen se all séier eran, well si net naass wëlle ginn, an duerno drénke si zesummen e "
    "waarme Kaffi.",
    "mr": "मुले दररोज घराच्या मागच्या बागेत खेळतात आणि त्यांची आई खिडकीतून त्यांच्याकडे पाहते. पाऊस सुरू झाला की ती "
    "सगळी आत धावतात, "
    "कारण त्यांना भिजायचे नसते, आणि नंतर ते एकत्र चहा पितात.",
    "ne": "केटाकेटीहरू हरेक दिन घरपछाडिको बगैँचामा खेल्छन् र उनीहरूकी आमा झ्यालबाट हेर्छिन्। पानी पर्न थाल्यो भने सबै "
    "भित्र दौडन्छन्, "
    "किनभने उनीहरू भिज्न चाहँदैनन्, र त्यसपछि सँगै चिया पिउँछन्।",
    "be": "Дзеці кожны дзень гуляюць у садзе за домам, а іх маці глядзіць на іх праз акно. Калі пачынаецца "
    "дождж, яны ўсе "
    "бягуць унутр, бо не хочуць прамокнуць, а пасля разам п'юць гарачую каву.",
}


@pytest.mark.parametrize("code", NEIGHBOURS)
def test_word_lists_do_not_outvote_the_model_on_long_text(identifier: LanguageIdentifier, code: str) -> None:
    """Most words of a neighbour are on the list of a language that has one: the more of them, the less that
    counts."""
    assert languages(identifier, [NEIGHBOURS[code]]) == [None]
    words = NEIGHBOURS[code].split()
    halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    assert languages(identifier, halves) == [None, None]


def test_markers_are_small_words_that_the_neighbours_do_not_use() -> None:
    config = LanguageConfig()
    assert config.words_sha256 is not None
    lists = WordLists(config.words, config.words_sha256)
    for names, text in MARKERS.items():
        assert len(set(text.split())) == len(text.split())
        assert all(nearest(label) is not None for label in ("af", "gl", "mr"))
        gains = lists.gains(words_of(text.split()), np.ones(len(text.split()), bool))
        for name in names:
            frequency = FLOOR - gains[LISTS.index(name)].astype(int) * UNIT
            often = [word for word, level in zip(text.split(), frequency, strict=True) if level < 470]
            assert not often, (name, often)  # more than once in 50,000 words


CHINESE = (
    "手工陶瓷茶杯 木制家具 天空白云 海上日出 大理石台面 北京大学 金色大象 "
    "女士手表 男士皮包 老年人 手机 儿童玩具 冬天雪山"
)
JAPANESE = (
    "日本料理 自動車 株式会社 写真集 富士山 電車 新幹線 結婚式 温泉旅館 北海道 水族館 送料無料 腕時計 卒業式 航空写真"
)


def test_ideographs_that_both_standards_hold_are_identified_by_the_words_they_make(
    identifier: LanguageIdentifier,
) -> None:
    assert languages(identifier, CHINESE.split()) == ["zh"] * len(CHINESE.split())
    assert languages(identifier, JAPANESE.split()) == ["ja"] * len(JAPANESE.split())


def test_a_label_decides_between_chinese_and_japanese_where_letters_and_words_leave_it_open(
    identifier: LanguageIdentifier,
) -> None:
    both = ["水彩画", "白菜", "新年", "豆腐"]
    assert languages(identifier, both, ["zh"] * 4) == ["zh"] * 4
    assert languages(identifier, both, ["ja"] * 4) == ["ja"] * 4
    # it does not outweigh what is certain
    assert languages(identifier, ["手工陶瓷茶杯", "送料無料"], ["ja", "zh"]) == ["zh", "ja"]
    # and what one standard alone holds is not open
    guess = identifier.guess(pa.array(["黑色手机壳", "桜の花", "水彩画"]))
    assert guess.open.tolist() == [False, False, True]


def test_accents_apart_from_their_letters_are_read_as_one(identifier: LanguageIdentifier) -> None:
    for code in ("vi", "fr", "pl", "tr", "ru"):
        apart = unicodedata.normalize("NFD", SENTENCES[code])
        assert apart != SENTENCES[code]
        one, other = identifier.guess(pa.array([SENTENCES[code]])), identifier.guess(pa.array([apart]))
        assert one.code[0] == other.code[0] == code and one.score[0] == other.score[0]


def words(text: str) -> list[str]:
    """Return the words of a text that the model and the lists get."""
    cut = tokens(language_module._without_markup(pa.array([text])))
    found = scripts.letters(language_module._readable(cut.different)).words
    return ["".join(map(chr, found.points[a : a + n])) for a, n in zip(found.start, found.length, strict=True)]


def test_words_are_runs_of_letters_without_noise() -> None:
    assert words("HELLO\nWORLD, it's_me") == ["HELLO", "WORLD", "it", "s", "me"]
    assert words("<b>bold</b> &amp; a@b.com http://x.y/z?q=word www.x.de DSC_0001.jpg pic.html") == ["bold"]
    assert words("Canon EOS 5D mark2 iii 4K-Film") == ["Canon", "EOS", "iii", "Film"]
    assert words("iPhone用ケース2個 ภาพ2ภาพ") == ["iPhone", "用ケース", "個", "ภาพ", "ภาพ"]
    assert words("می\u200cشود गाँव e\u0301té") == ["می\u200cشود", "गाँव", "été"]
    assert words("5 … !!") == []


def evidence(texts: list[str]) -> scripts.Evidence:
    cut = tokens(pa.array(texts))
    return scripts.evidence(cut, scripts.letters(cut.different))


def test_scripts_and_alphabets() -> None:
    found = evidence(["abc", "Ёлка", "їжак", "ab пять", "你好", "東京タワー", "123", "łódź", "कमल", "ABC Ä", "път"])
    assert found.script.tolist() == [
        scripts.LATIN, scripts.CYRILLIC, scripts.CYRILLIC, scripts.CYRILLIC, scripts.HAN, scripts.HAN, scripts.NONE,
        scripts.LATIN, scripts.DEVANAGARI, scripts.LATIN, scripts.CYRILLIC,
    ]  # fmt: skip
    assert found.share[3] == 1 and found.letters[3] == 4  # Latin letters next to another script do not count
    assert found.letters[4] == 6 and found.kana[5] == 3
    assert found.capitals.tolist() == [False] * 9 + [True, False]

    def may(row: int, language: str) -> bool:
        number = scripts.bit(language)
        assert number is not None
        return bool(int(found.allowed[row]) >> number & 1)

    assert may(0, "en") and may(0, "ru")  # Latin letters show nothing about a language that is not written in them
    assert may(1, "ru") and not may(1, "uk") and not may(1, "bg")
    assert may(2, "uk") and not may(2, "ru")
    assert may(7, "pl") and not may(7, "en") and not may(7, "de")
    assert may(10, "bg") and not may(10, "ru")  # a hard sign between consonants
    assert scripts.bit("xx") is None


@settings(deadline=None)  # the first text makes the tables
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=8))
def test_counts_of_letters_are_those_of_each_text(texts: list[str]) -> None:
    found = evidence(texts)
    for at, text in enumerate(texts):
        alone = evidence([text])
        for name in ("script", "share", "letters", "allowed", "capitals", "kana", "simplified", "japanese"):
            assert getattr(alone, name)[0] == getattr(found, name)[at]
    points, begin = code_points(pa.array(texts))
    assert "".join(map(chr, points)) == "".join(texts) and begin.tolist() == [
        sum(map(len, texts[:at])) for at in range(len(texts))
    ]


@given(st.lists(st.text(min_size=1, max_size=70), unique=True), st.lists(st.text(min_size=1, max_size=70)))
def test_known_words_are_found_and_no_others(known: list[str], asked: list[str]) -> None:
    table = WordTable(words_of(known).hashes())
    found = table.find(words_of([*asked, *known]).hashes()).tolist()
    assert found == [known.index(word) if word in known else -1 for word in [*asked, *known]]


def test_words_are_judged_by_how_frequent_they_are() -> None:
    config = LanguageConfig()
    assert config.words_sha256 is not None
    lists = WordLists(config.words, config.words_sha256)
    given_words = words_of(["und", "the", "casa", "xqzzk"])
    gains = lists.gains(given_words, np.array([True] * 4))
    column = {language: own_list(language, latin=True) for language in ("de", "en", "es", "it", "pt")}
    assert gains[: len(LISTS)].argmax(axis=0)[:2].tolist() == [column["de"], column["en"]]
    assert all(gains[column[language], 2] > 50 for language in ("es", "it", "pt"))
    assert gains[:-1, 3].max() == 0 and gains[-1].tolist() == [0, 0, 0, 1]


def probabilities(model: FastTextModel, texts: list[str]) -> Any:
    """Return the probabilities [L, T] of texts whose words are separated by single spaces."""
    found = np.zeros((len(model.labels), len(texts)))
    for at, text in enumerate(texts):
        sums, count = model.sums(words_of(text.split(" ") if text else []))
        found[:, at] = model.probabilities(sums.sum(axis=1, keepdims=True), count.sum(keepdims=True))[:, 0]
    return found


def theirs(model: Any, labels: tuple[str, ...], text: str) -> dict[str, float]:
    """Return fastText's own probabilities; it adds 1e-5 at each node of the tree."""
    return {label.removeprefix("__label__"): p for p, label in model.predict(text + "\n", len(labels), 0.0, "strict")}


@pytest.fixture(scope="module")
def fasttexts() -> tuple[FastTextModel, Any]:
    config = LanguageConfig()
    model = FastTextModel(read_pinned(config.model, config.model_sha256), "lid.176")
    return model, fasttext.FastText.load_model(local_pinned(config.model, config.model_sha256)).f


def test_probabilities_are_fasttexts_own(fasttexts: tuple[FastTextModel, Any]) -> None:
    model, peer = fasttexts
    texts = [*SENTENCES.values(), *OTHERS.values(), "", "x", "de la", "😀 ab", "\u200d"]
    for text, mine in zip(texts, probabilities(model, texts).T, strict=True):
        assert mine.sum() == pytest.approx(1, abs=1e-4)
        expected = theirs(peer, model.labels, text)
        for label, p in zip(model.labels, mine, strict=True):
            assert p == pytest.approx(expected.get(label, 0.0), abs=2e-3)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30))
def test_so_they_are_for_any_word(fasttexts: tuple[FastTextModel, Any], word: str) -> None:
    model, peer = fasttexts
    mine = probabilities(model, [word])[:, 0]
    expected = theirs(peer, model.labels, word)
    best = int(mine.argmax())
    assert mine[best] == pytest.approx(expected[model.labels[best]], abs=3e-3)


def written(path: Path, *, dim: int, low: int, high: int, quantised: bool, pruned: bool = False, loss: int = 1) -> Any:
    """Write a model of random numbers as fastText saves its own; return fastText's reading of it."""
    draw = np.random.default_rng(dim)
    words = ["</s>", "de", "rotes", "велосипед", "ä"]
    labels = ["de", "fr", "ru", "sv", "bg", "en"]
    buckets = 300 if high else 0
    kept = np.flatnonzero(draw.random(buckets) < 0.6) if pruned else np.arange(buckets)
    rows = len(words) + len(kept)
    data = struct.pack("<ii", 793712314, 12)
    data += struct.pack("<12id", dim, 5, 5, 1, 5, 1, loss, 3, buckets, low, high, 100, 1e-4)
    data += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 99, len(kept) if pruned else -1)
    for number, word in enumerate(words):
        data += word.encode() + b"\0" + struct.pack("<qb", 50 - number, 0)
    for number, label in enumerate(labels):
        data += f"__label__{label}".encode() + b"\0" + struct.pack("<qb", 40 - 5 * number, 1)
    if pruned:
        data += np.stack([kept, draw.permutation(len(kept))], axis=1).astype("<i4").tobytes()
    data += struct.pack("<?", quantised)

    def matrix(height: int) -> bytes:
        return struct.pack("<qq", height, dim) + draw.normal(size=(height, dim)).astype("<f4").tobytes()

    if quantised:
        parts = -(-dim // 2)
        data += struct.pack("<?qqi", True, rows, dim, rows * parts)
        data += draw.integers(0, 256, rows * parts).astype("u1").tobytes()
        data += struct.pack("<iiii", dim, parts, 2, dim - 2 * (parts - 1))
        data += draw.normal(size=dim * 256).astype("<f4").tobytes()
        data += draw.integers(0, 256, rows).astype("u1").tobytes()
        data += struct.pack("<iiii", 1, 1, 1, 1) + draw.uniform(0.5, 2, 256).astype("<f4").tobytes()
    else:
        data += matrix(rows)
    data += struct.pack("<?", False) + matrix(len(labels))
    path.write_bytes(data)
    return fasttext.FastText.load_model(str(path)).f


@pytest.mark.parametrize("kind", [{"quantised": False}, {"quantised": True}, {"quantised": True, "pruned": True}])
@pytest.mark.parametrize("shape", [(5, 2, 3), (8, 1, 4), (3, 0, 0)])
def test_models_of_other_shapes_are_read_too(
    tmp_path: Path, shape: tuple[int, int, int], kind: dict[str, bool]
) -> None:
    dim, low, high = shape
    if kind.get("pruned") and not high:
        kind = {"quantised": True}
    peer = written(tmp_path / "model", dim=dim, low=low, high=high, **kind)
    model = FastTextModel((tmp_path / "model").read_bytes(), "small")
    texts = [SENTENCES["de"], OTHERS["bg"], "Haus ä", "велосипед"]
    for text, mine in zip(texts, probabilities(model, texts).T, strict=True):
        assert dict(zip(model.labels, mine, strict=True)) == pytest.approx(theirs(peer, model.labels, text), abs=2e-3)


def test_files_that_are_not_such_a_model_are_errors(tmp_path: Path) -> None:
    written(tmp_path / "good", dim=4, low=2, high=3, quantised=False)
    data = (tmp_path / "good").read_bytes()
    for wrong in (b"", b"PAR1" * 9, data[:60], data[:-40]):
        with pytest.raises(AltDiffusionError, match="model m: is not a fastText model"):
            FastTextModel(wrong, "m")
    written(tmp_path / "softmax", dim=4, low=2, high=3, quantised=False, loss=3)
    with pytest.raises(AltDiffusionError, match=r"another kind .*hierarchical softmax"):
        FastTextModel((tmp_path / "softmax").read_bytes(), "m")


def test_the_librarys_own_engine_answers_exactly_as_the_library(fasttexts: tuple[FastTextModel, Any]) -> None:
    _, peer = fasttexts
    engine = FastTextEngine(LanguageConfig())
    texts = [*SENTENCES.values(), *OTHERS.values(), "<b>Ein</b> rotes Haus", "de la", "two\nlines of text"]
    guess = engine.guess(pa.array([*texts, None, "", "12 €", "\n"]))
    for text, code, score in zip(texts, guess.code, guess.score, strict=False):
        ((probability, label),) = peer.predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")
        assert (code, score) == (label.removeprefix("__label__"), np.float32(probability))
    assert guess.code[len(texts) :].tolist() == [UNKNOWN] * 4 and not guess.score[len(texts) :].any()


def test_the_engines_agree_on_whole_sentences_and_count_letters_alike(identifier: LanguageIdentifier) -> None:
    library = LanguageIdentifier(LanguageConfig(engine="fasttext"))
    captions = pa.array([*SENTENCES.values(), "", None])
    ours, theirs_ = identifier.guess(captions), library.guess(captions)
    assert ours.letters.tolist() == theirs_.letters.tolist()
    assert ours.code.tolist() == theirs_.code.tolist()
    nothing = pa.nulls(len(captions), pa.string())
    assert library.identify(captions, nothing)[0].to_pylist() == identifier.identify(captions, nothing)[0].to_pylist()


def test_the_librarys_engine_reads_models_that_are_not_read_here(tmp_path: Path) -> None:
    lines = [f"__label__{code} {text}" for code, text in SENTENCES.items() for _ in range(50)]
    (tmp_path / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    code = (  # in a process of its own: in one that has run for long, fastText's training can meet NaN
        "import fasttext, sys\n"
        "made = fasttext.train_supervised(sys.argv[1], dim=8, wordNgrams=2, loss='softmax', thread=1, verbose=0)\n"
        "made.save_model(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "train.txt"), str(tmp_path / "own.bin")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    trained = fasttext.load_model(str(tmp_path / "own.bin"))
    sha256 = hashlib.sha256((tmp_path / "own.bin").read_bytes()).hexdigest()
    own = LanguageConfig(model=str(tmp_path / "own.bin"), model_sha256=sha256, engine="fasttext")
    guess = LanguageIdentifier(own).guess(pa.array(list(SENTENCES.values())))
    expected = [trained.f.predict(text + "\n", 1, 0.0, "strict")[0] for text in SENTENCES.values()]
    assert [(f"__label__{c}", s) for c, s in zip(guess.code, guess.score, strict=True)] == [
        (label, np.float32(probability)) for probability, label in expected
    ]
    with pytest.raises(AltDiffusionError, match=r"word n-grams 2.*language\.engine: fasttext, which reads any"):
        LanguageIdentifier(replace(own, engine="vectorised"))
    (tmp_path / "own.bin").write_bytes(b"not a model")
    broken = replace(own, model_sha256=hashlib.sha256(b"not a model").hexdigest())
    with pytest.raises(AltDiffusionError, match="is not a fastText model"):
        LanguageIdentifier(broken)


def test_the_default_engine_leaves_fingerprints_as_they_were() -> None:
    assert "engine" not in semantic(LanguageConfig()) and resolved(LanguageConfig())["engine"] == "vectorised"
    assert fingerprint(LanguageConfig()) == "0de100b32503d9f45bf151799488502e620cde8b1ddba57fd24584455d60469b"
    assert fingerprint(LanguageConfig(engine="fasttext")) != fingerprint(LanguageConfig())
