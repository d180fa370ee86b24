"""Package definition; the versions known to work together are in constraints-py310.txt and constraints-py312.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

INIT = (HERE / "han_tf/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1]

FAISS = "faiss-cpu>=1.9"
# TensorFlow Addons end with TensorFlow 2.15, that with Python 3.11; then tf.keras is Keras 3, and Keras 2 is tf-keras.
OLD, NEW = "; python_version < '3.12'", "; python_version >= '3.12'"
PYARROW = [f"pyarrow>=14,<25{OLD}", f"pyarrow>=18{NEW}"]  # 26 needs NumPy 2
OPENVINO = "openvino>=2025.0; sys_platform != 'darwin' or platform_machine != 'x86_64'"  # no wheels for Macs with Intel

EXTRAS = {
    "cuhk03": ["h5py>=3.8"],  # the original cuhk-03.mat (MATLAB v7.3)
    "faiss": [FAISS],  # approximate neighbours for re-ranking huge galleries
    "export": ["nncf>=3", "onnxruntime>=1.16", OPENVINO, "tf2onnx>=1.17"],  # tf2onnx before: protobuf 3
    "extract": PYARROW,
    "ray": ["ray>=2.60", *PYARROW],
    "search": [FAISS, *PYARROW],
    "milvus": ["milvus-lite>=2.5", *PYARROW, "pymilvus>=2.5,<3"],
    "serve": [FAISS, "fastapi>=0.110", "prometheus-client>=0.20", *PYARROW, "python-multipart>=0.0.9", "uvicorn>=0.30"],
}

ALL = [package for extra in EXTRAS.values() for package in extra]

TEST = [
    "httpx>=0.27",
    "hypothesis>=6.80",
    "playwright>=1.45",
    "pytest>=7",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3",
    "schemathesis>=4",
    # The independent oracle of the crop and of the triplet loss; no wheels for Windows, nor for Linux on ARM.
    "tensorflow-addons==0.23.*; python_version < '3.12' and (sys_platform == 'darwin' or platform_machine == 'x86_64')",
]

COMMANDS = (
    "train",
    "evaluate",
    "visualize",
    "flops",
    "bench",
    "export",
    "demo",
    "extract",
    "index",
    "search",
    "serve",
    "weights",
)

setup(
    name="han-tf",
    version=VERSION,
    description="Harmonious Attention Network for scalable person re-identification, in TensorFlow",
    author="han-tf developers",
    project_urls={"Paper": "https://doi.org/10.1007/s11263-019-01274-1"},
    keywords="person re-identification, attention, TensorFlow, metric learning, image retrieval",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "LICENSE-weights"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["han_tf", "han_tf.*"]),
    package_data={
        "han_tf": ["py.typed"],
        "han_tf.serve": ["page/*"],
        "han_tf.weights": ["*/*.json", "*/*.safetensors"],
    },
    install_requires=[
        "absl-py>=1.4",
        "matplotlib>=3.7",  # curves and colour maps
        "numpy>=1.25",
        "pillow>=10",
        "safetensors>=0.4",  # the networks that come with the package
        "scipy>=1.10",  # sparse re-ranking; CUHK03's protocol files (MATLAB v5)
        "tensorboard>=2.15",
        f"tensorflow>=2.15,<2.16{OLD}",
        f"tensorflow>=2.21{NEW}",
        f"tf-keras>=2.21{NEW}",
        "tqdm>=4.60",
    ],
    extras_require={
        **EXTRAS,
        "test": [*TEST, *ALL],
        "lint": ["import-linter>=2.6", "mypy>=1.11", "pip-audit>=2.7", "ruff>=0.6"],
    },
    entry_points={
        "console_scripts": [f"han-{name}=han_tf.common.cli:script" for name in COMMANDS],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
