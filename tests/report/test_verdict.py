"""What a gate said, for terminals, job summaries and JUnit readers: nothing hidden, nothing that breaks out."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from rich.cells import cell_len

from llmkit.report import junit, markdown, verdict

# Jenkins' reading of the format (its junit-10 schema), as far as llmkit writes it.
SCHEMA = """
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:complexType name="told" mixed="true">
    <xs:attribute name="type" type="xs:string"/><xs:attribute name="message" type="xs:string"/>
  </xs:complexType>
  <xs:attributeGroup name="counts">
    <xs:attribute name="name" type="xs:string" use="required"/>
    <xs:attribute name="tests" type="xs:int" use="required"/>
    <xs:attribute name="failures" type="xs:int"/><xs:attribute name="errors" type="xs:int"/>
    <xs:attribute name="time" type="xs:decimal"/>
  </xs:attributeGroup>
  <xs:element name="testsuites"><xs:complexType>
    <xs:sequence><xs:element name="testsuite" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
      <xs:sequence><xs:element name="testcase" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
        <xs:choice minOccurs="0"><xs:element name="skipped" type="told"/><xs:element name="error" type="told"/>
          <xs:element name="failure" type="told"/></xs:choice>
        <xs:attribute name="name" type="xs:string" use="required"/>
        <xs:attribute name="classname" type="xs:string" use="required"/>
        <xs:attribute name="time" type="xs:decimal"/>
      </xs:complexType></xs:element></xs:sequence>
      <xs:attributeGroup ref="counts"/><xs:attribute name="skipped" type="xs:int"/>
    </xs:complexType></xs:element></xs:sequence>
    <xs:attributeGroup ref="counts"/>
  </xs:complexType></xs:element>
</xs:schema>
"""
HOSTILE = "]]><failure/>&\"'\x00\x1b[2J\ud800\u202e | <script> [x](http://x) @all \n# y"


def check(model: str, metric: str, told: str, why: str = "17.9 → 7.8, 10.1 worse") -> dict[str, Any]:
    return {"model": model, "metric": metric, "kind": "max_drop", "limit": 1.0, "verdict": told, "why": why}


GATE = {
    "verdict": "fail",
    "checks": [
        check("q8_0", "bleu", "pass", "the outputs are the baseline's, text for text"),
        check("q8_0", "rougeL", "unknown"),
        check("q4_k_m", "bleu", "fail"),
    ],
}


def parsed(gate: dict[str, Any]) -> Any:
    text = junit.xml(gate)
    etree.XMLSchema(etree.fromstring(SCHEMA)).assertValid(etree.fromstring(text.encode()))
    return ElementTree.fromstring(text)


def test_a_suite_stands_for_a_model_and_a_case_for_a_limit() -> None:
    root = parsed(GATE)
    assert [(suite.get("name"), suite.get("tests")) for suite in root] == [("q8_0", "2"), ("q4_k_m", "1")]
    assert {key: root.get(key) for key in ("tests", "failures", "errors")} == {"tests": "3", "failures": "1", "errors": "1"}
    cases = {(case.get("classname"), case.get("name")): [one.tag for one in case] for case in root.iter("testcase")}
    assert cases == {
        ("llmkit.gate.q8_0", "max_drop bleu"): [],
        ("llmkit.gate.q8_0", "max_drop rougeL"): ["error"],
        ("llmkit.gate.q4_k_m", "max_drop bleu"): ["failure"],
    }
    failure = root.find(".//failure")
    assert failure.get("message") == failure.text == "17.9 → 7.8, 10.1 worse"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.sampled_from(["pass", "fail", "unknown", "?"]), st.text())))
def test_whatever_the_names_the_xml_is_valid_and_counts_are_right(rows: list[tuple[str, str, str, str]]) -> None:
    root = parsed({"verdict": "fail", "checks": [check(*row) for row in rows]})
    assert len(root.findall(".//failure")) == sum(row[2] == "fail" for row in rows)
    assert len(root.findall(".//error")) == sum(row[2] in ("unknown", "?") for row in rows)
    assert int(root.get("tests")) == len(root.findall(".//testcase")) == len(rows)


def test_control_characters_and_markup_stay_text() -> None:
    root = parsed({"verdict": "fail", "checks": [check(HOSTILE, HOSTILE, "fail", HOSTILE)]})
    [failure] = root.findall(".//failure")
    assert "]]><failure/>&" in failure.text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_what_fails_first_and_fits(width: int) -> None:
    text = verdict.render(GATE, width=width, color=False)
    lines = text.splitlines()
    assert lines[0].startswith("gate: fail, a limit is broken")
    assert [line.split()[0] for line in lines if line.startswith(("fail", "unknown", "pass"))] == ["fail", "unknown", "pass"]
    assert all(cell_len(line) <= width for line in lines[1:])
    assert "\x1b" not in text
    assert "\x1b[" in verdict.render(GATE, width=width, color=True)


def test_a_summary_holds_every_check_in_a_row_of_its_own() -> None:
    lines = verdict.markdown(
        {"verdict": "fail", "checks": [*GATE["checks"], check(HOSTILE, "bleu", "fail", HOSTILE)]}
    ).splitlines()
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {len(row) for row in rows} == {7}
    assert "<script>" not in "".join(lines)
    assert r"\[x\]\(http\://x\) \@all" in "".join(lines)


def test_no_gate_at_all_is_no_error() -> None:
    assert "no checks" in verdict.render({"verdict": "unknown", "checks": []}, width=80, color=False)
    assert parsed({"checks": []}).get("tests") == "0"


@given(st.text())
def test_escaped_text_is_one_line_without_live_marks(text: str) -> None:
    shown = markdown.escaped(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`\[\]*_@#]", shown)
    assert "<" not in shown
