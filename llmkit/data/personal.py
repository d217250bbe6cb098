"""Personal data in dialogues: e-mail, phone, ID card, bank card, IP. Knows written forms and checksums, not whose they are.

What counts, by kind; a form that is not named here is not looked for (names, addresses, passports, "zhang at qq dot com").

email      an ASCII local part at a domain that ends in a known top-level domain. Not `git@…`, which is nobody's.
phone      mainland mobiles and landlines with an area code, with or without +86; +CC or 00CC and a number; US and Canada
           as (415) 555-2671 or 415-555-2671. Not the 400 and 800 service lines, nor local numbers without any prefix.
id_card    mainland, 18 digits (ISO 7064 MOD 11-2) or the 15 of before 1999: province and date must be valid.
bank_card  13 to 19 digits, solid or in fours, with an issuer's prefix at that issuer's length, and Luhn (ISO/IEC 7812).
           Luhn alone passes a tenth of all order numbers; prefix and length leave about 2 in 100 of random 16-digit ones.
ip         IPv4 and IPv6 that a host on a network can have. Not loopback, unspecified and netmasks, nor what is introduced
           as a version or a section.

Full-width letters, digits and ＠ count like their ASCII twins. Digits may stand right beside Han.
"""

import re
from collections.abc import Callable, Sequence
from datetime import date
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal, NamedTuple

from llmkit.data.filters import Changed, Rejection, Rule, Verdict
from llmkit.data.record import Record
from llmkit.data.texts import BETWEEN, joined, spread
from llmkit.errors import UsageError

KINDS = ("email", "phone", "id_card", "bank_card", "ip")

Action = Literal["drop", "mask", "keep"]
Span = tuple[int, int]
Check = Callable[[re.Match[str], int], Span | None]  # what of a match counts; the second value: where what may be read begins


class _Form(NamedTuple):
    kind: str
    hint: re.Pattern[str]  # cheap, and found wherever `pattern` is
    pattern: re.Pattern[str]
    check: Check


def personal(*, action: Action, kinds: Sequence[str] = KINDS) -> Rule:
    """A rule that masks, drops or only counts personal data in every text of a record, a rejected answer among them.

    mask: each find becomes <EMAIL>, <PHONE>, <ID_CARD>, <BANK_CARD> or <IP>, and Changed.found counts them by kind; masking
    twice is masking once. keep: the same counts, the record as it came. drop: Rejection "personal_data", the detail names
    the kinds. A record without any is returned as it is.

    Raises:
        UsageError: a kind that is not one of KINDS.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(
            f"no such kind of personal data: {', '.join(unknown)}", code="LK0214", next=f"kinds are {', '.join(KINDS)}"
        )
    forms = [form for form in _FORMS if form.kind in kinds]

    def judge(record: Record) -> Verdict:
        text = joined(record)
        if not _suspect(text):
            return record
        counts = dict.fromkeys(KINDS, 0)
        masked = [_masked(one, forms, counts) for one in text.split(BETWEEN)]
        found = {kind: count for kind, count in counts.items() if count}
        if not found:
            return record
        if action == "drop":
            return Rejection("personal_data", ", ".join(found))
        return Changed(spread(record, BETWEEN.join(masked)) if action == "mask" else record, found)

    return judge


# ---- the cheap look first

_DASHES = r"\-\u2010-\u2015\u2212\uff0d"
_SEP = rf"[{_DASHES} \u00a0\u3000]"
_HINT = re.compile("[0-9０-９@＠]")
_WIDE = re.compile("[０-９＠]")
_NARROW = {
    ord(wide): ord(wide) - 0xFEE0 for wide in map(chr, range(0xFF01, 0xFF5F)) if wide.isalnum() or wide in "＠＋－．＿（）"
}
_NEAR = rf"[{_DASHES}. \u00a0\u3000()（）]{{0,5}}"
_AT = re.compile("@")
_DIGITS = re.compile(rf"[0-9+＋](?:(?<=[+＋])(?:{_NEAR}[0-9]){{8}}|(?:{_NEAR}[0-9]){{9}})")  # a date has eight
_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")


def _suspect(text: str) -> bool:
    """Whether `text` can hold any kind: each of them has an @, many digits close together, or an IP's dots or colons."""
    if not _HINT.search(text):
        return False
    text = _narrow(text)
    return any(hint.search(text) for hint in (_AT, _DIGITS, _DOTTED, _COLONS))


def _narrow(text: str) -> str:
    """`text` with full-width letters and digits as ASCII, at the same length."""
    return text.translate(_NARROW) if _WIDE.search(text) else text


# ---- masking


def _masked(text: str, forms: Sequence[_Form], counts: dict[str, int]) -> str:
    """`text` with a placeholder for each find; adds to `counts`."""
    before = ""
    # Again until nothing changes: a mask can free its neighbour, and masking twice must be masking once.
    while text != before and _suspect(text):
        before = text
        for form in forms:
            text, count = _replaced(text, form)
            counts[form.kind] += count
    return text


