"""Engines: the provider asked for is the one that computes. GPUs are played by a stand-in for ONNX Runtime that falls
back as the real one does.
"""

import ctypes
import json
import logging
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny import DIM, HEIGHT, WIDTH, embed, graph

from deploy import Encoder
from deploy.encoder import gpu
from deploy.encoder.engine import Binding, Engine, Plan, Target, check_placement, cores_granted, provider_options, start
from deploy.encoder.engine_cache import EngineCache, cache_root
from deploy.encoder.selftest import self_test
from domains.errors import ArtefactError, DeviceError, UsageError

PLAN = Plan(HEIGHT, WIDTH, DIM, batch=8)
ENGINES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ORIN = gpu.Gpu("Orin", "8.7", "CUDA 12060; R36.4")


class FakeRuntime(types.ModuleType):
    """ONNX Runtime with every provider, and knobs for how it lets one down."""

    __version__ = "1.99.0"

    def __init__(self, projection, **knobs):
        super().__init__("onnxruntime")
        self.projection = projection
        self.knobs = {
            "falls_back": False,
            "strays": [],
            "computes": True,
            "fails": None,
            "writes": True,
            "error": 0.0,
        } | knobs
        self.sessions = []
        self.preloaded = 0
        self.SessionOptions = types.SimpleNamespace
        self.OrtValue = types.SimpleNamespace(ortvalue_from_shape_and_type=self._room)

    def get_available_providers(self):
        return [*ENGINES.values(), "CPUExecutionProvider"]

    def preload_dlls(self):
        self.preloaded += 1
        sys.stdout.write("something that must not get into the JSON")

    def InferenceSession(self, model, options, providers, enable_fallback):
        assert enable_fallback == 0
        session = FakeSession(self, options, providers)
        self.sessions.append(session)
        return session

    def _room(self, shape, kind, device, index):
        assert (kind, device) == (np.float32, "cuda")
        return types.SimpleNamespace(shape=shape, index=index, data_ptr=lambda: 4096)


class FakeSession:
    def __init__(self, runtime, options, providers):
        self.runtime, self.options, self.providers = runtime, options, providers
        self.calls = []
        folder = providers[0][1].get("trt_engine_cache_path")
        if folder and runtime.knobs["writes"] and not list(Path(folder).glob("*.engine")):
            Path(folder, "TRTKernel_0_sm87.engine").write_bytes(b"built for one model")

    def get_providers(self):
        return (
            ["CPUExecutionProvider"]
            if self.runtime.knobs["falls_back"]
            else [self.providers[0][0], "CPUExecutionProvider"]
        )

    def get_inputs(self):
        return [types.SimpleNamespace(name="crops", type="tensor(uint8)", shape=["N", HEIGHT, WIDTH, 3])]

    def get_outputs(self):
        return [types.SimpleNamespace(name="embeddings", type="tensor(float)", shape=["N", DIM])]

    def run(self, outputs, feed):
        if self.runtime.knobs["fails"]:
            raise self.runtime.knobs["fails"]
        self.calls.append(("run", len(feed["crops"])))
        noise = np.random.default_rng(0).normal(
            scale=1 + self.runtime.knobs["error"], size=self.runtime.projection.shape
        )
        return [embed(feed["crops"], self.runtime.projection + self.runtime.knobs["error"] * noise)]

    def io_binding(self):
        return FakeBinding(self)

    def run_with_iobinding(self, binding):
        self.calls.append(("bound", len(binding.crops)))
        (binding.out,) = self.run(None, {"crops": binding.crops})

    def end_profiling(self):
        wanted = self.providers[0][0] if self.runtime.knobs["computes"] else "CPUExecutionProvider"
        nodes = [("TRTKernel_graph", wanted), ("Shape", "CPUExecutionProvider"), *self.runtime.knobs["strays"]]
        events = [{"cat": "Session", "args": {}}, {"cat": "Node", "args": {"thread_scheduling_stats": ""}}]
        events += [{"cat": "Node", "args": {"op_name": name, "provider": engine}} for name, engine in nodes]
        file = Path(f"{self.options.profile_file_prefix}_now.json")
        file.write_text(json.dumps(events))
        self.profile = file
        return str(file)


