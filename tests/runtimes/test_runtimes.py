"""Every runtime gives the Keras network's features, with any batch size and thread, and refuses damaged files."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import tensorflow as tf

from han_tf import runtimes
from han_tf.common.errors import Note, UserError
from han_tf.data import load_dataset
from han_tf.data.pipeline import load_images
from han_tf.deploy import measuring, writing
from han_tf.deploy.exporters import FORMATS
from han_tf.deploy.graph import deployment_function
from han_tf.deploy.writing import Comparison, Export
from han_tf.features.extractor import FeatureExtractor
from han_tf.models import create_model
from han_tf.runs.card import CARD, hash_files
from han_tf.runtimes.tflite import TFLiteModel
from han_tf.training.config import TrainConfig
from han_tf.training.loop import Trainer
from han_tf.training.step import Step
from tests.conftest import TINY_ARGS, measure_here, rewrite_card

SIZE = (48, 32)

EXPORTS = {
    # Format and precision -> largest difference to the Keras features, and least cosine.
    ("saved_model", "float32"): (1e-5, 0.99999),
    ("tflite", "float32"): (1e-5, 0.99999),
    ("tflite", "float16"): (2e-3, 0.99999),
    ("onnx", "float32"): (1e-5, 0.99999),
    ("onnx", "int8"): (0.3, 0.9),
    ("openvino", "float32"): (1e-5, 0.99999),
    ("openvino", "float16"): (2e-3, 0.99999),
    ("openvino", "bfloat16"): (5e-2, 0.999),
    ("openvino", "int8"): (0.3, 0.9),
}

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture(scope="module")
def images():
    """Nineteen images of different colours: more than any runtime's batch, and not a multiple of one."""
    colours = np.random.default_rng(1).integers(0, 256, (19, 2, 2, 3), np.uint8)
    return colours.repeat(SIZE[0] // 2, axis=1).repeat(SIZE[1] // 2, axis=2)


TWO_LEVELS = {"stem_width": 16, "widths": [16, 32], "strides": [2]}
"""A HAN that is converted and compiled fast; two levels are the fewest with interaction between them."""


@pytest.fixture(scope="module")
def export(tiny_data, images, tmp_path_factory):
    """Exports a network of four steps of training, which are taken without a graph: to build one takes longer."""
    train, run_dir = load_dataset("market1501", tiny_data).train, tmp_path_factory.mktemp("run")
    settings = {"dataset": "market1501", "data_dir": str(tiny_data), "epochs": 2, "model_args": TWO_LEVELS}
    settings |= {"input_height": SIZE[0], "input_width": SIZE[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", Step.take.python_function)
        Trainer(TrainConfig(**settings), run_dir, load_images(train, SIZE)).run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "measure_apart", measure_here)
        patch.setattr(measuring, "TIMED_IMAGES", len(images))
        yield Export(run_dir, "last", Comparison(images), train)


@pytest.fixture(scope="module")
def folders(export, tmp_path_factory):
    """Exports by format and precision, made when first asked for."""
    parent = tmp_path_factory.mktemp("exports")
    made = {}

    def folder(name, precision):
        if (name, precision) not in made:
            for package in (*FORMATS[name].packages, *(FORMATS[name].int8_packages if precision == "int8" else ())):
                pytest.importorskip(package)
            if (name, precision) == ("openvino", "bfloat16"):
                openvino = importlib.import_module("han_tf.runtimes.openvino")
                if not openvino.has_bfloat16():
                    pytest.skip("this processor has no bfloat16")
            made[name, precision] = export.export(name, precision, parent)
        return made[name, precision].folder

    return folder


@pytest.fixture(scope="module")
def expected(export):
    return export.original.features


@pytest.mark.parametrize("pair", EXPORTS, ids="-".join)
def test_features_are_the_keras_networks(pair, folders, images, expected):
    extractor = FeatureExtractor(folders(*pair), threads=2)
    difference, cosine = EXPORTS[pair]
    found = extractor(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=difference)
    for half in (slice(0, 512), slice(512, 1024)):
        np.testing.assert_allclose(np.linalg.norm(found[:, half], axis=1), 1, atol=1e-2)
    assert (found * expected).sum(axis=1).min() / 2 > cosine
    # Batches of other sizes give the same: padding has no effect.
    for count in (1, 3, 5, 17):
        np.testing.assert_allclose(extractor.embed(images[:count]), found[:count], atol=max(difference / 5, 1e-5))


def test_tflite_int8_is_near_the_keras_network(export, tmp_path):
    """It also quantises the features; the norms of a network as small as this may then be too far from 1."""
    found = export.export("tflite", "int8", tmp_path)
    assert found.check["least_cosine"] > 0.9
    assert found.check["largest_difference"] < 0.3
    assert found.check["norm_error"] < 0.05
    assert found.failure is None or "the norm of a branch is off that of the Keras network by" in found.failure


def test_tflite_int8_of_an_untrained_network_does_not_abort(images, tmp_path):
    """Its regions start at whole pixels, so the interpolation weights are 0 for every image."""
    writer = importlib.import_module("han_tf.deploy.exporters.tflite")
    function = deployment_function(create_model("han_small", input_size=SIZE), writer.FLAT)
    writer.export(function, tmp_path, "int8", images[:8])
    code = "import sys; import tensorflow as tf; tf.lite.Interpreter(sys.argv[1]).allocate_tensors()"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.tflite")], check=False).returncode == 0


def test_tflite_int8_of_an_untrained_narrow_network_runs(images, tmp_path):
    """Layers of one filter give only 0, with scales that the newest TensorFlow's XNNPACK refuses."""
    writer = importlib.import_module("han_tf.deploy.exporters.tflite")
    tf.keras.utils.set_random_seed(0)
    network = create_model("han_small", input_size=SIZE, feature_dim=64, **TINY_ARGS)
    writer.export(deployment_function(network, writer.FLAT), tmp_path, "int8", images[:8])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        model = TFLiteModel(str(tmp_path / "model.tflite"), 1)
    for count in (1, 8):
        assert np.isfinite(model(images[:count])).all()


def test_what_xnnpack_refuses_runs_without_it(tmp_path, monkeypatch):
    writer = importlib.import_module("han_tf.deploy.exporters.tflite")
    doubled = tf.function(
        lambda images: {"features": 2 * tf.cast(images, tf.float32)[:, 0, 0]},
        [tf.TensorSpec([None, 4, 4, 3], tf.uint8, name="images")],
    )
    writer.export(doubled.get_concrete_function(), tmp_path, "float32", None)

    class Interpreter(tf.lite.Interpreter):
        def __init__(self, **options):
            self.refuses = "experimental_op_resolver_type" not in options
            super().__init__(**options)

        def allocate_tensors(self):
            if self.refuses:
                raise RuntimeError("failed to create XNNPACK runtime\nNode number 371")
            super().allocate_tensors()

    monkeypatch.setattr(tf.lite, "Interpreter", Interpreter)
    path = str(tmp_path / "model.tflite")
    with pytest.warns(Note, match=r"runs without XNNPACK, more slowly \(failed to create XNNPACK runtime Node number"):
        model = TFLiteModel(path, 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(model(images), 2.0 * images[:, 0, 0])


def test_tflite_opens_without_the_newest_tensorflows_warning(tmp_path, monkeypatch):
    line = "    Warning: tf.lite.Interpreter is deprecated and is scheduled for deletion in\n    TF 2.20."

    class Interpreter:
        def __init__(self, **options):
            warnings.warn(line, stacklevel=2)

        def allocate_tensors(self):
            warnings.warn("another", stacklevel=2)

    monkeypatch.setattr(tf.lite, "Interpreter", Interpreter)
    (tmp_path / "model.tflite").touch()
    with pytest.warns(UserWarning, match="another") as seen:
        TFLiteModel(str(tmp_path / "model.tflite"), 2)
    assert {str(warning.message) for warning in seen} == {"another"}


@pytest.mark.parametrize("pair", [("tflite", "float32"), ("onnx", "float32"), ("openvino", "float32")], ids="-".join)
def test_several_threads_share_one_model(pair, folders, images, expected):
    extractor = FeatureExtractor(folders(*pair), threads=2)
    found = [None] * 6

    def embed(number):
        found[number] = [extractor.embed(images), extractor.embed(images[number : number + 2])]

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (whole, part) in enumerate(found):
        np.testing.assert_allclose(whole, expected, atol=1e-5)
        np.testing.assert_allclose(part, expected[number : number + 2], atol=1e-5)


def _int8_weights(name, folder):
    if name == "onnx":
        import onnx

        graph = onnx.load(folder / "model.onnx").graph
        tensors = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    else:
        from han_tf.runtimes.openvino import core

        nodes = core().read_model(folder / "model.xml").get_ordered_ops()
        tensors = [node.get_data() for node in nodes if node.get_type_name() == "Constant"]
    return [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim >= 4 and tensor.shape[-3] > 1]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_two_products_of_8_bits_fit_in_16(name, folders):
    """Processors without VNNI add two products of an activation (at most 255) and a weight in 16 bits, with saturation.

    The two products belong to two input channels. Depthwise convolutions, which have one, are not affected: OpenVINO
    adds their products in 32 bits.
    """
    weights = _int8_weights(name, folders(name, "int8"))
    assert len(weights) > 5
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
    assert largest > 32
    assert 2 * 255 * largest < 2**15


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_no_tensorflow_is_needed(name, folders):
    code = (
        "import sys; import han_tf; import numpy as np\n"
        f"x = han_tf.FeatureExtractor({str(folders(name, 'float32'))!r}, threads=1)\n"
        "assert x([np.zeros((60, 30, 3), np.uint8)]).shape == (1, 1024)\n"
        "sys.exit(3 * ('tensorflow' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(params=FORMATS)
def copied(request, folders, tmp_path):
    """A copy of an export in each format, to be damaged."""
    folder = tmp_path / request.param
    shutil.copytree(folders(request.param, "float32"), folder)
    return folder


def largest_file(folder):
    files = [folder / name for name in json.loads((folder / CARD).read_text())["files"]]
    return max(files, key=lambda path: path.stat().st_size)


CLOSED_OLDEST_FIRST = """
import signal, sys
from han_tf.features.extractor import FeatureExtractor

extractors = [FeatureExtractor(sys.argv[1]) for _ in range(2)]
while extractors:
    extractors.pop(0).close()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_signals_are_handled_after_models_are_closed(plain_model):
    """OpenVINO's cores leave a freed stack for signals if they are deleted in the order in which they were made."""
    command = [sys.executable, "-c", CLOSED_OLDEST_FIRST, str(plain_model)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_changed_byte_is_one_line(copied):
    path = largest_file(copied)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: damaged or changed, SHA-256 is") as raised:
        FeatureExtractor(copied)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(copied):
    path = largest_file(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"^{path}: No such file"):
        FeatureExtractor(copied)


def test_files_of_another_kind_are_one_line(copied):
    """The checksums fit, but the runtime cannot read the files."""
    for name in json.loads((copied / CARD).read_text())["files"]:
        (copied / name).write_bytes(b"something else entirely" * 10)
    rewrite_card(copied, files=hash_files(copied))
    with pytest.raises(UserError, match=r"cannot run this model \(.*\); export the run anew") as raised:
        FeatureExtractor(copied)
    assert "\n" not in str(raised.value)


def test_another_version_or_format_is_one_line(copied):
    rewrite_card(copied, version=0)
    with pytest.raises(UserError, match="version is 0, expected 1; export the run anew"):
        FeatureExtractor(copied)
    rewrite_card(copied, version=1, format="caffe")
    with pytest.raises(UserError, match="format is 'caffe', expected one of saved_model, tflite, onnx, openvino"):
        FeatureExtractor(copied)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_its_install_line(name, folders, monkeypatch):
    folder = folders(name, "float32")
    found = runtimes.importlib.util.find_spec
    monkeypatch.setattr(
        runtimes.importlib.util, "find_spec", lambda package: None if package == PACKAGES[name] else found(package)
    )
    with pytest.raises(UserError, match=rf"needs {PACKAGES[name]}, .*pip install '\.\[export\]'"):
        FeatureExtractor(folder)


def test_an_empty_folder_is_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "han_tf_runtime").mkdir()
    with pytest.raises(UserError, match=r"^a model needs han_tf_runtime, which is not installed: pip install"):
        runtimes.require("han_tf_runtime", "a model")
    (tmp_path / "han_tf_runtime" / "__init__.py").touch()
    importlib.invalidate_caches()
    runtimes.require("han_tf_runtime", "a model")


@pytest.mark.parametrize("name", ["saved_model", "tflite", "keras"])
def test_without_tensorflow_its_formats_are_one_line(name, plain_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, f"han_tf.runtimes.{name}", raising=False)
    if name == "keras":
        (plain_model / CARD).rename(plain_model / "config.json")
    else:
        rewrite_card(plain_model, format=name)
    what = "a training run" if name == "keras" else f"a model in format {name}"
    line = rf"^{what} needs a package that cannot be imported \(.*tensorflow.*\): pip install '\.\[export\]' in"
    with pytest.raises(UserError, match=line):
        FeatureExtractor(plain_model)


@pytest.mark.parametrize("room", ["runtimes", "deploy.exporters"])
def test_a_package_that_cannot_be_imported_is_one_line(room, tmp_path, monkeypatch):
    package = {"runtimes": "onnxruntime", "deploy.exporters": "tf2onnx"}[room]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("import os\nos.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"han_tf.{room}.onnx", raising=False)
    with pytest.raises(UserError, match=r"^a model needs a package that cannot be imported \(.* 'no_such_name'\): pip"):
        runtimes.load_module(f"han_tf.{room}.onnx", "a model")


def test_a_saved_model_where_tensorflow_could_not_read_it(plain_model):
    rewrite_card(plain_model, format="saved_model")
    moved = plain_model.rename(plain_model.with_name("a[1]"))
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(moved))}: a SavedModel here could not be read, expected a path"
    ):
        FeatureExtractor(moved)


def test_openvino_reads_any_memory(plain_model, plain_weights):
    """Read-only memory, which OpenVINO refuses to share, and views whose rows do not follow each other."""
    _, runtime = runtimes.open_runtime(plain_model)
    images = np.random.default_rng(0).integers(0, 256, (19, *SIZE, 3), np.uint8)
    fixed = images.copy()
    fixed.setflags(write=False)
    views = (fixed, images[..., ::-1], np.asfortranarray(images), images[::2], fixed[:1])
    for view in views:
        expected = view.reshape(len(view), -1).astype(np.float32) @ plain_weights
        np.testing.assert_allclose(runtime(view), expected, rtol=1e-4, atol=1)


def test_threads_limit_both_pools_of_tensorflow(monkeypatch):
    asked = {}
    for pool in ("intra", "inter"):
        setter = f"set_{pool}_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, setter, lambda threads, pool=pool: asked.update({pool: threads}))
    runtimes.limit_tensorflow(None)
    assert not asked
    runtimes.limit_tensorflow(3)
    assert asked == {"intra": 3, "inter": 3}