def _replaced(text: str, form: _Form) -> tuple[str, int]:
    narrow, mark = _narrow(text), f"<{form.kind.upper()}>"
    if not form.hint.search(narrow):
        return text, 0
    pieces: list[str] = []
    at = done = 0
    while match := form.pattern.search(narrow, at):
        span = form.check(match, done)
        if span is None:
            at = match.start() + 1
            continue
        pieces += (text[done : span[0]], mark)
        at = done = span[1]
    return ("".join(pieces) + text[done:], len(pieces) // 2) if pieces else (text, 0)


# ---- what may stand before a number

_STUCK = re.compile(r"(?:[0-9_+＋]|[0-9][.\-])$")
_CUE = re.compile(
    r"(?:^|[^a-z])(?:tel|telephone|phone|mobile|mob|cell|call|ph|sms|fax|whatsapp|wechat|weixin|wx|vx|qq|card|number|num|no|id"
    r"|is|at|to|me|on|or|and)$",
    re.IGNORECASE,
)


def _stands_free(text: str, start: int, floor: int) -> bool:
    """Whether a number at `start` is one of its own: not the tail of a longer number, a decimal or a serial ("SN139…")."""
    # Read by hand, not by lookbehind: what was masked a moment ago (before `floor`) must not count as a neighbour.
    before = text[max(floor, start - 12) : start]
    if _STUCK.search(before):
        return False
    last = before[-1:]
    return not (last.isascii() and last.isalpha()) or bool(_CUE.search(before))


# ---- e-mail

_EMAIL = re.compile(r"@(?<=[A-Za-z0-9_+\-]@)[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*(?:\.[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*)+")
_LOCAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._%+\-]*$")
_CODE = re.compile(r"_|(?<=\.to)\(")  # x@y.to(device)
_LOCAL_CHARS = 64  # RFC 5321
_COUNTRY = (  # ISO 3166 and the few that are older or wider (uk, eu, su, ac)
    "a[c-gilmoq-uwxz]|b[abd-jmnorstwyz]|c[acdf-ik-oru-z]|d[ejkmoz]|e[cegr-u]|f[ijkmor]|g[abd-ilmnp-uwy]|h[kmnrtu]|i[del-oq-t]"
    "|j[emop]|k[eghimnprwyz]|l[abcikr-vy]|m[acdeghk-z]|n[acefgilopruz]|om|p[ae-hk-nr-twy]|qa|r[eosuw]|s[a-eg-or-tuvx-z]"
    "|t[cdfghj-ortvwz]|u[agksyz]|v[aceginu]|w[fs]|y[et]|z[amw]"
)
_GENERIC = (
    "com|org|net|edu|gov|mil|int|info|biz|name|pro|aero|asia|cat|coop|jobs|mobi|museum|post|tel|travel|xxx|academy|agency"
    "|ai|app|art|bank|bio|blog|business|buzz|cafe|capital|care|center|chat|city|cloud|club|company|computer|consulting|cool"
    "|design|dev|digital|direct|email|energy|engineer|engineering|events|example|exchange|expert|family|finance|fit"
    "|foundation|fun|fund|fyi|games|global|group|guide|guru|health|help|host|house|icu|inc|ink|institute|international|jobs"
    "|kim|law|legal|life|link|live|love|ltd|mail|management|marketing|mba|media|money|network|news|ngo|ong|one|online|page"
    "|partners|photo|photography|photos|plus|press|pub|red|ren|rocks|run|school|science|security|services|shop|show|site"
    "|social|software|solutions|space|store|studio|support|systems|team|tech|technology|test|tips|today|tools|top|tours"
    "|trade|training|university|ventures|video|vip|wang|wiki|win|work|works|world|xyz|zone"
)
_TOP_LEVEL = re.compile(f"{_COUNTRY}|{_GENERIC}")


def _email(match: re.Match[str], floor: int) -> Span | None:
    text, at = match.string, match.start()
    local = _LOCAL.search(text, max(floor, at - _LOCAL_CHARS), at)
    if local is None or local.group().lower() == "git":
        return None
    end = match.end()
    if _CODE.match(text, end):
        return None
    # From the right, so that a sentence that goes on without a space ("a@b.com.Please") costs no find.
    for label in reversed(match.group().split(".")[1:]):
        if _TOP_LEVEL.fullmatch(label.lower()) and (label.islower() or label.isupper() or label.istitle()):
            return local.start(), end
        end -= len(label) + 1
    return None


