"""How these tests speak to a service."""

import cv2


def encoded(crop, suffix=".png"):
    """Image file bytes of an RGB crop."""
    return cv2.imencode(suffix, crop[..., ::-1])[1].tobytes()


def ask(client, image, **fields):
    """One query with a reason."""
    return client.post("/v1/query", files=[("images", ("a.png", image))], data={"reason": "test", **fields})


def code(answer):
    """The code of an error; its body is checked on the way."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]
    return body["error"]["code"]


def multipart(**fields):
    """Fields of a multipart form without a file."""
    return [(name, (None, value)) for name, value in fields.items()]