class FakeBinding:
    def __init__(self, session):
        self.session = session

    def bind_cpu_input(self, name, crops):
        assert name == "crops"
        self.crops = crops

    def bind_output(self, name, device, index, kind, shape, pointer):
        assert (name, kind, shape, pointer) == ("embeddings", np.float32, [len(self.crops), DIM], 4096)
        self.session.bound_to = f"{device}:{index}"

    def copy_outputs_to_cpu(self):
        return [self.out]


@pytest.fixture
def runtime(monkeypatch, projection):
    """Return a function (**knobs) that puts a stand-in in ONNX Runtime's place, and Orin's driver beside it."""

    def make(**knobs):
        fake = FakeRuntime(projection, **knobs)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        monkeypatch.setattr(gpu, "describe", lambda index: ORIN)
        monkeypatch.setattr(gpu, "tensorrt_version", lambda: "101300")
        return fake

    return make


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("cpu", ("cpu", "0")),
        ("cuda", ("cuda", "0")),
        ("cuda:3", ("cuda", "3")),
        ("tensorrt:1", ("tensorrt", "1")),
        ("openvino", ("openvino", "CPU")),
        ("openvino:gpu", ("openvino", "GPU")),
    ],
)
def test_a_provider_may_name_its_device(words, target):
    assert Target.parse(words) == target