# ---- IP

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9A-Za-z_]|\.[0-9]|-[A-Za-z]|[ ]?(?:版|[小章]?节|章|条|款))")
_IPV6 = re.compile(r"(?:[0-9A-Fa-f]{1,4}|:):[0-9A-Fa-f:]{1,40}(?:\.[0-9]{1,3}){0,3}(?![0-9A-Za-z_])")
_NO_ADDRESS = re.compile(
    r"(?:[0-9_]|[0-9a-z]\.|[a-z][/\-]|(?<!ip)(?<=[a-z])"
    r"|(?:版本?号?|固件|第|[章小]节|§|[=<>~!]=|(?<![a-z])(?:v|ver|version|release|build|section|chapter))[ \t.:：=为是]*)$",
    re.IGNORECASE,
)


def _ipv4(match: re.Match[str], floor: int) -> Span | None:
    before = match.string[max(floor, match.start() - 16) : match.start()]
    return None if _NO_ADDRESS.search(before) or _nobodys(match.group()) else match.span()


def _nobodys(ipv4: str) -> bool:
    """This host, any host, or a netmask."""
    return ipv4.partition(".")[0] in ("0", "127", "255")


def _ipv6(match: re.Match[str], floor: int) -> Span | None:
    text, (start, end) = match.string, match.span()
    before = text[max(floor, start - 1) : start]
    if before and before.isascii() and (before.isalnum() or before in "_:."):
        return None
    if text[end - 1] == ":" and text[end - 2] != ":":
        end -= 1
    try:
        address = IPv6Address(text[start:end])
    except AddressValueError:
        return None
    mapped: IPv4Address | None = address.ipv4_mapped
    if mapped is not None:
        return None if _nobodys(str(mapped)) else (start, end)
    first = int(address) >> 112
    # Global, unique local and link-local unicast. The rest is C++ (`face::add1`) and hexadecimal tables.
    unicast = 0x2000 <= first <= 0x3FFF or 0xFC00 <= first <= 0xFDFF or 0xFE80 <= first <= 0xFEBF
    return (start, end) if unicast else None


# ---- ID card

_PROVINCE = "(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3]|91)"
_ID_18 = re.compile(rf"{_PROVINCE}[0-9]{{4}}([ \-]?)(?:19|20)[0-9]{{6}}\1[0-9]{{3}}(?:[Xx]|[0-9](?![0-9]))")
_ID_15 = re.compile(rf"{_PROVINCE}[0-9]{{13}}(?![0-9_]|\.[0-9])")
_ID_WEIGHTS = tuple(2 ** (17 - place) % 11 for place in range(17))


def _id_18(match: re.Match[str], floor: int) -> Span | None:
    if match.string[max(floor, match.start() - 1) : match.start()].isdecimal():
        return None
    card = match.group().replace(match.group(1), "") if match.group(1) else match.group()
    total = sum(int(digit) * weight for digit, weight in zip(card, _ID_WEIGHTS, strict=False))
    valid = _is_date(card[6:14]) and "10X98765432"[total % 11] == card[17].upper()
    return match.span() if valid else None


def _id_15(match: re.Match[str], floor: int) -> Span | None:
    card = match.group()
    valid = _is_date("19" + card[6:12]) and _stands_free(match.string, match.start(), floor)
    return match.span() if valid else None


def _is_date(digits: str) -> bool:
    """Whether YYYYMMDD is in the calendar."""
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


# ---- bank card

_CARD = re.compile(rf"([0-9]{{4}}(?:{_SEP}?[0-9]{{4}}){{2,3}})({_SEP}?[0-9]{{1,3}})?(?![0-9_]|\.[0-9])")
_AMEX = re.compile(rf"3[47][0-9]{{2}}{_SEP}[0-9]{{6}}{_SEP}[0-9]{{5}}(?![0-9_]|\.[0-9])")
_NOT_DIGITS = re.compile("[^0-9]")
_ISSUED = re.compile(  # prefix and length by issuer
    "(?:"
    "62[0-9]{14,17}"  # UnionPay
    "|(?:9558|9559|6013|603[0-9])[0-9]{12}(?:[0-9]{3})?"  # mainland banks before UnionPay
    "|4[0-9]{12}(?:[0-9]{3}){0,2}"  # Visa
    "|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    "|3[47][0-9]{13}"  # American Express
    "|35(?:2[89]|[3-8][0-9])[0-9]{12}"  # JCB
    "|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12}"  # Discover
    "|3(?:0[0-5]|[68][0-9])[0-9]{11}"  # Diners Club
    ")"
)


def _card(match: re.Match[str], floor: int) -> Span | None:
    text, start = match.string, match.start()
    if not _stands_free(text, start, floor):
        return None
    ends = [match.end()]
    if match.lastindex == 2 and not match.group(2)[0].isdecimal():
        ends.append(match.end(1))  # "… 1111 3 个月": the last group may be the next word
    return next(((start, end) for end in ends if _is_card(text[start:end])), None)


