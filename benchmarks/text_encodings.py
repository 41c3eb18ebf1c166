"""How often the encoding of short subtitles is told right, by language and number of lines.

python benchmarks/text_encodings.py --json

SubRip files of every sentence, every pair, and all sentences of a language in the encoding that its
old files are in. Right is a text that reads as it was written. `--json` prints one object: right and
tried by language and number of lines (1, 2, 0 for all).
"""

# ruff: noqa: E501  sentences stay whole
from __future__ import annotations

import argparse
import io
import itertools
import json

from curation.sources.charsets import encoding_of

# A language, its encoding, sentences with letters beyond ASCII.
SENTENCES = """
fr cp1252 Où est la bibliothèque ?|L’été dernier, nous avons mangé à côté de l’église.|Ça va très bien, merci.|Il a déjà été là-bas.|Voilà le garçon et la fenêtre.
es cp1252 ¿Dónde está el niño?|Mañana será otro día.|El pájaro cantó en el jardín.|¡Qué bonito!|Él también está aquí.
de cp1252 Für die Größe müssen wir üben.|Schöne Grüße aus München.|Der Vogel fällt vom Baum, natürlich.|Das weiß ich nicht, außerdem ist es spät.
pt cp1252 A menina não sabe.|Você está aqui?|O pássaro cantou e não voltou.|Há três irmãos no coração da cidade.
sv cp1252 Jag vet inte var han är.|Fågeln sjöng på ängen.|Över ån och in i skogen.|Räksmörgås är gott.
cs cp1250 Příliš žluťoučký kůň úpěl ďábelské ódy.|Nevím, co říct.|Pták zpíval na stromě celý den.
pl cp1250 Zażółć gęślą jaźń.|Gdzie jest książka?|Ptak śpiewał na drzewie cały dzień.
hu cp1250 Őrült dolog ez.|Nem tudom, mit mondjak erről.|Hol van a könyvtár?|A madár énekelt a fán, és elrepült.
hr cp1250 Što želiš od mene, čovječe?|Ptica je pjevala cijeli dan na drveću.
tr cp1254 Günaydın, bugün nasılsın?|Şu anda ne yapıyorsun, kardeşim?|Kuş ağaçta şarkı söylüyor.
ru cp1251 Привет, как дела?|Где находится библиотека?|Я не знаю, что сказать.|Птица пела на дереве весь день.
uk cp1251 Це дуже добре, дякую вам.|Де знаходиться бібліотека?|Я не знаю, що сказати.
ru koi8_r Привет, как дела?|Где находится библиотека?|Я не знаю, что сказать.|Птица пела на дереве весь день.
el cp1253 Καλημέρα, τι κάνεις σήμερα;|Πού είναι η βιβλιοθήκη;|Δεν ξέρω τι να πω.
he cp1255 שלום, מה שלומך היום?|איפה הספרייה?|אני לא יודע מה להגיד.
ar cp1256 مرحبا كيف حالك اليوم؟|أين المكتبة من فضلك؟|لا أعرف ماذا أقول.
ja cp932 鳥が歌っています|図書館はどこにありますか|私は昨日、友達と一緒に映画を見に行きました。|え、本当に？信じられない！|ありがとうございました
ja euc_jp 鳥が歌っています|図書館はどこにありますか|私は昨日、友達と一緒に映画を見に行きました。|え、本当に？信じられない！|ありがとうございました
zh gb18030 一只鸟在唱歌|你好，今天怎么样？|图书馆在哪里？|我不知道该说什么。|谢谢大家的观看
zh big5 一隻鳥在唱歌|你好，今天怎麼樣？|圖書館在哪裡？|我不知道該說什麼。
ko cp949 새가 노래하고 있어요|도서관이 어디에 있나요?|어제 친구와 함께 영화를 보러 갔어요.|정말? 믿을 수가 없어!|감사합니다
"""


def subtitles(lines: tuple[str, ...]) -> str:
    cues = (f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{line}\n" for n, line in enumerate(lines, 1))
    return "\n".join(cues)


def is_told(lines: tuple[str, ...], encoding: str) -> bool:
    text = subtitles(lines)
    data = text.encode(encoding)
    return data.decode(encoding_of(io.BytesIO(data)), "replace") == text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for row in SENTENCES.strip().splitlines():
        language, encoding, rest = row.split(" ", 2)
        lines = rest.split("|")
        for number in (1, 2, 0):
            tries = list(itertools.combinations(lines, number or len(lines)))
            right = sum(is_told(each, encoding) for each in tries)
            found.setdefault(f"{language} {encoding}", {})[number] = right, len(tries)
    if as_json:
        print(json.dumps(found))
        return
    for name, counts in found.items():
        told = (f"{number or 'all'}: {right} of {n}" for number, (right, n) in counts.items())
        print(f"{name:12}", *(f"{each:16}" for each in told))


if __name__ == "__main__":
    main()
