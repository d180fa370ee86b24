"""Schemathesis sends generated requests: no 5xx but 503, and only answers that the description allows."""

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from tests.serve.serving import encoded, noise, on_socket

EXAMPLES = 12
"""Requests per operation and mode."""

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def description(make_service, tmp_path_factory):
    with on_socket(make_service(tmp_path_factory.mktemp("fuzzed"), threshold=0.1)) as address:
        # So that verdicts on this query are accepted.
        assert httpx.post(f"{address}/search", data={"id": 1}).status_code == 200
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


OPERATIONS = [
    ("POST", "/embed"),
    ("POST", "/search"),
    ("POST", "/gallery"),
    ("POST", "/gallery/batch"),
    ("GET", "/gallery"),
    ("GET", "/gallery/{id}"),
    ("GET", "/gallery/{id}/image"),
    ("GET", "/gallery/{id}/attention"),
    ("POST", "/attention"),
    ("POST", "/feedback"),
    ("GET", "/feedback.csv"),
    ("GET", "/overview"),
    ("GET", "/examples"),
    ("GET", "/examples/{number}/image"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("PATCH", "/gallery/{id}"),
    ("POST", "/compact"),
    ("DELETE", "/gallery/{id}"),
    ("DELETE", "/gallery"),
]
"""DELETE is last, because with the same seed it uses the same ids as the others."""


def test_every_operation_is_fuzzed(description):
    paths = description.raw_schema["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)


SIMPLE = ("k", "rerank", "threshold", "pid", "camid", "time")
PICTURES = [encoded(noise(seed=seed), format) for seed, format in enumerate(("JPEG", "PNG", "WEBP", "BMP"))]


@st.composite
def sensible(draw, cases):
    """Draws cases of schemathesis, two thirds of them with a valid image, an id that may exist, or a known query.

    Its generated values alone would all be refused by the first checks.

    Returns:
      The case, and the files that are sent in place of its body, if any.
    """
    case, files = draw(cases), {}
    if draw(st.sampled_from([True, True, False])):
        if case.path == "/feedback":
            case.body = {"verdict": "right", **case.body, "query": "id:1", "hit": draw(st.integers(0, 30))}
        if case.path == "/gallery/batch":
            pictures = draw(st.lists(st.sampled_from(PICTURES), min_size=1, max_size=3))
            files = {"files": [("images", (f"{number}.png", data)) for number, data in enumerate(pictures)]}
        if isinstance(case.body, dict) and "image" in case.operation.body[0].optimized_schema.get("properties", {}):
            kept = {name: case.body[name] for name in SIMPLE if case.body.get(name) is not None}
            case.body = {**kept, "image": draw(st.sampled_from(PICTURES))}
        for name in case.path_parameters or ():
            case.path_parameters[name] = draw(st.integers(0, 30))
    return case, files


WITHOUT_PARAMETERS = ("/feedback.csv", "/overview", "/examples", "/healthz", "/metrics", "/compact")


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_nothing_breaks(description, method, path, mode):
    if path in WITHOUT_PARAMETERS and mode == schemathesis.GenerationMode.NEGATIVE:
        return  # these operations have no parameters
    operation = description[path][method]
    seen, cases = [], operation.as_strategy(generation_mode=mode)

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(
        sensible(cases) if mode == schemathesis.GenerationMode.POSITIVE else cases.map(lambda case: (case, {}))
    )
    def ask(asked):
        case, files = asked
        response = case.call(**files)
        seen.append(response.status_code)
        assert response.status_code < 500 or response.status_code == 503, response.text
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}
        case.validate_response(response, checks=CHECKS)

    ask()
    if mode == schemathesis.GenerationMode.POSITIVE and "examples" not in path:
        assert any(status < 300 for status in seen), seen