def _is_card(written: str) -> bool:
    digits = _NOT_DIGITS.sub("", written)
    # Each second digit from the right counts double, the digits of its double summed.
    total = sum(map(int, digits[-1::-2])) + sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)] for digit in digits[-2::-2])
    return total % 10 == 0 and _ISSUED.fullmatch(digits) is not None


# ---- phone

_END = r"(?![0-9_]|\.[0-9]|[A-Fa-f][0-9A-Fa-f])"  # neither a longer number, a decimal nor a hash goes on
_MOBILE = re.compile(
    rf"(?:[(（](?:[+＋]|00)?86[)）]{_SEP}?|(?:[+＋]|00)?86{_SEP}?)?"
    rf"1[3-9][0-9](?:{_SEP}?[0-9]{{4}}{_SEP}?[0-9]{{4}}|{_SEP}[0-9]{{3}}{_SEP}[0-9]{{5}}){_END}"
)
_LANDLINE = re.compile(
    rf"([(（])?0(?:(?:10|2[0-9])(?(1)[)）]){_SEP}{{0,3}}[2-9][0-9]{{3}}"
    rf"|[3-9][0-9]{{2}}(?(1)[)）]){_SEP}{{0,3}}[2-9][0-9]{{2,3}}){_SEP}?[0-9]{{4}}{_END}"
)
_ABROAD = re.compile(
    rf"(?:[+＋][1-9][0-9]{{0,14}}|00[1-9][0-9]{{0,2}}(?={_SEP}))(?:(?:{_SEP}?[(（]|[)）]{_SEP}?|{_SEP})[0-9]{{1,12}}){{0,6}}{_END}"
)
_NORTH_AMERICA = re.compile(
    rf"(?:[+＋]?1[\-. ])?(?:[(（][2-9][0-9]{{2}}[)）]{_SEP}?|[2-9][0-9]{{2}}([\-.]))"
    r"[2-9][0-9]{2}(?(1)\1|[\-. ]?)[0-9]{4}(?![0-9_]|[.\-][0-9])"
)
_COUNTRY_CODE = re.compile(  # ITU-T E.164
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2[1-689][0-9]|3[578][0-9]|42[0-9]|5[09][0-9]|6[789][0-9]|8[0578][0-9]|9[679][0-9]"
)
_DIGIT_RUN = re.compile("[0-9]+")
_SERVICE_LINES = ("400", "800")


def _phone(match: re.Match[str], floor: int) -> Span | None:
    return match.span() if _stands_free(match.string, match.start(), floor) else None


def _north_america(match: re.Match[str], floor: int) -> Span | None:
    area = _NOT_DIGITS.sub("", match.group())[-10:-7]
    return None if area in _SERVICE_LINES or area.endswith("11") else _phone(match, floor)


def _abroad(match: re.Match[str], floor: int) -> Span | None:
    text, start = match.string, match.start()
    code = _COUNTRY_CODE.match(match.group().lstrip("+＋0"))
    if code is None or not _stands_free(text, start, floor) or text[max(floor, start - 1) : start] in (")", "）"):
        return None
    runs = [run.span() for run in _DIGIT_RUN.finditer(text, start, match.end())]
    lead = 2 if text[start] == "0" else 0
    if len(runs) == 1:  # solid, as +14155552671; a signed amount has fewer digits
        digits = match.end() - start - 1
        return match.span() if 10 <= digits <= 15 and _fits(code.group(), digits) else None
    # The longest that is a number: the group after it may be the next word ("+65 6123 4567 2024年").
    for count in range(len(runs), 1, -1):
        digits = sum(end - begin for begin, end in runs[:count]) - lead
        single = sum(end - begin == 1 for begin, end in runs[1:count])
        if 8 <= digits <= 13 and single <= 1 and _fits(code.group(), digits):
            return start, runs[count - 1][1]
    return None


def _fits(code: str, digits: int) -> bool:
    return digits == 11 if code in ("1", "7") else True


# What is more certain comes first: digits of an address or a card are no phone. An American Express number that reads as an
# ID card of 15 digits (one in 30) counts as one.
_FORMS = (
    _Form("email", _AT, _EMAIL, _email),
    _Form("ip", _COLONS, _IPV6, _ipv6),
    _Form("ip", _DOTTED, _IPV4, _ipv4),
    _Form("id_card", _DIGITS, _ID_18, _id_18),
    _Form("id_card", _DIGITS, _ID_15, _id_15),
    _Form("bank_card", _DIGITS, _CARD, _card),
    _Form("bank_card", _DIGITS, _AMEX, _card),
    _Form("phone", _DIGITS, _MOBILE, _phone),
    _Form("phone", _DIGITS, _LANDLINE, _phone),
    _Form("phone", _DIGITS, _ABROAD, _abroad),
    _Form("phone", _DIGITS, _NORTH_AMERICA, _north_america),
)
