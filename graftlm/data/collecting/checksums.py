"""Check digits of cards, bank accounts and identity numbers: each takes text without separators."""

from __future__ import annotations

from datetime import date

# Length of an IBAN by country, from the registry of SWIFT.
IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
}
_CHINESE_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_SPANISH_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others: from the right, every second one counts double."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        total += sum(divmod(digit * 2, 10)) if place % 2 else digit
    return total % 10 == 0


def card_lengths(digits: str) -> tuple[int, ...]:
    """How long a payment card that begins so may be: none if no network's numbers do."""
    two, four = int(digits[:2]), int(digits[:4])
    if two in (34, 37):
        return (15,)
    if two in (36, 38, 39) or 3000 <= four <= 3059:
        return (14, 16)
    if digits[0] == "4":
        return (16, 13, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return (16,)
    if two == 35 or two == 64 or two == 65 or four == 6011:
        return (16, 19)
    if two == 62 or two == 81:
        return (19, 18, 17, 16)
    return (16, 12, 13, 14, 15, 17, 18, 19) if two in (50, *range(56, 70)) else ()


def iban(text: str) -> bool:
    """Whether country, length and the two check digits of an IBAN in capitals agree (ISO 7064, 97-10)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text[2:4].isdigit():
        return False
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def chinese_id(text: str) -> bool:
    """Whether 18 signs are a resident number: a province, a day of birth, and the check sign (GB 11643)."""
    if not 11 <= int(text[:2]) <= 83 or not _is_day(text[6:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_CHINESE_WEIGHTS, text, strict=False))
    return "10X98765432"[total % 11] == text[17].upper()


def _is_day(text: str) -> bool:
    try:
        return 1900 <= date(int(text[:4]), int(text[4:6]), int(text[6:])).year <= 2100
    except ValueError:
        return False


def social_security(digits: str) -> bool:
    """Whether nine digits may be a US social security number (it has no check digit, but numbers never given)."""
    area = digits[:3]
    return area not in ("000", "666") and area < "900" and digits[3:5] != "00" and digits[5:] != "0000"


def spanish_id(text: str) -> bool:
    """Whether a DNI (eight digits) or NIE (X, Y or Z and seven) has its letter."""
    text = text.upper()
    number = str("XYZ".index(text[0])) + text[1:8] if text[0] in "XYZ" else text[:8]
    return _SPANISH_LETTERS[int(number) % 23] == text[8]


def french_id(digits: str) -> bool:
    """Whether 15 digits are a French social security number with its key."""
    return 1 <= int(digits[3:5]) <= 42 and 97 - int(digits[:13]) % 97 == int(digits[13:])
