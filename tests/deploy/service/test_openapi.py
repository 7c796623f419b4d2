"""The service against its own description."""

from unittest import SkipTest

import pytest
from asking import encoded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from deploy.service.access import OPEN, ROUTES

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis.specs.openapi import checks  # noqa: E402 - only where it is installed

EXCLUDED = [checks.positive_data_acceptance, checks.negative_data_rejection, checks.ignored_auth]
"""An image is more than its schema says, so that not every request that fits the schema can be done; a form knows no
types, so that a number where the schema has a list of texts is right; and every request here carries a valid token,
also where the generator left it out. What is refused, and who is let in, have tests of their own (test_routes,
test_gate).
"""


@pytest.fixture
def document(serve, tokens):
    return serve(tokens=tokens["file"].file).get("/openapi.json").json()


def test_every_operation_has_an_example_and_the_one_shape_of_errors(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"]
            assert operation["description"]
            for status, answer in operation["responses"].items():
                for kind in answer["content"].values():
                    assert "example" in kind, (method, path, status)
                if int(status) >= 400 and path != "/readyz":
                    assert answer["content"]["application/json"]["schema"] == {
                        "$ref": "#/components/schemas/ErrorBody"
                    }, (method, path, status)
                if status in ("429", "503"):
                    assert "Retry-After" in answer["headers"], (method, path, status)
            guarded = ROUTES[method.upper(), path].access != OPEN
            assert ("security" in operation) == guarded == ("401" in operation["responses"]), (method, path)


def test_examples_fit_their_schemas(document):
    validator = pytest.importorskip("jsonschema_rs")
    for item in document["paths"].values():
        for operation in item.values():
            for answer in [*operation["responses"].values(), operation.get("requestBody", {"content": {}})]:
                for kind, content in answer["content"].items():
                    if kind == "application/json":
                        validator.validate(
                            {**content["schema"], "components": document["components"]}, content["example"]
                        )


def probe(operation, mode, count, headers):
    """Ask one operation with generated requests that fit the document, or do not; returns how many, and what was wrong
    with an answer.
    """
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        nonlocal asked
        asked += 1
        case.validate_response(case.call(headers=headers), excluded_checks=EXCLUDED)

    try:
        check()
    except (Unsatisfiable, SkipTest):  # there is no wrong way to ask for what takes nothing
        return 0, None
    except (Exception, BaseExceptionGroup) as error:
        return asked, f"{operation.label} {mode.value}: {type(error).__name__} {error}"
    return asked, None


@pytest.mark.parametrize(
    "count", [pytest.param(5, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.nightly)]
)
def test_it_answers_as_it_says(listen, golden_crops, tokens, count):
    people = st.sampled_from(
        [encoded(crop, suffix) for crop in golden_crops[:4] for suffix in (".png", ".jpg", ".webp", ".bmp")]
    )
    schemathesis.openapi.format("binary", st.one_of(people, st.binary(max_size=200)))
    schema = schemathesis.openapi.from_url(f"{listen(tokens=tokens['file'].file, rate=0)}/openapi.json")
    headers = {"authorization": f"Bearer {tokens['all']}"}
    operations = [found.ok() for found in schema.get_all_operations()]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    results = [probe(operation, mode, count, headers) for operation in operations for mode in modes]
    assert not [wrong for _, wrong in results if wrong], "\n\n".join(wrong for _, wrong in results if wrong)
    assert sum(asked for asked, _ in results) > 5 * count
