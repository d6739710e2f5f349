"""Personal data that is found, what is not personal data, and where a placeholder goes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.collecting import checksums
from graftlm.data.collecting.personal import find, remove

REMOVED = [
    ("Write to john.doe+x@mail.example.co.uk today.", "Write to <EMAIL> today."),
    ("我的邮箱是zhang_wei88@qq.com请回复", "我的邮箱是<EMAIL>请回复"),
    ("jane (at) example (dot) org or bob at site dot com", "<EMAIL> or <EMAIL>"),
    ("Call (415) 555-2671 or +49 30 1234567.", "Call <PHONE> or <PHONE>."),
    ("电话13812345678或010-62345678", "电话<PHONE>或<PHONE>"),
    ("Appelle-moi au 06 12 34 56 78 vite", "Appelle-moi au <PHONE> vite"),
    ("Mi número es 612 345 678, o el 91 123 45 67", "Mi número es <PHONE>, o el <PHONE>"),
    ("Meine Nummer: 0176/12345678", "Meine Nummer: <PHONE>"),
    ("My card is 4111 1111 1111 1111 exp 12/27", "My card is <CARD> exp 12/27"),
    ("378282246310005", "<CARD>"),
    ("IBAN DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432 ok", "IBAN <IBAN> and <IBAN> ok"),
    ("key AKIAIOSFODNN7EXAMPLE; password: hunter2!", "key <KEY>; password: <KEY>!"),
    ("from 203.0.113.7 and 2001:db8::ff00:42:8329", "from <IP> and <IP>"),
    ("SSN 123-45-6789, 身份证号11010519491231002X", "SSN <ID>, 身份证号<ID>"),
    ("I live at 742 Evergreen Terrace, Springfield, IL 62704 now", "I live at <ADDRESS> now"),
    ("at 10 Downing Street, London SW1A 2AA.", "at <ADDRESS>."),
    ("Ich wohne in der Musterstraße 12a, 10115 Berlin und lese", "Ich wohne in der <ADDRESS> und lese"),
    ("J'habite au 12 bis rue de la Paix, 75002 Paris depuis 2010.", "J'habite au <ADDRESS> depuis 2010."),
    ("Vivo en la Calle de Alcalá 45, 3º B, 28014 Madrid con mi familia", "Vivo en la <ADDRESS> con mi familia"),
    ("我住在北京市朝阳区建国路88号3单元502室，怎么走？", "我住在<ADDRESS>，怎么走？"),
    ("My name is Anna Müller and Anna wants a letter.", "My name is <NAME> and <NAME> wants a letter."),
    ("my name is john smith and i want to sleep", "my name is <NAME> and i want to sleep"),
    ("Ich heiße Peter Schmidt. Frau Dr. Weber sagt ja.", "Ich heiße <NAME>. Frau Dr. <NAME> sagt ja."),
    ("Write a letter.\nBest regards,\nJohn O'Brien", "Write a letter.\nBest regards,\n<NAME>"),
    ("Order:\nName: Mary Jones\nItem: pen", "Order:\nName: <NAME>\nItem: pen"),
    ("我叫王小明，想请李老师帮忙", "我叫<NAME>，想请<NAME>老师帮忙"),
]


@pytest.mark.parametrize(("text", "expected"), REMOVED)
def test_removed(text, expected):
    assert remove(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "What is 3.14159265, and what happened in 1914-1918 or on 2024-05-12?",
        "Is 978-3-16-148410-0 an ISBN? Order 4111 1111 1111 1112 has no check digit.",
        "Does version 1.2.3.4 need std::vector at 12:30:45 on 127.0.0.1?",
        "Write a poem in 5 lines about a 10 km drive.",
        "Table name: Books, Store Name: Corner. String 1 and Spring 2024; see https://www.example.com/news/technology-45496375",
        "Der Platz 14 im Saal ist frei. Im Jahr 1990 kam Heft 3. Am Ende 5.",
        "在图书馆里，一位老师和一位学生相遇",
        "I am happy today. What is the capital of France?",
        "Commit 2f3a says: @property def size(self) -> int",
        "Wie heißt die Hauptstadt von Frankreich? Ich bin müde.",
        "请写一首关于春天的诗，不超过100字。",
        "Explique la différence entre 1 000 000 et 10 000 000.",
    ],
)
def test_left_alone(text):
    assert remove(text) == (text, {})


def test_counts_by_kind():
    text, counts = remove("ada@example.org, bob@example.org, +44 20 7946 0958")
    assert text == "<EMAIL>, <EMAIL>, <PHONE>"
    assert counts == {"email": 2, "phone": 1}


@given(st.text(max_size=200) | st.text("0123456789 .-+@:/aAß张", max_size=60))
def test_spans_are_in_order_and_the_rest_stays(text):
    found = find(text)
    assert all(a.end <= b.begin for a, b in pairwise(found))
    assert all(0 <= one.begin < one.end <= len(text) for one in found)
    kept, at = [], 0
    for one in found:
        kept += [text[at : one.begin], f"<{one.kind.upper()}>"]
        at = one.end
    assert remove(text)[0] == "".join([*kept, text[at:]])


def test_a_long_text_takes_no_long_time():
    """No pattern may go back and forth over a text: 40,000 signs in a few seconds."""
    import time

    for piece in ("a" * 50, "1 2-3.", "Anna ", "在路上", "1a2B", "Straße ", "a.b-", "@", ":", "12 Rue de la "):
        text = piece * (20_000 // len(piece))
        start = time.perf_counter()
        find(text)
        assert time.perf_counter() - start < 10, piece


@pytest.mark.parametrize("number", ["4111111111111111", "5500005555555559", "378282246310005", "6011000990139424"])
def test_luhn_tells_every_changed_digit(number):
    assert checksums.luhn(number)
    for place in range(len(number)):
        changed = number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]
        assert not checksums.luhn(changed)


def test_other_checksums():
    assert checksums.iban("FR1420041010050500013M02606")
    assert not checksums.iban("FR1420041010050500013M02607")
    assert not checksums.iban("FR142004101005050001302606")
    assert checksums.chinese_id("11010519491231002X")
    assert not checksums.chinese_id("110105194912310021")
    assert not checksums.chinese_id("11010519491331002X")
    assert checksums.spanish_id("12345678Z")
    assert checksums.spanish_id("X1234567L")
    assert not checksums.spanish_id("12345678A")
    assert not checksums.social_security("000123456")