@pytest.mark.parametrize(
    "words", ["gpu", "", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:¹", "openvino:0", "openvino:", "CUDA", None, 3]
)
def test_what_is_no_provider_is_refused(words):
    with pytest.raises(UsageError):
        Target.parse(words)


def test_options_of_every_provider():
    assert provider_options(Target.parse("cpu"), PLAN, None) == [("CPUExecutionProvider", {})]
    ((name, options),) = provider_options(Target.parse("cuda:2"), PLAN, None)
    assert (name, options["device_id"], options["cudnn_conv_algo_search"]) == (ENGINES["cuda"], "2", "HEURISTIC")
    plan = Plan(HEIGHT, WIDTH, DIM, batch=24, precision="fp16", threads=3)
    assert provider_options(Target.parse("openvino:GPU"), plan, None) == [
        (ENGINES["openvino"], {"device_type": "GPU", "num_of_threads": "3"})
    ]
    (name, options), (second, cuda) = provider_options(Target.parse("tensorrt:1"), plan, Path("/cache"))
    assert (name, second, cuda["device_id"]) == (ENGINES["tensorrt"], ENGINES["cuda"], "1")
    assert options == {
        "device_id": "1",
        "trt_profile_min_shapes": "crops:1x16x8x3",
        "trt_profile_opt_shapes": "crops:24x16x8x3",
        "trt_profile_max_shapes": "crops:24x16x8x3",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/cache",
    }


@pytest.mark.parametrize("provider", ["cuda:1", "tensorrt", "openvino"])
def test_every_provider_embeds_through_the_encoder(runtime, bundle, projection, tmp_path, provider, capsys):
    fake = runtime()
    encoder = Encoder.load(bundle.folder, provider, batch=8, cache=tmp_path / "cache")
    crops = np.random.default_rng(1).integers(0, 256, (19, HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_allclose(encoder(crops), embed(crops, projection), atol=1e-5)
    assert (encoder.provider, encoder.elsewhere) == (provider, {"Shape": "CPUExecutionProvider"})
    session = fake.sessions[-1]
    assert session.calls[0][1] == 1, "the probing inference has the smallest batch"
    assert [size for _, size in session.calls if size > 8] == []
    assert not session.profile.exists(), "the profile is removed"
    assert ("bound", 8) in session.calls if provider != "openvino" else ("run", 8) in session.calls
    if provider == "cuda:1":
        assert session.bound_to == "cuda:1"
    assert capsys.readouterr().out == "", "what ONNX Runtime prints stays off stdout"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino:GPU"])
@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"falls_back": True}, r"asked for .*, but ONNX Runtime would run on CPUExecutionProvider"),
        ({"computes": False}, r"computes nothing in this graph"),
        ({"strays": [("Conv", "CPUExecutionProvider")]}, r"leaves Conv to CPUExecutionProvider"),
        (
            {"strays": [("Transpose", "CPUExecutionProvider"), ("FusedMatMul", "CPUExecutionProvider")]},
            r"leaves FusedMatMul to",
        ),
        (
            {"fails": MemoryError("out of memory\nmore")},
            r"failed on a batch of 1: MemoryError: out of memory; a smaller batch",
        ),
    ],
    ids=str,
)
def test_nothing_falls_back(runtime, bundle, tmp_path, provider, knobs, message):
    runtime(**knobs)
    with pytest.raises(DeviceError, match=message) as caught:
        Encoder.load(bundle.folder, provider, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not [file for file in tmp_path.glob("cache/*") if file.is_file() or (file / "engine.json").exists()], (
        "a refused engine is not kept"
    )


def test_tensorrt_that_leaves_the_work_to_cuda_is_refused(runtime, bundle, tmp_path):
    runtime(strays=[("Cast", ENGINES["cuda"]), ("Conv", ENGINES["cuda"])])
    with pytest.raises(DeviceError, match="tensorrt leaves Conv to CUDAExecutionProvider"):
        Encoder.load(bundle.folder, "tensorrt", cache=tmp_path)


def test_an_engine_that_computes_wrongly_does_not_serve(runtime, bundle, make_bundle, tmp_path):
    runtime(error=0.08)
    with pytest.raises(ArtefactError, match=r"golden embeddings on cuda: cosine 0\.99"):
        Encoder.load(bundle.folder, "cuda")
    for number, allowed in enumerate((0.98, {"cuda": 0.98, "tensorrt": 0.9999})):
        made = make_bundle(f"allowed{number}", changes={"golden_cosine": allowed})
        Encoder.load(made.folder, "cuda")
    with pytest.raises(ArtefactError, match=r"on tensorrt.*at least 0\.9999"):
        Encoder.load(made.folder, "tensorrt", cache=tmp_path)
    with pytest.raises(ArtefactError, match=r"on openvino.*at least 0\.999 "):
        Encoder.load(made.folder, "openvino")


@pytest.mark.parametrize("wrong", [0.5, 2, "0.99", True, {"cuda": None}], ids=str)
def test_a_tolerance_that_makes_no_sense_is_refused(runtime, make_bundle, wrong):
    runtime()
    with pytest.raises(ArtefactError, match="golden_cosine must be"):
        Encoder.load(make_bundle(changes={"golden_cosine": wrong}).folder, "cuda")


@pytest.mark.parametrize("content", ["", "[", "{}", "[1]", "[]", '[{"cat": "Node"}]'])
def test_a_profile_that_tells_nothing_is_an_error(tmp_path, content):
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(DeviceError):
        check_placement(tmp_path / "profile.json", Target.parse("cuda"))
    with pytest.raises(DeviceError):
        check_placement(tmp_path / "missing.json", Target.parse("cuda"))


def test_the_real_runtime_writes_the_profile_that_is_read(bundle, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(bundle.model(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"crops": bundle.golden().crops})
    profile = Path(session.end_profiling())
    assert check_placement(profile, Target.parse("cpu")) == {}
    with pytest.raises(DeviceError, match="computes nothing"):
        check_placement(profile, Target.parse("cuda"))


def test_binding_works_with_the_real_runtime(bundle):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    session = onnxruntime.InferenceSession(bundle.model(), providers=["CPUExecutionProvider"])
    engine = Engine(session, "cpu", PLAN, Binding(onnxruntime, session, PLAN, "cpu", 0))
    crops = bundle.golden().crops
    kept = {count: engine(crops[:count]) for count in (8, 1, 3, 8, 7)}
    for count, got in kept.items():
        np.testing.assert_array_equal(got, session.run(None, {"crops": crops[:count]})[0])


def test_openvino_if_it_is_installed(bundle):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    if ENGINES["openvino"] not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no OpenVINO")
    encoder = Encoder.load(bundle.folder, "openvino", threads=1)
    assert encoder.golden_cosines(32).min() > 0.999


def test_the_self_test_names_the_gpu(runtime, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("LIFELONG_REID_CACHE", str(tmp_path / "cache"))
    runtime()
    checks = self_test(bundle.folder, "tensorrt:0", seconds=0.01)
    assert all(check.ok for check in checks)
    checks_of_two = self_test(bundle.folder, "tensorrt", batch=2, seconds=0.01)
    assert [check.what for check in checks_of_two if check.what.startswith("golden")] == [
        "golden embeddings, batch 1",
        "golden embeddings, batch 2",
    ]
    engine = checks[1].found
    assert (
        "ONNX Runtime 1.99.0 on tensorrt:0; Orin (compute capability 8.7, CUDA 12060; R36.4); run elsewhere: Shape"
        in engine
    )


def other_weights(projection):
    """A graph of the same structure, which ONNX Runtime would give the same engine; the stand-in computes the same for
    both.
    """
    return graph(projection + 0.001)


class TestCache:
    """TensorRT's engines on disk."""

    def load(self, bundle, tmp_path, **options):
        return Encoder.load(bundle.folder, "tensorrt", cache=tmp_path / "cache", **options)

    def folders(self, tmp_path):
        return sorted(path for path in (tmp_path / "cache").iterdir())

    def test_built_once_and_found_again(self, runtime, bundle, tmp_path, caplog):
        fake = runtime()
        self.load(bundle, tmp_path)
        (folder,) = self.folders(tmp_path)
        first, second = fake.sessions
        assert Path(first.providers[0][1]["trt_engine_cache_path"]).name.endswith(".tmp"), (
            "built beside, and moved when it is whole"
        )
        assert second.providers[0][1]["trt_engine_cache_path"] == str(folder)
        self.load(bundle, tmp_path)
        assert len(fake.sessions) == 3
        assert not caplog.records
        facts = json.loads((folder / "engine.json").read_text())["facts"]
        assert facts == {
            "model": bundle.manifest["files"]["model.onnx"],
            "batch": 32,
            "precision": "fp32",
            "gpu": "Orin",
            "capability": "8.7",
            "driver": "CUDA 12060; R36.4",
            "tensorrt": "101300",
            "onnxruntime": "1.99.0",
        }

    def test_another_model_gpu_driver_version_or_batch_has_another_folder(
        self, runtime, bundle, make_bundle, projection, tmp_path, monkeypatch
    ):
        fake = runtime()
        self.load(bundle, tmp_path)
        self.load(make_bundle("calibrated", changes={"step": 2}), tmp_path)  # another bundle, the same graph
        assert len(self.folders(tmp_path)) == 1
        self.load(bundle, tmp_path, batch=16)
        self.load(make_bundle("next", model=other_weights(projection)), tmp_path)
        for change in ({"name": "Thor"}, {"capability": "9.0"}, {"driver": "CUDA 13000; R38"}):
            monkeypatch.setattr(gpu, "describe", lambda index, change=change: ORIN._replace(**change))
            self.load(bundle, tmp_path)
        monkeypatch.setattr(gpu, "tensorrt_version", lambda: "110000")
        self.load(bundle, tmp_path)
        fake.__version__ = "2.0"
        self.load(bundle, tmp_path)
        assert len(self.folders(tmp_path)) == 8

    @pytest.mark.parametrize("how", ["changed", "foreign", "extra", "unsealed", "truncated"])
    def test_a_folder_that_is_not_what_was_built_is_built_again(
        self, runtime, bundle, make_bundle, projection, tmp_path, caplog, how
    ):
        fake = runtime()
        self.load(bundle, tmp_path)
        (folder,) = self.folders(tmp_path)
        (engine,) = folder.glob("*.engine")
        if how == "changed":
            engine.write_bytes(b"built for another model")
        elif how == "foreign":
            self.load(make_bundle("next", model=other_weights(projection)), tmp_path)
            other = next(path for path in self.folders(tmp_path) if path != folder)
            for file in folder.iterdir():
                file.write_bytes((other / file.name).read_bytes())
        elif how == "extra":
            (folder / "TRTKernel_1_sm87.engine").write_bytes(b"?")
        elif how == "unsealed":
            (folder / "engine.json").unlink()
        else:
            (folder / "engine.json").write_text("{")
        before = len(fake.sessions)
        with caplog.at_level(logging.WARNING):
            self.load(bundle, tmp_path)
        assert len(fake.sessions) == before + 2, "built, and loaded from where it was built"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "are rebuilt" in caplog.text
        assert engine.read_bytes() == b"built for one model"

    def test_tensorrt_that_writes_again_is_told_of(self, runtime, bundle, tmp_path, caplog, monkeypatch):
        fake = runtime()
        self.load(bundle, tmp_path)
        (folder,) = self.folders(tmp_path)
        real = fake.InferenceSession
        monkeypatch.setattr(
            fake,
            "InferenceSession",
            lambda *a, **b: ((folder / "TRTKernel_9_sm87.engine").write_bytes(b"!"), real(*a, **b))[1],
        )
        with caplog.at_level(logging.WARNING):
            self.load(bundle, tmp_path)
        assert "did not use its engines" in caplog.text

    def test_an_engine_that_was_never_written_is_an_error(self, runtime, bundle, tmp_path):
        runtime(writes=False)
        with pytest.raises(DeviceError, match="built no engine"):
            self.load(bundle, tmp_path)
        assert self.folders(tmp_path) == []

    def test_a_cache_that_cannot_be_written_says_what_to_do(self, runtime, bundle, tmp_path):
        runtime()
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(DeviceError, match="LIFELONG_REID_CACHE"):
            self.load(bundle, tmp_path)

    @pytest.mark.parametrize("which", ["cache", "folder", "manifest"])
    @pytest.mark.parametrize("mode", [0o777, 0o770])
    def test_a_cache_that_others_can_write_is_neither_run_from_nor_filled(self, tmp_path, which, mode):
        cache = EngineCache(tmp_path / "cache", {"model": "ab"})
        with cache.building() as folder:
            (folder / "a.engine").write_bytes(b"ours")
        assert cache.ready()
        opened = {"cache": cache.folder.parent, "folder": cache.folder, "manifest": cache.folder / "engine.json"}
        opened[which].chmod(mode)
        for use in (cache.ready, lambda: cache.building().__enter__()):
            with pytest.raises(DeviceError, match=r"others could run code from it: .*LIFELONG_REID_CACHE") as told:
                use()
            assert "\n" not in str(told.value)

    def test_two_that_build_at_once_both_work(self, tmp_path):
        cache = EngineCache(tmp_path / "cache", {"model": "ab"})
        with cache.building() as mine:
            (mine / "a.engine").write_bytes(b"mine")
            with EngineCache(tmp_path / "cache", {"model": "ab"}).building() as theirs:
                (theirs / "a.engine").write_bytes(b"theirs")
        assert cache.ready()
        assert (cache.folder / "a.engine").read_bytes() == b"theirs"
        assert self.folders(tmp_path) == [cache.folder]

    def test_where_it_lies(self, monkeypatch):
        monkeypatch.setenv("LIFELONG_REID_CACHE", "/var/cache/reid")
        assert cache_root() == Path("/var/cache/reid")
        monkeypatch.delenv("LIFELONG_REID_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/home/reid/.cache")
        assert cache_root() == Path("/home/reid/.cache/lifelong-reid/engines")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("200000 100000", 2), ("50000 100000", 1), ("350000 100000", 3), (None, None), ("", None)],
)
def test_a_containers_quota_counts_as_its_cores(tmp_path, text, cores):
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert cores_granted(tmp_path / "cpu.max") == (None if cores is None else min(cores, len(os.sched_getaffinity(0))))


class FakeDriver:
    """libcuda with one GPU."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = 40
        return 0 if index.value == 0 else 101

    def cuDeviceGetName(self, name, length, device):
        assert device.value == 40
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 7}[attribute.value]
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12060
        return 0


def test_the_gpu_is_described_by_its_driver(monkeypatch, tmp_path):
    release = tmp_path / "version"
    release.write_text("R36.4\nmore\n")
    monkeypatch.setattr(gpu, "RELEASES", (tmp_path / "missing", release))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    assert gpu.describe(0) == ORIN
    with pytest.raises(DeviceError, match=r"no GPU 1 \(cuDeviceGet returned 101\)"):
        gpu.describe(1)


def test_all_versions_of_tensorrt_count(monkeypatch):
    there = {"libnvinfer.so.8": 8601, "libnvinfer.so.10": 101300}

    def load(name):
        if name not in there:
            raise OSError(name)
        return types.SimpleNamespace(getInferLibVersion=lambda: there[name])

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert gpu.tensorrt_version() == "8601+101300"
    there.clear()
    assert gpu.tensorrt_version() == "none"


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(gpu, "DRIVER", "libnowhere.so.1")
    monkeypatch.setattr(gpu, "TENSORRT", ("libnowhere.so.1",))
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        gpu.describe(0)
    assert gpu.tensorrt_version() == "none"


def test_batches_suit_the_provider(runtime, bundle, tmp_path):
    runtime()
    assert Encoder.load(bundle.folder, "openvino").batch == 8
    assert Encoder.load(bundle.folder, "cuda:1").batch == 32
    assert Encoder.load(bundle.folder, "tensorrt", cache=tmp_path, batch=5).batch == 5


def test_start_needs_no_bundle(projection):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    engine = start(graph(projection), "cpu", Plan(HEIGHT, WIDTH, DIM, threads=1))
    crops = np.random.default_rng(2).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_allclose(engine(crops), embed(crops, projection), atol=1e-5)
