"""Package definition; the versions known to work together are in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="han-tf",
    version="0.1.0",
    description="Harmonious Attention Network for scalable person re-identification, in TensorFlow",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9,<3.12",
    packages=find_packages(include=["han_tf", "han_tf.*", "experiments"]),
    install_requires=[
        "absl-py>=1.4",
        "matplotlib>=3.7",  # curves and colour maps
        "numpy>=1.23,<2",
        "pillow>=10",
        "scipy>=1.10",  # sparse re-ranking; CUHK03's protocol files (MATLAB v5)
        "tensorboard>=2.15",
        "tensorflow>=2.15,<2.16",
        "tqdm>=4.60",
    ],
    extras_require={
        "cuhk03": ["h5py>=3.8"],  # the original cuhk-03.mat (MATLAB v7.3)
        "faiss": ["faiss-cpu>=1.7.4"],  # approximate neighbours for re-ranking huge galleries
        "triplet": ["tensorflow-addons==0.23.*"],  # the triplet loss of Table 11
        "test": [
            "faiss-cpu>=1.7.4",
            "h5py>=3.8",
            "hypothesis>=6.80",
            "pytest>=7",
            "pytest-xdist>=3",
            "onnxruntime>=1.16; python_version >= '3.10'",
            "tensorflow-addons==0.23.*",  # also the independent oracle for the crop: tfa.image.resampler
            "tf2onnx>=1.17; python_version >= '3.10'",  # older ones need protobuf 3
        ],
        "lint": ["ruff>=0.6"],
    },
    entry_points={
        "console_scripts": [
            "han-train=han_tf.train:cli",
            "han-evaluate=han_tf.evaluate:cli",
            "han-visualize=han_tf.visualize:cli",
            "han-flops=han_tf.flops:cli",
            "han-bench=han_tf.bench:cli",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
