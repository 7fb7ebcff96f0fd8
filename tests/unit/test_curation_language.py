"""Letters decide what they can, the model the rest; nothing without letters has a language."""

from __future__ import annotations

import pyarrow as pa
import pytest

from altdiffusion.curation import scripts
from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language import UNKNOWN, LanguageIdentifier, clean_caption, text_for_model
from altdiffusion.errors import AltDiffusionError

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


def test_a_sentence_of_each_of_the_18_is_told(identifier: LanguageIdentifier) -> None:
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
    text = pa.array(["Zeichnung: Elefant"])
    guess = identifier.guess(text)
    plain, agrees, differs = (
        float(identifier.needed(guess, pa.array([label], pa.string()))[0]) for label in (None, "de", "fr")
    )
    config = identifier.config
    assert plain == pytest.approx(config.thresholds["de"] + config.short_penalty)
    assert agrees == pytest.approx(plain - config.agreement_bonus)
    assert differs == pytest.approx(min(plain + config.difference_penalty, 1.0))


def test_other_languages_than_the_18_can_be_named() -> None:
    nordic = LanguageIdentifier(LanguageConfig(languages=("sv", "fi", "el", "he")))
    assert languages(nordic, [OTHERS["sv"], OTHERS["fi"], OTHERS["el"], OTHERS["he"], SENTENCES["en"]]) == [
        "sv", "fi", "el", "he", None,
    ]  # fmt: skip


def test_an_unknown_language_and_a_wrong_model_are_errors() -> None:
    with pytest.raises(AltDiffusionError, match="languages xx: are no labels"):
        LanguageIdentifier(LanguageConfig(languages=("en", "xx")))
    with pytest.raises(AltDiffusionError, match="has SHA-256 8f3472cf"):
        LanguageIdentifier(LanguageConfig(model_sha256="0" * 64))
    with pytest.raises(AltDiffusionError, match="package 'no_such_package' is not installed"):
        LanguageIdentifier(LanguageConfig(model="package://no_such_package/lid.ftz"))


def test_answers_do_not_depend_on_the_neighbours(identifier: LanguageIdentifier) -> None:
    texts = [*SENTENCES.values(), "", *OTHERS.values(), "x"]
    together = identifier.guess(pa.array(texts))
    for at, text in enumerate(texts):
        alone = identifier.guess(pa.array([text]))
        assert (alone.code[0], alone.score[0], alone.letters[0]) == (
            together.code[at], together.score[at], together.letters[at],
        )  # fmt: skip


def test_captions_are_stored_without_suffix_and_control_characters() -> None:
    given = [
        "Ein Rad\tde",
        "a\tb c",
        "a\r\n\x00b",
        "  a \u202e b\ufeff",
        "a\u200db \u200c",
        None,
        " \t\n ",
        "tail\tpt-BR \n",
    ]
    assert clean_caption(pa.array(given)).to_pylist() == [
        "Ein Rad", "a b c", "a b", "a b", "a\u200db \u200c", None, "", "tail",
    ]  # fmt: skip


def test_the_model_sees_no_newline_and_no_noise() -> None:
    given = ["HELLO\nWORLD", "<b>bold</b> &amp; a@b.com", "Canon EOS 5D mark2 iii", None]
    assert text_for_model(pa.array(given, pa.string())).to_pylist() == ["hello world", "bold", "Canon EOS iii", ""]


def test_scripts_and_alphabets() -> None:
    found = scripts.evidence(
        pa.array(["abc", "Ёлка", "їжак", "ab пять", "你好", "東京タワー", "", "123", "łódź", "कमल"])
    )
    assert found.script.tolist() == [
        scripts.LATIN, scripts.CYRILLIC, scripts.CYRILLIC, scripts.CYRILLIC, scripts.HAN, scripts.HAN, scripts.NONE,
        scripts.NONE, scripts.LATIN, scripts.DEVANAGARI,
    ]  # fmt: skip
    assert found.share[3] == pytest.approx(4 / 6) and found.letters[4] == 6 and found.kana[5] == 3

    def may(row: int, language: str) -> bool:
        number = scripts.bit(language)
        assert number is not None
        return bool(int(found.allowed[row]) >> number & 1)

    assert may(0, "en") and may(0, "ru")  # Latin letters say nothing about a language that is not written in them
    assert may(1, "ru") and not may(1, "uk") and not may(1, "bg")
    assert may(2, "uk") and not may(2, "ru")
    assert may(8, "pl") and not may(8, "en") and not may(8, "de")
    assert scripts.bit("xx") is None
