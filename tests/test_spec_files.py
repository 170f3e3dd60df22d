"""YAML files: what is written is read as it was."""

import pytest

from alignkit.spec_files import read_spec_file, to_yaml


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\u2029", "a\rb", "a\r\nb", "5e-5", "yes", " a", "- a", "#", ""])
def test_a_text_comes_back_whatever_breaks_its_lines_or_looks_like_something_else(tmp_path, text):
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml({"key": text, f"x{text}": [text]}), encoding="utf-8", newline="")
    assert read_spec_file(path, lambda content: content) == {"key": text, f"x{text}": [text]}
