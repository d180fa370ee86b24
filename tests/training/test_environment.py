"""What a run was made with."""

import subprocess

import pytest

from han_tf.training import environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that runs git in a repository whose one module stands where the project's own does."""
    module = tmp_path / "han_tf" / "training" / "environment.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(module))

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    return git


def test_the_commit_is_that_of_the_source_code(repository, tmp_path):
    module, results = tmp_path / "han_tf" / "training" / "environment.py", tmp_path / "RESULTS.md"
    results.write_text("none")
    repository("add", ".")
    repository("commit", "-qm", "no code yet")
    assert environment.git_commit() == "unknown"
    module.write_text("one")
    repository("add", ".")
    repository("commit", "-qm", "code")
    code = repository("rev-parse", "HEAD")
    assert environment.git_commit() == code
    results.write_text("some")
    assert environment.git_commit() == code
    repository("commit", "-qam", "results")
    assert environment.git_commit() == code
    module.write_text("two")
    assert environment.git_commit() == f"{code}+changes"


def test_outside_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() == "unknown"


def test_the_machine_is_described():
    machine = environment.describe()["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert machine["processor"]
