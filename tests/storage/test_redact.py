"""No secret of a URI is shown, whatever it holds; text without secrets stays as it is."""

from __future__ import annotations

import pytest
import yaml

from flashray.storage import redact

PASSWORDS = (
    *("hun/ter2", "hun@ter2", "hun/te@r2", "hun@te/r2", "hun?ter2", "hun#ter2", "12/ter2", "hun://ter2", "hun:ter2"),
    *("hun&token=ter2", "hun?token=ter2", 'hun"ter2', "hun'ter2", "hun,ter2", "hun)ter2", "(ter2", "[hun]ter2"),
    *("℀ter2", "%2Fter2", "?@/#:ter2"),
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter2@host/x", "https://***@host/x"),
        ("https://hunter2@host/x", "https://***@host/x"),
        ("https://:hunter2@host", "https://***@host"),
        (
            "postgresql+psycopg2://me:hunter2@db:5432/mlflow?sslmode=require",
            "postgresql+psycopg2://***@db:5432/mlflow?sslmode=require",
        ),
        ("ray://me:hunter2@head:10001", "ray://***@head:10001"),
        ("me:hunter2@head:6379", "***@head:6379"),
        ("RAY_ADDRESS=:hunter2@head:6379", "***@head:6379"),
        (
            "https://host/x.png?X-Amz-Date=1&X-Amz-Signature=hunter2",
            "https://host/x.png?X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("https://host/x.png?sv=2024&sig=hunter2", "https://host/x.png?sv=2024&sig=***"),
        ("http://host:5000/?token=hunter2", "http://host:5000/?token=***"),
        ("http://host:5000/#access_token=hunter2", "http://host:5000/#access_token=***"),
        ("http://host/?%74oken=hunter2", "http://host/?%74oken=***"),
        ("http://host/?a=1;TOKEN=hunter2", "http://host/?a=1;TOKEN=***"),
        ("Max retries exceeded with url: /?token=hunter2/api/2.0", "Max retries exceeded with url: /?token=***"),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(f"'{text}' does not answer") == f"{redact(chr(39) + text)}' does not answer"
    assert "hunter2" not in redact(f"('{text}'), {text}: no answer from {text}")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("rest", ["", "/", "/path", ":5000/path", "/a@2x.png", "/?email=a@b", "/?token=ter2"])
def test_no_part_of_a_password_is_shown(password: str, rest: str) -> None:
    for scheme in ("https://", "ray://", ""):
        shown = redact(f"cannot reach {scheme}me:{password}@host{rest} now")
        assert "ter2" not in shown
        assert "hun" not in shown
        assert shown.startswith("cannot reach ")
        assert shown.endswith(" now")


@pytest.mark.parametrize(
    "value", ["a/ter2", "a@ter2", "a?ter2", "a#ter2", "a;ter2", "a=ter2", "a%26ter2", "http://ter2"]
)
@pytest.mark.parametrize("uri", ["https://host/x", "https://host:5000/", "https://me:hun@host", "s3://bucket/key", "/"])
def test_no_part_of_a_parameter_is_shown(value: str, uri: str) -> None:
    shown = redact(f"{uri}?size=3&token={value}&more=1")
    assert "ter2" not in shown
    assert "hun" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "s3://bucket/prefix/photo@2x.png",
        "https://host/photo@2x.png?width=3&email=a@b",
        "sqlite:////data/my runs/mlflow.db",
        "/data/photo@2x.png",
        "cannot read '/data/12:30/photo@2x.png'",
        "models:/encoder@production",
        "severity encoder models:/encoder@production: not in the registry at http://host:5000; there are a, b",
        "http://[::1]:5000/x",
        "what is this? no  double\tspace\nis lost",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_a_redacted_recipe_is_still_a_recipe() -> None:
    text = """a: "https://me:pw@host/x"\nb: ['https://host/?token=pw', 3]\nc: {d: "http://h/?sig=pw"}\n"""
    assert yaml.safe_load(redact(text)) == {
        "a": "https://***@host/x",
        "b": ["https://host/?token=***", 3],
        "c": {"d": "http://h/?sig=***"},
    }
