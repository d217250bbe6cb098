"""Lines of Chinese, English, Japanese, emoji and code, made by a seeded generator: the same ones every time."""

import random
import re
import unicodedata

from tests.gguf.families import LINES

_WORDS = re.findall(
    r"\S+",
    """
    the of and Hello don't we've I'LL it's naïve café résumé Ångström GPU x86_64 v2.0 3.14159 1999 2,048 ABCdef
    你好 世界 今天天气怎么样 人工智能 學習 這個 “引号” 《书名》 ——省略…… 价格￥99.9元 龘靐齉 𠮷 ， 。 ？ ！ 、
    日本語 カタカナ ひらがな ﾊﾝｶｸ テスト です。 「引用」 東京タワー ー々〆 한국어 Привет мир
    😀 👍🏽 👨\u200d👩\u200d👧\u200d👦 🇨🇳 ❤\ufe0f ∑√∞≠≤ ½ № ™ ㈱ Ⅷ ﬁ
    def f(x: int) -> str: return self.__init__(*args, **kw) {"key":[1,2,null]} // /* */ != <= => && || ++ --
    https://例子.中国/a?b=c&d=%20 <b>html</b> <|not_special|> [INST] </s #include <stdio.h> \\n \\t $HOME `ls` '''
    """,
)
_SPACES = ["", "", " ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n ", "\u3000", "        "]


def generated(count: int, *, seed: int = 0) -> list[str]:
    """`count` lines of up to about 100 characters, composed (NFC)."""
    chosen = random.Random(seed)
    return [unicodedata.normalize("NFC", _line(chosen)) for _ in range(count)]


def _line(chosen: random.Random) -> str:
    parts: list[str] = []
    for _ in range(chosen.randint(1, 9)):
        parts += [_piece(chosen), chosen.choice(_SPACES)]
    return "".join(parts)


def _piece(chosen: random.Random) -> str:
    kind = chosen.randrange(10)
    if kind == 0:
        line = chosen.choice(LINES)
        start = chosen.randrange(len(line))
        return line[start : start + chosen.randint(1, 20)]
    if kind == 1:
        return "".join(chr(chosen.randint(*chosen.choice(_RANGES))) for _ in range(chosen.randint(1, 6)))
    if kind == 2:
        return "".join(chosen.choice("0123456789") for _ in range(chosen.randint(1, 9)))
    return chosen.choice(_WORDS)


# ASCII, Latin, kana, common Han, emoji
_RANGES = [(0x20, 0x7E), (0xA1, 0x17F), (0x3041, 0x30FF), (0x4E00, 0x9FA5), (0x1F600, 0x1F64F)]
