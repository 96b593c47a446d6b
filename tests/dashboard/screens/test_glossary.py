from streamlit.testing.v1 import AppTest

from dashboard.text.glossary import GLOSSARY


def _page() -> None:
    """Stand alone: `AppTest` writes this function's text into a script of its own."""
    from dashboard.screens import glossary

    glossary.page()


def test_the_glossary_shows_all_terms_and_finds_those_that_hold_a_word() -> None:
    """Each with its meaning; a word that no term holds says so."""
    test = AppTest.from_function(_page, default_timeout=20).run()
    assert not test.exception
    assert dict(zip(*(test.table[0].value[column] for column in ("Term", "Meaning")), strict=True)) == GLOSSARY
    test.text_input[0].set_value("first TOKEN").run()
    shown = set(test.table[0].value["Term"])
    assert "TTFT" in shown
    assert "CRPS" not in shown
    test.text_input[0].set_value("no such thing").run()
    assert "No term holds that" in test.info[0].value
