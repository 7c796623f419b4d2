import pytest
from tiny import graph

from deploy.encoder.selftest import self_test
from domains.errors import UsageError

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


def test_a_good_box_is_told_how_fast_it_is(bundle):
    checks = self_test(bundle.folder, threads=1, seconds=0.02)
    assert [check for check in checks if not check.ok] == []
    found = {check.what: check for check in checks}
    assert [name for name in found if name.startswith("golden")] == [
        f"golden embeddings, batch {batch}" for batch in (1, 2, 7, 32)
    ]
    latency = found["latency of one crop"].figures
    assert 0 < latency["p50_ms"] <= latency["p95_ms"]
    for what in ("throughput, batches of 8", "from JPEG files, decoding included"):
        assert found[what].figures["crops_per_second"] > 0
    assert found["memory"].figures["peak_bytes"] > 2**20
    assert checks[0].to_dict() == {
        "what": "bundle",
        "found": f"tiny, fp32, {bundle.id[:12]}",
        "ok": True,
        "remedy": "",
        "figures": {},
    }


def test_it_tests_the_batch_that_will_be_served(bundle):
    checks = self_test(bundle.folder, batch=2, threads=1, seconds=0.01)
    assert [check.what for check in checks if check.what.startswith("throughput")] == ["throughput, batches of 2"]
    assert len([check for check in checks if check.what.startswith("golden")]) == 4


def test_what_does_not_serve_is_said_with_its_remedy(make_bundle, projection, bundle):
    (check,) = self_test(make_bundle("other", model=graph(projection[::-1])).folder)
    assert (check.ok, check.found) == (False, "does not serve")
    assert "export again" in check.remedy
    (check,) = self_test(bundle.folder / "nowhere")
    assert "is not a bundle" in check.remedy
    with pytest.raises(UsageError):
        self_test(bundle.folder, "gpu")
    with pytest.raises(UsageError):
        self_test(bundle.folder, batch=0)


def test_a_batch_size_that_goes_wrong_is_found(bundle, monkeypatch):
    from deploy import Encoder

    real = Encoder.golden_cosines
    monkeypatch.setattr(Encoder, "golden_cosines", lambda self, batch: real(self, batch) * (0.9 if batch == 7 else 1))
    wrong = [check for check in self_test(bundle.folder, threads=1) if not check.ok]
    assert [check.what for check in wrong] == ["golden embeddings, batch 7"]
    assert "at least 0.999" in wrong[0].remedy
